package store

import (
	"bytes"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// Replica is one replica on an open store. Methods may be called by any
// goroutine unless they say otherwise.
type Replica struct {
	s    *Store
	rs   *replicaState
	gate gate

	queue     *queue       // the open read-write queue, or nil; guarded by s.mu
	receiving bool         // a stream is being received; guarded by s.mu
	deleted   bool         // guarded by s.mu
	unsynced  atomic.Int32 // dirty records appended and not yet durable
}

// LayerInfo describes one frozen layer.
type LayerInfo struct {
	Snapshot ID
	Size     int64     // bytes of the volume at the freeze
	Frozen   time.Time // when
	// Mapped is the space of the extents that the snapshot names, bytes.
	Mapped int64
	Dirty  int  // regions
	Summed bool // every extent has a checksum
}

// ReplicaInfo describes a replica.
type ReplicaInfo struct {
	ReplicaSpec
	Mapped   int64 // bytes of the extents that the top names
	Layers   []LayerInfo
	Dirty    int // dirty regions of the top
	Promised Promised
	Record   []byte
	LossID   uint64
	Open     bool // a queue is open
}

func (s *Store) adopt(rs *replicaState) *Replica {
	r := &Replica{s: s, rs: rs}
	r.gate.init(s)
	s.replicas[rs.handle] = r
	return r
}

// CreateReplica makes an empty replica, durable on return. The same id with
// the same specification is that replica; with another one it is AlreadyExists.
func (s *Store) CreateReplica(spec ReplicaSpec) (*Replica, error) {
	return s.create(spec, ID{}, ID{})
}

// Clone makes a replica whose contents are those of a snapshot of another, in
// time that does not depend on the size. spec.Size may be larger. Idempotent
// as CreateReplica.
func (s *Store) Clone(spec ReplicaSpec, from, snap ID) (*Replica, error) {
	if from.IsZero() || snap.IsZero() {
		return nil, fmt.Errorf("clone replica %s: no source given: %w", spec.ID, errdefs.ErrInvalidArgument)
	}
	return s.create(spec, from, snap)
}

func (s *Store) create(spec ReplicaSpec, from, snap ID) (*Replica, error) {
	if spec.Grain == 0 {
		spec.Grain = ExtentSize
	}
	if err := spec.validate(); err != nil {
		return nil, fmt.Errorf("create: %w", err)
	}
	var out *Replica
	err := s.logDurable(func() (*record, error) {
		if rs := s.st.byID[spec.ID]; rs != nil {
			out = s.replicas[rs.handle]
			have := rs.spec
			if have.Size >= spec.Size { // grown since
				have.Size = spec.Size
			}
			have.Untracked = spec.Untracked // may have changed since
			if have != spec {
				return nil, fmt.Errorf("create replica %s: exists as %+v: %w", spec.ID, rs.spec, errdefs.ErrAlreadyExists)
			}
			return nil, nil
		}
		if len(s.st.byID) >= maxReplicas {
			return nil, fmt.Errorf("create replica %s: %d replicas on this drive: %w", spec.ID, maxReplicas, errdefs.ErrResourceExhausted)
		}
		r := &record{typ: recCreate, handle: s.st.nextHandle, spec: spec}
		if !from.IsZero() {
			src := s.st.byID[from]
			if src == nil {
				return nil, fmt.Errorf("clone replica %s: source %s: %w", spec.ID, from, errdefs.ErrNotFound)
			}
			l := src.layer(snap)
			if l == nil {
				return nil, fmt.Errorf("clone replica %s: snapshot %s of %s: %w", spec.ID, snap, from, errdefs.ErrNotFound)
			}
			if spec.Size < l.size {
				return nil, fmt.Errorf("clone replica %s: %d bytes for a snapshot of %d: %w", spec.ID, spec.Size, l.size, errdefs.ErrOutOfRange)
			}
			r.from, r.snap = src.handle, snap
		}
		if err := s.logLocked(r); err != nil {
			return nil, err
		}
		out = s.adopt(s.st.byID[spec.ID])
		return nil, nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Replica returns the replica with an id.
func (s *Store) Replica(id ID) (*Replica, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rs := s.st.byID[id]
	if rs == nil {
		return nil, fmt.Errorf("replica %s: %w", id, errdefs.ErrNotFound)
	}
	return s.replicas[rs.handle], nil
}

// Replicas describes all replicas.
func (s *Store) Replicas() []ReplicaInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]ReplicaInfo, 0, len(s.st.byID))
	for _, r := range s.replicas {
		out = append(out, r.infoLocked())
	}
	return out
}

// Delete removes a replica for ever, durably on return; its space comes back
// in the background. The caller must hold the tombstone of the replica: a
// missing record is no reason to delete (RETIRE). Absent is no error.
func (s *Store) Delete(id ID, tombstone bool) error {
	if !tombstone {
		return fmt.Errorf("delete replica %s: no tombstone: %w", id, errdefs.ErrFailedPrecondition)
	}
	return s.logDurable(func() (*record, error) {
		rs := s.st.byID[id]
		if rs == nil {
			return nil, nil
		}
		r := s.replicas[rs.handle]
		if r.queue != nil || r.receiving {
			return nil, fmt.Errorf("delete replica %s: in use: %w", id, errdefs.ErrFailedPrecondition)
		}
		if err := s.logLocked(&record{typ: recDelete, handle: rs.handle}); err != nil {
			return nil, err
		}
		r.deleted = true
		delete(s.replicas, rs.handle)
		return nil, nil
	})
}

// ID of the replica.
func (r *Replica) ID() ID { return r.rs.spec.ID }

// Info describes the replica as it is now.
func (r *Replica) Info() ReplicaInfo {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	return r.infoLocked()
}

func (r *Replica) infoLocked() ReplicaInfo {
	rs := r.rs
	i := ReplicaInfo{ReplicaSpec: rs.spec, Mapped: rs.top.mapped << extentShift, Dirty: rs.top.countDirty(),
		Promised: rs.prom, Record: bytes.Clone(rs.record), LossID: r.s.sb.lossID, Open: r.queue != nil}
	for _, l := range rs.layers {
		i.Layers = append(i.Layers, LayerInfo{Snapshot: l.snap, Size: l.size, Frozen: time.Unix(0, l.when),
			Mapped: l.mapped << extentShift, Dirty: l.countDirty(), Summed: l.summed})
	}
	return i
}

// control runs a control operation: check and make its record under the
// store's mutex; durable when it returns.
func (r *Replica) control(op string, detached bool, fn func() (*record, error)) error {
	err := r.s.logDurable(func() (*record, error) {
		if r.deleted {
			return nil, errdefs.ErrNotFound
		}
		if detached && (r.queue != nil || r.receiving) {
			return nil, fmt.Errorf("in use: %w", errdefs.ErrFailedPrecondition)
		}
		return fn()
	})
	if err != nil {
		return fmt.Errorf("%s replica %s: %w", op, r.rs.spec.ID, err)
	}
	return nil
}

// Freeze makes the present contents a snapshot. Its work does not depend on
// the size; it is durable on return. With a queue open it must be called on
// the queue owner's goroutine with nothing in flight. Idempotent by id.
func (r *Replica) Freeze(snap ID) error {
	return r.control("freeze", false, func() (*record, error) {
		switch {
		case snap.IsZero():
			return nil, fmt.Errorf("snapshot without id: %w", errdefs.ErrInvalidArgument)
		case r.rs.layer(snap) != nil:
			return nil, nil
		case len(r.rs.layers) >= maxLayers:
			return nil, fmt.Errorf("%d snapshots: %w", maxLayers, errdefs.ErrResourceExhausted)
		case r.queue != nil && r.queue.inflight != 0:
			return nil, fmt.Errorf("%d requests in flight: %w", r.queue.inflight, errdefs.ErrFailedPrecondition)
		}
		r.s.delaySums(sumDelay)
		return &record{typ: recFreeze, handle: r.rs.handle, snap: snap, when: time.Now().UnixNano()}, nil
	})
}

// Thaw undoes Freeze: the frozen layer is merged back into what is above it.
// No such snapshot is no error.
func (r *Replica) Thaw(snap ID) error { return r.dropLayer("thaw", snap, true) }

// Drop deletes a snapshot; what only it held is freed in the background. No
// such snapshot is no error.
func (r *Replica) Drop(snap ID) error { return r.dropLayer("drop", snap, false) }

func (r *Replica) dropLayer(op string, snap ID, thaw bool) error {
	return r.control(op, false, func() (*record, error) {
		if snap.IsZero() || r.rs.layer(snap) == nil {
			return nil, nil
		}
		return &record{typ: recDrop, handle: r.rs.handle, snap: snap, thaw: thaw}, nil
	})
}

// Restore makes the contents those of a snapshot again. Only while detached.
func (r *Replica) Restore(snap ID) error {
	return r.control("restore", true, func() (*record, error) {
		if snap.IsZero() || r.rs.layer(snap) == nil {
			return nil, fmt.Errorf("snapshot %s: %w", snap, errdefs.ErrNotFound)
		}
		return &record{typ: recRestore, handle: r.rs.handle, snap: snap}, nil
	})
}

// Grow makes the replica larger. Already as large is no error; smaller is.
// With a queue open it must be called on the queue owner's goroutine.
func (r *Replica) Grow(size int64) error {
	return r.control("grow", false, func() (*record, error) {
		switch have := r.rs.spec.Size; {
		case size == have:
			return nil, nil
		case size < have || size%ExtentSize != 0 || size > MaxReplicaSize:
			return nil, fmt.Errorf("from %d to %d bytes: want more, a multiple of %d, up to %d: %w", have, size, ExtentSize, MaxReplicaSize, errdefs.ErrOutOfRange)
		}
		return &record{typ: recGrow, handle: r.rs.handle, size: size}, nil
	})
}

// SetUntracked turns tracking of dirty regions off or on. Turning it on makes
// every region dirty, durably (REPLICATION 3.4). Only while detached, or on
// the queue owner's goroutine.
func (r *Replica) SetUntracked(untracked bool) error {
	return r.control("track", false, func() (*record, error) {
		if r.rs.spec.Untracked == untracked {
			return nil, nil
		}
		if !untracked {
			all := &record{typ: recDirty, handle: r.rs.handle, ranges: []regionRange{{0, r.rs.regions()}}}
			if err := r.s.logLocked(all); err != nil {
				return nil, err
			}
		}
		return &record{typ: recTrack, handle: r.rs.handle, flag: untracked}, nil
	})
}

// MarkDirty makes regions of the top dirty, durably on return.
func (r *Replica) MarkDirty(regions ...uint32) error {
	r.unsynced.Add(1) // until then a writer that sees the bit must not trust it
	defer r.unsynced.Add(-1)
	r.s.mu.Lock()
	err := r.markDirtyLocked(regions)
	r.s.mu.Unlock()
	if err != nil {
		return fmt.Errorf("mark dirty replica %s: %w", r.rs.spec.ID, err)
	}
	return r.s.syncRecords()
}

func (r *Replica) markDirtyLocked(regions []uint32) error {
	if r.deleted {
		return errdefs.ErrNotFound
	}
	rec := &record{typ: recDirty, handle: r.rs.handle}
	for _, g := range regions {
		if g >= r.rs.regions() {
			return fmt.Errorf("region %d of %d: %w", g, r.rs.regions(), errdefs.ErrOutOfRange)
		}
		rec.ranges = addRegion(rec.ranges, g)
	}
	if len(rec.ranges) == 0 {
		return nil
	}
	if len(rec.ranges)*8 > maxPayload/2 {
		return fmt.Errorf("%d ranges in one batch: %w", len(rec.ranges), errdefs.ErrInvalidArgument)
	}
	return r.s.logLocked(rec)
}

func addRegion(rs []regionRange, g uint32) []regionRange {
	if k := len(rs) - 1; k >= 0 && rs[k].first+rs[k].n == g {
		rs[k].n++
		return rs
	}
	return append(rs, regionRange{g, 1})
}

// Clean stamps regions of a layer (nil: the top) and makes them clean, as one
// batch. It need not be durable: a clean region found dirty costs a copy only.
// The mirror holds the regions' locks (REPLICATION 3.4).
func (r *Replica) Clean(snap *ID, stamp Stamp, regions ...uint32) error {
	s := r.s
	s.mu.Lock()
	defer s.mu.Unlock()
	rec := &record{typ: recClean, handle: r.rs.handle, stamp: stamp}
	if snap != nil {
		rec.snap = *snap
	}
	err := func() error {
		if r.deleted {
			return errdefs.ErrNotFound
		}
		l := r.rs.layer(rec.snap)
		if l == nil {
			return fmt.Errorf("snapshot %s: %w", rec.snap, errdefs.ErrNotFound)
		}
		if stamp.Counter >= 1<<31 || stamp.Epoch.N >= 1<<32-1 {
			return fmt.Errorf("stamp %+v: %w", stamp, errdefs.ErrOutOfRange)
		}
		if _, ok := s.st.epochIndex[stamp.Epoch]; !ok && len(s.st.epochs) >= maxEpochs {
			return fmt.Errorf("%d epochs are named by stamps: %w", maxEpochs, errdefs.ErrResourceExhausted)
		}
		n := uint32((l.size + RegionSize - 1) >> regionShift)
		for _, g := range regions {
			if g >= n {
				return fmt.Errorf("region %d of %d: %w", g, n, errdefs.ErrOutOfRange)
			}
			rec.ranges = addRegion(rec.ranges, g)
		}
		if len(rec.ranges)*8 > maxPayload/2 {
			return fmt.Errorf("%d ranges in one batch: %w", len(rec.ranges), errdefs.ErrInvalidArgument)
		}
		return s.logLocked(rec)
	}()
	if err != nil {
		return fmt.Errorf("clean replica %s: %w", r.rs.spec.ID, err)
	}
	return nil
}

// States calls fn for regions [first, first+n) of a layer (nil: the top).
// An untracked replica answers dirty for all.
func (r *Replica) States(snap *ID, first, n uint32, fn func(RegionState) error) error {
	var id ID
	if snap != nil {
		id = *snap
	}
	const batch = 4096
	for done := uint32(0); done < n; {
		var out []RegionState
		k := min(batch, n-done)
		r.s.mu.Lock()
		l := r.rs.layer(id)
		if l == nil || r.deleted || r.s.closed || uint64(first)+uint64(n) > uint64((l.size+RegionSize-1)>>regionShift) {
			r.s.mu.Unlock()
			return fmt.Errorf("states of replica %s: snapshot %s, regions [%d,+%d): %w", r.rs.spec.ID, id, first, n, errdefs.ErrOutOfRange)
		}
		for g := first + done; g < first+done+k; g++ {
			out = append(out, RegionState{Region: g, Dirty: r.rs.spec.Untracked || l.isDirty(g),
				Stamp: r.s.st.stampOf(r.s.st.get(l.stamps, uint64(g)))})
		}
		r.s.mu.Unlock()
		done += k
		for _, st := range out {
			if err := fn(st); err != nil {
				return err
			}
		}
	}
	return nil
}

// Exclusive returns the bytes that deleting a snapshot (nil: the whole
// replica's top) would give back: extents nothing else names. It walks the
// part of the map that is not shared.
func (r *Replica) Exclusive(snap *ID) (int64, error) {
	var id ID
	if snap != nil {
		id = *snap
	}
	s := r.s
	if err := s.flush(); err != nil { // references given up count until then
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	l := r.rs.layer(id)
	if l == nil || r.deleted || s.closed {
		return 0, fmt.Errorf("replica %s: snapshot %s: %w", r.rs.spec.ID, id, errdefs.ErrNotFound)
	}
	n := int64(0)
	if l.view == 0 || s.st.ar.refs(l.view).Load() > 1 {
		return 0, nil
	}
	for _, mid := range s.st.ar.inner(l.view) {
		if mid == 0 || s.st.ar.refs(mid).Load() > 1 {
			continue
		}
		for _, lf := range s.st.ar.inner(mid) {
			if lf == 0 || s.st.ar.refs(lf).Load() > 1 {
				continue
			}
			for _, e := range s.st.ar.leaf(lf) {
				if e != 0 && s.ext.count(physOf(e)) == 1 {
					n++
				}
			}
		}
	}
	return n << extentShift, nil
}
