package sim

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"time"

	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/replication"
)

// Fault breaks one rule of the replica model on purpose.
type Fault uint8

// The mutations of the replica (0001 section 9).
const (
	FaultNone             Fault = iota
	FaultNoDrain                // 1: PROMOTE does not drain
	FaultPromiseNotSynced       // 2
	FaultGrantReset             // 3: grant_end reset by PROMOTE
	FaultDirtyNotSynced         // 11
	FaultNoGateNumber           // the number of the PROMOTE is not looked at
	FaultNoDrainSame            // PROMOTE by the session that has the gate does not drain
)

// Options of a run.
type Options struct {
	Seed           uint64
	Ops            int // at least so many operations of clients; default 2000
	Mutation       replication.Mutation
	Fault          Fault
	ConfirmedReads bool
	Calm           bool // no faults
	Trace          bool

	schedule func(w *world) // instead of chaos; made of events of its own
	copies   int            // with a schedule; 0: three
}

// Result of a run.
type Result struct {
	Ops, Errors, Opened int
	Faults              map[string]int
	Steps               replication.Steps
	Time                time.Duration // simulated
	Failure             string        // a rule was broken; "" if none
	Trace               []string
}

// FaultCount is the number of faults injected.
func (r *Result) FaultCount() (n int) {
	for _, k := range r.Faults {
		n += k
	}
	return n
}

// snapshotView is what a ready snapshot contained when it was first compared.
type snapshotView struct {
	id       snapID
	from, to time.Duration
	size     int64
	segment  int
	vals     [units]uint32
	lost     bool // acknowledged writes were lost before it
}

func (w *world) randomLoss() string { return fmt.Sprintf("%08x", w.rnd.Uint32()) }

// addSteps adds the counts of a session that has ended.
func (w *world) addSteps(s replication.Steps) {
	sum, add := reflect.ValueOf(&w.res.Steps).Elem(), reflect.ValueOf(s)
	for i := range sum.NumField() {
		sum.Field(i).SetInt(sum.Field(i).Int() + add.Field(i).Int())
	}
}

// Run simulates one seed.
func Run(o Options) Result {
	if o.Ops == 0 {
		o.Ops = 2000
	}
	w := newWorld(o)
	w.attachAnew(w.nodes[0])
	w.run(2 * time.Second)
	for range 6 {
		w.worker(nil)
	}
	switch {
	case o.schedule != nil:
		o.schedule(w)
	case !o.Calm:
		w.after(100*time.Millisecond, w.chaos)
	}
	for w.failure == "" && (w.res.Ops < o.Ops || !o.Calm && o.schedule == nil && w.res.FaultCount() < 20) && w.now < 10*time.Minute {
		w.run(w.now + 500*time.Millisecond)
		w.checkRegions()
	}
	w.finish()
	w.res.Failure, w.res.Time, w.res.Trace = w.failure, w.now, w.trace
	for _, n := range w.nodes {
		if n.m != nil {
			w.addSteps(n.m.core.Steps())
		}
	}
	return w.res
}

func newWorld(o Options) *world {
	w := &world{opt: o, rnd: rand.New(rand.NewPCG(o.Seed, 0x6d6f7261696e65)), applied: [][]uint16{nil}, snaps: map[snapID]*snapshotView{}}
	w.res.Faults = map[string]int{}
	w.cs = &clusterStore{w: w, known: map[replication.Epoch]replication.Session{}, ready: map[snapID]readyMark{}}
	copies := 2 + w.rnd.IntN(3)
	if o.schedule != nil {
		if copies = o.copies; copies == 0 {
			copies = 3
		}
	}
	w.hold = 3 * time.Second
	if w.chance(0.3) {
		w.hold = 500 * time.Millisecond
	}
	w.confirmed = o.ConfirmedReads || w.chance(0.15)
	w.minInSync = 1
	w.overlap = w.chance(0.4)
	w.slowNet = w.chance(0.15)
	if copies > 2 && w.chance(0.3) {
		w.minInSync = 2
	}
	rec := replication.Record{Epoch: replication.Epoch{N: 1, Tag: 1}, Clean: true, Size: regions * regionSize}
	for i := range min(copies+2, maxNodes) {
		n := &node{w: w, i: i, name: fmt.Sprintf("n%d", i), up: true, alive: true, rate: 1 + (w.rnd.Float64()*2-1)*0.0099/2,
			base: time.Duration(w.rnd.Int64N(int64(100 * time.Hour))), dead: map[replication.Session]bool{}}
		w.nodes = append(w.nodes, n)
		if i < copies {
			n.rep = newReplica(w, n, string(rune('A'+i)), i)
			rec.Members = append(rec.Members, replication.Member{Replica: n.rep.id, Role: replication.InSync, LossID: n.rep.lossID})
		}
	}
	w.cs.rec, w.cs.rev = rec, 1
	return w
}

