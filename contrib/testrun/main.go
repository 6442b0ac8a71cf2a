// Command testrun runs Moraine's checks and tests and says at the end what
// ran: a table of suites with counts and seconds, and a last line
// "N passed, N failed". The Makefile calls it; its suites are in suites.go.
//
//	testrun check [REGEXP]   format, vet, staticcheck, generated code, tree rules, cross builds
//	testrun unit             tests that need no root, with the race detector
//	testrun test             check, unit, then every integration suite as root
//	testrun suite NAME...    only these integration suites
//	testrun crash            the long form of the crash-replay tests of the store
//	testrun fuzz [REGEXP]    every decoder of contrib/lint/decoders.txt, FUZZTIME each (default 10m)
//	testrun generate         write the generated code anew
//	testrun list             the integration suites and their tests
//
// With CI set, a skipped test is a failure: what CI cannot run, it must not
// seem to have run.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string) int {
	if len(args) == 0 {
		fmt.Fprintln(os.Stderr, "testrun: say what: check [REGEXP], unit, test, suite NAME..., crash, fuzz [REGEXP], generate, list")
		return 2
	}
	root, err := moduleRoot()
	if err != nil {
		fmt.Fprintln(os.Stderr, "testrun:", err)
		return 2
	}
	r := &runner{root: root, ci: os.Getenv("CI") != "", out: os.Stdout}
	err = r.dispatch(ctx, args)
	if err != nil {
		fmt.Fprintln(os.Stderr, "testrun:", err)
		return 2
	}
	return r.report()
}

func (r *runner) dispatch(ctx context.Context, args []string) error {
	switch cmd, rest := args[0], args[1:]; cmd {
	case "check":
		return r.check(ctx, rest)
	case "unit":
		return r.unit(ctx, true)
	case "test":
		return r.all(ctx)
	case "suite":
		if len(rest) == 0 {
			return errors.New("suite: name at least one; `testrun list` shows them")
		}
		return r.integration(ctx, rest)
	case "crash":
		return r.crash(ctx)
	case "fuzz":
		return r.fuzz(ctx, rest)
	case "generate":
		r.quiet = true
		return generate(ctx, r.root, r.out)
	case "list":
		return r.list()
	default:
		return fmt.Errorf("unknown command %q", cmd)
	}
}

// all is `make test`. It goes on after a failed suite, so that one run tells
// everything, except when the tree does not even build.
func (r *runner) all(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("test: the integration suites attach devices and start containers: run it as root (make unit needs no root)")
	}
	r.step(ctx, "build", buildLimit, nil, "make", "--no-print-directory", "build")
	if r.failed() {
		return ctx.Err()
	}
	if err := r.check(ctx, nil); err != nil {
		return err
	}
	// check has run the tree rules already.
	if err := r.unit(ctx, false); err != nil {
		return err
	}
	return r.integration(ctx, nil)
}

// moduleRoot finds the directory of go.mod from the working directory up.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", errors.New("no go.mod here or above: run it inside the source tree")
		}
		dir = up
	}
}

// goFiles are the hand-written and generated Go files of the tree, without
// what git ignores; paths relative to the root.
func (r *runner) goFiles(ctx context.Context) ([]string, error) {
	cmd := exec.CommandContext(ctx, "git", "ls-files", "-co", "--exclude-standard", "--", "*.go")
	cmd.Dir = r.root
	b, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("list files: %w", err)
	}
	var files []string
	for f := range strings.Lines(string(b)) {
		f = strings.TrimSuffix(f, "\n")
		// Deleted but not yet committed files are still listed.
		if _, err := os.Stat(filepath.Join(r.root, f)); err == nil {
			files = append(files, f)
		}
	}
	return files, nil
}

func compileFilter(rest []string) (*regexp.Regexp, error) {
	if len(rest) == 0 {
		return regexp.MustCompile(""), nil
	}
	return regexp.Compile(rest[0])
}
