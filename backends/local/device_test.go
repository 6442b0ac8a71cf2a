//go:build integration

package local_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/backends"
	"github.com/moraine-storage/moraine/backends/backendtest"
	"github.com/moraine-storage/moraine/backends/local"
	"github.com/moraine-storage/moraine/plugins/errdefs"
	"github.com/moraine-storage/moraine/plugins/plugintest"
)

// needs fails the test, rather than skip it, when something is missing: make
// test installs what these tests use.
func needs(t *testing.T, programs ...string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("these tests need root: they mount file systems")
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Fatalf("%s is missing (packages xfsprogs, e2fsprogs, util-linux)", p)
		}
	}
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// image makes a sparse file of that many MiB.
func image(t *testing.T, dir, name string, mib int64) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, mib<<20); err != nil {
		t.Fatal(err)
	}
	return path
}

// device shows an image as a block device for the length of the test.
func device(t *testing.T, img string) string {
	t.Helper()
	dev := run(t, "losetup", "--direct-io=on", "--show", "-f", img)
	t.Cleanup(func() { _ = exec.Command("losetup", "-d", dev).Run() })
	return dev
}

const imageMiB = 448

func fileFixture(t *testing.T) backendtest.Fixture {
	needs(t, "mkfs.xfs", "xfs_growfs", "blkid")
	dir := t.TempDir()
	for i := range 3 {
		image(t, dir, fmt.Sprintf("f%d.img", i), imageMiB)
	}
	return backendtest.Fixture{
		Backend: local.New("test"),
		Restart: func(*testing.T) backends.Backend { return local.New("test") },
		Options: map[string]any{"paths": []string{dir + "/*.img"}},
		Size:    128 << 20, OneNode: true,
	}
}

func deviceFixture(t *testing.T) backendtest.Fixture {
	needs(t, "mkfs.xfs", "xfs_growfs", "blkid", "losetup")
	dir := t.TempDir()
	var paths []string
	for i := range 3 {
		paths = append(paths, device(t, image(t, dir, fmt.Sprintf("d%d", i), imageMiB)))
	}
	return backendtest.Fixture{
		Backend: local.New("test"),
		Restart: func(*testing.T) backends.Backend { return local.New("test") },
		Options: map[string]any{"paths": paths},
		Size:    128 << 20, OneNode: true,
	}
}

func TestIntegrationFiles(t *testing.T)   { backendtest.Run(t, fileFixture) }
func TestIntegrationDevices(t *testing.T) { backendtest.Run(t, deviceFixture) }
func TestIntegrationDevicesInChild(t *testing.T) {
	plugintest.Child(t, local.Name, plugintest.Self("serve-local"), deviceFixture)
}

func detach(t *testing.T, b backends.Backend, id backends.DriveID) {
	t.Helper()
	if err := b.Detach(context.Background(), id, "node-a"); err != nil {
		t.Errorf("detach: %v", err)
	}
}

// TestIntegrationForeign: each foreign signature is refused by its name, and
// not one byte changes; only force_format by that very path gives it up; what is
// in use is refused even then.
func TestIntegrationForeign(t *testing.T) {
	needs(t, "mkfs.xfs", "mkfs.ext4", "mkswap", "blkid", "losetup")
	for name, tc := range map[string]struct {
		make func(dev string)
		want string
	}{
		"ext4":      {func(d string) { run(t, "mkfs.ext4", "-q", d) }, "ext4"},
		"xfs":       {func(d string) { run(t, "mkfs.xfs", "-q", d) }, "XFS"},
		"swap":      {func(d string) { run(t, "mkswap", d) }, "swap"},
		"gpt":       {func(d string) { put(t, d, 512, "EFI PART") }, "partition table"},
		"dos":       {func(d string) { put(t, d, 510, "\x55\xaa") }, "partition"},
		"lvm":       {func(d string) { put(t, d, 512, "LABELONE") }, "LVM"},
		"raid":      {func(d string) { put(t, d, 4096, "\xfc\x4e\x2b\xa9") }, "RAID"},
		"raw":       {func(d string) { put(t, d, 12345, "customer records") }, "unknown kind"},
		"raw end":   {func(d string) { put(t, d, imageMiB<<20-600, "footer") }, "unknown kind"},
		"lookalike": {func(d string) { run(t, "mkfs.xfs", "-q", "-L", "moraine", d) }, "XFS"},
	} {
		t.Run(name, func(t *testing.T) {
			img := image(t, t.TempDir(), "img", imageMiB)
			dev := device(t, img)
			tc.make(dev)
			run(t, "sync", dev, img)
			before := content(t, img)
			runDir := t.TempDir()
			for _, source := range []string{dev, img} {
				if source == img {
					run(t, "losetup", "-d", dev)
				}
				b := configured(t, runDir, map[string]any{"paths": []string{source}})
				d := only(t, b, source)
				if d.State != backends.StateRefused || !strings.Contains(d.Reason, tc.want) || !strings.Contains(d.Reason, "force_format") {
					t.Errorf("%+v, want %q", d, tc.want)
				}
				for _, src := range []string{"", source} {
					if d, err := b.Create(t.Context(), backends.CreateRequest{ID: newID(), Source: src}); err == nil {
						t.Fatalf("created %+v", d)
					}
				}
			}
			if after := content(t, img); after != before {
				t.Fatal("the medium was written to")
			}
			b := configured(t, runDir, map[string]any{"paths": []string{img}, "force_format": []string{img}})
			if d := only(t, b, img); d.State != backends.StateBlank || !strings.Contains(d.Reason, "destroy") {
				t.Errorf("with force: %+v", d)
			}
			if _, err := b.Create(t.Context(), backends.CreateRequest{ID: newID(), Source: img}); err != nil {
				t.Errorf("create with force: %v", err)
			}
		})
	}
}