// attachAnew starts a session with a new device on n.
func (w *world) attachAnew(n *node) {
	if n.alive && n.m == nil {
		n.attach(nil, false)
	}
}

// newDevice: a session serves device d, which is new. An old session may open
// its device late, and learn then that it is over.
func (w *world) newDevice(d *device) {
	w.devs = append(w.devs, d)
	w.log("device %d on %s", d.own[0], d.n.name)
}

// checkRegions is I-DIRTY and I-EQ, seen from outside.
func (w *world) checkRegions() {
	for i, a := range w.nodes {
		if a.rep == nil {
			continue
		}
		for _, b := range w.nodes[i+1:] {
			if b.rep == nil {
				continue
			}
			w.comparePair(a.rep, b.rep)
		}
	}
}

func (w *world) comparePair(a, b *replica) {
	const per = regionSize / unit
	x, y := a.top, b.top
	both := w.isInSync(a.id) && w.isInSync(b.id)
	var unflushed [2][maxRegions]bool
	for i, l := range []*layer{x, y} {
		for _, p := range l.pend {
			unflushed[i][p.unit/per] = true
		}
	}
	for g := range maxRegions {
		if x.dirty[g] || y.dirty[g] {
			continue
		}
		same := x.stamp[g] == y.stamp[g]
		if same {
			for u := g * per; u < (g+1)*per; u++ {
				if differ(x.cur[u], y.cur[u]) {
					w.fail("I-EQ: %s and %s are clean in region %d with stamp %v and differ at unit %d: %s, %s", a.id, b.id, g, x.stamp[g], u, value(x.cur[u]), value(y.cur[u]))
					return
				}
				if differ(x.dur[u], y.dur[u]) || unflushed[0][g] || unflushed[1][g] {
					w.fail("I-EQ: %s and %s are clean in region %d with stamp %v and are not durably equal at unit %d", a.id, b.id, g, x.stamp[g], u)
					return
				}
			}
		} else if both {
			for u := g * per; u < (g+1)*per; u++ {
				if differ(x.cur[u], y.cur[u]) {
					w.fail("I-DIRTY: %s and %s, in sync, are clean in region %d (stamps %v, %v) and differ at unit %d", a.id, b.id, g, x.stamp[g], y.stamp[g], u)
					return
				}
			}
		}
	}
}

func differ(a, b uint32) bool { return a != b && !(isZero(a) && isZero(b)) }

func (w *world) isInSync(id string) bool {
	for _, m := range w.cs.rec.Members {
		if m.Replica == id {
			return m.Role == replication.InSync
		}
	}
	return false
}

// checkSnapshots is I-SNAP: equal on all that have it, and never changing.
func (w *world) checkSnapshots(needAll bool) {
	for _, s := range w.cs.rec.Snapshots {
		if s.State != replication.Ready {
			continue
		}
		v := w.snaps[s.ID]
		if v == nil {
			continue // its answer is not here yet
		}
		for _, n := range w.nodes {
			if n.rep == nil {
				continue
			}
			l := n.rep.layer(s.ID)
			in := w.isInSync(n.rep.id)
			if l == nil {
				if in {
					w.fail("I-SNAP: %s is in sync and lacks snapshot %x", n.rep.id, s.ID[:2])
				}
				continue
			}
			if !in && !needAll {
				continue
			}
			for u := range int(v.size) / unit {
				if differ(l.cur[u], v.vals[u]) || differ(l.dur[u], v.vals[u]) {
					w.fail("I-SNAP: snapshot %x differs on %s at unit %d: %s, was %s", s.ID[:2], n.rep.id, u, value(l.cur[u]), value(v.vals[u]))
					return
				}
			}
		}
	}
}

