//go:build integration

package node

import (
	"encoding/json"
	"errors"
	"fmt"
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

const (
	readyTimeout = 60 * time.Second
	stopTimeout  = 60 * time.Second
)

// agent is a data directory with a configuration file, and the process that
// runs on it, or none.
type agent struct {
	t    *testing.T
	dir  string
	env  []string
	cmd  *exec.Cmd
	done chan error
}

// newDir is where an agent and its media live. Short: paths of sockets have
// 107 bytes. What is in it at the end is taken down.
func newDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "mor-*.n")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		takeDown(t, dir)
		if err := inTime(t, "remove "+dir, func() error { return os.RemoveAll(dir) }); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	return dir
}

// takeDown removes by force what is left below dir. A loop device whose file
// went with its mount no longer tells that it was ours: so look first.
func takeDown(t *testing.T, dir string) {
	before := agentproc.Leftovers(dir)
	agentproc.TakeDown(t, dir)
	for _, l := range before {
		switch l.Kind {
		case "mount":
			_ = syscall.Unmount(l.Name, syscall.MNT_DETACH)
		case "loop":
			b, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(l.Name), "loop/backing_file"))
			if file := strings.TrimSpace(string(b)); err == nil && (file == "/image" || strings.HasPrefix(file, dir)) {
				_, _ = try("losetup", "-d", l.Name)
			}
		}
	}
}

// newAgent starts an agent whose pools are given by name and path of their
// drives. A drive that is a relative path is a folder in the agent's directory.
func newAgent(t *testing.T, dir string, pools ...[2]string) *agent {
	t.Helper()
	a := prepare(t, dir, pools...)
	a.start()
	return a
}

// prepare is newAgent without the start.
func prepare(t *testing.T, dir string, pools ...[2]string) *agent {
	t.Helper()
	a := &agent{t: t, dir: dir}
	t.Cleanup(a.cleanup)
	a.configure(pools...)
	return a
}

// configure writes the configuration file.
func (a *agent) configure(pools ...[2]string) {
	a.t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "name = \"n1\"\ndata_dir = %q\nrun_dir = %q\n", a.dir, filepath.Join(a.dir, "run"))
	for _, p := range pools {
		path := p[1]
		if !filepath.IsAbs(path) {
			path = filepath.Join(a.dir, path)
			if err := os.MkdirAll(path, 0o700); err != nil {
				a.t.Fatal(err)
			}
		}
		fmt.Fprintf(&b, "backend \"local\" {\n  pool = %q\n  config {\n    paths = [%q]\n  }\n}\n", p[0], path)
	}
	a.writeConfig(b.String())
}

func (a *agent) configPath() string { return filepath.Join(a.dir, "agent.hcl") }

func (a *agent) writeConfig(text string) {
	a.t.Helper()
	if err := os.WriteFile(a.configPath(), []byte(text), 0o600); err != nil {
		a.t.Fatal(err)
	}
}

func (a *agent) addConfig(text string) {
	a.t.Helper()
	b, err := os.ReadFile(a.configPath())
	if err != nil {
		a.t.Fatal(err)
	}
	a.writeConfig(string(b) + text)
}

func (a *agent) logPath() string { return filepath.Join(a.dir, "agent.log") }

// launch starts the process and does not wait.
func (a *agent) launch() {
	a.t.Helper()
	out, err := os.OpenFile(a.logPath(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		a.t.Fatal(err)
	}
	defer func() { _ = out.Close() }()
	a.cmd = exec.Command(bin, "agent", "-config", a.configPath())
	a.cmd.Env = append(os.Environ(), a.env...)
	a.cmd.Stdout, a.cmd.Stderr = out, out
	// Not in the test's process group: what a terminal sends is not for it.
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := a.cmd.Start(); err != nil {
		a.t.Fatal(err)
	}
	a.done = make(chan error, 1)
	go func(cmd *exec.Cmd, done chan<- error) { done <- cmd.Wait() }(a.cmd, a.done)
}

// start starts the process and waits until it answers.
func (a *agent) start() {
	a.t.Helper()
	if err := a.tryStart(); err != nil {
		a.t.Fatalf("%v\n%s", err, a.log())
	}
}

func (a *agent) tryStart() error {
	a.t.Helper()
	a.launch()
	deadline := time.Now().Add(readyTimeout)
	for {
		_, err := a.try("status")
		if err == nil {
			return nil
		}
		select {
		case werr := <-a.done:
			a.cmd = nil
			return fmt.Errorf("the agent ended: %w", werr)
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the agent is not ready after %s: %w", readyTimeout, err)
		}
	}
}

// refuseStart starts an agent that must not come up, and returns its last line.
func (a *agent) refuseStart() string {
	a.t.Helper()
	before := len(a.log())
	a.launch()
	select {
	case err := <-a.done:
		a.cmd = nil
		if err == nil {
			a.t.Errorf("the agent ended without an error")
		}
	case <-time.After(readyTimeout):
		a.t.Fatalf("the agent did not end\n%s", a.log())
	}
	said := strings.TrimSpace(a.log()[before:])
	if strings.Contains(said, "panic") || strings.Contains(said, "goroutine ") {
		a.t.Errorf("the agent panicked:\n%s", said)
	}
	return said
}

// kill ends the process as kill -9 does.
func (a *agent) kill() {
	a.t.Helper()
	if err := a.cmd.Process.Kill(); err != nil {
		a.t.Fatal(err)
	}
	<-a.done
	a.cmd = nil
}

// stop ends the process in order.
func (a *agent) stop() {
	a.t.Helper()
	if err := a.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		a.t.Fatal(err)
	}
	select {
	case err := <-a.done:
		if err != nil {
			a.t.Errorf("the agent stopped with %v\n%s", err, a.log())
		}
	case <-time.After(stopTimeout):
		_ = a.cmd.Process.Kill()
		<-a.done
		a.t.Errorf("the agent did not stop within %s\n%s", stopTimeout, a.log())
	}
	a.cmd = nil
}

