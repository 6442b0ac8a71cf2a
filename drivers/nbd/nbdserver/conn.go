package nbdserver

import (
	"errors"
	"fmt"
	"io"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/drivers/aio"
	"github.com/moraine-storage/moraine/drivers/nbd"
	"github.com/moraine-storage/moraine/drivers/nbd/internal/rawtls"
)

// conn is one client in the transmission phase, owned by its loop.
type conn struct {
	l       *Loop
	fd      int // -1 when closed
	slot    int // index in Loop.conns; part of the token
	token   uint64
	tls     *rawtls.Transport // or nil
	neg     nbd.Negotiated
	hdr     int // size of a request's header
	session Session

	// receiving
	slab      *slab // or nil while nothing is half received
	rpos      int   // slab.mem[rpos:wpos] is received and not parsed
	wpos      int
	bulk      *request // WRITE being received into its own buffer, or nil
	bulkGot   int      // bytes of it that are here
	skip      uint64   // bytes of payload to throw away
	streaming bool     // the last payload was bulk: expect another
	throttled bool     // over a limit or held: not read, parse again later
	buffered  bool     // TLS may hold bytes that the socket does not show
	leaving   bool     // DISC received: finish and close

	// sending
	out     output
	blocked bool // the socket took not everything: wait for Writable

	inflight int   // requests admitted and not completed
	bytes    int64 // their payload
	interest uint32
	watched  bool // by the engine
	marked   bool // in Loop.marked
	checked  uint64
	open     bool // counts in fd; false once closed
	ended    bool // Session.Closed was called
}

// errHangup says that the client has gone, which is nobody's mistake.
var errHangup = errors.New("connection closed by the client")

// receive reads once from the socket and parses what is there.
func (c *conn) receive() {
	if c.throttled || c.leaving || !c.open {
		return
	}
	n, err := c.fill()
	switch {
	case err == unix.EAGAIN:
		return
	case err != nil:
		c.l.closeConn(c, err)
		return
	case n == 0:
		c.l.closeConn(c, errHangup)
		return
	}
	c.l.active = true
	c.parse()
}

// hangup is called while the client has shut down its side. No request of it
// is executed any more (invariant 2), but one that said good-bye (DISC, then
// shutdown) gets the replies to what runs, and an orderly close: a unix socket
// that is closed with DISC unread shows the client a reset.
func (c *conn) hangup() {
	if !c.leaving {
		if c.throttled {
			c.l.closeConn(c, errHangup)
			return
		}
		c.receive() // finds DISC or the end of the stream
	}
	if c.open && c.leaving && c.watched {
		// Or this event would come again and again until the last completion.
		c.watched = false
		if err := c.l.engine.Unwatch(c.fd); err != nil {
			c.l.closeConn(c, err)
		}
	}
}

// fill receives into the bulk request, or else into the slab.
func (c *conn) fill() (int, error) {
	if err := c.makeRoom(); err != nil {
		return 0, err
	}
	free := c.slab.mem[c.wpos:]
	if c.streaming && c.wpos-c.rpos < c.hdr {
		free = free[:c.hdr-(c.wpos-c.rpos)] // the next payload shall not land here
	}
	var rest []byte
	if c.bulk != nil {
		rest = c.bulk.req.Buf[c.bulkGot:]
	}
	n, err := c.read(rest, free)
	if err != nil {
		return 0, err
	}
	got := n
	if c.bulk != nil {
		b := min(n, len(rest))
		c.bulkGot += b
		n -= b
	}
	c.wpos += n
	return got, nil
}

