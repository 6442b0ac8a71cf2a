//go:build integration

package node

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moraine-storage/moraine/contrib/interop/agentproc"
)

// Goal: an agent that is stopped in order leaves its devices attached; who writes
// pauses and goes on with the next agent, without an error.
func TestStopUnderFio(t *testing.T) {
	t.Parallel()
	a := newAgent(t, newDir(t), [2]string{"p", "d1"})
	at := a.mounted("v", "p", "256MiB")
	fio := exec.Command("fio", "--name=w", "--filename="+at+"/f", "--rw=randwrite", "--bs=8k", "--size=64M", "--ioengine=libaio",
		"--direct=1", "--iodepth=8", "--rate=8m", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--output-format=terse")
	out := &strings.Builder{}
	fio.Stdout, fio.Stderr = out, out
	if err := fio.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- fio.Wait() }()
	for range 3 {
		time.Sleep(time.Second)
		a.stop()
		time.Sleep(300 * time.Millisecond)
		a.start()
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("fio: %v\n%s", err, out)
		}
	case <-time.After(programTimeout):
		_ = fio.Process.Kill()
		t.Errorf("fio hangs")
	}
	a.must("volume", "unmount", "v")
	a.nothingLeft()
}

// holderPID is the process that keeps an agent's devices.
func (a *agent) holderPID() int {
	a.t.Helper()
	for _, l := range agentproc.Leftovers(a.dir) {
		if l.Kind == "process" && strings.Contains(l.String(), " holder ") {
			var pid int
			if _, err := fmt.Sscan(l.Name, &pid); err != nil {
				a.t.Fatal(err)
			}
			return pid
		}
	}
	return 0
}

// Goal: the process that keeps devices over a restart is replaced when it dies,
// and the new one does its job.
func TestHolderKilled(t *testing.T) {
	t.Parallel()
	a := newAgent(t, newDir(t), [2]string{"p", "d1"})
	w := newWriter(a.mounted("v", "p", "128MiB"), 1, 256<<10)
	pid := a.holderPID()
	if pid == 0 {
		t.Fatal("a device is attached by a loop device and has no holder")
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := inTime(t, "write without a holder", w.write); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a new holder", func() error {
		if now := a.holderPID(); now == 0 || now == pid {
			return errors.New("none")
		}
		return nil
	})
	time.Sleep(2 * time.Second) // until it has what it keeps
	a.kill()
	wrote := make(chan error, 1)
	go func() { wrote <- w.write() }()
	time.Sleep(200 * time.Millisecond)
	a.start()
	select {
	case err := <-wrote:
		if err != nil {
			t.Errorf("a write over the restart: %v", err)
		}
	case <-time.After(programTimeout):
		t.Fatal("a write over the restart hangs")
	}
	if err := inTime(t, "verify", func() error { return w.verify(w.at) }); err != nil {
		t.Error(err)
	}
	a.must("volume", "unmount", "v")
	a.nothingLeft()
}

// Goal: agent and holder killed together is a device lost, as in a power cut:
// the next agent says so, the volume is detached, and what was durable is there.
func TestHolderAndAgentKilled(t *testing.T) {
	t.Parallel()
	a := newAgent(t, newDir(t), [2]string{"p", "d1"})
	w := newWriter(a.mounted("v", "p", "128MiB"), 1, 256<<10)
	for range 8 {
		if err := w.write(); err != nil {
			t.Fatal(err)
		}
	}
	pid := a.holderPID()
	a.kill()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := inTime(t, "write to a lost device", w.write); err == nil {
		t.Error("a write to a lost device was promised")
	}
	a.start()
	// It may still be known as mounted on a failed device; then it can be ended.
	if v := a.volume("v"); v.State != "DETACHED" {
		t.Logf("after the start: %+v", v)
		a.must("volume", "detach", "v", "--force")
	}
	at := a.must("volume", "mount", "v")
	if err := inTime(t, "verify", func() error { return w.verify(at) }); err != nil {
		t.Error(err)
	}
	a.must("volume", "unmount", "v")
	a.must("volume", "delete", "v")
	a.nothingLeft()
}

