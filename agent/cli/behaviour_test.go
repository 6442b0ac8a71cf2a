package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	"github.com/moraine-storage/moraine/agent/apiserver"
	"github.com/moraine-storage/moraine/agent/version"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// onTerminal makes every stream look like a terminal.
func onTerminal(d Deps) Deps {
	d.IsTerminal = func(any) bool { return true }
	return d
}

// On a terminal nothing is destroyed without a question.
func TestQuestions(t *testing.T) {
	for _, args := range [][]string{
		{"volume", "delete", "pg", "--snapshots"},
		{"snapshot", "delete", "pg@one"},
		{"snapshot", "restore", "pg@one"},
	} {
		for answer, done := range map[string]bool{"": false, "\n": false, "n\n": false, "Y": true, "y\nmore": true, "yes\n": true, "yesterday\n": false} {
			n := newNode(t)
			n.must("volume", "create", "pg", "--size", "1GiB")
			n.must("snapshot", "create", "pg@one")
			r := n.runWith(onTerminal(n.deps), answer, args...)
			if (r.code == 0) != done || !strings.Contains(r.stderr, "[y/N]") || !strings.Contains(r.stderr, `"pg`) {
				t.Errorf("%v, answer %q: exit code %d, %q", args, answer, r.code, r.stderr)
			}
			if exists := n.run("snapshot", "show", "pg@one").code == 0; exists == done && args[1] == "delete" {
				t.Errorf("%v, answer %q: exists %v", args, answer, exists)
			}
		}
		n := newNode(t)
		n.must("volume", "create", "pg", "--size", "1GiB")
		n.must("snapshot", "create", "pg@one")
		if r := n.runWith(onTerminal(n.deps), "", append(args, "--yes")...); r.code != 0 || strings.Contains(r.stderr, "[y/N]") {
			t.Errorf("%v --yes: exit code %d, %q", args, r.code, r.stderr)
		}
	}
}

