package vfs

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"path"
	"testing"
)

// suite is what every FS must do; dir is an empty directory on it.
func suite(t *testing.T, f FS, dir string) {
	t.Helper()
	name := path.Join(dir, "a")
	if _, err := f.Open(name, 0); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("open of nothing: %v", err)
	}
	h, err := f.Open(name, Create)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Open(name, Create|Exclusive); !errors.Is(err, fs.ErrExist) {
		t.Fatalf("exclusive open of a file that exists: %v", err)
	}
	want := bytes.Repeat([]byte{7}, 10000)
	if _, err := h.WriteAt(want, 5000); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 20000)
	n, err := h.ReadAt(got, 0)
	if n != 15000 || !errors.Is(err, io.EOF) {
		t.Fatalf("read %d, %v", n, err)
	}
	if !bytes.Equal(got[5000:15000], want) || !bytes.Equal(got[:5000], make([]byte, 5000)) {
		t.Fatal("wrong bytes")
	}
	if err := h.Punch(8192, 4096); err != nil && !errors.Is(err, ErrNoPunch) {
		t.Fatal(err)
	} else if err == nil {
		if _, err := h.ReadAt(got[:4096], 8192); err != nil || !bytes.Equal(got[:4096], make([]byte, 4096)) {
			t.Fatalf("punched range is not zero (%v)", err)
		}
	}
	if err := h.Allocate(0, 1<<20); err != nil {
		t.Fatal(err)
	}
	if size, err := h.Size(); err != nil || size != 15000 {
		t.Fatalf("size %d, %v", size, err)
	}
	if err := errors.Join(h.Truncate(100), h.Sync(), h.Close(), f.SyncDir(dir)); err != nil {
		t.Fatal(err)
	}
	if err := f.Rename(name, path.Join(dir, "b")); err != nil {
		t.Fatal(err)
	}
	if err := f.Mkdir(path.Join(dir, "d")); err != nil {
		t.Fatal(err)
	}
	if err := f.Mkdir(path.Join(dir, "d")); err != nil {
		t.Fatalf("mkdir again: %v", err)
	}
	if names, err := f.List(dir); err != nil || len(names) != 2 || names[0] != "b" || names[1] != "d" {
		t.Fatalf("list: %v, %v", names, err)
	}
	l, err := f.Lock(path.Join(dir, "b"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Lock(path.Join(dir, "b")); !errors.Is(err, ErrLocked) {
		t.Fatalf("second lock: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if m, err := f.Medium(dir); err != nil || m.Total <= 0 || m.Free <= 0 {
		t.Fatalf("medium %+v, %v", m, err)
	}
	if err := f.Remove(path.Join(dir, "b")); err != nil {
		t.Fatal(err)
	}
}

func TestOS(t *testing.T) { suite(t, OS{}, t.TempDir()) }

func TestMem(t *testing.T) {
	m := NewMem(0)
	if err := m.Mkdir("/d"); err != nil {
		t.Fatal(err)
	}
	suite(t, m, "/d")
}

// Goal: a power cut keeps what was synced and nothing is torn finer than a
// sector. Method: one synced pattern, one unsynced over it, many cuts.
func TestPowerCut(t *testing.T) {
	m := NewMem(0)
	_ = m.Mkdir("/d")
	h, err := m.Open("/d/f", Create)
	if err != nil {
		t.Fatal(err)
	}
	old, young := bytes.Repeat([]byte{1}, 8192), bytes.Repeat([]byte{2}, 8192)
	if _, err := h.WriteAt(old, 0); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(h.Sync(), m.SyncDir("/d")); err != nil {
		t.Fatal(err)
	}
	if _, err := h.WriteAt(young, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Open("/d/unsynced", Create); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for seed := range uint64(200) {
		c := m.PowerCut(rand.New(rand.NewPCG(seed, 0)))
		f, err := c.Open("/d/f", ReadOnly)
		if err != nil {
			t.Fatalf("seed %d: synced file is gone: %v", seed, err)
		}
		got := make([]byte, 8192)
		if _, err := f.ReadAt(got, 0); err != nil {
			t.Fatal(err)
		}
		news := 0
		for s := 0; s < 8192; s += 512 {
			sec := got[s : s+512]
			if !bytes.Equal(sec, old[:512]) && !bytes.Equal(sec, young[:512]) {
				t.Fatalf("seed %d: sector %d is torn", seed, s/512)
			}
			if sec[0] == 2 {
				news++
			}
		}
		switch {
		case news == 0:
			seen["none"] = true
		case news == 16:
			seen["all"] = true
		default:
			seen["some"] = true
		}
		if _, err := c.Open("/d/unsynced", 0); err == nil {
			seen["name kept"] = true
		} else {
			seen["name lost"] = true
		}
	}
	if len(seen) != 5 {
		t.Fatalf("outcomes seen: %v", seen)
	}
	k := m.Kill()
	f, err := k.Open("/d/f", 0)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 8192)
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, young) {
		t.Fatalf("a killed process lost a write (%v)", err)
	}
	if _, err := f.WriteAt(old, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := h.ReadAt(got, 0); err != nil || !bytes.Equal(got, young) {
		t.Fatal("a clone shares pages with its origin")
	}
}
