//go:build integration

package hostmount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// freeLoop returns the path of a loop device that is free now.
func freeLoop(t *testing.T) string {
	t.Helper()
	ctl, err := unix.Open("/dev/loop-control", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(ctl)
	const ctlGetFree = 0x4C82
	n, err := unix.IoctlRetInt(ctl, ctlGetFree)
	if err != nil {
		t.Fatal(err)
	}
	path := fmt.Sprintf("/dev/loop%d", n)
	if err := unix.Mknod(path, unix.S_IFBLK|0o600, int(unix.Mkdev(7, uint32(n)))); err != nil && !errors.Is(err, unix.EEXIST) {
		t.Fatal(err)
	}
	return path
}

func backing(device string) string {
	b, _ := os.ReadFile("/sys/block/" + filepath.Base(device) + "/loop/backing_file")
	return string(b)
}

// Goal: a device that a child has bound stays bound when its parent is there,
// and goes when the parent is not: nobody knows of it.
func TestBindLoopOrphan(t *testing.T) {
	file := filepath.Join(t.TempDir(), "image")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, 1<<20)); err != nil {
		t.Fatal(err)
	}
	retry := func(bind func(device string) error) (string, error) {
		for range 20 {
			device := freeLoop(t)
			if err := bind(device); !errors.Is(err, unix.EBUSY) { // others take devices too
				return device, err
			}
		}
		return "", unix.EBUSY
	}
	device, err := retry(func(device string) error {
		_, err := child(t.Context(), time.Minute, childLoop, device, file, "512", "0", strconv.Itoa(os.Getpid()+1))
		return err
	})
	if !errors.Is(err, unix.ESRCH) {
		t.Fatalf("an orphan bound %s: %v", device, err)
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if now := backing(device); now != file+"\n" {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%s is left behind", device)
		}
	}
	device, err = retry(func(device string) error {
		return BindLoop(t.Context(), Loop{Device: device, File: file, BlockSize: 512, ReadOnly: true})
	})
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(device, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile("/sys/block/" + filepath.Base(device) + "/loop/autoclear"); err != nil || string(b) != "0\n" {
		t.Errorf("autoclear: %q, %v", b, err)
	}
	if err := ResizeLoop(t.Context(), device, file); err != nil {
		t.Error(err)
	}
	if err := SetScheduler(t.Context(), filepath.Base(device), "none"); err != nil {
		t.Error(err)
	}
	unix.Close(fd)
	if now := backing(device); now != file+"\n" {
		t.Errorf("%s is bound to %q", device, now)
	}
	if fd, err = unix.Open(device, unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.IoctlRetInt(fd, unix.LOOP_CLR_FD); err != nil {
		t.Error(err)
	}
	unix.Close(fd)
}