func TestDiff(t *testing.T) {
	n := newNode(t)
	n.must("volume", "create", "pg", "--size", "1GiB")
	for i := range int64(6) {
		if err := n.fake.Write("pg", i<<20, 64<<10); err != nil {
			t.Fatal(err)
		}
	}
	n.must("snapshot", "create", "pg@a")
	if err := errors.Join(n.fake.Write("pg", 10<<20, 128<<10), n.fake.Trim("pg", 0, 64<<10)); err != nil {
		t.Fatal(err)
	}
	n.must("snapshot", "create", "pg@b")
	golden(t, "diff.golden", n.script(`
		snapshot diff pg@a pg@b
		snapshot diff pg@a
		snapshot diff pg@a -q
		snapshot diff pg@a pg@b -o json
		snapshot diff pg@a pg@b -o yaml
		snapshot diff --full pg@b
		snapshot diff pg@b -o yaml
		snapshot show pg@a
		volume show pg
	`))
	dir := t.TempDir()
	file := filepath.Join(dir, "diff.json")
	if out := n.must("snapshot", "diff", "--full", "pg@a", "-o", "json", "--file", file); out != "" {
		t.Errorf("with --file it prints %q", out)
	}
	var extents []struct{ Offset, Length string }
	b, err := os.ReadFile(file)
	if err != nil || json.Unmarshal(b, &extents) != nil || len(extents) != 6 {
		t.Errorf("the file: %v %s", err, b)
	}
	failing := filepath.Join(dir, "other.json")
	if r := n.run("snapshot", "diff", "pg@nosuch", "--file", failing); r.code != exitNotFound {
		t.Errorf("diff of nothing to a file: %d", r.code)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 1 {
		t.Errorf("a failed diff leaves %v %v", names, err)
	}
	if r := n.run("snapshot", "diff", "pg@a", "--file", filepath.Join(dir, "no", "such", "dir")); r.code != exitNotFound {
		t.Errorf("diff to a missing directory: %d %s", r.code, r.stderr)
	}
}

func TestOperations(t *testing.T) {
	n := newNode(t)
	n.fake.PutOperation(&apiv1.Operation{
		Id: "op1", Kind: "volume.mount", Object: "volume pg", State: apiv1.OperationState_RUNNING,
		Step: "making filesystem", Done: 1 << 30, Total: 4 << 30, Unit: "bytes",
	})
	n.fake.PutOperation(&apiv1.Operation{
		Id: "op2", Kind: "volume.delete", Object: "volume old", State: apiv1.OperationState_OPERATION_FAILED,
		Error: "drive 3: input/output error", ErrorCode: "internal", Done: 2, Unit: "steps",
	})
	golden(t, "operations.golden", n.script(`
		operation list
		operation list -q
		operation list --all
		operation show op1
		operation show op2
		operation show op2 --wait
	`))
	if r := n.run("operation", "show", "op1", "--wait", "--timeout", "50ms"); r.code != exitTimeout || !strings.Contains(r.stderr, "op1") {
		t.Errorf("past the time-out: exit code %d, %s", r.code, r.stderr)
	}
	go func() {
		time.Sleep(20 * time.Millisecond)
		n.fake.PutOperation(&apiv1.Operation{Id: "op1", Kind: "volume.mount", State: apiv1.OperationState_SUCCEEDED})
	}()
	if out := n.must("operation", "show", "op1", "--wait"); !strings.Contains(out, "succeeded") {
		t.Errorf("--wait prints %s", out)
	}
}

// A long mount shows its steps on a terminal and nowhere else; the answer on
// standard output is the same.
func TestMountShowsProgress(t *testing.T) {
	n := newNode(t)
	n.must("volume", "create", "pg", "--size", "1GiB")
	n.fake.SetHook(func(_ context.Context, call string, req proto.Message) error {
		if call != "MountVolume" {
			return nil
		}
		op := &apiv1.Operation{
			Id: req.(*apiv1.MountVolumeRequest).RequestId, Kind: "volume.mount",
			State: apiv1.OperationState_RUNNING, Total: 4, Unit: "steps",
		}
		for i := range int64(4) {
			op.Done, op.Step = i, fmt.Sprintf("step\x1b %d", i)
			n.fake.PutOperation(op)
			time.Sleep(progressAfter / 2)
		}
		return nil
	})
	r := n.runWith(onTerminal(n.deps), "", "volume", "mount", "pg")
	if r.code != 0 || r.stdout != "/run/moraine/mounts/pg\n" {
		t.Errorf("exit code %d, %q", r.code, r.stdout)
	}
	if !strings.Contains(r.stderr, "step? 3") {
		t.Errorf("on a terminal standard error has %q", r.stderr)
	}
	for _, d := range []Deps{n.deps, onTerminal(n.deps)} {
		args := []string{"volume", "mount", "pg", "--quiet"}
		if r := n.runWith(d, "", args...); r.code != 0 || r.stderr != "" {
			t.Errorf("quiet: exit code %d, %q", r.code, r.stderr)
		}
	}
}

func TestBarOfBytes(t *testing.T) {
	var out bytes.Buffer
	a := newApp(Deps{Stderr: &out, IsTerminal: func(any) bool { return true }})
	b := a.newBar("exporting", "bytes")
	b.update(1, 100) // too early to be worth a line
	if out.Len() != 0 {
		t.Errorf("a bar after no time: %q", out.String())
	}
	b.start = time.Now().Add(-time.Minute)
	for _, u := range [][2]int64{{10, 0}, {1 << 20, 4 << 20}, {-5, 4 << 20}, {8 << 20, 4 << 20}, {1 << 20, 8 << 20}} {
		b.update(u[0], u[1])
	}
	b.finish()
	b.finish()
	b.update(1, 2)
	if !strings.Contains(out.String(), "exporting") {
		t.Errorf("the bar: %q", out.String())
	}
	var none *bar
	none.update(1, 2)
	none.finish()
}

// stopWriter is standard output of which the reader goes away, or wants to see
// something first.
type stopWriter struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	seen chan struct{}
	want string
	once sync.Once
}

func (w *stopWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf.Write(p)
	if strings.Contains(w.buf.String(), w.want) {
		w.once.Do(func() { close(w.seen) })
	}
	return len(p), nil
}

