package sim

import (
	"time"

	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/replication"
)

// clientOp is one operation of a client on a device. It may be sent several
// times: a device that outlives its mirror sends again what was not answered.
type clientOp struct {
	kind  block.Op
	fua   bool
	off   int // units
	n     int
	val   uint32
	sent  uint16 // units that a write really covers (TRIM is cut)
	inv   time.Duration
	resp  time.Duration
	ended bool
	err   error
	got   []uint32
	dev   *device
	then  func()
}

// device is what the kernel of a host shows of the volume.
type device struct {
	w     *world
	n     *node
	m     *mirror
	own   []uint64 // sessions, as the attachment file lists them
	dead  bool
	ops   []*clientOp // not answered
	since time.Duration
}

// holeMark marks values that read as zeros, so that the checker can tell one
// TRIM from another.
const holeMark = 1 << 31

func isZero(v uint32) bool { return v == 0 || v&holeMark != 0 }

func newDevice(w *world, n *node) *device {
	return &device{w: w, n: n, since: w.now}
}

// die: the host sees errors, and so do all who wait.
func (d *device) die(why string) {
	if d.dead {
		return
	}
	d.w.log("device of %s dies: %s", d.n.name, why)
	d.dead = true
	ops := d.ops
	d.ops = nil
	for _, c := range ops {
		d.end(c, block.ErrClosed)
	}
}

func (d *device) submit(c *clientOp) {
	c.dev, c.inv = d, d.w.now
	d.w.hist.add(c)
	d.w.res.Ops++
	if d.dead {
		d.end(c, block.ErrClosed)
		return
	}
	d.ops = append(d.ops, c)
	d.push(c)
}

func (d *device) push(c *clientOp) {
	m := d.m
	if m == nil || m.gone || !m.ready {
		return
	}
	m.event(func() {
		if c.ended {
			return
		}
		o := m.core.NewOp()
		o.Kind, o.Off, o.Len = c.kind, int64(c.off)*unit, int64(c.n)*unit
		if c.fua {
			o.Flags = block.FUA
		}
		p := &payload{op: c}
		if c.kind != block.OpRead && c.kind != block.OpFlush {
			p.vals = make([]uint32, c.n)
			for i := range p.vals {
				p.vals[i] = c.val
			}
		}
		o.Owner = p
		m.core.Submit(m.n.clock(), o)
	})
}

// resume sends again what was not answered: the session serves now.
func (d *device) resume() {
	for _, c := range d.ops {
		d.push(c)
	}
}

func (d *device) answered(c *clientOp, err error) {
	for i := range d.ops {
		if d.ops[i] == c {
			d.ops = append(d.ops[:i], d.ops[i+1:]...)
			d.end(c, err)
			return
		}
	}
}

func (d *device) end(c *clientOp, err error) {
	if c.ended {
		return
	}
	c.ended, c.resp, c.err = true, d.w.now, err
	if err != nil {
		d.w.res.Errors++
	}
	if c.then != nil {
		fn := c.then
		d.w.after(0, fn)
	}
}

// worker is one client: an operation at a time, on the device that it has,
// until that is dead; then on the newest.
func (w *world) worker(d *device) {
	if w.halt {
		return
	}
	if d == nil || d.dead {
		if w.dev == nil || w.dev.dead {
			w.after(20*time.Millisecond, func() { w.worker(nil) })
			return
		}
		d = w.dev
	}
	c := w.randomOp()
	for !w.overlap && d.collides(c) {
		c = w.randomOp()
	}
	c.then = func() {
		think := time.Duration(0)
		if w.chance(0.7) {
			think = w.between(0, 12*time.Millisecond)
		}
		if c.err != nil {
			think = 10 * time.Millisecond
		}
		w.after(think, func() { w.worker(d) })
	}
	if d.n.awake > w.now { // the host is frozen, its clients too
		w.after(d.n.awake-w.now, func() { w.worker(d) })
		return
	}
	d.submit(c)
}

// collides: c and an operation in flight are both writes, and overlap.
func (d *device) collides(c *clientOp) bool {
	for _, o := range d.ops {
		if c.val != 0 && o.val != 0 && max(c.off, o.off) < min(c.off+c.n, o.off+o.n) {
			return true
		}
	}
	return false
}

func (w *world) randomOp() *clientOp {
	c := &clientOp{}
	size := int(w.cs.rec.Size / unit)
	// Half of the load goes to a few blocks: collisions are what is tested.
	c.off = w.rnd.IntN(size)
	if w.chance(0.5) {
		c.off = w.rnd.IntN(3 * blockSize / unit)
	}
	c.n = 1 + w.rnd.IntN(4)
	if w.chance(0.5) {
		c.off = c.off / 8 * 8
		c.n = 8 * (1 + w.rnd.IntN(3))
	}
	c.n = min(c.n, size-c.off)
	switch x := w.rnd.Float64(); {
	case x < 0.45:
		c.kind = block.OpWrite
		c.fua = w.chance(0.1)
	case x < 0.85:
		c.kind = block.OpRead
	case x < 0.92:
		c.kind, c.n, c.off = block.OpFlush, 0, 0
	case x < 0.96:
		c.kind = block.OpZero
	default:
		c.kind = block.OpTrim
	}
	if c.kind == block.OpTrim {
		// The core cuts it inwards; the checker does the same.
		const g = blockSize / unit
		end := (c.off + c.n) / g * g
		if c.off+c.n == size {
			end = size
		}
		c.off = (c.off + g - 1) / g * g
		c.n = max(0, end-c.off)
	}
	if c.kind == block.OpWrite || c.kind == block.OpZero || c.kind == block.OpTrim {
		w.nextVal++
		c.val = w.nextVal
		if c.kind != block.OpWrite {
			c.val |= holeMark
		}
		w.applied = append(w.applied, make([]uint16, maxNodes))
		c.sent = uint16(c.n)
	}
	return c
}

// job starts a job of the volume on the present mirror.
func (w *world) job(what string, start func(c *replication.Core, now time.Duration) (uint64, error), done func(error)) {
	d := w.dev
	if d == nil || d.dead || d.m == nil || d.m.gone {
		return
	}
	m := d.m
	m.event(func() {
		id, err := start(m.core, m.n.clock())
		if err == nil {
			m.jobs[id] = func(err error) {
				w.log("%s ended: %v", what, err)
				done(err)
			}
		}
	})
}
