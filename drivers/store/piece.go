package store

import (
	"fmt"
	"syscall"

	"github.com/moraine-storage/moraine/drivers/aio"
	"github.com/moraine-storage/moraine/drivers/block"
)

// stage is what a piece's operation in flight is for.
type stage uint8

const (
	stPlain      stage = iota // read or overwrite in place, straight from and to the request's buffer
	stReadBounce              // read into a bounce buffer, to be copied
	stPartRead                // read of the blocks that a part-block write changes
	stInPlace                 // write of a bounce buffer in place
	stCopyRead                // read of the extent below, to be merged
	stAlloc                   // write to extents that no map entry names yet
)

// piece is a part of a request: a run of logical extents, or a part of one.
type piece struct {
	op    aio.Op
	q     *queue
	c     *call
	stage stage
	gen   uint8 // parity of the I/O generation
	busy  bool  // owns its extents in queue.busy
	tries int   // times it waited for space
	lext  uint32
	n     uint32 // extents
	in    uint32 // first byte in the first extent
	phys  uint32 // first physical extent written
	old   uint64 // entry below, when it is copied
	buf   []byte // part of the request's buffer
	// bounce, or nil, is a whole extent's buffer.
	bounce []byte
	next   *piece // waits for the same extent

	spaceErr error
}

func (q *queue) newPiece(c *call, lext, in uint32, buf []byte) *piece {
	var p *piece
	if k := len(q.pieces) - 1; k >= 0 {
		p = q.pieces[k]
		q.pieces = q.pieces[:k]
	} else {
		p = &piece{q: q}
		p.op.Owner = p
		p.op.Done = p
		p.op.FD = q.s.fd
	}
	p.c, p.lext, p.n, p.in, p.buf = c, lext, 1, in, buf
	c.left++
	return p
}

// end finishes a piece, and its request with the last one.
func (q *queue) end(p *piece, err error) {
	c := p.c
	if err != nil && c.err == nil {
		c.err = err
	}
	if p.busy {
		q.unbusy(p)
	}
	if p.bounce != nil {
		q.bufs.put(p.bounce)
		if len(q.bounces) > 0 {
			q.retry = append(q.retry, q.bounces[0])
			q.bounces = append(q.bounces[:0], q.bounces[1:]...)
		}
	}
	p.c, p.buf, p.bounce, p.next, p.tries, p.spaceErr, p.stage, p.op.Buf = nil, nil, nil, nil, 0, nil, stPlain, nil
	q.pieces = append(q.pieces, p)
	q.release(c)
}

// release ends a request with its last piece.
func (q *queue) release(c *call) {
	if c.left--; c.left > 0 {
		return
	}
	if c.err == nil && c.holeFirst < c.holeEnd {
		first, end := c.holeFirst, c.holeEnd
		c.holeFirst, c.holeEnd = 0, 0
		q.unmap(c, first, end)
		return
	}
	q.finish(c, c.err)
}

// take makes p the owner of its extents.
func (q *queue) take(p *piece) {
	for i := range p.n {
		q.busy[p.lext+i] = p
	}
	p.busy = true
}

func (q *queue) unbusy(p *piece) {
	for i := range p.n {
		delete(q.busy, p.lext+i)
	}
	p.busy = false
	for w := p.next; w != nil; {
		next := w.next
		w.next = nil
		q.retry = append(q.retry, w)
		w = next
	}
	p.next = nil
}

// await hangs w behind the piece that has its extent.
func await(owner, w *piece) {
	for owner.next != nil {
		owner = owner.next
	}
	owner.next = w
}

func (q *queue) submit(p *piece, kind aio.Kind, st stage, buf []byte, off int64) {
	p.stage = st
	p.op.Kind, p.op.Buf, p.op.Off = kind, buf, off
	q.batch = append(q.batch, &p.op)
}

