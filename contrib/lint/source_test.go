package lint

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// A reader should be able to start with any package.
func TestPackageComments(t *testing.T) {
	for _, p := range listPackages(t) {
		if len(p.GoFiles) == 0 {
			continue // tests only
		}
		found := !slices.ContainsFunc(p.GoFiles, func(f string) bool {
			return !generated(read(t, path.Join(p.folder(), f)))
		}) // generated code is explained where it is generated from
		for _, f := range p.GoFiles {
			parsed, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, f), nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			doc := parsed.Doc.Text()
			if strings.HasPrefix(doc, "Package "+p.Name+" ") || p.Name == "main" && strings.HasPrefix(doc, "Command ") {
				found = true
			}
		}
		if !found {
			t.Errorf("%s has no comment that begins with \"Package %s\" (or \"Command\" for a main)", p.folder(), p.Name)
		}
	}
}

// maxLines of a hand-written file that is no test: beyond it a newcomer has to
// search, and it is two files.
const maxLines = 600

func TestFileSizes(t *testing.T) {
	for _, f := range listFiles(t) {
		if path.Ext(f) != ".go" || strings.HasSuffix(f, "_test.go") {
			continue
		}
		text := read(t, f)
		if n := strings.Count(text, "\n"); n > maxLines && !generated(text) {
			t.Errorf("%s has %d lines, more than %d: split it", f, n, maxLines)
		}
	}
}

// A package's name says what it provides; these names say nothing.
func TestPackageNames(t *testing.T) {
	empty := []string{"util", "utils", "common", "types", "helper", "helpers", "base", "misc", "shared"}
	for _, p := range listPackages(t) {
		if slices.Contains(empty, path.Base(p.folder())) || slices.Contains(empty, p.Name) {
			t.Errorf("%s: the name of the package does not say what it provides", p.folder())
		}
	}
}

// One program is shipped; others are tools, examples and tests.
func TestMains(t *testing.T) {
	shipped := 0
	for _, p := range listPackages(t) {
		switch {
		case p.Name != "main" || below(p.folder(), "contrib"):
		case p.folder() == "agent/cmd/moraine":
			shipped++
		default:
			t.Errorf("%s is a main package outside agent/cmd/moraine and contrib", p.folder())
		}
	}
	if shipped != 1 {
		t.Errorf("%d packages agent/cmd/moraine, want 1", shipped)
	}
}

// A skipped test says what it misses; the runner prints it, and fails in CI.
func TestSkipsHaveReasons(t *testing.T) {
	for _, f := range listFiles(t) {
		if !strings.HasSuffix(f, "_test.go") {
			continue
		}
		fset := token.NewFileSet()
		parsed, err := parser.ParseFile(fset, filepath.Join(root, f), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			sel, ok := call.Fun.(*ast.SelectorExpr)
			if ok && (sel.Sel.Name == "SkipNow" || sel.Sel.Name == "Skip") && len(call.Args) == 0 && isTestingValue(sel.X) {
				t.Errorf("%s: a skip without a reason", fset.Position(call.Pos()))
			}
			return true
		})
	}
}

func isTestingValue(x ast.Expr) bool {
	id, ok := x.(*ast.Ident)
	return ok && slices.Contains([]string{"t", "b", "f", "tb"}, id.Name)
}

// Everything that reads bytes from a wire or a disk is fuzzed, and `make fuzz`
// knows it: decoders.txt and the Fuzz functions of the tree are one list.
func TestDecodersListed(t *testing.T) {
	listed := map[string]bool{}
	for line := range strings.Lines(read(t, "contrib/lint/decoders.txt")) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		w := strings.Fields(line)
		if len(w) < 3 {
			t.Errorf("decoders.txt: %q: want FOLDER FuzzName DESCRIPTION", line)
			continue
		}
		if listed[w[0]+" "+w[1]] {
			t.Errorf("decoders.txt: %s %s is listed twice", w[0], w[1])
		}
		listed[w[0]+" "+w[1]] = true
	}
	fuzz := regexp.MustCompile(`(?m)^func (Fuzz[A-Z0-9_]\w*)\(`)
	for _, f := range listFiles(t) {
		if !strings.HasSuffix(f, "_test.go") {
			continue
		}
		for _, m := range fuzz.FindAllStringSubmatch(read(t, f), -1) {
			key := path.Dir(f) + " " + m[1]
			if !listed[key] {
				t.Errorf("%s is not in contrib/lint/decoders.txt: add it with what it decodes", key)
			}
			delete(listed, key)
		}
	}
	for key := range listed {
		t.Errorf("contrib/lint/decoders.txt lists %s, which does not exist", key)
	}
}
