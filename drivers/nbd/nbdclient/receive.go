package nbdclient

import (
	"encoding/binary"
	"fmt"
	"io"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/nbd"
)

// receive reads until the socket is empty and handles each reply. One read is
// enough when it did not fill the room.
func (c *Client) receive() {
	for c.err == nil {
		n, full, err := c.fill()
		switch {
		case err == unix.EAGAIN:
			c.readable = false
			return
		case err != nil:
			c.fail(err)
			return
		case n == 0:
			c.fail(fmt.Errorf("closed by the server: %w", io.EOF))
			return
		}
		if err := c.parse(); err != nil {
			c.fail(err)
			return
		}
		if !full {
			c.readable = false // level-triggered: an event comes if there is more
			return
		}
	}
}

// fill reads into the payload that is missing, or else into the buffer. full
// tells that there may be more.
func (c *Client) fill() (n int, full bool, err error) {
	switch {
	case c.rpos == c.wpos:
		c.rpos, c.wpos = 0, 0
	case len(c.in)-c.wpos < nbd.MaxErrorPayload+nbd.ExtChunkSize || len(c.in)-c.wpos < receiveSize/8:
		c.wpos = copy(c.in, c.in[c.rpos:c.wpos])
		c.rpos = 0
	}
	room := c.in[c.wpos:]
	direct := c.dst
	if len(direct) < bulkSize {
		direct = nil
	}
	if direct != nil || c.streaming && c.dst == nil && c.wpos-c.rpos < headSize {
		room = room[:headSize]
	}
	n, full, err = c.read(direct, room)
	if err != nil {
		return 0, false, err
	}
	d := min(n, len(direct))
	if direct != nil {
		c.dst = c.dst[d:]
	}
	c.wpos += n - d
	return n, full, nil
}

func (c *Client) read(first, second []byte) (n int, full bool, err error) {
	if c.tls != nil {
		if len(first) == 0 {
			first = second
		}
		n, drained, err := c.tls.Read(first)
		return n, !drained, err
	}
	for {
		c.iov[0].Base, c.iov[1].Base = unsafe.SliceData(first), unsafe.SliceData(second)
		c.iov[0].SetLen(len(first))
		c.iov[1].SetLen(len(second))
		r, _, errno := unix.Syscall(unix.SYS_READV, uintptr(c.fd), uintptr(unsafe.Pointer(&c.iov[0])), 2)
		switch errno {
		case 0:
			return int(r), int(r) == len(first)+len(second), nil
		case unix.EINTR:
		default:
			return 0, false, errno
		}
	}
}

// parse handles what is in the buffer.
func (c *Client) parse() error {
	for c.err == nil {
		if c.cur != nil {
			n := copy(c.dst, c.in[c.rpos:c.wpos])
			c.rpos += n
			if c.dst = c.dst[n:]; len(c.dst) > 0 {
				return nil
			}
			if err := c.received(); err != nil {
				return err
			}
			continue
		}
		more, err := c.header()
		if err != nil || !more {
			return err
		}
	}
	return nil
}

// header handles one reply's header, with its payload when that is short.
func (c *Client) header() (more bool, err error) {
	p := c.in[c.rpos:c.wpos]
	if len(p) < 4 {
		return false, nil
	}
	size, err := nbd.ReplyHeaderSize(p, c.neg.Structured, c.neg.Extended)
	if err != nil || len(p) < size {
		return false, err
	}
	h, err := nbd.DecodeReplyHeader(p[:size])
	if err != nil {
		return false, err
	}
	i := uint32(h.Cookie)
	if uint64(i) >= uint64(len(c.slots)) || !c.slots[i].busy || c.slots[i].cookie != h.Cookie || c.slots[i].from >= c.send.sent {
		return false, protocolErrorf("reply to nothing: cookie %#x", h.Cookie)
	}
	s := c.slots[i]
	c.last = h
	if h.Simple {
		c.rpos += size
		return true, c.simple(s, h)
	}
	return c.chunk(s, h, p[size:], size)
}

func (c *Client) simple(s *slot, h nbd.ReplyHeader) error {
	isRead := s.req != nil && s.req.Op == block.OpRead
	if c.neg.Structured && (isRead || s.status != nil) {
		return protocolErrorf("simple reply to a command that needs a structured one")
	}
	if h.Errno != 0 || !isRead {
		c.streaming = false
		c.finish(s, errnoError(h.Errno, ""))
		return nil
	}
	c.expect(s, s.req.Buf)
	return nil
}

// expect goes on with the payload of s into dst.
func (c *Client) expect(s *slot, dst []byte) {
	c.cur, c.dst = s, dst
	c.streaming = len(dst) >= bulkSize
}

