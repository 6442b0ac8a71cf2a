package store

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/moraine-storage/moraine/drivers/aio"
	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// queue is a block.Queue over the top view, or over a snapshot. Everything but
// Info and what is marked otherwise belongs to the owner's goroutine.
//
// A request is cut at extents into pieces. A piece that overwrites an extent
// of its own in place, or reads, is one operation of the engine (neighbours
// are merged) and touches no metadata. All others are slow pieces and take
// their extents for themselves (busy): they allocate, copy, or read before
// they write. When the data of an allocating piece is written its map entry
// waits in mapped for the next Reap, which appends all entries in one record.
type queue struct {
	s  *Store
	r  *Replica
	rs *replicaState
	l  *layerState // snapshot read by this queue; nil: the top
	e  aio.Engine

	done     []*block.Request  // completed, not reaped
	inflight int               // submitted, not reaped
	busy     map[uint32]*piece // by logical extent: who has it; waiters hang on it
	mapped   []*piece          // data written, map entry to come
	batch    []*aio.Op         // to submit together
	retry    []*piece          // may go on now
	space    []*piece          // wait for space
	bounces  []*piece          // wait for a bounce buffer
	dirtyReq []*call           // wait to make their regions dirty
	dirtying []*call           // wait for dirty bits to be durable
	syncs    []*call           // wait for a flush to begin
	syncing  []*call           // wait for a flush under way
	asked    [waitKinds]bool   // a wait of this kind is under way
	plan     []*piece          // scratch of one request
	promised int               // of Store.promised, while a plan is started
	again    []*piece          // scratch of retryPieces
	maps     record            // scratch of commit
	calls    []*call           // free
	pieces   []*piece          // free
	bufs     bufPool

	// gens counts operations of the engine in flight by parity of their
	// generation; running is what others see of it (published before an
	// operation starts, and after a batch has ended).
	gens    [2]int64
	running [2]atomic.Int64

	active  int64        // requests accepted and not completed
	shown   atomic.Int64 // active, as others see it
	fenced  atomic.Bool
	drained chan struct{}
	closed  bool

	inboxMu sync.Mutex
	inbox   []waitResult
	hasMail atomic.Bool
}

type waitResult struct {
	kind waitKind
	err  error
}

// call is one request in flight.
type call struct {
	req  *block.Request
	left int // pieces not finished
	err  error
	// holeFirst, holeEnd: bytes to make holes of when all pieces have ended
	// well: the ragged ends of a zero request may lack space, and then nothing
	// may have changed (S6).
	holeFirst, holeEnd int64
}

// OpenQueue opens the replica for reading and writing by the session that
// holds its gate; one queue at a time. e belongs to the same owner.
func (r *Replica) OpenQueue(e aio.Engine, session SessionID) (block.Queue, error) {
	s := r.s
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed || r.deleted:
		return nil, fmt.Errorf("open replica %s: %w", r.rs.spec.ID, errdefs.ErrNotFound)
	case !r.gate.open || r.rs.prom.Session != session:
		return nil, fmt.Errorf("open: %w", r.fencedLocked())
	case r.queue != nil || r.receiving:
		return nil, fmt.Errorf("open replica %s: already open: %w", r.rs.spec.ID, errdefs.ErrFailedPrecondition)
	}
	q := s.newQueueLocked(r, nil, e)
	r.queue = q
	return q, nil
}

// OpenSnapshot opens a snapshot for reading. It may be dropped meanwhile: its
// extents stay until the queue is closed.
func (r *Replica) OpenSnapshot(e aio.Engine, snap ID) (block.Queue, error) {
	s := r.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || r.deleted {
		return nil, fmt.Errorf("open replica %s: %w", r.rs.spec.ID, errdefs.ErrNotFound)
	}
	l := r.rs.layer(snap)
	if l == nil || snap.IsZero() {
		return nil, fmt.Errorf("open replica %s: snapshot %s: %w", r.rs.spec.ID, snap, errdefs.ErrNotFound)
	}
	l.pins++
	return s.newQueueLocked(r, l, e), nil
}

func (s *Store) newQueueLocked(r *Replica, l *layerState, e aio.Engine) *queue {
	q := &queue{s: s, r: r, rs: r.rs, l: l, e: e, busy: map[uint32]*piece{}, drained: make(chan struct{}, 1)}
	q.maps.typ = recMap
	s.queues[q] = struct{}{}
	return q
}

// Info implements block.Queue.
func (q *queue) Info() block.Info {
	return block.Info{Size: q.bytes(), BlockSize: 4096, Grain: q.rs.spec.Grain, MaxLen: maxRequest,
		ReadOnly: q.l != nil, Trim: q.l == nil, Zero: q.l == nil}
}

// bytes is the present size; growing shows at the next request.
func (q *queue) bytes() int64 {
	if q.l != nil {
		return q.l.size
	}
	return atomic.LoadInt64(&q.rs.spec.Size)
}

