package nbdserver

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/block/rangelock"
	"github.com/moraine-storage/moraine/drivers/nbd"
)

// request is one NBD request from parsing to reply, pooled by its loop.
type request struct {
	req    block.Request
	lock   rangelock.Lock
	locked bool
	c      *conn
	cookie uint64
	off    int64 // of the whole request; req is a piece of it when it is
	end    int64 // longer than the queue takes (TRIM, ZERO, CACHE)
	cmd    uint16
	buf    *buffer        // payload of a read or of a bulk write, or nil
	slab   *slab          // where a small write's payload is, or nil
	holes  []block.Extent // of a large read: what to send as holes; empty: all data
	next   *request
}

func putUint64(p []byte, v uint64) { binary.BigEndian.PutUint64(p, v) }
func putUint32(p []byte, v uint32) { binary.BigEndian.PutUint32(p, v) }

// commandFlags are the flags that each command may carry. FUA is taken on all
// of them, as the specification asks for, and means something on three.
var commandFlags = [...]uint16{
	nbd.CmdRead:        nbd.CmdFlagFUA | nbd.CmdFlagDF,
	nbd.CmdWrite:       nbd.CmdFlagFUA | nbd.CmdFlagPayloadLen,
	nbd.CmdDisc:        0,
	nbd.CmdFlush:       nbd.CmdFlagFUA,
	nbd.CmdTrim:        nbd.CmdFlagFUA,
	nbd.CmdCache:       nbd.CmdFlagFUA,
	nbd.CmdWriteZeroes: nbd.CmdFlagFUA | nbd.CmdFlagNoHole | nbd.CmdFlagFastZero,
	nbd.CmdBlockStatus: nbd.CmdFlagFUA | nbd.CmdFlagReqOne,
}

// validate returns the errno of a request that must not be executed, or 0.
func (l *Loop) validate(c *conn, h *nbd.Request) uint32 {
	if int(h.Cmd) >= len(commandFlags) || h.Flags&^commandFlags[h.Cmd] != 0 {
		return nbd.EINVAL
	}
	if h.Flags&nbd.CmdFlagDF != 0 && !c.neg.Structured {
		return nbd.EINVAL
	}
	if h.Cmd == nbd.CmdFlush {
		if h.Off != 0 || h.Len != 0 {
			return nbd.EINVAL
		}
		return 0
	}
	switch h.Cmd {
	case nbd.CmdWrite, nbd.CmdTrim, nbd.CmdWriteZeroes:
		if c.neg.Flags&nbd.FlagReadOnly != 0 {
			return nbd.EPERM
		}
	case nbd.CmdBlockStatus:
		if len(c.neg.Contexts) == 0 {
			return nbd.EINVAL
		}
	}
	size := uint64(l.info.Size)
	if h.Off > size || h.Len > size-h.Off {
		if h.Cmd == nbd.CmdWrite || h.Cmd == nbd.CmdWriteZeroes {
			return nbd.ENOSPC
		}
		return nbd.EINVAL
	}
	if h.Len == 0 || (h.Off|h.Len)%block.SectorSize != 0 {
		return nbd.EINVAL
	}
	if h.Len > l.maxPayload() {
		switch {
		case h.Cmd == nbd.CmdRead && h.Flags&nbd.CmdFlagDF != 0:
			return nbd.EOVERFLOW
		case h.Cmd == nbd.CmdRead, h.Cmd == nbd.CmdWrite:
			return nbd.EINVAL
		}
	}
	return 0
}

// maxPayload is the largest read or write.
func (l *Loop) maxPayload() uint64 {
	if m := l.info.MaxLen; m > 0 && m < nbd.MaxPayload {
		return uint64(m)
	}
	return nbd.MaxPayload
}

// refuse answers a request that is not executed.
func (l *Loop) refuse(c *conn, h *nbd.Request, errno uint32) {
	l.stats.Errors++
	c.replyEmpty(h.Cookie, h.Off, h.Cmd, errno)
}

var operations = [...]block.Op{
	nbd.CmdRead: block.OpRead, nbd.CmdWrite: block.OpWrite, nbd.CmdFlush: block.OpFlush, nbd.CmdTrim: block.OpTrim,
	nbd.CmdCache: block.OpCache, nbd.CmdWriteZeroes: block.OpZero, nbd.CmdBlockStatus: 0,
}

