package replication

import (
	"slices"
	"time"

	"github.com/moraine-storage/moraine/drivers/block"
)

// changeState is the one change of the record that may be under way.
type changeState struct {
	busy   bool   // a Store or a ReadRecord is not answered
	wanted bool   // look whether something is to be changed
	next   Record // sent last
	rev    uint64 // that it was compared with
	// open counts changes at this revision whose outcome is not known. They
	// may still be executed until the revision moves: only another change
	// settles them, so one is made even if nothing else is wanted.
	open     int
	attempts []uint64
	readAt   time.Duration // when to read the record again; 0: not
	old      bool          // the store is older than what was seen: no change
}

// removable says whether the rules let the failed members go: something is
// left, and min_in_sync holds (3.3).
func (c *Core) removable() bool {
	cur := c.inSync(&c.rec)
	_, ok := c.nextSet(cur)
	return ok
}

func (c *Core) joinReady() Set {
	if c.rs != nil && c.rs.step == resyncJoin && c.rs.ready && !c.failed.Has(c.rs.m) {
		return bit(c.rs.m)
	}
	return 0
}

// nextSet is the in-sync set as it should be, and whether it may be.
func (c *Core) nextSet(cur Set) (Set, bool) {
	next := cur&^c.failed | c.joinReady()
	if next == cur {
		return cur, false
	}
	if next != 0 && (next.Len() >= c.cfg.MinInSync || next.Len() >= cur.Len()) {
		return next, true
	}
	// One that came back without what it had is no copy that a takeover could
	// use: it may go. Those that are only out of reach stay, and are waited for.
	next = cur&^(c.failed&c.lossy()) | c.joinReady()
	return next, next != 0 && next != cur
}

// lossy are the members that answered with another loss_id.
func (c *Core) lossy() (s Set) {
	for m := range c.nm {
		if c.members[m].lossy {
			s |= bit(m)
		}
	}
	return s
}

// proposal builds the next record.
func (c *Core) proposal() (Record, bool) {
	next := c.rec.clone()
	changed := false
	cur := c.inSync(&c.rec)
	if set, ok := c.nextSet(cur); ok {
		changed = true
		for i := range next.Members {
			m := &next.Members[i]
			s := c.slot(m.Replica)
			switch {
			case set.Has(s) && m.Role != InSync:
				m.Role, m.LossID = InSync, c.members[s].lossID
			case !set.Has(s) && m.Role == InSync:
				m.Role, m.LossID = Outdated, ""
			}
		}
		c.nextEpoch(&next)
	}
	if rs := c.rs; rs != nil && rs.step == resyncRecord {
		for i := range next.Members {
			if m := &next.Members[i]; c.slot(m.Replica) == rs.m && m.Role == Outdated {
				m.Role = Syncing
				changed = true
			}
		}
	}
	if len(c.work) > 0 && c.workPropose(c.work[0], &next) {
		changed = true
	}
	return next, changed
}

func (c *Core) nextEpoch(r *Record) {
	if r.Epoch.N == c.rec.Epoch.N {
		r.Epoch = Epoch{N: c.rec.Epoch.N + 1, Tag: c.cfg.Rand()}
	}
}

// propose sends the next change if one is wanted and none is under way.
func (c *Core) propose() {
	ch := &c.change
	if c.phase != phaseServing || ch.busy || ch.readAt != 0 {
		return
	}
	ch.wanted = false
	next, changed := c.proposal()
	if !changed && ch.open == 0 {
		return
	}
	c.store(next)
}

// store sends a change. From now on its in-sync members are in need.
func (c *Core) store(next Record) {
	ch := &c.change
	next.Attempt = c.cfg.Rand()
	ch.busy, ch.next, ch.rev = true, next, c.rev
	ch.attempts = append(ch.attempts, next.Attempt)
	if c.phase == phaseServing {
		c.maybe |= c.inSync(&next)
		c.recompute()
	}
	sent := next.clone()
	c.emit(Effect{Kind: Store, Record: &sent, Rev: c.rev})
}

// Stored answers a Store.
func (c *Core) Stored(now time.Duration, out Outcome, rev uint64) {
	c.now = now
	c.change.busy = false
	if c.over != nil {
		return
	}
	switch out {
	case IsStored:
		c.known(c.change.next, rev)
	case IsLost:
		c.readSoon(0)
	default:
		c.steps.Unknowns++
		if c.mut == MutUnknownFailed && c.phase == phaseServing {
			c.maybe, c.change.open = 0, 0
			c.abortResync("mutation")
			c.recompute()
			c.readSoon(c.cfg.RetryEvery)
			break
		}
		c.change.open++
		c.readSoon(0)
	}
	c.pump()
}