// finish heals everything, lets the volume come to rest and compares.
func (w *world) finish() {
	w.halt = true
	if w.failure != "" {
		return
	}
	w.heal()
	end := w.now + 2*time.Minute
	quiet := false
	for w.failure == "" && w.now < end && !quiet {
		w.run(w.now + 200*time.Millisecond)
		if w.dev == nil || w.dev.dead {
			alive := false
			for _, n := range w.nodes {
				alive = alive || n.m != nil
			}
			if !alive {
				w.attachAnew(w.nodes[w.rnd.IntN(len(w.nodes))])
			}
			continue
		}
		m := w.dev.m
		if m != nil && !m.gone && m.core.FlushFailed() {
			w.dev.die("flushes fail: attached anew")
			m.event(func() { _, _ = m.core.Detach(m.n.clock()) })
			continue
		}
		quiet = m != nil && !m.gone && m.ready && m.core.Quiet() && len(w.dev.ops) == 0
	}
	if w.failure != "" {
		return
	}
	if !quiet {
		state := ""
		for _, n := range w.nodes {
			if n.m != nil {
				state += n.name + ": " + n.m.core.Describe() + "; "
			}
		}
		w.fail("does not come to rest: %s; record %+v", state, w.cs.rec)
		return
	}
	size := int(w.cs.rec.Size / unit)
	for off := 0; off < size; off += 8 {
		w.dev.submit(&clientOp{kind: block.OpRead, off: off, n: 8})
	}
	w.run(w.now + 2*time.Second)
	if len(w.dev.ops) != 0 {
		w.fail("the last reads are not answered")
	}
	w.checkRegions()
	w.checkEqual()
	w.checkSnapshots(true)
	if w.failure == "" {
		var snaps []*snapshotView
		for _, s := range w.snaps {
			snaps = append(snaps, s)
		}
		slices.SortFunc(snaps, func(a, b *snapshotView) int { return int(a.from - b.from) })
		if err := w.hist.check(snaps); err != nil {
			w.fail("%v", err)
		}
		w.checkCuts(snaps)
	}
}

// checkEqual: at rest all replicas are in sync, clean and equal.
func (w *world) checkEqual() {
	first := w.nodes[0].rep
	for _, n := range w.nodes {
		r := n.rep
		if r == nil {
			continue
		}
		if !w.isInSync(r.id) {
			w.fail("at rest %s is not in sync", r.id)
		}
		for g := range int(w.cs.rec.Size) / regionSize {
			if r.top.dirty[g] {
				w.fail("at rest region %d of %s is dirty", g, r.id)
			}
		}
		for u := range int(w.cs.rec.Size) / unit {
			if differ(r.top.cur[u], first.top.cur[u]) || differ(r.top.dur[u], first.top.cur[u]) {
				w.fail("at rest %s and %s differ at unit %d: %s, %s", r.id, first.id, u, value(r.top.cur[u]), value(first.top.cur[u]))
			}
		}
	}
}

// checkCuts: a snapshot with a write in it has all that was acknowledged
// before that write began.
func (w *world) checkCuts(snaps []*snapshotView) {
	writes := map[uint32]*clientOp{}
	var all []*clientOp
	for _, c := range w.hist.ops {
		if c.val != 0 {
			writes[c.val] = c
			all = append(all, c)
		}
	}
	for _, s := range snaps {
		var begun time.Duration // the cut is not before this
		for u := range int(s.size) / unit {
			if c := writes[s.vals[u]]; c != nil {
				begun = max(begun, c.inv)
			}
		}
		for _, c := range all {
			if !c.ended || c.err != nil || c.resp >= begun {
				continue
			}
			for u := c.off; u < c.off+c.n && u*unit < int(s.size); u++ {
				have := writes[s.vals[u]]
				if s.lost {
					continue
				}
				if have == nil || have != c && have.ended && have.err == nil && have.resp < c.inv {
					w.fail("I-SNAP: snapshot %x has a write begun at %v, and at unit %d not %s, acknowledged at %v", s.id[:2], begun, u, value(c.val), c.resp)
					return
				}
			}
		}
	}
}

func newSnapID(w *world) (id snapID) {
	binary.LittleEndian.PutUint64(id[:], w.rnd.Uint64()|1)
	return id
}
