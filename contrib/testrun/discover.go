package main

import (
	"context"
	"fmt"
	"go/ast"
	"go/build/constraint"
	"go/parser"
	"go/token"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// integrationTag marks the files whose tests need root or real peers.
const integrationTag = "integration"

// plan is what a suite will run: per package folder its test functions.
type plan struct {
	suite
	tests map[string][]string // folder relative to the root -> names of Test functions
}

func (p *plan) count() int {
	n := 0
	for _, t := range p.tests {
		n += len(t)
	}
	return n
}

func (p *plan) dirs() []string {
	d := make([]string, 0, len(p.tests))
	for dir := range p.tests {
		d = append(d, dir)
	}
	slices.Sort(d)
	return d
}

// plans finds every integration test of the tree and gives it to a suite.
func (r *runner) plans(ctx context.Context) ([]*plan, error) {
	files, err := r.goFiles(ctx)
	if err != nil {
		return nil, err
	}
	found := map[string][]string{}
	for _, f := range files {
		if !strings.HasSuffix(f, "_test.go") {
			continue
		}
		names, err := integrationTests(filepath.Join(r.root, f))
		if err != nil {
			return nil, err
		}
		if len(names) > 0 {
			found[path.Dir(f)] = append(found[path.Dir(f)], names...)
		}
	}
	return assign(found), nil
}

func assign(found map[string][]string) []*plan {
	plans := make([]*plan, len(suites))
	for i, s := range suites {
		plans[i] = &plan{suite: s, tests: map[string][]string{}}
	}
	for dir, names := range found {
		slices.Sort(names)
		for _, p := range plans {
			if p.takes(dir) {
				p.tests[dir] = names
				break
			}
		}
	}
	return plans
}

func (s suite) takes(dir string) bool {
	for _, u := range s.under {
		if u == "" || dir == u || strings.HasPrefix(dir, u+"/") {
			return true
		}
	}
	return false
}

// integrationTests returns the Test functions of a file whose build constraint
// needs the integration tag; none for other files.
func integrationTests(file string) ([]string, error) {
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, fmt.Errorf("look for integration tests: %w", err)
	}
	if !needsTag(f) {
		return nil, nil
	}
	var names []string
	for _, d := range f.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if ok && fn.Recv == nil && isTestName(fn.Name.Name) {
			names = append(names, fn.Name.Name)
		}
	}
	return names, nil
}

// needsTag says whether the file is built with the integration tag and not
// without it.
func needsTag(f *ast.File) bool {
	for _, g := range f.Comments {
		if g.Pos() > f.Package {
			break
		}
		for _, c := range g.List {
			if !constraint.IsGoBuild(c.Text) {
				continue
			}
			x, err := constraint.Parse(c.Text)
			if err != nil {
				continue // the compiler reports it
			}
			with := x.Eval(func(tag string) bool { return tag == integrationTag || tag == "linux" || tag == "amd64" })
			without := x.Eval(func(tag string) bool { return tag == "linux" || tag == "amd64" })
			return with && !without
		}
	}
	return false
}

func isTestName(name string) bool {
	rest, ok := strings.CutPrefix(name, "Test")
	if !ok || name == "TestMain" {
		return false
	}
	return rest == "" || rest[0] < 'a' || rest[0] > 'z'
}

func (r *runner) list() error {
	plans, err := r.plans(context.Background())
	if err != nil {
		return err
	}
	for _, p := range plans {
		fmt.Fprintf(r.out, "%s: %s (limit %s, %d tests)\n", p.name, p.about, p.limit, p.count())
		for _, d := range p.dirs() {
			fmt.Fprintf(r.out, "  ./%s: %s\n", d, strings.Join(p.tests[d], " "))
		}
	}
	r.quiet = true
	return nil
}
