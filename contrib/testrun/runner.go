package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
)

// modulePath begins the import path of every package of the tree.
const modulePath = "github.com/moraine-storage/moraine"

// runner runs suites one after the other and keeps their results.
type runner struct {
	root    string
	ci      bool // a skipped test is a failure
	out     io.Writer
	quiet   bool // nothing ran: no table
	results []*result
}

// result is one row of the table.
type result struct {
	name                    string
	passed, failed, skipped int
	start                   time.Time
	took                    time.Duration
	problems                []string
	skips                   []string
	out                     io.Writer
}

func (r *runner) begin(name string) *result {
	fmt.Fprintf(r.out, "\n== %s\n", name)
	res := &result{name: name, start: time.Now(), out: r.out}
	r.results = append(r.results, res)
	return res
}

func (r *runner) end(res *result) { res.took += time.Since(res.start) }

func (res *result) add(t *tally) {
	res.passed += t.passed
	res.failed += t.failed
	res.skipped += t.skipped
	res.problems = append(res.problems, t.problems...)
	res.skips = append(res.skips, t.skips...)
}

func (res *result) fail(format string, args ...any) {
	res.failed++
	text := fmt.Sprintf(format, args...)
	res.problems = append(res.problems, text)
	fmt.Fprintln(res.out, text)
}

func (r *runner) failed() bool {
	return slices.ContainsFunc(r.results, func(res *result) bool { return res.failed > 0 })
}

// step runs one command as a suite with one case.
func (r *runner) step(ctx context.Context, name string, limit time.Duration, env []string, argv ...string) {
	r.stepFunc(ctx, name, limit, func(ctx context.Context, w io.Writer) error {
		cmd := command(ctx, r.root, env, argv[0], argv[1:]...)
		cmd.Stdout, cmd.Stderr = w, w
		return cmd.Run()
	})
}

// stepFunc runs f as a suite with one case; what f wrote is shown if it fails.
func (r *runner) stepFunc(ctx context.Context, name string, limit time.Duration, f func(context.Context, io.Writer) error) {
	res := r.begin(name)
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var text bytes.Buffer
	if err := f(ctx, &text); err != nil {
		fmt.Fprint(r.out, indent(text.String()))
		res.fail("%s: %v", name, err)
	} else {
		res.passed++
	}
	r.end(res)
}

// unit runs what needs no root. The tree rules belong to check; lint says
// whether they run here as well.
func (r *runner) unit(ctx context.Context, lint bool) error {
	pkgs, err := r.packages(ctx, lint)
	if err != nil {
		return err
	}
	// The race detector needs cgo; nothing that ships does.
	r.goTest(ctx, "unit", unitLimit, []string{"CGO_ENABLED=1"}, append([]string{"-race"}, pkgs...))
	return ctx.Err()
}

func (r *runner) packages(ctx context.Context, lint bool) ([]string, error) {
	if lint {
		return []string{"./..."}, nil
	}
	cmd := command(ctx, r.root, nil, "go", "list", "./...")
	cmd.Stderr = os.Stderr
	b, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("list packages: %w", err)
	}
	var pkgs []string
	for _, p := range strings.Fields(string(b)) {
		if !strings.HasSuffix(p, "/contrib/lint") {
			pkgs = append(pkgs, p)
		}
	}
	return pkgs, nil
}

// integration runs the suites of these names, or all of them. One package at a
// time: they share the machine's loop devices, sockets and cores.
func (r *runner) integration(ctx context.Context, names []string) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("integration suites: run them as root")
	}
	plans, err := r.plans(ctx)
	if err != nil {
		return err
	}
	for _, n := range names {
		if !slices.ContainsFunc(plans, func(p *plan) bool { return p.name == n }) {
			return fmt.Errorf("no suite %q; `testrun list` shows them", n)
		}
	}
	for _, p := range plans {
		if len(names) > 0 && !slices.Contains(names, p.name) {
			continue
		}
		if p.count() == 0 {
			if len(names) > 0 {
				return fmt.Errorf("suite %q has no tests", p.name)
			}
			continue
		}
		r.runPlan(ctx, p)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

// runPlan runs a suite with a single go test, so that one limit holds for it.
func (r *runner) runPlan(ctx context.Context, p *plan) {
	args := []string{"-count=1", "-p", "1", "-tags", integrationTag}
	var names []string
	for _, d := range p.dirs() {
		names = append(names, p.tests[d]...)
	}
	args = append(args, "-run", testRegexp(names))
	for _, d := range p.dirs() {
		args = append(args, "./"+d)
	}
	res, t := r.goTest(ctx, p.name, p.limit, noCgo, args)
	if res.failed > 0 {
		return
	}
	for _, d := range p.dirs() {
		for _, n := range p.tests[d] {
			if !t.ended[modulePath+"/"+d+"."+n] {
				res.fail("./%s: %s is in the sources but did not run", d, n)
			}
		}
	}
}

// crash runs the crash-replay tests of the store in their long form; how many
// cuts is MORAINE_CRASH_CUTS.
func (r *runner) crash(ctx context.Context) error {
	var env []string
	if os.Getenv("MORAINE_CRASH_CUTS") == "" {
		env = append(env, "MORAINE_CRASH_CUTS=10000")
	}
	res, _ := r.goTest(ctx, "crash", crashLimit, env, []string{"-count=1", "-v", "-run", "Crash", "./drivers/store/..."})
	if res.failed == 0 && res.passed == 0 {
		res.fail("crash: no test ran")
	}
	return ctx.Err()
}

// report prints the table and returns the exit code.
func (r *runner) report() int {
	if r.quiet {
		return 0
	}
	var passed, failed, skipped int
	fmt.Fprintf(r.out, "\n%-28s %8s %8s %8s %9s\n", "suite", "passed", "failed", "skipped", "seconds")
	for _, res := range r.results {
		fmt.Fprintf(r.out, "%-28s %8d %8d %8d %9.1f\n", res.name, res.passed, res.failed, res.skipped, res.took.Seconds())
		passed += res.passed
		failed += res.failed
		skipped += res.skipped
	}
	for _, res := range r.results {
		for _, p := range res.problems {
			fmt.Fprintf(r.out, "failed: %s: %s\n", res.name, p)
		}
		for _, s := range res.skips {
			fmt.Fprintf(r.out, "skipped: %s: %s\n", res.name, s)
		}
	}
	if skipped > 0 && r.ci {
		fmt.Fprintf(r.out, "CI is set: %d skipped tests count as failed\n", skipped)
		failed += skipped
	} else if skipped > 0 {
		fmt.Fprintf(r.out, "%d skipped\n", skipped)
	}
	fmt.Fprintf(r.out, "%d passed, %d failed\n", passed, failed)
	if failed > 0 {
		return 1
	}
	return 0
}
