package store

import (
	"fmt"
	"math/bits"
	"sync/atomic"
)

// Dirty bits are read by the queue's owner while another goroutine cleans
// regions, so words are read and written atomically; growing replaces the
// slice, which only happens on the owner's goroutine or without a queue.

func (l *layerState) words() int { return int((l.size + RegionSize*64 - 1) / (RegionSize * 64)) }

func (l *layerState) growDirty() {
	if l.dirty == nil {
		return
	}
	if n := l.words(); n > len(l.dirty) {
		l.dirty = append(make([]uint64, 0, n), l.dirty...)[:n]
	}
}

func (l *layerState) isDirty(region uint32) bool {
	if l.dirty == nil {
		return false
	}
	return atomic.LoadUint64(&l.dirty[region/64])&(1<<(region%64)) != 0
}

func (l *layerState) setDirty(region uint32, on bool) {
	if l.dirty == nil {
		if !on {
			return
		}
		l.dirty = make([]uint64, l.words())
	}
	w := &l.dirty[region/64]
	v := *w &^ (1 << (region % 64))
	if on {
		v |= 1 << (region % 64)
	}
	atomic.StoreUint64(w, v)
}

func (l *layerState) orDirty(from []uint64) {
	if from == nil {
		return
	}
	if l.dirty == nil {
		l.dirty = make([]uint64, l.words())
	}
	for i := range from {
		atomic.StoreUint64(&l.dirty[i], l.dirty[i]|from[i])
	}
}

func (l *layerState) countDirty() int {
	n := 0
	for i := range l.dirty {
		n += bits.OnesCount64(atomic.LoadUint64(&l.dirty[i]))
	}
	return n
}

func checkRanges(rs []regionRange, regions uint32) error {
	for _, g := range rs {
		if g.first+g.n < g.first || g.first+g.n > regions {
			return fmt.Errorf("regions [%d,+%d) of %d", g.first, g.n, regions)
		}
	}
	return nil
}

func (s *state) applyDirty(rs *replicaState, ranges []regionRange) error {
	if err := checkRanges(ranges, rs.regions()); err != nil {
		return err
	}
	for _, g := range ranges {
		for i := range g.n {
			rs.top.setDirty(g.first+i, true)
		}
	}
	return nil
}

// stampEntry packs a stamp; the epoch gets an index if it has none yet.
func (s *state) stampEntry(st Stamp) (uint64, error) {
	if st == (Stamp{}) {
		return 0, nil
	}
	if st.Counter >= 1<<31 {
		return 0, fmt.Errorf("stamp counter %d", st.Counter)
	}
	i, ok := s.epochIndex[st.Epoch]
	if !ok {
		if len(s.epochs) >= maxEpochs {
			return 0, fmt.Errorf("more than %d epochs named by stamps", maxEpochs)
		}
		i = uint32(len(s.epochs))
		s.epochs = append(s.epochs, st.Epoch)
		s.epochIndex[st.Epoch] = i
	}
	return uint64(i)<<32 | uint64(st.Counter), nil
}

func (s *state) stampOf(e uint64) Stamp {
	if e == 0 || e>>32 >= uint64(len(s.epochs)) {
		return Stamp{}
	}
	return Stamp{Epoch: s.epochs[e>>32], Counter: uint32(e)}
}

func (s *state) applyClean(rs *replicaState, r *record) error {
	l := rs.layer(r.snap)
	if l == nil {
		return fmt.Errorf("clean of unknown snapshot %s", r.snap)
	}
	if err := checkRanges(r.ranges, uint32((l.size+RegionSize-1)>>regionShift)); err != nil {
		return err
	}
	e, err := s.stampEntry(r.stamp)
	if err != nil {
		return err
	}
	above := []*layerState{}
	if !r.snap.IsZero() {
		found := false
		for _, o := range rs.layers {
			if found {
				above = append(above, o)
			}
			found = found || o == l
		}
		above = append(above, &rs.top)
	}
	for _, g := range r.ranges {
		for i := range g.n {
			s.cleanRegion(l, above, uint64(g.first+i), e)
		}
	}
	return nil
}

// cleanRegion stamps a region of l. Newer layers that have no stamp of their
// own there inherit it: theirs was the one l had (stamps are unique, I-EQ).
func (s *state) cleanRegion(l *layerState, above []*layerState, region, e uint64) {
	old := s.set(&l.stamps, region, e, false)
	l.setDirty(uint32(region), false)
	for _, up := range above {
		if s.get(up.stamps, region) != old {
			break
		}
		s.set(&up.stamps, region, e, false)
	}
}

// RegionState is what a replica knows of one region of one layer.
type RegionState struct {
	Region uint32
	Dirty  bool
	Stamp  Stamp
}