// newRequest takes a request from the free list and accounts for it.
func (l *Loop) newRequest(c *conn, h *nbd.Request) *request {
	r := l.free
	if r == nil {
		r = &request{}
		r.req.Owner, r.lock.Owner = r, r
	} else {
		l.free, r.next = r.next, nil
	}
	r.c, r.cookie, r.cmd = c, h.Cookie, h.Cmd
	q := &r.req
	q.Op, q.Off, q.Len, q.Buf, q.Err, q.Flags = operations[h.Cmd], int64(h.Off), int64(h.Len), nil, nil, 0
	switch h.Cmd {
	case nbd.CmdWrite, nbd.CmdTrim, nbd.CmdWriteZeroes:
		if h.Flags&nbd.CmdFlagFUA != 0 {
			q.Flags |= block.FUA
		}
		if h.Flags&nbd.CmdFlagNoHole != 0 {
			q.Flags |= block.NoHole
		}
		if h.Flags&nbd.CmdFlagFastZero != 0 {
			q.Flags |= block.FastZero
		}
	}
	q.Tag = uint64(h.Flags)
	r.off, r.end = q.Off, q.End()
	if q.Op != 0 {
		q.Len = l.piece(q)
	}
	l.inflight++
	c.inflight++
	if r.payload() {
		c.bytes += q.Len
		l.load += q.Len
	}
	return r
}

// piece is how much of q the queue takes at once: MaxLen, for a TRIM up to a
// border of grains, so that no grain is left out between two pieces. Reads and
// writes are within MaxLen: validate saw to it.
func (l *Loop) piece(q *block.Request) int64 {
	m := l.info.MaxLen
	if m <= 0 || q.Len <= m {
		return q.Len
	}
	if g := l.info.Grain; q.Op == block.OpTrim && g > 0 && m > g {
		m -= (q.Off + m) % g
	}
	return m
}

func (r *request) payload() bool { return r.cmd == nbd.CmdRead || r.cmd == nbd.CmdWrite }

// admit locks the range of a request that is here whole. It is started by the
// next run of the loop, or when the locks before it are released.
func (l *Loop) admit(r *request) {
	switch r.cmd {
	case nbd.CmdRead, nbd.CmdWrite, nbd.CmdTrim, nbd.CmdWriteZeroes:
		r.lock.Start, r.lock.End, r.lock.Exclusive = r.off, r.end, r.cmd != nbd.CmdRead
		r.locked = true
		if !l.locks.Acquire(&r.lock) {
			return
		}
	}
	l.ready = append(l.ready, r)
}

// run executes what is ready, and what that makes ready, sending replies on the way.
func (l *Loop) run() {
	for len(l.ready) > 0 {
		l.work, l.ready = l.ready, l.work[:0]
		l.look(l.work)
		chunk := len(l.work)
		if !l.blocking {
			chunk = flushEvery
		}
		for rest := l.work; len(rest) > 0; {
			n := l.start(rest, chunk)
			rest = rest[n:]
			l.queue.Submit(l.batch)
			l.reap()
			l.flushMarked(len(rest) == 0 && len(l.ready) == 0)
		}
	}
}

// look finds out which connections of these requests were shut (invariant 2).
func (l *Loop) look(work []*request) {
	l.round++
	l.pollfds, l.polled = l.pollfds[:0], l.polled[:0]
	for _, r := range work {
		if c := r.c; c.open && c.checked != l.round {
			c.checked = l.round
			l.pollfds = append(l.pollfds, unix.PollFd{Fd: int32(c.fd), Events: unix.POLLRDHUP})
			l.polled = append(l.polled, c)
		}
	}
	if len(l.pollfds) == 0 {
		return
	}
	n, errno := pollNow(l.pollfds)
	for i, c := range l.polled {
		// An error of poll itself (ENOMEM) leaves us blind: execute nothing.
		if errno != 0 || n > 0 && l.pollfds[i].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) != 0 {
			l.closeConn(c, errHangup)
		}
		l.polled[i] = nil
	}
}

// start prepares up to max requests of work in l.batch; it returns how many of
// work it has dealt with.
func (l *Loop) start(work []*request, max int) int {
	l.batch = l.batch[:0]
	bytes := int64(0)
	for i, r := range work {
		if len(l.batch) >= max || bytes >= flushBytes && !l.blocking {
			return i
		}
		work[i] = nil
		if !r.c.open {
			l.stats.Dropped++
			l.finish(r)
			continue
		}
		switch r.cmd {
		case nbd.CmdBlockStatus:
			l.blockStatus(r)
			continue
		case nbd.CmdRead:
			if !l.prepareRead(r) {
				continue
			}
		}
		bytes += int64(len(r.req.Buf))
		l.batch = append(l.batch, &r.req)
	}
	return len(work)
}

