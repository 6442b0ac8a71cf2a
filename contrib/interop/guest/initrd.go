package guest

import (
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
)

// initScript is the first process of the guest.
const initScript = `#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm /run /tmp /root /var/lib /sys/fs/cgroup
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
ln -sf /proc/self/fd /dev/fd
ip link set lo up
cd /root
code=0
sh /load-modules || code=97
echo "` + beginMark + `"
if [ $code = 0 ]; then sh /script 2>&1; code=$?; fi
echo
echo "` + endMark + `$code ==="
sync
poweroff -f
`

// archive writes a cpio archive in the "newc" format, which the kernel
// unpacks.
type archive struct {
	w    *bufio.Writer
	n    int64
	ino  uint32
	dirs map[string]bool
}

const (
	modeDir  = 0o040755
	modeFile = 0o100000
	modeLink = 0o120777
)

func (a *archive) entry(name string, mode uint32, size int64, body io.Reader) error {
	name = strings.TrimPrefix(name, "/")
	a.ino++
	h := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X", a.ino, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, len(name)+1, 0)
	if err := a.text(h + name + "\x00"); err != nil {
		return err
	}
	if err := a.align(); err != nil {
		return err
	}
	if body != nil {
		n, err := io.Copy(a.w, body)
		a.n += n
		if err != nil {
			return err
		}
		if n != size {
			return fmt.Errorf("%s: changed while it was read", name)
		}
	}
	return a.align()
}

func (a *archive) text(s string) error {
	n, err := a.w.WriteString(s)
	a.n += int64(n)
	return err
}

func (a *archive) align() error { return a.text("\x00\x00\x00"[:(4-a.n%4)%4]) }

// parents makes the directories above name.
func (a *archive) parents(name string) error {
	dir := filepath.Dir(filepath.Clean("/" + name))
	if dir == "/" || a.dirs[dir] {
		return nil
	}
	if err := a.parents(dir); err != nil {
		return err
	}
	a.dirs[dir] = true
	return a.entry(dir, modeDir, 0, nil)
}

func (a *archive) dir(name string) error { return a.parents(name + "/x") }

func (a *archive) bytes(name string, perm uint32, s string) error {
	if err := a.parents(name); err != nil {
		return err
	}
	return a.entry(name, modeFile|perm, int64(len(s)), strings.NewReader(s))
}

func (a *archive) file(name, from string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("%s: not a regular file", from)
	}
	if err := a.parents(name); err != nil {
		return err
	}
	return a.entry(name, modeFile|uint32(st.Mode().Perm()), st.Size(), f)
}

func (a *archive) link(name, target string) error {
	if err := a.parents(name); err != nil {
		return err
	}
	return a.entry(name, modeLink, int64(len(target)), strings.NewReader(target))
}

// buildInitrd writes the guest's root.
func buildInitrd(path string, k *kernel, c *Config) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	z, err := gzip.NewWriterLevel(f, gzip.BestSpeed)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, z.Close()) }()
	a := &archive{w: bufio.NewWriterSize(z, 1<<20), dirs: map[string]bool{}}
	defer func() {
		if err == nil {
			err = errors.Join(a.entry("TRAILER!!!", 0, 0, nil), a.w.Flush())
		}
	}()
	for _, d := range []string{"/proc", "/sys", "/dev", "/etc", "/mnt", "/root", "/tmp", "/run", "/var"} {
		if err := a.dir(d); err != nil {
			return err
		}
	}
	if err := a.bytes("/etc/mtab", 0o644, ""); err != nil {
		return err
	}
	if err := a.bytes("/init", 0o755, initScript); err != nil {
		return err
	}
	if err := a.bytes("/script", 0o755, c.Script); err != nil {
		return err
	}
	modules := c.Modules
	if len(c.Disks) > 0 {
		modules = append([]string{"virtio_pci", "virtio_blk"}, modules...)
	}
	if err := addModules(a, k, modules); err != nil {
		return err
	}
	return addPrograms(a, c)
}

func addModules(a *archive, k *kernel, modules []string) error {
	var names []string
	params := map[string]string{}
	var err error
	for _, m := range modules {
		name, p, _ := strings.Cut(m, " ")
		params[strings.ReplaceAll(name, "-", "_")] = p
		if names, err = k.resolve(names, name); err != nil {
			return err
		}
	}
	load := "set -e\n"
	for _, n := range names {
		if err := a.file("/modules/"+n+".ko", k.modules[n]); err != nil {
			return err
		}
		load += fmt.Sprintf("insmod /modules/%s.ko %s\n", n, params[n])
	}
	return a.bytes("/load-modules", 0o755, load)
}

// addPrograms copies busybox, the programs with their libraries, the files.
func addPrograms(a *archive, c *Config) error {
	files := map[string]string{}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return fmt.Errorf("busybox: %w (package busybox-static)", ErrMissing)
	}
	files["/bin/busybox"] = busybox
	for _, p := range append([]string{busybox}, c.Programs...) {
		path, err := exec.LookPath(p)
		if err != nil {
			return fmt.Errorf("program %s: %w", p, ErrMissing)
		}
		if p != busybox {
			files["/usr/bin/"+filepath.Base(p)] = path
		}
		if err := libraries(path, files); err != nil {
			return err
		}
	}
	for to, from := range c.Files {
		files[to] = from
	}
	names := make([]string, 0, len(files))
	for n := range files {
		names = append(names, n)
	}
	sort.Strings(names)
	for _, n := range names {
		from, err := filepath.EvalSymlinks(files[n])
		if err != nil {
			return err
		}
		if err := a.file(n, from); err != nil {
			return err
		}
	}
	return a.link("/bin/sh", "busybox")
}

// libraries adds what ldd names; a static program has none.
func libraries(path string, files map[string]string) error {
	out, err := exec.Command("ldd", path).CombinedOutput()
	if err != nil {
		if strings.Contains(string(out), "not a dynamic executable") || strings.Contains(string(out), "statically linked") {
			return nil
		}
		return fmt.Errorf("ldd %s: %w: %s", path, err, out)
	}
	for _, l := range strings.Split(string(out), "\n") {
		for _, w := range strings.Fields(l) {
			if strings.HasPrefix(w, "/") {
				files[w] = w
				break
			}
		}
		if strings.Contains(l, "not found") {
			return fmt.Errorf("ldd %s: %s", path, strings.TrimSpace(l))
		}
	}
	return nil
}
