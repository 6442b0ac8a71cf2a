package sim

import (
	"encoding/binary"
	"slices"
	"time"

	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/replication"
)

// node is a host with an agent. The agent serves the node's replica and runs
// the mirror of the volume while the node is its primary.
type node struct {
	w     *world
	i     int
	name  string
	rate  float64
	base  time.Duration
	up    bool // host
	alive bool // agent
	life  uint64
	awake time.Duration // paused until then
	rep   *replica      // or nil
	dead  map[replication.Session]bool
	m     *mirror
}

func (n *node) clock() time.Duration {
	return n.base + time.Duration(float64(n.w.now)*n.rate)
}

// whenAwake runs fn now, or when the pause of the agent is over.
func (n *node) whenAwake(fn func()) {
	if n.awake > n.w.now {
		n.w.after(n.awake-n.w.now, func() { n.whenAwake(fn) })
		return
	}
	fn()
}

// onAgent runs fn if the agent that is here now still lives then.
func (n *node) onAgent(fn func()) {
	life := n.life
	n.whenAwake(func() {
		if n.alive && n.life == life {
			fn()
		}
	})
}

func (n *node) kill() {
	if !n.alive {
		return
	}
	n.alive = false
	n.life++
	n.awake = 0
	for _, d := range n.w.devs {
		if d.n == n && n.w.overlap {
			d.die("agent died")
		}
	}
	if n.rep != nil {
		n.rep.killed()
	}
	if n.m != nil {
		n.dead[n.m.session] = true
		n.m.gone = true
		n.m = nil
	}
	n.w.resets(n)
}

func (n *node) powerCut() {
	n.kill()
	n.up = false
	n.dead = map[replication.Session]bool{}
	if n.rep != nil {
		n.rep.powerCut()
	}
	for _, d := range n.w.devs {
		if d.n == n {
			d.die("host lost power")
		}
	}
}

func (n *node) start() {
	if n.alive {
		return
	}
	n.up, n.alive = true, true
	n.life++
	if n.rep != nil {
		n.rep.openAgain()
	}
	if d := n.w.dev; d != nil && d.n == n && !d.dead {
		n.attach(d, true)
	}
}

// resets tells the mirrors that connections to n broke.
func (w *world) resets(n *node) {
	for _, p := range w.nodes {
		if p.m != nil && n.rep != nil {
			m := p.m
			w.deliver(n.i, p.i, func() {
				p.onAgent(func() {
					if p.m == m {
						m.lost(n.rep.id)
					}
				})
			})
		}
	}
}

// payload is a buffer of the driver.
type payload struct {
	vals []uint32
	op   *clientOp
}

// flight is one Send that is not answered.
type flight struct {
	op   *replication.Op
	m    uint8
	done bool
}

// mirror drives a core: the model of drivers/replication/session.
type mirror struct {
	n       *node
	w       *world
	core    *replication.Core
	session replication.Session
	dev     *device // whose device it serves, or is about to
	gone    bool
	busy    bool
	ready   bool
	gates   [replication.MaxMembers]uint64 // of the connections
	open    [replication.MaxMembers]bool
	flights [replication.MaxMembers][]*flight
	jobs    map[uint64]func(error)
}

// attach starts a session. With keep the device outlived its mirror.
func (n *node) attach(d *device, keep bool) {
	w := n.w
	m := &mirror{n: n, w: w, dev: d, jobs: map[uint64]func(error){}}
	binary.LittleEndian.PutUint64(m.session[:], w.rnd.Uint64())
	binary.LittleEndian.PutUint64(m.session[8:], w.rnd.Uint64())
	cfg := replication.Config{
		Node: n.name, Session: m.session, Takeover: true,
		BlockSize: blockSize, RegionSize: regionSize, Grain: blockSize, CopyChunk: blockSize, CopyJobs: 3,
		Lease: 200 * time.Millisecond, LeaseEvery: 50 * time.Millisecond, ReplicaDeadline: 300 * time.Millisecond,
		HoldDeadline: w.hold, ControlTimeout: 150 * time.Millisecond, PromoteTimeout: 300 * time.Millisecond,
		RetryEvery: 100 * time.Millisecond, CleanIdle: 60 * time.Millisecond, MaxDirty: 8,
		ConfirmedReads: w.confirmed, MinInSync: w.minInSync,
		Rand: w.rnd.Uint64, Mutation: w.opt.Mutation,
	}
	if n.rep != nil {
		cfg.Local = n.rep.id
	}
	if keep {
		cfg.OwnSessions = append([]uint64{}, d.own...)
	}
	n.m = m
	m.core = replication.New(cfg)
	w.log("%s attaches, session %x", n.name, m.session[:2])
	m.run(func() { m.core.Attach(n.clock()) })
	m.tick()
}

