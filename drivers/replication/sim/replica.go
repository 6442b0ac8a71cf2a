package sim

import (
	"slices"
	"time"

	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/replication"
)

type snapID = replication.SnapshotID

// Geometry of the simulated volume: small, so that everything collides.
const (
	unit       = 512 // bytes; the sector of F1
	blockSize  = 4096
	regionSize = 2 * blockSize
	regions    = 12
	maxRegions = 16
	units      = maxRegions * regionSize / unit
	maxNodes   = 6
)

// layer is one frozen layer, or the top: what is read now (kept), what is
// durable, and what lies between.
type layer struct {
	id     snapID
	size   int64
	cur    [units]uint32
	dur    [units]uint32
	pend   []pending
	dirty  [maxRegions]bool
	stamp  [maxRegions]replication.Stamp
	dirtyD [maxRegions]bool
	stampD [maxRegions]replication.Stamp
}

// pending is a write that no flush has covered.
type pending struct {
	seq  uint64
	unit int
	val  uint32
}

func (l *layer) clone(id snapID) *layer {
	n := *l
	n.id = id
	n.pend = slices.Clone(l.pend)
	return &n
}

type cleaned struct {
	layer   snapID
	regions []uint32
	stamp   replication.Stamp
}

// running is an operation that the replica has started.
type running struct {
	vals  []uint32
	off   int
	write bool
	ready bool // its regions are dirty: bytes may change
	sess  replication.Session
	gone  bool
}

// replica is the model of a drive with one replica, and of the agent that
// serves it (0001 sections 1.2, 2 and 5).
type replica struct {
	w    *world
	n    *node
	id   string
	slot int

	// durable
	promised  replication.Promised // as the running agent has it
	promisedD replication.Promised
	record    *replication.Record
	recordD   *replication.Record
	lossID    string
	leaseMax  time.Duration
	sizeD     int64
	top       *layer
	frozen    []*layer
	logged    []cleaned // CLEANs not durable yet, in order
	bad       map[int]bool

	// volatile
	open      bool
	sess      replication.Session
	gate      uint64
	grantEnd  time.Duration
	whose     replication.Session
	wseq      uint64
	runs      []*running
	life      uint64 // of the agent: what it started before is void
	slow      time.Duration
	full      bool
	flushBad  bool
	reopening bool
	ever      replication.Promised // highest that was promised, whatever it remembers
}

func newReplica(w *world, n *node, id string, slot int) *replica {
	r := &replica{w: w, n: n, id: id, slot: slot, top: &layer{}, sizeD: regions * regionSize, bad: map[int]bool{}}
	r.lossID = w.randomLoss()
	return r
}

// disk is how long the device takes.
func (r *replica) disk() time.Duration {
	d := r.w.between(10*time.Microsecond, 300*time.Microsecond)
	if r.w.chance(0.02) {
		d = r.w.between(time.Millisecond, 20*time.Millisecond)
	}
	return d + r.slow
}

// openAgain is what a new agent finds.
func (r *replica) openAgain() {
	r.open, r.sess, r.gate = false, replication.Session{}, 0
	r.whose = replication.Session{}
	r.promised, r.record = r.promisedD, r.recordD
	r.grantEnd = r.n.clock() + r.leaseMax // Opening a replica, section 2
	r.life++
	r.runs = nil
}

// killed: the agent died. What the device was doing may be done in part.
func (r *replica) killed() {
	for _, run := range r.runs {
		if run.write && run.ready && !run.gone {
			for i, v := range run.vals {
				if r.w.chance(0.5) {
					r.put(run.off+i, v)
				}
			}
		}
	}
	r.runs = nil
	r.life++
	r.open = false
}

// powerCut: of what was not flushed each sector is old or new, and of the log
// a prefix remains.
func (r *replica) powerCut() {
	r.killed()
	keep := 0
	if len(r.logged) > 0 {
		keep = r.w.rnd.IntN(len(r.logged) + 1)
	}
	for _, c := range r.logged[:keep] {
		r.cleanDurable(c)
	}
	r.logged = nil
	for _, l := range append(slices.Clone(r.frozen), r.top) {
		var seen [units][]uint32
		for _, p := range l.pend {
			seen[p.unit] = append(seen[p.unit], p.val)
		}
		for u := range seen {
			if k := r.w.rnd.IntN(len(seen[u]) + 1); k > 0 {
				l.dur[u] = seen[u][k-1]
			}
		}
		l.pend = nil
		l.cur, l.dirty, l.stamp = l.dur, l.dirtyD, l.stampD
	}
	r.lossID = r.w.randomLoss()
	r.flushBad = false
}

func (r *replica) layer(id snapID) *layer {
	if id == (snapID{}) {
		return r.top
	}
	for _, l := range r.frozen {
		if l.id == id {
			return l
		}
	}
	return nil
}

func (r *replica) cleanDurable(c cleaned) {
	if l := r.layer(c.layer); l != nil {
		for _, g := range c.regions {
			l.dirtyD[g], l.stampD[g] = false, c.stamp
		}
	}
}

// sync makes the log durable.
func (r *replica) sync() {
	for _, c := range r.logged {
		r.cleanDurable(c)
	}
	r.logged = nil
}

