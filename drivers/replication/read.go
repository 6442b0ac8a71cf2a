package replication

import "github.com/moraine-storage/moraine/drivers/block"

// readable are the members that may answer a read (I-SYNC).
func (c *Core) readable() Set {
	return c.inSync(&c.rec) & c.serving &^ c.failed
}

func (c *Core) startRead(o *Op) {
	o.stage = stageRead
	set := c.serving & c.need &^ c.failed &^ o.bad
	if set == 0 {
		if o.bad != 0 && c.live()&^o.bad == 0 {
			c.unlock(o) // no member could read it
			c.answer(o, block.ErrIO)
			return
		}
		o.moveTo(&c.stalled)
		return
	}
	if o.bad != 0 && !o.lock.Exclusive {
		// A repair: the lock is exclusive before the good copy is read.
		c.unlock(o)
		o.lock.Exclusive = true
		c.lock(o)
		return
	}
	m := c.localSlot
	if m >= MaxMembers || !set.Has(m) {
		c.turn++
		k := int(c.turn) % set.Len()
		m = set.first()
		for s := set; k > 0; k-- {
			s &^= bit(m)
			m = s.first()
		}
	}
	if c.mut == MutLeaseBeforeRead && !c.cfg.ConfirmedReads && !c.leased(o) {
		o.stage = stageLease
		o.moveTo(&c.unlease)
		return
	}
	c.issue(o)
	c.send(o, block.OpRead, bit(m))
}

func (c *Core) readDone(o *Op, m uint8, err error) {
	if o.role == roleCopy {
		c.copyRead(o, m, err)
		return
	}
	switch {
	case o.acked: // answered at its deadline
		c.unlock(o)
		o.unlist()
		c.emit(Effect{Kind: Release, Op: o, Final: true})
		return
	case err == nil && !c.failed.Has(m) && c.need.Has(m):
		if o.bad != 0 {
			c.repair(o)
			return
		}
		c.finishRead(o)
		return
	case err != nil && isLost(err):
		c.fail(m)
	case err != nil:
		o.bad |= bit(m)
	}
	if o.list == &c.issued { // fail may have moved it on
		c.startRead(o)
	}
}

// repair writes what a good member had over what others could not read.
func (c *Core) repair(o *Op) {
	c.steps.Repaired++
	targets := o.bad & c.live()
	if targets == 0 {
		c.finishRead(o)
		return
	}
	c.touch(o)
	j := &copyJob{kind: copyRepair, off: o.Off, end: o.Off + o.Len, targets: targets}
	o.job, o.stage, o.wait = j, stageWrite, targets
	o.role = roleCopy
	c.send(o, block.OpWrite, targets)
}

// leased says whether a read may be answered now (I-LEASE).
func (c *Core) leased(o *Op) bool {
	for s := c.need; s != 0; {
		m := s.first()
		s &^= bit(m)
		if c.cfg.ConfirmedReads {
			if c.members[m].confirmed <= o.confirm {
				return false
			}
		} else if c.now >= c.members[m].leaseUntil {
			return false
		}
	}
	return true
}

// finishRead: the data is here; the leases are looked at now.
func (c *Core) finishRead(o *Op) {
	o.stage = stageLease
	if c.leased(o) || c.mut == MutLeaseBeforeRead || c.mut == MutReadsAtOnce {
		c.unlock(o)
		c.answer(o, nil)
		return
	}
	if !c.cfg.ConfirmedReads {
		c.steps.ReadsRenewed++
	}
	o.moveTo(&c.unlease)
	if c.cfg.ConfirmedReads && c.leaseSeq <= o.confirm || !c.cfg.ConfirmedReads && c.now >= c.leaseNext-c.cfg.LeaseEvery*9/10 {
		c.askLeases()
	}
}

func (c *Core) recheckReads() {
	for o := c.unlease.head; o != nil; {
		next := o.next
		if c.leased(o) {
			if c.mut == MutLeaseBeforeRead && !c.cfg.ConfirmedReads {
				o.unlist()
				c.startRead(o)
			} else {
				c.unlock(o)
				c.answer(o, nil)
			}
		}
		o = next
	}
}

// unstall lets reads go on that had no member to read from.
func (c *Core) unstall() {
	if c.stalled.n == 0 || c.serving&^c.failed == 0 {
		return
	}
	for n := c.stalled.n; n > 0; n-- {
		o := c.stalled.head
		o.unlist()
		c.startRead(o)
	}
}
