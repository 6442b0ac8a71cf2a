package store

import (
	"fmt"
	"slices"

	"github.com/moraine-storage/moraine/drivers/aio"
	"github.com/moraine-storage/moraine/drivers/block"
)

// maxSpaceTries: how often a write waits for space that is being freed. Each
// try runs a flush and all release walks; two generations of I/O must pass.
const maxSpaceTries = 4

// startAlloc writes p to a new extent: over a hole, only what p covers; over a
// frozen extent, a copy with p merged in.
func (q *queue) startAlloc(p *piece, e uint64, run *piece) *piece {
	whole := len(p.buf) == ExtentSize
	s := q.s
	s.mu.Lock()
	phys, suspect, ok := s.ext.take(whole || e != 0)
	if q.promised > 0 {
		q.promised--
		s.promised--
	}
	s.mu.Unlock()
	if !ok {
		q.end(p, fmt.Errorf("drive %s: %w", s.sb.drive, block.ErrNoSpace)) // never: it was promised
		return nil
	}
	p.phys, p.old = phys, e
	if suspect && !whole && e == 0 {
		if err := s.punch(phys, 1); err != nil {
			s.mu.Lock()
			s.giveBackLocked(phys)
			s.mu.Unlock()
			q.end(p, fmt.Errorf("punch: %w: %w", block.ErrIO, err))
			return nil
		}
	}
	q.take(p)
	switch {
	case e != 0 && !whole:
		q.startCopy(p)
		return nil
	case (int64(p.in)|int64(len(p.buf)))%s.unit != 0 || !q.aligned(p.buf):
		q.startBounced(p, stAlloc)
		return nil
	}
	if run != nil && run.stage == stAlloc && run.bounce == nil && run.c == p.c && run.phys+run.n == p.phys &&
		run.lext+run.n == p.lext && p.in == 0 && cap(run.op.Buf) >= len(run.op.Buf)+len(p.buf) {
		q.busy[p.lext] = run
		p.busy = false
		return q.grow(run, p)
	}
	q.submit(p, aio.Write, stAlloc, p.buf, int64(p.phys)<<extentShift+int64(p.in))
	return p
}

// startCopy reads the extent below into a buffer.
func (q *queue) startCopy(p *piece) {
	if p.bounce = q.bufs.get(); p.bounce == nil {
		p.stage = stCopyRead
		q.bounces = append(q.bounces, p)
		return
	}
	q.submit(p, aio.Read, stCopyRead, p.bounce, int64(physOf(p.old))<<extentShift)
}

// retryPieces goes on with pieces whose wait is over.
func (q *queue) retryPieces() {
	if len(q.retry) == 0 {
		return
	}
	list := q.retry
	q.retry = nil
	for _, p := range list {
		switch {
		case p.stage != stPlain: // waited for a buffer
			st := p.stage
			p.stage = stPlain
			q.startStage(p, st)
		case q.fenced.Load():
			q.end(p, q.fencedErr()) // not started: dropped
		case p.c.req.Op == block.OpTrim || p.c.req.Op == block.OpZero && p.buf == nil:
			q.retryRange(p)
		default:
			q.again = append(q.again, p)
		}
	}
	clear(list)
	if q.retry == nil {
		q.retry = list[:0]
	}
	again := q.again
	q.again = nil
	for rest := again; len(rest) > 0; {
		n := 1 // a request's pieces together: all get space, or none
		for n < len(rest) && rest[n].c == rest[0].c {
			n++
		}
		q.plan = append(q.plan[:0], rest[:n]...)
		q.startPlan()
		rest = rest[n:]
	}
	clear(again)
	q.again = again[:0]
}

func (q *queue) startStage(p *piece, st stage) {
	switch st {
	case stReadBounce:
		q.startReadBounce(p)
	case stPartRead:
		q.startPart(p)
	case stCopyRead:
		q.startCopy(p)
	default:
		q.startBounced(p, st)
	}
}

// commit appends the map entries of all allocating pieces whose data is
// written, applies them and ends the pieces (S1: the entry is in the operating
// system before the request completes).
func (q *queue) commit() {
	for len(q.mapped) > 0 {
		list := q.mapped
		q.mapped = nil // ending pieces starts others
		for rest := list; len(rest) > 0; {
			n, entries := 0, 0
			for n < len(rest) && (n == 0 || entries+int(rest[n].n) <= maxMapBatch) {
				entries += int(rest[n].n)
				n++
			}
			err := q.commitSome(rest[:n])
			for _, p := range rest[:n] {
				q.end(p, err)
			}
			rest = rest[n:]
		}
		clear(list)
		if q.mapped == nil {
			q.mapped = list[:0]
		}
	}
}

func (q *queue) commitSome(list []*piece) error {
	s, r := q.s, &q.maps
	r.maps = r.maps[:0]
	for _, p := range list {
		for i := range p.n {
			r.maps = append(r.maps, mapEntry{q.rs.handle, p.lext + i, uint32(entryOf(p.phys + i))})
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.failure()
	if err == nil && s.opt.test.lazyAppend {
		c := *r
		c.maps = slices.Clone(r.maps)
		s.lazyRecs = append(s.lazyRecs, &c)
	} else if err == nil {
		if err = s.reserveLocked(4096 + int64(len(r.maps))*12); err == nil {
			if err = s.j.append(r); err != nil {
				s.fail(err)
			}
		}
	}
	if err != nil {
		for _, p := range list {
			for i := range p.n {
				s.giveBackLocked(p.phys + i)
			}
		}
		return ioErr("write", err)
	}
	for _, m := range r.maps {
		s.st.mapOne(q.rs, uint64(m.lext), uint64(m.entry))
	}
	if s.j.off > journalBound || s.opt.test.journalBound != 0 {
		s.bg.kick()
	}
	return nil
}
