// Package forgetfs is a file system for tests that does what a disk does in a
// power cut: what was not synced is lost, or some of it, sector by sector.
//
// It passes everything through to a directory and remembers how to undo what
// fsync has not covered yet: for each file the old content of each sector of
// 512 bytes and the old size, for each directory the names as they were. Cut
// undoes a random part of it: of sectors any subset, of changes of names a tail
// (file systems journal them in order), of a file that grew perhaps its size. A
// file that was made shorter stays so. An fsync of a file does not keep its name.
//
// The caller's process serves it: it must not touch files below the mount
// point with calls that hold up the whole process.
//
// Goroutines: those of go-fuse, which end with the mount.
package forgetfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

const (
	sector = 512
	// unmountTimeout is how long those who were killed may take to close files.
	unmountTimeout = 20 * time.Second
)

// FS is one mount.
type FS struct {
	at, back, trash string
	server          *fuse.Server

	mu    sync.Mutex
	files map[uint64]*file // by inode: those with something that is not synced
	names []change         // not synced, oldest first
	n     int              // names in trash so far
}

// file is what fsync would make durable.
type file struct {
	f      *os.File
	synced int64            // size at the last sync
	old    map[int64][]byte // by number of sector; nil: zeros
}

// change is one of names.
type change struct {
	undo   func() error
	commit func() error // or nil
}

// Mount serves dir at the directory at; dir keeps the files. What it needs
// beside them it keeps in dir + ".trash".
func Mount(at, dir string) (*FS, error) {
	f := &FS{at: at, back: dir, trash: dir + ".trash", files: map[uint64]*file{}}
	for _, d := range []string{dir, f.trash} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, err
		}
	}
	return f, f.mount()
}

func (f *FS) mount() error {
	var zero time.Duration
	s, err := fs.Mount(f.at, &node{fs: f}, &fs.Options{
		EntryTimeout: &zero, AttrTimeout: &zero, NegativeTimeout: &zero,
		MountOptions: fuse.MountOptions{DirectMountStrict: true, Name: "forget", FsName: "forget", MaxWrite: 1 << 20, DisableXAttrs: true},
	})
	f.server = s
	return err
}

// Unmount ends it; what was not synced stays, as after an orderly shutdown.
func (f *FS) Unmount() error {
	err := f.unmount()
	f.mu.Lock()
	defer f.mu.Unlock()
	for ino := range f.files {
		f.settle(ino)
	}
	return errors.Join(err, f.commit(len(f.names)))
}

func (f *FS) unmount() error {
	for end := time.Now().Add(unmountTimeout); ; time.Sleep(20 * time.Millisecond) {
		err := f.server.Unmount()
		if err == nil {
			f.server.Wait()
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("unmount %s: %w", f.at, err)
		}
	}
}

// Lost is what a cut did.
type Lost struct {
	Sectors, Kept int // not synced: lost, and not
	Names, Sizes  int // changes of names undone, files that shrank
}

