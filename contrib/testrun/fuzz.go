package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
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
		r.step(ctx, "fuzz "+d.dir+" "+d.name, each+stepLimit, nil,
			"go", "test", "-run", "^$", "-fuzz", "^"+d.name+"$", "-fuzztime", each.String(), "./"+d.dir)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if ran == 0 {
		return errors.New("fuzz: no decoder matches")
	}
	return nil
}
