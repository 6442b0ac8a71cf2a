package nbdkernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/drivers"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// Path of a device's node.
func Path(index int) string { return fmt.Sprintf("/dev/nbd%d", index) }

func sysPath(index int, name string) string {
	return filepath.Join("/sys/block", fmt.Sprintf("nbd%d", index), name)
}

// sysText reads a file of the device; "" if it is not there.
func sysText(index int, name string) string {
	b, err := os.ReadFile(sysPath(index, name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// connected says whether the kernel has a configuration for the device. The
// file exists from CONNECT until the end of the device, whether or not a
// socket lives.
func connected(index int) bool { return sysText(index, "pid") != "" }

// identifier of a connected device; "" if it has none or the kernel is older
// than 5.14.
func identifier(index int) string { return sysText(index, "backend") }

func sizeOf(index int) int64 {
	n, err := strconv.ParseInt(sysText(index, "size"), 10, 64)
	if err != nil {
		return -1
	}
	return n * 512
}

// indexes that exist, ascending.
func indexes() []int {
	dirs, _ := filepath.Glob("/sys/block/nbd*")
	var out []int
	for _, d := range dirs {
		if n, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(d), "nbd")); err == nil {
			out = append(out, n)
		}
	}
	sort.Ints(out)
	return out
}

// free returns an index above after that nobody uses. It may be one that does
// not exist yet: CONNECT makes it.
func free(after int) int {
	for n := after + 1; ; n++ {
		if !connected(n) {
			return n
		}
	}
}

// find returns the connected devices with this identifier.
func find(id string) []int {
	var out []int
	for _, n := range indexes() {
		if connected(n) && identifier(n) == id {
			out = append(out, n)
		}
	}
	return out
}

// waitReady waits until the device has its size and its node leads to it.
func waitReady(ctx context.Context, index int, size int64) error {
	for end := time.Now().Add(readyTimeout); ; {
		got := sizeOf(index)
		ok, err := node(index)
		if connected(index) && got == size && ok {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s not ready in %v: connected %v, size %d of %d, node %v (%v): %w", Path(index), readyTimeout, connected(index), got, size, ok, err, errdefs.ErrUnavailable)
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

// node says whether /dev/nbdN is the device, and makes it if /dev has none.
func node(index int) (bool, error) {
	major, minor, ok := strings.Cut(sysText(index, "dev"), ":")
	maj, e1 := strconv.ParseUint(major, 10, 32)
	min, e2 := strconv.ParseUint(minor, 10, 32)
	if !ok || e1 != nil || e2 != nil {
		return false, nil
	}
	dev := unix.Mkdev(uint32(maj), uint32(min))
	var st unix.Stat_t
	err := unix.Stat(Path(index), &st)
	if errors.Is(err, unix.ENOENT) {
		if err := unix.Mknod(Path(index), unix.S_IFBLK|0o600, int(dev)); err != nil && !errors.Is(err, unix.EEXIST) {
			return false, err
		}
		return false, nil // look again
	}
	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK && st.Rdev == dev, err
}

func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(retryEvery):
		return nil
	}
}

// tune sets what helps; a refusal is no harm.
func tune(index, connections int) {
	set := func(name, v string) { _ = os.WriteFile(sysPath(index, "queue/"+name), []byte(v), 0) }
	set("scheduler", "none")
	set("max_sectors_kb", "1024")
	if connections == 1 {
		set("io_timeout", strconv.Itoa(int(stuckEvery/time.Millisecond)))
	}
}

// Probe says whether the kernel has nbd; it tries to load the module.
func Probe(ctx context.Context) drivers.Support {
	s := drivers.Support{Name: string(drivers.KindNBD)}
	if _, err := os.Stat("/sys/module/nbd"); err != nil {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		// No devices in advance: they are made as they are needed.
		out, err := exec.CommandContext(ctx, "modprobe", "nbd", "nbds_max=0").CombinedOutput()
		if err != nil {
			s.Reason = strings.TrimSpace(fmt.Sprintf("the nbd module is not loaded and modprobe nbd failed: %v %s", err, out))
			s.Fix = "install a kernel with the nbd module; until then volumes are attached by a loop device"
			return s
		}
	}
	if _, err := List(); err != nil {
		s.Reason = err.Error()
		s.Fix = "run as root with CAP_SYS_ADMIN in the initial namespaces"
		return s
	}
	s.Available, s.Reason = true, "the module is loaded and answers on netlink"
	return s
}
