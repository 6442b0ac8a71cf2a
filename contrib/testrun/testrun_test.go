package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const sampleEvents = `{"Action":"start","Package":"m/a"}
{"Action":"run","Package":"m/a","Test":"TestOK"}
{"Action":"output","Package":"m/a","Test":"TestOK","Output":"=== RUN   TestOK\n"}
{"Action":"pass","Package":"m/a","Test":"TestOK","Elapsed":0}
{"Action":"run","Package":"m/a","Test":"TestBad"}
{"Action":"output","Package":"m/a","Test":"TestBad","Output":"    a_test.go:3: wrong bytes\n"}
{"Action":"fail","Package":"m/a","Test":"TestBad","Elapsed":0.1}
{"Action":"run","Package":"m/a","Test":"TestSkip"}
{"Action":"output","Package":"m/a","Test":"TestSkip","Output":"=== RUN   TestSkip\n"}
{"Action":"output","Package":"m/a","Test":"TestSkip","Output":"    a_test.go:9: needs fio\n"}
{"Action":"skip","Package":"m/a","Test":"TestSkip","Elapsed":0}
{"Action":"fail","Package":"m/a","Elapsed":0.2}
go: some words that are not JSON
{"ImportPath":"m/b [m/b.test]","Action":"build-output","Output":"b.go:1: syntax error\n"}
{"ImportPath":"m/b [m/b.test]","Action":"build-fail"}
{"Action":"start","Package":"m/b"}
{"Action":"fail","Package":"m/b","Elapsed":0,"FailedBuild":"m/b [m/b.test]"}
{"Action":"start","Package":"m/c"}
{"Action":"run","Package":"m/c","Test":"TestHang"}
{"Action":"output","Package":"m/c","Test":"TestHang","Output":"waiting\n"}
{"Action":"output","Package":"m/c","Output":"panic: test timed out\n"}
{"Action":"fail","Package":"m/c","Elapsed":9}
`

func TestTally(t *testing.T) {
	var out bytes.Buffer
	ta := newTally(&out)
	if err := ta.read(strings.NewReader(sampleEvents)); err != nil {
		t.Fatal(err)
	}
	if ta.passed != 1 || ta.failed != 3 || ta.skipped != 1 {
		t.Errorf("passed %d failed %d skipped %d, want 1 3 1", ta.passed, ta.failed, ta.skipped)
	}
	if want := []string{"m/a.TestBad", "m/b", "m/c"}; !slices.Equal(ta.problems, want) {
		t.Errorf("problems %q, want %q", ta.problems, want)
	}
	for _, want := range []string{"wrong bytes", "needs fio", "syntax error", "DID NOT END m/c.TestHang", "test timed out", "not JSON"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("output lacks %q:\n%s", want, out.String())
		}
	}
	if !ta.ended["m/a.TestOK"] || ta.ended["m/c.TestHang"] {
		t.Errorf("ended = %v", ta.ended)
	}
}

// A skipped test is a failure under CI and only there; a failed one always is.
func TestReportExitCode(t *testing.T) {
	for _, tc := range []struct {
		name string
		res  result
		ci   bool
		code int
		last string
	}{
		{"green", result{passed: 3}, true, 0, "3 passed, 0 failed"},
		{"skip", result{passed: 3, skipped: 1, skips: []string{"x: no fio"}}, false, 0, "3 passed, 0 failed"},
		{"skip in CI", result{passed: 3, skipped: 1, skips: []string{"x: no fio"}}, true, 1, "3 passed, 1 failed"},
		{"failed", result{passed: 3, failed: 2}, false, 1, "3 passed, 2 failed"},
	} {
		var out bytes.Buffer
		r := &runner{ci: tc.ci, out: &out, results: []*result{&tc.res}}
		if code := r.report(); code != tc.code {
			t.Errorf("%s: code %d, want %d", tc.name, code, tc.code)
		}
		if lines := strings.Split(strings.TrimSpace(out.String()), "\n"); lines[len(lines)-1] != tc.last {
			t.Errorf("%s: last line %q, want %q", tc.name, lines[len(lines)-1], tc.last)
		}
	}
}

