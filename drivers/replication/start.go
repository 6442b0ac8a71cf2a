package replication

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/moraine-storage/moraine/drivers/block"
)

// Attach begins 0001 section 4.1. Opened or Over follows.
func (c *Core) Attach(now time.Duration) {
	c.now = now
	if c.phase != phaseNew {
		return
	}
	c.phase = phaseClaim
	c.readSoon(0)
}

// attachRead is step 1, and what is read after an outcome that is not known.
func (c *Core) attachRead(rec *Record, rev uint64, back bool, err error) {
	ch := &c.change
	switch {
	case err != nil:
		c.readSoon(c.cfg.RetryEvery)
	case back:
		c.end(ErrStoreWentBack)
	case slices.Contains(ch.attempts, rec.Attempt):
		c.known(rec.clone(), rev)
	case c.phase == phaseClaim:
		p := rec.Primary
		first := c.base.Members == nil
		if p.Session != (Session{}) && p.Node != c.cfg.Node && (!c.cfg.Takeover || !first && p != c.base.Primary) {
			c.end(fmt.Errorf("node %s: %w", p.Node, ErrAttachedElsewhere))
			return
		}
		c.base, c.rec, c.rev = rec.clone(), rec.clone(), rev
		c.claim()
	case rec.Primary.Session != c.cfg.Session:
		c.end(block.ErrFenced)
	case c.phase == phaseActivate && rev == c.rev:
		c.store(ch.next)
	case c.phase == phaseActivate:
		c.rec, c.rev = rec.clone(), rev // changed by a controller: decide again
		c.phase = phaseState
		c.decide()
	default: // a replica promised more, and the record still names this session
		c.end(ErrStoreWentBack)
	}
}

// claim is step 2.
func (c *Core) claim() {
	next := c.rec.clone()
	next.Epoch = Epoch{N: c.rec.Epoch.N + 1, Tag: c.cfg.Rand()}
	next.Primary = Primary{Node: c.cfg.Node, Session: c.cfg.Session}
	next.Clean = false
	c.store(next)
}

// attachKnown: this session is the primary (step 2), or the set is (step 5).
func (c *Core) attachKnown() {
	if c.phase == phaseActivate {
		c.activated()
		return
	}
	c.steps.Claimed++
	c.claimN = c.rec.Epoch.N
	c.size = c.rec.Size
	c.phase = phasePromote
	c.promoteBy = c.now + c.cfg.PromoteTimeout
	c.promoteAll()
}

func (c *Core) attachTick() {
	if c.change.readAt != 0 && c.now >= c.change.readAt {
		c.change.readAt = 0
		c.readSoon(0)
	}
	if c.phase == phasePromote && c.now >= c.promoteAt {
		c.promoteAll()
	}
	if c.phase == phasePromote {
		c.promotedEnough()
	}
	c.pump()
}

// promoteAll is step 3 for the members that have not answered.
func (c *Core) promoteAll() {
	c.promoteAt = c.now + c.cfg.RetryEvery
	for i := range c.rec.Members {
		m := c.slot(c.rec.Members[i].Replica)
		mem := &c.members[m]
		if mem.answered || mem.busy || c.rec.Members[i].Role == Forked {
			continue
		}
		c.promote(m, func(r Reply) {
			if c.phase > phaseState {
				return // too late for the set: its resync promotes it anew
			}
			switch {
			case r.Err == nil:
				c.steps.Promoted++
				mem.answered, mem.answer, mem.promoted, mem.heard = true, r, true, c.now
				if !r.OwnGrant {
					mem.leaseUntil = c.now + scaled(r.Remaining, leaseRateMargin) // until then another may hold it
				} else {
					mem.leaseUntil = 0
				}
				if c.phase == phaseState && c.inSync(&c.rec).Has(m) {
					c.askState(m) // late, but in time
				}
				c.promotedEnough()
			case errors.Is(r.Err, block.ErrFenced) && r.Promised.Epoch.N >= c.rec.Epoch.N && !c.change.busy:
				c.readSoon(0)
			}
		})
	}
}

// promotedEnough goes on when all in-sync members have answered, or some and
// the time is up.
func (c *Core) promotedEnough() {
	if c.phase != phasePromote {
		return
	}
	in := c.inSync(&c.rec)
	var have Set
	in.each(func(m uint8) {
		if c.members[m].answered {
			have |= bit(m)
		}
	})
	if have == 0 || have != in && c.now < c.promoteBy {
		return
	}
	c.phase = phaseState
	have.each(c.askState)
}

// askState is step 4 for one member.
func (c *Core) askState(m uint8) {
	mem := &c.members[m]
	mem.stated = false
	c.ask(m, Control{Kind: AskState}, func(r Reply) {
		if c.phase != phaseState {
			return
		}
		if r.Err != nil {
			mem.answered, mem.promoted = false, false
			c.phase = phasePromote
			c.promoteAt = c.now + c.cfg.RetryEvery
			return
		}
		mem.states, mem.stated = r.States, true
		c.decide()
	})
}

