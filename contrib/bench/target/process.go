// Package target starts and stops what the benchmark measures: a Moraine
// agent, nbdkit, qemu-nbd, the benchmark's own server processes, and loop
// devices; and reads what their processes cost.
package target

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	startTime = 30 * time.Second
	stopTime  = 20 * time.Second
)

// Process is a child of ours.
type Process struct {
	cmd    *exec.Cmd
	stderr tail
	ended  chan struct{}
	err    error // valid after ended
}

// tail keeps the end of what a child said, for error messages.
type tail struct {
	mu sync.Mutex
	b  []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if over := len(t.b) - 4096; over > 0 {
		t.b = t.b[over:]
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.TrimSpace(t.b))
}

// Start runs a program in a process group of its own.
func Start(name string, args ...string) (*Process, error) {
	p := &Process{cmd: exec.Command(name, args...), ended: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = &p.stderr, &p.stderr
	p.cmd.WaitDelay = stopTime // a grandchild may keep our pipe
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.ended)
	}()
	return p, nil
}

// PID of the process.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Output is the end of what the process has printed.
func (p *Process) Output() string { return p.stderr.String() }

// await waits until ready returns true.
func (p *Process) await(what string, ready func() bool) error {
	for end := time.Now().Add(startTime); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if ready() {
			return nil
		}
		select {
		case <-p.ended:
			return fmt.Errorf("%s: ended before it was ready: %v: %s", what, p.err, p.Output())
		default:
		}
	}
	return fmt.Errorf("%s: not ready after %v: %s", what, startTime, p.Output())
}

// Stop asks the process to end, and makes it.
func (p *Process) Stop() error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-p.ended:
	case <-time.After(stopTime):
		_ = p.cmd.Process.Kill()
		<-p.ended
		return fmt.Errorf("process %s did not end in %v: killed: %s", p.cmd.Path, stopTime, p.Output())
	}
	return nil
}

// clockTick is the unit of /proc/PID/stat: USER_HZ, 100 on all of Linux.
const clockTick = 10 * time.Millisecond

// CPU is the processor time that the processes have used.
func CPU(pids ...int) (time.Duration, error) {
	var sum time.Duration
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return 0, err
		}
		// The name in parentheses may hold anything; fields count behind it.
		_, after, _ := strings.Cut(string(b[bytes.LastIndexByte(b, ')'):]), " ")
		f := strings.Fields(after)
		if len(f) < 13 {
			return 0, fmt.Errorf("process %d: stat %q", pid, b)
		}
		for _, s := range f[11:13] { // utime and stime, fields 14 and 15
			n, err := strconv.ParseInt(s, 10, 64)
			if err != nil {
				return 0, fmt.Errorf("process %d: stat %q: %w", pid, b, err)
			}
			sum += time.Duration(n) * clockTick
		}
	}
	return sum, nil
}

// memoryOf reads one line, in KiB, of a file of /proc/PID.
func memoryOf(pid int, file, key string) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, key+":"); ok {
			n, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return n << 10, err
		}
	}
	return 0, fmt.Errorf("process %d: no %s in %s", pid, key, file)
}

// PSS is the memory of processes, what they share counted once.
func PSS(pids ...int) (int64, error) {
	var sum int64
	for _, pid := range pids {
		n, err := memoryOf(pid, "smaps_rollup", "Pss")
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

// process is one line of the process table.
type process struct {
	pid, parent int
	cmdline     string // arguments, each ended by a zero byte
}

func processes() ([]process, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var table []process
	for _, d := range dirs {
		pid, err := strconv.Atoi(filepath.Base(d))
		if err != nil {
			continue
		}
		stat, err := os.ReadFile(d + "/stat")
		if err != nil {
			continue // gone
		}
		f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(f) < 2 {
			continue
		}
		parent, err := strconv.Atoi(f[1])
		if err != nil {
			continue
		}
		cmdline, _ := os.ReadFile(d + "/cmdline") // gone: no arguments
		table = append(table, process{pid, parent, string(cmdline)})
	}
	return table, nil
}

// Tree is a process and all its descendants.
func Tree(root int) ([]int, error) {
	table, err := processes()
	if err != nil {
		return nil, err
	}
	tree := []int{root}
	for i := 0; i < len(tree); i++ {
		for _, p := range table {
			if p.parent == tree[i] && !slices.Contains(tree, p.pid) {
				tree = append(tree, p.pid)
			}
		}
	}
	return tree, nil
}

// withArgument are the processes one of whose arguments is arg.
func withArgument(arg string) ([]int, error) {
	table, err := processes()
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, p := range table {
		if slices.Contains(strings.Split(p.cmdline, "\x00"), arg) {
			pids = append(pids, p.pid)
		}
	}
	return pids, nil
}

// run executes a program to its end and returns its standard output.
func run(name string, args ...string) (string, error) {
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(exit.Stderr))
		}
		return "", fmt.Errorf("%s: %w", name, err)
	}
	return strings.TrimSpace(string(out)), nil
}