// Complete implements aio.Completer. It is called inside the engine's Submit,
// Poll or Wait; what it starts is submitted at once, for nobody may call
// Submit or Reap before the next Wait.
func (p *piece) Complete(op *aio.Op) {
	q := p.q
	q.gens[p.gen]--
	if op.Err != 0 {
		q.failed(p, op.Err)
		return
	}
	switch p.stage {
	case stPlain:
		q.end(p, nil)
	case stInPlace:
		q.end(p, nil)
	case stReadBounce:
		copy(p.buf, p.bounce[p.in%uint32(q.s.unit):])
		q.end(p, nil)
	case stPartRead:
		off, n := q.blocks(p)
		copy(p.bounce[int64(p.in)-off:], p.buf)
		q.submit(p, aio.Write, stInPlace, p.bounce[:n], int64(p.phys)<<extentShift+off)
		q.launch()
	case stCopyRead:
		if p.old&entrySummed != 0 && checksum(p.bounce) != uint32(p.old>>32) {
			q.s.sums.Add(1)
			q.s.log.Error("frozen extent has a wrong checksum", "replica", q.rs.spec.ID, "extent", p.lext, "at", physOf(p.old))
			q.failed(p, syscall.EIO)
			return
		}
		copy(p.bounce[p.in:], p.buf)
		q.submit(p, aio.Write, stAlloc, p.bounce, int64(p.phys)<<extentShift)
		q.launch()
	case stAlloc:
		q.mapped = append(q.mapped, p)
	}
}

// blocks is the range within the extent that covers p in whole blocks.
func (q *queue) blocks(p *piece) (off, n int64) {
	u := q.s.unit
	off = int64(p.in) / u * u
	end := (int64(p.in) + int64(len(p.buf)) + u - 1) / u * u
	return off, end - off
}

// failed ends a piece whose operation failed.
func (q *queue) failed(p *piece, errno syscall.Errno) {
	if p.stage == stAlloc || p.stage == stCopyRead {
		q.s.mu.Lock()
		for i := range p.n {
			q.s.giveBackLocked(p.phys + i)
		}
		q.s.mu.Unlock()
	}
	what := "write"
	if p.op.Kind == aio.Read {
		what = "read"
	}
	err := block.FromErrno(errno)
	if errno != syscall.ENOSPC && errno != syscall.EDQUOT {
		err = fmt.Errorf("%w: %w", block.ErrIO, errno)
	}
	q.end(p, fmt.Errorf("%s replica %s extent %d: %w", what, q.rs.spec.ID, p.lext, err))
}

// read starts a read: holes are filled with zeros, neighbours merged.
func (q *queue) read(c *call) {
	c.left++ // until all pieces are made
	root, off, buf := q.root(), c.req.Off, c.req.Buf
	var run *piece // last piece made, when it may grow
	for len(buf) > 0 {
		lext, in := uint32(off>>extentShift), uint32(off&(ExtentSize-1))
		k := min(len(buf), ExtentSize-int(in))
		part := buf[:k:k]
		e := q.s.st.get(root, uint64(lext))
		switch {
		case e == 0:
			clear(part)
			run = nil
		case (int64(in)|int64(k))%q.s.unit != 0 || !q.aligned(part):
			q.readBounced(c, lext, in, part, e)
			run = nil
		case run != nil && physOf(e) == run.phys+run.n && in == 0:
			run.n++
			run.op.Buf = run.op.Buf[:len(run.op.Buf)+k] // the request's buffer goes on
		default:
			run = q.newPiece(c, lext, in, part)
			run.phys = physOf(e)
			q.submit(run, aio.Read, stPlain, buf[:k], int64(physOf(e))<<extentShift+int64(in))
		}
		off += int64(k)
		buf = buf[k:]
	}
	q.release(c)
}

func (q *queue) readBounced(c *call, lext, in uint32, part []byte, e uint64) {
	p := q.newPiece(c, lext, in, part)
	p.phys = physOf(e)
	q.startReadBounce(p)
}

func (q *queue) startReadBounce(p *piece) {
	if p.bounce = q.bufs.get(); p.bounce == nil {
		p.stage = stReadBounce
		q.bounces = append(q.bounces, p)
		return
	}
	off, n := q.blocks(p)
	q.submit(p, aio.Read, stReadBounce, p.bounce[:n], int64(p.phys)<<extentShift+off)
}

// write plans the pieces of a write and starts them. When space is short
// nothing has been started (S6).
func (q *queue) write(c *call, off int64, buf []byte) {
	c.left++
	q.planWrite(c, off, buf)
	q.startPlan()
	q.release(c)
}

func (q *queue) planWrite(c *call, off int64, buf []byte) {
	for len(buf) > 0 {
		lext, in := uint32(off>>extentShift), uint32(off&(ExtentSize-1))
		k := min(len(buf), ExtentSize-int(in))
		q.plan = append(q.plan, q.newPiece(c, lext, in, buf[:k]))
		off += int64(k)
		buf = buf[k:]
	}
}

// inPlace says whether p's extent belongs to the top view alone, and where.
func (q *queue) inPlace(lext uint32) (e uint64, ok bool) {
	e, sole := q.s.st.lookup(q.rs.top.view, uint64(lext))
	return e, sole && e != 0 && e&entrySummed == 0 && q.s.ext.sole(physOf(e))
}

