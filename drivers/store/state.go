package store

import (
	"fmt"
	"slices"
	"sync/atomic"
)

// ReplicaSpec is what a replica is made from; constant but for Size.
type ReplicaSpec struct {
	ID       ID
	VolumeID ID
	Size     int64 // bytes; multiple of ExtentSize, at most MaxReplicaSize
	Grain    int64 // bytes TRIM is cut to; multiple of ExtentSize; 0: ExtentSize
	// Untracked: the volume has one replica, so every region counts as dirty
	// and nothing is recorded per region (REPLICATION 3.4).
	Untracked bool
}

// Promised is the highest epoch a replica has promised and to which session.
type Promised struct {
	Epoch   Epoch
	Session SessionID
}

func (p *Promised) encode(b []byte) []byte {
	b = le.AppendUint64(b, p.Epoch.N)
	b = le.AppendUint64(b, p.Epoch.Tag)
	return append(b, p.Session[:]...)
}

func (p *Promised) decode(r *reader) {
	p.Epoch = Epoch{r.u64(), r.u64()}
	copy(p.Session[:], r.take(len(p.Session)))
}

// layerState is the state of a volume at one point: the top, or frozen.
type layerState struct {
	snap   ID    // zero: top
	when   int64 // unix nanoseconds of the freeze
	size   int64 // bytes
	view   nodeID
	stamps nodeID   // entries: epoch index << 32 | counter
	dirty  []uint64 // a bit per region, set once durable; nil: none
	mapped int64    // extents of the view that are no holes
	pins   int      // open views; guarded by the store's mutex
	drop   bool     // dropped, waits for its last pin
	summed bool     // every extent of a frozen layer has a checksum, or cannot be read
	sumAt  uint64   // logical extent up to which that is so
}

// replicaState is what the drive knows of one replica. Guarded by the store's
// mutex, but top.view, top.dirty and size as the queue's owner reads them.
type replicaState struct {
	handle uint32
	spec   ReplicaSpec // Size is the present one
	prom   Promised
	record []byte
	top    layerState
	layers []*layerState // oldest first
}

func (r *replicaState) layer(snap ID) *layerState {
	if snap.IsZero() {
		return &r.top
	}
	for _, l := range r.layers {
		if l.snap == snap {
			return l
		}
	}
	return nil
}

func (r *replicaState) extents() uint64 { return uint64(r.spec.Size) >> extentShift }

func (r *replicaState) regions() uint32 {
	return uint32((r.spec.Size + RegionSize - 1) >> regionShift)
}

// state is the metadata of a drive: what checkpoints hold and records change.
// Replay, the running store, Check and ExportRaw share it.
type state struct {
	trees
	byHandle   map[uint32]*replicaState
	byID       map[ID]*replicaState
	nextHandle uint32
	epochs     []Epoch // index 0 is unused: stamp 0 means never written
	epochIndex map[Epoch]uint32

	// unreachable takes what a record made garbage, unref each extent that a
	// leaf no longer names. The running store releases in the background and
	// lets counts fall only when that is durable; replay has no counts.
	unreachable func(root nodeID, counted bool)
	unref       func(phys uint32)
}

func newState() *state {
	s := &state{
		byHandle: map[uint32]*replicaState{}, byID: map[ID]*replicaState{}, nextHandle: 1,
		epochs: make([]Epoch, 1), epochIndex: map[Epoch]uint32{},
	}
	s.ar = newArena()
	s.gen = 1
	s.unref = func(uint32) {}
	s.unreachable = func(root nodeID, counted bool) {
		r := newRelease(root, counted)
		for !s.step(r, 1<<20, s.unref) {
		}
	}
	return s
}

