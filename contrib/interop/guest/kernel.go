package guest

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// kernel is what a package of Debian's unpacks to.
type kernel struct {
	image   string            // path of vmlinuz
	modules map[string]string // name → path of the .ko
	builtin map[string]bool   // names of what is linked in
}

// metaPackage depends on the newest kernel that is made for virtual machines.
const metaPackage = "linux-image-cloud-amd64"

// findKernel unpacks the kernel in the cache, after downloading it if the
// cache is empty. Several processes may do so at once.
func findKernel(ctx context.Context, cache string) (*kernel, error) {
	if cache == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			return nil, err
		}
		cache = filepath.Join(base, "moraine", "guest")
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(cache, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return nil, err
	}
	root := filepath.Join(cache, "root")
	if _, err := os.Stat(filepath.Join(root, "complete")); err != nil {
		if err := unpack(ctx, cache, root); err != nil {
			return nil, err
		}
	}
	return readKernel(root)
}

func unpack(ctx context.Context, cache, root string) error {
	debs, _ := filepath.Glob(filepath.Join(cache, "linux-image-*.deb"))
	if len(debs) == 0 {
		if err := download(ctx, cache); err != nil {
			return err
		}
		debs, _ = filepath.Glob(filepath.Join(cache, "linux-image-*.deb"))
	}
	if len(debs) == 0 {
		return fmt.Errorf("kernel: no package came: %w", ErrMissing)
	}
	if err := os.RemoveAll(root); err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, "dpkg-deb", "-x", debs[len(debs)-1], root).CombinedOutput(); err != nil {
		return fmt.Errorf("kernel: unpack: %w: %s", err, out)
	}
	return os.WriteFile(filepath.Join(root, "complete"), nil, 0o644)
}

func download(ctx context.Context, dir string) error {
	out, err := exec.CommandContext(ctx, "apt-cache", "depends", metaPackage).Output()
	if err != nil {
		return fmt.Errorf("kernel: apt-cache depends %s: %w: %w", metaPackage, err, ErrMissing)
	}
	for _, l := range strings.Split(string(out), "\n") {
		name, ok := strings.CutPrefix(strings.TrimSpace(l), "Depends: ")
		if !ok || !strings.HasPrefix(name, "linux-image-") {
			continue
		}
		cmd := exec.CommandContext(ctx, "apt-get", "download", name)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("kernel: apt-get download %s: %w: %s: %w", name, err, out, ErrMissing)
		}
		return nil
	}
	return fmt.Errorf("kernel: %s depends on no kernel (run apt-get update?): %w", metaPackage, ErrMissing)
}

func readKernel(root string) (*kernel, error) {
	images, _ := filepath.Glob(filepath.Join(root, "boot", "vmlinuz-*"))
	if len(images) == 0 {
		return nil, fmt.Errorf("kernel: no image below %s: %w", root, ErrMissing)
	}
	k := &kernel{image: images[0], modules: map[string]string{}, builtin: map[string]bool{}}
	err := filepath.WalkDir(filepath.Join(root, "lib", "modules"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if name, ok := moduleName(path); ok {
			k.modules[name] = path
		}
		if filepath.Base(path) != "modules.builtin" {
			return nil
		}
		b, err := os.ReadFile(path)
		for _, l := range strings.Split(string(b), "\n") {
			if name, ok := moduleName(l); ok {
				k.builtin[name] = true
			}
		}
		return err
	})
	return k, err
}

func moduleName(path string) (string, bool) {
	name, ok := strings.CutSuffix(filepath.Base(path), ".ko")
	return strings.ReplaceAll(name, "-", "_"), ok
}

// resolve appends the module and, before it, what it depends on.
func (k *kernel) resolve(list []string, name string) ([]string, error) {
	name = strings.ReplaceAll(name, "-", "_")
	if k.builtin[name] {
		return list, nil
	}
	for _, m := range list {
		if m == name {
			return list, nil
		}
	}
	path, ok := k.modules[name]
	if !ok {
		return nil, fmt.Errorf("module %s: not in the kernel's package: %w", name, ErrMissing)
	}
	deps, err := moduleDepends(path)
	if err != nil {
		return nil, fmt.Errorf("module %s: %w", name, err)
	}
	for _, d := range deps {
		if list, err = k.resolve(list, d); err != nil {
			return nil, err
		}
	}
	return append(list, name), nil
}

// moduleDepends reads "depends=a,b" from the section .modinfo.
func moduleDepends(path string) ([]string, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s := f.Section(".modinfo")
	if s == nil {
		return nil, errors.New("no section .modinfo")
	}
	b, err := s.Data()
	if err != nil {
		return nil, err
	}
	for _, kv := range strings.Split(string(b), "\x00") {
		if v, ok := strings.CutPrefix(kv, "depends="); ok && v != "" {
			return strings.Split(v, ","), nil
		}
	}
	return nil, nil
}