// InFlight implements block.Queue.
func (q *queue) InFlight() int { return q.inflight }

func (q *queue) root() nodeID {
	if q.l != nil {
		return q.l.view
	}
	return q.rs.top.view
}

// Submit implements block.Queue.
func (q *queue) Submit(reqs []*block.Request) {
	q.inflight += len(reqs)
	q.active += int64(len(reqs))
	q.shown.Store(q.active) // before the look at fenced: see fence
	for _, r := range reqs {
		c := q.newCall(r)
		if err := q.admit(r); err != nil {
			q.finish(c, err)
			continue
		}
		q.begin(c)
	}
	q.launch()
	if len(q.dirtyReq) > 0 {
		q.askDirty()
		q.launch()
	}
	if !q.inline() {
		q.askSync()
		q.askSpace()
	}
}

// admit checks a request.
func (q *queue) admit(r *block.Request) error {
	switch {
	case q.closed:
		return block.ErrClosed
	case q.fenced.Load():
		return q.fencedErr()
	}
	return block.Validate(r, q.Info())
}

func (q *queue) fencedErr() error {
	return fmt.Errorf("replica %s: %w", q.rs.spec.ID, block.ErrFenced)
}

// begin starts a request; it may come here again after a wait.
func (q *queue) begin(c *call) {
	r := c.req
	if r.Len == 0 && r.Op != block.OpFlush {
		q.finish(c, nil)
		return
	}
	switch r.Op {
	case block.OpRead:
		q.read(c)
	case block.OpWrite:
		if q.needDirty(r.Off, r.Len) {
			q.dirtyReq = append(q.dirtyReq, c)
			return
		}
		q.write(c, r.Off, r.Buf)
	case block.OpTrim, block.OpZero:
		if q.needDirty(r.Off, r.Len) {
			q.dirtyReq = append(q.dirtyReq, c)
			return
		}
		if r.Op == block.OpTrim {
			q.trim(c)
		} else {
			q.zero(c)
		}
	case block.OpFlush:
		q.syncs = append(q.syncs, c)
	case block.OpCache:
		q.finish(c, nil)
	}
}

// Reap implements block.Queue.
func (q *queue) Reap(done []*block.Request) int {
	q.settle()
	n := copy(done, q.done)
	rest := copy(q.done, q.done[n:])
	clear(q.done[rest:])
	q.done = q.done[:rest]
	q.inflight -= n
	return n
}

// settle makes what completed kept, and lets go on what waited for it, until
// nothing more can be done without the engine.
func (q *queue) settle() {
	if q.hasMail.Load() {
		q.readInbox()
	}
	for {
		q.commit()
		q.askDirty()
		q.askSpace()
		q.askSync()
		q.retryPieces()
		q.launch()
		if len(q.mapped) == 0 && len(q.retry) == 0 && !q.mayAsk() {
			break
		}
	}
	for i := range q.gens {
		if q.running[i].Load() != q.gens[i] {
			q.running[i].Store(q.gens[i])
		}
	}
	if q.shown.Load() != q.active {
		q.shown.Store(q.active)
		if q.active == 0 && q.fenced.Load() {
			select {
			case q.drained <- struct{}{}:
			default:
			}
		}
	}
}

// inline says that waits are served here and now.
func (q *queue) inline() bool { return !q.s.blocking || q.s.opt.test.manual }

// ask starts a wait, or runs it.
func (q *queue) ask(kind waitKind) {
	q.asked[kind] = true
	if q.inline() {
		err := q.s.doWait(kind)
		q.asked[kind] = false
		q.resume(kind, err)
		return
	}
	q.s.askFlush(flushWaiter{q: q, kind: kind})
}

// mayAsk says whether something waits that could be asked for now.
func (q *queue) mayAsk() bool {
	return len(q.dirtyReq) > 0 && !q.asked[waitRecords] || len(q.space) > 0 && !q.asked[waitSpace] ||
		len(q.syncs) > 0 && !q.asked[waitFlush]
}

// askSpace asks for space for the pieces that lack it.
func (q *queue) askSpace() {
	if len(q.space) == 0 || q.asked[waitSpace] {
		return
	}
	q.ask(waitSpace)
}

// askSync starts a flush for the requests that wait for one. What they must
// cover has been appended: this follows commit.
func (q *queue) askSync() {
	if len(q.syncs) == 0 || q.asked[waitFlush] {
		return
	}
	q.syncing, q.syncs = q.syncs, q.syncing[:0]
	q.ask(waitFlush)
}

// waited is called by the flusher.
func (q *queue) waited(kind waitKind, err error) {
	q.inboxMu.Lock()
	q.inbox = append(q.inbox, waitResult{kind, err})
	q.inboxMu.Unlock()
	q.hasMail.Store(true)
	q.e.Wake()
}

