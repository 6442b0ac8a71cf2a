package nbdclient

import (
	"context"
	"errors"
	"fmt"

	"github.com/moraine-storage/moraine/drivers/aio"
	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/nbd"
)

// Device is the synchronous form of a connection, for tools and tests.
type Device struct {
	*block.Sync
	neg nbd.Negotiated
}

var _ block.Device = (*Device)(nil)

// OpenDevice dials and wraps the connection. Close says good-bye.
func OpenDevice(ctx context.Context, network, addr string, o Options) (*Device, error) {
	s, err := Dial(ctx, network, addr, o)
	if err != nil {
		return nil, err
	}
	return NewDevice(s)
}

// NewDevice wraps a session, which it owns.
func NewDevice(s *Session) (*Device, error) {
	sync, err := block.NewSync(
		func() (aio.Engine, error) { return aio.New(aio.Inline) },
		func(e aio.Engine) (block.Queue, error) { return s.Queue(e, 0) })
	if err != nil {
		s.Close()
		return nil, err
	}
	return &Device{Sync: sync, neg: s.Negotiated()}, nil
}

// Negotiated is what both sides agreed on.
func (d *Device) Negotiated() nbd.Negotiated { return d.neg }

// Status returns the extents of [off, off+length) under a context that was
// asked for in Options.Contexts. The server may stop short of the end, or say
// more about the last extent than was asked; it says at least one.
func (d *Device) Status(ctx context.Context, name string, off, length int64) (ext []nbd.Extent, err error) {
	e := d.Do(ctx, func(q block.Queue) { ext, err = q.(*Client).statusNow(name, off, length) })
	return ext, errors.Join(e, err)
}

// statusNow is a whole round trip. It runs as the owner with nothing in flight
// and drives the engine itself.
func (c *Client) statusNow(name string, off, length int64) ([]nbd.Extent, error) {
	id, known := uint32(0), false // 0 is a number like any other: qemu gives it
	for _, ctx := range c.neg.Contexts {
		if ctx.Name == name {
			id, known = ctx.ID, true
		}
	}
	if !known {
		return nil, fmt.Errorf("nbd context %q: %w: not negotiated", name, block.ErrUnsupported)
	}
	if off < 0 || length <= 0 || off > c.info.Size || length > c.info.Size-off || !c.neg.Extended && length >= 1<<32 {
		return nil, fmt.Errorf("block status of %d bytes at %d: %w", length, off, block.ErrInvalid)
	}
	if c.err != nil {
		return nil, c.lost(nil)
	}
	st := &statusCall{extents: map[uint32][]nbd.Extent{}}
	s := c.slot()
	s.req, s.status = nil, st
	c.put(s, nbd.Request{Cmd: nbd.CmdBlockStatus, Off: uint64(off), Len: uint64(length)}, nil)
	c.flush()
	for !st.done {
		if _, err := c.engine.Wait(nil, -1); err != nil {
			c.fail(err)
			break
		}
		c.readable, c.blocked = true, false
		c.flush()
		if c.err == nil {
			c.receive()
		}
	}
	if st.err != nil {
		return nil, st.err
	}
	ext := st.extents[id]
	if len(ext) == 0 {
		return nil, fmt.Errorf("block status of %d bytes at %d: %w: no answer for %q", length, off, block.ErrIO, name)
	}
	return ext, nil
}