func (a *agent) cleanup() {
	if a.t.Failed() || os.Getenv("MORAINE_TEST_LOG") != "" {
		log := a.log()
		a.t.Logf("agent's log:\n%s", log[max(0, len(log)-20000):])
	}
	if a.cmd == nil {
		return
	}
	_ = a.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-a.done:
	case <-time.After(stopTimeout):
		_ = a.cmd.Process.Kill()
		<-a.done
	}
	a.cmd = nil
}

func (a *agent) log() string {
	b, err := os.ReadFile(a.logPath())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		a.t.Error(err)
	}
	return string(b)
}

// alive fails the test when the process has ended.
func (a *agent) alive() {
	a.t.Helper()
	select {
	case err := <-a.done:
		a.cmd = nil
		a.t.Fatalf("the agent ended: %v\n%s", err, a.log())
	default:
	}
	a.must("status")
}

// cli runs a command of this agent.
func (a *agent) cli(args ...string) (result, error) {
	return program(programTimeout, []string{"MORAINE_ADDRESS=" + filepath.Join(a.dir, "run", "agent.sock")}, append([]string{bin}, args...)...)
}

func (a *agent) try(args ...string) (string, error) {
	r, err := a.cli(args...)
	return strings.TrimSpace(r.stdout), err
}

func (a *agent) must(args ...string) string {
	a.t.Helper()
	out, err := a.try(args...)
	if err != nil {
		a.t.Fatal(err)
	}
	return out
}

// json decodes the answer of a command.
func (a *agent) json(v any, args ...string) {
	a.t.Helper()
	out := a.must(append(args, "-o", "json")...)
	if err := json.Unmarshal([]byte(out), v); err != nil {
		a.t.Fatalf("moraine %s: %v in %s", strings.Join(args, " "), err, out)
	}
}

// refused runs a command that must fail with a code and words, in one line and
// perhaps a hint.
func (a *agent) refused(code int, words string, args ...string) {
	a.t.Helper()
	r, err := a.cli(args...)
	what := "moraine " + strings.Join(args, " ")
	if err == nil {
		a.t.Errorf("%s: was done: %s", what, r.stdout)
		return
	}
	lines := strings.Split(strings.TrimSpace(r.stderr), "\n")
	if r.code != code || !strings.Contains(lines[0], words) {
		a.t.Errorf("%s: exit code %d: %s; want %d and %q", what, r.code, r.stderr, code, words)
	}
	if !strings.HasPrefix(lines[0], "moraine: ") || len(lines) > 2 || len(lines) == 2 && !strings.HasPrefix(lines[1], "hint: ") {
		a.t.Errorf("%s: want one line and perhaps a hint:\n%s", what, r.stderr)
	}
}

// volumeView is what the tests read of a volume.
type volumeView struct {
	ID          string
	Name, State string
	Epoch       string
	Snapshots   int
	Spec        struct {
		SizeBytes string
		Fs        string
	}
	Replicas    []struct{ ID, DriveID, AllocatedBytes string }
	Attachments []struct{ Kind, Device, Path, State string }
	Conditions  []struct{ Message string }
}

func (a *agent) volume(name string) volumeView {
	a.t.Helper()
	var v volumeView
	a.json(&v, "volume", "show", name)
	return v
}

// driveView is what the tests read of a drive.
type driveView struct {
	ID, Pool, Path, State               string
	CapacityBytes, UsedBytes, FreeBytes string
	Replicas                            int
	Conditions                          []struct{ Name, Severity, Message string }
}

func (d driveView) reason() string {
	var b strings.Builder
	for _, c := range d.Conditions {
		b.WriteString(c.Message + "\n")
	}
	return b.String()
}

// drive is the one of a pool.
func (a *agent) drive(pool string) driveView {
	a.t.Helper()
	var list []driveView
	a.json(&list, "drive", "list")
	i := slices.IndexFunc(list, func(d driveView) bool { return d.Pool == pool })
	if i < 0 {
		a.t.Fatalf("no drive of pool %s in %+v", pool, list)
	}
	return list[i]
}

// driveBecomes waits for one of some states of the drive of a pool.
func (a *agent) driveBecomes(pool string, states ...string) driveView {
	a.t.Helper()
	var d driveView
	eventually(a.t, fmt.Sprintf("drive of pool %s %v", pool, states), func() error {
		if d = a.drive(pool); !slices.Contains(states, d.State) {
			return fmt.Errorf("%+v", d)
		}
		return nil
	})
	return d
}

// eventTypes lists the types of the events so far.
func (a *agent) eventTypes() []string {
	a.t.Helper()
	var list []struct{ Type string }
	a.json(&list, "events")
	var types []string
	for _, e := range list {
		types = append(types, e.Type)
	}
	return types
}

// pluginView is what the tests read of a plugin.
type pluginView struct {
	Name, State, LastError string
	Restarts, PID          int
}

func (a *agent) plugins() []pluginView {
	a.t.Helper()
	var list []pluginView
	a.json(&list, "plugin", "list")
	return list
}

// nothingLeft fails for what an agent with no volume in use must not have: all
// but its own process and sockets, and those of its plugins.
func (a *agent) nothingLeft(more ...string) {
	a.t.Helper()
	for _, l := range agentproc.Leftovers(a.dir) {
		own := l.Kind == "socket" || l.Kind == "process" || slices.ContainsFunc(more, func(s string) bool { return strings.Contains(l.Name, s) || strings.Contains(l.String(), s) })
		if !own {
			a.t.Errorf("left behind: %s", l)
		}
	}
}
