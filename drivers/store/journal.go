package store

import (
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"

	"github.com/moraine-storage/moraine/drivers/vfs"
)

// The journal is a sequence of segments, meta/journal-N. A segment starts
// with a header in a sector of its own; records follow, each with the next
// sequence number. See contrib/design/0002-store-format.md.
const (
	segHeaderSize = 512
	recHeaderSize = 32
	segVersion    = 1
)

var segMagic = [8]byte{'M', 'O', 'R', 'J', 'R', 'N', 'L', '1'}

// segKind says why a segment was begun.
type segKind uint32

const (
	// segOpen: the store was opened. Every record up to cover was durable,
	// with its data, before this segment got its name; records of earlier
	// segments beyond cover do not count.
	segOpen segKind = 1
	// segRotate: records go on here; nothing is said about earlier ones.
	segRotate segKind = 2
)

type segHeader struct {
	kind    segKind
	num     uint64 // of the segment, as in its name
	first   uint64 // sequence number of its first record
	cover   uint64 // segOpen: see there
	drive   ID
	boot    ID     // host boot under which its records are written
	diskSeq uint64 // of the device at that time
}

func (h *segHeader) encode() []byte {
	b := make([]byte, 0, segHeaderSize)
	b = append(b, segMagic[:]...)
	b = le.AppendUint32(b, segVersion)
	b = le.AppendUint32(b, uint32(h.kind))
	b = le.AppendUint64(b, h.num)
	b = le.AppendUint64(b, h.first)
	b = le.AppendUint64(b, h.cover)
	b = append(b, h.drive[:]...)
	b = append(b, h.boot[:]...)
	b = le.AppendUint64(b, h.diskSeq)
	b = append(b, make([]byte, segHeaderSize-4-len(b))...)
	return le.AppendUint32(b, checksum(b))
}

// errNoHeader: the segment was created, but its header never written.
var errNoHeader = errors.New("segment has no header")

