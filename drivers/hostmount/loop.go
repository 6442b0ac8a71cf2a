package hostmount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Flags of a loop device (linux/loop.h), and the ioctl that x/sys has no number for.
const (
	loopReadOnly  = 1
	loopAutoclear = 4
	loopDirectIO  = 16

	loopSetCapacity = 0x4C07
)

// Loop is a loop device to bind to a file.
type Loop struct {
	Device    string // "/dev/loop3"
	File      string
	BlockSize int // bytes, 512 to 4096; 0 is 512
	ReadOnly  bool
	DirectIO  bool
}

// BindLoop binds a free loop device to its file. Errors are errno of the calls:
// unix.EBUSY when the device is not free.
//
// By a child, for three of its calls ask whoever serves the file (open, and
// the fsync and the attributes that LOOP_CONFIGURE wants): see childName. If
// this process dies meanwhile the device is not left bound: it clears itself at
// the last close until the child has seen that its parent is still there.
func BindLoop(ctx context.Context, l Loop) error {
	flags := 0
	if l.ReadOnly {
		flags |= loopReadOnly
	}
	if l.DirectIO {
		flags |= loopDirectIO
	}
	_, err := child(ctx, mountTimeout, childLoop, l.Device, l.File, strconv.Itoa(l.BlockSize), strconv.Itoa(flags), strconv.Itoa(os.Getpid()))
	return err
}

// ClearLoop unbinds a loop device if it is bound to file. Errors are errno of the
// calls: unix.EBUSY when it is mounted or held by another device. With force it
// then goes at the last close; without, what its cache holds is written first.
func ClearLoop(ctx context.Context, device, file string, force bool) error {
	_, err := child(ctx, mountTimeout, childClear, device, file, strconv.FormatBool(force))
	return err
}

// ResizeLoop makes a loop device as large as its file is now.
func ResizeLoop(ctx context.Context, device, file string) error {
	_, err := child(ctx, mountTimeout, childGrow, device, file)
	return err
}

// SetScheduler chooses how the requests of a block device are ordered. The kernel
// waits for those in progress, and so this is a child's.
func SetScheduler(ctx context.Context, name, scheduler string) error {
	_, err := child(ctx, mountTimeout, childScheduler, name, scheduler)
	if err != nil {
		return fmt.Errorf("scheduler of %s: %w", name, err)
	}
	return nil
}

func bindLoop(device, path string, blockSize, flags uint32, parent int) error {
	mode := unix.O_RDWR
	if flags&loopReadOnly != 0 {
		mode = unix.O_RDONLY
	}
	open := mode
	if flags&loopDirectIO != 0 {
		open |= unix.O_DIRECT
	}
	file, err := unix.Open(path, open|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(file)
	// Its mode limits the device only when it is not O_RDWR.
	dev, err := unix.Open(device, mode|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dev)
	cfg := unix.LoopConfig{Fd: uint32(file), Size: blockSize}
	cfg.Info.Flags = flags | loopAutoclear
	copy(cfg.Info.File_name[:len(cfg.Info.File_name)-1], path)
	if err := unix.IoctlLoopConfigure(dev, &cfg); err != nil {
		return err
	}
	if os.Getppid() != parent {
		return unix.ESRCH // nobody will ask for this device, and its close clears it
	}
	cfg.Info.Flags = flags
	return unix.IoctlLoopSetStatus64(dev, &cfg.Info)
}

func clearLoop(device, file string, force bool) error {
	fd, err := unix.Open(device, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_EXCL, 0)
	if force && errors.Is(err, unix.EBUSY) {
		fd, err = unix.Open(device, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// The number may have changed hands since the caller looked.
	b, err := os.ReadFile("/sys/block/" + filepath.Base(device) + "/loop/backing_file")
	if err != nil || strings.TrimSuffix(string(b), "\n") != file {
		return nil
	}
	if !force {
		if err := unix.Fsync(fd); err != nil {
			return err
		}
	}
	_, err = unix.IoctlRetInt(fd, unix.LOOP_CLR_FD)
	return err
}

func growLoop(device, path string) error {
	// The kernel learns the size of a FUSE file by asking for its attributes.
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return err
	}
	fd, err := unix.Open(device, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.IoctlRetInt(fd, loopSetCapacity)
	return err
}

func setScheduler(name, scheduler string) error {
	err := os.WriteFile("/sys/block/"+name+"/queue/scheduler", []byte(scheduler), 0)
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}
