package vfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Errors of this package.
var (
	ErrLocked   = errors.New("locked by another process")
	ErrNoDirect = errors.New("file system refuses direct I/O")
	ErrNoPunch  = errors.New("file system cannot punch holes")
)

// OS is the real file system.
type OS struct{}

// Open implements FS.
func (OS) Open(name string, f Flags) (File, error) {
	flag := os.O_RDWR
	if f&ReadOnly != 0 {
		flag = os.O_RDONLY
	}
	if f&Create != 0 {
		flag |= os.O_CREATE
	}
	if f&Exclusive != 0 {
		flag |= os.O_EXCL
	}
	if f&Direct != 0 {
		flag |= unix.O_DIRECT
	}
	h, err := os.OpenFile(name, flag, 0o600)
	if err != nil {
		if f&Direct != 0 && errors.Is(err, unix.EINVAL) {
			return nil, fmt.Errorf("open %s: %w", name, ErrNoDirect)
		}
		return nil, err
	}
	return &osFile{f: h}, nil
}

// Mkdir implements FS.
func (OS) Mkdir(name string) error {
	err := os.Mkdir(name, 0o700)
	if errors.Is(err, fs.ErrExist) {
		st, serr := os.Stat(name)
		if serr == nil && st.IsDir() {
			return nil
		}
	}
	return err
}

// Remove implements FS.
func (OS) Remove(name string) error { return os.Remove(name) }

// Rename implements FS.
func (OS) Rename(from, to string) error { return os.Rename(from, to) }

// List implements FS.
func (OS) List(dir string) ([]string, error) {
	ents, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(ents))
	for _, e := range ents {
		names = append(names, e.Name())
	}
	return names, nil
}

// SyncDir implements FS.
func (OS) SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Lock implements FS by flock(2): the kernel drops it when the process dies.
func (OS) Lock(name string) (io.Closer, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if errors.Is(err, unix.EROFS) || errors.Is(err, unix.EACCES) { // a dead node's drive, mounted for reading
		f, err = os.Open(name)
	}
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		cerr := f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", name, ErrLocked)
		}
		return nil, errors.Join(fmt.Errorf("lock %s: %w", name, err), cerr)
	}
	return f, nil
}

// Medium implements FS.
func (OS) Medium(dir string) (Medium, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return Medium{}, fmt.Errorf("statfs %s: %w", dir, err)
	}
	m := Medium{
		Total:  int64(st.Blocks) * int64(st.Bsize),
		Free:   int64(st.Bavail) * int64(st.Bsize),
		Memory: int64(st.Type) == unix.TMPFS_MAGIC || int64(st.Type) == unix.RAMFS_MAGIC,
	}
	if !m.Memory {
		m.DiskSeq = diskSeq(dir)
	}
	return m, nil
}

// diskSeq returns the kernel's sequence number of the disk below dir: it
// changes when the device is unplugged and plugged, which loses its cache.
func diskSeq(dir string) uint64 {
	var st unix.Stat_t
	if unix.Stat(dir, &st) != nil {
		return 0
	}
	dev := uint64(st.Dev)
	base, err := filepath.EvalSymlinks(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(dev), unix.Minor(dev)))
	if err != nil {
		return 0
	}
	for _, d := range []string{base, filepath.Dir(base)} { // a partition has it at its disk
		b, err := os.ReadFile(filepath.Join(d, "diskseq"))
		if err != nil {
			continue
		}
		if n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64); err == nil {
			return n
		}
	}
	return 0
}

type osFile struct{ f *os.File }

func (f *osFile) ReadAt(p []byte, off int64) (int, error)  { return f.f.ReadAt(p, off) }
func (f *osFile) WriteAt(p []byte, off int64) (int, error) { return f.f.WriteAt(p, off) }
func (f *osFile) Close() error                             { return f.f.Close() }
func (f *osFile) Truncate(size int64) error                { return f.f.Truncate(size) }
func (f *osFile) Fd() int                                  { return int(f.f.Fd()) }

func (f *osFile) Sync() error {
	for {
		err := unix.Fdatasync(int(f.f.Fd()))
		if !errors.Is(err, unix.EINTR) {
			return wrap("fdatasync", f.f.Name(), err)
		}
	}
}

func (f *osFile) Punch(off, length int64) error {
	err := f.fallocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, length)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("punch %s: %w", f.f.Name(), ErrNoPunch)
	}
	return wrap("punch", f.f.Name(), err)
}

// Allocate is a hint that must not fail where it is not supported.
func (f *osFile) Allocate(off, length int64) error {
	err := f.fallocate(unix.FALLOC_FL_KEEP_SIZE, off, length)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return wrap("allocate", f.f.Name(), err)
}

func (f *osFile) fallocate(mode uint32, off, length int64) error {
	for {
		err := unix.Fallocate(int(f.f.Fd()), mode, off, length)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func (f *osFile) Size() (int64, error) {
	st, err := f.f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

func wrap(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %s: %w", op, name, err)
}