// apply changes the state as a record says, or not at all: an error means
// that the record contradicts the state.
func (s *state) apply(r *record) error {
	switch r.typ {
	case recFlush:
		return nil
	case recMap:
		return s.applyMap(r)
	case recCreate:
		return s.applyCreate(r)
	}
	rs := s.byHandle[r.handle]
	if rs == nil {
		return fmt.Errorf("%s of unknown replica %d", r.typ, r.handle)
	}
	switch r.typ {
	case recUnmap:
		return s.applyUnmap(rs, r.first, r.n)
	case recDelete:
		s.applyDelete(rs)
	case recFreeze:
		return s.applyFreeze(rs, r)
	case recDrop:
		return s.applyDrop(rs, r)
	case recRestore:
		return s.applyRestore(rs, r)
	case recGrow:
		if r.size < rs.spec.Size || r.size > MaxReplicaSize || r.size%ExtentSize != 0 {
			return fmt.Errorf("grow from %d to %d", rs.spec.Size, r.size)
		}
		atomic.StoreInt64(&rs.spec.Size, r.size) // a queue's Info reads it
		rs.top.size = r.size
		rs.top.growDirty()
	case recPromise:
		rs.prom, rs.record = r.prom, r.record
	case recDirty:
		return s.applyDirty(rs, r.ranges)
	case recClean:
		return s.applyClean(rs, r)
	case recTrack:
		rs.spec.Untracked = r.flag
	case recSums:
		return s.applySums(rs, r)
	default:
		return fmt.Errorf("unknown %s", r.typ)
	}
	return nil
}

func (s *state) applyMap(r *record) error {
	for _, m := range r.maps {
		rs := s.byHandle[m.handle]
		if rs == nil {
			return fmt.Errorf("map of unknown replica %d", m.handle)
		}
		if uint64(m.lext) >= rs.extents() || m.entry > maxExtents+1 {
			return fmt.Errorf("map of extent %d to %d", m.lext, m.entry)
		}
	}
	for _, m := range r.maps {
		s.mapOne(s.byHandle[m.handle], uint64(m.lext), uint64(m.entry))
	}
	return nil
}

// mapOne sets one entry of the top view and keeps the counts.
func (s *state) mapOne(rs *replicaState, lext, e uint64) {
	if s.ext != nil && e != 0 {
		s.ext.inc(physOf(e))
	}
	old := s.set(&rs.top.view, lext, e, true)
	if old != 0 {
		rs.top.mapped--
		s.unref(physOf(old))
	}
	if e != 0 {
		rs.top.mapped++
	}
}

func (s *state) applyUnmap(rs *replicaState, first, n uint64) error {
	if first+n < first || first+n > rs.extents() {
		return fmt.Errorf("unmap of extents [%d,+%d) of %d", first, n, rs.extents())
	}
	for i, end := first, first+n; i < end; {
		// Whole subtrees that are empty cost one look.
		if rs.top.view == 0 {
			break
		}
		mid := s.ar.inner(rs.top.view)[rootIndex(i)]
		if mid == 0 {
			i = (i>>(leafShift+innerShift) + 1) << (leafShift + innerShift)
			continue
		}
		if s.ar.inner(mid)[midIndex(i)] == 0 {
			i = (i>>leafShift + 1) << leafShift
			continue
		}
		if s.get(rs.top.view, i) != 0 {
			s.mapOne(rs, i, 0)
		}
		i++
	}
	return nil
}

func (s *state) applyCreate(r *record) error {
	if s.byID[r.spec.ID] != nil || s.byHandle[r.handle] != nil || r.handle == 0 {
		return fmt.Errorf("replica %s (%d) exists", r.spec.ID, r.handle)
	}
	if err := r.spec.validate(); err != nil {
		return err
	}
	rs := &replicaState{handle: r.handle, spec: r.spec}
	rs.top.size = r.spec.Size
	if r.from != 0 {
		var l *layerState
		if src := s.byHandle[r.from]; src != nil && !r.snap.IsZero() {
			l = src.layer(r.snap)
		}
		if l == nil {
			return fmt.Errorf("clone of unknown snapshot %s of replica %d", r.snap, r.from)
		}
		if l.size > r.spec.Size {
			return fmt.Errorf("clone of %d bytes into %d", l.size, r.spec.Size)
		}
		rs.top.view, rs.top.stamps = s.share(l.view), s.share(l.stamps)
		rs.top.mapped = l.mapped
		rs.top.dirty = slices.Clone(l.dirty)
		rs.top.growDirty()
	}
	s.byHandle[r.handle], s.byID[r.spec.ID] = rs, rs
	s.nextHandle = max(s.nextHandle, r.handle+1)
	return nil
}

