package version

import (
	"strings"
	"testing"
)

func TestStringNamesVersionAndCommit(t *testing.T) {
	v, c := Version, Commit
	defer func() { Version, Commit = v, c }()
	Version, Commit = "v9.8.7", "abcdef"
	s := String()
	for _, want := range []string{"moraine v9.8.7", "commit abcdef", "linux/"} {
		if !strings.Contains(s, want) {
			t.Errorf("String() = %q, lacks %q", s, want)
		}
	}
	if strings.Contains(s, "\n") {
		t.Errorf("String() = %q is not one line", s)
	}
}

func TestNeverEmpty(t *testing.T) {
	if Version == "" || Commit == "" {
		t.Errorf("Version %q, Commit %q: neither may be empty", Version, Commit)
	}
}
