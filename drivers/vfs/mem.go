package vfs

import (
	"fmt"
	"io"
	"io/fs"
	"path"
	"sort"
	"sync"
	"syscall"
)

const (
	memPage   = 4096
	memSector = 512
)

// OpKind names what a Mem is asked to do, for hooks and faults.
type OpKind string

// Kinds of operations of a Mem.
const (
	OpRead     OpKind = "read"
	OpWrite    OpKind = "write"
	OpSync     OpKind = "sync"
	OpPunch    OpKind = "punch"
	OpAllocate OpKind = "allocate"
	OpTruncate OpKind = "truncate"
	OpCreate   OpKind = "create"
	OpRemove   OpKind = "remove"
	OpRename   OpKind = "rename"
	OpSyncDir  OpKind = "syncdir"
)

// Event is one operation on a Mem.
type Event struct {
	Kind OpKind
	Name string // of the file or directory
	Off  int64
	Len  int64
}

func (e Event) String() string { return fmt.Sprintf("%s %s [%d,+%d)", e.Kind, e.Name, e.Off, e.Len) }

// Mem is a disk in memory that knows what was synced. It implements FS.
// Hook and Fault are set before use and called without locks held.
type Mem struct {
	// Hook, or nil, sees each changing operation before it happens: the
	// moment between two operations is where a power cut is tried.
	Hook func(Event)
	// Fault, or nil, may fail an operation: it returns nil or the error.
	Fault func(Event) error

	mu      sync.Mutex
	cap     int64             // bytes; 0: no limit
	diskSeq uint64            // given by SetDiskSeq
	memory  bool              // Medium.Memory
	names   map[string]*inode // as seen now
	dirs    map[string]bool   // directories are durable at once
	durable map[string]*inode // as after a power cut
	pending []dirOp           // not yet synced, in order
	locks   map[string]bool
	fds     map[int]*memFile
	nextFd  int
}

type dirOp struct {
	kind     OpKind
	from, to string
	node     *inode
}

// inode is the contents of a file. Pages in durable never change; a page in
// now that is the same pointer is copied before it is written.
type inode struct {
	now, durable      map[int64]*[memPage]byte
	size, durableSize int64
	log               []fileOp // since the last sync
}

type fileOp struct {
	kind OpKind
	off  int64
	len  int64
	data []byte // OpWrite
}

// NewMem returns an empty disk of capacity bytes (0: no limit).
func NewMem(capacity int64) *Mem {
	return &Mem{
		cap: capacity, names: map[string]*inode{}, durable: map[string]*inode{}, dirs: map[string]bool{},
		locks: map[string]bool{}, fds: map[int]*memFile{}, nextFd: 1000,
	}
}

// SetDiskSeq changes what Medium reports.
func (m *Mem) SetDiskSeq(n uint64) { m.mu.Lock(); m.diskSeq = n; m.mu.Unlock() }

// SetCapacity changes the size of the disk in bytes; 0: no limit.
func (m *Mem) SetCapacity(n int64) { m.mu.Lock(); m.cap = n; m.mu.Unlock() }

// SetMemory changes what Medium reports as Memory.
func (m *Mem) SetMemory(b bool) { m.mu.Lock(); m.memory = b; m.mu.Unlock() }

func (m *Mem) before(e Event) error {
	if m.Hook != nil && e.Kind != OpRead {
		m.Hook(e)
	}
	if m.Fault != nil {
		if err := m.Fault(e); err != nil {
			return fmt.Errorf("%s %s: %w", e.Kind, e.Name, err)
		}
	}
	return nil
}

