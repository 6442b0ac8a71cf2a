package sim

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/moraine-storage/moraine/drivers/block"
)

// history is what clients did and saw, cut where a device died and data that
// was acknowledged and not flushed may be gone.
type history struct {
	ops   []*clientOp
	marks []mark
}

// mark is an ACTIVATE that was stored: from then on nothing of an earlier
// session takes effect.
type mark struct {
	at    time.Duration
	n     uint64 // active
	lossy bool   // no member of the set has what it had: un-flushed data may be gone
}

func (h *history) add(c *clientOp) { h.ops = append(h.ops, c) }

const never = time.Duration(math.MaxInt64)

// cluster is one value of one unit: its write and the reads that saw it.
type cluster struct {
	val       uint32
	wInv      time.Duration
	wResp     time.Duration // never: not acknowledged
	first     time.Duration // earliest response of write and reads
	last      time.Duration // latest invocation of write and reads
	read      bool
	durable   bool // a flush that covers it was acknowledged
	durableAt time.Duration
	acked     bool
	write     *clientOp
}

// check decides whether the history of each unit is one of a register
// (section 0): linearizable, and across a mark with loss the value is one that
// no durable one had replaced.
func (h *history) check(snaps []*snapshotView) error {
	segOf := map[*device]int{}
	segStart := []time.Duration{0}
	for _, m := range h.marks {
		if m.lossy {
			segStart = append(segStart, m.at)
		}
	}
	for _, c := range h.ops {
		segOf[c.dev] = h.segment(c.dev.own[0])
	}
	byUnit := make([][]*clientOp, units)
	var flushes []*clientOp
	for _, c := range h.ops {
		if c.kind == block.OpFlush {
			if c.ended && c.err == nil {
				flushes = append(flushes, c)
			}
			continue
		}
		if c.kind == block.OpRead && (!c.ended || c.err != nil) {
			continue
		}
		for u := c.off; u < c.off+c.n; u++ {
			byUnit[u] = append(byUnit[u], c)
		}
	}
	for u, ops := range byUnit {
		if err := h.checkUnit(u, ops, flushes, segOf, segStart, snaps); err != nil {
			return err
		}
	}
	return nil
}

// segment is the number of losses up to the session with epoch n.
func (h *history) segment(n uint64) (s int) {
	for _, m := range h.marks {
		if m.lossy && m.n <= n {
			s++
		}
	}
	return s
}

// bound is the latest time at which a write that was not answered well can
// take effect: when another session took over, replicas drained.
func (h *history) bound(c *clientOp) time.Duration {
	for _, m := range h.marks {
		if m.n > c.dev.own[0] && !slices.Contains(c.dev.own, m.n) {
			return max(m.at, c.inv)
		}
	}
	return never
}

func (h *history) checkUnit(u int, ops, flushes []*clientOp, segOf map[*device]int, segStart []time.Duration, snaps []*snapshotView) error {
	initial := &cluster{val: 0, acked: true, durable: true}
	cands := []*cluster{initial}
	for s := range segStart {
		var err error
		if cands, err = h.checkSegment(u, s, cands, ops, flushes, segOf, segStart, snaps); err != nil {
			return err
		}
	}
	return nil
}

