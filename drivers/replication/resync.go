package replication

import (
	"errors"
	"slices"

	"github.com/moraine-storage/moraine/drivers/block"
)

type resyncStep uint8

const (
	resyncRecord  resyncStep = iota // 4.4.1
	resyncPromote                   // 4.4.2
	resyncLayers                    // 4.4.3
	resyncState                     // 4.4.4
	resyncCopy                      // 4.4.5, 4.4.6
	resyncJoin                      // 4.4.7
)

// resync is the one member that is being caught up.
type resync struct {
	m        uint8
	step     resyncStep
	pending  bool // an answer is awaited
	promoted bool

	todo   bitset
	cursor uint32

	// Layers.
	have  []SnapshotID // on T
	layer *layerCatch

	// Join.
	joinID   uint64 // operations up to it were sent before
	draining bool
	flushed  bool
	ready    bool
	joined   bool
}

// layerCatch brings the top of T to a snapshot that it missed.
type layerCatch struct {
	id     SnapshotID
	size   int64
	source []Stamp
	todo   bitset
	done   []uint32
	busy   bool
	flush  bool
}

// resyncStep drives the resync one step on.
func (c *Core) resyncStep() {
	if !c.opened || c.cfg.NoResync || c.serving == 0 {
		return
	}
	rs := c.rs
	if rs == nil {
		c.resyncBegin()
		return
	}
	if c.failed.Has(rs.m) && !c.maybe.Has(rs.m) && !c.inSync(&c.rec).Has(rs.m) {
		c.abortResync("lost while it joined")
		return
	}
	if rs.pending {
		return
	}
	switch rs.step {
	case resyncRecord:
		if c.roleOf(rs.m) == Syncing {
			rs.step = resyncPromote
			c.resyncPromote(rs)
		} else {
			c.change.wanted = true
			c.propose()
		}
	case resyncPromote:
		c.resyncPromote(rs)
	case resyncLayers:
		c.resyncLayers(rs)
	case resyncState:
		c.resyncState(rs)
	case resyncCopy:
		c.resyncCopy(rs)
	case resyncJoin:
		c.resyncJoin(rs)
	}
}

func (c *Core) roleOf(m uint8) Role {
	for i := range c.rec.Members {
		if c.slot(c.rec.Members[i].Replica) == m {
			return c.rec.Members[i].Role
		}
	}
	return 0
}

// resyncBegin chooses the next member, in turn.
func (c *Core) resyncBegin() {
	if len(c.work) > 0 || c.change.old {
		return
	}
	cand := c.outdated() &^ c.need
	for cand != 0 {
		m := (cand &^ (bit(c.rsTurn) - 1)).first()
		if cand&^(bit(c.rsTurn)-1) == 0 {
			m = cand.first()
		}
		if mem := &c.members[m]; !mem.busy && c.now >= mem.retryAt {
			c.rsTurn = (m + 1) % MaxMembers
			c.rs = &resync{m: m}
			c.steps.ResyncStarted++
			if c.roleOf(m) == Syncing {
				c.rs.step = resyncPromote
			}
			c.change.wanted = true
			return
		}
		cand &^= bit(m)
	}
}

// abortResync gives up for now; nothing is recorded for that (4.4.7).
func (c *Core) abortResync(string) {
	rs := c.rs
	if rs == nil || rs.joined || c.maybe.Has(rs.m) {
		return // it is in the set, or may be
	}
	c.steps.ResyncAborted++
	c.rs = nil
	mem := &c.members[rs.m]
	mem.retryAt = c.now + c.cfg.RetryEvery
	mem.copied = bitset{}
	mem.gate++ // answers to come are for nobody
	mem.busy = false
	mem.promoted = false
	c.syncSet &^= bit(rs.m)
	c.joining &^= bit(rs.m)
	if rs.promoted && !c.z.Has(rs.m) {
		c.emit(Effect{Kind: Close, Member: rs.m})
	}
	c.recompute()
}

// askT sends a message to the member that is caught up; an error ends the resync.
func (c *Core) askT(rs *resync, ctl Control, then func(Reply)) {
	rs.pending = true
	c.ask(rs.m, ctl, func(r Reply) {
		if c.rs != rs {
			return
		}
		rs.pending = false
		if r.Err != nil {
			c.abortResync("message failed")
			return
		}
		then(r)
	})
}