// content is a checksum of all blocks of a sparse file that are not zero, with
// their places; holes are not read.
func content(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const block = 4096
	sum, p, zeros := sha256.New(), make([]byte, block), make([]byte, block)
	for off := int64(0); ; {
		start, err := f.Seek(off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // no more data
			return fmt.Sprintf("%x", sum.Sum(nil))
		}
		if err != nil {
			t.Fatal(err)
		}
		end, err := f.Seek(start, unix.SEEK_HOLE)
		if err != nil {
			t.Fatal(err)
		}
		for off = start - start%block; off < end; off += block {
			n, err := f.ReadAt(p, off)
			if err != nil && !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
			if !bytes.Equal(p[:n], zeros[:n]) {
				fmt.Fprintf(sum, "%d ", off)
				sum.Write(p[:n])
			}
		}
	}
}

func put(t *testing.T, path string, off int64, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte(text), off); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestIntegrationInUse: a mounted device or file is refused, forced or not.
func TestIntegrationInUse(t *testing.T) {
	needs(t, "mkfs.ext4", "losetup")
	dir := t.TempDir()
	img := image(t, dir, "img", imageMiB)
	dev := device(t, img)
	run(t, "mkfs.ext4", "-q", dev)
	point := filepath.Join(dir, "mnt")
	if err := os.Mkdir(point, 0o700); err != nil {
		t.Fatal(err)
	}
	run(t, "mount", dev, point)
	t.Cleanup(func() { run(t, "umount", point) })
	b := configured(t, t.TempDir(), map[string]any{"paths": []string{dev, img}, "force_format": []string{dev, img}})
	for _, source := range []string{dev, img} {
		if d := only(t, b, source); d.State != backends.StateRefused || !strings.Contains(d.Reason, "mounted at "+point) {
			t.Errorf("%+v", d)
		}
		if _, err := b.Create(t.Context(), backends.CreateRequest{ID: newID(), Source: source}); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("create: %v", err)
		}
	}
}

// TestIntegrationRenamed: the same medium under another device number is the
// same drive with the same data; a byte copy of it makes both refused.
func TestIntegrationRenamed(t *testing.T) {
	needs(t, "mkfs.xfs", "losetup")
	dir, runDir := t.TempDir(), t.TempDir()
	img := image(t, dir, "img", imageMiB)
	dev := device(t, img)
	b := configured(t, runDir, map[string]any{"paths": []string{dev}})
	id := newID()
	made, err := b.Create(t.Context(), backends.CreateRequest{ID: id})
	if err != nil {
		t.Fatal(err)
	}
	a, err := b.Attach(t.Context(), id, "node-a")
	if err != nil {
		t.Fatal(err)
	}
	if opts := run(t, "findmnt", "-n", "-o", "OPTIONS", a.Path); !strings.Contains(opts, "noatime") || strings.Contains(opts, "discard") {
		t.Errorf("mount options %s", opts)
	}
	write(t, filepath.Join(a.Path, "data"), "bytes of the agent")
	if err := b.Delete(t.Context(), id); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("delete while attached: %v", err)
	}
	detach(t, b, id)
	other := image(t, dir, "placeholder", imageMiB)
	run(t, "losetup", "-d", dev)
	device(t, other) // takes the old number
	dev2 := device(t, img)
	if dev2 == dev {
		t.Fatalf("still %s", dev)
	}
	b = configured(t, runDir, map[string]any{"paths": []string{dev, dev2}})
	got, err := b.Get(t.Context(), id)
	if err != nil || got.Source != dev2 || got.Size != made.Size || !got.Created.Equal(made.Created) {
		t.Fatalf("%+v, %v; made %+v", got, err, made)
	}
	a, err = b.Attach(t.Context(), id, "node-a")
	if err != nil {
		t.Fatal(err)
	}
	if p, err := os.ReadFile(filepath.Join(a.Path, "data")); err != nil || string(p) != "bytes of the agent" {
		t.Errorf("%q, %v", p, err)
	}
	detach(t, b, id)

	clone := filepath.Join(dir, "clone")
	run(t, "cp", "--sparse=always", img, clone)
	b = configured(t, runDir, map[string]any{"paths": []string{dev2, clone}})
	for _, source := range []string{dev2, clone} {
		d := only(t, b, source)
		if d.State != backends.StateRefused || !strings.Contains(d.Reason, dev2) || !strings.Contains(d.Reason, clone) {
			t.Errorf("%+v", d)
		}
	}
	if _, err := b.Attach(t.Context(), id, "node-a"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("attach of a clone: %v", err)
	}
}

