package hostmount

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// limited keeps the first maxOutput bytes.
type limited struct{ b bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	if room := maxOutput - l.b.Len(); room > 0 {
		l.b.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

// run executes a program and returns its output and exit code. The error is
// nil whenever the program ran to an exit of its own.
func run(ctx context.Context, timeout time.Duration, name string, args ...string) (string, int, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	path, err := exec.LookPath(name)
	if err != nil {
		return "", -1, fmt.Errorf("%s: not installed: %w", name, errdefs.ErrUnimplemented)
	}
	var out limited
	cmd := exec.Command(path, args...)
	cmd.Env = []string{"LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "E2FSPROGS_LIBMAGIC_SUPPRESS=1"}
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // so that its children die with it
	cmd.WaitDelay = killGrace
	if err := cmd.Start(); err != nil {
		return "", -1, fmt.Errorf("%s: %w", name, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err = <-ended:
	case <-ctx.Done():
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // gone is as good
		select {
		case <-ended:
			return "", -1, fmt.Errorf("%s %s: killed: %w: %w", name, strings.Join(args, " "), ctx.Err(), errdefs.ErrIndeterminate)
		case <-time.After(killGrace):
			// It waits inside the kernel for a device that does not answer.
			return "", -1, fmt.Errorf("%s %s: cannot be killed, its device does not answer: %w: %w", name, strings.Join(args, " "), ctx.Err(), errdefs.ErrIndeterminate)
		}
	}
	text := strings.TrimSpace(out.b.String())
	var exit *exec.ExitError
	switch {
	case err == nil:
		return text, 0, nil
	case errors.As(err, &exit) && exit.Exited():
		return text, exit.ExitCode(), nil
	}
	return text, -1, fmt.Errorf("%s: %w: %s", name, err, text)
}

// must is run for programs whose every exit code but 0 is a failure.
func must(ctx context.Context, timeout time.Duration, name string, args ...string) error {
	out, code, err := run(ctx, timeout, name, args...)
	if err != nil {
		return err
	}
	if code != 0 {
		return fmt.Errorf("%s: exit code %d: %s", name, code, out)
	}
	return nil
}

// within runs a system call that a dead device could block, for no longer than
// ctx and timeout allow.
func within(ctx context.Context, timeout time.Duration, what string, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- f() }()
	select {
	case err := <-ended:
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s: does not return: %w: %w", what, ctx.Err(), errdefs.ErrIndeterminate)
	}
}
