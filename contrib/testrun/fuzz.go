package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// decodersFile lists what must be fuzzed: "FOLDER FuzzName what it decodes" a
// line. A tree rule keeps it complete.
const decodersFile = "contrib/lint/decoders.txt"

// defaultFuzzTime per decoder.
const defaultFuzzTime = 10 * time.Minute

type decoder struct{ dir, name, about string }

func readDecoders(file string) ([]decoder, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	var list []decoder
	sc := bufio.NewScanner(f)
	for n := 1; sc.Scan(); n++ {
		line := strings.TrimSpace(sc.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		w := strings.Fields(line)
		if len(w) < 3 {
			return nil, fmt.Errorf("%s:%d: want FOLDER FuzzName DESCRIPTION", file, n)
		}
		list = append(list, decoder{w[0], w[1], strings.Join(w[2:], " ")})
	}
	return list, sc.Err()
}

// fuzz runs each decoder that matches for FUZZTIME. A crasher is kept by go
// test under testdata/fuzz of its package: commit it with the fix.
func (r *runner) fuzz(ctx context.Context, rest []string) error {
	each := defaultFuzzTime
	if s := os.Getenv("FUZZTIME"); s != "" {
		d, err := time.ParseDuration(s)
		if err != nil || d <= 0 {
			return fmt.Errorf("FUZZTIME=%q: want a duration such as 30s or 10m", s)
		}
		each = d
	}
	match, err := compileFilter(rest)
	if err != nil {
		return err
	}
	list, err := readDecoders(filepath.Join(r.root, decodersFile))
	if err != nil {
		return err
	}
	ran := 0
	for _, d := range list {
		if !match.MatchString(d.dir + " " + d.name) {
			continue
		}
		ran++
		r.stepFunc(ctx, "fuzz "+d.dir+" "+d.name, each+stepLimit, func(ctx context.Context, w io.Writer) error {
			return r.fuzzOne(ctx, w, d, each)
		})
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if ran == 0 {
		return errors.New("fuzz: no decoder matches")
	}
	return nil
}

// fuzzOne fuzzes one decoder. An input may take seconds to shrink, which would
// eat the time of new ones, so that is bounded. The test's own time-out would be
// 10 minutes, which is what each decoder gets.
func (r *runner) fuzzOne(ctx context.Context, w io.Writer, d decoder, each time.Duration) error {
	cmd := command(ctx, r.root, nil, "go", "test", "-run", "^$", "-fuzz", "^"+d.name+"$", "-fuzztime", each.String(),
		"-fuzzminimizetime", "5s", "-timeout", (each + stepLimit).String(), "./"+d.dir)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if err != nil && onlyOutOfTime(out.String()) {
		return nil
	}
	_, werr := w.Write(out.Bytes())
	return errors.Join(err, werr)
}

// onlyOutOfTime tells a failed fuzz run that has found nothing: Go before 1.27
// may report the end of -fuzztime itself as a failure (golang.org/issue/75804).
// A finding names the file of its input, or says how the process ended.
func onlyOutOfTime(out string) bool {
	return strings.Contains(out, "\n    context deadline exceeded\nFAIL\n") &&
		!strings.Contains(out, "Failing input") && !strings.Contains(out, "panic") && !strings.Contains(out, "terminated unexpectedly")
}
