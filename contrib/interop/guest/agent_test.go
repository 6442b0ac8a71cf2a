//go:build integration

package guest_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/moraine-storage/moraine/contrib/interop/guest"
)

// agentScript runs a whole agent on kernel nbd: a file system on a volume is
// written and verified while the agent is killed again and again; then the
// data are verified again after a detach and a fresh attach, and on the image
// that `replica export` makes.
const agentScript = `
kills=%d
set -u
hostname guest
fail() { echo "FAILED: $*"; tail -n 40 /tmp/agent.log; exit 1; }
export MORAINE_ADDRESS=/run/m/agent.sock
start() {
	/moraine agent -config /agent.hcl >>/tmp/agent.log 2>&1 &
	agent=$!
}
wait_ready() {
	want=$1
	for i in $(seq 1 300); do
		[ "$(grep -c 'moraine agent is ready' /tmp/agent.log)" -ge "$want" ] && return 0
		kill -0 $agent 2>/dev/null || fail "agent ended while it started"
		sleep 0.5
	done
	fail "agent is not ready"
}
cat >/agent.hcl <<-END
	data_dir = "/data/m"
	run_dir  = "/run/m"
	backend "local" {
	  config {
	    paths = ["/data/d1"]
	  }
	}
END
/moraine config validate /agent.hcl || fail config
mkfs.ext4 -q /dev/vda && mkdir -p /data && mount -t ext4 /dev/vda /data && mkdir /data/d1 || fail "no disk"
: >/tmp/agent.log
start; wait_ready 1; starts=1
/moraine doctor | head -n 3
/moraine volume create v --size 256MiB || fail create
dir=$(/moraine volume mount v) || fail mount
grep " $dir " /proc/mounts | grep -q '^/dev/nbd' || fail "not mounted from a kernel nbd: $(grep " $dir " /proc/mounts)"
run() { # name, fio options
	name=$1; shift
	fio --name=$name --directory=$dir --size=24M --bs=4k --verify=crc32c --verify_fatal=1 --verify_state_save=0 \
		--time_based --runtime=$((kills * 8)) --rw=randwrite --do_verify=0 "$@" >/tmp/$name.log 2>&1 &
	fio=$!
	n=0
	while [ $n -lt $kills ]; do
		sleep 1
		kill -9 $agent; wait $agent 2>/dev/null
		sleep 0.3
		start; starts=$((starts + 1)); wait_ready $starts
		n=$((n + 1))
	done
	wait $fio || { cat /tmp/$name.log; fail "fio $name saw an error"; }
	echo "$name: $n kills, $(grep -o 'issued rwts: total=[0-9,]*' /tmp/$name.log)"
}
verify() {
	for name in direct buffered; do
		[ -e $1/$name.0.0 ] || continue
		fio --name=$name --directory=$1 --size=24M --bs=4k --verify=crc32c --verify_fatal=1 --rw=read --verify_only=0 --do_verify=1 --readonly >/tmp/v.log 2>&1 ||
			{ cat /tmp/v.log; fail "$2: $name"; }
	done
}
# What was never written has no checksum: lay the files out whole first.
for name in direct buffered; do
	fio --name=$name --directory=$dir --size=24M --bs=64k --verify=crc32c --verify_interval=4k --rw=write --do_verify=0 --end_fsync=1 >/tmp/l.log 2>&1 || { cat /tmp/l.log; fail "lay out"; }
done
run direct --direct=1 --ioengine=libaio --iodepth=8
run buffered --fsync=32
verify $dir "at once"
sync
/moraine volume unmount v || fail unmount
[ -z "$(grep /dev/nbd /proc/mounts)" ] || fail "still mounted"
dir=$(/moraine volume mount v) || fail "mount again"
verify $dir "after a fresh attach"
/moraine volume unmount v || fail "unmount again"
kill $agent; wait $agent
/moraine drive check --data /data/d1 || fail check
/moraine replica export /data/d1 --to /data/image || fail export
mkdir -p /image && mount -t ext4 -o loop,ro /data/image /image || fail "mount image"
verify /image "on the image"
echo ALL GOOD
`

// Goal: SIGKILL ten times under I/O on kernel nbd: no I/O error, nothing lost
// (rule 12; 0001 S1, S7; NbdReplay). MORAINE_GUEST_KILLS changes the number
// for each of the two workloads.
func TestAgentKilledUnderKernelNBD(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "moraine")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, "github.com/moraine-storage/moraine/agent/cmd/moraine")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	kills := os.Getenv("MORAINE_GUEST_KILLS")
	n := 5
	if kills != "" {
		if _, err := fmt.Sscan(kills, &n); err != nil || n < 1 {
			t.Fatalf("MORAINE_GUEST_KILLS=%q is no number of kills", kills)
		}
	}
	r, err := guest.Run(context.Background(), guest.Config{
		Files:    map[string]string{"/moraine": bin},
		Programs: []string{"mkfs.ext4", "e2fsck", "blkid", "resize2fs", "fio"},
		Modules:  []string{"nbd nbds_max=4", "ext4", "loop"},
		Disks:    []int64{2 << 30}, MemoryMB: 2048, Timeout: 14 * time.Minute, Log: os.Stderr,
		Script: fmt.Sprintf(agentScript, n),
	})
	if err != nil {
		t.Fatal(err)
	}
	if r.ExitCode != 0 {
		t.Errorf("exit code %d:\n%s", r.ExitCode, r.Output)
	}
}
