package nbdserver

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/drivers/nbd"
)

// seg is a piece of output. buf is given back when all of p was sent.
type seg struct {
	p   []byte
	buf *buffer
}

// output is what a connection still has to send, in order.
type output struct {
	segs    []seg
	head    int
	bytes   int64
	replies int    // complete replies since the last flush
	arena   []byte // headers and small replies; segs point into it
}

func (o *output) empty() bool { return o.head == len(o.segs) }

// add appends a piece of payload.
func (o *output) add(p []byte, buf *buffer) {
	o.segs = append(o.segs, seg{p: p, buf: buf})
	o.bytes += int64(len(p))
}

// room appends n bytes to fill in: they join the piece before when they can.
func (o *output) room(n int) []byte {
	if len(o.arena)+n > cap(o.arena) {
		// What is queued keeps the old arena alive until it is sent.
		o.arena = make([]byte, 0, max(4096, n, min(2*cap(o.arena), 64<<10)))
	}
	at := len(o.arena)
	o.arena = o.arena[:at+n]
	p := o.arena[at : at+n]
	o.bytes += int64(n)
	if last := len(o.segs) - 1; last >= o.head && o.segs[last].buf == nil {
		s := &o.segs[last]
		if n > 0 && at > 0 && len(s.p) > 0 && &s.p[len(s.p)-1] == &o.arena[at-1] {
			s.p = unsafe.Slice(unsafe.SliceData(s.p), len(s.p)+n)
			return p
		}
	}
	o.segs = append(o.segs, seg{p: p})
	return p
}

// sent takes n bytes off the front and returns finished buffers to the pool.
func (o *output) sent(n int, pool *pool) {
	o.bytes -= int64(n)
	for n > 0 || o.head < len(o.segs) && len(o.segs[o.head].p) == 0 {
		s := &o.segs[o.head]
		if n < len(s.p) {
			s.p = s.p[n:]
			return
		}
		n -= len(s.p)
		if s.buf != nil {
			pool.put(s.buf)
		}
		*s = seg{}
		o.head++
	}
	if o.empty() {
		o.segs, o.head, o.arena = o.segs[:0], 0, o.arena[:0]
	}
}

// drop forgets everything.
func (o *output) drop(pool *pool) {
	for i := o.head; i < len(o.segs); i++ {
		if b := o.segs[i].buf; b != nil {
			pool.put(b)
		}
		o.segs[i] = seg{}
	}
	o.segs, o.head, o.bytes, o.arena = o.segs[:0], 0, 0, o.arena[:0]
}

// flush sends what the socket takes; c.blocked tells that it took not all.
func (c *conn) flush() {
	c.out.replies = 0
	if c.tls != nil {
		c.flushTLS()
	} else {
		c.flushPlain()
	}
}

// sent accounts for n bytes that the transport has taken.
func (c *conn) sent(n int) {
	c.l.load -= int64(n)
	c.l.progress++
	c.out.sent(n, &c.l.pool)
}

func (c *conn) flushPlain() {
	o, iov := &c.out, &c.l.iov
	for !o.empty() {
		n := 0
		for i := o.head; i < len(o.segs) && n < maxIOV; i++ {
			iovec(&iov[n], o.segs[i].p)
			n++
		}
		var sent uintptr
		var errno unix.Errno
		if n == 1 {
			sent, _, errno = unix.Syscall(unix.SYS_WRITE, uintptr(c.fd), uintptr(unsafe.Pointer(iov[0].Base)), uintptr(iov[0].Len))
		} else {
			sent, _, errno = unix.Syscall(unix.SYS_WRITEV, uintptr(c.fd), uintptr(unsafe.Pointer(iov)), uintptr(n))
		}
		switch errno {
		case 0:
			c.sent(int(sent))
		case unix.EINTR:
		case unix.EAGAIN:
			c.blocked = true
			return
		default:
			c.l.closeConn(c, errno)
			return
		}
	}
	c.blocked = false
}

func (c *conn) flushTLS() {
	o, t := &c.out, c.tls
	for {
		if err := t.Push(); err != nil {
			c.blocked = err == unix.EAGAIN
			if !c.blocked {
				c.l.closeConn(c, err)
			}
			return
		}
		if o.empty() {
			c.blocked = false
			return
		}
		n := 0
		plain := c.l.tlsScratch
		for i := o.head; i < len(o.segs) && n < len(plain); i++ {
			n += copy(plain[n:], o.segs[i].p)
		}
		if err := t.Write(plain[:n]); err != nil {
			c.l.closeConn(c, err)
			return
		}
		c.sent(n)
	}
}