// read fills first, then second, by one system call (or TLS record).
func (c *conn) read(first, second []byte) (int, error) {
	if c.tls != nil {
		if len(first) == 0 {
			first = second
		}
		n, drained, err := c.tls.Read(first)
		c.buffered = !drained
		return n, err
	}
	for {
		var n uintptr
		var errno unix.Errno
		if len(first) == 0 {
			n, _, errno = unix.Syscall(unix.SYS_READ, uintptr(c.fd), uintptr(unsafe.Pointer(&second[0])), uintptr(len(second)))
		} else {
			iov := &c.l.iov
			iovec(&iov[0], first)
			iovec(&iov[1], second)
			n, _, errno = unix.Syscall(unix.SYS_READV, uintptr(c.fd), uintptr(unsafe.Pointer(iov)), 2)
		}
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// makeRoom sees to a slab with room behind wpos. What is half received moves
// to the front of the slab, or of a new one while requests use the old.
func (c *conn) makeRoom() error {
	if c.slab == nil {
		s, err := c.l.pool.getSlab()
		if err != nil {
			return err
		}
		c.slab, c.rpos, c.wpos = s, 0, 0
		return nil
	}
	s := c.slab
	if s.refs == 0 && c.rpos == c.wpos {
		c.rpos, c.wpos = 0, 0
	}
	if len(s.mem)-c.wpos >= minRoom && len(s.mem)-c.rpos >= bulkSize+nbd.ExtRequestSize {
		return nil
	}
	to := s
	if s.refs > 0 {
		fresh, err := c.l.pool.getSlab()
		if err != nil {
			return err
		}
		s.left = true
		c.l.load += slabSize // pinned memory counts like payload
		to = fresh
	}
	n := copy(to.mem, s.mem[c.rpos:c.wpos])
	c.slab, c.rpos, c.wpos = to, 0, n
	return nil
}

// unref ends a request's use of a slab.
func (l *Loop) unref(s *slab) {
	if s.refs--; s.refs == 0 && s.left {
		s.left = false
		l.load -= slabSize
		l.pool.putSlab(s)
	}
}

// park gives an empty slab back while the connection is quiet.
func (c *conn) park() {
	if c.slab != nil && c.rpos == c.wpos && c.slab.refs == 0 {
		c.l.pool.putSlab(c.slab)
		c.slab = nil
	}
}

// parse admits every request that is here whole.
func (c *conn) parse() {
	c.mark()
	c.throttled = false
	for c.open && !c.leaving {
		more, err := c.next()
		if err != nil {
			c.l.closeConn(c, err)
			return
		}
		if !more {
			return
		}
	}
}

// next takes one request; more is false when bytes are missing or a limit is reached.
func (c *conn) next() (more bool, err error) {
	if c.bulk != nil {
		if c.bulkGot < len(c.bulk.req.Buf) {
			return false, nil
		}
		if c.l.holds > 0 {
			c.throttled = true
			return false, nil
		}
		r := c.bulk
		c.bulk, c.bulkGot = nil, 0
		c.l.receiving--
		c.l.admit(r)
		return true, nil
	}
	if c.skip > 0 {
		n := min(c.skip, uint64(c.wpos-c.rpos))
		c.rpos += int(n)
		c.skip -= n
		if c.skip > 0 {
			return false, nil
		}
	}
	if c.wpos-c.rpos < c.hdr {
		return false, nil
	}
	head := c.slab.mem[c.rpos:c.wpos]
	var h nbd.Request
	if c.neg.Extended {
		h, err = nbd.DecodeExtRequest(head)
	} else {
		h, err = nbd.DecodeRequest(head)
	}
	if err != nil {
		return false, err
	}
	return c.take(h, head[c.hdr:])
}

// take handles the request h; rest is what was received behind its header.
func (c *conn) take(h nbd.Request, rest []byte) (more bool, err error) {
	payload := h.Payload(c.neg.Extended)
	if h.Cmd == nbd.CmdDisc {
		c.leaving = true
		return false, nil
	}
	cost := int64(0)
	if payload <= nbd.MaxPayload && (h.Cmd == nbd.CmdRead || h.Cmd == nbd.CmdWrite) && h.Len <= nbd.MaxPayload {
		cost = int64(h.Len)
	}
	if !c.l.mayTake(c, cost) {
		c.throttled = true
		return false, nil
	}
	if errno := c.l.validate(c, &h); errno != 0 {
		if payload > nbd.MaxSkip {
			return false, fmt.Errorf("%w: payload of %d bytes", nbd.ErrProtocol, payload)
		}
		c.rpos += c.hdr
		c.skip, c.streaming = payload, false
		c.l.refuse(c, &h, errno)
		return true, nil
	}
	if h.Cmd == nbd.CmdWrite && payload >= bulkSize {
		return true, c.startBulk(h, rest)
	}
	if uint64(len(rest)) < payload {
		return false, nil
	}
	c.streaming = false
	r := c.l.newRequest(c, &h)
	if payload > 0 {
		r.slab = c.slab
		r.slab.refs++
		r.req.Buf = rest[:payload:payload]
	}
	c.rpos += c.hdr + int(payload)
	c.l.admit(r)
	return true, nil
}

// startBulk begins to receive a large WRITE into a buffer of its own.
func (c *conn) startBulk(h nbd.Request, rest []byte) error {
	buf, err := c.l.pool.get(int(h.Len))
	if err != nil {
		c.rpos += c.hdr
		c.skip, c.streaming = h.Len, false
		c.l.refuse(c, &h, nbd.ENOMEM)
		return nil
	}
	r := c.l.newRequest(c, &h)
	r.buf = buf
	r.req.Buf = buf.payload(int(h.Len))
	n := copy(r.req.Buf, rest)
	c.rpos += c.hdr + n
	c.bulk, c.bulkGot, c.streaming = r, n, true
	c.l.receiving++
	return nil
}

// wants is the interest that c has in its socket now.
func (c *conn) wants() uint32 {
	var i uint32
	if !c.throttled && !c.leaving {
		i = aio.Readable
	}
	if c.blocked {
		i |= aio.Writable
	}
	return i
}

// settle brings the watch in line before the loop sleeps.
func (c *conn) settle() {
	if !c.open {
		return
	}
	if c.leaving && c.inflight == 0 && c.out.empty() && (c.tls == nil || c.tls.Idle()) {
		c.l.closeConn(c, nil)
		return
	}
	c.park()
	if !c.watched {
		if c.blocked {
			c.l.closeConn(c, errHangup) // nobody would tell when there is room
		}
		return
	}
	if want := c.wants(); want != c.interest {
		if err := c.l.engine.Watch(c.fd, want, c.token); err != nil {
			c.l.closeConn(c, err)
			return
		}
		c.interest = want
	}
}

// gone says whether an error only means that the client went away.
func gone(err error) bool {
	return err == nil || errors.Is(err, errHangup) || errors.Is(err, io.EOF) ||
		errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
}
