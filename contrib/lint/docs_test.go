package lint

import (
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The top of the tree is what a newcomer sees first: it holds fixed names.
func TestTopLevel(t *testing.T) {
	fixed := []string{"agent", "drivers", "backends", "runtime", "plugins", "contrib",
		"go.mod", "go.sum", "Makefile", "agent.hcl.example", "README.md", "LICENSE"}
	present := map[string]bool{}
	for _, f := range listFiles(t) {
		top, _, _ := strings.Cut(f, "/")
		present[top] = true
		if !slices.Contains(fixed, top) && !strings.HasPrefix(top, ".") {
			t.Errorf("%s: the top level holds only %s and dot-files", top, strings.Join(fixed, " "))
		}
	}
	for _, name := range append(fixed, ".ci") {
		if !present[name] {
			t.Errorf("%s is missing at the top level", name)
		}
	}
	for _, f := range listFiles(t) {
		if dir, name := path.Split(f); dir == "runtime/" && path.Ext(name) == ".go" {
			t.Errorf("%s: no package sits directly in runtime/, its name would hide the standard one", f)
		}
	}
}

// README's way of one write: ten numbered lines, each naming files, all of
// which exist. Whoever moves a file of the data path moves the line too.
func TestWayOfOneWrite(t *testing.T) {
	_, section, ok := strings.Cut(read(t, "README.md"), "\n## The way of one write\n")
	if !ok {
		t.Fatal(`README.md has no section "The way of one write"`)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	numbered := regexp.MustCompile(`(?m)^(\d+)\. (.*)$`)
	file := regexp.MustCompile("`([a-z0-9_./-]+\\.go)`")
	lines := numbered.FindAllStringSubmatch(section, -1)
	if len(lines) != 10 {
		t.Errorf("the way of one write has %d numbered lines, want 10", len(lines))
	}
	for _, l := range lines {
		names := file.FindAllStringSubmatch(l[2], -1)
		if len(names) == 0 {
			t.Errorf("line %s names no file", l[1])
		}
		for _, n := range names {
			if st, err := os.Stat(filepath.Join(root, n[1])); err != nil || st.IsDir() {
				t.Errorf("line %s names %s, which is no file of the tree", l[1], n[1])
			}
		}
	}
}

// Links between documents lead somewhere.
func TestDocumentLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	code := regexp.MustCompile("(?s)```.*?```|`[^`\n]*`")
	for _, f := range listFiles(t) {
		if path.Ext(f) != ".md" {
			continue
		}
		for _, m := range link.FindAllStringSubmatch(code.ReplaceAllString(read(t, f), ""), -1) {
			target, _, _ := strings.Cut(m[1], "#")
			if target == "" || strings.Contains(target, "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(root, path.Dir(f), target)); err != nil {
				t.Errorf("%s links to %s: %v", f, m[1], err)
			}
		}
	}
}

// README promises only targets that exist.
func TestMakeTargets(t *testing.T) {
	makefile := read(t, "Makefile")
	for _, m := range regexp.MustCompile(`(?m)^\.PHONY: (\S+)$`).FindAllStringSubmatch(makefile, -1) {
		if !regexp.MustCompile(`(?m)^` + m[1] + `:.* ## \S`).MatchString(makefile) {
			t.Errorf("Makefile: target %s has no help text", m[1])
		}
	}
	for _, m := range regexp.MustCompile("`make ([a-z-]+)").FindAllStringSubmatch(read(t, "README.md"), -1) {
		if !strings.Contains(makefile, "\n"+m[1]+": ") {
			t.Errorf("README.md speaks of `make %s`, which the Makefile lacks", m[1])
		}
	}
	if ci := read(t, ".ci/run"); !strings.Contains(ci, "make test") {
		t.Error(".ci/run does not run make test")
	}
}

// banned text: what reads as undone is done or removed, and nothing names the
// machine of whoever wrote it. (Patterns are in pieces, so that this file does
// not match itself.)
var banned = []struct {
	pattern string
	why     string
}{
	{`\b(TO` + `DO|FIX` + `ME|XX` + `X|HA` + `CK)\b`, "finish it, or open an issue"},
	{`(?i)\bnot yet impl` + `emented\b|\bpanic\("unimpl` + `emented`, "finish it, or leave it out"},
	{`(^|[\s"'=(:])/(wo` + `rk|ho` + `me|Us` + `ers)/[a-z.]`, "a path of somebody's machine"},
	{`https?://(pro` + `xy|regi` + `stry|d` + `eb|mir` + `ror)[.:]`, "a host of somebody's network"},
}

func TestBannedText(t *testing.T) {
	var rules []*regexp.Regexp
	for _, b := range banned {
		rules = append(rules, regexp.MustCompile(b.pattern))
	}
	text := []string{".go", ".md", ".sh", ".hcl", ".proto", ".txt", ".yaml", ".service", ".example", ""}
	for _, f := range listFiles(t) {
		if !slices.Contains(text, path.Ext(f)) || f == "LICENSE" || strings.Contains(f, "testdata/fuzz/") {
			continue
		}
		n := 0
		for line := range strings.Lines(read(t, f)) {
			n++
			for i, re := range rules {
				if re.MatchString(line) {
					t.Errorf("%s:%d: %s: %s", f, n, strings.TrimSpace(line), banned[i].why)
				}
			}
		}
	}
}

// Large files in git stay there for ever.
func TestNoLargeFiles(t *testing.T) {
	const max = 1 << 20
	for _, f := range listFiles(t) {
		if st, err := os.Stat(filepath.Join(root, f)); err == nil && st.Size() > max {
			t.Errorf("%s has %d bytes, more than %d", f, st.Size(), max)
		}
	}
}
