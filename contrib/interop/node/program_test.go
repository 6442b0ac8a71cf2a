//go:build integration

package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Deadlines: for slow and busy machines; nothing waits so long when all is well.
const (
	programTimeout = time.Minute      // one program
	patience       = 40 * time.Second // of eventually
	dieTimeout     = 5 * time.Second  // for a killed program to go
)

// result of a program.
type result struct {
	stdout, stderr string
	code           int // -1: it did not end by itself
}

// program runs argv with a deadline, and comes back even if it cannot be killed.
func program(timeout time.Duration, env []string, argv ...string) (result, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.WaitDelay = dieTimeout
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	done := make(chan error, 1)
	if err := cmd.Start(); err != nil {
		return result{code: -1}, err
	}
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		r := result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
		if err != nil {
			err = fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(r.stderr+"\n"+r.stdout))
		}
		if ctx.Err() != nil {
			err = errors.Join(ctx.Err(), err)
		}
		return r, err
	case <-time.After(timeout + 3*dieTimeout):
		return result{code: -1}, fmt.Errorf("%s: hangs and cannot be killed", strings.Join(argv, " "))
	}
}

// try runs a program and returns what it printed.
func try(argv ...string) (string, error) {
	r, err := program(programTimeout, nil, argv...)
	return r.stdout, err
}

// must is try for what has to work.
func must(t testing.TB, argv ...string) string {
	t.Helper()
	out, err := try(argv...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// eventually calls f until it returns nil.
func eventually(t testing.TB, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not after %s: %v", what, patience, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// inTime calls f, which touches files that may hang, and fails when it does not
// come back.
func inTime(t testing.TB, what string, f func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-time.After(programTimeout):
		t.Fatalf("%s: hangs", what)
		return nil
	}
}

// sparse makes a file of size bytes without blocks.
func sparse(t testing.TB, path string, size int64) string {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

// medium is a file system on a loop device: a drive that the test can break.
type medium struct {
	file, loop, at string
}

// newMedium makes one below dir, where agentproc.TakeDown finds its parts.
func newMedium(t testing.TB, dir, name, fs string, size int64) *medium {
	t.Helper()
	m := &medium{file: sparse(t, filepath.Join(dir, name+".img"), size), at: filepath.Join(dir, name)}
	must(t, "mkfs."+fs, "-q", m.file)
	m.loop = must(t, "losetup", "--find", "--show", "--direct-io=on", m.file)
	if err := os.Mkdir(m.at, 0o700); err != nil {
		t.Fatal(err)
	}
	m.mount(t)
	return m
}

func (m *medium) mount(t testing.TB, options ...string) {
	t.Helper()
	must(t, append(append([]string{"mount"}, options...), m.loop, m.at)...)
	// What mkfs leaves in the root of an ext4 is somebody else's.
	if err := os.Remove(filepath.Join(m.at, "lost+found")); err != nil && !errors.Is(err, os.ErrNotExist) && len(options) == 0 {
		t.Fatal(err)
	}
}

func (m *medium) unmount(t testing.TB) {
	t.Helper()
	must(t, "umount", m.at)
}