func (r *replica) put(u int, v uint32) {
	r.wseq++
	r.w.log("%s: unit %d (%d) := %s, %d", r.id, u, u*unit/regionSize, value(v), r.wseq)
	r.top.cur[u] = v
	r.top.pend = append(r.top.pend, pending{r.wseq, u, v})
	delete(r.bad, u)
	if x := v &^ holeMark; x != 0 && int(x) < len(r.w.applied) {
		r.w.applied[x][r.slot]++
	}
}

// inGate: the gate is open for this session, and what it came on is the
// latest PROMOTE.
func (r *replica) inGate(s replication.Session, gate uint64) bool {
	if r.w.opt.Fault == FaultNoGateNumber {
		return r.open && r.sess == s
	}
	return r.open && r.sess == s && r.gate == gate
}

// request is one message of the data path.
type request struct {
	do    block.Op
	fua   bool
	off   int // units
	n     int
	vals  []uint32
	layer snapID
	sess  replication.Session
	gate  uint64
	reply func(err error, vals []uint32, hole bool)
}

// exec executes a request that has arrived.
func (r *replica) exec(q *request) {
	if !r.inGate(q.sess, q.gate) {
		q.reply(block.ErrFenced, nil, false)
		return
	}
	run := &running{off: q.off, sess: q.sess}
	r.runs = append(r.runs, run)
	end := func(err error, vals []uint32, hole bool) {
		run.gone = true
		r.runs = slices.DeleteFunc(r.runs, func(x *running) bool { return x == run })
		q.reply(err, vals, hole)
	}
	life := r.life
	later := func(d time.Duration, fn func()) {
		r.w.after(d, func() {
			if r.life == life {
				r.n.whenAwake(func() {
					if r.life == life {
						fn()
					}
				})
			}
		})
	}
	switch q.do {
	case block.OpRead:
		later(r.disk(), func() { r.read(q, end) })
	case block.OpFlush:
		r.flush(later, end)
	default:
		run.vals, run.write = q.vals, true
		if r.full && q.do == block.OpWrite && r.w.chance(0.7) {
			later(r.disk(), func() { end(block.ErrNoSpace, nil, false) })
			return
		}
		r.write(q, run, later, end)
	}
}

func (r *replica) read(q *request, end func(error, []uint32, bool)) {
	l := r.layer(q.layer)
	if l == nil {
		end(block.ErrIO, nil, false)
		return
	}
	vals := make([]uint32, q.n)
	hole := true
	for i := range vals {
		if l == r.top && r.bad[q.off+i] {
			end(block.ErrIO, nil, false)
			return
		}
		vals[i] = l.cur[q.off+i]
		hole = hole && isZero(vals[i])
	}
	end(nil, vals, hole)
}

func (r *replica) write(q *request, run *running, later func(time.Duration, func()), end func(error, []uint32, bool)) {
	first, last := q.off*unit/regionSize, (q.off+len(q.vals)-1)*unit/regionSize
	clean := false
	for g := first; g <= last; g++ {
		clean = clean || !r.top.dirty[g]
	}
	apply := func() {
		// A CLEAN may have come in between: dirty again, durably.
		for g := first; g <= last; g++ {
			r.setDirty(g)
		}
		run.ready = true
		later(r.disk(), func() {
			if r.promised.Session != run.sess {
				r.w.fail("I-FENCE: replica %s: a write of session %x lands after %x was promised", r.id, run.sess[:2], r.promised.Session[:2])
			}
			for i, v := range q.vals {
				r.put(q.off+i, v)
			}
			if q.fua {
				r.flush(later, end)
				return
			}
			end(nil, nil, false)
		})
	}
	if clean {
		later(r.disk(), apply)
		return
	}
	apply()
}

func (r *replica) setDirty(g int) {
	if r.w.opt.Fault == FaultDirtyNotSynced {
		r.top.dirty[g] = true
		return
	}
	if !r.top.dirty[g] || !r.top.dirtyD[g] {
		r.w.log("%s: region %d dirty", r.id, g)
		r.sync()
		r.top.dirty[g], r.top.dirtyD[g] = true, true
	}
}

// flushFailed: nothing is made durable until the store is opened again, and
// then it is not what it was.
func (r *replica) flushFailed() {
	if r.reopening {
		return
	}
	r.reopening = true
	r.w.res.Faults["flush error"]++
	r.w.after(r.w.between(0, 200*time.Millisecond), func() {
		r.reopening = false
		r.powerCut()
		if r.n.alive {
			r.openAgain()
			r.w.resets(r.n)
		}
	})
}

func (r *replica) flush(later func(time.Duration, func()), end func(error, []uint32, bool)) {
	upTo := r.wseq
	later(r.disk()+r.disk(), func() {
		if r.flushBad {
			end(block.ErrIO, nil, false)
			r.flushFailed()
			return
		}
		r.w.log("%s: flushed up to %d", r.id, upTo)
		for _, l := range append(slices.Clone(r.frozen), r.top) {
			k := 0
			for ; k < len(l.pend) && l.pend[k].seq <= upTo; k++ {
				l.dur[l.pend[k].unit] = l.pend[k].val
			}
			l.pend = l.pend[k:]
		}
		if r.w.opt.Fault != FaultDirtyNotSynced {
			r.sync()
		}
		end(nil, nil, false)
	})
}