// chunk handles the chunk h; p is what is here behind its header.
func (c *Client) chunk(s *slot, h nbd.ReplyHeader, p []byte, size int) (more bool, err error) {
	if h.Flags&^nbd.ChunkFlagDone != 0 {
		return false, protocolErrorf("chunk flags %#x", h.Flags)
	}
	isRead := s.req != nil && s.req.Op == block.OpRead
	switch {
	case nbd.IsErrorChunk(h.Type):
		if h.Len > nbd.MaxErrorPayload {
			return false, protocolErrorf("error chunk of %d bytes", h.Len)
		}
		if uint64(len(p)) < h.Len {
			return false, nil
		}
		errno, msg, err := nbd.DecodeErrorPayload(p[:h.Len])
		if err != nil {
			return false, err
		}
		if s.err == nil {
			s.err = errnoError(errno, msg)
		}
		c.rpos += size + int(h.Len)
		c.streaming = false
	case h.Type == nbd.ChunkNone:
		if h.Len != 0 || !h.Done() {
			return false, protocolErrorf("empty chunk of %d bytes, last %v", h.Len, h.Done())
		}
		c.rpos += size
	case h.Type == nbd.ChunkOffsetHole && isRead:
		if h.Len != 12 {
			return false, protocolErrorf("hole chunk of %d bytes", h.Len)
		}
		if len(p) < 12 {
			return false, nil
		}
		dst, err := s.part(binary.BigEndian.Uint64(p), uint64(binary.BigEndian.Uint32(p[8:])))
		if err != nil {
			return false, err
		}
		clear(dst)
		c.rpos += size + 12
	case h.Type == nbd.ChunkOffsetData && isRead:
		if h.Len <= 8 {
			return false, protocolErrorf("data chunk of %d bytes", h.Len)
		}
		if len(p) < 8 {
			return false, nil
		}
		dst, err := s.part(binary.BigEndian.Uint64(p), h.Len-8)
		if err != nil {
			return false, err
		}
		c.rpos += size + 8
		c.expect(s, dst)
		return true, nil
	case s.status != nil && (h.Type == nbd.ChunkBlockStatus && !c.neg.Extended || h.Type == nbd.ChunkBlockStatusExt && c.neg.Extended):
		if h.Len > nbd.MaxStatusPayload || h.Len == 0 {
			return false, protocolErrorf("block status chunk of %d bytes", h.Len)
		}
		c.status = make([]byte, h.Len)
		c.rpos += size
		c.expect(s, c.status)
		return true, nil
	default:
		return false, protocolErrorf("chunk type %d in this reply", h.Type)
	}
	return true, c.chunkEnd(s, h)
}

// part is where a piece of a READ's reply goes; an error when it is outside or
// too much in sum.
func (s *slot) part(off, n uint64) ([]byte, error) {
	r := s.req
	at := off - uint64(r.Off)
	if off < uint64(r.Off) || n == 0 || at > uint64(r.Len) || n > uint64(r.Len)-at || s.got+int64(n) > r.Len {
		return nil, protocolErrorf("chunk of %d bytes at %d in the reply to a read of %d at %d", n, off, r.Len, r.Off)
	}
	s.got += int64(n)
	return r.Buf[at : at+n], nil
}

// received is called when the payload of c.cur is complete.
func (c *Client) received() error {
	s, h := c.cur, c.last
	c.cur, c.dst = nil, nil
	if h.Simple {
		c.finish(s, nil)
		return nil
	}
	if s.status != nil {
		id, ext, err := nbd.DecodeStatus(nil, c.status, c.neg.Extended)
		c.status = nil
		if err != nil {
			return err
		}
		if _, twice := s.status.extents[id]; twice || len(s.status.extents) >= nbd.MaxContexts {
			return protocolErrorf("block status of context %d twice, or too many", id)
		}
		s.status.extents[id] = ext
	}
	return c.chunkEnd(s, h)
}

// chunkEnd ends the request with its last chunk.
func (c *Client) chunkEnd(s *slot, h nbd.ReplyHeader) error {
	if !h.Done() {
		return nil
	}
	if s.err == nil && s.req != nil && s.req.Op == block.OpRead && s.got != s.req.Len {
		return protocolErrorf("reply to a read of %d bytes has %d", s.req.Len, s.got)
	}
	c.finish(s, s.err)
	return nil
}

func protocolErrorf(format string, a ...any) error {
	return fmt.Errorf("%w: %s", nbd.ErrProtocol, fmt.Sprintf(format, a...))
}
