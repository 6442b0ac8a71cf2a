package cli

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/moraine-storage/moraine/agent/api/apitest"
	"github.com/moraine-storage/moraine/agent/apiserver"
	"github.com/moraine-storage/moraine/agent/version"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// node is a fake agent behind a real socket, with a clock and identities that
// are always the same, and the command line that talks to it.
type node struct {
	*testing.T
	fake   *apitest.Fake
	socket string
	deps   Deps
}

func newNode(t *testing.T) *node {
	t.Helper()
	v, c := version.Version, version.Commit
	version.Version, version.Commit = "v1.2.3", "abcdef0"
	t.Cleanup(func() { version.Version, version.Commit = v, c })
	ids := 0
	clock := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	fake := apitest.NewFake(apitest.Options{
		Now: func() time.Time { return clock },
		NewID: func() string {
			ids++
			return fmt.Sprintf("%032x", ids)
		},
	})
	n := &node{T: t, fake: fake, socket: filepath.Join(t.TempDir(), "agent.sock")}
	s, err := apiserver.Start(fake, apiserver.Options{Socket: n.socket})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close the server: %v", err)
		}
	})
	n.deps.Getenv = func(k string) string {
		if k == "MORAINE_ADDRESS" {
			return n.socket
		}
		return ""
	}
	return n
}

// result is what one command line did.
type result struct {
	stdout, stderr string
	code           int
}

// runWith runs a command line with these parts and this input.
func (n *node) runWith(d Deps, stdin string, args ...string) result {
	n.Helper()
	var out, errOut bytes.Buffer
	d.Stdin, d.Stdout, d.Stderr = strings.NewReader(stdin), &out, &errOut
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	code := Run(ctx, args, d)
	return result{out.String(), errOut.String(), code}
}

func (n *node) run(args ...string) result {
	n.Helper()
	return n.runWith(n.deps, "", args...)
}

// must runs a command line that succeeds and returns its output.
func (n *node) must(args ...string) string {
	n.Helper()
	r := n.run(args...)
	if r.code != 0 || r.stderr != "" {
		n.Fatalf("moraine %s: exit code %d\n%s%s", strings.Join(args, " "), r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// script runs lines as a shell would, without quoting but for '_' in place of
// a blank, and returns a transcript.
func (n *node) script(text string) string {
	n.Helper()
	var b strings.Builder
	for line := range strings.SplitSeq(strings.TrimSpace(text), "\n") {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		args := strings.Fields(line)
		for i := range args {
			args[i] = strings.ReplaceAll(args[i], "~", " ")
		}
		r := n.run(args...)
		fmt.Fprintf(&b, "$ moraine %s\n%s", line, r.stdout)
		if r.stderr != "" {
			fmt.Fprintf(&b, "! %s\n", strings.ReplaceAll(strings.TrimSuffix(r.stderr, "\n"), "\n", "\n! "))
		}
		if r.code != 0 {
			fmt.Fprintf(&b, "exit code %d\n", r.code)
		}
		b.WriteByte('\n')
	}
	return strings.ReplaceAll(b.String(), n.socket, "SOCKET")
}

// golden compares text with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (go test ./agent/cli -update writes it anew):\n%s", path, firstDifference(string(want), got))
	}
}

// firstDifference shows where two texts part.
func firstDifference(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range max(len(w), len(g)) {
		var a, b string
		if i < len(w) {
			a = w[i]
		}
		if i < len(g) {
			b = g[i]
		}
		if a != b {
			return fmt.Sprintf("line %d\nwant %q\ngot  %q", i+1, a, b)
		}
	}
	return "no difference"
}

// TestTranscripts plays whole sessions and compares every byte of output.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.script")
	if err != nil || len(files) < 5 {
		t.Fatalf("scripts: %v %v", files, err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".script")
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			n := newNode(t)
			n.deps.Drives = fakeDrives{}
			n.deps.CheckConfig = fakeConfig
			golden(t, name+".golden", n.script(string(text)))
		})
	}
}

// fakeDrives is a drive with two replicas, at any path but /missing.
type fakeDrives struct{}

func (fakeDrives) Check(_ context.Context, dir string, data bool, p Progress) (*DriveReport, error) {
	if dir == "/missing" {
		return nil, fmt.Errorf("open store: %w", os.ErrNotExist)
	}
	p(1, 2)
	r := &DriveReport{Dir: dir, DriveID: "d1", ClusterID: "c1", Format: "1", Replicas: 2, Allocated: 3 << 20, Data: data,
		CheckedAt: time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC), Problems: []string{}, Notes: []string{"not closed cleanly"}}
	if dir == "/damaged" {
		r.Problems = append(r.Problems, "extent 7 is owned twice")
	}
	return r, nil
}

func (fakeDrives) Replicas(_ context.Context, dir string) ([]DriveReplica, error) {
	rs := []DriveReplica{
		{ID: "aa11", VolumeID: "ff01", Size: 1 << 30, Allocated: 2 << 20, Snapshots: []DriveSnapshot{{ID: "5501", Size: 1 << 30}, {ID: "5502", Size: 1 << 30}}},
		{ID: "aa22", VolumeID: "ff02", Size: 2 << 30, Allocated: 1 << 20, Snapshots: []DriveSnapshot{}},
	}
	switch dir {
	case "/missing":
		return nil, fmt.Errorf("open store: %w", os.ErrNotExist)
	case "/one":
		return rs[:1], nil
	case "/empty":
		return nil, nil
	}
	return rs, nil
}

func (fakeDrives) Export(_ context.Context, o ExportOptions, p Progress) error {
	p(1, 2)
	if o.To == "/exists" {
		return fmt.Errorf("create image: %w", os.ErrExist)
	}
	return nil
}

func fakeConfig(paths []string) (*ConfigReport, error) {
	r := &ConfigReport{Files: paths, Errors: []string{}, Warnings: []string{}}
	if paths[0] == "bad.hcl" {
		r.Errors = append(r.Errors, `bad.hcl:3:1: unknown key "nmae", did you mean "name"?`)
	}
	return r, nil
}
