package offline

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moraine-storage/moraine/agent/cli"
	"github.com/moraine-storage/moraine/drivers/aio"
	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/store"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

const volumeBytes = 4 << 20

// written is a drive with one replica: extent 1 has 'a', and 'b' since the
// snapshot.
type written struct {
	dir           string
	replica, snap store.ID
	store         *store.Store
}

func write(t *testing.T) *written {
	t.Helper()
	w := &written{dir: t.TempDir(), replica: store.NewID(), snap: store.NewID()}
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	sub := filepath.Join(w.dir, "store")
	ok(store.Format(sub, store.FormatOptions{ClusterID: store.NewID(), DriveID: store.NewID(), SizeLimit: 1 << 30}))
	s, err := store.Open(sub, store.Options{OpenCounter: 1})
	ok(err)
	t.Cleanup(func() { _ = s.Close() })
	w.store = s
	r, err := s.CreateReplica(store.ReplicaSpec{ID: w.replica, VolumeID: store.NewID(), Size: volumeBytes, Untracked: true})
	ok(err)
	session := store.SessionID{1}
	_, err = r.Promote(context.Background(), store.Promise{Promised: store.Promised{Epoch: store.Epoch{N: 1, Tag: 7}, Session: session}})
	ok(err)
	dev, err := block.NewSync(func() (aio.Engine, error) { return aio.New(aio.Inline) },
		func(e aio.Engine) (block.Queue, error) { return r.OpenQueue(e, session) })
	ok(err)
	ctx := context.Background()
	ok(dev.WriteAt(ctx, bytes.Repeat([]byte("a"), store.ExtentSize), store.ExtentSize, 0))
	ok(dev.Do(ctx, func(block.Queue) { err = r.Freeze(w.snap) }))
	ok(err)
	ok(dev.WriteAt(ctx, bytes.Repeat([]byte("b"), store.ExtentSize), store.ExtentSize, 0))
	ok(dev.Flush(ctx))
	ok(dev.Close())
	return w
}

func noProgress(int64, int64) {}

// The whole way through the command line: list, check, export of the newest
// state and of the snapshot, as a person would after the agent is gone.
func TestCommands(t *testing.T) {
	w := write(t)
	run := func(args ...string) (int, string) {
		var out bytes.Buffer
		code := cli.Run(context.Background(), args, cli.Deps{Stdout: &out, Stderr: &out, Drives: Drives{}})
		return code, out.String()
	}
	if code, out := run("drive", "check", w.dir); code != 4 {
		t.Errorf("check of a drive in use: %d %s", code, out)
	}
	if err := w.store.Close(); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{w.dir, filepath.Join(w.dir, "store")} {
		if code, out := run("drive", "check", dir, "--data"); code != 0 || !strings.Contains(out, "sound") {
			t.Errorf("check: %d %s", code, out)
		}
	}
	if code, out := run("replica", "list", w.dir); code != 0 || !strings.Contains(out, w.replica.String()) || !strings.Contains(out, w.snap.String()) {
		t.Errorf("list: %d %s", code, out)
	}
	before := tree(t, w.dir)
	for content, args := range map[string][]string{
		"b": {"replica", "export", w.dir, "--to"},
		"a": {"replica", "export", w.dir, w.replica.String(), "--snapshot", w.snap.String()[:8], "--to"},
	} {
		img := filepath.Join(t.TempDir(), "image")
		if code, out := run(append(args, img)...); code != 0 {
			t.Fatalf("export: %d %s", code, out)
		}
		got, err := os.ReadFile(img)
		want := make([]byte, volumeBytes)
		copy(want[store.ExtentSize:], bytes.Repeat([]byte(content), store.ExtentSize))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("the image of %s is wrong: %d bytes, %v", content, len(got), err)
		}
		if code, out := run(append(args, img)...); code != 5 {
			t.Errorf("export over a file: %d %s", code, out)
		}
		if again, err := os.ReadFile(img); err != nil || !bytes.Equal(again, got) {
			t.Errorf("the file that was there: %v", err)
		}
		if names, err := os.ReadDir(filepath.Dir(img)); err != nil || len(names) != 1 {
			t.Errorf("left behind: %v %v", names, err)
		}
	}
	if after := tree(t, w.dir); after != before {
		t.Errorf("the drive was changed:\n%s\n%s", before, after)
	}
}

// tree is the names, sizes and times of all files.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		i, err := d.Info()
		if err != nil {
			return err
		}
		b.WriteString(path + " " + i.ModTime().String() + "\n")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestNoStore(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]error{
		t.TempDir():                     errdefs.ErrNotFound,
		filepath.Join(t.TempDir(), "x"): fs.ErrNotExist,
		file:                            errdefs.ErrInvalidArgument,
	} {
		_, err := Drives{}.Check(context.Background(), dir, false, noProgress)
		_, rerr := Drives{}.Replicas(context.Background(), dir)
		xerr := Drives{}.Export(context.Background(), cli.ExportOptions{Dir: dir, Replica: store.NewID().String(), To: file + ".img"}, noProgress)
		for what, err := range map[string]error{"check": err, "list": rerr, "export": xerr} {
			if !errors.Is(err, want) || !strings.Contains(err.Error(), dir) {
				t.Errorf("%s of %s: %v, want %v", what, dir, err, want)
			}
		}
	}
}

// A damaged store is reported as such: in the report if the metadata as a
// whole is readable or not, with exit code 10.
func TestDamage(t *testing.T) {
	w := write(t)
	if err := w.store.Close(); err != nil {
		t.Fatal(err)
	}
	super := filepath.Join(w.dir, "store", "superblock")
	b, err := os.ReadFile(super)
	if err != nil {
		t.Fatal(err)
	}
	for i := range b {
		b[i] ^= 0x55
	}
	if err := os.WriteFile(super, b, 0o600); err != nil {
		t.Fatal(err)
	}
	rep, err := Drives{}.Check(context.Background(), w.dir, false, noProgress)
	if err != nil || len(rep.Problems) == 0 {
		t.Errorf("check: %+v %v", rep, err)
	}
	var out bytes.Buffer
	if code := cli.Run(context.Background(), []string{"drive", "check", w.dir}, cli.Deps{Stdout: &out, Stderr: &out, Drives: Drives{}}); code != 10 {
		t.Errorf("exit code %d: %s", code, out.String())
	}
	img := filepath.Join(t.TempDir(), "image")
	if err := (Drives{}).Export(context.Background(), cli.ExportOptions{Dir: w.dir, Replica: w.replica.String(), To: img}, noProgress); err == nil {
		t.Error("export of a damaged store succeeded")
	}
	if names, err := os.ReadDir(filepath.Dir(img)); err != nil || len(names) != 0 {
		t.Errorf("left behind: %v %v", names, err)
	}
}

func TestInterruptedExportLeavesNothing(t *testing.T) {
	w := write(t)
	if err := w.store.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	img := filepath.Join(t.TempDir(), "image")
	err := Drives{}.Export(ctx, cli.ExportOptions{Dir: w.dir, Replica: w.replica.String(), To: img}, func(int64, int64) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	if names, err := os.ReadDir(filepath.Dir(img)); err != nil || len(names) != 0 {
		t.Errorf("left behind: %v %v", names, err)
	}
}
