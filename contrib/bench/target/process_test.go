package target

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestProcess(t *testing.T) {
	p, err := Start("sh", "-c", "echo hello; echo there >&2; exec sleep 600")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.await("sh", func() bool { return strings.Contains(p.Output(), "there") }); err != nil {
		t.Error(err)
	}
	if tree, err := Tree(os.Getpid()); err != nil || !slices.Contains(tree, p.PID()) || slices.Contains(tree, os.Getppid()) {
		t.Errorf("tree %v lacks %d, or has %d (%v)", tree, p.PID(), os.Getppid(), err)
	}
	if tree, err := Tree(p.PID()); err != nil || !slices.Equal(tree, []int{p.PID()}) {
		t.Errorf("tree of a process without children %v (%v)", tree, err)
	}
	mark := filepath.Join(t.TempDir(), "mark")
	marked, err := Start("sh", "-c", "while :; do sleep 1; done", mark)
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		// Between fork and exec it still has our arguments.
		got, err := withArgument(mark)
		if err == nil && slices.Equal(got, []int{marked.PID()}) {
			break
		}
		if err != nil || time.Now().After(end) {
			t.Errorf("processes with the argument %v, want %d alone (%v)", got, marked.PID(), err)
			break
		}
	}
	if part, err := withArgument(mark[:len(mark)-1]); err != nil || len(part) != 0 {
		t.Errorf("processes with a part of the argument: %v (%v)", part, err)
	}
	if err := marked.Stop(); err != nil {
		t.Error(err)
	}
	if pss, err := PSS(p.PID()); err != nil || pss <= 0 {
		t.Errorf("memory %d, %v", pss, err)
	}
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
	if _, err := CPU(p.PID()); err == nil {
		t.Error("processor time of a process that has ended")
	}
	if _, err := Start(filepath.Join(t.TempDir(), "missing")); err == nil {
		t.Error("a missing program was started")
	}
}

// TestEarlyEnd: what a process says before it fails to start is in the error.
func TestEarlyEnd(t *testing.T) {
	p, err := Start("sh", "-c", "echo 'no such option' >&2; exit 3")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.await("sh", func() bool { return false }); err == nil || !strings.Contains(err.Error(), "no such option") {
		t.Errorf("await: %v", err)
	}
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
}

func TestCPU(t *testing.T) {
	p, err := Start("sh", "-c", "while :; do :; done")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop()
	var used time.Duration
	for end := time.Now().Add(30 * time.Second); used < 50*time.Millisecond && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if used, err = CPU(p.PID()); err != nil {
			t.Fatal(err)
		}
	}
	if used < 50*time.Millisecond {
		t.Errorf("a busy process used %v", used)
	}
}

func TestRawFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f")
	if err := RawFile(file, 3<<20+512, true); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(file)
	if err != nil || len(b) != 3<<20+512 || b[len(b)-1] == 0 && b[len(b)-2] == 0 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if err := RawFile(file, 1, false); err == nil {
		t.Error("an existing file was overwritten")
	}
}

func TestURI(t *testing.T) {
	s := &Server{Socket: "/a b/s.sock", Export: "vol"}
	if got := s.URI(); got != "nbd+unix:///vol?socket=%2Fa%20b%2Fs.sock" {
		t.Errorf("URI %s", got)
	}
}