// TestIntegrationRestart: a drive stays attached while the backend is away, and
// a new one knows it, at the same path, with open files undisturbed.
func TestIntegrationRestart(t *testing.T) {
	needs(t, "mkfs.xfs")
	runDir := t.TempDir()
	img := image(t, t.TempDir(), "img", imageMiB)
	options := map[string]any{"paths": []string{img}}
	b := configured(t, runDir, options)
	id := newID()
	if _, err := b.Create(t.Context(), backends.CreateRequest{ID: id}); err != nil {
		t.Fatal(err)
	}
	a, err := b.Attach(t.Context(), id, "node-a")
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(a.Path, "open"))
	if err != nil {
		t.Fatal(err)
	}
	b = configured(t, runDir, options)
	if again, err := b.Attach(t.Context(), id, "node-a"); err != nil || again != a {
		t.Errorf("%+v, %v; first %+v", again, err, a)
	}
	if err := b.Detach(t.Context(), id, "node-a"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("detach with an open file: %v", err)
	}
	if _, err := f.WriteString("still works"); err != nil {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	detach(t, b, id)
	eventuallyNoLoop(t, img)
}

// eventuallyNoLoop goes by sysfs: losetup -j would wait for every backing file.
func eventuallyNoLoop(t *testing.T, img string) {
	t.Helper()
	left := ""
	for range 500 {
		left = ""
		names, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
		for _, n := range names {
			if p, err := os.ReadFile(n); err == nil && strings.HasPrefix(string(p), img) {
				left = n
			}
		}
		if left == "" {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("loop device left behind: %s", left)
}

// TestIntegrationInterrupted: a making that was cut off at any step is taken up
// or seen as blank, never as foreign and never as a drive.
func TestIntegrationInterrupted(t *testing.T) {
	needs(t, "mkfs.xfs")
	img := image(t, t.TempDir(), "img", imageMiB)
	options, runDir := map[string]any{"paths": []string{img}}, t.TempDir()
	id := newID()
	run(t, "mkfs.xfs", "-q", "-K", "-L", "moraine-new", "-m", "uuid="+string(id), img)
	for step, prepare := range []func(){
		func() {},                           // mkfs ended, no identity
		func() { put(t, img, 126, "\x01") }, // mkfs was still running
		func() { put(t, img, 0, "MORAINE-RELEASED-1\n") },
	} {
		prepare()
		b := configured(t, runDir, options)
		if d := only(t, b, img); d.State != backends.StateBlank || d.ID != "" {
			t.Errorf("step %d: %+v", step, d)
		}
	}
	b := configured(t, runDir, options)
	d, err := b.Create(t.Context(), backends.CreateRequest{ID: id, Source: img})
	if err != nil || d.ID != id {
		t.Errorf("%+v, %v", d, err)
	}
	if again, err := b.Create(t.Context(), backends.CreateRequest{ID: id, Source: img}); err != nil || again.Source != img {
		t.Errorf("%+v, %v", again, err)
	}
	eventuallyNoLoop(t, img)
}

// TestIntegrationLostMount: what a killed process left mounted at a private
// place does not block the drive.
func TestIntegrationLostMount(t *testing.T) {
	needs(t, "mkfs.xfs")
	runDir := t.TempDir()
	img := image(t, t.TempDir(), "img", imageMiB)
	options := map[string]any{"paths": []string{img}}
	b := configured(t, runDir, options)
	id := newID()
	if _, err := b.Create(t.Context(), backends.CreateRequest{ID: id}); err != nil {
		t.Fatal(err)
	}
	stale := filepath.Join(runDir, "peek", "stale")
	if err := os.MkdirAll(stale, 0o700); err != nil {
		t.Fatal(err)
	}
	run(t, "mount", "-o", "loop", img, stale)
	b = configured(t, runDir, options)
	if _, err := b.Attach(t.Context(), id, "node-a"); err != nil {
		t.Error(err)
	}
	detach(t, b, id)
	eventuallyNoLoop(t, img)
}

// TestIntegrationFailing: a medium that is cut short under the drive, or turns
// read-only, is failed with a reason; one that is taken away is gone.
func TestIntegrationFailing(t *testing.T) {
	needs(t, "mkfs.xfs", "losetup")
	start := func(t *testing.T) (*local.Backend, backends.DriveID, string, backends.Attachment) {
		img := image(t, t.TempDir(), "img", imageMiB)
		dev := device(t, img)
		b := configured(t, t.TempDir(), map[string]any{"paths": []string{dev}})
		id := newID()
		if _, err := b.Create(t.Context(), backends.CreateRequest{ID: id}); err != nil {
			t.Fatal(err)
		}
		a, err := b.Attach(t.Context(), id, "node-a")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { detach(t, b, id) })
		if h, err := b.Health(t.Context(), id); err != nil || h.State != backends.StateReady {
			t.Fatalf("health: %+v, %v", h, err)
		}
		return b, id, img, a
	}
	t.Run("cut short", func(t *testing.T) {
		b, id, img, _ := start(t)
		if err := os.Truncate(img, 0); err != nil {
			t.Fatal(err)
		}
		h, err := b.Health(t.Context(), id)
		if err != nil || h.State == backends.StateReady || h.Reason == "" {
			t.Errorf("health: %+v, %v", h, err)
		}
	})
	t.Run("read-only", func(t *testing.T) {
		b, id, _, a := start(t)
		run(t, "mount", "-o", "remount,ro", a.Path)
		h, err := b.Health(t.Context(), id)
		if err != nil || h.State != backends.StateFailed || !strings.Contains(h.Reason, "read-only") {
			t.Errorf("health: %+v, %v", h, err)
		}
		if _, err := b.Attach(t.Context(), id, "node-a"); !errdefs.IsUnavailable(err) {
			t.Errorf("attach: %v", err)
		}
	})
	t.Run("taken away", func(t *testing.T) {
		b, id, _, _ := start(t)
		dev := only(t, b, devOf(t, b, id)).Source
		detach(t, b, id)
		run(t, "losetup", "-d", dev)
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			h, err := b.Health(t.Context(), id)
			if err == nil && h.State == backends.StateGone {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("health: %+v, %v", h, err)
			}
		}
	})
}