// life is a volume as the storm knows it: what must be in it, now and in its
// snapshots.
type life struct {
	name  string
	w     *fileWriter
	snaps map[string]map[string]uint64
}

// storm does what users do, all the time, and knows what was promised.
type storm struct {
	a    *agent
	rng  *rand.Rand
	live []*life
	n    int

	calls, cut int
}

// call runs a command and repeats it when the agent was killed under it: all
// commands can be repeated.
func (s *storm) call(args ...string) (string, error) {
	s.calls++
	for deadline := time.Now().Add(programTimeout); ; {
		r, err := s.a.cli(args...)
		if err == nil {
			return strings.TrimSpace(r.stdout), nil
		}
		// 6: the agent is not there; 9: it is at work on it; 1: it went while it answered.
		if r.code != exitUnavailable && r.code != 9 && !strings.Contains(r.stderr, "unavailable") || time.Now().After(deadline) {
			return "", err
		}
		s.cut++
		time.Sleep(100 * time.Millisecond)
	}
}

// step does one thing to a volume chosen at random.
func (s *storm) step() error {
	if len(s.live) < 2 || len(s.live) < 4 && s.rng.IntN(6) == 0 {
		s.n++
		l := &life{name: fmt.Sprintf("v%d", s.n), snaps: map[string]map[string]uint64{}}
		if _, err := s.call("volume", "create", l.name, "--size", "64MiB"); err != nil {
			return err
		}
		return s.mount(l, map[string]uint64{})
	}
	i := s.rng.IntN(len(s.live))
	l := s.live[i]
	switch k := s.rng.IntN(20); {
	case k < 13: // write
		if len(l.w.files) >= 40 {
			return s.remove(i)
		}
		return l.w.write()
	case k < 16: // snapshot
		if len(l.snaps) >= 3 {
			return nil
		}
		s.n++
		name := fmt.Sprintf("s%d", s.n)
		if _, err := s.call("snapshot", "create", l.name+"@"+name); err != nil {
			return err
		}
		l.snaps[name] = maps.Clone(l.w.files)
		return nil
	case k < 17: // a clone of a snapshot has its files
		if len(l.snaps) == 0 || len(s.live) >= 5 {
			return nil
		}
		name := slices.Sorted(maps.Keys(l.snaps))[s.rng.IntN(len(l.snaps))]
		s.n++
		c := &life{name: fmt.Sprintf("v%d", s.n), snaps: map[string]map[string]uint64{}}
		if _, err := s.call("volume", "clone", l.name+"@"+name, c.name); err != nil {
			return err
		}
		if err := s.mount(c, maps.Clone(l.snaps[name])); err != nil {
			return err
		}
		return c.w.verify(c.w.at)
	case k < 19: // away and back
		if _, err := s.call("volume", "unmount", l.name); err != nil {
			return err
		}
		at, err := s.call("volume", "mount", l.name)
		if err != nil {
			return err
		}
		l.w.at = at
		return l.w.verify(at)
	}
	return s.remove(i)
}

func (s *storm) mount(l *life, files map[string]uint64) error {
	at, err := s.call("volume", "mount", l.name)
	if err != nil {
		return err
	}
	s.n++
	l.w = newWriter(at, uint64(s.n), 96<<10)
	l.w.n, l.w.files = s.n*1000, files
	s.live = append(s.live, l)
	return nil
}

func (s *storm) remove(i int) error {
	l := s.live[i]
	if err := l.w.verify(l.w.at); err != nil {
		return err
	}
	if _, err := s.call("volume", "unmount", l.name); err != nil {
		return err
	}
	if _, err := s.call("volume", "delete", l.name, "--snapshots", "--if-exists"); err != nil {
		return err
	}
	s.live = slices.Delete(s.live, i, i+1)
	return nil
}

