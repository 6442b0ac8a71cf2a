package suite

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{9, 1}, 5}, {[]float64{9, 1, 2}, 2}, {[]float64{4, 1, 3, 2}, 2.5}} {
		if got := median(c.in); got != c.want {
			t.Errorf("median of %v is %v, want %v", c.in, got, c.want)
		}
	}
	if got := medianTime([]time.Duration{3, 1, 2}); got != 2 {
		t.Errorf("median time %v", got)
	}
}

func TestParseFio(t *testing.T) {
	doc := func(read, write, fault int) string {
		b, err := json.Marshal(map[string]any{"jobs": []any{map[string]any{
			"error": fault, "read": map[string]int{"total_ios": read, "runtime": 2000}, "write": map[string]int{"total_ios": write, "runtime": 4000},
		}}})
		if err != nil {
			t.Fatal(err)
		}
		return "fio: a warning\n" + string(b)
	}
	for _, c := range []struct {
		in      string
		ops     int64
		elapsed time.Duration
	}{{doc(5, 0, 0), 5, 2 * time.Second}, {doc(0, 7, 0), 7, 4 * time.Second}} {
		if ops, elapsed, err := parseFio([]byte(c.in)); err != nil || ops != c.ops || elapsed != c.elapsed {
			t.Errorf("%s: %d, %v, %v", c.in, ops, elapsed, err)
		}
	}
	for _, in := range []string{"", "{", "{}", `{"jobs":[]}`, doc(0, 0, 0), doc(5, 0, 5), "no document"} {
		if _, _, err := parseFio([]byte(in)); err == nil {
			t.Errorf("%q was accepted", in)
		}
	}
}

func TestChecks(t *testing.T) {
	s := &Suite{Config: Config{Log: &bytes.Buffer{}}}
	s.floor("g", "floor kept", 1, 1, "×")
	s.floor("g", "floor missed", 0.99, 1, "×")
	s.ceiling("g", "ceiling kept", 20, 20, "ms")
	s.ceiling("g", "ceiling missed", 21, 20, "ms")
	s.stretch("g", "stretch missed", 1, 2, "×")
	var pass []bool
	for _, c := range s.Checks {
		pass = append(pass, c.Pass)
	}
	for i, want := range []bool{true, false, true, false, false} {
		if pass[i] != want {
			t.Errorf("%s: pass %v", s.Checks[i].Name, pass[i])
		}
	}
	if s.Missed() != 2 {
		t.Errorf("%d floors missed, want 2", s.Missed())
	}
}

// TestReport: what was measured, missed and not measured is all in both files.
func TestReport(t *testing.T) {
	s := &Suite{Config: Config{Log: &bytes.Buffer{}, Target: "moraine", Quick: true}, Skipped: []string{"idle: no agent"}, load: "7.00"}
	for _, iops := range []float64{100, 300, 200} {
		s.sample("nbd", "4k", byBatch, "nbdkit", Sample{IOPS: iops, MiBps: iops / 256, CPU: 3})
		s.sample("nbd", "4k", byBatch, "moraine", Sample{IOPS: 2 * iops, MiBps: iops / 128, CPU: 2.5})
		s.sample("nbd", "1M", byFio, "moraine", Sample{IOPS: iops, MiBps: iops})
	}
	s.floor("nbd", "4k: against nbdkit", 2, 1.4, "×")
	s.ceiling("nbd", "stall", 30, 20, "ms")
	dir := t.TempDir()
	if err := s.Write(dir); err != nil {
		t.Fatal(err)
	}
	md, err := os.ReadFile(filepath.Join(dir, "RESULTS.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"idle: no agent", "quick run", "load average 7.00", "| 4k | batched | 200 / 3.0 µs / 3.0 | 400 / 2.5 µs / 3.0 |", "| 1M | fio |  | 200 MiB/s / 3.0 |",
		"| nbd | 4k: against nbdkit | 2.00× | ≥ 1.40× | pass |", "| nbd | stall | 30.00 ms | ≤ 20.00 ms | MISS |",
	} {
		if !strings.Contains(string(md), want) {
			t.Errorf("RESULTS.md lacks %q:\n%s", want, md)
		}
	}
	b, err := os.ReadFile(filepath.Join(dir, "results.json"))
	if err != nil {
		t.Fatal(err)
	}
	var r Report
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	if len(r.Checks) != 2 || len(r.Figures) != 3 || r.Figures[0].Median.IOPS != 200 || r.Commit == "" || r.Kernel == "" || len(r.Failed) != 1 {
		t.Errorf("results.json: %s", b)
	}
}

// TestRunNothing: a pattern that chooses no group leaves nothing behind.
func TestRunNothing(t *testing.T) {
	memory, disk := t.TempDir(), t.TempDir()
	s := &Suite{Config: Config{Memory: memory, Disk: disk, Match: regexp.MustCompile("^none$"), Log: &bytes.Buffer{}, Quick: true}}
	if _, err := Run(s.Config); err == nil {
		t.Error("a run of nothing succeeded")
	}
	for _, dir := range []string{memory, disk} {
		if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	}
}
