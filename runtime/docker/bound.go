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
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false, err
	}
	own, ok := mountedAt(string(table), path)
	if !ok {
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
		// The name of a namespace only saves work; it may be withheld.
		ns, err := os.Readlink("/proc/" + p.Name() + "/ns/mnt")
		if err == nil && seen[ns] {
			continue
		}
		named := err == nil
		table, err = os.ReadFile("/proc/" + p.Name() + "/mountinfo")
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) || errors.Is(err, syscall.EINVAL) {
			continue // it has ended
		}
		if err != nil {
			return false, err
		}
		if named {
			seen[ns] = true
		}
		if boundIn(string(table), own) {
			return true, nil
		}
	}
	return false, nil
}

// mountLine is what matters of a line of mountinfo (proc(5)).
type mountLine struct {
	id         string // of the mount: the same in no two namespaces
	dev, at    string
	propagated bool // it has a peer or a master
}

func parseMountLine(line string) (m mountLine, ok bool) {
	f := strings.Fields(line)
	// 36 35 98:0 /root /at options [tags...] - type source options
	if len(f) < 7 {
		return m, false
	}
	m.id, m.dev, m.at = f[0], f[2], unescape(f[4])
	m.propagated = f[6] != "-"
	return m, true
}

// mountedAt is the topmost mount at path.
func mountedAt(table, path string) (top mountLine, ok bool) {
	for line := range strings.Lines(table) {
		if m, good := parseMountLine(line); good && m.at == path {
			top, ok = m, true
		}
	}
	return top, ok
}

// boundIn says whether a table has the device of the agent's own mount at any
// other place. A copy at the same path does not count if it came by
// propagation: it will go the same way.
func boundIn(table string, own mountLine) bool {
	for line := range strings.Lines(table) {
		m, ok := parseMountLine(line)
		if ok && m.dev == own.dev && m.id != own.id && (m.at != own.at || !m.propagated) {
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
