//go:build integration

package docker

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// kills of the agent while fio runs.
const kills = 10

// fioJob is a fio that writes a file in random order and verifies every block.
type fioJob struct {
	name string
	args []string
}

var fioJobs = []fioJob{
	{"direct", []string{"--ioengine=libaio", "--direct=1", "--iodepth=16", "--bs=8k"}},
	{"buffered with fsync", []string{"--ioengine=psync", "--direct=0", "--fsync=8", "--bs=16k"}},
}

// command writes or verifies one round. The pattern of a block is its offset
// and the round, so that a block that is damaged, in another's place, or left
// from an earlier round is found. (fio's checksums would accept the last.)
func (j fioJob) command(file, round string, more ...string) []string {
	argv := append([]string{"--name=w", "--filename=" + file, "--size=64M", "--verify=pattern",
		"--verify_pattern=%o0x" + round, "--verify_fatal=1", "--invalidate=1", "--output-format=terse"}, j.args...)
	return append(argv, more...)
}

// Goal: killing the agent is invisible to a container but for a pause. Method:
// fio writes and verifies in rounds while the agent is killed ten times with
// SIGKILL and started again; no round may see an error. Then the last round is
// verified once more at once, after a detach and a fresh attach, and on the
// image that `moraine replica export` writes without an agent.
func TestAgentKilledUnderFio(t *testing.T) {
	for _, job := range fioJobs {
		t.Run(job.name, func(t *testing.T) { testAgentKilled(t, job) })
	}
}

func testAgentKilled(t *testing.T, job fioJob) {
	l := newLab(t)
	l.create("fio", "size=512MiB", "fs=ext4")
	script := `i=0
while [ ! -e /data/stop ]; do
  i=$((i+1)); r=1$(printf %07d $i)
  echo $r > /data/round.new; sync /data/round.new; mv /data/round.new /data/round
  fio ` + strings.Join(job.command("/data/f", "$r", "--rw=randwrite", "--rate=12m", "--do_verify=1"), " ") + ` || { echo FIO FAILED; exit 1; }
done`
	l.spawn("writer", "fio", "/bin/sh", "-c", script)
	eventually(t, "first round", time.Minute, func() error {
		_, err := l.try("exec", "writer", "/bin/cat", "/data/round")
		return err
	})
	for i := range kills {
		time.Sleep(time.Duration(700+300*i) * time.Millisecond)
		l.agent.Kill()
		time.Sleep(time.Duration(100*(i%4)) * time.Millisecond)
		l.agent.Run()
		if state := l.docker("inspect", "-f", "{{.State.Running}}", "writer"); state != "true" {
			t.Fatalf("after kill %d the writer ended:\n%s\n%s", i+1, l.docker("logs", "writer"), l.agent.LogTail())
		}
	}
	l.docker("exec", "writer", "/bin/touch", "/data/stop")
	eventually(t, "last round", 3*time.Minute, func() error {
		if state := l.docker("inspect", "-f", "{{.State.Running}}", "writer"); state == "true" {
			return fmt.Errorf("still %s", state)
		}
		return nil
	})
	if code := l.docker("inspect", "-f", "{{.State.ExitCode}}", "writer"); code != "0" {
		t.Fatalf("the writer ended with %s:\n%s\n%s", code, l.docker("logs", "writer"), l.agent.LogTail())
	}
	l.docker("rm", "writer")
	// Rounds end by themselves, so the file is wholly that of the last one.
	verify := "fio " + strings.Join(job.command("/data/f", "$(cat /data/round)", "--rw=randread"), " ")
	l.spawn("holder", "fio", "/bin/sleep", "3600")
	l.docker("exec", "holder", "/bin/sh", "-ec", verify)
	l.docker("rm", "-f", "holder")
	if v := l.inspect("fio"); v.Status["state"] != "detached" {
		t.Fatalf("still %v", v.Status)
	}
	l.sh("fio", verify)
	last := l.sh("fio", "cat /data/round")
	t.Logf("%s: %d kills, %s rounds", job.name, kills, last)
	verifyExport(t, l, job, last)
}

