package store

import (
	"fmt"

	"github.com/moraine-storage/moraine/drivers/block"
)

// zeros is one extent of zeros, page aligned; never written.
var zeros, _ = alignedBuf(ExtentSize)

// trim forgets whole grains of the range.
func (q *queue) trim(c *call) {
	first, n := block.CutInwards(c.req.Off, c.req.Len, q.rs.spec.Grain, q.bytes())
	if n == 0 {
		q.finish(c, nil)
		return
	}
	q.unmap(c, first, first+n)
}

// zero makes the range read as zeros: whole extents become holes, the ragged
// ends are written where they are no holes. NoHole writes everything.
func (q *queue) zero(c *call) {
	r := c.req
	if r.Flags&block.NoHole != 0 {
		if r.Flags&block.FastZero != 0 {
			q.finish(c, fmt.Errorf("zero without holes is as slow as writing: %w", block.ErrUnsupported))
			return
		}
		c.left++
		q.planZeros(c, r.Off, r.End(), true)
		q.startPlan()
		q.release(c)
		return
	}
	first := (r.Off + ExtentSize - 1) &^ (ExtentSize - 1)
	end := r.End() &^ (ExtentSize - 1)
	c.left++
	if first >= end { // no whole extent
		q.planZeros(c, r.Off, r.End(), false)
	} else {
		q.planZeros(c, r.Off, first, false)
		q.planZeros(c, end, r.End(), false)
		c.holeFirst, c.holeEnd = first, end
	}
	q.startPlan()
	q.release(c)
}

// planZeros plans writes of zeros; holes are left out unless fill is set.
func (q *queue) planZeros(c *call, off, end int64, fill bool) {
	for off < end {
		lext, in := uint32(off>>extentShift), uint32(off&(ExtentSize-1))
		k := min(end-off, ExtentSize-int64(in))
		if fill || q.busy[lext] != nil || q.s.st.get(q.rs.top.view, uint64(lext)) != 0 {
			q.plan = append(q.plan, q.newPiece(c, lext, in, zeros[:k:k]))
		}
		off += k
	}
}

// unmap makes whole extents holes, once nothing is under way in them.
func (q *queue) unmap(c *call, first, end int64) {
	p := q.newPiece(c, uint32(first>>extentShift), 0, nil)
	p.n = uint32((end - first) >> extentShift)
	q.retryRange(p)
}

func (q *queue) retryRange(p *piece) {
	if len(q.busy) > 0 {
		first := p.lext + p.n
		for lext := range q.busy {
			if lext >= p.lext && lext < first {
				first = lext
			}
		}
		if first < p.lext+p.n {
			await(q.busy[first], p)
			return
		}
	}
	s := q.s
	s.mu.Lock()
	var err error
	if s.st.mapped(q.rs.top.view, uint64(p.lext), uint64(p.lext)+uint64(p.n)) {
		err = s.logLocked(&record{typ: recUnmap, handle: q.rs.handle, first: uint64(p.lext), n: uint64(p.n)})
	}
	s.mu.Unlock()
	q.end(p, err)
}

// mapped says whether any extent in [from, to) may be mapped.
func (t *trees) mapped(root nodeID, from, to uint64) bool {
	found := false
	_ = t.walk(root, from, to, func(base uint64, id nodeID) error {
		for i, e := range t.ar.leaf(id) {
			if at := base + uint64(i); e != 0 && at >= from && at < to {
				found = true
				return errFound
			}
		}
		return nil
	})
	return found
}

var errFound = fmt.Errorf("found")

// needDirty says whether a change of the range must wait for dirty bits.
func (q *queue) needDirty(off, length int64) bool {
	if q.rs.spec.Untracked || q.s.opt.test.noDirtySync && q.markOnly(off, length) {
		return false
	}
	if q.r.unsynced.Load() > 0 {
		return true
	}
	for g := uint32(off >> regionShift); g <= uint32((off+length-1)>>regionShift); g++ {
		if !q.rs.top.isDirty(g) {
			return true
		}
	}
	return false
}

// markOnly serves the mutation noDirtySync: the bits are set in memory and in
// the journal, but nothing waits for them.
func (q *queue) markOnly(off, length int64) bool {
	var gs []uint32
	for g := uint32(off >> regionShift); g <= uint32((off+length-1)>>regionShift); g++ {
		gs = append(gs, g)
	}
	q.s.mu.Lock()
	defer q.s.mu.Unlock()
	return q.r.markDirtyLocked(gs) == nil
}

// askDirty makes the regions of waiting requests dirty, durably.
func (q *queue) askDirty() {
	if len(q.dirtyReq) == 0 || q.asked[waitRecords] {
		return
	}
	q.dirtying, q.dirtyReq = q.dirtyReq, q.dirtying[:0]
	q.r.unsynced.Add(1)
	var gs []uint32
	for _, c := range q.dirtying {
		for g := uint32(c.req.Off >> regionShift); g <= uint32((c.req.End()-1)>>regionShift); g++ {
			if !q.rs.top.isDirty(g) {
				gs = append(gs, g)
			}
		}
	}
	q.s.mu.Lock()
	err := q.r.markDirtyLocked(gs)
	q.s.mu.Unlock()
	if err != nil {
		q.dirtyDone(err)
		return
	}
	q.ask(waitRecords)
}

func (q *queue) dirtyDone(err error) {
	q.r.unsynced.Add(-1)
	list := q.dirtying
	q.dirtying = nil
	for _, c := range list {
		switch {
		case err != nil:
			q.complete(c, err)
		case q.fenced.Load():
			q.complete(c, q.fencedErr())
		default:
			q.begin(c)
		}
	}
	clear(list)
	if q.dirtying == nil {
		q.dirtying = list[:0]
	}
}

// Extents implements block.Extenter.
func (q *queue) Extents(dst []block.Extent, off, length int64, limit int) ([]block.Extent, error) {
	if off < 0 || length < 0 || off > q.bytes() || length > q.bytes()-off {
		return dst, fmt.Errorf("extents [%d,+%d): %w", off, length, block.ErrInvalid)
	}
	return extentsOf(&q.s.st.trees, q.root(), dst, off, length, limit), nil
}

// extentsOf appends the runs of holes and data of a view.
func extentsOf(t *trees, root nodeID, dst []block.Extent, off, length int64, limit int) []block.Extent {
	start := len(dst)
	end := off + length
	add := func(to int64, hole bool) bool {
		to = min(to, end)
		if to <= off {
			return true
		}
		if k := len(dst) - 1; k >= start && dst[k].Hole == hole {
			dst[k].Len += to - off
		} else {
			if limit > 0 && len(dst)-start == limit {
				return false
			}
			dst = append(dst, block.Extent{Off: off, Len: to - off, Hole: hole, Zero: hole})
		}
		off = to
		return true
	}
	errStop := errFound
	err := t.walk(root, uint64(off)>>extentShift, (uint64(end)+ExtentSize-1)>>extentShift, func(base uint64, id nodeID) error {
		if !add(int64(base)<<extentShift, true) {
			return errStop
		}
		for i, e := range t.ar.leaf(id) {
			if !add(int64(base+uint64(i)+1)<<extentShift, e == 0) {
				return errStop
			}
		}
		return nil
	})
	if err == nil {
		add(end, true)
	}
	return dst
}