// events -f goes on over a restart of the agent, prints no event twice, and
// ends with an interruption.
func TestEventsFollowTheAgent(t *testing.T) {
	for _, form := range []string{"table", "json", "yaml"} {
		t.Run(form, func(t *testing.T) {
			n := newNode(t)
			socket := filepath.Join(t.TempDir(), "other.sock")
			serve := func() *apiserver.Server {
				s, err := apiserver.Start(n.fake, apiserver.Options{Socket: socket})
				if err != nil {
					t.Fatal(err)
				}
				return s
			}
			s := serve()
			n.must("volume", "create", "first")
			out := &stopWriter{seen: make(chan struct{}), want: "first"}
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			code := make(chan int, 1)
			go func() {
				code <- Run(ctx, []string{"events", "-f", "-o", form, "--address", socket}, Deps{Stdout: out, Stderr: io.Discard})
			}()
			<-out.seen
			if err := s.Drain(context.Background()); err != nil {
				t.Error(err)
			}
			n.must("volume", "create", "second")
			again := &stopWriter{seen: make(chan struct{}), want: "second"}
			out.mu.Lock()
			out.want, out.seen, out.once = "second", again.seen, sync.Once{}
			out.mu.Unlock()
			s = serve()
			defer s.Close()
			select {
			case <-again.seen:
			case <-time.After(time.Minute):
				t.Fatal("no event after the restart")
			}
			cancel()
			if c := <-code; c != exitInterrupted {
				t.Errorf("exit code %d", c)
			}
			text := out.buf.String()
			if strings.Count(text, "volume first") != 1 || strings.Count(text, "volume second") != 1 {
				t.Errorf("it printed\n%s", text)
			}
			if form == "json" {
				for line := range strings.SplitSeq(strings.TrimSpace(text), "\n") {
					if !json.Valid([]byte(line)) {
						t.Errorf("not a line of JSON: %s", line)
					}
				}
			}
		})
	}
}

// Without an agent following fails at once.
func TestEventsWithoutAgent(t *testing.T) {
	n := newNode(t)
	r := n.run("events", "-f", "--address", "/nonexistent/agent.sock")
	if r.code != exitUnavailable || !strings.Contains(r.stderr, "hint: is the agent running") {
		t.Errorf("exit code %d, %s", r.code, r.stderr)
	}
}

func TestWait(t *testing.T) {
	n := newNode(t)
	socket := filepath.Join(t.TempDir(), "late.sock")
	r := n.run("volume", "list", "--wait", "--timeout", "50ms", "--address", socket)
	if r.code != exitTimeout || !strings.Contains(r.stderr, socket) {
		t.Errorf("nobody comes: exit code %d, %s", r.code, r.stderr)
	}
	started := make(chan *apiserver.Server, 1)
	go func() {
		time.Sleep(50 * time.Millisecond)
		s, err := apiserver.Start(n.fake, apiserver.Options{Socket: socket})
		if err != nil {
			t.Error(err)
		}
		started <- s
	}()
	n.must("volume", "list", "--wait", "--address", socket)
	if s := <-started; s != nil {
		_ = s.Close()
	}
	n.fake.SetStatus(&apiv1.Status{Node: "n", Version: "v"})
	if r := n.run("status"); r.code != exitUnavailable || !strings.Contains(r.stdout, "not ready") {
		t.Errorf("status of an agent that is not ready: %d %s", r.code, r.stdout)
	}
	if r := n.run("status", "--wait", "--timeout", "50ms"); r.code != exitTimeout {
		t.Errorf("status --wait of an agent that never is ready: %d %s", r.code, r.stderr)
	}
	go func() {
		time.Sleep(50 * time.Millisecond)
		n.fake.SetStatus(nil)
	}()
	if out := n.must("status", "--wait"); !strings.Contains(out, "State:    ready") {
		t.Errorf("status --wait: %s", out)
	}
}

func TestTimeoutAndInterruption(t *testing.T) {
	n := newNode(t)
	n.fake.SetHook(func(ctx context.Context, _ string, _ proto.Message) error {
		<-ctx.Done()
		return ctx.Err()
	})
	r := n.run("volume", "create", "pg", "--timeout", "50ms")
	if r.code != exitTimeout || !strings.Contains(r.stderr, "may have been done") {
		t.Errorf("past the time-out: %d %s", r.code, r.stderr)
	}
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(50*time.Millisecond, cancel)
	var out, errOut bytes.Buffer
	d := n.deps
	d.Stdout, d.Stderr = &out, &errOut
	if code := Run(ctx, []string{"volume", "create", "pg"}, d); code != exitInterrupted {
		t.Errorf("interrupted: %d %s", code, errOut.String())
	}
}

// Every class of failure has its hint or none, and text of others cannot move
// the cursor.
func TestHints(t *testing.T) {
	n := newNode(t)
	for _, tt := range []struct {
		err  error
		hint string
	}{
		{errdefs.ErrResourceExhausted, "moraine pool list"},
		{errdefs.ErrInternal, "please report it"},
		{fmt.Errorf("%w (%w)", errdefs.ErrUnavailable, errdefs.ErrIndeterminate), "the same command again is safe"},
		{errdefs.ErrFailedPrecondition, "moraine volume show"},
	} {
		n.fake.SetHook(func(context.Context, string, proto.Message) error { return fmt.Errorf("text \x1b[2J: %w", tt.err) })
		r := n.run("volume", "attach", "pg")
		if !strings.Contains(r.stderr, "hint: ") || !strings.Contains(r.stderr, tt.hint) || strings.Contains(r.stderr, "\x1b") {
			t.Errorf("%v: %q", tt.err, r.stderr)
		}
	}
}