func (s *state) applyDelete(rs *replicaState) {
	delete(s.byHandle, rs.handle)
	delete(s.byID, rs.spec.ID)
	s.dropLayer(&rs.top)
	for _, l := range rs.layers {
		s.dropLayer(l)
	}
}

// dropLayer gives up what a layer holds, now or with its last pin.
func (s *state) dropLayer(l *layerState) {
	if l.pins > 0 {
		l.drop = true
		return
	}
	s.unreachable(l.view, true)
	s.unreachable(l.stamps, false)
	l.view, l.stamps, l.dirty, l.mapped = 0, 0, nil, 0
}

func (s *state) applyFreeze(rs *replicaState, r *record) error {
	if r.snap.IsZero() || rs.layer(r.snap) != nil || len(rs.layers) >= maxLayers {
		return fmt.Errorf("freeze of snapshot %s: exists, or too many", r.snap)
	}
	l := rs.top // shares dirty: it goes with the frozen layer
	l.snap, l.when, l.pins, l.drop, l.summed, l.sumAt = r.snap, r.when, 0, false, false, 0
	l.view, l.stamps = s.share(rs.top.view), s.share(rs.top.stamps)
	rs.top.dirty = nil
	rs.layers = append(rs.layers, &l)
	return nil
}

func (s *state) applyDrop(rs *replicaState, r *record) error {
	i := slices.IndexFunc(rs.layers, func(l *layerState) bool { return l.snap == r.snap })
	if i < 0 {
		return fmt.Errorf("drop of unknown snapshot %s", r.snap)
	}
	// The next newer layer now stands for both: what was dirty in either is
	// dirty in it. Its stamps already are the newest at or below it.
	l, up := rs.layers[i], &rs.top
	if i+1 < len(rs.layers) {
		up = rs.layers[i+1]
	}
	up.orDirty(l.dirty)
	rs.layers = slices.Delete(rs.layers, i, i+1)
	s.dropLayer(l)
	return nil
}

func (s *state) applyRestore(rs *replicaState, r *record) error {
	l := rs.layer(r.snap)
	if l == nil || r.snap.IsZero() {
		return fmt.Errorf("restore of unknown snapshot %s", r.snap)
	}
	old := rs.top
	old.pins = 0
	rs.top.view, rs.top.stamps, rs.top.mapped = s.share(l.view), s.share(l.stamps), l.mapped
	rs.top.dirty = slices.Clone(l.dirty)
	rs.top.growDirty()
	s.dropLayer(&old)
	return nil
}

func (s *state) applySums(rs *replicaState, r *record) error {
	l := rs.layer(r.snap)
	if l == nil || r.snap.IsZero() {
		return nil // dropped since: nothing to say
	}
	for _, e := range r.sums {
		if uint64(e.lext)<<extentShift >= uint64(l.size) {
			return fmt.Errorf("checksum of extent %d past the end", e.lext)
		}
		s.setSum(l.view, uint64(e.lext), e.entry, e.sum)
	}
	return nil
}

// setSum stores a checksum in the leaf that names the extent, for all views
// that share the leaf.
func (s *state) setSum(root nodeID, lext uint64, entry, sum uint32) {
	if root == 0 {
		return
	}
	mid := s.ar.inner(root)[rootIndex(lext)]
	if mid == 0 {
		return
	}
	lf := s.ar.inner(mid)[midIndex(lext)]
	if lf == 0 {
		return
	}
	p := &s.ar.leaf(lf)[leafIndex(lext)]
	if e := atomic.LoadUint64(p); e&entryPhys == uint64(entry) && entry != 0 {
		atomic.StoreUint64(p, uint64(entry)|entrySummed|uint64(sum)<<32)
	}
}
