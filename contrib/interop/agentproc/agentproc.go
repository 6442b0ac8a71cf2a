// Package agentproc runs the real agent binary, bin/moraine, for tests: starts
// it, kills it, starts it again on the same data, speaks to it through its own
// command line, and says what it left behind on the host.
//
// Everything of one agent lies under one directory, whose path is how leftovers
// are recognised. At the end of the test the agent is stopped and whatever is
// still there is taken down, so that a failed test does not spoil the next.
package agentproc

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Limits. They are for machines that are slow and busy; no test waits as long
// when all is well.
const (
	readyTimeout = 60 * time.Second
	stopTimeout  = 60 * time.Second
	callTimeout  = 2 * time.Minute
)

// Options of an agent.
type Options struct {
	// DockerSocket is where the agent serves Docker; "": in the agent's
	// directory, where no engine finds it.
	DockerSocket string
	// Args are added to `moraine agent -dev -data-dir ...`.
	Args []string
}

// Agent is one data directory and the process that runs on it, or none.
type Agent struct {
	// Dir is the data directory.
	Dir string

	t    testing.TB
	o    Options
	bin  string
	cmd  *exec.Cmd
	done chan error // the process has ended
	log  string     // file of its output, appended over restarts
}

// Binary is the path of the built binary: MORAINE_BIN, or bin/moraine of this
// source tree.
func Binary(t testing.TB) string {
	t.Helper()
	if bin := os.Getenv("MORAINE_BIN"); bin != "" {
		return bin
	}
	dir, err := os.Getwd()
	for ; err == nil && dir != "/"; dir = filepath.Dir(dir) {
		if _, serr := os.Stat(filepath.Join(dir, "go.mod")); serr != nil {
			continue
		}
		bin := filepath.Join(dir, "bin", "moraine")
		if _, serr := os.Stat(bin); serr != nil {
			t.Fatalf("%s is missing: run `make build` first", bin)
		}
		return bin
	}
	t.Fatal("not inside the source tree, and MORAINE_BIN is not set")
	return ""
}

// Start makes a data directory and runs an agent on it until the test ends.
func Start(t testing.TB, o Options) *Agent {
	t.Helper()
	// Short, because sockets below it have paths of at most 107 bytes.
	dir, err := os.MkdirTemp("", "mor-*.a")
	if err != nil {
		t.Fatal(err)
	}
	a := &Agent{Dir: dir, t: t, o: o, bin: Binary(t), log: filepath.Join(dir, "agent.log")}
	if a.o.DockerSocket == "" {
		a.o.DockerSocket = filepath.Join(dir, "docker.sock")
	}
	t.Cleanup(a.cleanup)
	a.Run()
	return a
}

// Run starts the process and waits until it is ready. The agent must not run.
func (a *Agent) Run() {
	a.t.Helper()
	a.Launch()
	a.Ready()
}

// Launch starts the process and does not wait.
func (a *Agent) Launch() {
	a.t.Helper()
	if a.cmd != nil {
		a.t.Fatal("agent: it runs already")
	}
	out, err := os.OpenFile(a.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		a.t.Fatal(err)
	}
	args := append([]string{"agent", "-dev", "-data-dir", a.Dir, "-docker-socket", a.o.DockerSocket}, a.o.Args...)
	a.cmd = exec.Command(a.bin, args...)
	a.cmd.Stdout, a.cmd.Stderr = out, out
	err = a.cmd.Start()
	if cerr := out.Close(); cerr != nil {
		a.t.Error(cerr)
	}
	if err != nil {
		a.t.Fatal(err)
	}
	a.done = make(chan error, 1)
	go func(cmd *exec.Cmd, done chan<- error) { done <- cmd.Wait() }(a.cmd, a.done)
}

// Ready waits until the agent answers.
func (a *Agent) Ready() {
	a.t.Helper()
	deadline := time.Now().Add(readyTimeout)
	for {
		_, err := a.CLI("status")
		if err == nil {
			return
		}
		select {
		case werr := <-a.done:
			a.cmd = nil
			a.t.Fatalf("agent ended at start: %v\n%s", werr, a.LogTail())
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			a.t.Fatalf("agent not ready after %s: %v\n%s", readyTimeout, err, a.LogTail())
		}
	}
}

// PID of the process.
func (a *Agent) PID() int {
	if a.cmd == nil {
		return 0
	}
	return a.cmd.Process.Pid
}

// Kill ends the agent with SIGKILL: the process alone, as the kernel would.
func (a *Agent) Kill() {
	a.t.Helper()
	if err := a.cmd.Process.Kill(); err != nil {
		a.t.Fatalf("kill agent: %v", err)
	}
	<-a.done
	a.cmd = nil
}

// Stop ends the agent in order; what is attached stays attached.
func (a *Agent) Stop() {
	a.t.Helper()
	if err := a.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		a.t.Fatalf("stop agent: %v", err)
	}
	select {
	case err := <-a.done:
		if err != nil {
			a.t.Errorf("agent stopped with %v\n%s", err, a.LogTail())
		}
	case <-time.After(stopTimeout):
		a.t.Errorf("agent did not stop within %s\n%s", stopTimeout, a.LogTail())
		_ = a.cmd.Process.Kill()
		<-a.done
	}
	a.cmd = nil
}

// Address of the agent's API.
func (a *Agent) Address() string { return filepath.Join(a.Dir, "run", "agent.sock") }

// CLI runs a command of the binary against this agent and returns what it
// printed; the error carries what it said.
func (a *Agent) CLI(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, a.bin, args...)
	cmd.Env = append(os.Environ(), "MORAINE_ADDRESS="+a.Address())
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("moraine %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// Must is a CLI call that has to work.
func (a *Agent) Must(args ...string) string {
	a.t.Helper()
	out, err := a.CLI(args...)
	if err != nil {
		a.t.Fatalf("%v\n%s", err, a.LogTail())
	}
	return out
}

// JSON is a CLI call with -o json, decoded into v.
func (a *Agent) JSON(v any, args ...string) {
	a.t.Helper()
	out := a.Must(append(args, "-o", "json")...)
	if err := json.Unmarshal([]byte(out), v); err != nil {
		a.t.Fatalf("moraine %s: %v in %s", strings.Join(args, " "), err, out)
	}
}

// LogTail is the end of the agent's output.
func (a *Agent) LogTail() string {
	b, err := os.ReadFile(a.log)
	if err != nil {
		return err.Error()
	}
	const most = 48 << 10
	if len(b) > most {
		b = b[len(b)-most:]
	}
	return "agent's log:\n" + string(b)
}

// cleanup stops the agent and takes down what is left of it.
func (a *Agent) cleanup() {
	if a.t.Failed() {
		a.t.Log(a.LogTail())
	}
	if a.cmd != nil {
		_ = a.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-a.done:
		case <-time.After(stopTimeout):
			_ = a.cmd.Process.Kill()
			<-a.done
		}
		a.cmd = nil
	}
	TakeDown(a.t, a.Dir)
	if err := os.RemoveAll(a.Dir); err != nil {
		a.t.Errorf("clean up: %v", err)
	}
}
