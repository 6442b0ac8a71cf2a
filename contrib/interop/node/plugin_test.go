//go:build integration

package node

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// Goal: a backend's process that dies again and again, or hangs, is nothing to a
// volume that is attached (rule 8); it is started again, and events say so.
func TestPluginKilled(t *testing.T) {
	t.Parallel()
	a := newAgent(t, newDir(t), [2]string{"p", "d1"})
	w := newWriter(a.mounted("v", "p", "128MiB"), 1, 64<<10)
	last := 0
	for round := range 3 {
		var pid int
		eventually(t, "the plugin runs", func() error {
			for _, p := range a.plugins() {
				if pid = p.PID; p.State == "running" && pid > 0 && pid != last {
					return nil
				}
			}
			return fmt.Errorf("%+v", a.plugins())
		})
		last = pid
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		for range 5 {
			if err := inTime(t, "write", w.write); err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
		}
		a.alive()
	}
	eventually(t, "three restarts", func() error {
		for _, p := range a.plugins() {
			if p.State == "running" && p.Restarts >= 3 {
				last = p.PID
				return nil
			}
		}
		return fmt.Errorf("%+v", a.plugins())
	})
	down := 0
	for _, typ := range a.eventTypes() {
		if typ == "plugin.down" {
			down++
		}
	}
	if down < 3 {
		t.Errorf("%d events tell of 3 deaths: %v", down, a.eventTypes())
	}

	// A plugin that does not answer: volumes work, also new ones on open drives.
	if err := syscall.Kill(last, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Kill(last, syscall.SIGCONT) }()
	for range 5 {
		if err := inTime(t, "write", w.write); err != nil {
			t.Fatal(err)
		}
	}
	a.must("snapshot", "create", "v@s")
	at := a.mounted("w", "p", "64MiB")
	if _, err := os.Stat(at); err != nil {
		t.Error(err)
	}
	a.must("volume", "unmount", "w")
	if d := a.drive("p"); d.State != "ready" {
		t.Errorf("a drive is not ready because its plugin hangs: %+v", d)
	}
	a.must("volume", "unmount", "v")
	at = a.must("volume", "mount", "v")
	if err := w.verify(at); err != nil {
		t.Error(err)
	}
	a.must("volume", "unmount", "v")
}

// Goal: external executables that are no plugins, or bad ones, are named with a
// reason and harm nobody; the example backend is loaded beside the built-in one.
func TestExternalPlugins(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	plugins := filepath.Join(dir, "plugins")
	if err := os.MkdirAll(plugins, 0o755); err != nil {
		t.Fatal(err)
	}
	script := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(plugins, "moraine-backend-"+name), []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	script("dies", "echo no licence >&2; exit 3")
	script("babbles", "echo '9|99|tcp|example|nonsense'; sleep 60")
	a := prepare(t, dir, [2]string{"p", "d1"})
	for _, name := range []string{"dies", "babbles"} {
		a.configure([2]string{"p", "d1"})
		a.addConfig(fmt.Sprintf("backend %q {\n  pool = \"x\"\n  config {}\n}\n", name))
		// The agent starts without it, and says so.
		a.start()
		if types := a.eventTypes(); !slices.Contains(types, "backend.failed") {
			t.Errorf("%s: events %v", name, types)
		}
		if log := a.log(); !strings.Contains(log, "backend "+name) || strings.Contains(log, "goroutine ") {
			t.Errorf("%s: the agent said: %s", name, log)
		}
		if d := a.drive("p"); d.State != "ready" {
			t.Errorf("%s: the other backend: %+v", name, d)
		}
		a.stop()
	}
	if err := build(filepath.Join(plugins, "moraine-backend-ramdisk"), "../../examples/backend-ramdisk"); err != nil {
		t.Fatal(err)
	}
	a.configure([2]string{"p", "d1"})
	a.addConfig(fmt.Sprintf("backend \"ramdisk\" {\n  pool = \"ram\"\n  config {\n    path = %q\n  }\n}\n", filepath.Join(dir, "ram")))
	a.start()
	out := a.must("plugin", "list", "-o", "json")
	if !strings.Contains(out, "ramdisk") {
		t.Errorf("plugins: %s", out)
	}
	if d := a.drive("p"); d.State != "ready" {
		t.Errorf("the built-in backend: %+v", d)
	}
}