// verifyExport verifies the file in a raw image made from the drive, with the
// agent stopped.
func verifyExport(t *testing.T, l *lab, job fioJob, round string) {
	t.Helper()
	id, ok := l.inspect("fio").Status["id"].(string)
	if !ok {
		t.Fatal("the volume has no id")
	}
	l.agent.Stop()
	img := filepath.Join(l.dir, "export.img")
	l.agent.Must("replica", "export", l.drivePath(), id, "--to", img)
	at := filepath.Join(l.dir, "export")
	if err := os.Mkdir(at, 0o755); err != nil {
		t.Fatal(err)
	}
	run(t, "mount", "-o", "loop,ro,noload", img, at)
	defer run(t, "umount", at)
	if b, err := os.ReadFile(filepath.Join(at, "round")); err != nil || strings.TrimSpace(string(b)) != round {
		t.Errorf("round in the export: %q, %v; want %s", b, err, round)
	}
	run(t, "fio", job.command(filepath.Join(at, "f"), round, "--rw=randread", "--readonly")...)
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// drivePath is the folder of the agent's only drive.
func (l *lab) drivePath() string { return filepath.Join(l.agent.Dir, "drives", "d1") }

// writer is a script that appends numbered lines, durably, and ends when one
// cannot be written.
const writer = `n=$(cat /data/log 2>/dev/null | wc -l); while true; do n=$((n+1)); echo $n >> /data/log && sync /data/log || exit 1; sleep 0.05; done`

// progress waits until the container's log has grown.
func (l *lab) progress(container, when string) {
	l.t.Helper()
	count := func() string { return l.docker("exec", container, "/bin/sh", "-c", "wc -l < /data/log") }
	before := count()
	eventually(l.t, "writes go on "+when, time.Minute, func() error {
		if now := count(); now == before {
			return fmt.Errorf("still %s lines", now)
		}
		return nil
	})
}

// complete says whether the log has every line up to its last.
func (l *lab) complete(volume string) {
	l.t.Helper()
	if got := l.sh(volume, `n=0; while read x; do n=$((n+1)); [ "$x" = "$n" ] || { echo "line $n is $x"; exit 0; }; done < /data/log; [ $n -gt 0 ] && echo complete`); got != "complete" {
		l.t.Errorf("the log of %s: %s", volume, got)
	}
}

// Goal: a restart of the agent, in order, leaves containers running and counts
// right, also of a container that stops while the agent is away.
func TestAgentRestart(t *testing.T) {
	l := newLab(t)
	l.create("again", "size=256MiB")
	l.spawn("w1", "again", "/bin/sh", "-c", writer)
	l.spawn("w2", "again", "/bin/sleep", "3600")
	eventually(t, "first line", time.Minute, func() error {
		_, err := l.try("exec", "w1", "/bin/cat", "/data/log")
		return err
	})
	for range 3 {
		l.agent.Stop()
		l.agent.Run()
		l.progress("w1", "after a restart")
	}
	if v := l.inspect("again"); v.Status["state"] != "attached" || v.Mountpoint == "" {
		t.Errorf("after restarts: %+v", v)
	}
	l.refused([]string{"volume", "rm", "again"}, "in use")

	// Docker repeats its call until the agent is back.
	l.agent.Kill()
	stopped := make(chan error, 1)
	go func() {
		_, err := l.try("rm", "-f", "w2")
		stopped <- err
	}()
	time.Sleep(time.Second)
	l.agent.Run()
	if err := <-stopped; err != nil {
		t.Errorf("stop while the agent was away: %v", err)
	}
	l.progress("w1", "after the other container")
	l.docker("rm", "-f", "w1")
	eventually(t, "detached", time.Minute, func() error {
		if v := l.inspect("again"); v.Status["state"] != "detached" {
			return fmt.Errorf("%v", v.Status)
		}
		return nil
	})
	l.complete("again")
	l.docker("volume", "rm", "again")
}

// Goal: an engine that is killed and started again finds its volumes, and
// nothing stays in use for ever. Without live restore the engine kills its
// containers when it comes back, and never unmounts what they had.
func TestEngineKilled(t *testing.T) {
	l := newLab(t)
	l.create("killed", "size=256MiB")
	l.spawn("writer", "killed", "/bin/sh", "-c", writer)
	eventually(t, "first line", time.Minute, func() error {
		_, err := l.try("exec", "writer", "/bin/cat", "/data/log")
		return err
	})
	l.stop() // in order: containers are stopped and unmounted
	l.start()
	l.docker("start", "writer")
	l.progress("writer", "after an orderly restart of the engine")
	l.kill()
	time.Sleep(500 * time.Millisecond)
	l.start()
	if got := l.docker("volume", "ls", "-q"); got != "killed" {
		t.Errorf("volumes after the restart: %q", got)
	}
	if state := l.docker("inspect", "-f", "{{.State.Running}}", "writer"); state == "true" {
		t.Fatal("the container outlived its engine without live restore: this test shows nothing")
	}
	time.Sleep(11 * time.Second) // longer than an engine may take to bind a mount
	l.docker("start", "writer")
	l.progress("writer", "after the engine's restart")
	l.docker("rm", "-f", "writer")
	if v := l.inspect("killed"); v.Status["state"] != "detached" {
		t.Errorf("after the last container: %+v", v)
	}
	l.complete("killed")
	// And a container that is never started again.
	l.spawn("idle", "killed", "/bin/sleep", "3600")
	l.kill()
	l.start()
	l.docker("rm", "-f", "idle")
	time.Sleep(11 * time.Second)
	l.docker("volume", "rm", "killed")
}

// Goal: with live restore containers go on without their engine, and it takes
// them up again: a copy into one does not take its volume away.
func TestEngineKilledLiveRestore(t *testing.T) {
	l := newLab(t, "--live-restore")
	l.create("killed", "size=256MiB")
	l.spawn("writer", "killed", "/bin/sh", "-c", writer)
	eventually(t, "first line", time.Minute, func() error {
		_, err := l.try("exec", "writer", "/bin/cat", "/data/log")
		return err
	})
	l.kill()
	time.Sleep(time.Second)
	l.start()
	time.Sleep(11 * time.Second)
	l.progress("writer", "over the engine's restart")
	file := filepath.Join(l.dir, "f")
	if err := os.WriteFile(file, []byte("copied"), 0o644); err != nil {
		t.Fatal(err)
	}
	l.docker("cp", file, "writer:/data/f")
	l.progress("writer", "after a copy")
	l.refused([]string{"volume", "rm", "killed"}, "in use")
	l.docker("rm", "-f", "writer")
	// For the copy Docker mounted and unmounted under the container's ID, which
	// it then forgets: for the container itself it never unmounts. The volume
	// can be used and removed all the same.
	l.complete("killed")
	l.docker("volume", "rm", "killed")
}
