package local

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// loopOf returns the loop device that shows the file (device, inode), or "".
//
// It goes by the name that sysfs has, not by LOOP_GET_STATUS: that ioctl asks
// the backing file for its attributes, and where the file is on FUSE or a network
// its server may not answer, for ever. (The agent's own volumes are such files.)
// For the same reason a name is only looked up when its file system is the one
// that we look for.
func loopOf(all []mounted, dev, ino uint64) string {
	names, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, n := range names {
		p, err := os.ReadFile(n)
		if err != nil {
			continue
		}
		back := strings.TrimSuffix(string(p), "\n")
		if !under(all, back, dev) {
			continue
		}
		var st unix.Stat_t
		if unix.Stat(back, &st) == nil && uint64(st.Dev) == dev && st.Ino == ino {
			return "/dev/" + filepath.Base(filepath.Dir(filepath.Dir(n)))
		}
	}
	return ""
}

// under says whether a path is on the local file system dev, without touching it.
func under(all []mounted, path string, dev uint64) bool {
	var on mounted
	for _, m := range all { // a later mount covers an earlier one at the same point
		if within(path, m.point) && len(m.point) >= len(on.point) {
			on = m
		}
	}
	// btrfs gives each subvolume a device number that mountinfo does not show.
	return on.dev == dev || on.fstype == "btrfs"
}

// loopAttach shows the file at path as a block device. The device goes away
// when the last user (the mount, and the returned file) has closed it.
func loopAttach(path string) (*os.File, error) {
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("loop device for %s: %w: the kernel has none (modprobe loop): %w", path, errdefs.ErrFailedPrecondition, err)
	}
	defer ctl.Close()
	back, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("loop device for %s: %w: %w", path, errdefs.ErrUnavailable, err)
	}
	defer back.Close()
	for range maxLoopTries {
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("loop device for %s: %w: %w", path, errdefs.ErrUnavailable, err)
		}
		dev, err := loopConfigure(n, back, path)
		if !errors.Is(err, unix.EBUSY) { // EBUSY: somebody else took it
			return dev, err
		}
	}
	return nil, fmt.Errorf("loop device for %s: %w: none stays free", path, errdefs.ErrAborted)
}

func loopConfigure(n int, back *os.File, path string) (*os.File, error) {
	node := "/dev/loop" + strconv.Itoa(n)
	if _, err := os.Stat(node); errors.Is(err, os.ErrNotExist) { // a /dev that nobody fills
		const loopMajor = 7
		if err := unix.Mknod(node, unix.S_IFBLK|0o600, int(unix.Mkdev(loopMajor, uint32(n)))); err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, fmt.Errorf("loop device for %s: make %s: %w: %w", path, node, errdefs.ErrUnavailable, err)
		}
	}
	dev, err := os.OpenFile(node, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("loop device for %s: %w: %w", path, errdefs.ErrUnavailable, err)
	}
	c := unix.LoopConfig{Fd: uint32(back.Fd())}
	c.Info.Flags = unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO
	copy(c.Info.File_name[:len(c.Info.File_name)-1], path)
	if err := unix.IoctlLoopConfigure(int(dev.Fd()), &c); err != nil {
		dev.Close()
		if errors.Is(err, unix.EBUSY) {
			return nil, err
		}
		return nil, fmt.Errorf("loop device for %s: %w: %w", path, errdefs.ErrUnavailable, err)
	}
	return dev, nil
}
