package sim

import (
	"time"

	"github.com/moraine-storage/moraine/drivers/replication"
)

// chaos injects a fault now and then. The budget: at any time at most one
// fault of power per half second, and every fault heals within 3 s; drives do
// not fail for ever, so what was flushed must always be there.
func (w *world) chaos() {
	if w.halt {
		return
	}
	w.after(w.between(20*time.Millisecond, 500*time.Millisecond), w.chaos)
	w.steady()
	kinds := []struct {
		weight int
		name   string
		fn     func() bool
	}{
		{10, "agent killed", w.faultKill},
		{6, "power cut", w.faultPower},
		{2, "power cut of all", w.faultPowerAll},
		{6, "agent paused", w.faultPause},
		{8, "link cut one way", w.faultOneWay},
		{5, "node cut off", w.faultIsolate},
		{4, "cluster store down", w.faultStore},
		{5, "cluster store cut off from a node", w.faultStoreCut},
		{4, "connections reset", w.faultReset},
		{4, "slow drive", w.faultSlow},
		{4, "bad sectors", w.faultBad},
		{3, "drive full", w.faultFull},
		{3, "flush fails", w.faultFlush},
		{8, "takeover", w.faultTakeover},
		{3, "detach", w.detach},
		{6, "snapshot", w.snapshot},
		{3, "snapshot dropped", w.dropSnapshot},
		{1, "resize", w.resize},
	}
	sum := 0
	for _, k := range kinds {
		sum += k.weight
	}
	x := w.rnd.IntN(sum)
	for _, k := range kinds {
		if x -= k.weight; x < 0 {
			if k.fn() {
				w.res.Faults[k.name]++
				w.log("fault: %s", k.name)
			}
			return
		}
	}
}

// steady is the volume manager: it attaches the volume somewhere when it is
// attached nowhere.
func (w *world) steady() {
	if d := w.dev; d != nil && !d.dead && d.n.alive {
		if d.m != nil && !d.m.gone && d.m.core.FlushFailed() && w.chance(0.3) {
			w.detach()
		}
		return
	}
	for _, n := range w.nodes {
		if n.m != nil && w.chance(0.8) {
			return
		}
	}
	w.attachAnew(w.anyNode())
}

func (w *world) anyNode() *node { return w.nodes[w.rnd.IntN(len(w.nodes))] }

// victim prefers nodes that matter.
func (w *world) victim() *node {
	if w.chance(0.5) && w.dev != nil && w.chance(0.6) {
		return w.dev.n
	}
	for range 4 {
		if n := w.anyNode(); n.rep != nil {
			return n
		}
	}
	return w.anyNode()
}

func (w *world) soon() time.Duration { return w.between(10*time.Millisecond, 1500*time.Millisecond) }

func (w *world) faultKill() bool {
	n := w.victim()
	if !n.alive {
		return false
	}
	n.kill()
	w.after(w.soon(), n.start)
	return true
}

func (w *world) faultPower() bool {
	n := w.victim()
	if !n.up {
		return false
	}
	n.powerCut()
	w.after(w.soon(), n.start)
	return true
}

func (w *world) faultPowerAll() bool {
	for _, n := range w.nodes {
		if n.rep != nil || w.chance(0.5) {
			n.powerCut()
			w.after(w.soon(), n.start)
		}
	}
	return true
}

func (w *world) faultPause() bool {
	n := w.victim()
	if !n.alive || n.awake > w.now {
		return false
	}
	n.awake = w.now + w.soon()
	return true
}

func (w *world) cutLink(a, b int, d time.Duration) {
	if a == b || w.cut[a][b] {
		return
	}
	w.cut[a][b] = true
	w.after(d, func() { w.cut[a][b] = false })
}

func (w *world) faultOneWay() bool {
	a, b := w.victim().i, w.anyNode().i
	if w.chance(0.5) {
		a, b = b, a
	}
	w.cutLink(a, b, w.soon())
	return a != b
}

func (w *world) faultIsolate() bool {
	n, d := w.victim(), w.soon()
	for _, o := range w.nodes {
		w.cutLink(n.i, o.i, d)
		w.cutLink(o.i, n.i, d)
	}
	return true
}

func (w *world) faultStore() bool {
	if w.cs.down {
		return false
	}
	w.cs.down = true
	w.after(w.soon(), w.cs.up)
	return true
}

