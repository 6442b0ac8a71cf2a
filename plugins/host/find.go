package host

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/moraine-storage/moraine/backends"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// Prefix begins the file name of an external backend plugin.
const Prefix = "moraine-backend-"

// Kind tells where a plugin's code is.
type Kind string

// The kinds.
const (
	Builtin  Kind = "builtin"
	External Kind = "external"
)

// program is what to execute for a plugin.
type program struct {
	kind Kind
	path string   // of the file; for a built-in argv[0]
	argv []string // argv[0] is the name shown
	file *os.File // external and pinned: opened and verified; the caller closes it; else nil
	id   fileID   // external: what the file was when it was looked at
}

// fileID changes when a plugin's file is replaced or written.
type fileID struct {
	dev, ino     uint64
	size         int64
	mtime, ctime int64 // nanoseconds
}

func idOf(fi fs.FileInfo) fileID {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return fileID{size: fi.Size(), mtime: fi.ModTime().UnixNano()}
	}
	return fileID{uint64(st.Dev), st.Ino, st.Size, st.Mtim.Nano(), st.Ctim.Nano()}
}

// find says what to run for the plugin of that name. pin is a SHA-256 in hex
// or "".
func (h *Host) find(name, pin string) (*program, error) {
	if err := backends.CheckName(name); err != nil {
		return nil, fmt.Errorf("find plugin: %w", err)
	}
	if h.o.Builtin != nil {
		if argv, ok := h.o.Builtin(name); ok && len(argv) > 0 {
			if pin != "" {
				return nil, fmt.Errorf("find plugin %s: %w: it is built in, a checksum is for external plugins", name, errdefs.ErrInvalidArgument)
			}
			return &program{kind: Builtin, path: argv[0], argv: argv}, nil
		}
	}
	if h.o.PluginDir == "" {
		return nil, fmt.Errorf("find plugin %s: %w: not built in, and no plugin_dir is set", name, errdefs.ErrNotFound)
	}
	path := filepath.Join(h.o.PluginDir, Prefix+name)
	f, fi, err := openPlugin(path)
	if err != nil {
		return nil, fmt.Errorf("find plugin %s: %w", name, err)
	}
	p := &program{kind: External, path: path, argv: []string{path}, id: idOf(fi)}
	if pin == "" {
		return p, f.Close()
	}
	if err := checkSum(f, pin); err != nil {
		return nil, errors.Join(fmt.Errorf("find plugin %s: %s: %w", name, path, err), f.Close())
	}
	p.file = f
	return p, nil
}

// openPlugin opens an executable that only root or this user could have put there.
func openPlugin(path string) (*os.File, fs.FileInfo, error) {
	if err := safe(filepath.Dir(path), true); err != nil {
		return nil, nil, err
	}
	// O_NONBLOCK: a fifo of that name must not block the agent.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("%w: no file %s", errdefs.ErrNotFound, path)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", errdefs.ErrFailedPrecondition, err)
	}
	fi, err := f.Stat()
	if err == nil {
		err = check(path, fi, false)
	}
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return f, fi, nil
}

func safe(path string, dir bool) error {
	fi, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: no directory %s", errdefs.ErrNotFound, path)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errdefs.ErrFailedPrecondition, err)
	}
	return check(path, fi, dir)
}

func check(path string, fi fs.FileInfo, dir bool) error {
	refuse := func(why string) error {
		return fmt.Errorf("%w: %s %s", errdefs.ErrFailedPrecondition, path, why)
	}
	switch {
	case dir && !fi.IsDir():
		return refuse("is not a directory")
	case !dir && !fi.Mode().IsRegular():
		return refuse("is not a regular file")
	case !dir && fi.Mode().Perm()&0o111 == 0:
		return refuse("is not executable")
	case !dir && fi.Size() > maxPluginSize:
		return refuse("is larger than 1 GiB")
	case fi.Mode().Perm()&0o022 != 0 && fi.Mode()&fs.ModeSticky == 0:
		return refuse("can be written by others than its owner (chmod go-w)")
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok && st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return refuse("belongs to another user")
	}
	return nil
}

func checkSum(f *os.File, pin string) error {
	want, err := hex.DecodeString(pin)
	if err != nil || len(want) != sha256.Size {
		return fmt.Errorf("%w: sha256 must be 64 hexadecimal digits", errdefs.ErrInvalidArgument)
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, io.LimitReader(f, maxPluginSize)); err != nil {
		return fmt.Errorf("%w: %w", errdefs.ErrUnavailable, err)
	}
	if got := sum.Sum(nil); string(got) != string(want) {
		return fmt.Errorf("%w: checksum is %x, configured is %x: not the file that was pinned", errdefs.ErrFailedPrecondition, got, want)
	}
	return nil
}

// current returns the identity of the file of an external plugin now.
func current(path string) (fileID, bool) {
	fi, err := os.Stat(path)
	if err != nil {
		return fileID{}, false
	}
	return idOf(fi), true
}

// available lists the external plugins in the directory by name.
func (h *Host) available() []string {
	if h.o.PluginDir == "" {
		return nil
	}
	entries, err := os.ReadDir(h.o.PluginDir)
	if err != nil {
		return nil
	}
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutPrefix(e.Name(), Prefix); ok && backends.CheckName(name) == nil {
			names = append(names, name)
		}
	}
	return names
}