// startPlan allocates what the planned pieces need, all or nothing, and starts
// them.
func (q *queue) startPlan() {
	need := 0
	for _, p := range q.plan {
		if len(q.busy) > 0 && q.busy[p.lext] != nil {
			continue
		}
		e, ok := q.inPlace(p.lext)
		p.old = e
		if !ok {
			need++
		}
	}
	if need > 0 && !q.reserve(need) {
		return
	}
	var run *piece
	for _, p := range q.plan {
		if len(q.busy) > 0 {
			if owner := q.busy[p.lext]; owner != nil {
				await(owner, p)
				run = nil
				continue
			}
		}
		e, ok := q.inPlace(p.lext)
		if ok {
			run = q.startInPlace(p, e, run)
		} else {
			run = q.startAlloc(p, e, run)
		}
	}
	clear(q.plan)
	q.plan = q.plan[:0]
	if q.promised > 0 { // a piece waits for another one after all
		q.s.mu.Lock()
		q.s.promised -= q.promised
		q.s.mu.Unlock()
		q.promised = 0
	}
}

// reserve makes sure that need extents can be taken, or parks or fails the
// pieces of the plan.
func (q *queue) reserve(need int) bool {
	s := q.s
	s.mu.Lock()
	err := s.failure()
	if err != nil {
		err = ioErr("write", err)
	} else {
		err = s.spaceLocked(need)
	}
	if err == nil {
		s.promised += need
		q.promised = need
	}
	s.mu.Unlock()
	if err == nil {
		return true
	}
	plan := q.plan
	q.plan = nil
	for _, p := range plan {
		switch {
		case err == errWaitSpace && p.spaceErr != nil:
			q.end(p, p.spaceErr)
		case err == errWaitSpace && p.tries >= maxSpaceTries:
			q.end(p, fmt.Errorf("drive %s: %w", s.sb.drive, block.ErrNoSpace))
		case err == errWaitSpace:
			q.space = append(q.space, p)
		default:
			q.end(p, err)
		}
	}
	clear(plan)
	q.plan = plan[:0]
	return false
}

// startInPlace overwrites an extent of the top view's own: no metadata.
func (q *queue) startInPlace(p *piece, e uint64, run *piece) *piece {
	p.phys = physOf(e)
	if (int64(p.in)|int64(len(p.buf)))%q.s.unit != 0 {
		if !q.s.opt.test.partLock {
			q.take(p) // part of a block: its neighbours must not be written meanwhile (B6)
		}
		q.startPart(p)
		return nil
	}
	if !q.aligned(p.buf) {
		q.startBounced(p, stInPlace)
		return nil
	}
	if run != nil && run.stage == stPlain && run.c == p.c && p.phys == run.phys+run.n && p.in == 0 && run.lext+run.n == p.lext && cap(run.op.Buf) >= len(run.op.Buf)+len(p.buf) {
		return q.grow(run, p)
	}
	q.submit(p, aio.Write, stPlain, p.buf, int64(p.phys)<<extentShift+int64(p.in))
	return p
}

// grow merges p, whose bytes follow, into a run not submitted yet.
func (q *queue) grow(run, p *piece) *piece {
	n := len(run.op.Buf) + len(p.buf)
	run.op.Buf = run.op.Buf[:n]
	run.n += p.n
	c := p.c
	p.c, p.buf = nil, nil
	q.pieces = append(q.pieces, p)
	c.left--
	return run
}

func (q *queue) startPart(p *piece) {
	if p.bounce = q.bufs.get(); p.bounce == nil {
		p.stage = stPartRead
		q.bounces = append(q.bounces, p)
		return
	}
	off, n := q.blocks(p)
	q.submit(p, aio.Read, stPartRead, p.bounce[:n], int64(p.phys)<<extentShift+off)
}

// startBounced writes whole blocks whose memory is not aligned.
func (q *queue) startBounced(p *piece, st stage) {
	if p.bounce = q.bufs.get(); p.bounce == nil {
		p.stage = st
		q.bounces = append(q.bounces, p)
		return
	}
	off, n := q.blocks(p)
	if n != int64(len(p.buf)) {
		clear(p.bounce[:n]) // what the write does not cover of its blocks is a hole
	}
	copy(p.bounce[int64(p.in)-off:], p.buf)
	q.submit(p, aio.Write, st, p.bounce[:n], int64(p.phys)<<extentShift+off)
}
