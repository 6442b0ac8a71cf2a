package hostmount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// childName is the name under which this program runs itself again for one
// system call that waits for the device below a file system.
//
// The calls must not be made by the agent itself. It serves the device: killed
// within such a call it could not end, because the call cannot be interrupted
// and waits for an answer that only the next agent can give; and that one could
// not start, because an agent that has not ended keeps its locks. A child is
// left behind instead, and ends when the next agent answers.
const childName = "moraine-system-call"

// Words of the child's command line.
const (
	childMount  = "mount"  // device, target, type, flags, data
	childUmount = "umount" // target, flags
	childTrim   = "trim"   // target; prints the bytes trimmed
	childSync   = "sync"   // target
	childFsync  = "fsync"  // path of a device
	childRmdir  = "rmdir"  // directory
	childBlank  = "blank"  // device; prints whether both its ends are zeros
	childSmall  = "small"  // device; prints whether the ext4 on it could grow

	childLoop      = "loop"      // device, file, block size, flags, parent's process ID
	childClear     = "clear"     // loop device, file, force
	childGrow      = "grow"      // loop device, file
	childScheduler = "scheduler" // name of a block device, scheduler
)

// childUsage is the exit code of a child that was called wrongly; others are
// errno, or 0.
const childUsage = 255

func init() {
	if len(os.Args) > 0 && os.Args[0] == childName {
		os.Exit(childMain(os.Args[1:]))
	}
}

// childMain makes the call and returns the exit code.
func childMain(args []string) int {
	var err error
	number := func(s string) uintptr {
		n, nerr := strconv.ParseUint(s, 10, 63)
		if nerr != nil {
			os.Exit(childUsage)
		}
		return uintptr(n)
	}
	switch {
	case len(args) == 6 && args[0] == childMount:
		err = unix.Mount(args[1], args[2], args[3], number(args[4]), args[5])
	case len(args) == 3 && args[0] == childUmount:
		err = unix.Unmount(args[1], int(number(args[2])))
	case len(args) == 2 && args[0] == childTrim:
		err = trim(args[1])
	case len(args) == 2 && args[0] == childSync:
		err = syncfs(args[1])
	case len(args) == 2 && args[0] == childFsync:
		err = fsync(args[1])
	case len(args) == 2 && args[0] == childRmdir:
		err = unix.Rmdir(args[1])
	case len(args) == 2 && args[0] == childBlank:
		err = printed(zeroEnds(args[1]))
	case len(args) == 2 && args[0] == childSmall:
		err = printed(ext4Small(args[1]))
	case len(args) == 6 && args[0] == childLoop:
		err = bindLoop(args[1], args[2], uint32(number(args[3])), uint32(number(args[4])), int(number(args[5])))
	case len(args) == 4 && args[0] == childClear:
		err = clearLoop(args[1], args[2], args[3] == "true")
	case len(args) == 3 && args[0] == childGrow:
		err = growLoop(args[1], args[2])
	case len(args) == 3 && args[0] == childScheduler:
		err = setScheduler(args[1], args[2])
	default:
		return childUsage
	}
	var errno unix.Errno
	switch {
	case err == nil:
		return 0
	case errors.As(err, &errno) && errno > 0 && errno < childUsage:
		return int(errno)
	}
	return int(unix.EIO)
}

func printed(yes bool, err error) error {
	if err != nil {
		return err
	}
	_, err = fmt.Print(yes)
	return err
}

func trim(target string) error {
	fd, err := unix.Open(target, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r := trimRange{length: ^uint64(0)}
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), fitrim, uintptr(unsafe.Pointer(&r))); e != 0 {
		return e
	}
	_, err = fmt.Print(r.length)
	return err
}

func syncfs(target string) error {
	fd, err := unix.Open(target, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Syncfs(fd)
}

func fsync(device string) error {
	fd, err := unix.Open(device, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Fsync(fd)
}

// SyncDevice writes out what the kernel's cache holds for a block device. It
// waits for the device no longer than ctx allows.
func SyncDevice(ctx context.Context, device string) error {
	if _, err := child(ctx, mountTimeout, childFsync, device); err != nil {
		return fmt.Errorf("sync %s: %w", device, err)
	}
	return nil
}

// Sync writes out what the kernel holds for the file system mounted at target.
// It waits for the device no longer than ctx allows.
func Sync(ctx context.Context, target string) error {
	if _, err := child(ctx, mountTimeout, childSync, target); err != nil {
		return fmt.Errorf("sync %s: %w", target, err)
	}
	return nil
}

// RemoveLostFound removes the lost+found of the file system mounted at target if
// that is an empty folder. It waits for the device no longer than ctx allows.
func RemoveLostFound(ctx context.Context, target string) error {
	_, err := child(ctx, mountTimeout, childRmdir, filepath.Join(target, "lost+found"))
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove lost+found of %s: %w", target, err)
	}
	return nil
}

// child makes a system call in a child and waits for it no longer than ctx and
// timeout allow. The error is the call's errno, or says that it may still happen.
func child(ctx context.Context, timeout time.Duration, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := ctx.Err(); err != nil {
		return "", fmt.Errorf("%s: %w", args[0], err)
	}
	var out limited
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = append([]string{childName}, args...)
	cmd.Env = []string{"GOMAXPROCS=1"}
	cmd.Stdout = &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a terminal's signals are not for it
	cmd.WaitDelay = killGrace
	if err := cmd.Start(); err != nil {
		return "", fmt.Errorf("%s: %w", args[0], err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		return out.b.String(), childError(args[0], err)
	case <-ctx.Done():
		_ = cmd.Process.Kill() // it goes when its call returns
		return "", fmt.Errorf("%s: does not return: %w: %w", args[0], ctx.Err(), errdefs.ErrIndeterminate)
	}
}

func childError(what string, err error) error {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &exit) && exit.Exited() && exit.ExitCode() < childUsage:
		return fmt.Errorf("%s: %w", what, unix.Errno(exit.ExitCode()))
	}
	return fmt.Errorf("%s: %w: %w", what, err, errdefs.ErrIndeterminate)
}
