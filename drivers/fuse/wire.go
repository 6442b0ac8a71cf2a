package fuse

import (
	"encoding/binary"
	"syscall"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
)

// Opcodes (linux/fuse.h, enum fuse_opcode) that mean something to an image.
const (
	opLookup      = 1
	opForget      = 2
	opGetattr     = 3
	opSetattr     = 4
	opOpen        = 14
	opRead        = 15
	opWrite       = 16
	opStatfs      = 17
	opRelease     = 18
	opFsync       = 20
	opFlush       = 25
	opInit        = 26
	opOpendir     = 27
	opReaddir     = 28
	opReleasedir  = 29
	opFsyncdir    = 30
	opAccess      = 34
	opInterrupt   = 36
	opDestroy     = 38
	opBatchForget = 42
	opFallocate   = 43
	opSyncfs      = 50
)

// Sizes of the protocol's structures in bytes (version 7.31 and later).
const (
	inHeaderSize  = 40
	outHeaderSize = 16
	entryOutSize  = 128
	attrOutSize   = 104
	attrSize      = 88
	ioInSize      = 40 // fuse_read_in and fuse_write_in
	initOutSize   = 64
	statfsOutSize = 80
)

// notifyResend is FUSE_NOTIFY_RESEND: "send again what was read and never
// answered"; it goes as the error of a reply to request 0.
const notifyResend = 7

var le = binary.NativeEndian

// request is one message of the kernel, decoded. body and name alias the
// buffer it was read into.
type request struct {
	opcode uint32
	unique uint64
	node   uint64
	body   []byte // after the header, for opcodes that have no decoder below

	off     int64  // read, write, fallocate, readdir: bytes (readdir: entry number)
	size    int64  // the same: bytes
	flags   uint32 // open, read, write: flags of the open file
	mode    uint32 // fallocate
	valid   uint32 // setattr: which fields; newSize holds the size
	newSize int64
	payload []byte // write: the data
	name    string // lookup
}

// decode parses one message. The error is what the kernel is answered; ok is
// false when not even the header makes sense, so that nobody can be answered.
func decode(b []byte, r *request) (errno syscall.Errno, ok bool) {
	if len(b) < inHeaderSize || int64(le.Uint32(b)) != int64(len(b)) {
		return syscall.EINVAL, false
	}
	*r = request{opcode: le.Uint32(b[4:]), unique: le.Uint64(b[8:]), node: le.Uint64(b[16:])}
	body := b[inHeaderSize:]
	// Extensions (security context, groups) lie behind the arguments, counted
	// in units of 8 bytes; an image asked for none.
	ext := int(le.Uint16(b[36:])) * 8
	if ext > len(body) {
		return syscall.EINVAL, true
	}
	body = body[:len(body)-ext]
	r.body = body
	if len(body) < minBody(r.opcode) {
		return syscall.EINVAL, true
	}
	switch r.opcode {
	case opLookup:
		if len(body) == 0 || body[len(body)-1] != 0 {
			return syscall.EINVAL, true
		}
		r.name = string(body[:len(body)-1])
	case opRead, opReaddir, opWrite:
		r.off, r.size = int64(le.Uint64(body[8:])), int64(le.Uint32(body[16:]))
		r.flags = le.Uint32(body[32:])
		if r.off < 0 || r.size > maxWrite || r.off > 1<<62 {
			return syscall.EINVAL, true
		}
		if r.opcode == opWrite {
			if int64(len(body)-ioInSize) != r.size {
				return syscall.EINVAL, true
			}
			r.payload = body[ioInSize:]
		}
	case opFallocate:
		r.off, r.size = int64(le.Uint64(body[8:])), int64(le.Uint64(body[16:]))
		r.mode = le.Uint32(body[24:])
		if r.off < 0 || r.size < 0 || r.off > 1<<62 || r.size > 1<<62 {
			return syscall.EINVAL, true
		}
	case opSetattr:
		r.valid, r.newSize = le.Uint32(body), int64(le.Uint64(body[16:]))
	case opOpen:
		r.flags = le.Uint32(body)
	}
	return 0, true
}

