package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/moraine-storage/moraine/backends"
	"github.com/moraine-storage/moraine/backends/backendtest"
	"github.com/moraine-storage/moraine/plugins/host"
	"github.com/moraine-storage/moraine/plugins/plugintest"
)

// TestMain is also the plugin itself: this test binary, started with "serve".
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		main()
		os.Exit(0)
	}
	plugintest.VerifyMain(m)
}

func fixture(t *testing.T) backendtest.Fixture {
	return backendtest.Fixture{
		Backend:    &ramdisk{},
		Restart:    func(*testing.T) backends.Backend { return &ramdisk{} },
		Options:    map[string]any{"path": filepath.Join(t.TempDir(), "drives"), "limit": "10GiB"},
		BadOptions: []map[string]any{{}, {"path": "SECRET"}, {"path": "/dev/null/SECRET"}, {"path": "/tmp", "limit": "SECRET"}},
		Size:       1 << 30,
	}
}

// The suite: directly, over gRPC, over a process.
func TestDirect(t *testing.T)    { backendtest.Run(t, fixture) }
func TestInProcess(t *testing.T) { plugintest.InProcess(t, fixture) }
func TestChild(t *testing.T)     { plugintest.Child(t, "ramdisk", plugintest.Self("serve"), fixture) }

// TestPluginDir builds the program and lets the agent's plugin host find, load
// and use it, as a user would.
func TestPluginDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "plugins")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-o", filepath.Join(dir, host.Prefix+"ramdisk"), ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
	h, err := host.New(host.Options{RunDir: filepath.Join(t.TempDir(), "run"), PluginDir: dir, Node: "node-a", Logger: plugintest.Logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	}()
	if l := h.List(); len(l) != 1 || l[0].Plugin != "ramdisk" || l[0].State != host.Available {
		t.Errorf("list: %+v", l)
	}
	i, err := h.Add(t.Context(), host.Spec{Instance: "ram", Plugin: "ramdisk", Options: map[string]any{"path": t.TempDir()}})
	if err != nil {
		t.Fatal(err)
	}
	d, err := i.Create(t.Context(), backends.CreateRequest{ID: "6ba7b810-9dad-11d1-80b4-00c04fd430c8", Size: backends.MinDriveSize})
	if err != nil {
		t.Fatal(err)
	}
	if a, err := i.Attach(t.Context(), d.ID, "node-a"); err != nil || a.Kind != backends.KindDir {
		t.Errorf("attach: %+v, %v", a, err)
	}
}
