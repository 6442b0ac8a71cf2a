package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moraine-storage/moraine/plugins/errdefs"
)

func TestCheckConfigReportsEveryMistakeWithItsLine(t *testing.T) {
	good, bad := filepath.Join(t.TempDir(), "good.hcl"), filepath.Join(t.TempDir(), "bad.hcl")
	for path, text := range map[string]string{good: "name = \"node-a\"\n", bad: "nmae = \"node-a\"\n\ndata_dri = \"/x\"\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if r, err := checkConfig([]string{good}); err != nil || len(r.Errors) != 0 {
		t.Errorf("a valid configuration: %+v %v", r, err)
	}
	r, err := checkConfig([]string{bad})
	if err != nil || len(r.Errors) != 2 || !strings.Contains(r.Errors[0], bad+":1:") || !strings.Contains(r.Errors[1], bad+":3:") {
		t.Errorf("two mistakes: %+v %v", r, err)
	}
}

func TestUnknownPlugin(t *testing.T) {
	if err := servePlugin(t.Context(), "nosuch"); !errdefs.IsNotFound(err) {
		t.Errorf("serve of an unknown plugin: %v", err)
	}
}