// decide is steps 4 and 5, once all have told their state.
func (c *Core) decide() {
	in := c.inSync(&c.rec)
	var have Set
	waiting := false
	in.each(func(m uint8) {
		if c.members[m].answered {
			have |= bit(m)
			waiting = waiting || !c.members[m].stated
		}
	})
	if waiting {
		return
	}
	rec := c.rec
	rec.Clean = c.base.Clean
	if c.mut == MutLossIgnored {
		rec.Clean = true
	}
	older := c.olderByStamp(have)
	var answers []Answer
	have.each(func(m uint8) {
		a := c.members[m].answer
		answers = append(answers, Answer{Replica: c.members[m].id, OldPromised: a.Promised.Epoch.N, LossID: a.LossID,
			Remaining: a.Remaining, OwnGrant: a.OwnGrant, NewerStamp: older.Has(m)})
	})
	d, err := DecideAttach(rec, answers, c.cfg.OwnSessions)
	if err != nil {
		if have == in {
			c.end(err)
			return
		}
		c.phase = phasePromote // others may come
		c.promoteBy = c.now + c.cfg.PromoteTimeout
		c.promoteAt = c.now + c.cfg.RetryEvery
		return
	}
	if c.mut == MutDeviceKept && len(c.cfg.OwnSessions) > 0 {
		d.DeviceLives = true
	}
	c.lives = d
	next := c.rec.clone()
	for i := range next.Members {
		m := &next.Members[i]
		k := slices.IndexFunc(d.InSync, func(x Member) bool { return x.Replica == m.Replica })
		switch {
		case k >= 0:
			m.Role, m.LossID = InSync, d.InSync[k].LossID
		case m.Role == InSync || m.Role == Syncing:
			m.Role, m.LossID = Outdated, ""
		}
	}
	next.Active = c.claimN
	if d.Shrunk {
		next.Epoch = Epoch{N: c.rec.Epoch.N + 1, Tag: c.cfg.Rand()}
	}
	c.phase = phaseActivate
	e := Effect{Kind: Announce, Rev: c.claimN, DeviceLives: d.DeviceLives || len(c.cfg.OwnSessions) == 0}
	if !e.DeviceLives {
		e.Err = errors.New(d.DeviceReason)
	}
	c.emit(e)
	c.store(next)
}

// olderByStamp: members that are clean where another holds a newer stamp.
func (c *Core) olderByStamp(have Set) (older Set) {
	best := make([]Stamp, c.regionCount())
	have.each(func(m uint8) {
		for _, s := range c.members[m].states {
			if int(s.Region) < len(best) && s.Stamp.newer(best[s.Region]) {
				best[s.Region] = s.Stamp
			}
		}
	})
	have.each(func(m uint8) {
		clean := best
		mine := make([]RegionState, len(clean))
		for _, s := range c.members[m].states {
			if int(s.Region) < len(mine) {
				mine[s.Region] = s
			}
		}
		for i := range mine {
			if !mine[i].Dirty && best[i].newer(mine[i].Stamp) {
				older |= bit(m)
			}
		}
	})
	return older
}

// activated: step 5 is stored; steps 6 to 8 follow.
func (c *Core) activated() {
	c.steps.Activated++
	c.phase = phaseServing
	in := c.inSync(&c.rec)
	c.loadRegions(in)
	c.openAt = c.now
	for m := range c.nm {
		mem := &c.members[m]
		if in.Has(m) {
			c.openAt = max(c.openAt, mem.leaseUntil)
			mem.heard = c.now
		} else if mem.promoted {
			mem.promoted = false
			c.emit(Effect{Kind: Close, Member: m})
		}
		mem.leaseUntil, mem.states, mem.answer, mem.answered = 0, nil, Reply{}, false
	}
	if c.openAt > c.now {
		c.steps.WaitedOut++
	}
	for i := range c.rec.Snapshots {
		if s := c.rec.Snapshots[i]; s.State != Ready {
			kind := jobThaw
			if s.State == Deleting {
				kind = jobDropSnapshot
			}
			c.workSeq++
			c.work = append(c.work, &volumeJob{kind: kind, id: s.ID, number: c.workSeq})
		}
	}
	c.recompute()
	c.readvance()
	c.leaseNext = c.now
}

// loadRegions is step 7: what is not surely equal is made equal.
func (c *Core) loadRegions(in Set) {
	n := c.regionCount()
	c.todoRec = newBitset(n)
	count := make([]uint8, n)
	in.each(func(m uint8) {
		for _, s := range c.members[m].states {
			if s.Region >= n {
				continue
			}
			r := c.regions.at(s.Region)
			if s.Dirty || count[s.Region] > 0 && r.stamp != s.Stamp {
				c.todoRec.set(s.Region)
			}
			r.stamp = s.Stamp
			count[s.Region]++
		}
	})
	for i := range n { // a stamp that some do not have at all
		if count[i] != 0 && int(count[i]) != in.Len() {
			c.todoRec.set(i)
		}
	}
	for i, ok := c.todoRec.next(0); ok; i, ok = c.todoRec.next(i + 1) {
		c.markDirty(i)
	}
	if c.mut == MutNoReconcile {
		c.todoRec = newBitset(n)
	}
}

// open is step 8.
func (c *Core) open() {
	if len(c.work) > 0 {
		return
	}
	c.opened = true
	c.serving.each(func(m uint8) { c.members[m].heard = c.now })
	c.steps.Opened++
	e := Effect{Kind: Opened, DeviceLives: c.lives.DeviceLives}
	if !e.DeviceLives {
		e.Err = errors.New(c.lives.DeviceReason)
	}
	c.emit(e)
	c.releaseHeld()
}

func (c *Core) releaseHeld() {
	for c.holding == 0 && c.opened && c.held.head != nil {
		o := c.held.head
		o.unlist()
		c.admit(o)
	}
}

// unpark looks again at operations that waited for a reconcile.
func (c *Core) unpark() {
	for n := c.parked.n; n > 0; n-- {
		o := c.parked.head
		o.unlist()
		c.admit(o)
	}
}
