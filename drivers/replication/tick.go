package replication

import (
	"errors"
	"time"

	"github.com/moraine-storage/moraine/drivers/block"
)

// Tick is the passing of time. The driver calls it at least every
// TickEvery, and soon after an event that came late.
func (c *Core) Tick(now time.Duration) {
	c.now = now
	if c.over != nil {
		return
	}
	if c.phase < phaseServing {
		c.attachTick()
		return
	}
	if !c.opened && c.openAt != 0 && now >= c.openAt && c.serving == c.inSync(&c.rec) && c.serving&^c.failed != 0 {
		c.open()
	}
	if now >= c.leaseNext && now >= c.openAt {
		// Not while grants of others run (4.1.6): a lease of ours would hide
		// them from the next session of this node, which may skip its own.
		c.askLeases()
	}
	c.recheckReads()
	c.deadlines()
	c.resume()
	if c.change.readAt != 0 && now >= c.change.readAt {
		c.change.readAt = 0
		c.change.busy = true
		c.emit(Effect{Kind: ReadRecord})
	}
	c.background()
	c.pump()
}

// TickEvery is how often a driver calls Tick.
func (c *Core) TickEvery() time.Duration { return c.cfg.LeaseEvery / 5 }

// askLeases renews the leases of all of need, and of who is about to join.
func (c *Core) askLeases() {
	c.leaseNext = c.now + c.cfg.LeaseEvery
	c.leaseSeq++
	seq, sent := c.leaseSeq, c.now
	(c.need &^ c.failed).each(func(m uint8) {
		mem := &c.members[m]
		c.ask(m, Control{Kind: AskLease, Lease: c.cfg.Lease, Timeout: c.cfg.Lease}, func(r Reply) {
			if r.Err != nil {
				if errors.Is(r.Err, block.ErrFenced) && c.z.Has(m) {
					c.fail(m)
				}
				return
			}
			from := sent
			if c.mut == MutLeaseFromAnswer {
				from = c.now
			}
			mem.heard = c.now
			mem.leaseUntil = max(mem.leaseUntil, from+scaled(c.cfg.Lease, 0.99))
			mem.confirmed = max(mem.confirmed, seq)
			c.recheckReads()
		})
	})
}

// ClockJumped voids all leases: the wall clock jumped against boottime, or the
// machine was restored from an image.
func (c *Core) ClockJumped(now time.Duration) {
	c.now = now
	for m := range c.nm {
		c.members[m].leaseUntil = 0
	}
	c.leaseNext = 0
}

// Lost says that all connections to a member broke. Its operations are
// answered with ErrLost.
func (c *Core) Lost(now time.Duration, m uint8) {
	c.now = now
	c.fail(m)
	c.pump()
}

// deadlines drops members that do not answer, and answers clients that have
// waited for too long.
func (c *Core) deadlines() {
	for o := c.issued.head; o != nil && o.issued+c.cfg.ReplicaDeadline < c.now; {
		late := (o.out & o.wait) &^ c.failed
		if o.stage == stageRead {
			late = o.out &^ c.failed
		}
		if late == 0 {
			o = o.next
			continue
		}
		c.fail(late.first())
		o = c.issued.head
	}
	(c.need &^ c.failed).each(func(m uint8) {
		if !c.opened {
			return // ADVANCE and STATE have their own time-outs
		}
		if c.members[m].heard+c.cfg.ReplicaDeadline+c.cfg.LeaseEvery < c.now {
			c.fail(m)
		}
	})
	for _, l := range []*opList{&c.issued, &c.held, &c.parked, &c.waiting, &c.stalled, &c.unlease} {
		for o := l.head; o != nil; {
			next := o.next
			if o.role == roleClient && !o.acked && o.arrived+c.cfg.HoldDeadline < c.now {
				c.steps.HeldToDeadline++
				c.expire(o)
			}
			o = next
		}
	}
}

// expire answers EIO. What was sent stays in flight and keeps its lock.
func (c *Core) expire(o *Op) {
	o.acked = true
	if o.list == &c.issued && o.Kind != block.OpRead {
		c.complete(o, block.ErrTimeout)
		return
	}
	if o.out == 0 {
		c.unlock(o)
		c.complete(o, block.ErrTimeout)
		return
	}
	c.emit(Effect{Kind: Complete, Op: o, Err: block.ErrTimeout})
}

// resume is for the time when no member can be sent to and none can be
// removed (3.3, hold): the first that comes back with all it had goes on.
// PROMOTE has drained it, so what was in flight is sent again.
func (c *Core) resume() {
	if c.failed&c.need == 0 || c.removable() {
		return
	}
	if in := c.inSync(&c.rec) | c.maybe; in&^c.lossy() == 0 {
		c.end(ErrLossy) // nobody is left who has it all
		return
	}
	(c.need & c.failed).each(func(m uint8) {
		mem := &c.members[m]
		if mem.busy || mem.lossy || c.now < mem.retryAt || c.owes(m) {
			return
		}
		mem.retryAt = c.now + c.cfg.RetryEvery
		c.promote(m, func(r Reply) { c.resumed(m, r) })
	})
}

func (c *Core) resumed(m uint8, r Reply) {
	mem := &c.members[m]
	if r.Err != nil || !c.failed.Has(m) {
		return
	}
	if r.LossID != c.recordedLoss(m) && c.mut != MutLossIgnored {
		mem.lossy = true
		return
	}
	if c.removable() {
		return // another came back first: it leaves and is resynced
	}
	c.steps.Resumed++
	c.failed &^= bit(m)
	mem.promoted, mem.heard = true, c.now
	c.leaseNext = 0
	for o := c.issued.head; o != nil; o = o.next {
		if o.stage == stageWrite && o.wait.Has(m) && !o.out.Has(m) {
			do := o.Kind
			if o.role == roleCopy {
				do = o.job.do(o)
			}
			c.send(o, do, bit(m))
		}
	}
	if k := &c.cleaner; k.active && k.sent && k.wait.Has(m) {
		k.spoiled = true // drained: done or not, nobody knows
		k.wait &^= bit(m)
	}
	c.change.wanted = true
	c.readvance()
	c.unstall()
}

// owes says whether operations sent to m are not answered yet.
func (c *Core) owes(m uint8) bool {
	for o := c.issued.head; o != nil; o = o.next {
		if o.out.Has(m) {
			return true
		}
	}
	return false
}

func (c *Core) recordedLoss(m uint8) string {
	for i := range c.rec.Members {
		if c.slot(c.rec.Members[i].Replica) == m {
			return c.rec.Members[i].LossID
		}
	}
	return ""
}

// promote sends PROMOTE with the present epoch: it drains whatever an earlier
// connection left at the replica.
func (c *Core) promote(m uint8, then func(Reply)) {
	mem := &c.members[m]
	mem.gate++
	mem.busy = true
	rec := c.rec.clone()
	gate := mem.gate
	c.ask(m, Control{Kind: AskPromote, Record: &rec, Timeout: c.cfg.PromoteTimeout}, func(r Reply) {
		mem.busy = false
		if r.Err == nil {
			mem.lossID = r.LossID
		}
		if mem.gate == gate {
			then(r)
		}
	})
}
