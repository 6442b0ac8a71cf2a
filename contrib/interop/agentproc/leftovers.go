package agentproc

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// Leftover is something on the host that belongs to an agent.
type Leftover struct {
	Kind string // mount, loop, process, socket
	Name string // mount point, device, process id, path
	what string

	fuse bool // a mount that a process serves
}

func (l Leftover) String() string {
	return strings.TrimSpace(fmt.Sprintf("%s %s %s", l.Kind, l.Name, l.what))
}

// Leftovers finds what on this host mentions dir: mounts at or from it, loop
// devices on files in it, processes with it in their arguments, sockets in it.
// In the order in which it can be taken down: mounts, the last made first,
// then loop devices, then processes. It looks at no file of a mount: one whose
// server is dead would hang it.
func Leftovers(dir string) []Leftover {
	at := mounts(dir)
	return slices.Concat(at, loops(dir), processes(dir), sockets(dir, at))
}

func mounts(dir string) []Leftover {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	ours := map[string]bool{} // sources of our mounts: loop devices
	for _, l := range loops(dir) {
		ours[l.Name] = true
	}
	var list []Leftover
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 10 {
			continue
		}
		at, source := f[4], f[len(f)-2]
		if strings.HasPrefix(at, dir+"/") || strings.Contains(source, dir) || ours[source] {
			list = append(list, Leftover{Kind: "mount", Name: at, what: "of " + source, fuse: strings.HasPrefix(f[len(f)-3], "fuse")})
		}
	}
	slices.Reverse(list)
	return list
}

func loops(dir string) []Leftover {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil
	}
	var list []Leftover
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.Contains(string(b), dir) {
			list = append(list, Leftover{Kind: "loop", Name: "/dev/" + strings.Split(f, "/")[3], what: strings.TrimSpace(string(b))})
		}
	}
	return list
}

func processes(dir string) []Leftover {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil
	}
	var list []Leftover
	for _, f := range files {
		pid := strings.Split(f, "/")[2]
		b, err := os.ReadFile(f)
		if err != nil || pid == strconv.Itoa(os.Getpid()) {
			continue
		}
		if line := strings.ReplaceAll(string(b), "\x00", " "); strings.Contains(line, dir) {
			list = append(list, Leftover{Kind: "process", Name: pid, what: strings.TrimSpace(line)})
		}
	}
	return list
}

func sockets(dir string, mounts []Leftover) []Leftover {
	var list []Leftover
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if slices.ContainsFunc(mounts, func(m Leftover) bool { return m.Name == path }) {
			return fs.SkipDir
		}
		if err == nil && d.Type() == fs.ModeSocket {
			list = append(list, Leftover{Kind: "socket", Name: path})
		}
		return nil
	})
	return list
}

// TakeDown removes by force what Leftovers finds; only for the end of a test.
func TakeDown(t testing.TB, dir string) {
	// A loop device on a file whose mount has gone no longer says whose it was.
	ours := loops(dir)
	defer func() {
		for _, l := range ours {
			b, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(l.Name), "loop/backing_file"))
			file := strings.TrimSpace(string(b))
			if err != nil || !strings.Contains(file, dir) && !strings.HasSuffix(l.what, file) {
				continue // gone, or somebody else's by now
			}
			if err := l.remove(); err != nil {
				t.Logf("clean up %s: %v", l, err)
			}
		}
	}()
	// First what nobody may answer any more: everything above would wait for it.
	for _, l := range mounts(dir) {
		if !l.fuse {
			continue
		}
		if err := l.remove(); err != nil {
			t.Logf("clean up %s: %v", l, err)
		}
	}
	// Twice: what a process holds can go only after it.
	for range 2 {
		for _, l := range Leftovers(dir) {
			if err := l.remove(); err != nil {
				t.Logf("clean up %s: %v", l, err)
			}
		}
	}
}

// remove takes it down by force; only for the end of a test.
func (l Leftover) remove() error {
	switch l.Kind {
	case "mount":
		return syscall.Unmount(l.Name, syscall.MNT_DETACH|syscall.MNT_FORCE)
	case "loop":
		out, err := exec.Command("losetup", "-d", l.Name).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
	case "process":
		pid, err := strconv.Atoi(l.Name)
		if err != nil {
			return err
		}
		return syscall.Kill(pid, syscall.SIGKILL)
	}
	return nil // sockets go with the directory
}
