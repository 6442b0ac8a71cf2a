package docker

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// initPIDNamespace is the kernel's fixed number of the first one
// (PROC_PID_INIT_INO): only from there are all processes visible.
const initPIDNamespace = "pid:[4026531836]"

// boundElsewhere says whether the filesystem mounted at path is mounted at any
// other place: that is how a container has a volume, in a mount namespace of
// its own. It reads /proc only, never the filesystem, which may hang. Not being
// able to tell is an error.
func boundElsewhere(path string) (bool, error) {
	if ns, err := os.Readlink("/proc/self/ns/pid"); err != nil || ns != initPIDNamespace {
		return false, fmt.Errorf("mounts of %s: other processes cannot be seen from here: %w", path, errdefs.ErrUnavailable)
	}
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return false, err
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false, err
	}
	dev := deviceAt(string(table), path)
	if dev == "" {
		return false, fmt.Errorf("mounts of %s: nothing is mounted there: %w", path, errdefs.ErrNotFound)
	}
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return false, err
	}
	seen := map[string]bool{}
	for _, p := range procs {
		if _, err := strconv.Atoi(p.Name()); err != nil {
			continue
		}
		ns, err := os.Readlink("/proc/" + p.Name() + "/ns/mnt")
		if err == nil && seen[ns] {
			continue
		}
		if err == nil {
			table, err = os.ReadFile("/proc/" + p.Name() + "/mountinfo")
		}
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) || errors.Is(err, syscall.EINVAL) {
			continue // it has ended
		}
		if err != nil {
			return false, err
		}
		seen[ns] = true
		if boundIn(string(table), dev, path, ns == own) {
			return true, nil
		}
	}
	return false, nil
}

// mountLine is what matters of a line of mountinfo (proc(5)).
type mountLine struct {
	dev, at    string
	propagated bool // it has a peer or a master
}

func parseMountLine(line string) (m mountLine, ok bool) {
	f := strings.Fields(line)
	// 36 35 98:0 /root /at options [tags...] - type source options
	if len(f) < 7 {
		return m, false
	}
	m.dev, m.at = f[2], unescape(f[4])
	for _, tag := range f[6:] {
		if tag == "-" {
			break
		}
		m.propagated = true
	}
	return m, true
}

// deviceAt is the major:minor of the topmost mount at path, "" if none.
func deviceAt(table, path string) string {
	dev := ""
	for line := range strings.Lines(table) {
		if m, ok := parseMountLine(line); ok && m.at == path {
			dev = m.dev
		}
	}
	return dev
}

// boundIn says whether a namespace has the device mounted anywhere but at the
// agent's own path. A copy at that path in another namespace does not count if
// it came by propagation, and will go the same way.
func boundIn(table, dev, path string, own bool) bool {
	for line := range strings.Lines(table) {
		m, ok := parseMountLine(line)
		if ok && m.dev == dev && (m.at != path || !own && !m.propagated) {
			return true
		}
	}
	return false
}

// unescape undoes the octal escapes of mountinfo, \040 for a space.
func unescape(s string) string {
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
