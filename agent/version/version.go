// Package version tells which build of Moraine this is. The linker sets the
// variables (-ldflags "-X .../agent/version.Version=v1.2.3"); a build without
// them takes what the Go tool recorded about the checkout.
package version

import (
	"runtime"
	"runtime/debug"
	"strings"
)

// Set by the linker. Version is a tag such as v0.2.0, Commit a git commit.
var (
	Version = ""
	Commit  = ""
)

func init() {
	if Version == "" {
		Version = "devel"
	}
	if Commit == "" {
		Commit = recordedCommit()
	}
}

// recordedCommit is the commit that the Go tool wrote into the binary, with
// "-dirty" if files had changed; "unknown" if there is none.
func recordedCommit() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	rev, dirty := "unknown", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			rev = s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "-dirty"
		}
	}
	if rev == "unknown" {
		return rev
	}
	return rev + dirty
}

// String is the one line of `moraine version`.
func String() string {
	var b strings.Builder
	b.WriteString("moraine ")
	b.WriteString(Version)
	b.WriteString(" (commit ")
	b.WriteString(Commit)
	b.WriteString(", ")
	b.WriteString(runtime.Version())
	b.WriteString(", ")
	b.WriteString(runtime.GOOS + "/" + runtime.GOARCH)
	b.WriteString(")")
	return b.String()
}
