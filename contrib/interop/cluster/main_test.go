//go:build integration

package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience is how long a test waits for what must happen before it fails.
const patience = 90 * time.Second

// bin is the agent's binary, built from this source tree; MORAINE_BIN replaces it.
var bin string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "mor-*.bin")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if bin = os.Getenv("MORAINE_BIN"); bin == "" {
		bin = filepath.Join(dir, "moraine")
		cmd := exec.Command("go", "build", "-o", bin, "../../../agent/cmd/moraine")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
			return 1
		}
	}
	return m.Run()
}

// agent is one node: its files, and its process or none.
type agent struct {
	t       *testing.T
	name    string
	dir     string
	address string // of its API, for other nodes

	cmd  *exec.Cmd // nil while it is down
	done chan error
	log  bytes.Buffer // of the last start; read it once the process has ended
	mu   sync.Mutex   // guards log
}

// Write implements io.Writer for the process's output.
func (a *agent) Write(b []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.log.Write(b)
}

func (a *agent) said() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.log.String()
}

// newAgent writes the configuration of a node that makes a cluster, or joins
// that of by with a token.
func newAgent(t *testing.T, name string, by *agent, token string) *agent {
	t.Helper()
	dir, err := os.MkdirTemp("", "mor-*.c")
	if err != nil {
		t.Fatal(err)
	}
	ip := fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(254), rand.IntN(256), 1+rand.IntN(254))
	a := &agent{t: t, name: name, dir: dir, address: ip + ":7420"}
	text := fmt.Sprintf("name = %q\nbind = %q\ndata_dir = %q\nrun_dir = %q\nlabels = { zone = %q }\n", name, ip, dir+"/data", dir+"/run", "z-"+name)
	if by != nil {
		text += fmt.Sprintf("cluster {\n  join = [%q]\n  token_file = %q\n}\n", by.address, dir+"/token")
		a.token(token)
	}
	if err := os.WriteFile(dir+"/agent.hcl", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		a.kill()
		if t.Failed() {
			t.Logf("%s: %s", name, a.said())
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return a
}

func (a *agent) token(token string) {
	a.t.Helper()
	if err := os.WriteFile(a.dir+"/token", []byte(token), 0o600); err != nil {
		a.t.Fatal(err)
	}
}

func (a *agent) launch() {
	a.t.Helper()
	a.mu.Lock()
	a.log.Reset()
	a.mu.Unlock()
	a.cmd = exec.Command(bin, "agent", "-config", a.dir+"/agent.hcl")
	a.cmd.Stdout, a.cmd.Stderr = a, a
	if err := a.cmd.Start(); err != nil {
		a.t.Fatal(err)
	}
	a.done = make(chan error, 1)
	go func(cmd *exec.Cmd, done chan<- error) { done <- cmd.Wait() }(a.cmd, a.done)
}

// up starts the agent and waits until it answers.
func (a *agent) up() *agent {
	a.t.Helper()
	a.launch()
	a.ready()
	return a
}

func (a *agent) ready() {
	a.t.Helper()
	until(a.t, a.name+" is ready", func() error {
		select {
		case err := <-a.done:
			a.cmd = nil
			a.t.Fatalf("%s ended at start: %v\n%s", a.name, err, a.said())
		default:
		}
		_, err := a.cli("status")
		return err
	})
}

// refused starts an agent that must end, and returns what it said.
func (a *agent) refused() string {
	a.t.Helper()
	a.launch()
	select {
	case err := <-a.done:
		a.cmd = nil
		if err == nil {
			a.t.Errorf("%s ended without an error", a.name)
		}
		return a.said()
	case <-time.After(patience):
		a.t.Fatalf("%s goes on", a.name)
		return ""
	}
}

// kill ends the process as a power cut would.
func (a *agent) kill() { a.end(syscall.SIGKILL) }

// stop ends it in order.
func (a *agent) stop() { a.end(syscall.SIGTERM) }

func (a *agent) end(sig syscall.Signal) {
	if a.cmd == nil {
		return
	}
	_ = a.cmd.Process.Signal(sig) // it may have ended
	select {
	case <-a.done:
	case <-time.After(patience):
		a.t.Errorf("%s does not end", a.name)
		_ = a.cmd.Process.Kill()
		<-a.done
	}
	a.cmd = nil
}

// cli runs a command against this agent.
func (a *agent) cli(args ...string) (string, error) {
	return cli([]string{"MORAINE_ADDRESS=" + a.dir + "/run/agent.sock"}, args...)
}

func cli(env []string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, args...)
	cmd.Env = append(os.Environ(), env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("moraine %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(errs.String()))
	}
	return strings.TrimSpace(out.String()), nil
}

func (a *agent) must(args ...string) string {
	a.t.Helper()
	out, err := a.cli(args...)
	if err != nil {
		a.t.Fatal(err)
	}
	return out
}

// sees waits until this agent sees those nodes, alive, and no others.
func (a *agent) sees(all ...*agent) {
	a.t.Helper()
	until(a.t, a.name+" sees the nodes", func() error {
		out, err := a.cli("node", "list", "-o", "json")
		if err != nil {
			return err
		}
		var nodes []struct {
			Name   string            `json:"name"`
			Alive  bool              `json:"alive"`
			Labels map[string]string `json:"labels"`
		}
		if err := json.Unmarshal([]byte(out), &nodes); err != nil {
			a.t.Fatalf("%v in %s", err, out)
		}
		var got, want []string
		for _, n := range nodes {
			got = append(got, fmt.Sprint(n.Name, n.Alive, n.Labels["zone"]))
		}
		for _, o := range all {
			want = append(want, fmt.Sprint(o.name, true, "z-"+o.name))
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			return fmt.Errorf("%v, want %v", got, want)
		}
		return nil
	})
}

// members waits until this agent knows that many members of the store with a vote.
func (a *agent) members(want int) {
	a.t.Helper()
	until(a.t, fmt.Sprintf("%s knows %d members", a.name, want), func() error {
		b, err := os.ReadFile(a.dir + "/data/contacts.json")
		if err != nil {
			return err
		}
		var c struct {
			Store []string `json:"store"`
		}
		if err := json.Unmarshal(b, &c); err != nil || len(c.Store) != want {
			return fmt.Errorf("%v, %w", c.Store, err)
		}
		return nil
	})
}

func until(t *testing.T, what string, fn func() error) {
	t.Helper()
	for begin := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		err := fn()
		if err == nil {
			return
		}
		if time.Since(begin) > patience {
			t.Fatalf("%s: %v", what, err)
		}
	}
}
