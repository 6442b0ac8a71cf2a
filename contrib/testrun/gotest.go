package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"
)

// event is one line of `go test -json` (go doc test2json), build output included.
type event struct {
	Action      string
	Package     string
	ImportPath  string // of build-output and build-fail
	Test        string
	Elapsed     float64
	Output      string
	FailedBuild string
}

// tally counts the events of one go test run. Tests and subtests count alike.
type tally struct {
	passed, failed, skipped int
	skips                   []string
	problems                []string

	out     io.Writer
	running map[string]bool             // package + "." + test, started and not ended
	text    map[string]*strings.Builder // the same key; output so far. "package." is the package's own
	build   map[string]*strings.Builder
	ended   map[string]bool // package + "." + test
	ran     map[string]int  // tests ended, per package
	failedP map[string]int  // tests failed, per package
}

func newTally(out io.Writer) *tally {
	return &tally{out: out, running: map[string]bool{}, text: map[string]*strings.Builder{},
		build: map[string]*strings.Builder{}, ended: map[string]bool{}, ran: map[string]int{}, failedP: map[string]int{}}
}

func (t *tally) add(ev *event) {
	key := ev.Package + "." + ev.Test
	switch ev.Action {
	case "build-output":
		builder(t.build, ev.ImportPath).WriteString(ev.Output)
	case "run":
		t.running[key] = true
	case "output":
		builder(t.text, key).WriteString(ev.Output)
	case "pass", "fail", "skip":
		if ev.Test == "" {
			t.endPackage(ev)
		} else {
			t.endTest(ev, key)
		}
	}
}

func builder(m map[string]*strings.Builder, key string) *strings.Builder {
	b := m[key]
	if b == nil {
		b = &strings.Builder{}
		m[key] = b
	}
	return b
}

func (t *tally) endTest(ev *event, key string) {
	delete(t.running, key)
	t.ended[key] = true
	t.ran[ev.Package]++
	text := builder(t.text, key).String()
	delete(t.text, key)
	switch ev.Action {
	case "pass":
		t.passed++
	case "skip":
		t.skipped++
		t.skips = append(t.skips, key+": "+reason(text))
		fmt.Fprintf(t.out, "--- SKIP %s: %s\n", key, reason(text))
	case "fail":
		t.failed++
		t.failedP[ev.Package]++
		t.problems = append(t.problems, key)
		fmt.Fprintf(t.out, "--- FAIL %s (%.1fs)\n%s", key, ev.Elapsed, indent(text))
	}
}

// endPackage reports a package; a package that failed with no failed test (it
// did not build, timed out, or exited) is one failure itself.
func (t *tally) endPackage(ev *event) {
	own := builder(t.text, ev.Package+".").String()
	delete(t.text, ev.Package+".")
	if ev.Action == "fail" {
		for key := range t.running {
			if strings.HasPrefix(key, ev.Package+".") {
				fmt.Fprintf(t.out, "--- DID NOT END %s\n%s", key, indent(builder(t.text, key).String()))
				delete(t.running, key)
			}
		}
		if t.failedP[ev.Package] == 0 {
			t.failed++
			t.problems = append(t.problems, ev.Package)
			if b := t.build[ev.FailedBuild]; b != nil {
				fmt.Fprint(t.out, indent(b.String()))
			}
			fmt.Fprint(t.out, indent(own))
		}
	}
	if n := t.ran[ev.Package]; n > 0 || ev.Action == "fail" {
		fmt.Fprintf(t.out, "%-4s %s  %d tests  %.1fs\n", ev.Action, ev.Package, n, ev.Elapsed)
	}
}

// reason is the text that a test skipped itself with, in one line.
func reason(text string) string {
	var lines []string
	for l := range strings.Lines(text) {
		l = strings.TrimSpace(l)
		if l != "" && !strings.HasPrefix(l, "=== ") && !strings.HasPrefix(l, "--- ") {
			lines = append(lines, l)
		}
	}
	if len(lines) == 0 {
		return "no reason given"
	}
	return strings.Join(lines, " ")
}

// maxFailureText bounds what one failed test prints: its head and its end say
// most, and a data race can print megabytes.
const maxFailureText = 64 << 10

func indent(s string) string {
	if len(s) > maxFailureText {
		s = s[:maxFailureText/2] + "\n[...]\n" + s[len(s)-maxFailureText/2:]
	}
	var b strings.Builder
	for l := range strings.Lines(s) {
		b.WriteString("    ")
		b.WriteString(l)
	}
	if b.Len() > 0 && !strings.HasSuffix(b.String(), "\n") {
		b.WriteByte('\n')
	}
	return b.String()
}

// read consumes the JSON lines of go test; other lines (go's own messages)
// are passed on.
func (t *tally) read(in io.Reader) error {
	sc := bufio.NewReaderSize(in, 1<<16)
	for {
		line, err := sc.ReadString('\n')
		if line != "" {
			var ev event
			if json.Unmarshal([]byte(line), &ev) == nil && ev.Action != "" {
				t.add(&ev)
			} else {
				fmt.Fprint(t.out, line)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// goTest runs `go test -json args...` with the limit and adds its counts to a
// new row of this name.
func (r *runner) goTest(ctx context.Context, name string, limit time.Duration, env, args []string) (*result, *tally) {
	res := r.begin(name)
	defer r.end(res)
	t := newTally(r.out)
	full := append([]string{"test", "-json", "-timeout", limit.String()}, args...)
	ctx, cancel := context.WithTimeout(ctx, limit+killGrace)
	defer cancel()
	cmd := command(ctx, r.root, env, "go", full...)
	cmd.Stderr = r.out
	pipe, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		res.fail("start go test: %v", err)
		return res, t
	}
	err = errors.Join(t.read(pipe), cmd.Wait())
	res.add(t)
	switch {
	case ctx.Err() != nil:
		res.fail("%s: stopped after %s: %v", name, limit, ctx.Err())
	case err != nil && t.failed == 0:
		res.fail("%s: go test: %v", name, err)
	}
	return res, t
}

// command runs in its own process group, so that a time-out ends the whole
// family: the test binary and the agents that it started.
func command(ctx context.Context, dir string, env []string, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// testRegexp matches exactly these test functions.
func testRegexp(names []string) string {
	names = slices.Compact(slices.Sorted(slices.Values(names)))
	return "^(" + strings.Join(names, "|") + ")$"
}
