package store

import (
	"errors"
	"io"
	"sync/atomic"

	"github.com/moraine-storage/moraine/drivers/vfs"
)

// Checksums of frozen extents are made in the background: read 64 KiB, append
// its CRC-32C to the journal in bulk, store it in the entry. They cover rot
// from then on. An extent that has one is never written in place again, so a
// checksum is valid for as long as an entry holds it.

// pickLayer returns a frozen layer that is not summed yet, pinned.
func (s *Store) pickLayer() (*replicaState, *layerState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, nil
	}
	for _, rs := range s.st.byHandle {
		for _, l := range rs.layers {
			if !l.summed {
				l.pins++
				return rs, l
			}
		}
	}
	return nil, nil
}

func (s *Store) sumsPending() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, rs := range s.st.byHandle {
		for _, l := range rs.layers {
			if !l.summed {
				return true
			}
		}
	}
	return false
}

// sumStep sums a few extents and says whether there was something to do.
func (s *Store) sumStep() bool {
	rs, l := s.pickLayer()
	if l == nil {
		return false
	}
	defer s.unpin(l)
	buf, free := alignedBuf(ExtentSize)
	defer free()
	r := &record{typ: recSums, handle: rs.handle, snap: l.snap}
	end := uint64(l.size) >> extentShift
	at := l.sumAt
	for at < end && len(r.sums) < sumStep {
		next, id, ok := s.nextLeaf(l.view, at, end)
		if !ok {
			at = end
			break
		}
		at = next
		lf := s.st.ar.leaf(id)
		for ; at < next-next%leafEntries+leafEntries && at < end && len(r.sums) < sumStep; at++ {
			e := atomic.LoadUint64(&lf[leafIndex(at)])
			if e == 0 || e&entrySummed != 0 {
				continue
			}
			if err := readExtent(s.data, physOf(e), buf); err != nil {
				s.log.Warn("frozen extent cannot be read; it gets no checksum", "replica", rs.spec.ID, "extent", at, "error", err)
				continue
			}
			r.sums = append(r.sums, sumEntry{uint32(at), uint32(e & entryPhys), checksum(buf)})
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	l.sumAt = at
	if len(r.sums) > 0 && !l.drop && s.st.byHandle[rs.handle] == rs && rs.layer(l.snap) == l {
		if err := s.logLocked(r); err != nil {
			s.log.Warn("checksums not stored", "error", err)
			return false
		}
	}
	if at >= end {
		l.summed = true
	}
	return true
}

// nextLeaf finds the next leaf that holds index at or a later one below end.
func (s *Store) nextLeaf(root nodeID, at, end uint64) (next uint64, id nodeID, ok bool) {
	if root == 0 {
		return 0, 0, false
	}
	for at < end {
		mid := s.st.ar.inner(root)[rootIndex(at)]
		if mid == 0 {
			at = (at>>(leafShift+innerShift) + 1) << (leafShift + innerShift)
			continue
		}
		if lf := s.st.ar.inner(mid)[midIndex(at)]; lf != 0 {
			return at, lf, true
		}
		at = (at>>leafShift + 1) << leafShift
	}
	return 0, 0, false
}

// unpin gives a layer up; the last one releases a dropped layer.
func (s *Store) unpin(l *layerState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l.pins--
	if l.pins == 0 && l.drop && !s.closed {
		l.drop = false
		s.st.dropLayer(l)
	}
}

// readExtent fills buf with a whole extent; past the end of the file is zeros.
func readExtent(f vfs.File, phys uint32, buf []byte) error {
	n, err := f.ReadAt(buf[:ExtentSize], int64(phys)<<extentShift)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	clear(buf[n:ExtentSize])
	return nil
}