// Cut is the power cut; nobody may have files open. It is mounted again after it.
func (f *FS) Cut(rng *rand.Rand) (Lost, error) {
	if err := f.unmount(); err != nil {
		return Lost{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var l Lost
	inodes := make([]uint64, 0, len(f.files))
	for ino := range f.files {
		inodes = append(inodes, ino)
	}
	slices.Sort(inodes)
	var errs []error
	for _, ino := range inodes {
		errs = append(errs, f.files[ino].cut(rng, &l))
		f.settle(ino)
	}
	keep := rng.IntN(len(f.names) + 1)
	l.Names = len(f.names) - keep
	for _, c := range slices.Backward(f.names[keep:]) {
		errs = append(errs, c.undo())
	}
	f.names = f.names[:keep]
	errs = append(errs, f.commit(keep), f.mount())
	return l, errors.Join(errs...)
}

// cut loses a share of the sectors that is chosen for each file.
func (c *file) cut(rng *rand.Rand, l *Lost) error {
	share := []int{25, 50, 75, 100}[rng.IntN(4)]
	numbers := make([]int64, 0, len(c.old))
	for n := range c.old {
		numbers = append(numbers, n)
	}
	slices.Sort(numbers)
	st, err := c.f.Stat()
	if err != nil {
		return err
	}
	for _, n := range numbers {
		if rng.IntN(100) >= share {
			l.Kept++
			continue
		}
		l.Sectors++
		p := make([]byte, sector)
		copy(p, c.old[n])
		if left := st.Size() - n*sector; left < sector {
			p = p[:max(0, left)] // the size is decided below
		}
		if _, err := c.f.WriteAt(p, n*sector); err != nil {
			return err
		}
	}
	if st.Size() > c.synced && rng.IntN(2) == 0 {
		l.Sizes++
		return c.f.Truncate(c.synced)
	}
	return nil
}

// settle forgets how to undo a file. Caller holds mu.
func (f *FS) settle(ino uint64) {
	if c := f.files[ino]; c != nil {
		_ = c.f.Close() // written through; nothing can be lost here
		delete(f.files, ino)
	}
}

// commit makes the first n changes of names durable. Caller holds mu.
func (f *FS) commit(n int) error {
	var errs []error
	for _, c := range f.names[:n] {
		if c.commit != nil {
			errs = append(errs, c.commit())
		}
	}
	f.names = slices.Delete(f.names, 0, n)
	return errors.Join(errs...)
}

// dirty returns the entry of a file that is about to change. Caller holds mu.
func (f *FS) dirty(fd *os.File) (*file, error) {
	var st syscall.Stat_t
	if err := syscall.Fstat(int(fd.Fd()), &st); err != nil {
		return nil, err
	}
	if c := f.files[st.Ino]; c != nil {
		return c, nil
	}
	// By its descriptor: names change. Opened anew because fd may be write-only.
	dup, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd.Fd()), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	c := &file{f: dup, synced: st.Size, old: map[int64][]byte{}}
	f.files[st.Ino] = c
	return c, nil
}

// remember keeps the old content of a range, unless something older is known.
func (c *file) remember(off, length int64) error {
	first, end := off/sector, (off+length+sector-1)/sector
	buf := make([]byte, (end-first)*sector)
	n, err := c.f.ReadAt(buf, first*sector)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	for s := first; s < end; s++ {
		if _, known := c.old[s]; known {
			continue
		}
		at := (s - first) * sector
		if at >= int64(n) {
			c.old[s] = nil
			continue
		}
		c.old[s] = slices.Clone(buf[at : at+sector])
	}
	return nil
}

func (f *FS) write(h *handle, p []byte, off int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	c, err := f.dirty(h.f)
	if err != nil {
		return err
	}
	if err := c.remember(off, int64(len(p))); err != nil {
		return err
	}
	if _, err := c.f.WriteAt(p, off); err != nil {
		return err
	}
	if h.sync {
		for s := off / sector; s < (off+int64(len(p))+sector-1)/sector; s++ {
			delete(c.old, s)
		}
		c.synced = max(c.synced, off+int64(len(p)))
	}
	return nil
}

func (f *FS) allocate(h *handle, off, length int64, mode uint32) error {
	const keepSize, punch, zero = 1, 2, 16
	f.mu.Lock()
	defer f.mu.Unlock()
	c, err := f.dirty(h.f)
	if err != nil {
		return err
	}
	switch mode &^ keepSize {
	case punch, zero:
		const step = 1 << 20
		for at := off; at < off+length; at += step {
			if err := c.remember(at, min(step, off+length-at)); err != nil {
				return err
			}
		}
	case 0:
	default:
		return syscall.EOPNOTSUPP
	}
	return syscall.Fallocate(int(c.f.Fd()), mode, off, length)
}

func (f *FS) truncate(fd *os.File, size int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	c, err := f.dirty(fd)
	if err != nil {
		return err
	}
	for s := range c.old {
		if s*sector >= size {
			delete(c.old, s)
		}
	}
	c.synced = min(c.synced, size)
	return c.f.Truncate(size)
}

func (f *FS) fsync(fd *os.File) error {
	var st syscall.Stat_t
	if err := syscall.Fstat(int(fd.Fd()), &st); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.settle(st.Ino)
	return nil
}

func (f *FS) fsyncDir() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.commit(len(f.names))
}

// change does a change of names. Caller does not hold mu.
func (f *FS) change(do func() error, c change) syscall.Errno {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := do(); err != nil {
		return fs.ToErrno(err)
	}
	f.names = append(f.names, c)
	return 0
}

// away is a name for what is gone until the directory is synced.
func (f *FS) away() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.n++
	return filepath.Join(f.trash, fmt.Sprint(f.n))
}

// ctx is unused by the methods of node: nothing here waits.
type ctx = context.Context