func (c *Core) resyncPromote(rs *resync) {
	rs.pending = true
	c.promote(rs.m, func(r Reply) {
		if c.rs != rs {
			return
		}
		rs.pending = false
		if r.Err != nil {
			if errors.Is(r.Err, block.ErrFenced) && !c.change.busy {
				c.readSoon(0) // perhaps this session is over
			}
			c.abortResync("promote failed")
			return
		}
		mem := &c.members[rs.m]
		mem.promoted, mem.heard, mem.lossy = true, c.now, false
		mem.flushed = 0
		mem.copied = bitset{}
		rs.promoted = true
		rs.have = r.Layers
		c.recompute()
		rs.step = resyncLayers
		if r.Size < c.size {
			c.askT(rs, Control{Kind: AskGrow, Size: c.size}, func(Reply) {})
		}
	})
}

// resyncLayers drops what the record does not know and brings T to each
// snapshot that it missed, in order.
func (c *Core) resyncLayers(rs *resync) {
	if rs.layer != nil {
		c.layerStep(rs, rs.layer)
		return
	}
	k := 0 // snapshots of the record that T has, in order
	var missing SnapshotID
	found := false
	for i := range c.rec.Snapshots {
		s := c.rec.Snapshots[i]
		if s.State != Ready {
			continue
		}
		if k < len(rs.have) && rs.have[k] == s.ID {
			k++
			continue
		}
		missing, found = s.ID, true
		break
	}
	if k < len(rs.have) { // unknown, or out of order: dropped
		id := rs.have[k]
		c.askT(rs, Control{Kind: AskDrop, Layer: id}, func(Reply) {
			rs.have = slices.Delete(rs.have, k, k+1)
		})
		return
	}
	if !found {
		rs.step = resyncState
		c.resyncState(rs)
		return
	}
	c.layerBegin(rs, missing)
}

// layerBegin compares the source's frozen layer with T's top.
func (c *Core) layerBegin(rs *resync, id SnapshotID) {
	src := c.readable()
	if src == 0 {
		return
	}
	rs.pending = true
	c.askAny(src.first(), Control{Kind: AskState, Layer: id}, func(a Reply) {
		if c.rs != rs {
			return
		}
		rs.pending = false
		if a.Err != nil {
			c.abortResync("state of the source")
			return
		}
		c.askT(rs, Control{Kind: AskState}, func(b Reply) {
			l := &layerCatch{id: id, size: a.Size, source: make([]Stamp, c.regionCount()), todo: newBitset(c.regionCount())}
			dirty := make([]bool, len(l.source))
			mine := make([]Stamp, len(l.source))
			for _, s := range b.States {
				mine[s.Region], dirty[s.Region] = s.Stamp, s.Dirty
			}
			for _, s := range a.States {
				l.source[s.Region] = s.Stamp
				dirty[s.Region] = dirty[s.Region] || s.Dirty
			}
			for i := range l.source {
				if int64(i)*c.cfg.RegionSize < l.size && (dirty[i] || l.source[i] != mine[i]) {
					l.todo.set(uint32(i))
				}
			}
			rs.layer = l
		})
	})
}

// layerStep copies, flushes, stamps and freezes.
func (c *Core) layerStep(rs *resync, l *layerCatch) {
	switch {
	case l.busy:
	case l.todo.n > 0:
		i, _ := l.todo.next(0)
		l.busy = true
		c.startCopy(copyLayer, i, l.id, l.size)
	case !l.flush:
		l.busy = true
		c.flushMembers(bit(rs.m), func(ok Set) {
			if c.rs != rs {
				return
			}
			l.busy, l.flush = false, true
			if !ok.Has(rs.m) {
				c.abortResync("flush failed")
			}
		})
	case len(l.done) > 0:
		stamp := l.source[l.done[0]]
		var same, rest []uint32
		for _, i := range l.done {
			if l.source[i] == stamp && len(same) < cleanBatch {
				same = append(same, i)
			} else {
				rest = append(rest, i)
			}
		}
		c.askT(rs, Control{Kind: AskClean, Regions: same, Stamp: stamp}, func(Reply) { l.done = rest })
	default:
		c.askT(rs, Control{Kind: AskFreeze, Layer: l.id}, func(Reply) {
			c.steps.LayersCaught++
			rs.have = append(rs.have, l.id)
			rs.layer = nil
		})
	}
}