func (m *mirror) tick() {
	m.w.after(10*time.Millisecond, func() {
		if m.gone {
			return
		}
		m.n.onAgent(func() {
			m.run(func() { m.core.Tick(m.n.clock()) })
		})
		m.tick()
	})
}

// run is one event of the core and what follows from it.
func (m *mirror) run(fn func()) {
	if m.gone || m.busy {
		if !m.gone {
			m.w.after(0, func() { m.run(fn) })
		}
		return
	}
	m.busy = true
	fn()
	for {
		fx := m.core.Effects()
		if len(fx) == 0 {
			break
		}
		for i := range fx {
			if m.gone {
				break
			}
			m.effect(&fx[i])
		}
	}
	m.busy = false
}

// event is run when the agent is awake.
func (m *mirror) event(fn func()) {
	m.n.onAgent(func() { m.run(fn) })
}

func (m *mirror) effect(e *replication.Effect) {
	now := m.n.clock
	switch e.Kind {
	case replication.Send:
		m.send(*e)
	case replication.Complete:
		m.complete(e)
	case replication.Release:
		m.release(e.Op)
	case replication.Close:
		m.close(e.Member)
	case replication.Ask:
		m.ask(e.Control)
	case replication.Store:
		m.w.cs.swap(m.n, e.Rev, e.Record, func(out replication.Outcome, rev uint64) {
			m.run(func() { m.core.Stored(now(), out, rev) })
		})
	case replication.ReadRecord:
		m.w.cs.read(m.n, func(rec *replication.Record, rev uint64, err error) {
			m.run(func() { m.core.RecordRead(now(), rec, rev, false, err) })
		})
	case replication.Announce:
		m.announce(e)
	case replication.Opened:
		m.opened()
	case replication.Over:
		m.over(e.Err)
	case replication.Finished:
		if fn := m.jobs[e.Job]; fn != nil {
			delete(m.jobs, e.Job)
			fn(e.Err)
		}
	}
}

func (m *mirror) replicaOf(s uint8) *replica {
	id := m.core.Replica(s)
	for _, n := range m.w.nodes {
		if n.rep != nil && n.rep.id == id {
			return n.rep
		}
	}
	return nil
}

func (m *mirror) send(e replication.Effect) {
	r := m.replicaOf(e.Member)
	f := &flight{op: e.Op, m: e.Member}
	s := e.Member
	if !m.open[s] {
		m.w.after(time.Microsecond, func() { m.event(func() { m.core.Done(m.n.clock(), e.Op, s, replication.ErrLost) }) })
		return
	}
	m.flights[s] = append(m.flights[s], f)
	q := &request{do: e.Do, sess: m.session, gate: m.gates[s], fua: e.Op.Flags&block.FUA != 0,
		off: int(e.Op.Off / unit), n: int(e.Op.Len / unit), layer: e.Op.Layer}
	var p *payload
	switch e.Do {
	case block.OpRead:
		p, _ = e.Op.Owner.(*payload)
		if p == nil {
			p = &payload{}
			e.Op.Owner = p
		}
	case block.OpWrite, block.OpTrim, block.OpZero:
		p = e.Op.Owner.(*payload)
		q.vals = append([]uint32{}, p.vals[:e.Op.Len/unit]...)
		if e.Do == block.OpTrim { // cut inwards by the core: the values are all one
			q.off = int(e.Op.Off / unit)
		}
	}
	m.w.poison(q.vals)
	target := r.n
	q.reply = func(err error, vals []uint32, hole bool) {
		m.w.deliver(target.i, m.n.i, func() {
			m.event(func() {
				if f.done {
					return
				}
				m.land(f)
				if e.Do == block.OpRead && err == nil {
					p.vals = vals
					e.Op.Hole = hole
				}
				m.core.Done(m.n.clock(), f.op, s, err)
			})
		})
	}
	life := target.life
	m.w.deliver(m.n.i, target.i, func() {
		if target.life == life {
			target.onAgent(func() { r.exec(q) })
		}
	})
}

func (m *mirror) land(f *flight) {
	f.done = true
	fs := m.flights[f.m]
	for i := range fs {
		if fs[i] == f {
			m.flights[f.m] = append(fs[:i], fs[i+1:]...)
			return
		}
	}
}

// poison notices a buffer that was used after it was given back.
func (w *world) poison(vals []uint32) {
	for _, v := range vals {
		if v == poisoned {
			w.fail("a buffer is sent after it was released")
		}
	}
}

const poisoned = 0xdeaddead

