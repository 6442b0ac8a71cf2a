package vfs

import (
	"fmt"
	"io"
	"io/fs"
	"syscall"
)

// memFile is one open file of a Mem.
type memFile struct {
	m    *Mem
	n    *inode
	name string
	fd   int
	ro   bool
}

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.m.before(Event{OpRead, f.name, off, int64(len(p))}); err != nil {
		return 0, err
	}
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if off < 0 {
		return 0, fs.ErrInvalid
	}
	k := f.n.read(p, off)
	if k < len(p) {
		return k, io.EOF
	}
	return k, nil
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	if f.ro {
		return 0, fmt.Errorf("write %s: %w", f.name, syscall.EBADF)
	}
	if err := f.m.before(Event{OpWrite, f.name, off, int64(len(p))}); err != nil {
		return 0, err
	}
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if f.m.cap > 0 {
		var need int64
		for i := off / memPage; i <= (off+int64(len(p))-1)/memPage; i++ {
			if f.n.now[i] == nil {
				need += memPage
			}
		}
		if need > 0 && f.m.usedLocked()+need > f.m.cap {
			return 0, fmt.Errorf("write %s: %w", f.name, errFull)
		}
	}
	f.n.write(p, off)
	f.n.log = append(f.n.log, fileOp{OpWrite, off, int64(len(p)), append([]byte(nil), p...)})
	return len(p), nil
}

func (f *memFile) Sync() error {
	if err := f.m.before(Event{Kind: OpSync, Name: f.name}); err != nil {
		return err
	}
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	n := f.n
	for _, op := range n.log {
		first, last := op.off/memPage, (op.off+op.len-1)/memPage
		if op.kind == OpTruncate {
			n.durable = copyPages(n.now)
			break
		}
		for i := first; i <= last; i++ {
			if p := n.now[i]; p != nil {
				n.durable[i] = p
			} else {
				delete(n.durable, i)
			}
		}
	}
	n.durableSize = n.size
	n.log = nil
	return nil
}

func (f *memFile) Punch(off, length int64) error {
	if err := f.m.before(Event{OpPunch, f.name, off, length}); err != nil {
		return err
	}
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if off >= f.n.size {
		return nil
	}
	f.n.punch(off, length)
	f.n.log = append(f.n.log, fileOp{kind: OpPunch, off: off, len: length})
	return nil
}

func (f *memFile) Allocate(off, length int64) error {
	if err := f.m.before(Event{OpAllocate, f.name, off, length}); err != nil {
		return err
	}
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if f.m.cap > 0 && f.m.usedLocked()+length > f.m.cap {
		return fmt.Errorf("allocate %s: %w", f.name, errFull)
	}
	return nil
}

func (f *memFile) Truncate(size int64) error {
	if err := f.m.before(Event{OpTruncate, f.name, size, 0}); err != nil {
		return err
	}
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	f.n.truncate(size)
	f.n.log = append(f.n.log, fileOp{kind: OpTruncate, off: size})
	return nil
}

func (f *memFile) Size() (int64, error) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	return f.n.size, nil
}

func (f *memFile) Fd() int { return f.fd }

func (f *memFile) Close() error {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	delete(f.m.fds, f.fd)
	return nil
}
