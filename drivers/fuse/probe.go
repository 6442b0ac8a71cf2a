package fuse

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/drivers"
)

// Probe says whether FUSE can be used, and whether this kernel can send
// requests again after the agent was killed.
func Probe() drivers.Support {
	s := drivers.Support{Name: "fuse"}
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		s.Reason = fmt.Sprintf("cannot open /dev/fuse: %v", err)
		s.Fix = "run as root; load the module: modprobe fuse"
		return s
	}
	unix.Close(fd)
	s.Available, s.Reason = true, "/dev/fuse is there"
	if release, old := kernelBefore(6, 9); old {
		s.Reason += fmt.Sprintf("; Linux %s cannot send requests again: after a kill of the agent (not after a stop) the device must be attached anew", release)
		s.Fix = "use the nbd module (modprobe nbd) or Linux 6.9 or later"
	}
	return s
}

// kernelBefore compares the running kernel's release.
func kernelBefore(major, minor int) (string, bool) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "?", true
	}
	release := unix.ByteSliceToString(u.Release[:])
	a, rest, _ := strings.Cut(release, ".")
	b, _, _ := strings.Cut(strings.FieldsFunc(rest, func(r rune) bool { return r < '0' || r > '9' })[0]+".", ".")
	x, _ := strconv.Atoi(a)
	y, _ := strconv.Atoi(b)
	return release, x < major || x == major && y < minor
}