func decodeSegHeader(file string, b []byte) (*segHeader, error) {
	if len(b) < segHeaderSize || allZero(b[:segHeaderSize]) {
		return nil, errNoHeader
	}
	b = b[:segHeaderSize]
	if [8]byte(b[:8]) != segMagic {
		return nil, corrupt(file, 0, "no journal segment")
	}
	if le.Uint32(b[segHeaderSize-4:]) != checksum(b[:segHeaderSize-4]) {
		return nil, corrupt(file, 0, "segment header checksum")
	}
	if v := le.Uint32(b[8:]); v > segVersion {
		return nil, tooNew(file, v, segVersion)
	}
	d := reader{b: b[12 : segHeaderSize-4]}
	h := &segHeader{kind: segKind(d.u32()), num: d.u64(), first: d.u64(), cover: d.u64(), drive: d.id(), boot: d.id(), diskSeq: d.u64()}
	if h.kind != segOpen && h.kind != segRotate {
		return nil, corrupt(file, 12, "segment kind %d", h.kind)
	}
	return h, nil
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// recHeader is followed by the payload, padded with zeros to 8 bytes.
//
//	0 u32 CRC-32C of all that follows, padding excluded
//	4 u32 length of the payload
//	8 u64 sequence number
//	16 u64 synced: when this was written, records up to this number were durable
//	24 u16 type
//	26 u16 0
//	28 u32 low bits of the segment's number
type recHeader struct {
	length uint32
	seq    uint64
	synced uint64
	typ    recType
}

// decodeRecHeader checks a record at the start of b and returns its payload
// and whole length. ok is false for anything but a sound record.
func decodeRecHeader(b []byte, seg uint64) (h recHeader, payload []byte, size int, ok bool) {
	if len(b) < recHeaderSize {
		return h, nil, 0, false
	}
	h.length = le.Uint32(b[4:])
	if h.length > maxPayload+maxRecord || int(h.length) > len(b)-recHeaderSize {
		return h, nil, 0, false
	}
	end := recHeaderSize + int(h.length)
	if le.Uint32(b[28:]) != uint32(seg) || le.Uint32(b) != checksum(b[4:end]) {
		return h, nil, 0, false
	}
	h.seq, h.synced, h.typ = le.Uint64(b[8:]), le.Uint64(b[16:]), recType(le.Uint16(b[24:]))
	return h, b[recHeaderSize:end], (end + 7) &^ 7, true
}

// journal appends records. Guarded by the store's mutex, but sync, which the
// flusher calls alone.
type journal struct {
	fs    vfs.FS
	dir   string // meta
	head  segHeader
	f     vfs.File
	off   int64 // end of the last record
	alloc int64 // bytes preallocated
	seq   uint64
	// synced: every record up to it is durable (not: its data; that is covered).
	synced uint64
	// old are earlier segments not yet synced since they were left.
	old    []vfs.File
	buf    []byte
	failed error // sticky
}

func segName(num uint64) string { return fmt.Sprintf("journal-%016x", num) }

func ckptName(num uint64) string { return fmt.Sprintf("checkpoint-%016x", num) }

// parseNum reads the number of a file named prefix + 16 hexadecimal digits.
func parseNum(name, prefix string) (uint64, bool) {
	s, ok := strings.CutPrefix(name, prefix)
	if !ok || len(s) != 16 {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 16, 64)
	return n, err == nil
}

// begin makes the first segment of this opening: it gets its name only when
// it is durable, and from then on seals what came before.
func (j *journal) begin(recs []*record) error {
	name := path.Join(j.dir, segName(j.head.num))
	f, err := j.fs.Open(name+".tmp", vfs.Create)
	if err != nil {
		return fmt.Errorf("begin journal: %w", err)
	}
	j.f, j.off = f, segHeaderSize
	if err := f.Truncate(0); err != nil {
		return fmt.Errorf("begin journal: %w", err)
	}
	if _, err := f.WriteAt(j.head.encode(), 0); err != nil {
		return fmt.Errorf("begin journal: %w", err)
	}
	if err := j.reserve(4096); err != nil {
		return fmt.Errorf("begin journal: %w", err)
	}
	for _, r := range recs {
		if err := j.append(r); err != nil {
			return err
		}
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("begin journal: %w", err)
	}
	if err := j.fs.Rename(name+".tmp", name); err != nil {
		return fmt.Errorf("begin journal: %w", err)
	}
	if err := j.fs.SyncDir(j.dir); err != nil {
		return fmt.Errorf("begin journal: %w", err)
	}
	j.synced = j.seq
	return nil
}

// reserve makes sure that n more bytes can be appended although the file
// system is full. An error means that nothing was changed.
func (j *journal) reserve(n int64) error {
	if j.off+n <= j.alloc {
		return nil
	}
	from := max(j.alloc, j.off)
	step := (n + journalStep) &^ (journalStep - 1)
	if err := j.f.Allocate(from, step); err != nil {
		return err
	}
	j.alloc = from + step
	return nil
}

// append writes one record to the operating system (S1). After an error the
// journal takes no more: its end is not known.
func (j *journal) append(r *record) error {
	if j.failed != nil {
		return j.failed
	}
	b := append(j.buf[:0], make([]byte, recHeaderSize)...)
	b = r.encode(b)
	j.buf = b
	le.PutUint32(b[4:], uint32(len(b)-recHeaderSize))
	le.PutUint64(b[8:], j.seq+1)
	le.PutUint64(b[16:], j.synced)
	le.PutUint16(b[24:], uint16(r.typ))
	le.PutUint16(b[26:], 0)
	le.PutUint32(b[28:], uint32(j.head.num))
	le.PutUint32(b, checksum(b[4:]))
	if _, err := j.f.WriteAt(b, j.off); err != nil {
		j.failed = fmt.Errorf("append to journal %d: %w", j.head.num, err)
		return j.failed
	}
	j.seq++
	j.off = (j.off + int64(len(b)) + 7) &^ 7
	return nil
}