// stormTime is how long the agent is killed again and again.
const stormTime = 40 * time.Second

// Goal: kill -9 of the agent at any moment loses nothing that was promised and
// leaves nothing behind. Method: volumes are made, mounted, written, snapshotted,
// cloned, unmounted and deleted while the agent is killed at random; each file
// that was fsynced is compared over and over, and at the end everywhere: in the
// volumes, in every snapshot, and on the drive without an agent.
func TestKillStorm(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if v := os.Getenv("MORAINE_SEED"); v != "" {
		if _, err := fmt.Sscan(v, &seed); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("MORAINE_SEED=%d repeats the choices", seed)
	dir := newDir(t)
	a := newAgent(t, dir, [2]string{"p", "d1"})
	s := &storm{a: a, rng: rand.New(rand.NewPCG(seed, 1))}

	killerRNG := rand.New(rand.NewPCG(seed, 2))
	stop, stopped := make(chan struct{}), make(chan int, 1)
	go func() { // kills, and starts again
		kills := 0
		defer func() { stopped <- kills }()
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Duration(200+killerRNG.IntN(1800)) * time.Millisecond):
			}
			a.kill()
			kills++
			time.Sleep(time.Duration(killerRNG.IntN(200)) * time.Millisecond)
			if err := a.tryStart(); err != nil {
				t.Errorf("after kill %d: %v", kills, err)
				return
			}
		}
	}()
	var failed error
	steps := 0
	for end := time.Now().Add(stormTime); time.Now().Before(end) && failed == nil; steps++ {
		failed = inTime(t, "step", s.step)
	}
	close(stop)
	kills := <-stopped
	t.Logf("%d kills, %d steps, %d calls, %d repeated", kills, steps, s.calls, s.cut)
	if failed != nil {
		t.Fatalf("step %d: %v", steps, failed)
	}
	if kills < 5 || steps < 20 {
		t.Errorf("the storm was a breeze: %d kills, %d steps", kills, steps)
	}
	for _, l := range s.live {
		s.verifyAll(t, l)
	}
	// Nothing lies around but what is in use.
	var vols []struct{ Name string }
	a.json(&vols, "volume", "list")
	for _, v := range vols {
		if !slices.ContainsFunc(s.live, func(l *life) bool { return l.name == v.Name }) {
			t.Errorf("volume %s was deleted and is there", v.Name)
		}
	}
	for _, l := range s.live {
		a.must("volume", "unmount", l.name)
	}
	a.nothingLeft()
	a.stop()
	if out, err := a.try("drive", "check", "--data", filepath.Join(dir, "d1")); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	a.start()
	for _, l := range s.live {
		a.must("volume", "delete", l.name, "--snapshots")
	}
	eventually(t, "all space back", func() error {
		if d := a.drive("p"); d.UsedBytes != "0" || d.Replicas != 0 {
			return fmt.Errorf("%+v", d)
		}
		return nil
	})
}

// verifyAll compares a volume and each of its snapshots.
func (s *storm) verifyAll(t *testing.T, l *life) {
	t.Helper()
	if err := inTime(t, "verify", func() error { return l.w.verify(l.w.at) }); err != nil {
		t.Errorf("volume %s: %v", l.name, err)
	}
	for name, files := range l.snaps {
		clone := l.name + "-" + name
		s.a.must("volume", "clone", l.name+"@"+name, clone)
		at := s.a.must("volume", "mount", clone)
		w := newWriter(at, 0, l.w.size)
		w.files = files
		if err := inTime(t, "verify", func() error { return w.verify(at) }); err != nil {
			t.Errorf("snapshot %s of %s: %v", name, l.name, err)
		}
		s.a.must("volume", "unmount", clone)
		s.a.must("volume", "delete", clone)
	}
}
