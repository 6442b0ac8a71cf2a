package drivers

import (
	"bytes"
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

	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// BusyError says that a device is in use and by whom, as far as /proc and
// /sys tell. It is of class FailedPrecondition.
type BusyError struct {
	Device    string
	Mounts    []string // mount points, "(in process 12)" appended for other namespaces
	Holders   []string // block devices stacked on it (device-mapper, md), swap
	Processes []string // "name[pid]" that have it open
}

func (e *BusyError) Error() string {
	var parts []string
	add := func(what string, names []string) {
		if len(names) > 0 {
			parts = append(parts, what+" "+strings.Join(names, ", "))
		}
	}
	add("mounted at", e.Mounts)
	add("held by", e.Holders)
	add("open in", e.Processes)
	if len(parts) == 0 {
		parts = append(parts, "someone that /proc does not show has it open")
	}
	return fmt.Sprintf("device %s: in use: %s", e.Device, strings.Join(parts, "; "))
}

// Unwrap gives the class.
func (e *BusyError) Unwrap() error { return errdefs.ErrFailedPrecondition }

// Known says whether a user was found.
func (e *BusyError) Known() bool { return len(e.Mounts)+len(e.Holders)+len(e.Processes) > 0 }

// maxNamed bounds each list of a BusyError: a message that a person reads.
const maxNamed = 8

// Users lists who uses the block device at path ("/dev/nbd0"), this process
// left out. It touches no file of any filesystem (a hung one would hang us):
// only /sys, /proc/PID/{mountinfo,comm} and the text of /proc/PID/fd/*.
func Users(path string) *BusyError {
	name := filepath.Base(path)
	e := &BusyError{Device: path}
	dev := ""
	if b, err := os.ReadFile("/sys/class/block/" + name + "/dev"); err == nil {
		dev = strings.TrimSpace(string(b))
	}
	if hs, err := os.ReadDir("/sys/class/block/" + name + "/holders"); err == nil {
		for _, h := range hs {
			e.Holders = append(e.Holders, "/dev/"+h.Name())
		}
	}
	if b, err := os.ReadFile("/proc/swaps"); err == nil {
		for _, l := range strings.Split(string(b), "\n") {
			if f := strings.Fields(l); len(f) > 0 && f[0] == path {
				e.Holders = append(e.Holders, "swap")
			}
		}
	}
	seen := map[string]bool{}
	ownNS, _ := os.Readlink("/proc/self/ns/mnt")
	nsDone := map[string]bool{}
	procs, _ := os.ReadDir("/proc")
	self := os.Getpid()
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		if ns, err := os.Readlink("/proc/" + p.Name() + "/ns/mnt"); err == nil && !nsDone[ns] && dev != "" {
			nsDone[ns] = true
			e.addMounts(pid, dev, ns == ownNS, seen)
		}
		if pid != self && hasOpen(pid, path) && len(e.Processes) < maxNamed {
			e.Processes = append(e.Processes, fmt.Sprintf("%s[%d]", comm(pid), pid))
		}
	}
	sort.Strings(e.Mounts)
	return e
}

func (e *BusyError) addMounts(pid int, dev string, own bool, seen map[string]bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return
	}
	for _, l := range bytes.Split(b, []byte("\n")) {
		f := strings.Fields(string(l))
		if len(f) < 5 || f[2] != dev {
			continue
		}
		at := Unescape(f[4])
		if seen[at] || len(e.Mounts) >= maxNamed {
			continue
		}
		seen[at] = true
		if !own {
			at += fmt.Sprintf(" (in %s[%d])", comm(pid), pid)
		}
		e.Mounts = append(e.Mounts, at)
	}
}

// hasOpen compares link texts only: following one could hang.
func hasOpen(pid int, path string) bool {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	fds, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	for _, fd := range fds {
		if t, err := os.Readlink(dir + "/" + fd.Name()); err == nil && t == path {
			return true
		}
	}
	return false
}

// comm never blocks, unlike /proc/PID/cmdline, which takes the memory lock of
// a process that may hang in a page fault.
func comm(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return "?"
	}
	return strings.TrimSpace(string(b))
}

// Unescape undoes the octal escapes (\040 and so on) of /proc/*/mountinfo.
func Unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				out = append(out, byte(n))
				i += 3
				continue
			}
		}
		out = append(out, s[i])
	}
	return string(out)
}

// OpenExclusive opens a block device so that nobody can mount it from then on;
// the caller owns the descriptor. What holds the device exclusively (a
// filesystem, device-mapper, swap) makes it fail at once with BusyError;
// processes that merely have it open are waited for a moment, because udev and
// blkid look at every new device. With force an exclusive holder is passed over.
func OpenExclusive(ctx context.Context, path string, force bool) (int, error) {
	end := time.Now().Add(openersPatience)
	for {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_EXCL, 0)
		if force && errors.Is(err, unix.EBUSY) {
			fd, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		}
		if err != nil && !errors.Is(err, unix.EBUSY) {
			return -1, fmt.Errorf("open %s: %w", path, err)
		}
		if err == nil && force {
			return fd, nil
		}
		busy := Users(path)
		if err == nil && !busy.Known() {
			return fd, nil
		}
		if err == nil {
			unix.Close(fd)
		}
		if len(busy.Mounts)+len(busy.Holders) > 0 || time.Now().After(end) {
			return -1, busy
		}
		select {
		case <-ctx.Done():
			return -1, errors.Join(busy, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// openersPatience is how long programs that look at a device may take.
const openersPatience = 2 * time.Second

// ProcessesBelow names the processes that have a file, their working
// directory or their root at path or below it, as far as link texts tell.
func ProcessesBelow(path string) []string {
	var out []string
	procs, _ := os.ReadDir("/proc")
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err != nil || len(out) >= maxNamed {
			continue
		}
		if usesBelow("/proc/"+p.Name(), path) {
			out = append(out, fmt.Sprintf("%s[%d]", comm(pid), pid))
		}
	}
	return out
}

func usesBelow(proc, path string) bool {
	links := []string{proc + "/cwd", proc + "/root", proc + "/exe"}
	fds, _ := os.ReadDir(proc + "/fd")
	for _, fd := range fds {
		links = append(links, proc+"/fd/"+fd.Name())
	}
	for _, l := range links {
		if t, err := os.Readlink(l); err == nil && (t == path || strings.HasPrefix(t, path+"/")) {
			return true
		}
	}
	return false
}
