package local

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// mounted is one line of /proc/self/mountinfo.
type mounted struct {
	dev      uint64 // of the file system, as unix.Mkdev
	point    string
	fstype   string
	readOnly bool // the mount or the file system
}

func mounts() ([]mounted, error) {
	p, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w: %w", errdefs.ErrUnavailable, err)
	}
	return parseMounts(p), nil
}

// parseMounts reads mountinfo (proc_pid_mountinfo(5)); lines that do not have
// its form are left out.
func parseMounts(p []byte) []mounted {
	var out []mounted
	s := bufio.NewScanner(bytes.NewReader(p))
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		left, right, ok := strings.Cut(s.Text(), " - ")
		a, b := strings.Fields(left), strings.Fields(right)
		if !ok || len(a) < 6 || len(b) < 2 {
			continue
		}
		maj, min, ok := strings.Cut(a[2], ":")
		major, err1 := strconv.ParseUint(maj, 10, 32)
		minor, err2 := strconv.ParseUint(min, 10, 32)
		if !ok || err1 != nil || err2 != nil {
			continue
		}
		super := ""
		if len(b) > 2 {
			super = b[2]
		}
		out = append(out, mounted{
			dev: unix.Mkdev(uint32(major), uint32(minor)), point: unescape(a[4]), fstype: b[0],
			readOnly: hasOption(a[5], "ro") || hasOption(super, "ro"),
		})
	}
	return out
}

func hasOption(list, want string) bool {
	for o := range strings.SplitSeq(list, ",") {
		if o == want {
			return true
		}
	}
	return false
}

// unescape undoes the octal escapes (\040) of mountinfo.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// at returns the topmost mount on a path.
func at(all []mounted, point string) (mounted, bool) {
	for i := len(all) - 1; i >= 0; i-- {
		if all[i].point == point {
			return all[i], true
		}
	}
	return mounted{}, false
}

// mountDrive mounts the XFS on dev for use. discard stays off: the store trims
// its file in its own time.
func mountDrive(dev, point string) error {
	return mountXFS(dev, point, unix.MS_NOATIME|unix.MS_NODEV|unix.MS_NOSUID|unix.MS_NOEXEC, "")
}

// mountToRead mounts without writing anything, not even a log recovery, and
// beside another file system with the same UUID.
func mountToRead(dev, point string) error {
	return mountXFS(dev, point, unix.MS_RDONLY|unix.MS_NODEV|unix.MS_NOSUID|unix.MS_NOEXEC, "norecovery,nouuid")
}

func mountXFS(dev, point string, flags uintptr, data string) error {
	if err := os.MkdirAll(point, 0o700); err != nil {
		return fmt.Errorf("mount %s: %w: %w", dev, errdefs.ErrUnavailable, err)
	}
	err := unix.Mount(dev, point, "xfs", flags, data)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("mount %s: %w: %w (block devices and files need root)", dev, errdefs.ErrPermissionDenied, err)
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("mount %s: %w: this kernel has no XFS", dev, errdefs.ErrFailedPrecondition)
	case errors.Is(err, unix.EUCLEAN), errors.Is(err, unix.EIO):
		return fmt.Errorf("mount %s: %w: %w (see the kernel log; xfs_repair may help)", dev, errdefs.ErrDataLoss, err)
	}
	return fmt.Errorf("mount %s: %w: %w", dev, errdefs.ErrUnavailable, err)
}

// unmount takes a drive's mount away and removes the mount point.
func unmount(point string) error {
	err := unix.Unmount(point, unix.UMOUNT_NOFOLLOW)
	switch {
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("unmount %s: %w: in use", point, errdefs.ErrFailedPrecondition)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("unmount %s: %w: %w", point, errdefs.ErrPermissionDenied, err)
	case err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT): // EINVAL: not a mount point
		return fmt.Errorf("unmount %s: %w: %w", point, errdefs.ErrUnavailable, err)
	}
	if err := syscall.Rmdir(point); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w: %w", point, errdefs.ErrUnavailable, err)
	}
	return nil
}

// command runs a program and returns its standard output; what it says on
// standard error is in the error. code is its exit status, -1 when it did not run.
func command(ctx context.Context, name string, args ...string) (out string, code int, err error) {
	c := exec.CommandContext(ctx, name, args...)
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	err = c.Run()
	code = -1
	if c.ProcessState != nil {
		code = c.ProcessState.ExitCode()
	}
	switch {
	case err == nil:
		return stdout.String(), code, nil
	case ctx.Err() != nil:
		return "", code, fmt.Errorf("%s: %w", name, ctx.Err())
	case errors.Is(err, exec.ErrNotFound):
		return "", code, fmt.Errorf("%s: %w: program is not installed", name, errdefs.ErrFailedPrecondition)
	}
	said := strings.Join(strings.FieldsFunc(stderr.String(), func(r rune) bool { return r < ' ' }), "; ")
	if len(said) > 512 {
		said = said[:512]
	}
	return stdout.String(), code, fmt.Errorf("%s: %w: %w: %s", name, errdefs.ErrUnavailable, err, said)
}
