package local_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/moraine-storage/moraine/backends"
	"github.com/moraine-storage/moraine/backends/backendtest"
	"github.com/moraine-storage/moraine/backends/local"
	"github.com/moraine-storage/moraine/plugins/errdefs"
	"github.com/moraine-storage/moraine/plugins/plugintest"
	"github.com/moraine-storage/moraine/plugins/sdk"
)

// TestMain is also the plugin for TestChild.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "serve-local" {
		sdk.Serve(local.New("test"))
		os.Exit(0)
	}
	plugintest.VerifyMain(m)
}

// dirs makes n empty directories and returns their parent.
func dirs(t *testing.T, n int) string {
	t.Helper()
	root := t.TempDir()
	for i := range n {
		if err := os.Mkdir(filepath.Join(root, fmt.Sprintf("d%d", i)), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func dirFixture(t *testing.T) backendtest.Fixture {
	return backendtest.Fixture{
		Backend: local.New("test"),
		Restart: func(*testing.T) backends.Backend { return local.New("test") },
		Options: map[string]any{"paths": []string{filepath.Join(dirs(t, 4), "d*")}},
		BadOptions: []map[string]any{
			{}, {"paths": []string{}}, {"paths": []string{"relative/SECRET"}}, {"paths": []string{"/a["}}, {"paths": "SECRET"},
			{"paths": []string{"/x"}, "size": "SECRET"}, {"paths": []string{"/x"}, "size": 1},
			{"paths": []string{"/x"}, "force_format": []string{"/SECRET"}},
			{"paths": []string{"/x*"}, "force_format": []string{"/x*"}},
			{"paths": []string{"/x"}, "sise": "SECRET"},
		},
		Size:    128 << 20,
		OneNode: true,
	}
}

func TestDirectories(t *testing.T)         { backendtest.Run(t, dirFixture) }
func TestDirectoriesOverGRPC(t *testing.T) { plugintest.InProcess(t, dirFixture) }
func TestDirectoriesInChild(t *testing.T) {
	plugintest.Child(t, local.Name, plugintest.Self("serve-local"), dirFixture)
}

// configured returns a backend in use.
func configured(t *testing.T, runDir string, options map[string]any) *local.Backend {
	t.Helper()
	b := local.New("test")
	if err := b.Configure(t.Context(), backends.Config{Instance: "t", Node: "node-a", RunDir: runDir, Options: options}); err != nil {
		t.Fatal(err)
	}
	return b
}

func newID() backends.DriveID { return backends.DriveID(uuid.NewString()) }

// only returns what Discover says of one source.
func only(t *testing.T, b backends.Backend, source string) backends.Drive {
	t.Helper()
	all, err := b.Discover(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range all {
		if d.Source == source {
			return d
		}
	}
	t.Fatalf("%s is not in %+v", source, all)
	return backends.Drive{}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestForeignDirectories: what is not empty is refused with a reason, whatever
// force_format says, and stays as it is.
func TestForeignDirectories(t *testing.T) {
	root := dirs(t, 6)
	path := func(n int) string { return filepath.Join(root, fmt.Sprintf("d%d", n)) }
	write(t, filepath.Join(path(0), "photo.jpg"), "x")
	if err := os.MkdirAll(filepath.Join(path(1), "lost+found"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(path(2), "lost+found", "#123"), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(path(3), ".moraine-drive"), "garbage")
	write(t, filepath.Join(path(4), ".moraine-drive.tmp-123"), "cut off")
	write(t, filepath.Join(root, "file"), "too small a file")
	b := configured(t, t.TempDir(), map[string]any{
		"paths":        []string{root + "/d*", root + "/absent", root + "/file", "/dev/null"},
		"force_format": []string{path(0)},
	})
	for source, want := range map[string]string{
		path(0): "not empty", path(1): "", path(2): "lost+found", path(3): "damaged", path(4): "", path(5): "",
		root + "/absent": "no such file", root + "/file": "too small", "/dev/null": "neither a directory",
	} {
		if source == path(3) {
			want = "identity file"
		}
		d := only(t, b, source)
		if want == "" {
			if d.State != backends.StateBlank || d.Size < backends.MinDriveSize {
				t.Errorf("%s: %+v, want blank", source, d)
			}
			continue
		}
		if d.State != backends.StateRefused || !strings.Contains(d.Reason, want) {
			t.Errorf("%s: %+v, want refused, %q", source, d, want)
		}
		if _, err := b.Create(t.Context(), backends.CreateRequest{ID: newID(), Source: source}); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("create on %s: %v", source, err)
		}
	}
	if p, err := os.ReadFile(filepath.Join(path(0), "photo.jpg")); err != nil || string(p) != "x" {
		t.Errorf("foreign file: %q, %v", p, err)
	}
	// The interrupted making is taken up, and its leftover is gone.
	if _, err := b.Create(t.Context(), backends.CreateRequest{ID: newID(), Source: path(4)}); err != nil {
		t.Error(err)
	}
	if left, _ := filepath.Glob(path(4) + "/.moraine-drive.tmp-*"); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
}

// TestRenameSurvives: identity is on the medium: the directory moves, the drive
// stays the same, with its data.
func TestRenameSurvives(t *testing.T) {
	root, run := dirs(t, 1), t.TempDir()
	options := map[string]any{"paths": []string{root + "/*"}}
	b := configured(t, run, options)
	d, err := b.Create(t.Context(), backends.CreateRequest{ID: newID()})
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(d.Source, "superblock"), "mine")
	moved := filepath.Join(root, "elsewhere")
	if err := os.Rename(d.Source, moved); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string]*local.Backend{"running": b, "restarted": configured(t, run, options)} {
		got, err := b.Get(t.Context(), d.ID)
		if err != nil || got.Source != moved || got.State != backends.StateReady || got.Size != d.Size {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		a, err := b.Attach(t.Context(), d.ID, "node-a")
		if err != nil || a.Path != moved {
			t.Errorf("%s: %+v, %v", name, a, err)
		}
	}
}

// TestCopies: two media with one identity are both refused, naming both; the one that
// is attached already goes on.
func TestCopies(t *testing.T) {
	root, run := dirs(t, 2), t.TempDir()
	first, second := root+"/d0", root+"/d1"
	options := map[string]any{"paths": []string{first, second, root + "/./d0", root + "/alias"}}
	b := configured(t, run, options)
	if err := os.Symlink(first, root+"/alias"); err != nil { // another name is no copy
		t.Fatal(err)
	}
	id := newID()
	if _, err := b.Create(t.Context(), backends.CreateRequest{ID: id, Source: first}); err != nil {
		t.Fatal(err)
	}
	if d := only(t, b, first); d.State != backends.StateReady {
		t.Fatalf("with an alias: %+v", d)
	}
	p, err := os.ReadFile(first + "/.moraine-drive")
	if err != nil {
		t.Fatal(err)
	}
	write(t, second+"/.moraine-drive", string(p))
	for _, source := range []string{first, second} {
		d := only(t, b, source)
		if d.State != backends.StateRefused || !strings.Contains(d.Reason, first) || !strings.Contains(d.Reason, second) {
			t.Errorf("%+v", d)
		}
	}
	if _, err := b.Attach(t.Context(), id, "node-a"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("attach of a copy: %v", err)
	}
	if err := b.Delete(t.Context(), id); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("delete of a copy: %v", err)
	}
	if page, err := b.List(t.Context(), backends.Page{}); err != nil || len(page.Drives) != 1 {
		t.Errorf("list: %+v, %v", page, err)
	}
	if err := os.Remove(second + "/.moraine-drive"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Attach(t.Context(), id, "node-a"); err != nil {
		t.Fatal(err)
	}
	write(t, second+"/.moraine-drive", string(p))
	b = configured(t, run, options) // also after a restart
	if d := only(t, b, first); d.State != backends.StateReady || d.Node != "node-a" {
		t.Errorf("the attached one: %+v", d)
	}
	if d := only(t, b, second); d.State != backends.StateRefused {
		t.Errorf("the copy: %+v", d)
	}
	if a, err := b.Attach(t.Context(), id, "node-a"); err != nil || a.Path != first {
		t.Errorf("attach again: %+v, %v", a, err)
	}
}

// TestGone: a drive that disappears is gone, not unknown; it comes back.
func TestGone(t *testing.T) {
	root, run := dirs(t, 1), t.TempDir()
	options := map[string]any{"paths": []string{root + "/d0"}}
	b := configured(t, run, options)
	id := newID()
	if _, err := b.Create(t.Context(), backends.CreateRequest{ID: id}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Attach(t.Context(), id, "node-a"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(root+"/d0", root+"/away"); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string]*local.Backend{"running": b, "restarted": configured(t, run, options)} {
		if h, err := b.Health(t.Context(), id); err != nil || h.State != backends.StateGone || h.Reason == "" {
			t.Errorf("%s: health %+v, %v", name, h, err)
		}
		if _, err := b.Attach(t.Context(), id, "node-a"); !errdefs.IsUnavailable(err) {
			t.Errorf("%s: attach: %v", name, err)
		}
		if err := b.Delete(t.Context(), id); err == nil {
			t.Errorf("%s: delete of a drive that is away", name)
		}
	}
	// An empty directory under the old name (a file system that is not
	// mounted) is a blank candidate, never the drive.
	if err := os.Mkdir(root+"/d0", 0o755); err != nil {
		t.Fatal(err)
	}
	all, err := b.Discover(t.Context())
	if err != nil || len(all) != 2 || all[0].State != backends.StateGone || all[1].State != backends.StateBlank || all[1].ID != "" {
		t.Errorf("%+v, %v", all, err)
	}
	if err := os.Remove(root + "/d0"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(root+"/away", root+"/d0"); err != nil {
		t.Fatal(err)
	}
	if h, err := b.Health(t.Context(), id); err != nil || h.State != backends.StateReady {
		t.Errorf("back: %+v, %v", h, err)
	}
}

// TestDamagedIdentity: a flipped bit makes the drive refused, not blank, and
// health of one that is attached says so.
func TestDamagedIdentity(t *testing.T) {
	root := dirs(t, 1)
	b := configured(t, t.TempDir(), map[string]any{"paths": []string{root + "/d0"}})
	id := newID()
	if _, err := b.Create(t.Context(), backends.CreateRequest{ID: id}); err != nil {
		t.Fatal(err)
	}
	name := root + "/d0/.moraine-drive"
	p, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for i := range p {
		bad := append([]byte(nil), p...)
		bad[i] ^= 4
		write(t, name, string(bad))
		all, err := b.Discover(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range all {
			if d.Source == root+"/d0" && d.State != backends.StateRefused && d.State != backends.StateGone {
				t.Fatalf("bit flip in byte %d: %+v", i, d)
			}
		}
	}
	write(t, name, "MORAINE-DRIVE 2 5 00000000\nabcde")
	all, err := b.Discover(t.Context())
	if err != nil || !strings.Contains(fmt.Sprint(all), "newer version") {
		t.Errorf("newer format: %+v, %v", all, err)
	}
	write(t, name, string(p))
	if d := only(t, b, root+"/d0"); d.ID != id || d.State != backends.StateReady {
		t.Errorf("repaired: %+v", d)
	}
}

// TestSizes: the size of a drive is what was free, less the reserve, within the
// configured size, and does not change by itself.
func TestSizes(t *testing.T) {
	root, run := dirs(t, 2), t.TempDir()
	paths := []string{root + "/d0", root + "/d1"}
	b := configured(t, run, map[string]any{"paths": paths, "size": "256MiB"})
	d, err := b.Create(t.Context(), backends.CreateRequest{ID: newID(), Source: paths[0]})
	if err != nil || d.Size != 256<<20 {
		t.Fatalf("%+v, %v", d, err)
	}
	if _, err := b.Create(t.Context(), backends.CreateRequest{ID: newID(), Size: 512 << 20}); err == nil {
		t.Error("a drive above the configured size")
	}
	if _, err := b.Expand(t.Context(), d.ID, 300<<20); err == nil {
		t.Error("expand above the configured size")
	}
	b = configured(t, run, map[string]any{"paths": paths, "size": "512MiB"})
	got, err := b.Get(t.Context(), d.ID)
	if err != nil || got.Size != 256<<20 || got.MaxSize != 512<<20 {
		t.Errorf("after the limit was raised: %+v, %v", got, err)
	}
	if got, err = b.Expand(t.Context(), d.ID, 300<<20); err != nil || got.Size != 300<<20 {
		t.Errorf("expand: %+v, %v", got, err)
	}
	b = configured(t, run, map[string]any{"paths": paths, "reserve": "1EiB"})
	if d := only(t, b, paths[1]); d.State != backends.StateRefused || !strings.Contains(d.Reason, "too small") {
		t.Errorf("all reserved: %+v", d)
	}
}

// TestRunDirRefused: a pattern that reaches into the run directory offers
// nothing there.
func TestRunDirRefused(t *testing.T) {
	root := dirs(t, 1)
	run := filepath.Join(root, "d0")
	b := configured(t, run, map[string]any{"paths": []string{root + "/*"}})
	if d := only(t, b, run); d.State != backends.StateRefused {
		t.Errorf("%+v", d)
	}
}

// TestDeleteKeepsNeighbours: what a symbolic link in a drive points to is not
// deleted with it.
func TestDeleteKeepsNeighbours(t *testing.T) {
	root := dirs(t, 1)
	b := configured(t, t.TempDir(), map[string]any{"paths": []string{root + "/d0"}})
	id := newID()
	if _, err := b.Create(t.Context(), backends.CreateRequest{ID: id}); err != nil {
		t.Fatal(err)
	}
	write(t, root+"/precious", "x")
	if err := os.Symlink(root, root+"/d0/link"); err != nil {
		t.Fatal(err)
	}
	if err := b.Delete(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(root + "/precious"); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(root + "/d0"); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
