//go:build integration

package docker

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moraine-storage/moraine/contrib/interop/agentproc"
)

// inspected is what `docker volume inspect` prints.
type inspected struct {
	Name, Driver, Mountpoint, Scope, CreatedAt string
	Status                                     map[string]any
}

func (l *lab) inspect(volume string) inspected {
	l.t.Helper()
	var list []inspected
	if err := json.Unmarshal([]byte(l.docker("volume", "inspect", volume)), &list); err != nil || len(list) != 1 {
		l.t.Fatalf("docker volume inspect %s: %v, %d volumes", volume, err, len(list))
	}
	return list[0]
}

// number is a figure of a volume's status.
func (i inspected) number(t *testing.T, key string) int64 {
	t.Helper()
	f, ok := i.Status[key].(float64)
	if !ok {
		t.Fatalf("status of %s: %s is %v: %v", i.Name, key, i.Status[key], i.Status)
	}
	return int64(f)
}

// Goal: the life of a volume as a user sees it. Method: create with size and
// filesystem, write in one container, read in another, look at what inspect
// says while it is used and after, and try to remove it too early.
func TestLifeOfAVolume(t *testing.T) {
	l := newLab(t)
	for _, fs := range []string{"ext4", "xfs"} {
		name := "life-" + fs
		l.create(name, "size=1GiB", "fs="+fs, "label.app=test")
		v := l.inspect(name)
		if v.Driver != l.driver || v.Scope != "global" || v.Mountpoint != "" || v.Status["size"] != "1GiB" || v.Status["filesystem"] != fs {
			t.Errorf("a new volume: %+v", v)
		}
		if _, err := time.Parse(time.RFC3339, v.CreatedAt); err != nil {
			t.Errorf("created at: %v", err)
		}
		sum := l.sh(name, "dd if=/dev/urandom of=/data/f bs=1M count=64 2>/dev/null; mkdir /data/d; echo moraine > /data/d/g; sha256sum < /data/f")
		l.spawn("reader", name, "/bin/sleep", "3600")
		if got := l.docker("exec", "reader", "/bin/sh", "-ec", "sha256sum < /data/f; cat /data/d/g"); got != sum+"\nmoraine" {
			t.Errorf("%s: another container reads %q, want %q", fs, got, sum)
		}
		v = l.inspect(name)
		const written = 64 << 20
		if used := v.number(t, "used_bytes"); used < written || used > written+(128<<20) {
			t.Errorf("%s: %d bytes of the pool used after writing %d", fs, used, written)
		}
		if used, size := v.number(t, "filesystem_used_bytes"), v.number(t, "filesystem_size_bytes"); used < written || size < 900<<20 || size > 1<<30 {
			t.Errorf("%s: filesystem of %d bytes with %d used", fs, size, used)
		}
		if v.Mountpoint == "" || v.Status["state"] != "attached" {
			t.Errorf("%s: a used volume: %+v", fs, v)
		}
		if b, err := os.ReadFile(filepath.Join(v.Mountpoint, "d/g")); err != nil || string(b) != "moraine\n" {
			t.Errorf("%s: at the mountpoint: %q, %v", fs, b, err)
		}
		l.refused([]string{"volume", "rm", name}, "in use")
		if _, err := l.agent.CLI("volume", "delete", name, "--yes"); err == nil || !strings.Contains(err.Error(), "in use") {
			t.Errorf("%s: delete of a used volume by the command line: %v", fs, err)
		}
		if got := l.docker("volume", "ls", "-q"); got != name {
			t.Errorf("volume ls: %q", got)
		}
		l.docker("rm", "-f", "reader")
		if v = l.inspect(name); v.Mountpoint != "" || v.Status["state"] != "detached" {
			t.Errorf("%s: after its last container: %+v", fs, v)
		}
		if got := l.sh(name, "sha256sum < /data/f"); got != sum {
			t.Errorf("%s: after a new attach: %q, want %q", fs, got, sum)
		}
		l.docker("volume", "rm", name)
		if got := l.docker("volume", "ls", "-q"); got != "" {
			t.Errorf("after rm: %q", got)
		}
		if _, err := l.agent.CLI("volume", "show", name); err == nil {
			t.Errorf("%s is still there", name)
		}
	}
}

// A fresh volume is an empty folder: databases refuse a lost+found, and Docker
// copies an image's files only into an empty volume.
func TestFreshVolumeIsEmpty(t *testing.T) {
	l := newLab(t)
	l.create("fresh", "size=64MiB")
	if got := l.sh("fresh", "ls -A /data"); got != "" {
		t.Errorf("a fresh volume holds %q", got)
	}
	// /bin of the image is copied into a volume mounted over it.
	l.create("seeded", "size=64MiB")
	if got := l.docker("run", "--rm", "--network", "none", "-v", "seeded:/bin", image, "/bin/busybox", "ls", "/bin/fio"); got != "/bin/fio" {
		t.Errorf("the image's files in the volume: %q", got)
	}
	l.docker("volume", "rm", "fresh", "seeded")
}

