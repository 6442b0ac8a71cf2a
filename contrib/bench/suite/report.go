package suite

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Report is results.json.
type Report struct {
	Date    string    `json:"date"`
	Commit  string    `json:"commit"`
	Machine string    `json:"machine"`
	Kernel  string    `json:"kernel"`
	Load    string    `json:"load_average"` // of one minute, before anything was measured
	Target  string    `json:"target"`
	Quick   bool      `json:"quick,omitempty"`
	Checks  []Check   `json:"checks"`
	Figures []*Figure `json:"figures"`
	Failed  []string  `json:"failed,omitempty"`
}

// Missed is how many floors were missed, stretch figures aside.
func (s *Suite) Missed() int {
	n := 0
	for _, c := range s.Checks {
		if !c.Pass && !c.Stretch {
			n++
		}
	}
	return n
}

// Write writes RESULTS.md and results.json into a folder.
func (s *Suite) Write(folder string) error {
	r := Report{
		Date: time.Now().UTC().Format(time.DateOnly), Commit: commit(), Machine: machine(), Kernel: oneLine("/proc/sys/kernel/osrelease"),
		Load: s.load, Target: s.Target, Quick: s.Quick, Checks: s.Checks, Figures: s.Figures, Failed: s.Skipped,
	}
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(folder, "results.json"), append(b, '\n'), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(folder, "RESULTS.md"), []byte(r.markdown()), 0o644)
}

func (r *Report) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Benchmark results\n\nWritten by `make bench`; do not edit. Commit %s, %s, %s, Linux %s, target %s.\n", r.Commit, r.Date, r.Machine, r.Kernel, r.Target)
	b.WriteString("Targets are measured in turn in each round; figures are medians, and only ratios within one run mean something.\n")
	b.WriteString("CPU is that of the server's process (for Moraine the agent), per I/O.\n")
	if busy(r.Load) {
		fmt.Fprintf(&b, "\n**The machine was busy with other things (load average %s before the run): take this with caution.**\n", r.Load)
	}
	if r.Quick {
		b.WriteString("\n**A quick run: one short round, to see that everything works. Its figures mean little.**\n")
	}
	for _, f := range r.Failed {
		fmt.Fprintf(&b, "\n**Not measured** — %s\n", f)
	}
	b.WriteString("\n## Floors\n\n| group | figure | value | floor | |\n|---|---|---|---|---|\n")
	for _, c := range r.Checks {
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", c.Group, note(c), number(c.Value, c.Unit), c.bound(), c.verdict())
	}
	b.WriteString("\n## Figures\n\nIOPS (MiB/s from 64 KiB up), then µs of server CPU per I/O, then largest/smallest of the samples.\n")
	for _, group := range unique(r.Figures, func(f *Figure) string { return f.Group }) {
		r.table(&b, group)
	}
	return b.String()
}

// loadAverage of the last minute.
func loadAverage() string {
	first, _, _ := strings.Cut(oneLine("/proc/loadavg"), " ")
	return first
}

// busy says whether other work can have disturbed the figures.
func busy(load string) bool {
	v, err := strconv.ParseFloat(load, 64)
	return err != nil || v > 0.5
}

func note(c Check) string {
	if c.Note != "" {
		return c.Name + " — " + c.Note
	}
	return c.Name
}

func (r *Report) table(b *strings.Builder, group string) {
	var figures []*Figure
	for _, f := range r.Figures {
		if f.Group == group && len(f.Samples) > 0 {
			figures = append(figures, f)
		}
	}
	targets := unique(figures, func(f *Figure) string { return f.Target })
	fmt.Fprintf(b, "\n### %s\n\n| workload | client | %s |\n|---|---|%s\n", group, strings.Join(targets, " | "), strings.Repeat("---|", len(targets)))
	rows := unique(figures, func(f *Figure) string { return f.Workload + " | " + f.Client })
	for _, row := range rows {
		fmt.Fprintf(b, "| %s |", row)
		for _, target := range targets {
			cell := ""
			for _, f := range figures {
				if f.Target == target && f.Workload+" | "+f.Client == row {
					cell = f.cell()
				}
			}
			fmt.Fprintf(b, " %s |", cell)
		}
		b.WriteByte('\n')
	}
}

func (f *Figure) cell() string {
	m := f.Median
	text := fmt.Sprintf("%.0f", m.IOPS)
	if m.MS > 0 {
		text = fmt.Sprintf("%.2f ms", m.MS)
	}
	if m.IOPS > 0 && m.MiBps/m.IOPS >= 1.0/16 {
		text = fmt.Sprintf("%.0f MiB/s", m.MiBps)
	}
	if m.CPU > 0 {
		text += fmt.Sprintf(" / %.1f µs", m.CPU)
	}
	if len(f.Samples) > 1 {
		text += fmt.Sprintf(" / %.1f", f.spread())
	}
	return text
}

func unique(figures []*Figure, key func(*Figure) string) []string {
	var keys []string
	for _, f := range figures {
		if k := key(f); !slices.Contains(keys, k) {
			keys = append(keys, k)
		}
	}
	return keys
}

func commit() string {
	out, err := exec.Command("git", "rev-parse", "--short", "HEAD").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

func oneLine(file string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(b))
}

// machine names the processor and the memory, not the host.
func machine() string {
	field := func(file, key string) string {
		b, err := os.ReadFile(file)
		if err != nil {
			return "unknown"
		}
		for line := range strings.Lines(string(b)) {
			if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == key {
				return strings.TrimSpace(v)
			}
		}
		return "unknown"
	}
	return fmt.Sprintf("%d × %s, %s of memory", runtime.NumCPU(), field("/proc/cpuinfo", "model name"), field("/proc/meminfo", "MemTotal"))
}