// Open implements FS.
func (m *Mem) Open(name string, f Flags) (File, error) {
	name = path.Clean(name)
	m.mu.Lock()
	n := m.names[name]
	m.mu.Unlock()
	switch {
	case n == nil && f&Create == 0:
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	case n != nil && f&Exclusive != 0:
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrExist}
	case n == nil:
		if err := m.before(Event{Kind: OpCreate, Name: name}); err != nil {
			return nil, err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if n == nil {
		if !m.dirs[path.Dir(name)] {
			return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
		}
		n = &inode{now: map[int64]*[memPage]byte{}, durable: map[int64]*[memPage]byte{}}
		m.names[name] = n
		m.pending = append(m.pending, dirOp{kind: OpCreate, to: name, node: n})
	}
	h := &memFile{m: m, n: n, name: name, fd: m.nextFd, ro: f&ReadOnly != 0}
	m.fds[h.fd] = h
	m.nextFd++
	return h, nil
}

// Mkdir implements FS. Directories are durable at once.
func (m *Mem) Mkdir(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dirs[path.Clean(name)] = true
	return nil
}

// Remove implements FS.
func (m *Mem) Remove(name string) error {
	name = path.Clean(name)
	if err := m.before(Event{Kind: OpRemove, Name: name}); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.names[name] == nil {
		return &fs.PathError{Op: "remove", Path: name, Err: fs.ErrNotExist}
	}
	delete(m.names, name)
	m.pending = append(m.pending, dirOp{kind: OpRemove, to: name})
	return nil
}

// Rename implements FS.
func (m *Mem) Rename(from, to string) error {
	from, to = path.Clean(from), path.Clean(to)
	if err := m.before(Event{Kind: OpRename, Name: from + " " + to}); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.names[from]
	if n == nil {
		return &fs.PathError{Op: "rename", Path: from, Err: fs.ErrNotExist}
	}
	delete(m.names, from)
	m.names[to] = n
	m.pending = append(m.pending, dirOp{kind: OpRename, from: from, to: to, node: n})
	return nil
}

// List implements FS.
func (m *Mem) List(dir string) ([]string, error) {
	dir = path.Clean(dir)
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.dirs[dir] {
		return nil, &fs.PathError{Op: "list", Path: dir, Err: fs.ErrNotExist}
	}
	var out []string
	for n := range m.names {
		if path.Dir(n) == dir {
			out = append(out, path.Base(n))
		}
	}
	for d := range m.dirs {
		if path.Dir(d) == dir && d != dir {
			out = append(out, path.Base(d))
		}
	}
	sort.Strings(out)
	return out, nil
}

// SyncDir implements FS.
func (m *Mem) SyncDir(dir string) error {
	dir = path.Clean(dir)
	if err := m.before(Event{Kind: OpSyncDir, Name: dir}); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	rest := m.pending[:0]
	for _, op := range m.pending {
		if path.Dir(op.to) == dir {
			op.apply(m.durable)
		} else {
			rest = append(rest, op)
		}
	}
	m.pending = rest
	return nil
}

func (op dirOp) apply(names map[string]*inode) {
	switch op.kind {
	case OpCreate:
		names[op.to] = op.node
	case OpRemove:
		delete(names, op.to)
	case OpRename:
		delete(names, op.from)
		names[op.to] = op.node
	}
}

type memLock struct {
	m    *Mem
	name string
}

func (l memLock) Close() error {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	delete(l.m.locks, l.name)
	return nil
}

// Lock implements FS.
func (m *Mem) Lock(name string) (io.Closer, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.locks[name] {
		return nil, fmt.Errorf("lock %s: %w", name, ErrLocked)
	}
	m.locks[name] = true
	return memLock{m, name}, nil
}

// Medium implements FS.
func (m *Mem) Medium(string) (Medium, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	total := m.cap
	if total == 0 {
		total = 1 << 40
	}
	return Medium{Total: total, Free: total - m.usedLocked(), DiskSeq: m.diskSeq, Memory: m.memory}, nil
}

func (m *Mem) usedLocked() int64 {
	var pages int64
	seen := map[*inode]bool{}
	for _, n := range m.names {
		if !seen[n] {
			seen[n] = true
			pages += int64(len(n.now))
		}
	}
	return pages * memPage
}

func copyPages(p map[int64]*[memPage]byte) map[int64]*[memPage]byte {
	o := make(map[int64]*[memPage]byte, len(p))
	for k, v := range p {
		o[k] = v
	}
	return o
}

// page returns a page of n that may be written.
func (n *inode) page(i int64) *[memPage]byte {
	p := n.now[i]
	switch {
	case p == nil:
		p = new([memPage]byte)
		n.now[i] = p
	case p == n.durable[i]:
		c := *p
		p = &c
		n.now[i] = p
	}
	return p
}

func (n *inode) write(b []byte, off int64) {
	n.size = max(n.size, off+int64(len(b)))
	for len(b) > 0 {
		k := copy(n.page(off / memPage)[off%memPage:], b)
		b = b[k:]
		off += int64(k)
	}
}

func (n *inode) punch(off, length int64) {
	end := off + length
	for off < end {
		i, in := off/memPage, off%memPage
		k := min(memPage-in, end-off)
		if k == memPage {
			delete(n.now, i)
		} else if n.now[i] != nil {
			clear(n.page(i)[in : in+k])
		}
		off += k
	}
}

func (n *inode) truncate(size int64) {
	if size < n.size {
		last := (n.size + memPage - 1) / memPage * memPage
		n.punch(size, last-size)
	}
	n.size = size
}

func (n *inode) read(p []byte, off int64) int {
	if off >= n.size {
		return 0
	}
	p = p[:min(int64(len(p)), n.size-off)]
	done := 0
	for done < len(p) {
		i, in := off/memPage, off%memPage
		k := int(min(memPage-in, int64(len(p)-done)))
		if pg := n.now[i]; pg != nil {
			copy(p[done:done+k], pg[in:])
		} else {
			clear(p[done : done+k])
		}
		done += k
		off += int64(k)
	}
	return done
}

// errno of a full disk.
var errFull error = syscall.ENOSPC
