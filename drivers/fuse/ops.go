package fuse

import (
	"context"
	"syscall"

	"golang.org/x/sys/unix"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"github.com/moraine-storage/moraine/drivers/block"
)

// The two nodes. The numbers are fixed: a process that takes over must know
// the nodes that the kernel holds.
const (
	rootNode  = 1
	imageNode = 2
)

// resent marks the unique number of a request that the kernel sent again
// (FUSE_UNIQUE_RESEND).
const resent = 1 << 63

// handle executes r and puts the body of the answer into w.out(). It may run
// for the same request twice (invariant 3).
func (m *Image) handle(w *worker, r *request) (int, syscall.Errno) {
	if r.unique&resent != 0 {
		m.stats.Resent.Add(1)
	}
	out := w.out()
	switch r.opcode {
	case opRead:
		return m.read(out, r)
	case opWrite:
		return m.write(out, r)
	case opFsync, opSyncfs:
		return 0, m.flush()
	case opFallocate:
		return 0, m.fallocate(r)
	case opLookup:
		if r.node != rootNode || r.name != FileName {
			return 0, syscall.ENOENT
		}
		return putEntry(out, m.attr(imageNode)), 0
	case opGetattr:
		if r.node != rootNode && r.node != imageNode {
			return 0, syscall.ESTALE
		}
		return putAttr(out, m.attr(r.node)), 0
	case opSetattr:
		return m.setattr(out, r)
	case opOpen:
		if m.readOnly() && r.flags&unix.O_ACCMODE != unix.O_RDONLY {
			return 0, syscall.EROFS
		}
		return putOpen(out, openFlags), 0
	case opOpendir:
		return putOpen(out, 0), 0
	case opReaddir:
		return readdir(out, r), 0
	case opStatfs:
		return putStatfs(out, m.size.Load(), pageSize), 0
	case opRelease, opReleasedir, opFsyncdir, opDestroy:
		return 0, 0
	}
	// Among them FLUSH (invariant 4), ACCESS (the kernel checks the mode), and
	// extended attributes: the kernel does not ask again.
	return 0, syscall.ENOSYS
}

func (m *Image) readOnly() bool { return m.cfg.ReadOnly || m.cfg.Device.Info().ReadOnly }

func (m *Image) attr(node uint64) *attr {
	if node == rootNode {
		return &attr{ino: rootNode, mode: unix.S_IFDIR | 0o500, nlink: 2, blksize: pageSize, unixSec: m.born}
	}
	mode := uint32(unix.S_IFREG | 0o600)
	if m.readOnly() {
		mode = unix.S_IFREG | 0o400
	}
	return &attr{ino: imageNode, size: uint64(m.size.Load()), mode: mode, nlink: 1, blksize: pageSize, unixSec: m.born}
}

// setattr lets times pass and refuses the rest: the size is the volume's.
func (m *Image) setattr(out []byte, r *request) (int, syscall.Errno) {
	const refused = gofuse.FATTR_MODE | gofuse.FATTR_UID | gofuse.FATTR_GID
	if r.node != imageNode || r.valid&refused != 0 {
		return 0, syscall.EPERM
	}
	if r.valid&gofuse.FATTR_SIZE != 0 && r.newSize != m.size.Load() {
		return 0, syscall.EPERM
	}
	return putAttr(out, m.attr(r.node)), 0
}

func readdir(out []byte, r *request) int {
	names := []struct {
		ino  uint64
		typ  uint32
		name string
	}{{rootNode, unix.DT_DIR, "."}, {rootNode, unix.DT_DIR, ".."}, {imageNode, unix.DT_REG, FileName}}
	b := out[:0]
	for i := r.off; i >= 0 && i < int64(len(names)); i++ {
		e := names[i]
		next := putDirent(b, int(r.size), e.ino, uint64(i+1), e.typ, e.name)
		if len(next) == len(b) {
			break
		}
		b = next
	}
	return len(b)
}

// read answers what lies before the end of the file. Whole sectors only: the
// loop device asks for nothing else.
func (m *Image) read(out []byte, r *request) (int, syscall.Errno) {
	if r.node != imageNode {
		return 0, syscall.EISDIR
	}
	n, errno := m.clip(r.off, r.size)
	if errno != 0 || n == 0 {
		return 0, errno
	}
	m.stats.Reads.Add(1)
	if err := m.cfg.Device.ReadAt(context.Background(), out[:n], r.off); err != nil {
		return 0, block.Errno(err)
	}
	return int(n), 0
}

// clip cuts a transfer at the end of the file and refuses parts of sectors.
func (m *Image) clip(off, n int64) (int64, syscall.Errno) {
	size := m.size.Load()
	if off >= size {
		return 0, 0
	}
	n = min(n, size-off)
	if off%block.SectorSize != 0 || n%block.SectorSize != 0 {
		return 0, syscall.EINVAL
	}
	return n, 0
}

func (m *Image) write(out []byte, r *request) (int, syscall.Errno) {
	if r.node != imageNode {
		return 0, syscall.EISDIR
	}
	if m.readOnly() {
		return 0, syscall.EPERM
	}
	n, errno := m.clip(r.off, r.size)
	if errno != 0 {
		return 0, errno
	}
	if n != r.size {
		return 0, syscall.ENOSPC // all or nothing: a device does not grow by writing
	}
	var f block.Flags
	if r.flags&(unix.O_SYNC|unix.O_DSYNC) != 0 {
		f = block.FUA
	}
	m.stats.Writes.Add(1)
	if n > 0 {
		if err := m.cfg.Device.WriteAt(context.Background(), r.payload, r.off, f); err != nil {
			return 0, block.Errno(err)
		}
	}
	clear(out[:8])
	le.PutUint32(out, uint32(n))
	return 8, 0
}

func (m *Image) flush() syscall.Errno {
	m.stats.Flushes.Add(1)
	return block.Errno(m.cfg.Device.Flush(context.Background()))
}

// fallocate: a loop device punches holes for a discard and zeroes ranges for
// write-zeroes, and promises zeros for both to who asks it (blkdiscard -z), so
// both are exact zeroing.
func (m *Image) fallocate(r *request) syscall.Errno {
	const punch, zero, keep = unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_ZERO_RANGE, unix.FALLOC_FL_KEEP_SIZE
	if r.node != imageNode {
		return syscall.EISDIR
	}
	if m.readOnly() {
		return syscall.EPERM
	}
	var f block.Flags
	switch r.mode {
	case punch | keep:
	case zero | keep, zero:
		if r.mode == zero && r.off+r.size > m.size.Load() {
			return syscall.EPERM
		}
	default:
		return syscall.EOPNOTSUPP
	}
	n, errno := m.clip(r.off, r.size)
	if errno != 0 || n == 0 {
		return errno
	}
	m.stats.Zeroes.Add(1)
	return block.Errno(m.cfg.Device.Zero(context.Background(), r.off, n, f))
}