func TestIntegrationTests(t *testing.T) {
	for _, tc := range []struct {
		src  string
		want []string
	}{
		{"//go:build integration\n\npackage x\nfunc TestA(){}\nfunc TestMain(){}\nfunc helper(){}\nfunc Testing(){}\nfunc Test_b(){}\n", []string{"TestA", "Test_b"}},
		{"//go:build linux && integration\n\npackage x\nfunc TestA(){}\n", []string{"TestA"}},
		{"//go:build !integration\n\npackage x\nfunc TestA(){}\n", nil},
		{"//go:build linux\n\npackage x\nfunc TestA(){}\n", nil},
		{"package x\n//go:build integration\nfunc TestA(){}\n", nil},
	} {
		file := filepath.Join(t.TempDir(), "x_test.go")
		if err := os.WriteFile(file, []byte(tc.src), 0o644); err != nil {
			t.Fatal(err)
		}
		got, err := integrationTests(file)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%q: %q, want %q", tc.src, got, tc.want)
		}
	}
}

// Every folder goes to exactly one suite, and none is lost.
func TestAssign(t *testing.T) {
	found := map[string][]string{
		"drivers/store": {"TestA"}, "drivers/storefront": {"TestB"}, "drivers/fuse": {"TestC"},
		"contrib/interop/docker": {"TestD"}, "somewhere/new": {"TestE"}, "agent/cli": {"TestF", "TestG"},
	}
	where := map[string]string{}
	total := 0
	for _, p := range assign(found) {
		total += p.count()
		for d := range p.tests {
			where[d] += p.name
		}
	}
	want := map[string]string{"drivers/store": "store", "drivers/storefront": "attach", "drivers/fuse": "attach",
		"contrib/interop/docker": "docker", "somewhere/new": "other", "agent/cli": "agent"}
	for d, n := range want {
		if where[d] != n {
			t.Errorf("%s: suite %q, want %q", d, where[d], n)
		}
	}
	if total != 7 {
		t.Errorf("%d tests assigned, want 7", total)
	}
}

func TestReadDecoders(t *testing.T) {
	file := filepath.Join(t.TempDir(), "d.txt")
	if err := os.WriteFile(file, []byte("# comment\n\ndrivers/nbd FuzzRequest request headers\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := readDecoders(file)
	if err != nil || len(got) != 1 || got[0] != (decoder{"drivers/nbd", "FuzzRequest", "request headers"}) {
		t.Fatalf("%v, %v", got, err)
	}
	if err := os.WriteFile(file, []byte("drivers/nbd FuzzRequest\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := readDecoders(file); err == nil || !strings.Contains(err.Error(), ":1:") {
		t.Errorf("a line without description: %v, want an error with the line number", err)
	}
}

// A step that outlives its limit is stopped and is a failure.
func TestStepLimit(t *testing.T) {
	r := &runner{root: t.TempDir(), out: io.Discard}
	r.step(t.Context(), "sleep", 1, nil, "sleep", "60")
	if !r.failed() {
		t.Error("a step beyond its limit passed")
	}
}

// TestOnlyOutOfTime: the end of the time is no finding; a finding stays one.
func TestOnlyOutOfTime(t *testing.T) {
	const end = "fuzz: elapsed: 31s, execs: 101343 (0/sec), new interesting: 36 (total: 36)\n--- FAIL: FuzzX (31.00s)\n    context deadline exceeded\nFAIL\nexit status 1\n"
	for name, test := range map[string]struct {
		out  string
		want bool
	}{
		"end of time":  {end, true},
		"finding":      {"--- FAIL: FuzzX (1.00s)\n    --- FAIL: FuzzX (0.00s)\n        x_test.go:9: got 1\n\n    Failing input written to testdata/fuzz/FuzzX/2f\nFAIL\n", false},
		"finding late": {end + "    Failing input written to testdata/fuzz/FuzzX/2f\n", false},
		"died":         {"--- FAIL: FuzzX (1.00s)\n    fuzzing process hung or terminated unexpectedly: exit status 2\nFAIL\n", false},
		"no build":     {"# m/a\nx.go:1: syntax error\nFAIL\tm/a [build failed]\n", false},
	} {
		if got := onlyOutOfTime(test.out); got != test.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
