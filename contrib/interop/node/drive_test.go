//go:build integration

package node

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// fileWriter writes numbered files of noise into a mounted volume and knows
// which of them the file system has promised to keep.
type fileWriter struct {
	at    string
	seed  uint64
	size  int
	files map[string]uint64 // name -> seed, of those that were fsynced
	n     int
}

func newWriter(at string, seed uint64, size int) *fileWriter {
	return &fileWriter{at: at, seed: seed, size: size, files: map[string]uint64{}}
}

// write adds one file durably.
func (w *fileWriter) write() error {
	w.n++
	name, seed := fmt.Sprintf("f%05d", w.n), w.seed<<20+uint64(w.n)
	f, err := os.OpenFile(filepath.Join(w.at, name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(pattern(seed, w.size))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	d, err := os.Open(w.at)
	if err != nil {
		return err
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return err
	}
	w.files[name] = seed
	return nil
}

// verify compares every promised file; at is where the volume is mounted now.
func (w *fileWriter) verify(at string) error {
	for name, seed := range w.files {
		got, err := readUncached(filepath.Join(at, name))
		if err != nil {
			return err
		}
		if !bytes.Equal(got, pattern(seed, w.size)) {
			return fmt.Errorf("%s: its %d bytes are not those that were fsynced", name, len(got))
		}
	}
	return nil
}

// readUncached drops what the kernel keeps of the file, then reads it.
func readUncached(path string) (_ []byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	const fadvDontNeed = 4
	if _, _, e := syscall.Syscall6(syscall.SYS_FADVISE64, f.Fd(), 0, 0, fadvDontNeed, 0, 0); e != 0 {
		return nil, e
	}
	return io.ReadAll(f)
}

// mounted creates and mounts a volume of a pool and returns its path.
func (a *agent) mounted(name, pool, size string) string {
	a.t.Helper()
	a.must("volume", "create", name, "--pool", pool, "--size", size)
	return a.must("volume", "mount", name)
}

func (a *agent) used(pool string) int64 {
	a.t.Helper()
	n, err := strconv.ParseInt(a.drive(pool).UsedBytes, 10, 64)
	if err != nil {
		a.t.Fatal(err)
	}
	return n
}

// Goal: a drive that is full says so to who writes, harms nothing that was
// written, lets everything else work, and takes writes again once there is space.
func TestDriveFull(t *testing.T) {
	for _, fs := range []string{"ext4", "xfs"} {
		t.Run(fs, func(t *testing.T) {
			t.Parallel()
			dir := newDir(t)
			m := newMedium(t, dir, "small", fs, 400*mib)
			a := newAgent(t, dir, [2]string{"small", m.at}, [2]string{"other", "d1"})
			w0 := newWriter(a.mounted("filler", "small", "128MiB"), 1, mib)
			for range 90 {
				if err := w0.write(); err != nil {
					t.Fatal(err)
				}
			}
			// A thin volume far larger than what is left.
			at := a.mounted("big", "small", "2GiB")
			w := newWriter(at, 2, 4*mib)
			var full error
			for range 400 {
				if full = inTime(t, "write", w.write); full != nil {
					break
				}
			}
			if full == nil {
				t.Fatalf("%d MiB were written to a drive of 400", 4*len(w.files))
			}
			if !errors.Is(full, syscall.ENOSPC) && !errors.Is(full, syscall.EIO) && !errors.Is(full, syscall.EROFS) {
				t.Errorf("the writer of a full drive got %v", full)
			}
			t.Logf("%d files of 4 MiB, then %v", len(w.files), full)
			if len(w.files) == 0 {
				t.Fatal("nothing could be written")
			}
			a.alive()
			d := a.driveBecomes("small", "full")
			if d.reason() == "" {
				t.Errorf("a full drive without a reason: %+v", d)
			}
			if out := a.must("status"); !strings.Contains(out, "are free") {
				t.Errorf("status does not say that a drive is full:\n%s", out)
			}
			a.refused(exitNoSpace, "", "volume", "create", "more", "--pool", "small", "--size", "1GiB")
			// The neighbour, and the other volume of the drive where it needs no
			// new space, are unaffected.
			ow := newWriter(a.mounted("o", "other", "64MiB"), 3, mib)
			if err := inTime(t, "write", ow.write); err != nil {
				t.Errorf("another drive: %v", err)
			}
			if err := inTime(t, "verify", func() error { return w0.verify(w0.at) }); err != nil {
				t.Errorf("another volume of the drive: %v", err)
			}
			a.must("volume", "unmount", "o")

			// Space comes back with a delete, and writing goes on.
			before := a.used("small")
			a.must("volume", "unmount", "filler")
			a.must("volume", "delete", "filler")
			eventually(t, "space back", func() error {
				if now := a.used("small"); now > before-80*mib {
					return fmt.Errorf("%d used, %d before", now, before)
				}
				return nil
			})
			a.driveBecomes("small", "ready")
			// The file system may have stopped at the error: it is mounted anew.
			a.must("volume", "unmount", "big")
			w.at = a.must("volume", "mount", "big")
			if err := inTime(t, "verify", func() error { return w.verify(w.at) }); err != nil {
				t.Fatalf("what was fsynced before the drive was full: %v", err)
			}
			for range 4 {
				if err := inTime(t, "write", w.write); err != nil {
					t.Fatalf("write after space came back: %v", err)
				}
			}
			a.must("volume", "unmount", "big")
			w.at = a.must("volume", "mount", "big")
			if err := inTime(t, "verify", func() error { return w.verify(w.at) }); err != nil {
				t.Fatal(err)
			}
			a.must("volume", "unmount", "big")
			a.nothingLeft("small")
			a.stop()
			if out, err := a.try("drive", "check", "--data", m.at); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// Goal: a drive whose medium returns errors fails alone: its volumes get EIO, the
// agent says which drive and why, the other drive works on, and once the medium
// is repaired and the volume detached the drive is used again with what was durable.
func TestDriveEIO(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	m := newMedium(t, dir, "bad", "xfs", 400*mib)
	a := newAgent(t, dir, [2]string{"bad", m.at}, [2]string{"good", "d1"})
	w := newWriter(a.mounted("v", "bad", "256MiB"), 1, mib)
	good := newWriter(a.mounted("g", "good", "128MiB"), 2, mib)
	for range 20 {
		if err := w.write(); err != nil {
			t.Fatal(err)
		}
	}
	// The medium shrinks to a stub: what lies behind it is EIO. A copy keeps it.
	keep := filepath.Join(dir, "keep.img")
	must(t, "fsfreeze", "--freeze", m.at)
	must(t, "cp", "--sparse=always", m.file, keep)
	must(t, "fsfreeze", "--unfreeze", m.at)
	if err := os.Truncate(m.file, 64<<10); err != nil {
		t.Fatal(err)
	}
	must(t, "losetup", "-c", m.loop)
	var failed error
	for range 200 {
		if failed = inTime(t, "write", w.write); failed != nil {
			break
		}
	}
	if failed == nil {
		t.Fatal("writes to a dead medium succeed")
	}
	since := time.Now()
	t.Logf("the writer got: %v", failed)
	a.alive()
	d := a.driveBecomes("bad", "failed", "gone")
	t.Logf("the drive is %s after %v", d.State, time.Since(since).Round(10*time.Millisecond))
	if !strings.Contains(d.reason(), "input/output error") {
		t.Errorf("a failed drive without its reason: %+v", d)
	}
	if out := a.must("status"); !strings.Contains(out, "input/output error") {
		t.Errorf("status does not tell of the failed drive:\n%s", out)
	}
	if err := inTime(t, "write", good.write); err != nil {
		t.Errorf("another drive: %v", err)
	}
	a.must("volume", "create", "g2", "--pool", "good", "--size", "32MiB")

	// Repaired: the medium is as it was when it failed.
	r, err := a.cli("volume", "detach", "v", "--force")
	if err != nil {
		t.Fatalf("detach: %v", err)
	}
	t.Log(r.stdout, r.stderr)
	repair(t, a, m, keep)
	a.driveBecomes("bad", "ready")
	w.at = a.must("volume", "mount", "v")
	if err := inTime(t, "verify", func() error { return w.verify(w.at) }); err != nil {
		t.Errorf("after the repair: %v", err)
	}
	if err := inTime(t, "write", w.write); err != nil {
		t.Errorf("after the repair: %v", err)
	}
	if err := good.verify(good.at); err != nil {
		t.Error(err)
	}
	a.must("volume", "unmount", "v")
	a.must("volume", "unmount", "g")
	a.nothingLeft("bad")
}

// repair puts the content of a file under the medium again.
func repair(t *testing.T, a *agent, m *medium, keep string) {
	t.Helper()
	// The agent lets go of a failed drive that no volume uses.
	eventually(t, "unmount the bad medium", func() error { _, err := try("umount", m.at); return err })
	must(t, "cp", "--sparse=always", keep, m.file)
	must(t, "losetup", "-c", m.loop)
	must(t, "mount", m.loop, m.at)
	a.alive()
}
