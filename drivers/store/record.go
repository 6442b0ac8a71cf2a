package store

import (
	"errors"
	"fmt"
)

// recType is the kind of a journal record. Numbers are never reused.
type recType uint16

// Kinds of records. Payloads are listed in contrib/design/0002-store-format.md.
const (
	recFlush   recType = 1  // everything up to a sequence number is durable, data first
	recMap     recType = 2  // logical extents got physical ones
	recUnmap   recType = 3  // a range of logical extents became holes
	recCreate  recType = 4  // a replica, perhaps a clone
	recDelete  recType = 5  // a replica went
	recFreeze  recType = 6  // the top layer was frozen under a snapshot id
	recDrop    recType = 7  // a frozen layer went (or was merged back: thaw)
	recRestore recType = 8  // the top became a snapshot again
	recGrow    recType = 9  // new size
	recPromise recType = 10 // promised epoch and session, and the volume's record
	recDirty   recType = 11 // regions of the top layer got dirty; counts even when not covered by a flush
	recClean   recType = 12 // regions of a layer got a stamp and are clean
	recTrack   recType = 13 // dirty tracking on or off
	recSums    recType = 14 // checksums of frozen extents
)

func (t recType) String() string {
	names := [...]string{1: "flush", "map", "unmap", "create", "delete", "freeze", "drop", "restore", "grow",
		"promise", "dirty", "clean", "track", "sums"}
	if int(t) < len(names) && names[t] != "" {
		return names[t]
	}
	return fmt.Sprintf("record %d", uint16(t))
}

// record is one decoded record; which fields count depends on typ.
type record struct {
	typ    recType
	handle uint32 // of the replica; never reused on a drive
	covers uint64 // flush
	maps   []mapEntry
	first  uint64 // unmap: first logical extent
	n      uint64 // unmap: how many

	spec   ReplicaSpec // create
	from   uint32      // create: handle cloned from, 0 none
	snap   ID          // create (clone), freeze, drop, restore, clean, sums: layer; zero in clean: top
	when   int64       // freeze: unix nanoseconds
	thaw   bool        // drop: dirty bits go up
	size   int64       // grow
	prom   Promised    // promise
	record []byte      // promise
	ranges []regionRange
	stamp  Stamp // clean
	flag   bool  // track: untracked; create: see spec
	sums   []sumEntry
}

type mapEntry struct {
	handle uint32
	lext   uint32
	entry  uint32 // physical extent + 1; 0: hole
}

type sumEntry struct {
	lext, entry, sum uint32
}

// regionRange is [first, first+n) in regions.
type regionRange struct{ first, n uint32 }

// sizeBound is not less than what encode appends, and the header.
func (r *record) sizeBound() int64 {
	return 256 + int64(len(r.record)+12*len(r.maps)+8*len(r.ranges)+12*len(r.sums))
}

// encode appends the payload.
func (r *record) encode(b []byte) []byte {
	switch r.typ {
	case recFlush:
		return le.AppendUint64(b, r.covers)
	case recMap:
		b = le.AppendUint32(b, uint32(len(r.maps)))
		for _, m := range r.maps {
			b = le.AppendUint32(b, m.handle)
			b = le.AppendUint32(b, m.lext)
			b = le.AppendUint32(b, m.entry)
		}
		return b
	}
	b = le.AppendUint32(b, r.handle)
	switch r.typ {
	case recUnmap:
		b = le.AppendUint64(b, r.first)
		b = le.AppendUint64(b, r.n)
	case recCreate:
		b = append(b, r.spec.ID[:]...)
		b = append(b, r.spec.VolumeID[:]...)
		b = le.AppendUint64(b, uint64(r.spec.Size))
		b = le.AppendUint64(b, uint64(r.spec.Grain))
		b = append(b, bool8(r.spec.Untracked))
		b = le.AppendUint32(b, r.from)
		b = append(b, r.snap[:]...)
	case recDelete:
	case recFreeze:
		b = append(b, r.snap[:]...)
		b = le.AppendUint64(b, uint64(r.when))
	case recDrop:
		b = append(b, r.snap[:]...)
		b = append(b, bool8(r.thaw))
	case recRestore:
		b = append(b, r.snap[:]...)
	case recGrow:
		b = le.AppendUint64(b, uint64(r.size))
	case recPromise:
		b = r.prom.encode(b)
		b = appendBytes(b, r.record)
	case recDirty:
		b = appendRanges(b, r.ranges)
	case recClean:
		b = append(b, r.snap[:]...)
		b = le.AppendUint64(b, r.stamp.Epoch.N)
		b = le.AppendUint64(b, r.stamp.Epoch.Tag)
		b = le.AppendUint32(b, r.stamp.Counter)
		b = appendRanges(b, r.ranges)
	case recTrack:
		b = append(b, bool8(r.flag))
	case recSums:
		b = append(b, r.snap[:]...)
		b = le.AppendUint32(b, uint32(len(r.sums)))
		for _, s := range r.sums {
			b = le.AppendUint32(b, s.lext)
			b = le.AppendUint32(b, s.entry)
			b = le.AppendUint32(b, s.sum)
		}
	}
	return b
}

