package session

import (
	"errors"
	"time"

	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/replication"
)

// call is one operation of the core as the driver sees it: its Owner.
type call struct {
	op   *replication.Op
	req  *block.Request // of the client; nil when it was answered, or there is none
	buf  []byte         // what members write from or read into
	pool bool           // buf goes back to the pool
	late bool           // answered by the core, but a member may still write into the client's buffer
	err  error          // of late
	out  int            // flights
	at   int            // index in Group.live
}

func (g *Group) newCall(op *replication.Op) *call {
	var c *call
	if k := len(g.calls) - 1; k >= 0 {
		c = g.calls[k]
		g.calls = g.calls[:k]
	} else {
		c = new(call)
	}
	c.op = op
	c.at = len(g.live)
	g.live = append(g.live, c)
	op.Owner = c
	return c
}

// freeCall gives back a call of which nothing is under way.
func (g *Group) freeCall(c *call) {
	last := len(g.live) - 1
	g.live[c.at] = g.live[last]
	g.live[c.at].at = c.at
	g.live[last] = nil
	g.live = g.live[:last]
	if c.pool {
		g.payload.Put(c.buf)
	}
	*c = call{}
	g.calls = append(g.calls, c)
}

// begin gives a valid request to the core. What a write carries is copied: the
// client is answered while members that have left, or are being caught up, may
// still send it, and a client may change its memory after its answer.
func (g *Group) begin(now time.Duration, r *block.Request) {
	var buf []byte
	if r.Op == block.OpWrite && r.Len > 0 {
		if len(g.starved) > 0 {
			g.starved = append(g.starved, r)
			return
		}
		var err error
		if buf, err = g.payload.Get(len(r.Buf)); err != nil {
			if !errors.Is(err, block.ErrNoMemory) || len(g.live) == 0 {
				g.answer(r, err)
				return
			}
			g.starved = append(g.starved, r)
			return
		}
		copy(buf, r.Buf)
	}
	g.submit(now, r, buf)
}

func (g *Group) submit(now time.Duration, r *block.Request, buf []byte) {
	op := g.core.NewOp()
	op.Kind, op.Off, op.Len = r.Op, r.Off, r.Len
	// FastZero asks to refuse what is slow. Members free space for zeros, so
	// it is not; and a member that refused would count as broken.
	op.Flags = r.Flags &^ block.FastZero
	c := g.newCall(op)
	c.req = r
	if r.Op == block.OpRead {
		c.buf = r.Buf
	} else {
		c.buf, c.pool = buf, buf != nil
	}
	g.core.Submit(now, op)
}

// feed gives memory to who waits for it.
func (g *Group) feed() bool {
	n := 0
	now := g.now()
	for ; n < len(g.starved); n++ {
		r := g.starved[n]
		if g.dead {
			g.answer(r, g.deadErr())
			continue
		}
		buf, err := g.payload.Get(len(r.Buf))
		if err != nil {
			break
		}
		copy(buf, r.Buf)
		g.submit(now, r, buf)
	}
	if n == 0 {
		return false
	}
	rest := copy(g.starved, g.starved[n:])
	clear(g.starved[rest:])
	g.starved = g.starved[:rest]
	g.perform()
	return true
}

func (g *Group) answer(r *block.Request, err error) {
	r.Err = err
	g.ended = append(g.ended, r)
}

// complete is the effect: the client is answered, unless a member may still
// write into its buffer. That is so for reads alone, which were given up.
func (g *Group) complete(e *replication.Effect) {
	c := e.Op.Owner.(*call)
	switch {
	case !e.Final && e.Op.Kind == block.OpRead:
		c.late, c.err = true, e.Err
	case c.req != nil:
		g.answer(c.req, e.Err)
		c.req = nil
	}
	if e.Final {
		g.release(e.Op)
	}
}

// release is the effect: nothing of op is under way any more.
func (g *Group) release(op *replication.Op) {
	if c, _ := op.Owner.(*call); c != nil {
		if c.req != nil {
			err := c.err
			if !c.late {
				err = g.deadErr()
			}
			g.answer(c.req, err)
		}
		g.freeCall(c)
	}
	g.core.FreeOp(op)
}

// copyBuffer is the buffer of a copy that the core makes.
func (g *Group) copyBuffer(op *replication.Op) *call {
	c := g.newCall(op)
	n := int(g.o.Core.CopyChunk)
	buf, err := g.payload.Get(n)
	if err != nil { // few of these exist, so they need not wait
		c.buf = make([]byte, n)
		return c
	}
	c.buf, c.pool = buf, true
	return c
}

// kill gives the session up: the core is not called any more, and everybody
// is answered as soon as no member can touch his memory.
func (g *Group) kill(err error) {
	if g.dead {
		return
	}
	g.dead = true
	if g.over == nil {
		g.over = err
	}
	for _, c := range g.live {
		if c.req != nil && (c.out == 0 || c.op.Kind != block.OpRead) {
			g.answer(c.req, err)
			c.req = nil
		}
	}
	for _, r := range g.starved {
		g.answer(r, err)
	}
	g.starved = nil
	for m := range g.links {
		g.closeLink(uint8(m))
	}
	for n, done := range g.jobs {
		delete(g.jobs, n)
		done(err)
	}
}

// orphan is a flight that ended after the session was given up.
func (g *Group) orphan(f *flight) {
	c, _ := f.op.Owner.(*call)
	if c != nil && c.out == 0 && c.req != nil {
		g.answer(c.req, g.deadErr())
		c.req = nil
	}
}
