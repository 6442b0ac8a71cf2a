// Package loopdev binds loop devices to files: /dev/loopN over a volume's
// image file (drivers/fuse), or over a plain file in tests.
//
// Whatever waits for who serves the file is done by a child (drivers/hostmount).
// Two traps more shape it. LOOP_GET_STATUS64 asks the backing file for its
// attributes and blocks for ever when that is a FUSE file nobody serves, so
// devices are identified by /sys/block/loopN/loop/backing_file, which is text.
// LOOP_CLR_FD of a device in use succeeds and takes effect at the last close,
// so Detach opens the device exclusively first and refuses when it cannot.
package loopdev

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/drivers"
	"github.com/moraine-storage/moraine/drivers/hostmount"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

const (
	controlPath = "/dev/loop-control"
	loopMajor   = 7

	// An ioctl of linux/loop.h that golang.org/x/sys/unix has no number for.
	loopCtlGetFree = 0x4C82

	// maxTries of getting a free device and losing it to another process.
	maxTries = 64
	// nodeTimeout bounds the wait for devtmpfs or udev to make /dev/loopN.
	nodeTimeout = 2 * time.Second
	// goneTimeout bounds the wait for a device to be unbound after the last
	// close; retryEvery is the pace of it.
	goneTimeout = 10 * time.Second
	retryEvery  = 20 * time.Millisecond
)

// Config of a device.
type Config struct {
	File      string // backing file; opened when the device is bound
	BlockSize int    // logical, bytes: 512 to 4096; 0 is 512
	ReadOnly  bool
	DirectIO  bool
	// Chosen is told the number before the device is bound and may veto; the
	// caller notes it so that a crash leaves nothing unknown. It is called
	// again when another process took that number. May be nil.
	Chosen func(n int) error
}

// Path is the device's node.
func Path(n int) string { return fmt.Sprintf("/dev/loop%d", n) }

// Attach binds a free device to c.File and returns its number.
func Attach(ctx context.Context, c Config) (int, error) {
	ctl, err := unix.Open(controlPath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("loop attach %s: open %s: %w", c.File, controlPath, err)
	}
	defer unix.Close(ctl)
	for range maxTries {
		if err := ctx.Err(); err != nil {
			return -1, fmt.Errorf("loop attach %s: %w", c.File, err)
		}
		n, err := unix.IoctlRetInt(ctl, loopCtlGetFree)
		if err != nil {
			return -1, fmt.Errorf("loop attach %s: no free device: %w", c.File, err)
		}
		if c.Chosen != nil {
			if err := c.Chosen(n); err != nil {
				return -1, fmt.Errorf("loop attach %s: %w", c.File, err)
			}
		}
		if err := bind(ctx, n, &c); errors.Is(err, unix.EBUSY) {
			continue
		} else if err != nil {
			return -1, fmt.Errorf("loop attach %s: bind %s: %w", c.File, Path(n), err)
		}
		return n, nil
	}
	return -1, fmt.Errorf("loop attach %s: %d free devices were taken by others: %w", c.File, maxTries, errdefs.ErrUnavailable)
}

// bind is a child's work: an agent killed in it could not end while nobody
// serves the file, and the next one not start.
func bind(ctx context.Context, n int, c *Config) error {
	if err := ensureNode(ctx, n); err != nil {
		return err
	}
	return hostmount.BindLoop(ctx, hostmount.Loop{
		Device: Path(n), File: c.File, BlockSize: c.BlockSize, ReadOnly: c.ReadOnly, DirectIO: c.DirectIO,
	})
}

// ensureNode waits for /dev/loopN, and makes it where nothing else does.
func ensureNode(ctx context.Context, n int) error {
	path := Path(n)
	for end := time.Now().Add(nodeTimeout); time.Now().Before(end); {
		if _, err := os.Lstat(path); err == nil {
			return nil
		}
		if !managedDev() {
			break
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
	err := unix.Mknod(path, unix.S_IFBLK|0o600, int(unix.Mkdev(loopMajor, uint32(n))))
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make node %s: %w", path, err)
	}
	return nil
}

// managedDev says whether /dev is a devtmpfs, where nodes appear by themselves.
func managedDev() bool {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false
	}
	for _, l := range strings.Split(string(b), "\n") {
		head, tail, ok := strings.Cut(l, " - ")
		if f := strings.Fields(head); ok && len(f) > 4 && f[4] == "/dev" && strings.HasPrefix(tail, "devtmpfs ") {
			return true
		}
	}
	return false
}

