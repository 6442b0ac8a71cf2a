package nbdclient

import (
	"errors"
	"fmt"
	"math"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/drivers/aio"
	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/nbd"
	"github.com/moraine-storage/moraine/drivers/nbd/internal/rawtls"
	"github.com/moraine-storage/moraine/drivers/nbd/internal/stream"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// Client is a block.Queue over one connection.
//
// Its owner may tell it of its socket's events by Ready; an owner that never
// does (block.Sync) gets the socket looked at by each Reap.
type Client struct {
	fd     int // -1 when closed
	engine aio.Engine
	token  uint64
	tls    *rawtls.Transport // or nil
	neg    nbd.Negotiated
	info   block.Info
	err    error // why the connection is over, or nil

	slots []*slot // by the low half of the cookie
	free  []uint32
	live  int // requests sent or waiting to be sent
	ended []*block.Request
	count int // submitted, not reaped

	send     sendQueue
	blocked  bool // the socket took not everything
	scratch  []byte
	iov      [maxIOV]unix.Iovec
	told     bool // the owner calls Ready
	readable bool
	interest uint32

	in         []byte
	rpos, wpos int
	cur        *slot  // whose payload is being received, or nil
	dst        []byte // what is missing of it
	status     []byte // BLOCK_STATUS payload being received
	last       nbd.ReplyHeader
	streaming  bool // the last payload was bulk
}

// slot is one request in flight.
type slot struct {
	req    *block.Request
	cookie uint64
	from   uint64 // position in the stream of its first byte
	got    int64  // bytes of a READ that were covered
	err    error  // first error chunk
	status *statusCall
	busy   bool
}

// statusCall collects the answer to a BLOCK_STATUS.
type statusCall struct {
	extents map[uint32][]nbd.Extent
	err     error
	done    bool
}

var _ block.Queue = (*Client)(nil)

func newClient(fd int, t *rawtls.Transport, neg nbd.Negotiated, e aio.Engine, token uint64) (*Client, error) {
	if err := stream.Prepare(fd); err != nil {
		return nil, err
	}
	c := &Client{fd: fd, engine: e, token: token, tls: t, neg: neg, info: infoOf(neg),
		in: make([]byte, receiveSize), interest: aio.Readable, readable: true}
	if err := e.Watch(fd, c.interest, token); err != nil {
		return nil, err
	}
	if t != nil {
		t.Attach(fd)
		c.scratch = make([]byte, rawtls.Gather)
	}
	return c, nil
}

func infoOf(n nbd.Negotiated) block.Info {
	i := block.Info{Size: int64(n.Size) / block.SectorSize * block.SectorSize, BlockSize: 4096, MaxLen: nbd.MaxPayload,
		ReadOnly: n.Flags&nbd.FlagReadOnly != 0, Trim: n.Flags&nbd.FlagSendTrim != 0, Zero: n.Flags&nbd.FlagSendZeroes != 0}
	if b := n.BlockSize; b.Min > 0 {
		if b.Preferred >= block.SectorSize && b.Preferred <= nbd.MaxPayload && b.Preferred&(b.Preferred-1) == 0 {
			i.BlockSize = int(b.Preferred)
		}
		if m := int64(b.Max) / block.SectorSize * block.SectorSize; m > 0 && m < i.MaxLen {
			i.MaxLen = m
		}
	}
	i.Grain = int64(i.BlockSize)
	return i
}

// Negotiated is what both sides agreed on.
func (c *Client) Negotiated() nbd.Negotiated { return c.neg }

// Info implements block.Queue. The size is what the server said when the
// connection was made.
func (c *Client) Info() block.Info { return c.info }

// InFlight implements block.Queue.
func (c *Client) InFlight() int { return c.count }

// Err is why the connection is over, or nil.
func (c *Client) Err() error { return c.err }

// Submit implements block.Queue.
func (c *Client) Submit(reqs []*block.Request) {
	c.count += len(reqs)
	for _, r := range reqs {
		r.Err = c.refuse(r)
		if r.Err != nil || r.Op != block.OpFlush && r.Len == 0 || r.Op == block.OpCache && c.neg.Flags&nbd.FlagSendCache == 0 {
			c.ended = append(c.ended, r)
			continue
		}
		s := c.slot()
		s.req = r
		h := nbd.Request{Cmd: commands[r.Op], Off: uint64(r.Off), Len: uint64(r.Len)}
		if r.Op == block.OpFlush {
			h.Off, h.Len = 0, 0
		}
		if r.Op == block.OpWrite || r.Op == block.OpTrim || r.Op == block.OpZero {
			h.Flags = wireFlags(r.Flags)
		}
		var payload []byte
		if r.Op == block.OpWrite {
			payload = r.Buf
		}
		c.put(s, h, payload)
	}
	if c.err == nil && !c.blocked {
		c.flush()
	}
}

var commands = [...]uint16{
	block.OpRead: nbd.CmdRead, block.OpWrite: nbd.CmdWrite, block.OpFlush: nbd.CmdFlush,
	block.OpTrim: nbd.CmdTrim, block.OpZero: nbd.CmdWriteZeroes, block.OpCache: nbd.CmdCache,
}

func wireFlags(f block.Flags) (w uint16) {
	if f&block.FUA != 0 {
		w |= nbd.CmdFlagFUA
	}
	if f&block.NoHole != 0 {
		w |= nbd.CmdFlagNoHole
	}
	if f&block.FastZero != 0 {
		w |= nbd.CmdFlagFastZero
	}
	return w
}

// refuse says why a request cannot be sent. What the server cannot do is
// refused and not emulated: the owner knows what to do instead.
func (c *Client) refuse(r *block.Request) error {
	if c.err != nil {
		return c.lost(nil)
	}
	if err := block.Validate(r, c.info); err != nil {
		return err
	}
	need := uint16(0)
	switch r.Op {
	case block.OpFlush:
		need = nbd.FlagSendFlush
	case block.OpTrim:
		need = nbd.FlagSendTrim
	case block.OpZero:
		need = nbd.FlagSendZeroes
	}
	if r.Flags&block.FUA != 0 && r.Op != block.OpRead && r.Op != block.OpFlush && r.Op != block.OpCache {
		need |= nbd.FlagSendFUA
	}
	if r.Flags&block.FastZero != 0 {
		need |= nbd.FlagSendFastZero
	}
	if c.neg.Flags&need != need {
		return fmt.Errorf("%v: %w by the server", r.Op, block.ErrUnsupported)
	}
	return nil
}

// slot takes a free slot with a fresh cookie.
func (c *Client) slot() *slot {
	var i uint32
	if n := len(c.free); n > 0 {
		i = c.free[n-1]
		c.free = c.free[:n-1]
	} else {
		i = uint32(len(c.slots))
		c.slots = append(c.slots, &slot{cookie: uint64(i)})
	}
	s := c.slots[i]
	s.cookie += 1 << 32
	s.got, s.err, s.status, s.busy = 0, nil, nil, true
	c.live++
	return s
}

// put queues a request for sending.
func (c *Client) put(s *slot, h nbd.Request, payload []byte) {
	h.Cookie = s.cookie
	s.from = c.send.end
	if c.neg.Extended {
		if payload != nil {
			h.Flags |= nbd.CmdFlagPayloadLen
		}
		h.PutExt(c.send.room(nbd.ExtRequestSize))
	} else {
		h.Put(c.send.room(nbd.RequestSize))
	}
	if len(payload) > 0 {
		c.send.add(payload)
	}
}

// Ready tells of an event of the client's socket.
func (c *Client) Ready(ev aio.Event) {
	if ev.Token != c.token {
		return
	}
	c.told = true
	if ev.Ready&(aio.Readable|aio.HangUp) != 0 {
		c.readable = true
	}
	if ev.Ready&aio.Writable != 0 {
		c.blocked = false
	}
}

// Reap implements block.Queue.
func (c *Client) Reap(done []*block.Request) int {
	if c.err == nil {
		if !c.told {
			c.readable, c.blocked = true, false
		}
		if !c.blocked && !c.drained() {
			c.flush()
		}
		if c.readable && (c.live > 0 || c.told) {
			c.receive()
		}
		c.rewatch()
	}
	n := copy(done, c.ended)
	c.ended = c.ended[:copy(c.ended, c.ended[n:])]
	c.count -= n
	return n
}

// rewatch asks for what the socket's next event can be good for.
func (c *Client) rewatch() {
	want := aio.Readable
	if c.blocked {
		want |= aio.Writable
	}
	if c.err == nil && want != c.interest {
		if err := c.engine.Watch(c.fd, want, c.token); err != nil {
			c.fail(err)
			return
		}
		c.interest = want
	}
}

// Expire ends the connection when a request's deadline has passed: a server
// that hangs is worse than one that is gone. The owner calls it now and then.
func (c *Client) Expire(now time.Time) {
	if c.err != nil || c.live == 0 {
		return
	}
	for _, s := range c.slots {
		if s.busy && s.req != nil && !s.req.Deadline.IsZero() && now.After(s.req.Deadline) {
			c.fail(fmt.Errorf("%w: %v at %d", block.ErrTimeout, s.req.Op, s.req.Off))
			return
		}
	}
}

// fail ends the connection: what is in flight ends with an error.
func (c *Client) fail(why error) {
	if c.err != nil {
		return
	}
	c.err = why
	c.closeFD()
	for _, s := range c.slots {
		if s.busy {
			c.finish(s, c.lost(s))
		}
	}
	c.cur, c.dst, c.status = nil, nil, nil
	c.send = sendQueue{}
}

// lost is the error of a request that the end of the connection has hit; s is
// nil for one that came later.
func (c *Client) lost(s *slot) error {
	err := fmt.Errorf("nbd connection lost: %w: %w", block.ErrIO, c.err)
	if s == nil || s.from >= c.send.sent || s.req == nil || s.req.Op == block.OpRead || s.req.Op == block.OpCache {
		return err
	}
	return fmt.Errorf("%w: %w", errdefs.ErrIndeterminate, err)
}

// finish ends the request of a slot.
func (c *Client) finish(s *slot, err error) {
	if st := s.status; st != nil {
		st.err, st.done = err, true
	} else {
		s.req.Err = err
		c.ended = append(c.ended, s.req)
	}
	s.req, s.status, s.busy = nil, nil, false
	c.live--
	c.free = append(c.free, uint32(s.cookie))
}

func (c *Client) closeFD() {
	if c.fd < 0 {
		return
	}
	uerr := c.engine.Unwatch(c.fd)
	if uerr != nil && c.err == nil {
		c.err = uerr
	}
	_ = unix.Close(c.fd) // a socket: nothing is written back
	c.fd = -1
}

var errClosedHere = errors.New("closed by this side")

// Close says good-bye (DISC), as far as the socket takes it, and closes the
// connection. Requests in flight end with an error. Idempotent.
func (c *Client) Close() error {
	if c.err == nil && c.drained() {
		h := nbd.Request{Cmd: nbd.CmdDisc}
		if c.neg.Extended {
			h.PutExt(c.send.room(nbd.ExtRequestSize))
		} else {
			h.Put(c.send.room(nbd.RequestSize))
		}
		c.flush()
		if c.tls != nil && c.err == nil && c.drained() {
			c.tls.Farewell()
		}
	}
	c.fail(fmt.Errorf("%w: %w", block.ErrClosed, errClosedHere))
	return nil
}

// drained says that everything was handed to the socket.
func (c *Client) drained() bool { return c.send.empty() && (c.tls == nil || c.tls.Idle()) }

// errnoError translates an error number of a reply.
func errnoError(errno uint32, msg string) error {
	var err error
	switch errno {
	case nbd.EOVERFLOW:
		err = block.ErrInvalid
	case 0:
		return nil
	default:
		if errno > math.MaxInt16 {
			errno = nbd.EIO // no Linux number; whatever it is, it failed
		}
		err = block.FromErrno(unix.Errno(errno))
	}
	if msg == "" {
		return fmt.Errorf("nbd server: %w", err)
	}
	return fmt.Errorf("nbd server: %w (%q)", err, msg)
}
