package store

import (
	"errors"
	"fmt"
	"io"

	"github.com/moraine-storage/moraine/drivers/vfs"
)

// ckptReader reads forward; the first error sticks.
type ckptReader struct {
	f    vfs.File
	name string
	off  int64
	size int64
	err  error
}

func (r *ckptReader) read(b []byte) bool {
	if r.err != nil {
		return false
	}
	if int64(len(b)) > r.size-r.off {
		r.err = corrupt(r.name, r.off, "checkpoint cut short at %d bytes", r.size)
		return false
	}
	if n, err := r.f.ReadAt(b, r.off); err != nil && (!errors.Is(err, io.EOF) || n < len(b)) {
		r.err = fmt.Errorf("read %s: %w", r.name, err)
		return false
	}
	r.off += int64(len(b))
	return true
}

// readCheckpoint loads a state. It trusts nothing that a checksum could hide:
// numbers are checked against their ranges too.
func readCheckpoint(fs vfs.FS, name string, drive ID) (st *state, info *ckptInfo, err error) {
	f, err := fs.Open(name, vfs.ReadOnly)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	r := &ckptReader{f: f, name: name}
	if r.size, err = f.Size(); err != nil {
		return nil, nil, err
	}
	head := make([]byte, min(ckptHeaderSize, r.size))
	if !r.read(head) {
		return nil, nil, r.err
	}
	if info, err = decodeCkptHeader(name, head); err != nil {
		return nil, nil, err
	}
	info.size = r.size
	if info.drive != drive {
		return nil, nil, corrupt(name, 40, "checkpoint of drive %s", info.drive)
	}
	st = newState()
	st.nextHandle = max(info.nextHandle, 1)
	if err := st.readBody(r, info); err != nil {
		st.close()
		return nil, nil, err
	}
	return st, info, nil
}

func (s *state) readBody(r *ckptReader, info *ckptInfo) error {
	var lens [8]byte
	if !r.read(lens[:]) {
		return r.err
	}
	n := le.Uint32(lens[:])
	if n > maxCkptMeta || int64(n) > r.size-r.off {
		return corrupt(r.name, r.off-8, "meta of %d bytes", n)
	}
	at := r.off
	meta := make([]byte, n)
	if !r.read(meta) {
		return r.err
	}
	if checksum(meta) != le.Uint32(lens[4:]) {
		return corrupt(r.name, at, "checksum of the replica table")
	}
	if err := s.readNodes(r, info); err != nil {
		return err
	}
	if r.off != r.size {
		return corrupt(r.name, r.off, "%d bytes too many", r.size-r.off)
	}
	if err := s.readMeta(meta, info); err != nil {
		return corrupt(r.name, at, "replica table: %v", err)
	}
	for id := nodeID(1); id < s.ar.next; id++ {
		if s.ar.refs(id).Load() == 0 {
			return corrupt(r.name, at, "node %d is unreachable", id)
		}
	}
	return nil
}

func (s *state) readNodes(r *ckptReader, info *ckptInfo) error {
	total := uint64(info.nodes[0]) + uint64(info.nodes[1]) + uint64(info.nodes[2])
	if total*nodeSize > uint64(r.size) {
		return corrupt(r.name, 56, "%d nodes in %d bytes", total, r.size)
	}
	mids := uint64(info.nodes[0]) + 1 // number of the first mid
	roots := mids + uint64(info.nodes[1])
	buf := make([]byte, ckptBlock*nodeSize+4)
	for done := uint64(0); done < total; {
		k := min(ckptBlock, total-done)
		b := buf[:k*nodeSize+4]
		at := r.off
		if !r.read(b) {
			return r.err
		}
		if checksum(b[:k*nodeSize]) != le.Uint32(b[k*nodeSize:]) {
			return corrupt(r.name, at, "checksum of nodes %d to %d", done+1, done+k)
		}
		for i := range k {
			id := s.ar.alloc(s.gen) // a new arena numbers as the file does
			s.ar.refs(id).Store(0)
			p := b[i*nodeSize:][:nodeSize]
			num := uint64(id)
			if num < mids {
				copyLeaf(s.ar.leaf(id), p)
				continue
			}
			lo, hi := uint64(1), mids // children of a mid
			if num >= roots {
				lo, hi = mids, roots
			}
			if err := s.loadInner(id, p, lo, hi); err != nil {
				return corrupt(r.name, at+int64(i*nodeSize), "%v", err)
			}
		}
		done += k
	}
	return nil
}

func copyLeaf(dst *leaf, p []byte) {
	for i := range dst {
		dst[i] = le.Uint64(p[i*8:])
	}
}

func (s *state) loadInner(id nodeID, p []byte, lo, hi uint64) error {
	in := s.ar.inner(id)
	for i := range in {
		ch := uint64(le.Uint32(p[i*4:]))
		if ch == 0 {
			continue
		}
		if ch < lo || ch >= hi {
			return fmt.Errorf("node %d names node %d", id, ch)
		}
		in[i] = nodeID(ch)
		s.ar.refs(nodeID(ch)).Add(1)
	}
	return nil
}

func (s *state) readMeta(b []byte, info *ckptInfo) error {
	d := &reader{b: b}
	n := d.u32()
	if n == 0 || n > maxEpochs || uint64(n)*16 > uint64(len(d.b)) {
		return fmt.Errorf("%d epochs", n)
	}
	s.epochs = s.epochs[:0]
	for i := range n {
		e := Epoch{d.u64(), d.u64()}
		s.epochs = append(s.epochs, e)
		if i > 0 {
			s.epochIndex[e] = i
		}
	}
	n = d.u32()
	if n > maxReplicas {
		return fmt.Errorf("%d replicas", n)
	}
	for range n {
		if err := s.readReplica(d, info); err != nil {
			return err
		}
	}
	return d.end()
}