// mark notes that c has output or state to look at before the loop sleeps.
func (c *conn) mark() {
	if !c.marked {
		c.marked = true
		c.l.marked = append(c.l.marked, c)
	}
}

// added accounts for output that was queued since before.
func (c *conn) added(before int64) {
	c.l.load += c.out.bytes - before
	c.out.replies++
	c.mark()
}

// replyEmpty queues a reply without payload.
func (c *conn) replyEmpty(cookie, off uint64, cmd uint16, errno uint32) {
	before := c.out.bytes
	switch {
	case c.neg.Extended && errno == 0:
		ch := nbd.Chunk{Flags: nbd.ChunkFlagDone, Type: nbd.ChunkNone, Cookie: cookie, Off: off}
		ch.PutExt(c.out.room(nbd.ExtChunkSize))
	case errno != 0 && (c.neg.Extended || c.neg.Structured && (cmd == nbd.CmdRead || cmd == nbd.CmdBlockStatus)):
		msg := errorText(errno)
		n := c.chunkSize()
		p := c.out.room(n + 6 + len(msg))
		c.putChunk(p, nbd.Chunk{Flags: nbd.ChunkFlagDone, Type: nbd.ChunkError, Cookie: cookie, Off: off, Len: uint64(6 + len(msg))})
		nbd.AppendErrorPayload(p[n:n], errno, msg)
	default:
		nbd.PutSimpleReply(c.out.room(nbd.SimpleReplySize), errno, cookie)
	}
	c.added(before)
}

func (c *conn) chunkSize() int {
	if c.neg.Extended {
		return nbd.ExtChunkSize
	}
	return nbd.ChunkSize
}

func (c *conn) putChunk(p []byte, ch nbd.Chunk) {
	if c.neg.Extended {
		ch.PutExt(p)
	} else {
		ch.Put(p)
	}
}

// replyData queues the payload of a read and gives r's buffer away.
func (c *conn) replyData(r *request) {
	before := c.out.bytes
	n := int(r.req.Len)
	buf := r.buf
	r.buf = nil
	switch {
	case !c.neg.Structured:
		const h = nbd.SimpleReplySize
		nbd.PutSimpleReply(buf.mem[headRoom-h:headRoom], 0, r.cookie)
		c.out.add(buf.mem[headRoom-h:headRoom+n], buf)
	case len(r.holes) > 0:
		c.replyPieces(r, buf)
	default:
		h := c.chunkSize() + 8
		p := buf.mem[headRoom-h : headRoom+n]
		c.putChunk(p, nbd.Chunk{Flags: nbd.ChunkFlagDone, Type: nbd.ChunkOffsetData, Cookie: r.cookie,
			Off: uint64(r.req.Off), Len: uint64(8 + n)})
		putUint64(p[h-8:], uint64(r.req.Off))
		c.out.add(p, buf)
	}
	c.added(before)
}

// replyPieces sends a read as data and holes; r.holes covers all of it.
func (c *conn) replyPieces(r *request, buf *buffer) {
	h := c.chunkSize()
	lastData := -1
	for i, e := range r.holes {
		if !e.Zero {
			lastData = i
		}
	}
	for i, e := range r.holes {
		var flags uint16
		if i == len(r.holes)-1 {
			flags = nbd.ChunkFlagDone
		}
		ch := nbd.Chunk{Flags: flags, Type: nbd.ChunkOffsetData, Cookie: r.cookie, Off: uint64(r.req.Off), Len: uint64(8 + e.Len)}
		if e.Zero {
			ch.Type, ch.Len = nbd.ChunkOffsetHole, 12
			p := c.out.room(h + 12)
			c.putChunk(p, ch)
			putUint64(p[h:], uint64(e.Off))
			putUint32(p[h+8:], uint32(e.Len))
			continue
		}
		p := c.out.room(h + 8)
		c.putChunk(p, ch)
		putUint64(p[h:], uint64(e.Off))
		at := headRoom + int(e.Off-r.req.Off)
		var owner *buffer
		if i == lastData {
			owner = buf // the pieces before it are sent before it
		}
		c.out.segs = append(c.out.segs, seg{p: buf.mem[at : at+int(e.Len)], buf: owner})
		c.out.bytes += e.Len
	}
	if lastData < 0 && buf != nil {
		c.l.pool.put(buf)
	}
}