func devOf(t *testing.T, b backends.Backend, id backends.DriveID) string {
	t.Helper()
	d, err := b.Get(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return d.Source
}

// TestIntegrationGrow: the device grows, and Expand makes the drive follow,
// attached and detached.
func TestIntegrationGrow(t *testing.T) {
	needs(t, "mkfs.xfs", "xfs_growfs", "losetup")
	img := image(t, t.TempDir(), "img", imageMiB)
	dev := device(t, img)
	b := configured(t, t.TempDir(), map[string]any{"paths": []string{dev}})
	id := newID()
	d, err := b.Create(t.Context(), backends.CreateRequest{ID: id})
	if err != nil {
		t.Fatal(err)
	}
	for _, mib := range []int64{imageMiB + 256, imageMiB + 512} {
		want := d.Size + 200<<20
		if _, err := b.Expand(t.Context(), id, want); err == nil {
			t.Error("expanded beyond the device")
		}
		if err := os.Truncate(img, mib<<20); err != nil {
			t.Fatal(err)
		}
		run(t, "losetup", "-c", dev)
		if d, err = b.Expand(t.Context(), id, want); err != nil || d.Size != want {
			t.Fatalf("%+v, %v, want %d", d, err, want)
		}
		if a, err := b.Attach(t.Context(), id, "node-a"); err != nil || a.Size != want {
			t.Errorf("%+v, %v", a, err)
		}
	}
	detach(t, b, id)
}

// TestIntegrationDeleteWipes: after Delete nothing recognises the medium as a
// file system, and a dirty log or old data do not keep it from being used again.
func TestIntegrationDeleteWipes(t *testing.T) {
	needs(t, "mkfs.xfs", "blkid", "losetup")
	dev := device(t, image(t, t.TempDir(), "img", imageMiB))
	b := configured(t, t.TempDir(), map[string]any{"paths": []string{dev}})
	for range 2 {
		id := newID()
		if _, err := b.Create(t.Context(), backends.CreateRequest{ID: id}); err != nil {
			t.Fatal(err)
		}
		a, err := b.Attach(t.Context(), id, "node-a")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(a.Path, "data"), bytes.Repeat([]byte("store"), 20<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		detach(t, b, id)
		if err := b.Delete(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("blkid", "-p", dev).CombinedOutput(); err == nil {
			t.Errorf("blkid still sees %s", out)
		}
		if d := only(t, b, dev); d.State != backends.StateBlank {
			t.Errorf("%+v", d)
		}
	}
}
