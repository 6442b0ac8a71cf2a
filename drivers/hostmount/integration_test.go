//go:build integration

package hostmount_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/drivers/hostmount"
	"github.com/moraine-storage/moraine/drivers/hostmount/hostmounttest"
	"github.com/moraine-storage/moraine/drivers/loopdev"
)

func TestRealHost(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root")
	}
	hostmounttest.Run(t, func(t *testing.T) hostmounttest.Env {
		dir := t.TempDir()
		return hostmounttest.Env{Host: hostmount.New(), Dir: dir, NewDevice: newLoop, Hold: hold, NoOnlineGrow: noOnlineGrow(t)}
	})
}

func noOnlineGrow(t *testing.T) string {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		t.Fatal(err)
	}
	if data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) == 0 {
		return "root has no CAP_SYS_RESOURCE on this machine"
	}
	return ""
}

// Goal: a device that grew while nothing was mounted is filled by Check.
func TestGrowUnmounted(t *testing.T) {
	ctx := context.Background()
	h := hostmount.New()
	d := newLoop(t, 320<<20)
	if err := h.Format(ctx, d.Path, hostmount.FormatOptions{Type: hostmount.Ext4}); err != nil {
		t.Fatal(err)
	}
	d.Grow(1 << 30)
	for range 2 {
		if r, err := h.Check(ctx, d.Path, hostmount.Ext4, false); err != nil {
			t.Fatalf("%+v: %v", r, err)
		}
	}
	target := filepath.Join(t.TempDir(), "m")
	if err := h.Mount(ctx, hostmount.MountRequest{Device: d.Path, Target: target, Type: hostmount.Ext4}); err != nil {
		t.Fatal(err)
	}
	u, err := h.Usage(ctx, target)
	if err != nil || u.TotalBytes < 900<<20 {
		t.Errorf("%+v, %v", u, err)
	}
	if err := h.Unmount(ctx, target, false); err != nil {
		t.Error(err)
	}
}

func newLoop(t *testing.T, size int64) hostmounttest.Device {
	t.Helper()
	ctx := context.Background()
	file := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	n, err := loopdev.Attach(ctx, loopdev.Config{File: file})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ms, _ := hostmount.New().List(ctx)
		for _, m := range ms {
			if m.Major == 7 && m.Minor == uint32(n) {
				_ = unix.Unmount(m.Path, unix.MNT_DETACH)
			}
		}
		if err := loopdev.Detach(ctx, n, file, false); err != nil {
			t.Error(err)
		}
	})
	path := loopdev.Path(n)
	sh := func(c string) {
		if out, err := exec.Command("sh", "-c", c).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", c, err, out)
		}
	}
	return hostmounttest.Device{
		Path: path,
		Grow: func(size int64) {
			if err := f.Truncate(size); err != nil {
				t.Fatal(err)
			}
			if err := loopdev.SetCapacity(ctx, n, file); err != nil {
				t.Fatal(err)
			}
		},
		Scribble: func() { sh("echo important data | dd of=" + path + " conv=notrunc,fsync status=none") },
		Sign:     func() { sh("mkswap -q " + path) },
	}
}

func hold(t *testing.T, path string) func() {
	t.Helper()
	cmd := exec.Command("sleep", "600")
	cmd.Dir = path
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	release := func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }
	t.Cleanup(release)
	return release
}

// Goal: a filesystem that a person must look at is refused, and one that fsck
// may repair is repaired. Method: damage written under the filesystem.
func TestDamage(t *testing.T) {
	ctx := context.Background()
	h := hostmount.New()
	d := newLoop(t, 320<<20)
	if err := h.Format(ctx, d.Path, hostmount.FormatOptions{Type: hostmount.Ext4}); err != nil {
		t.Fatal(err)
	}
	// A wrong count of free blocks: e2fsck -p puts it right.
	if out, err := exec.Command("debugfs", "-w", "-R", "ssv free_blocks_count 5", d.Path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if out, err := exec.Command("debugfs", "-w", "-R", "dirty", d.Path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if r, err := h.Check(ctx, d.Path, hostmount.Ext4, false); err != nil || !r.Repaired {
		t.Errorf("check of a repairable filesystem: %+v, %v", r, err)
	}
	// The root directory's inode gone: a decision.
	if out, err := exec.Command("debugfs", "-w", "-R", "clri <2>", d.Path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if out, err := exec.Command("debugfs", "-w", "-R", "dirty", d.Path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	r, err := h.Check(ctx, d.Path, hostmount.Ext4, false)
	if err == nil {
		t.Errorf("a filesystem without a root is fine: %+v", r)
	}
	x := newLoop(t, 320<<20)
	if err := h.Format(ctx, x.Path, hostmount.FormatOptions{Type: hostmount.XFS}); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("sh", "-c", fmt.Sprintf("dd if=/dev/urandom of=%s bs=512 seek=1 count=1 conv=notrunc,fsync status=none", x.Path)).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	err = h.Mount(ctx, hostmount.MountRequest{Device: x.Path, Target: filepath.Join(t.TempDir(), "m"), Type: hostmount.XFS})
	if err == nil {
		t.Error("a damaged XFS was mounted")
	}
	t.Log(err)
}
