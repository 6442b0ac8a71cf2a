package session

import (
	"bytes"
	"time"

	"github.com/moraine-storage/moraine/drivers/aio"
	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/replication"
)

// link is one queue to a member.
type link struct {
	member uint8
	layer  replication.SnapshotID
	token  uint64
	q      block.Queue
	conn   Connection // or nil
	watch  watcher    // or nil
	batch  []*block.Request
	out    int  // submitted and not reaped
	closed bool // its time is over; it goes when out is 0
	used   time.Duration
}

type watcher interface{ Ready(ev aio.Event) }

// flight is one Send that is not answered.
type flight struct {
	req  block.Request
	op   *replication.Op
	do   block.Op
	link *link
	m    uint8
	err  error
}

// Ready passes an event on to the queue that watches the descriptor.
func (g *Group) Ready(ev aio.Event) {
	for _, l := range g.all {
		if l.token == ev.Token && l.watch != nil {
			l.watch.Ready(ev)
			return
		}
	}
}

// open makes the queue to a member behind a gate.
func (g *Group) open(m uint8, gate uint64, layer replication.SnapshotID) (*link, error) {
	g.tokens++
	q, err := g.members[m].Open(OpenOptions{Engine: g.o.Engine, Gate: gate, Layer: layer, Token: g.tokens})
	if err != nil {
		return nil, err
	}
	l := &link{member: m, layer: layer, token: g.tokens, q: q, used: g.now()}
	l.conn, _ = q.(Connection)
	l.watch, _ = q.(watcher)
	g.all = append(g.all, l)
	return l, nil
}

// closeLink ends all queues to a member.
func (g *Group) closeLink(m uint8) {
	g.links[m] = nil
	for _, l := range g.all {
		if l.member == m {
			g.shut(l)
		}
	}
}

// shut ends a queue. What was not submitted is lost; what was submitted to a
// medium ends in its time (its buffer is in use until then), what was sent
// over a connection ends now.
func (g *Group) shut(l *link) {
	if l.closed {
		return
	}
	l.closed = true
	for _, r := range l.batch {
		g.lost = append(g.lost, r.Owner.(*flight))
	}
	clear(l.batch)
	l.batch = l.batch[:0]
	if l.conn != nil {
		_ = l.q.Close() // what it held ends with errors, and is reaped
	}
}

// layerLink is the queue to a frozen layer of a member.
func (g *Group) layerLink(m uint8, layer replication.SnapshotID) (*link, error) {
	for _, l := range g.all {
		if l.member == m && l.layer == layer && !l.closed {
			l.used = g.now()
			return l, nil
		}
	}
	return g.open(m, 0, layer)
}

// idleLayers closes queues to layers that nobody reads any more, so that a
// deleted one gives its space back.
func (g *Group) idleLayers(now time.Duration) {
	for _, l := range g.all {
		if l.layer != (replication.SnapshotID{}) && l.out == 0 && len(l.batch) == 0 && now-l.used > layerIdle {
			g.shut(l)
		}
	}
}

// send is the effect.
func (g *Group) send(e *replication.Effect) {
	op := e.Op
	c, _ := op.Owner.(*call)
	if c == nil && op.Internal() && e.Do != block.OpFlush {
		c = g.copyBuffer(op)
	}
	f := g.newFlight()
	f.op, f.do, f.m = op, e.Do, e.Member
	if c != nil {
		c.out++
	}
	l := g.links[e.Member]
	if l != nil && op.Layer != (replication.SnapshotID{}) && e.Do == block.OpRead {
		var err error
		if l, err = g.layerLink(e.Member, op.Layer); err != nil {
			f.err = block.ErrIO // this source cannot be read; others may
			g.lost = append(g.lost, f)
			return
		}
	}
	if l == nil {
		f.err = replication.ErrLost
		g.lost = append(g.lost, f)
		return
	}
	f.link = l
	r := &f.req
	r.Op, r.Flags, r.Owner = e.Do, op.Flags, f
	if e.Do != block.OpFlush {
		r.Off, r.Len = op.Off, op.Len
		if e.Do <= block.OpWrite {
			r.Buf = c.buf[:op.Len]
		}
	} else {
		r.Flags = 0
	}
	l.batch = append(l.batch, r)
}

// flush submits what was collected for each member.
func (g *Group) flush() {
	for _, l := range g.all {
		if len(l.batch) == 0 {
			continue
		}
		l.out += len(l.batch)
		l.q.Submit(l.batch)
		clear(l.batch)
		l.batch = l.batch[:0]
	}
}

// reapLinks collects what has ended, and drops queues that are over.
func (g *Group) reapLinks() {
	for i := 0; i < len(g.all); i++ {
		l := g.all[i]
		for l.out > 0 {
			n := l.q.Reap(g.scratch)
			l.out -= n
			for _, r := range g.scratch[:n] {
				g.came = append(g.came, r.Owner.(*flight))
			}
			if n < len(g.scratch) {
				break
			}
		}
		if l.closed && l.out == 0 {
			_ = l.q.Close() // nothing is in flight: there is nothing to lose
			last := len(g.all) - 1
			g.all[i], g.all[last] = g.all[last], nil
			g.all = g.all[:last]
			i--
		}
	}
}

// tellCore hands over what has ended.
func (g *Group) tellCore(now time.Duration) {
	for k := 0; k < len(g.came); k++ {
		f := g.came[k]
		f.err = f.req.Err
		switch {
		case f.link.conn != nil && f.err != nil && f.link.conn.Err() != nil:
			f.err = replication.ErrLost
		case f.link.closed && f.link.layer == (replication.SnapshotID{}):
			f.err = replication.ErrLost
		}
		g.done(now, f)
	}
	clear(g.came)
	g.came = g.came[:0]
	for k := 0; k < len(g.lost); k++ {
		f := g.lost[k]
		if f.err == nil {
			f.err = replication.ErrLost
		}
		g.done(now, f)
	}
	clear(g.lost)
	g.lost = g.lost[:0]
}

func (g *Group) done(now time.Duration, f *flight) {
	op := f.op
	c, _ := op.Owner.(*call)
	if c != nil {
		c.out--
	}
	if g.dead {
		g.orphan(f)
	} else {
		if f.do == block.OpRead && f.err == nil && op.Internal() {
			op.Hole = zeros(c.buf[:op.Len])
		}
		g.core.Done(now, op, f.m, f.err)
	}
	*f = flight{}
	g.flights = append(g.flights, f)
}

func (g *Group) newFlight() *flight {
	if k := len(g.flights) - 1; k >= 0 {
		f := g.flights[k]
		g.flights = g.flights[:k]
		return f
	}
	return new(flight)
}

var zeroPage [4096]byte

// zeros says whether all of b is zero. What is, is freed at the target: it
// reads the same.
func zeros(b []byte) bool {
	for len(b) > 0 {
		n := min(len(b), len(zeroPage))
		if !bytes.Equal(b[:n], zeroPage[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}