func (s *state) readReplica(d *reader, info *ckptInfo) error {
	rs := &replicaState{handle: d.u32()}
	rs.spec = ReplicaSpec{ID: d.id(), VolumeID: d.id(), Size: int64(d.u64()), Grain: int64(d.u64()), Untracked: d.u8() != 0}
	rs.prom.decode(d)
	rs.record = d.bytes()
	layers := d.u32()
	if d.err != nil {
		return d.err
	}
	if err := rs.spec.validate(); err != nil {
		return err
	}
	if s.byHandle[rs.handle] != nil || s.byID[rs.spec.ID] != nil || rs.handle == 0 || rs.handle >= s.nextHandle {
		return fmt.Errorf("replica %s has handle %d", rs.spec.ID, rs.handle)
	}
	if layers > maxLayers || len(rs.record) > maxRecord {
		return fmt.Errorf("replica %s: %d layers, record of %d bytes", rs.spec.ID, layers, len(rs.record))
	}
	for i := range layers + 1 {
		l := &rs.top
		if i > 0 {
			l = &layerState{}
			rs.layers = append(rs.layers, l)
		}
		if err := s.readLayer(d, l, info); err != nil {
			return fmt.Errorf("replica %s: %w", rs.spec.ID, err)
		}
		if l.size > rs.spec.Size || (i > 0) == l.snap.IsZero() {
			return fmt.Errorf("replica %s: layer %s of %d bytes", rs.spec.ID, l.snap, l.size)
		}
	}
	s.byHandle[rs.handle], s.byID[rs.spec.ID] = rs, rs
	return nil
}

func (s *state) readLayer(d *reader, l *layerState, info *ckptInfo) error {
	l.snap, l.when, l.size = d.id(), int64(d.u64()), int64(d.u64())
	view, stamps := d.u32(), d.u32()
	l.mapped = int64(d.u64())
	words := d.u32()
	if d.err != nil {
		return d.err
	}
	if l.size < 0 || l.size > MaxReplicaSize {
		return fmt.Errorf("layer of %d bytes", l.size)
	}
	first := uint64(info.nodes[0]) + uint64(info.nodes[1]) + 1
	for _, root := range []uint32{view, stamps} {
		if root != 0 && (uint64(root) < first || uint64(root) >= first+uint64(info.nodes[2])) {
			return fmt.Errorf("root is node %d", root)
		}
		if root != 0 {
			s.ar.refs(nodeID(root)).Add(1)
		}
	}
	l.view, l.stamps = nodeID(view), nodeID(stamps)
	if words != 0 {
		if int(words) != l.words() || uint64(words)*8 > uint64(len(d.b)) {
			return fmt.Errorf("%d words of dirty bits for %d bytes", words, l.size)
		}
		l.dirty = make([]uint64, words)
		for i := range l.dirty {
			l.dirty[i] = d.u64()
		}
	}
	return nil
}

// tally walks everything that is reachable once: fn is called for each leaf of
// each view, once however many views share it.
func (s *state) tally(fn func(rs *replicaState, l *layerState, base uint64, id nodeID) error) error {
	seen := make([]uint64, uint64(s.ar.next)/64+1)
	visit := func(id nodeID) bool {
		if id == 0 || seen[id/64]&(1<<(id%64)) != 0 {
			return false
		}
		seen[id/64] |= 1 << (id % 64)
		return true
	}
	for _, rs := range s.byHandle {
		for _, l := range append([]*layerState{&rs.top}, rs.layers...) {
			if !visit(l.view) {
				continue
			}
			for ri, mid := range s.ar.inner(l.view) {
				if !visit(mid) {
					continue
				}
				for mi, lf := range s.ar.inner(mid) {
					if !visit(lf) {
						continue
					}
					base := (uint64(ri)<<innerShift + uint64(mi)) << leafShift
					if err := fn(rs, l, base, lf); err != nil {
						return err
					}
				}
			}
		}
	}
	return nil
}

// count makes the extents' counts and free lists from the views: what no view
// names is free, and may hold old bytes.
func (s *state) count(limit uint32) (*extents, error) {
	x := newExtents(limit)
	err := s.tally(func(rs *replicaState, _ *layerState, base uint64, id nodeID) error {
		for i, e := range s.ar.leaf(id) {
			p := e & entryPhys
			if p == 0 {
				if e != 0 {
					return fmt.Errorf("replica %s: entry %#x at extent %d", rs.spec.ID, e, base+uint64(i))
				}
				continue
			}
			if p > maxExtents {
				return fmt.Errorf("replica %s: extent %d lies at %d", rs.spec.ID, base+uint64(i), p-1)
			}
			x.inc(uint32(p - 1))
			if uint32(p) > x.hwm {
				x.hwm = uint32(p)
			}
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, x.close())
	}
	for p := uint32(0); p < x.hwm; p++ {
		if p%4 == 0 && x.hwm-p >= 4 {
			w := x.chunk(p).counts[p%exChunkSize/4]
			if w&0xff != 0 && w&0xff00 != 0 && w&0xff0000 != 0 && w&0xff000000 != 0 {
				x.nUsed += 4
				p += 3
				continue
			}
		}
		if x.count(p) == 0 {
			x.setSuspect(p)
		} else {
			x.nUsed++
		}
	}
	return x, nil
}