func (w *world) faultStoreCut() bool {
	n := w.victim()
	w.cs.cut[n.i] = true
	w.after(w.soon(), func() { w.cs.cut[n.i] = false })
	return true
}

func (w *world) faultReset() bool {
	n := w.victim()
	w.resets(n)
	return n.rep != nil
}

func (w *world) faultSlow() bool {
	n := w.victim()
	if n.rep == nil {
		return false
	}
	n.rep.slow = w.between(5*time.Millisecond, 600*time.Millisecond)
	w.after(w.soon(), func() { n.rep.slow = 0 })
	return true
}

func (w *world) faultBad() bool {
	n := w.victim()
	if n.rep == nil {
		return false
	}
	// At most one replica has bad sectors: the last copy of a block must not go.
	for _, o := range w.nodes {
		if o.rep != nil && o != n && len(o.rep.bad) > 0 {
			return false
		}
	}
	for range 3 {
		n.rep.bad[w.rnd.IntN(regions*regionSize/unit)] = true
	}
	w.after(w.soon(), func() { clear(n.rep.bad) })
	return true
}

func (w *world) faultFull() bool {
	n := w.victim()
	if n.rep == nil {
		return false
	}
	n.rep.full = true
	w.after(w.soon(), func() { n.rep.full = false })
	return true
}

func (w *world) faultFlush() bool {
	n := w.victim()
	if n.rep == nil {
		return false
	}
	n.rep.flushBad = true
	return true
}

// faultTakeover: somebody decides that the volume is to be elsewhere, whether
// its primary lives or not.
func (w *world) faultTakeover() bool {
	n := w.anyNode()
	if !n.alive || n.m != nil {
		return false
	}
	w.attachAnew(n)
	return true
}

func (w *world) detach() bool {
	d := w.dev
	if d == nil || d.dead || d.m == nil || d.m.gone || !d.m.ready {
		return false
	}
	m := d.m
	// The device goes first, when nobody uses it any more.
	d.die("detached")
	m.event(func() { _, _ = m.core.Detach(m.n.clock()) })
	return true
}

func (w *world) snapshot() bool {
	if len(w.cs.rec.Snapshots) >= 4 {
		return false
	}
	id, from := newSnapID(w), w.now
	w.job("snapshot", func(c *replication.Core, now time.Duration) (uint64, error) { return c.Snapshot(now, id) },
		func(err error) { w.snapshotDone(id, from, err) })
	return true
}

func (w *world) snapshotDone(id snapID, from time.Duration, err error) {
	ready, ok := w.cs.ready[id]
	if err != nil || !ok {
		return
	}
	for _, n := range w.nodes {
		if n.rep == nil || !w.isInSync(n.rep.id) {
			continue
		}
		if l := n.rep.layer(id); l != nil {
			v := &snapshotView{id: id, from: from, to: ready.at, size: l.size, vals: l.cur}
			v.segment = w.hist.segment(ready.active)
			v.lost = v.segment > 0
			w.snaps[id] = v
			break
		}
	}
	w.checkSnapshots(false)
}

func (w *world) dropSnapshot() bool {
	if len(w.cs.rec.Snapshots) == 0 {
		return false
	}
	id := w.cs.rec.Snapshots[w.rnd.IntN(len(w.cs.rec.Snapshots))].ID
	w.job("drop of snapshot", func(c *replication.Core, now time.Duration) (uint64, error) { return c.DropSnapshot(now, id) }, func(error) {})
	return true
}

func (w *world) resize() bool {
	size := w.cs.rec.Size + regionSize
	if size > maxRegions*regionSize {
		return false
	}
	w.job("resize", func(c *replication.Core, now time.Duration) (uint64, error) { return c.Resize(now, size) }, func(error) {})
	return true
}

// heal ends all faults.
func (w *world) heal() {
	w.cut = [maxNodes][maxNodes]bool{}
	w.cs.cut = [maxNodes]bool{}
	if w.cs.down {
		w.cs.up()
	}
	for _, n := range w.nodes {
		n.awake = 0
		n.start()
		if n.rep != nil {
			n.rep.slow, n.rep.full, n.rep.flushBad = 0, false, false
			clear(n.rep.bad)
		}
	}
}