func (h *history) checkSegment(u, s int, cands []*cluster, ops, flushes []*clientOp, segOf map[*device]int, segStart []time.Duration, snaps []*snapshotView) ([]*cluster, error) {
	byVal := map[uint32]*cluster{}
	old := map[uint32]*cluster{}
	for _, c := range cands {
		n := *c
		n.wInv, n.wResp, n.first, n.last, n.read = segStart[s], segStart[s], segStart[s], segStart[s], false
		n.acked, n.durable, n.durableAt = true, false, never
		old[n.val] = &n
	}
	var list []*cluster
	for _, c := range ops {
		if c.kind == block.OpRead || segOf[c.dev] != s {
			continue
		}
		cl := &cluster{val: c.val, wInv: c.inv, wResp: never, write: c, durableAt: never}
		if c.ended && c.err == nil {
			cl.acked, cl.wResp = true, c.resp
			if c.fua {
				cl.durable, cl.durableAt = true, c.resp
			}
			for _, f := range flushes {
				if f.inv >= c.resp && segOf[f.dev] == s {
					cl.durable, cl.durableAt = true, min(cl.durableAt, f.resp)
				}
			}
		} else {
			cl.wResp = h.bound(c)
		}
		cl.first, cl.last = cl.wResp, cl.wInv
		byVal[c.val] = cl
		list = append(list, cl)
	}
	var start *cluster
	seen1st := never // when a client first knew of start
	see := func(v uint32, inv, resp time.Duration, who string) error {
		cl := byVal[v]
		if cl == nil {
			o := old[v]
			if o == nil {
				return fmt.Errorf("unit %d: %s at %v..%v sees %s, which was never there or may not be there any more", u, who, inv, resp, value(v))
			}
			if start != nil && start != o {
				return fmt.Errorf("unit %d: %s at %v..%v sees %s of before, others see %s", u, who, inv, resp, value(v), value(start.val))
			}
			if start == nil {
				start = o
				list = append(list, o)
			}
			cl = o
			seen1st = min(seen1st, resp)
		}
		if resp < cl.wInv {
			return fmt.Errorf("unit %d: %s ends at %v and sees %s, written later", u, who, resp, value(v))
		}
		cl.read = true
		cl.first, cl.last = min(cl.first, resp), max(cl.last, inv)
		return nil
	}
	for _, c := range ops {
		if c.kind != block.OpRead || segOf[c.dev] != s {
			continue
		}
		if err := see(c.got[u-c.off], c.inv, c.resp, "read"); err != nil {
			return nil, err
		}
	}
	for _, sn := range snaps {
		if sn.segment == s && u*unit < int(sn.size) {
			if err := see(sn.vals[u], sn.from, sn.to, "snapshot"); err != nil {
				return nil, err
			}
		}
	}
	if start == nil && len(old) == 1 { // it was there, seen or not
		for _, o := range old {
			list = append(list, o)
		}
	}
	if err := zones(u, list); err != nil {
		return nil, err
	}
	// Who may be there after a loss: whoever no durable write surely replaced.
	var next []*cluster
	// What the segment began with is no better than before until a client has
	// seen it and flushed: a replica that lacked it may have got it just now.
	if start != nil {
		for _, f := range flushes {
			start.durable = start.durable || segOf[f.dev] == s && f.inv >= seen1st
		}
	}
	if start == nil || !start.durable {
		for _, c := range cands {
			if o := old[c.val]; o != start {
				list = append(list, o)
			}
		}
	}
	seen := map[uint32]bool{}
	for _, c := range list {
		if seen[c.val] {
			continue
		}
		seen[c.val] = true
		gone := false
		for _, d := range list {
			if d != c && d.durable && (c.write == nil || c.acked) && c.wResp < d.wInv {
				gone = true
			}
		}
		if !gone {
			next = append(next, c)
		}
	}
	slices.SortFunc(next, func(a, b *cluster) int { return cmp.Compare(a.val, b.val) })
	return next, nil
}

func value(v uint32) string {
	if v&holeMark != 0 {
		return fmt.Sprintf("zeros of %d", v&^holeMark)
	}
	return fmt.Sprintf("write %d", v)
}

// zones is the test of Gibbons and Korach for a register whose writes all
// differ: a value lives at least from its earliest response to its latest
// invocation; no two such lives overlap, and no value that is written and read
// all at once lies within the life of another.
func zones(u int, list []*cluster) error {
	var forward, backward []*cluster
	for _, c := range list {
		if !c.read && !c.acked && c.write != nil {
			continue // it may never have happened
		}
		if c.first < c.last {
			forward = append(forward, c)
		} else {
			backward = append(backward, c)
		}
	}
	slices.SortFunc(forward, func(a, b *cluster) int { return cmp.Compare(a.first, b.first) })
	for i := 1; i < len(forward); i++ {
		a, b := forward[i-1], forward[i]
		if b.first < a.last {
			return fmt.Errorf("unit %d: %s is there from %v to %v at least, and %s from %v to %v", u, value(a.val), a.first, a.last, value(b.val), b.first, b.last)
		}
	}
	for _, b := range backward {
		// last <= first: the value may be anywhere between.
		i, _ := slices.BinarySearchFunc(forward, b.last, func(f *cluster, t time.Duration) int { return cmp.Compare(f.first, t) })
		for _, k := range []int{i - 1, i} {
			if k >= 0 && k < len(forward) && forward[k].first < b.last && b.first < forward[k].last {
				f := forward[k]
				return fmt.Errorf("unit %d: %s happens between %v and %v, within the life of %s from %v to %v", u, value(b.val), b.last, b.first, value(f.val), f.first, f.last)
			}
		}
	}
	return nil
}