// readSoon reads the record, now or after a while.
func (c *Core) readSoon(after time.Duration) {
	if after > 0 {
		c.change.readAt = c.now + after
		return
	}
	c.change.busy = true
	c.emit(Effect{Kind: ReadRecord})
}

// RecordRead answers a ReadRecord. back: the cluster store is known to have
// been restored from an older state (another incarnation).
func (c *Core) RecordRead(now time.Duration, rec *Record, rev uint64, back bool, err error) {
	c.now = now
	c.change.busy = false
	if c.over != nil {
		return
	}
	if c.phase < phaseServing {
		c.attachRead(rec, rev, back, err)
		c.pump()
		return
	}
	ch := &c.change
	mine := slices.Contains(ch.attempts, orZero(rec))
	switch {
	case err != nil:
		c.readSoon(c.cfg.RetryEvery)
	case back || rev < c.rev || rec.Epoch.N < c.rec.Epoch.N:
		// 4.6: no change is made in a store that went back, and none is taken
		// from it. This mirror goes on: it needs no store.
		ch.old = true
		c.readSoon(c.cfg.RetryEvery)
	case rec.Primary.Session == (Session{}) && mine && c.detaching():
		c.known(rec.clone(), rev)
	case rec.Primary.Session != c.cfg.Session:
		c.end(block.ErrFenced)
	case rev == c.rev:
		// Not executed so far. What is not known may be executed later: the
		// next change decides.
		if c.mut == MutLateChangeForgot {
			c.maybe, ch.open = 0, 0
			c.recompute()
		}
		c.propose()
	default:
		c.known(rec.clone(), rev)
	}
	c.pump()
}

func orZero(r *Record) uint64 {
	if r == nil {
		return 0
	}
	return r.Attempt
}

// known takes a record that is stored for certain: every change compared with
// an earlier revision has either made it or is void.
func (c *Core) known(rec Record, rev uint64) {
	ch := &c.change
	ch.open, ch.attempts, ch.old = 0, nil, false
	c.maybe = 0
	before := c.inSync(&c.rec)
	c.rec, c.rev = rec, rev
	if c.phase < phaseServing {
		c.attachKnown()
		return
	}
	if c.detaching() && rec.Primary.Session == (Session{}) {
		c.steps.Detached++
		c.end(ErrDetached)
		return
	}
	after := c.inSync(&c.rec)
	if gone := before &^ after; gone != 0 && c.opened {
		c.steps.Removed += gone.Len()
	}
	if c.rs != nil && c.rs.step == resyncJoin && after.Has(c.rs.m) {
		c.steps.Joined++
		c.rs.joined = true
	}
	ch.wanted = true
	c.recompute()
	c.readvance()
	c.workKnown()
}

// readvance tells all of the set the epoch of the record (4.2.4). Only then
// the old set is let go, and what waited for it acknowledged.
func (c *Core) readvance() {
	in := c.inSync(&c.rec)
	if c.advance == c.rec.Epoch && c.serving == in {
		return
	}
	c.advWait = in
	if c.mut == MutNoAdvance && c.opened {
		c.advWait = 0
		c.advanced()
		return
	}
	e := c.rec.Epoch
	(in &^ c.failed).each(func(m uint8) {
		rec := c.rec.clone()
		c.ask(m, Control{Kind: AskAdvance, Record: &rec}, func(r Reply) {
			switch {
			case c.rec.Epoch != e:
			case r.Err != nil:
				c.fail(m)
			default:
				c.advWait &^= bit(m)
				c.advanced()
			}
		})
	})
}

func (c *Core) advanced() {
	in := c.inSync(&c.rec)
	if c.advWait&in != 0 {
		return
	}
	if c.advance == c.rec.Epoch && c.serving == in {
		return
	}
	c.steps.Advanced++
	c.advance, c.serving = c.rec.Epoch, in
	if rs := c.rs; rs != nil && rs.joined {
		c.joining &^= bit(rs.m)
		c.syncSet &^= bit(rs.m)
		c.rs = nil
	}
	c.recompute()
	c.cleanerLost()
	c.change.wanted = true
}