func (q *queue) readInbox() {
	q.hasMail.Store(false)
	q.inboxMu.Lock()
	mail := q.inbox
	q.inbox = nil
	q.inboxMu.Unlock()
	for _, m := range mail {
		q.asked[m.kind] = false
		q.resume(m.kind, m.err)
	}
}

// resume lets go on what waited.
func (q *queue) resume(kind waitKind, err error) {
	switch kind {
	case waitFlush:
		for _, c := range q.syncing {
			q.complete(c, err)
		}
		clear(q.syncing)
		q.syncing = q.syncing[:0]
	case waitRecords:
		q.dirtyDone(err)
	case waitSpace:
		waiting := q.space
		q.space = nil
		for _, p := range waiting {
			p.spaceErr = err
			p.tries++
			q.retry = append(q.retry, p)
		}
	}
}

// finish ends a request whose work is done; FUA still needs its flush.
func (q *queue) finish(c *call, err error) {
	if err == nil && c.req.Flags&block.FUA != 0 && c.req.Op != block.OpRead && c.req.Op != block.OpFlush && c.req.Op != block.OpCache {
		q.syncs = append(q.syncs, c)
		return
	}
	q.complete(c, err)
}

func (q *queue) complete(c *call, err error) {
	c.req.Err = err
	q.done = append(q.done, c.req)
	q.active--
	*c = call{}
	q.calls = append(q.calls, c)
}

func (q *queue) newCall(r *block.Request) *call {
	var c *call
	if k := len(q.calls) - 1; k >= 0 {
		c = q.calls[k]
		q.calls = q.calls[:k]
	} else {
		c = new(call)
	}
	c.req = r
	r.Err = nil
	return c
}

// launch submits the batch. The count of its generation is published before,
// and looked at again after: a release that did not see it saw no operation.
func (q *queue) launch() {
	for len(q.batch) > 0 {
		n := int64(len(q.batch))
		var g uint64
		for {
			g = q.s.ioGen.Load()
			q.running[g&1].Store(q.gens[g&1] + n)
			if q.s.ioGen.Load() == g {
				break
			}
			q.running[g&1].Store(q.gens[g&1])
		}
		q.gens[g&1] += n
		ops := q.batch
		q.batch = nil // completions inside Submit may add to it
		for _, op := range ops {
			op.Owner.(*piece).gen = uint8(g & 1)
		}
		q.e.Submit(ops...)
		clear(ops)
		if q.batch == nil {
			q.batch = ops[:0]
		}
	}
}

// fence bars this queue and waits until what it started has ended. A request
// is counted in shown before its owner looks at fenced, and fenced is set
// before shown is looked at here: one of the two sees the other.
func (q *queue) fence(ctx context.Context) error {
	q.fenced.Store(true)
	for q.shown.Load() != 0 {
		q.e.Wake()
		t := time.NewTimer(10 * time.Millisecond) // the owner may reap late
		select {
		case <-q.drained:
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return fmt.Errorf("operations of the session before are still under way: %w: %w", ctx.Err(), errdefs.ErrUnavailable)
		}
		t.Stop()
	}
	s := q.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if q.r.queue == q {
		q.r.queue = nil // the new session may open its own
	}
	return nil
}

// Close implements block.Queue.
func (q *queue) Close() error {
	if q.closed {
		return nil
	}
	if q.inflight > len(q.done) {
		return fmt.Errorf("close queue of replica %s: %d requests in flight: %w", q.rs.spec.ID, q.inflight-len(q.done), errdefs.ErrFailedPrecondition)
	}
	q.closed = true
	q.settle()
	q.s.mu.Lock()
	delete(q.s.queues, q)
	if q.r.queue == q {
		q.r.queue = nil
	}
	q.s.mu.Unlock()
	if q.l != nil {
		q.s.unpin(q.l)
	}
	q.bufs.close()
	return nil
}

// aligned says whether b may go to the engine as it is.
func (q *queue) aligned(b []byte) bool {
	return uintptr(unsafe.Pointer(unsafe.SliceData(b)))%uintptr(q.s.memAlign) == 0
}

// bufPool hands out buffers of one extent, page aligned, outside the heap.
type bufPool struct {
	free   [][]byte
	chunks []func()
	made   int // bytes
}

func (p *bufPool) get() []byte {
	if len(p.free) == 0 {
		if p.made >= bounceMax {
			return nil
		}
		const chunk = 1 << 20
		mem, unmap := alignedBuf(chunk)
		p.chunks = append(p.chunks, unmap)
		p.made += chunk
		for off := 0; off < chunk; off += ExtentSize {
			p.free = append(p.free, mem[off:off+ExtentSize:off+ExtentSize])
		}
	}
	b := p.free[len(p.free)-1]
	p.free = p.free[:len(p.free)-1]
	return b
}

func (p *bufPool) put(b []byte) { p.free = append(p.free, b) }

func (p *bufPool) close() {
	for _, f := range p.chunks {
		f()
	}
	*p = bufPool{made: bounceMax}
}
