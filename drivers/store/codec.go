package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// All numbers on disk are little endian; all checksums are CRC-32C.
var (
	le         = binary.LittleEndian
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

func checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

func checksumMore(sum uint32, b []byte) uint32 { return crc32.Update(sum, castagnoli, b) }

// ErrCorrupt marks what cannot be what this program wrote.
var ErrCorrupt = errors.New("corrupt")

// corrupt says where and why. Its class is DataLoss.
func corrupt(file string, off int64, format string, args ...any) error {
	return fmt.Errorf("%s: offset %d: %s: %w: %w", file, off, fmt.Sprintf(format, args...), ErrCorrupt, errdefs.ErrDataLoss)
}

// ErrNewer marks a format of a later release.
var ErrNewer = errors.New("format is newer than this program")

func tooNew(file string, got, known uint32) error {
	return fmt.Errorf("%s: format %d, this program reads up to %d: %w: %w", file, got, known, ErrNewer, errdefs.ErrFailedPrecondition)
}

var errShort = errors.New("record too short")

// reader decodes a payload; after the first lack of bytes everything is zero
// and err is set.
type reader struct {
	b   []byte
	err error
}

func (r *reader) take(n int) []byte {
	if r.err != nil || n < 0 || n > len(r.b) {
		r.err = errShort
		return nil
	}
	p := r.b[:n]
	r.b = r.b[n:]
	return p
}

func (r *reader) u8() uint8 {
	if p := r.take(1); p != nil {
		return p[0]
	}
	return 0
}

func (r *reader) u16() uint16 {
	if p := r.take(2); p != nil {
		return le.Uint16(p)
	}
	return 0
}

func (r *reader) u32() uint32 {
	if p := r.take(4); p != nil {
		return le.Uint32(p)
	}
	return 0
}

func (r *reader) u64() uint64 {
	if p := r.take(8); p != nil {
		return le.Uint64(p)
	}
	return 0
}

func (r *reader) id() (id ID) {
	copy(id[:], r.take(len(id)))
	return id
}

func (r *reader) bytes() []byte {
	n := r.u32()
	if uint64(n) > uint64(len(r.b)) {
		r.err = errShort
		return nil
	}
	return append([]byte(nil), r.take(int(n))...)
}

// end demands that everything was read.
func (r *reader) end() error {
	if r.err == nil && len(r.b) != 0 {
		r.err = fmt.Errorf("%d bytes too many", len(r.b))
	}
	return r.err
}

func appendBytes(b, p []byte) []byte {
	b = le.AppendUint32(b, uint32(len(p)))
	return append(b, p...)
}
