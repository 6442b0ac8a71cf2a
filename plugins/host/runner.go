package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-plugin/runner"
	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/plugins/sdk"
)

// child runs one plugin process for go-plugin (runner.Runner). It differs from
// go-plugin's own in that it sees the exit even while a grandchild holds the
// pipes, ends the whole process group, and gives the plugin a lifeline.
type child struct {
	prog *program
	env  []string

	cmd            *exec.Cmd
	stdout, stderr *os.File      // our ends
	life           *os.File      // our end of the lifeline: closing it ends the plugin
	exited         chan struct{} // closed by reap after the status is known
	err            error         // how it ended; read after exited is closed

	mu  sync.Mutex
	pid int // guarded by mu: the process to kill; 0 before Start and once reaped
	was int // guarded by mu: pid, kept after the end
}

var _ runner.Runner = (*child)(nil)

func newChild(p *program, env []string) *child {
	return &child{prog: p, env: env, exited: make(chan struct{})}
}

// pathEnv: plugins call mkfs, mount, iscsiadm.
const pathEnv = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Start implements runner.Runner.
func (c *child) Start(context.Context) (err error) {
	var theirs []*os.File
	defer func() {
		for _, f := range theirs {
			f.Close()
		}
		if err != nil {
			c.closeOurs()
		}
	}()
	pipe := func() (r, w *os.File) {
		if err == nil {
			r, w, err = os.Pipe()
		}
		return r, w
	}
	var out, errs, life *os.File
	c.stdout, out = pipe()
	c.stderr, errs = pipe()
	life, c.life = pipe()
	for _, f := range []*os.File{out, errs, life} {
		if f != nil {
			theirs = append(theirs, f)
		}
	}
	if err != nil {
		return fmt.Errorf("make pipes: %w", err)
	}
	c.cmd = &exec.Cmd{
		Path: c.prog.path, Args: c.prog.argv, Dir: "/", Stdout: out, Stderr: errs, // stdin: /dev/null
		ExtraFiles:  []*os.File{life},
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true},
	}
	c.cmd.Env = append([]string{pathEnv, "LC_ALL=C", "GOMEMLIMIT=" + memLimit, "GOGC=" + gcPercent,
		"GOMAXPROCS=1", sdk.LifelineEnv + "=3"}, c.env...)
	if c.prog.file != nil { // run what was verified, not what the path names now
		c.cmd.ExtraFiles = append(c.cmd.ExtraFiles, c.prog.file)
		c.cmd.Path = "/proc/self/fd/4"
	}
	if err = c.cmd.Start(); err != nil {
		return fmt.Errorf("execute %s: %w", c.prog.path, err)
	}
	c.mu.Lock()
	c.pid, c.was = c.cmd.Process.Pid, c.cmd.Process.Pid
	c.mu.Unlock()
	go c.reap()
	return nil
}

// reap waits for the child. Before the process ID is given back it ends what
// is left of the group; then it gives the readers of the pipes a moment for
// the last lines and closes them, whoever else may still hold the other end.
func (c *child) reap() {
	pid := c.cmd.Process.Pid
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	_ = unix.Kill(-pid, unix.SIGKILL)
	c.mu.Lock()
	c.err = c.cmd.Wait()
	c.pid = 0
	c.mu.Unlock()
	close(c.exited)
	time.Sleep(lastWords)
	c.closeOurs()
}

// lastWords is how long a dead child's pipes are still read.
const lastWords = 200 * time.Millisecond

func (c *child) closeOurs() {
	for _, f := range []*os.File{c.stdout, c.stderr, c.life} {
		if f != nil {
			f.Close()
		}
	}
}

// Diagnose implements runner.Runner; launch adds what the child said itself.
func (c *child) Diagnose(context.Context) string { return "" }

// Stdout implements runner.Runner.
func (c *child) Stdout() io.ReadCloser { return c.stdout }

// Stderr implements runner.Runner.
func (c *child) Stderr() io.ReadCloser { return c.stderr }

// Name implements runner.Runner.
func (c *child) Name() string { return c.prog.path }

// ID implements runner.AttachedRunner.
func (c *child) ID() string { return strconv.Itoa(c.processID()) }

func (c *child) processID() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.was
}

// Wait implements runner.AttachedRunner.
func (c *child) Wait(ctx context.Context) error {
	select {
	case <-c.exited:
		return c.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Kill implements runner.AttachedRunner: SIGKILL to the whole group.
func (c *child) Kill(context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pid == 0 {
		return nil
	}
	return unix.Kill(-c.pid, unix.SIGKILL)
}

// PluginToHost implements runner.AddrTranslator. Only unix sockets are used.
func (c *child) PluginToHost(network, addr string) (string, string, error) {
	if network != "unix" || !strings.HasPrefix(addr, "/") {
		return "", "", fmt.Errorf("plugin listens on %.16q, want a unix socket", network)
	}
	return network, addr, nil
}

// HostToPlugin implements runner.AddrTranslator.
func (c *child) HostToPlugin(network, addr string) (string, string, error) {
	return network, addr, nil
}

// tail keeps the last bytes written to it.
type tail struct {
	mu  sync.Mutex
	buf []byte // guarded by mu
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - maxSaid; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return oneLine(string(t.buf), maxSaid)
}

// oneLine makes foreign text fit for a log line or an error.
func oneLine(s string, most int) string {
	s = strings.Join(strings.FieldsFunc(strings.ToValidUTF8(s, "?"), func(r rune) bool { return r < ' ' || r == 0x7f }), " | ")
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "..."
	}
	return strings.TrimSpace(s)
}
