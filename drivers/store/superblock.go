package store

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"time"

	"github.com/moraine-storage/moraine/drivers/vfs"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

const (
	superSize    = 4096 // of one copy; the file holds two
	superVersion = 1
)

var superMagic = [8]byte{'M', 'O', 'R', 'A', 'I', 'N', 'E', 'S'}

// superblock is the identity of a drive and of its present opening. It is
// written twice, one copy after the other, at open and at rare changes.
type superblock struct {
	gen         uint64 // grows with each writing
	version     uint32 // format of the drive
	cluster     ID
	drive       ID
	openCounter uint64
	incarnation uint64 // of the cluster store, last seen
	boot        ID     // host boot of the last opening
	diskSeq     uint64 // of the device then
	lossID      uint64
	lossy       bool // a flush failed: the next opening draws a new loss id
	clean       bool // closed with nothing to replay that is not durable
	sizeLimit   int64
	leaseMax    time.Duration // longest lease granted since open
	segment     uint64        // a journal segment that exists
	created     int64         // unix seconds
	seq         uint64        // a journal record that is durable, with all before it
}

func (s *superblock) encode() []byte {
	b := make([]byte, 0, superSize)
	b = append(b, superMagic[:]...)
	b = le.AppendUint32(b, superVersion) // oldest reader that understands it
	b = le.AppendUint32(b, s.version)
	b = le.AppendUint64(b, s.gen)
	b = append(b, s.cluster[:]...)
	b = append(b, s.drive[:]...)
	b = le.AppendUint64(b, s.openCounter)
	b = le.AppendUint64(b, s.incarnation)
	b = append(b, s.boot[:]...)
	b = le.AppendUint64(b, s.diskSeq)
	b = le.AppendUint64(b, s.lossID)
	b = append(b, bool8(s.lossy), bool8(s.clean), 0, 0)
	b = le.AppendUint32(b, ExtentSize)
	b = le.AppendUint64(b, uint64(s.sizeLimit))
	b = le.AppendUint64(b, uint64(s.leaseMax))
	b = le.AppendUint64(b, s.segment)
	b = le.AppendUint64(b, uint64(s.created))
	b = le.AppendUint64(b, s.seq)
	b = append(b, make([]byte, superSize-4-len(b))...)
	return le.AppendUint32(b, checksum(b))
}

func decodeSuperblock(file string, off int64, b []byte) (*superblock, error) {
	if len(b) < superSize {
		return nil, corrupt(file, off, "superblock cut short at %d bytes", len(b))
	}
	b = b[:superSize]
	if [8]byte(b[:8]) != superMagic {
		return nil, corrupt(file, off, "no Moraine store")
	}
	if le.Uint32(b[superSize-4:]) != checksum(b[:superSize-4]) {
		return nil, corrupt(file, off, "superblock checksum")
	}
	if v := le.Uint32(b[8:]); v > superVersion {
		return nil, tooNew(file, v, superVersion)
	}
	d := reader{b: b[12:]}
	s := &superblock{version: d.u32(), gen: d.u64(), cluster: d.id(), drive: d.id(), openCounter: d.u64(),
		incarnation: d.u64(), boot: d.id(), diskSeq: d.u64(), lossID: d.u64()}
	s.lossy, s.clean = d.u8() != 0, d.u8() != 0
	d.u16()
	if ext := d.u32(); ext != ExtentSize {
		return nil, fmt.Errorf("%s: extents of %d bytes: %w", file, ext, errdefs.ErrFailedPrecondition)
	}
	s.sizeLimit, s.leaseMax, s.segment, s.created, s.seq = int64(d.u64()), time.Duration(d.u64()), d.u64(), int64(d.u64()), d.u64()
	if s.sizeLimit < 0 || s.leaseMax < 0 {
		return nil, corrupt(file, off, "size limit %d, lease %d", s.sizeLimit, s.leaseMax)
	}
	return s, nil
}

func readSuperblock(f vfs.FS, dir string) (*superblock, error) {
	s, _, err := readSuperblocks(f, dir)
	return s, err
}

// readSuperblocks returns the newer sound copy and what is wrong with the other.
func readSuperblocks(f vfs.FS, dir string) (*superblock, error, error) {
	name := path.Join(dir, "superblock")
	b, err := readAll(f, name)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil, fmt.Errorf("open store %s: no Moraine store here: %w", dir, errdefs.ErrNotFound)
		}
		return nil, nil, fmt.Errorf("open store %s: %w", dir, err)
	}
	s0, err0 := decodeSuperblock(name, 0, b)
	s1, err1 := decodeSuperblock(name, superSize, b[min(superSize, len(b)):])
	switch {
	case err0 != nil && err1 != nil:
		return nil, nil, err0
	case errors.Is(err0, ErrNewer) || errors.Is(err1, ErrNewer):
		return nil, nil, errors.Join(err0, err1)
	case err0 != nil:
		return s1, err0, nil
	case err1 != nil:
		return s0, err1, nil
	case s1.gen > s0.gen:
		return s1, nil, nil
	}
	return s0, nil, nil
}

// write stores both copies durably, one after the other.
func (s *superblock) write(f vfs.File) error {
	s.gen++
	b := s.encode()
	for i := range int64(2) {
		if _, err := f.WriteAt(b, i*superSize); err != nil {
			return fmt.Errorf("write superblock: %w", err)
		}
		if err := f.Sync(); err != nil {
			return fmt.Errorf("write superblock: %w", err)
		}
	}
	return nil
}