// brokenPipe is standard output that nobody reads.
type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, errors.New("broken pipe") }

func TestAnswersThatCannotBeWrittenFail(t *testing.T) {
	n := newNode(t)
	n.must("volume", "create", "pg", "--size", "1GiB")
	n.must("snapshot", "create", "pg@one")
	for _, args := range [][]string{
		{"volume", "list"}, {"volume", "show", "pg"}, {"volume", "list", "-o", "json"}, {"events"}, {"events", "-f"},
		{"status"}, {"snapshot", "diff", "pg@one"}, {"version"},
	} {
		var errOut bytes.Buffer
		d := n.deps
		d.Stdout, d.Stderr = brokenPipe{}, &errOut
		if code := Run(context.Background(), args, d); code != exitFailed || !strings.Contains(errOut.String(), "broken pipe") {
			t.Errorf("%v: exit code %d, %s", args, code, errOut.String())
		}
	}
}

// The other halves of the program get what was typed.
func TestHiddenHalves(t *testing.T) {
	n := newNode(t)
	var got AgentOptions
	d := n.deps
	d.RunAgent = func(_ context.Context, o AgentOptions) error { got = o; return nil }
	d.RunHolder = func(_ context.Context, socket string) error { return fmt.Errorf("holder %s", socket) }
	d.ServePlugin = func(_ context.Context, name string) error { return fmt.Errorf("plugin %s", name) }
	r := n.runWith(d, "", "agent", "-dev", "-data-dir", "/d", "-run-dir=/r", "-docker-socket", "/s", "-log-level", "debug", "-log-format", "json", "-address", "/a.sock")
	want := AgentOptions{Dev: true, DataDir: "/d", RunDir: "/r", DockerSocket: "/s", LogLevel: "debug", LogFormat: "json", Address: "/a.sock"}
	if r.code != 0 || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("agent gets %+v (%d %s), want %+v", got, r.code, r.stderr, want)
	}
	n.runWith(d, "", "agent", "-config", "a.hcl", "--config", "b")
	if fmt.Sprint(got.ConfigPaths) != "[a.hcl b]" || got.Address != n.socket {
		t.Errorf("agent gets %+v", got)
	}
	n.runWith(d, "", "agent")
	if fmt.Sprint(got.ConfigPaths) != "["+defaultConfig+"]" {
		t.Errorf("agent without flags gets %+v", got)
	}
	if r := n.runWith(d, "", "holder", "-socket", "/h.sock"); r.code != exitFailed || !strings.Contains(r.stderr, "holder /h.sock") {
		t.Errorf("holder: %d %s", r.code, r.stderr)
	}
	if r := n.runWith(d, "", "plugin", "serve", "local"); r.code != exitFailed || !strings.Contains(r.stderr, "plugin local") {
		t.Errorf("plugin: %d %s", r.code, r.stderr)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	d.RunAgent = func(ctx context.Context, _ AgentOptions) error { return ctx.Err() }
	if code := Run(ctx, []string{"agent", "-dev"}, d); code != 0 {
		t.Errorf("an agent that was told to stop exits with %d", code)
	}
}

func TestVersionFlagAndCommand(t *testing.T) {
	n := newNode(t)
	for _, args := range [][]string{{"version"}, {"--version"}, {"-version"}} {
		if out := n.must(args...); out != version.String()+"\n" {
			t.Errorf("%v prints %q", args, out)
		}
	}
}

// A doctor that found something missing says so with its exit code.
func TestDoctorFails(t *testing.T) {
	n := newNode(t)
	n.fake.SetDoctor(&apiv1.DoctorReport{Checks: []*apiv1.DoctorReport_Check{
		{Name: "space", Severity: apiv1.Severity_ERROR, Detail: "none", Fix: "get some"},
		{Name: "what", Detail: "no severity given"},
	}})
	r := n.run("doctor")
	if r.code != exitPrecondition || !strings.Contains(r.stderr, "2 checks failed") || strings.Count(r.stdout, "error") != 2 {
		t.Errorf("exit code %d\n%s%s", r.code, r.stdout, r.stderr)
	}
}