// prepareRead gets the buffer of a read; false when it was answered at once.
func (l *Loop) prepareRead(r *request) bool {
	r.holes = r.holes[:0]
	if r.c.neg.Structured && l.extenter != nil && r.req.Len >= bulkSize && uint16(r.req.Tag)&nbd.CmdFlagDF == 0 {
		l.findHoles(r)
		if len(r.holes) == 1 && r.holes[0].Zero {
			before := r.c.out.bytes
			r.c.replyPieces(r, nil)
			r.c.added(before)
			l.count(r, nil)
			l.finish(r)
			return false
		}
	}
	buf, err := l.pool.get(int(r.req.Len))
	if err != nil {
		r.req.Err = block.ErrNoMemory
		l.complete(r)
		return false
	}
	r.buf = buf
	r.req.Buf = buf.payload(int(r.req.Len))
	return true
}

// findHoles asks for the zeros in a read's range, which is locked against
// writes until the reply is queued. No holes, too many, or an answer that does
// not cover the range: all is sent as data.
func (l *Loop) findHoles(r *request) {
	ext, err := l.extenter.Extents(r.holes, r.req.Off, r.req.Len, holeExtents)
	r.holes = ext[:0]
	if err != nil {
		return
	}
	at, zero := r.req.Off, false
	for _, e := range ext {
		if e.Off != at || e.Len <= 0 {
			return
		}
		at += e.Len
		zero = zero || e.Zero
	}
	if zero && at == r.req.End() {
		r.holes = ext
	}
}

// reap takes completions until there are none.
func (l *Loop) reap() {
	for {
		n := l.queue.Reap(l.reaped[:])
		for _, q := range l.reaped[:n] {
			l.complete(q.Owner.(*request))
		}
		if n < len(l.reaped) {
			return
		}
	}
}

// complete answers an executed request.
func (l *Loop) complete(r *request) {
	l.active = true
	c, err := r.c, r.req.Err
	if err == nil && r.end > r.req.End() && l.continued(r) {
		return
	}
	l.count(r, err)
	if c.open {
		if err == nil && r.cmd == nbd.CmdRead {
			c.replyData(r)
		} else {
			c.replyEmpty(r.cookie, uint64(r.off), r.cmd, errnoOf(err))
		}
	}
	l.finish(r)
}

// continued goes on with the next piece of a request that is longer than the
// queue takes at once, in the next round: others get their turn between. The
// lock stays; a client that has gone ends it here.
func (l *Loop) continued(r *request) bool {
	if !r.c.open {
		return false
	}
	r.req.Off = r.req.End()
	r.req.Len = r.end - r.req.Off
	r.req.Len = l.piece(&r.req)
	l.later = append(l.later, r)
	return true
}

// finish releases what a request holds and puts it on the free list.
func (l *Loop) finish(r *request) {
	c := r.c
	if r.locked {
		r.locked = false
		l.granted = l.locks.Release(&r.lock, l.granted[:0])
		for _, g := range l.granted {
			l.ready = append(l.ready, g.Owner.(*request))
		}
	}
	if r.buf != nil {
		l.pool.put(r.buf)
		r.buf = nil
	}
	if r.slab != nil {
		l.unref(r.slab)
		r.slab = nil
	}
	l.progress++
	l.inflight--
	c.inflight--
	if r.payload() {
		c.bytes -= r.req.Len
		l.load -= r.req.Len
	}
	r.c, r.req.Buf, r.req.Err = nil, nil, nil
	r.next, l.free = l.free, r
	if c.open {
		c.mark()
	} else {
		l.ended(c)
	}
}

// mayTake says whether c may have one more request with so much payload.
func (l *Loop) mayTake(c *conn, cost int64) bool {
	if l.holds > 0 {
		return false
	}
	if c.inflight == 0 && c.out.empty() {
		return true
	}
	return c.inflight < l.limits.ConnRequests && c.bytes+c.out.bytes+cost <= l.limits.ConnBytes && l.load+cost <= l.limits.LoopBytes
}

// errnoOf translates an error of the queue to the wire.
func errnoOf(err error) uint32 {
	if err == nil {
		return 0
	}
	return uint32(block.Errno(err))
}

// errorText is the text of error chunks: people read it in their client's log.
func errorText(errno uint32) string {
	switch errno {
	case nbd.EPERM:
		return "export is read-only"
	case nbd.EIO:
		return "input/output error"
	case nbd.ENOMEM:
		return "server is out of buffers"
	case nbd.EINVAL:
		return "invalid request"
	case nbd.ENOSPC:
		return "no space left, or beyond the end of the export"
	case nbd.EOVERFLOW:
		return "too long for one piece"
	case nbd.ENOTSUP:
		return "not supported, or not fast"
	case nbd.ESHUTDOWN:
		return "export is shutting down or was taken over by another node"
	}
	return "error"
}
