package nbdclient

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// sendQueue is what is to be sent, in order: headers from an arena, payloads
// from where they are.
type sendQueue struct {
	segs      []seg
	head      int
	arena     []byte
	end, sent uint64 // positions in the stream: of what was queued, and sent
}

type seg struct {
	p     []byte
	arena bool
}

func (q *sendQueue) empty() bool { return q.head == len(q.segs) }

func (q *sendQueue) add(p []byte) {
	q.segs = append(q.segs, seg{p: p})
	q.end += uint64(len(p))
}

// room appends n bytes to fill in; neighbours become one piece.
func (q *sendQueue) room(n int) []byte {
	fresh := len(q.arena)+n > cap(q.arena)
	if fresh {
		q.arena = make([]byte, 0, max(arenaSize, min(2*cap(q.arena), 16*arenaSize))) // pieces keep the old one alive
	}
	at := len(q.arena)
	q.arena = q.arena[:at+n]
	p := q.arena[at : at+n]
	q.end += uint64(n)
	if last := len(q.segs) - 1; !fresh && last >= q.head && q.segs[last].arena {
		s := &q.segs[last]
		s.p = unsafe.Slice(unsafe.SliceData(s.p), len(s.p)+n)
		return p
	}
	q.segs = append(q.segs, seg{p: p, arena: true})
	return p
}

// took notes that n bytes were sent.
func (q *sendQueue) took(n int) {
	q.sent += uint64(n)
	for n > 0 {
		s := &q.segs[q.head]
		if n < len(s.p) {
			s.p = s.p[n:]
			return
		}
		n -= len(s.p)
		*s = seg{}
		q.head++
	}
	if q.empty() {
		q.segs, q.head, q.arena = q.segs[:0], 0, q.arena[:0]
	}
}

// flush sends what the socket takes.
func (c *Client) flush() {
	if c.tls != nil {
		c.flushTLS()
		return
	}
	q := &c.send
	for !q.empty() {
		n := 0
		for i := q.head; i < len(q.segs) && n < maxIOV; i++ {
			c.iov[n].Base = unsafe.SliceData(q.segs[i].p)
			c.iov[n].SetLen(len(q.segs[i].p))
			n++
		}
		sent, _, errno := unix.Syscall(unix.SYS_WRITEV, uintptr(c.fd), uintptr(unsafe.Pointer(&c.iov[0])), uintptr(n))
		switch errno {
		case 0:
			q.took(int(sent))
		case unix.EINTR:
		case unix.EAGAIN:
			c.blocked = true
			c.rewatch()
			return
		default:
			c.fail(errno)
			return
		}
	}
	c.blocked = false
}

func (c *Client) flushTLS() {
	q := &c.send
	for {
		switch err := c.tls.Push(); {
		case err == unix.EAGAIN:
			c.blocked = true
			c.rewatch()
			return
		case err != nil:
			c.fail(err)
			return
		}
		if q.empty() {
			c.blocked = false
			return
		}
		n := 0
		for i := q.head; i < len(q.segs) && n < len(c.scratch); i++ {
			n += copy(c.scratch[n:], q.segs[i].p)
		}
		if err := c.tls.Write(c.scratch[:n]); err != nil {
			c.fail(err)
			return
		}
		q.took(n)
	}
}