// Goal: containers that share a volume count one by one, docker cp into a
// running one included: Docker mounts and unmounts for it under the ID of the
// container.
func TestSharedVolumeAndCopy(t *testing.T) {
	l := newLab(t)
	l.create("shared", "size=256MiB")
	l.spawn("one", "shared", "/bin/sh", "-c", "while true; do date > /data/one || exit 1; sleep 0.2; done")
	l.spawn("two", "shared", "/bin/sleep", "3600")
	file := filepath.Join(l.dir, "f")
	if err := os.WriteFile(file, []byte("copied"), 0o644); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		l.docker("cp", file, fmt.Sprintf("one:/data/f%d", i))
	}
	if got := l.docker("exec", "two", "/bin/cat", "/data/f2"); got != "copied" {
		t.Errorf("read %q", got)
	}
	l.docker("rm", "-f", "two")
	l.docker("exec", "one", "/bin/sh", "-ec", "echo more > /data/more; sync /data/more; cat /data/more")
	if got := l.docker("inspect", "-f", "{{.State.Running}}", "one"); got != "true" {
		t.Errorf("the first container ended: %s", l.docker("logs", "one"))
	}
	l.docker("rm", "-f", "one")
	if v := l.inspect("shared"); v.Status["state"] != "detached" {
		t.Errorf("after both: %+v", v)
	}
	l.docker("volume", "rm", "shared")
}

// Bad input is refused with words that help, and makes nothing.
func TestBadOptions(t *testing.T) {
	l := newLab(t)
	for _, tc := range []struct {
		opt   string
		words []string
	}{
		{"size=-1", []string{"option size", "10GiB"}},
		{"size=1EiB", []string{"size", "out of range", "TiB"}},
		{"size=99999999999999999999", []string{"option size"}},
		{"size=1", []string{"size"}},
		{"size=big", []string{"option size", "10GiB"}},
		{"siez=1GiB", []string{`unknown option "siez"`, "known are", "size"}},
		{"fs=ntfs", []string{"option fs", "ext4 or xfs"}},
		{"driver=floppy", []string{"option driver"}},
		{"replicas=0", []string{"option replicas", "from 1 to"}},
		{"replicas=5", []string{"replicas"}},
		{"pool=nowhere", []string{"nowhere"}},
		{"max-iops=many", []string{"option max-iops"}},
		{"from-snapshot=a@b", []string{"a"}},
		{"labels=x", []string{"option labels"}},
		{"mount-options=,", []string{"option mount-options"}},
	} {
		l.refused([]string{"volume", "create", "-d", l.driver, "-o", tc.opt, "bad"}, tc.words...)
	}
	long := strings.Repeat("x", 129)
	l.refused([]string{"volume", "create", "-d", l.driver, long}, "name")
	if got := l.docker("volume", "ls", "-q"); got != "" {
		t.Errorf("refused creates made %q", got)
	}
	var list []any
	l.agent.JSON(&list, "volume", "list")
	if len(list) != 0 {
		t.Errorf("refused creates made %v", list)
	}
	l.agent.Must("volume", "create", "there", "--size", "1GiB")
	if _, err := l.agent.CLI("volume", "create", "there", "--size", "2GiB"); err == nil || !strings.Contains(err.Error(), "exists") {
		t.Errorf("create with another size: %v", err)
	}
	l.docker("volume", "rm", "there")
}

func (l *lab) poolUsed() int64 {
	l.t.Helper()
	var pools []map[string]any
	l.agent.JSON(&pools, "pool", "list")
	if len(pools) != 1 {
		l.t.Fatalf("%d pools", len(pools))
	}
	for _, key := range []string{"used_bytes", "usedBytes"} {
		switch n := pools[0][key].(type) {
		case string: // 64-bit numbers are strings in protobuf's JSON
			i, err := strconv.ParseInt(n, 10, 64)
			if err != nil {
				l.t.Fatal(err)
			}
			return i
		case float64:
			return int64(n)
		}
	}
	return 0 // left out when zero
}

// traces of an agent that may not grow: all but its processes.
func traces(dir string) []string {
	var list []string
	for _, l := range agentproc.Leftovers(dir) {
		list = append(list, l.String())
	}
	slices.Sort(list)
	return list
}

// Goal: nothing of a volume survives its removal. Method: 50 cycles of create,
// run with a write, remove; then mounts, loop devices, sockets, processes, open
// files of the agent and space of the pool are as before.
func TestFiftyCyclesLeaveNothing(t *testing.T) {
	l := newLab(t)
	cycle := func(i int) {
		name := fmt.Sprint("cycle", i)
		l.create(name, "size=64MiB", "fs=ext4")
		want := fmt.Sprint("round ", i)
		if got := l.sh(name, "dd if=/dev/zero of=/data/z bs=1M count=8 2>/dev/null; echo "+want+" > /data/f; sync /data/f; cat /data/f"); got != want {
			t.Fatalf("cycle %d reads %q", i, got)
		}
		l.docker("volume", "rm", name)
	}
	cycle(0) // what the first one sets up may stay
	before, used, fds := traces(l.agent.Dir), l.poolUsed(), l.openFiles()
	for i := range 50 {
		cycle(i + 1)
	}
	eventually(t, "traces as before", time.Minute, func() error {
		if now := traces(l.agent.Dir); !slices.Equal(now, before) {
			return fmt.Errorf("now\n  %s\nbefore\n  %s", strings.Join(now, "\n  "), strings.Join(before, "\n  "))
		}
		return nil
	})
	eventually(t, "space as before", time.Minute, func() error {
		if now := l.poolUsed(); now > used {
			return fmt.Errorf("%d bytes used, %d before", now, used)
		}
		return nil
	})
	eventually(t, "open files as before", time.Minute, func() error {
		if now := l.openFiles(); now > fds+10 {
			return fmt.Errorf("the agent has %d open files, %d before", now, fds)
		}
		return nil
	})
	if got := l.docker("volume", "ls", "-q"); got != "" {
		t.Errorf("volumes: %q", got)
	}
}

func (l *lab) openFiles() int {
	l.t.Helper()
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", l.agent.PID()))
	if err != nil {
		l.t.Fatal(err)
	}
	return len(files)
}