// minBody is how many bytes of arguments decode reads at fixed places.
func minBody(opcode uint32) int {
	switch opcode {
	case opRead, opReaddir, opWrite:
		return ioInSize
	case opFallocate:
		return 28
	case opSetattr:
		return 24
	case opOpen:
		return 4
	case opInit:
		return 16
	}
	return 0
}

// silent says whether the kernel expects no answer.
func (r *request) silent() bool {
	return r.opcode == opForget || r.opcode == opBatchForget || r.opcode == opInterrupt
}

// putOutHeader writes the header of an answer of n bytes in all.
func putOutHeader(b []byte, n int, errno syscall.Errno, unique uint64) {
	le.PutUint32(b, uint32(n))
	le.PutUint32(b[4:], uint32(-int32(errno)))
	le.PutUint64(b[8:], unique)
}

// attr is what the image tells of a node.
type attr struct {
	ino, size   uint64
	mode, nlink uint32
	uid, gid    uint32
	blksize     uint32
	unixSec     uint64 // one time for atime, mtime and ctime
}

// put writes fuse_attr.
func (a *attr) put(b []byte) {
	clear(b[:attrSize])
	le.PutUint64(b[0:], a.ino)
	le.PutUint64(b[8:], a.size)
	le.PutUint64(b[16:], (a.size+511)/512)
	le.PutUint64(b[24:], a.unixSec)
	le.PutUint64(b[32:], a.unixSec)
	le.PutUint64(b[40:], a.unixSec)
	le.PutUint32(b[60:], a.mode)
	le.PutUint32(b[64:], a.nlink)
	le.PutUint32(b[68:], a.uid)
	le.PutUint32(b[72:], a.gid)
	le.PutUint32(b[80:], a.blksize)
}

// putEntry writes fuse_entry_out with no lifetime (invariant 6).
func putEntry(b []byte, a *attr) int {
	clear(b[:entryOutSize])
	le.PutUint64(b, a.ino)
	a.put(b[40:])
	return entryOutSize
}

// putAttr writes fuse_attr_out with no lifetime.
func putAttr(b []byte, a *attr) int {
	clear(b[:attrOutSize])
	a.put(b[16:])
	return attrOutSize
}

// putOpen writes fuse_open_out.
func putOpen(b []byte, flags uint32) int {
	clear(b[:16])
	le.PutUint32(b[8:], flags)
	return 16
}

// openFlags of the image: no page cache, writes that do not overlap may run
// beside each other, no FLUSH on close (invariant 4).
const openFlags = gofuse.FOPEN_DIRECT_IO | gofuse.FOPEN_PARALLEL_DIRECT_WRITES | gofuse.FOPEN_NOFLUSH

// putDirent appends a fuse_dirent if it fits into max bytes.
func putDirent(b []byte, max int, ino, next uint64, typ uint32, name string) []byte {
	n := (24 + len(name) + 7) &^ 7
	if len(b)+n > max {
		return b
	}
	e := make([]byte, n)
	le.PutUint64(e, ino)
	le.PutUint64(e[8:], next)
	le.PutUint32(e[16:], uint32(len(name)))
	le.PutUint32(e[20:], typ)
	copy(e[24:], name)
	return append(b, e...)
}

// putStatfs writes fuse_statfs_out. A loop device takes bsize as the
// granularity of its discards.
func putStatfs(b []byte, size int64, bsize uint32) int {
	clear(b[:statfsOutSize])
	le.PutUint64(b, uint64(size)/uint64(bsize))
	le.PutUint64(b[24:], 1) // files
	le.PutUint32(b[40:], bsize)
	le.PutUint32(b[44:], 255) // longest name
	le.PutUint32(b[48:], bsize)
	return statfsOutSize
}
