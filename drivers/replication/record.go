package replication

import (
	"math/bits"
	"slices"
	"time"
)

// MaxMembers bounds the members of a volume that a mirror knows in one
// session: they are bits of a Set. Three copies and as many being moved leave
// room for ten that come and go.
const MaxMembers = 16

// Set is a set of members by their slot.
type Set uint16

func bit(m uint8) Set { return 1 << m }

// Has says whether member m is in s.
func (s Set) Has(m uint8) bool { return s&bit(m) != 0 }

// Len is the number of members in s.
func (s Set) Len() int { return bits.OnesCount16(uint16(s)) }

// first is the lowest slot of a set that is not empty.
func (s Set) first() uint8 { return uint8(bits.TrailingZeros16(uint16(s))) }

// each calls fn for each member in order of slots.
func (s Set) each(fn func(m uint8)) {
	for s != 0 {
		m := s.first()
		s &^= bit(m)
		fn(m)
	}
}

// Stamp names the contents of a region: equal stamps, equal bytes (I-EQ). The
// zero stamp is a region never written.
type Stamp struct {
	Epoch   Epoch
	Counter uint32
}

// newer orders stamps of one history.
func (s Stamp) newer(o Stamp) bool {
	return s.Epoch.N > o.Epoch.N || s.Epoch.N == o.Epoch.N && s.Counter > o.Counter
}

// SnapshotID names a snapshot and its layer; zero is the top.
type SnapshotID [16]byte

// SnapshotState is how far a snapshot has come in the record.
type SnapshotState uint8

// States of a snapshot (0001 section 1.1).
const (
	Creating SnapshotState = iota + 1
	Ready
	Deleting
)

// Snapshot is one snapshot in the record, oldest first.
type Snapshot struct {
	ID    SnapshotID
	State SnapshotState
}

// Primary is who serves the volume; a zero Session is nobody.
type Primary struct {
	Node    string
	Session Session
}

// Promised is the fencing state of a replica.
type Promised struct {
	Epoch   Epoch
	Session Session
}

// RegionState is what a replica knows of a region of one layer.
type RegionState struct {
	Region uint32
	Dirty  bool
	Stamp  Stamp
}

// clone copies a record deeply.
func (r *Record) clone() Record {
	n := *r
	n.Members = slices.Clone(r.Members)
	n.Snapshots = slices.Clone(r.Snapshots)
	return n
}

// snapshot returns the snapshot with an id, or nil.
func (r *Record) snapshot(id SnapshotID) *Snapshot {
	for i := range r.Snapshots {
		if r.Snapshots[i].ID == id {
			return &r.Snapshots[i]
		}
	}
	return nil
}

// bitset is a set of regions with its size.
type bitset struct {
	words []uint64
	n     int
}

func newBitset(size uint32) bitset { return bitset{words: make([]uint64, (size+63)/64)} }

func (b *bitset) has(i uint32) bool {
	return int(i/64) < len(b.words) && b.words[i/64]&(1<<(i%64)) != 0
}

func (b *bitset) set(i uint32) {
	for int(i/64) >= len(b.words) {
		b.words = append(b.words, 0)
	}
	if w := &b.words[i/64]; *w&(1<<(i%64)) == 0 {
		*w |= 1 << (i % 64)
		b.n++
	}
}

func (b *bitset) clear(i uint32) {
	if b.has(i) {
		b.words[i/64] &^= 1 << (i % 64)
		b.n--
	}
}

// next returns the first member at or after i.
func (b *bitset) next(i uint32) (uint32, bool) {
	for w := i / 64; int(w) < len(b.words); w++ {
		v := b.words[w]
		if w == i/64 {
			v &= ^uint64(0) << (i % 64)
		}
		if v != 0 {
			return w*64 + uint32(bits.TrailingZeros64(v)), true
		}
	}
	return 0, false
}

// scaled multiplies a duration by a factor near one.
func scaled(d time.Duration, by float64) time.Duration { return time.Duration(float64(d) * by) }