func (m *mirror) close(s uint8) {
	m.open[s] = false
	fs := m.flights[s]
	m.flights[s] = nil
	for _, f := range fs {
		f.done = true
		m.w.after(m.w.between(time.Microsecond, 50*time.Microsecond), func() {
			m.event(func() { m.core.Done(m.n.clock(), f.op, f.m, replication.ErrLost) })
		})
	}
}

func (m *mirror) lost(id string) {
	for s := range uint8(replication.MaxMembers) {
		if m.core.Replica(s) == id && m.open[s] {
			m.close(s)
			m.run(func() { m.core.Lost(m.n.clock(), s) })
		}
	}
}

func (m *mirror) ask(c *replication.Control) {
	r := m.replicaOf(c.Member)
	ended := false
	end := func(a replication.Reply) {
		m.event(func() {
			if ended {
				return
			}
			ended = true
			if c.Kind == replication.AskPromote && a.Err == nil {
				m.gates[c.Member], m.open[c.Member] = c.Gate, true
			}
			m.core.Answer(m.n.clock(), c, a)
		})
	}
	m.w.after(c.Timeout, func() { end(replication.Reply{Err: replication.ErrLost}) })
	life := r.n.life
	m.w.deliver(m.n.i, r.n.i, func() {
		if r.n.life != life {
			return
		}
		r.n.onAgent(func() {
			r.control(c, m.n, func(a replication.Reply) {
				m.w.deliver(r.n.i, m.n.i, func() { end(a) })
			})
		})
	})
}

func (m *mirror) release(o *replication.Op) {
	if p, ok := o.Owner.(*payload); ok {
		for i := range p.vals {
			p.vals[i] = poisoned
		}
	}
	m.core.FreeOp(o)
}

func (m *mirror) complete(e *replication.Effect) {
	p := e.Op.Owner.(*payload)
	if c := p.op; c != nil {
		p.op = nil
		if e.Op.Kind == block.OpRead && e.Err == nil {
			c.got = append([]uint32{}, p.vals...)
			m.checkLease()
		}
		if e.Err == nil && e.Op.Kind != block.OpRead && e.Op.Kind != block.OpFlush {
			m.checkNeed(c)
		}
		m.dev.answered(c, e.Err)
	}
	if e.Final {
		m.release(e.Op)
	}
}

// checkNeed is I-NEED: whoever takes over now, from any member that the
// record names, has the write.
func (m *mirror) checkNeed(c *clientOp) {
	if c.n == 0 || m.w.cs.rec.Primary.Session != m.session {
		// A session that is over may learn late that a write was done: those
		// who took over have it, or something newer.
		return
	}
	for _, mem := range m.w.cs.rec.Members {
		if mem.Role != replication.InSync {
			continue
		}
		for _, n := range m.w.nodes {
			if n.rep != nil && n.rep.id == mem.Replica && m.w.applied[c.val&^holeMark][n.rep.slot] < c.sent {
				m.w.fail("I-NEED: write %d is acknowledged, but %s, in sync, has it not", c.val, mem.Replica)
			}
		}
	}
}

// checkLease is I-LEASE, on the clocks of the members.
func (m *mirror) checkLease() {
	if m.w.confirmed {
		return
	}
	for s := range uint8(replication.MaxMembers) {
		if m.core.Need().Has(s) && m.w.isInSync(m.core.Replica(s)) {
			r := m.replicaOf(s)
			if r.n.alive && r.sess == m.session && r.open && r.n.clock() >= r.grantEnd {
				m.w.fail("I-LEASE: a read is answered after the grant of %s ended", r.id)
			}
		}
	}
}

func (m *mirror) announce(e *replication.Effect) {
	d := m.dev
	if e.DeviceLives && d != nil && !d.dead {
		d.own = append(d.own, e.Rev)
		return
	}
	if d != nil {
		d.die("may not go on")
	}
	m.dev = newDevice(m.w, m.n)
	m.dev.own = []uint64{e.Rev}
}

func (m *mirror) opened() {
	m.ready = true
	m.w.res.Opened++
	m.w.log("%s opened, session %x", m.n.name, m.session[:2])
	d := m.dev
	d.m = m
	if !slices.Contains(m.w.devs, d) {
		m.w.newDevice(d)
	}
	if last := d.own[len(d.own)-1]; m.w.dev == nil || last >= m.w.dev.own[len(m.w.dev.own)-1] {
		m.w.dev = d
	}
	d.resume()
}

func (m *mirror) over(err error) {
	m.w.log("%s session %x over: %v", m.n.name, m.session[:2], err)
	m.w.addSteps(m.core.Steps())
	m.gone = true
	m.n.dead[m.session] = true
	if m.n.m == m {
		m.n.m = nil
	}
	if m.dev != nil && err != nil {
		m.dev.die(err.Error())
	}
}