// decodeRecord is the inverse of encode. It never keeps payload.
func decodeRecord(typ recType, payload []byte) (*record, error) {
	d := reader{b: payload}
	r := &record{typ: typ}
	switch typ {
	case recFlush:
		r.covers = d.u64()
		return r, d.end()
	case recMap:
		n := d.u32()
		if uint64(n)*12 != uint64(len(d.b)) {
			return nil, fmt.Errorf("%d map entries in %d bytes", n, len(d.b))
		}
		r.maps = make([]mapEntry, n)
		for i := range r.maps {
			r.maps[i] = mapEntry{d.u32(), d.u32(), d.u32()}
		}
		return r, d.end()
	}
	r.handle = d.u32()
	switch typ {
	case recUnmap:
		r.first, r.n = d.u64(), d.u64()
	case recCreate:
		r.spec.ID, r.spec.VolumeID = d.id(), d.id()
		r.spec.Size, r.spec.Grain = int64(d.u64()), int64(d.u64())
		r.spec.Untracked = d.u8() != 0
		r.from, r.snap = d.u32(), d.id()
	case recDelete:
	case recFreeze:
		r.snap, r.when = d.id(), int64(d.u64())
	case recDrop:
		r.snap, r.thaw = d.id(), d.u8() != 0
	case recRestore:
		r.snap = d.id()
	case recGrow:
		r.size = int64(d.u64())
	case recPromise:
		r.prom.decode(&d)
		r.record = d.bytes()
		if len(r.record) > maxRecord {
			return nil, errors.New("volume record too long")
		}
	case recDirty:
		r.ranges = d.ranges()
	case recClean:
		r.snap = d.id()
		r.stamp = Stamp{Epoch{d.u64(), d.u64()}, d.u32()}
		r.ranges = d.ranges()
	case recTrack:
		r.flag = d.u8() != 0
	case recSums:
		r.snap = d.id()
		n := d.u32()
		if uint64(n)*12 != uint64(len(d.b)) {
			return nil, fmt.Errorf("%d checksums in %d bytes", n, len(d.b))
		}
		r.sums = make([]sumEntry, n)
		for i := range r.sums {
			r.sums[i] = sumEntry{d.u32(), d.u32(), d.u32()}
		}
	default:
		return nil, fmt.Errorf("unknown %s", typ)
	}
	return r, d.end()
}

func appendRanges(b []byte, rs []regionRange) []byte {
	b = le.AppendUint32(b, uint32(len(rs)))
	for _, r := range rs {
		b = le.AppendUint32(b, r.first)
		b = le.AppendUint32(b, r.n)
	}
	return b
}

func (r *reader) ranges() []regionRange {
	n := r.u32()
	if uint64(n)*8 > uint64(len(r.b)) {
		r.err = errShort
		return nil
	}
	out := make([]regionRange, n)
	for i := range out {
		out[i] = regionRange{r.u32(), r.u32()}
	}
	return out
}

func bool8(b bool) byte {
	if b {
		return 1
	}
	return 0
}