func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(retryEvery):
		return nil
	}
}

// Backing returns the path of the file that device n is bound to, "" if it is
// free. It does not touch the file.
func Backing(n int) string {
	b, err := os.ReadFile(fmt.Sprintf("/sys/block/loop%d/loop/backing_file", n))
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(string(b), "\n")
}

// Find returns the numbers of the devices bound to file, ascending.
func Find(file string) ([]int, error) {
	dirs, err := filepath.Glob("/sys/block/loop*/loop")
	if err != nil {
		return nil, fmt.Errorf("loop find %s: %w", file, err)
	}
	var out []int
	for _, d := range dirs {
		n, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(filepath.Dir(d)), "loop"))
		if err == nil && Backing(n) == file {
			out = append(out, n)
		}
	}
	sort.Ints(out)
	return out, nil
}

// SetCapacity makes device n, which is bound to file, as large as that is now.
func SetCapacity(ctx context.Context, n int, file string) error {
	if err := hostmount.ResizeLoop(ctx, Path(n), file); err != nil {
		return fmt.Errorf("loop resize %s: %w", Path(n), err)
	}
	return nil
}

// Size of the device in bytes as the kernel has it.
func Size(n int) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/sys/block/loop%d/size", n))
	if err != nil {
		return 0, fmt.Errorf("loop size %s: %w", Path(n), err)
	}
	s, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	return s * 512, err
}

// Detach unbinds device n if it is bound to file; if it is not, there is
// nothing to do. While the device is in use it refuses with BusyError unless
// force, when the kernel unbinds it at the last close. The backing file must
// be served: closing the device writes what its cache holds. With force the
// caller has made that fail instead of hang.
func Detach(ctx context.Context, n int, file string, force bool) error {
	if Backing(n) != file {
		return nil
	}
	err := unbind(ctx, n, file, force)
	if err != nil && !errors.Is(err, unix.ENXIO) { // unbound meanwhile
		return fmt.Errorf("loop detach: %w", err)
	}
	return waitFree(ctx, n, file, force)
}

// openersPatience is how long programs that look at a device may take.
const openersPatience = 2 * time.Second

// unbind clears the device when nobody else has it open, or in any case with
// force. It is a child's work, as bind is: who is killed with a device open
// closes it, and that waits for what is read of it.
func unbind(ctx context.Context, n int, file string, force bool) error {
	for end := time.Now().Add(openersPatience); ; {
		var busy *drivers.BusyError
		if !force {
			busy = drivers.Users(Path(n))
		}
		if busy == nil || !busy.Known() {
			err := hostmount.ClearLoop(ctx, Path(n), file, force)
			if !errors.Is(err, unix.EBUSY) {
				return err
			}
			busy = drivers.Users(Path(n))
		}
		if len(busy.Mounts)+len(busy.Holders) > 0 || time.Now().After(end) {
			return busy
		}
		if err := pause(ctx); err != nil {
			return errors.Join(busy, err)
		}
	}
}

// waitFree waits until the last close has unbound the device.
func waitFree(ctx context.Context, n int, file string, force bool) error {
	timeout := goneTimeout
	if force {
		timeout = goneTimeout / 5
	}
	for end := time.Now().Add(timeout); Backing(n) == file; {
		if time.Now().After(end) {
			if force {
				return nil // with the last close, whenever that is
			}
			return fmt.Errorf("loop detach %s: %w", Path(n), drivers.Users(Path(n)))
		}
		if err := pause(ctx); err != nil {
			return fmt.Errorf("loop detach %s: %w", Path(n), err)
		}
	}
	return nil
}

// Probe says whether loop devices can be used.
func Probe() drivers.Support {
	s := drivers.Support{Name: "loop device"}
	fd, err := unix.Open(controlPath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		s.Reason = fmt.Sprintf("cannot open %s: %v", controlPath, err)
		s.Fix = "run as root; load the module: modprobe loop"
		return s
	}
	unix.Close(fd)
	s.Available, s.Reason = true, controlPath+" is there"
	return s
}