// copied: a region of a frozen layer is on T.
func (rs *resync) copied(_ *Core, region uint32) {
	if l := rs.layer; l != nil {
		l.busy = false
		l.todo.clear(region)
		l.done = append(l.done, region)
	}
}

// resyncState is 4.4.4: todo. From here on T gets foreground writes.
func (c *Core) resyncState(rs *resync) {
	c.askT(rs, Control{Kind: AskState}, func(r Reply) {
		n := c.regionCount()
		rs.todo = newBitset(n)
		mine := make([]Stamp, n)
		for _, s := range r.States {
			if s.Region >= n {
				continue
			}
			mine[s.Region] = s.Stamp
			if s.Dirty {
				rs.todo.set(s.Region)
			}
		}
		for i := range n {
			if g := c.regions.at(i); g.dirty || c.todoRec.has(i) || g.stamp != mine[i] {
				rs.todo.set(i)
			}
		}
		rs.step = resyncCopy
		c.syncSet |= bit(rs.m)
		c.recompute()
	})
}

func (c *Core) resyncCopy(rs *resync) {
	if rs.todo.n == 0 {
		rs.step = resyncJoin
		c.resyncJoin(rs)
		return
	}
	for c.jobs < c.cfg.CopyJobs && c.rs == rs && c.holding == 0 {
		i, ok := c.nextTodo(rs)
		if !ok {
			return
		}
		c.startCopy(copyResync, i, SnapshotID{}, c.size)
	}
}

func (c *Core) nextTodo(rs *resync) (uint32, bool) {
	for range 2 {
		for i, ok := rs.todo.next(rs.cursor); ok; i, ok = rs.todo.next(i + 1) {
			if !c.copying.has(i) && !c.todoRec.has(i) {
				rs.cursor = i + 1
				return i, true
			}
		}
		rs.cursor = 0
	}
	return 0, false
}

// resyncJoin is 4.4.7. T counts in need from the start: what is acknowledged
// from now on is on T too, and a client's flush covers T. What was
// acknowledged before, T completes first and then flushes.
func (c *Core) resyncJoin(rs *resync) {
	if c.change.old || c.failed != 0 {
		return
	}
	m := rs.m
	mem := &c.members[m]
	if !c.joining.Has(m) {
		if rs.todo.n > 0 {
			// While a failed member held it up, an operation that T has done
			// ended with an error elsewhere: its regions are copied anew.
			rs.step = resyncCopy
			c.resyncCopy(rs)
			return
		}
		c.joining |= bit(m)
		rs.joinID = c.opID
		rs.draining = true
		mem.heard, mem.leaseUntil = c.now, 0
		for o := c.issued.head; o != nil; o = o.next {
			if o.Kind == block.OpFlush && o.role == roleClient && !o.acked {
				o.wait |= bit(m)
			}
		}
		c.recompute()
		c.leaseNext = 0
		c.askLeases()
	}
	if rs.draining {
		if c.mut != MutJoinNoFlush {
			for o := c.issued.head; o != nil && o.id <= rs.joinID; o = o.next {
				if o.wait.Has(m) && o.Kind != block.OpFlush {
					return
				}
			}
		}
		rs.draining = false
		for o := c.issued.head; o != nil; o = o.next {
			if o.Kind == block.OpFlush && o.role == roleClient && o.wait.Has(m) && !o.out.Has(m) {
				c.send(o, block.OpFlush, bit(m))
			}
		}
		if c.mut == MutJoinNoFlush {
			rs.flushed = true
		} else {
			c.flushMembers(bit(m), func(ok Set) {
				if c.rs != rs {
					return
				}
				rs.flushed = ok.Has(m)
				if !rs.flushed {
					c.abortResync("flush failed")
				}
			})
		}
	}
	if rs.flushed && !rs.ready && (c.now < mem.leaseUntil || c.cfg.ConfirmedReads && mem.confirmed > 0) {
		rs.ready = true
		c.change.wanted = true
		c.propose()
	}
}

// notDrained are members to which a flush is not sent yet.
func (c *Core) notDrained() Set {
	if c.rs != nil && c.rs.draining {
		return bit(c.rs.m)
	}
	return 0
}
