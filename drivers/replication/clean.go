package replication

import (
	"time"

	"github.com/moraine-storage/moraine/drivers/block/rangelock"
)

// cleaner is the one CLEAN batch that may be under way (3.4).
type cleaner struct {
	active   bool
	flushing bool
	sent     bool
	spoiled  bool // not everyone answered: the regions stay dirty here
	waits    int  // locks not granted
	regions  []uint32
	locks    []*rangelock.Lock
	spare    []*rangelock.Lock
	target   Set
	wait     Set
	stamp    Stamp
	only     bool // regions copied to one member get their common stamp there
	counter  uint32
	nextAt   time.Duration
}

// cleanBatch bounds a batch: its locks are held for one round trip.
const cleanBatch = 64

// cleanerStep drives cleaning one step on.
func (c *Core) cleanerStep() {
	k := &c.cleaner
	switch {
	case k.flushing:
		return
	case k.active && !k.sent:
		if k.waits == 0 {
			c.cleanSend()
		}
		return
	case k.active:
		k.wait &= c.z
		if k.wait == 0 {
			c.cleanEnd()
		}
		return
	}
	force := c.cleanForced()
	if c.flushErr != nil {
		return // never flushed again in hope: what is dirty stays so (3.3)
	}
	if !force && (c.holding > 0 || c.now < k.nextAt) || c.need&c.failed != 0 || c.serving != c.need || !c.opened && !force {
		return
	}
	k.nextAt = c.now + c.cfg.CleanIdle/4
	if !c.cleanPick(force) {
		c.cleanPickCopied()
	}
}

// cleanForced: a job under hold wants everything clean.
func (c *Core) cleanForced() bool {
	return len(c.work) > 0 && c.work[0].step == stepClean
}

func (c *Core) cleanTarget(i uint32) Set {
	t := c.need
	if s := c.syncSet &^ c.need; s != 0 && !c.rs.todo.has(i) {
		t |= s
	}
	return t
}

func (c *Core) flushedAll(t Set, r *region) bool {
	if c.mut == MutCleanNoFlush {
		return true
	}
	for t != 0 {
		m := t.first()
		t &^= bit(m)
		if c.members[m].flushed < r.lastDone {
			return false
		}
	}
	return true
}

// cleanPick takes dirty regions that all have flushed, or flushes.
func (c *Core) cleanPick(force bool) bool {
	k := &c.cleaner
	var unflushed Set
	keep := c.dirtyQ[:0]
	full := len(c.dirtyQ) > c.cfg.MaxDirty
	for _, i := range c.dirtyQ {
		r := c.regions.at(i)
		if !r.dirty {
			r.queued = false
			continue
		}
		keep = append(keep, i)
		if r.inflight > 0 && c.mut != MutCleanNoLock || c.todoRec.has(i) || c.copying.has(i) || !force && !full && r.lastWrite+c.cfg.CleanIdle > c.now || len(k.regions) >= cleanBatch {
			continue
		}
		t := c.cleanTarget(i)
		if !c.flushedAll(t, r) {
			unflushed |= t
			continue
		}
		if len(k.regions) == 0 {
			k.target = t
		}
		if t == k.target {
			k.regions = append(k.regions, i)
		}
	}
	c.dirtyQ = keep
	if len(k.regions) > 0 {
		if k.counter >= 1<<31-1 {
			k.regions = k.regions[:0] // the session is attached anew before
			return true
		}
		k.counter++
		k.stamp, k.only = Stamp{Epoch: c.rec.Epoch, Counter: k.counter}, false
		if c.mut == MutCleanReusedG {
			k.stamp.Counter = 1
		}
		c.cleanLock()
		return true
	}
	if unflushed != 0 {
		c.cleanFlush(unflushed)
		return true
	}
	return false
}

func (c *Core) cleanFlush(set Set) {
	c.cleaner.flushing = true
	c.flushMembers(set, func(Set) {
		c.cleaner.flushing = false
		c.cleaner.nextAt = 0
	})
}

// cleanPickCopied gives copied regions that stayed clean the common stamp.
func (c *Core) cleanPickCopied() {
	k := &c.cleaner
	for s := c.z &^ c.failed; s != 0; {
		m := s.first()
		s &^= bit(m)
		mem := &c.members[m]
		var unflushed bool
		for i, ok := mem.copied.next(0); ok; i, ok = mem.copied.next(i + 1) {
			r := c.regions.at(i)
			if c.syncSet.Has(m) && c.rs.todo.has(i) {
				mem.copied.clear(i) // copied again
				continue
			}
			if r.dirty || r.inflight > 0 || c.copying.has(i) || len(k.regions) >= cleanBatch {
				continue
			}
			if mem.flushed < r.lastDone {
				unflushed = true
				continue
			}
			if len(k.regions) == 0 {
				k.stamp, k.target, k.only = r.stamp, bit(m), true
			}
			if r.stamp == k.stamp {
				k.regions = append(k.regions, i)
			}
		}
		if len(k.regions) > 0 {
			c.cleanLock()
			return
		}
		if unflushed {
			c.cleanFlush(bit(m))
			return
		}
	}
}

func (c *Core) cleanLock() {
	k := &c.cleaner
	k.active, k.sent, k.spoiled, k.waits = true, false, false, 0
	for _, i := range k.regions {
		l := &rangelock.Lock{}
		if n := len(k.spare) - 1; n >= 0 {
			l, k.spare = k.spare[n], k.spare[:n]
		}
		off := int64(i) * c.cfg.RegionSize
		*l = rangelock.Lock{Start: off, End: off + c.cfg.RegionSize, Exclusive: true, Owner: k}
		k.locks = append(k.locks, l)
		if c.mut != MutCleanNoLock && !c.locks.Acquire(l) {
			k.waits++
		}
	}
	if k.waits == 0 {
		c.cleanSend()
	}
}

// cleanSend: all locks are held. Regions written in between drop out.
func (c *Core) cleanSend() {
	k := &c.cleaner
	n := 0
	for x, i := range k.regions {
		r := c.regions.at(i)
		ok := c.flushedAll(k.target, r) && !c.todoRec.has(i) && k.target&c.failed == 0
		if k.only {
			m := k.target.first()
			ok = ok && !r.dirty && r.stamp == k.stamp && c.members[m].copied.has(i) && (!c.syncSet.Has(m) || !c.rs.todo.has(i))
		} else {
			ok = ok && k.target == c.cleanTarget(i)
		}
		if c.mut == MutCleanNoLock || ok {
			k.regions[n] = i
			k.locks[n], k.locks[x] = k.locks[x], k.locks[n]
			n++
		}
	}
	c.cleanFree(n)
	k.regions = k.regions[:n]
	k.sent, k.wait = true, k.target
	if n == 0 {
		k.wait = 0
		c.cleanEnd()
		return
	}
	regions := append([]uint32(nil), k.regions...)
	k.target.each(func(m uint8) {
		c.ask(m, Control{Kind: AskClean, Regions: regions, Stamp: k.stamp}, func(r Reply) {
			if r.Err != nil {
				k.spoiled = true
				c.fail(m)
				return
			}
			k.wait &^= bit(m)
		})
	})
}

// cleanFree frees the locks from the nth on.
func (c *Core) cleanFree(n int) {
	k := &c.cleaner
	for _, l := range k.locks[n:] {
		if c.mut != MutCleanNoLock {
			c.granted = c.locks.Release(l, c.granted)
		}
		k.spare = append(k.spare, l)
	}
	k.locks = k.locks[:n]
}

// cleanEnd: all have answered or left Z.
func (c *Core) cleanEnd() {
	k := &c.cleaner
	for _, i := range k.regions {
		r := c.regions.at(i)
		switch {
		case k.spoiled:
		case k.only:
			c.steps.StampKept++
			c.members[k.target.first()].copied.clear(i)
		default:
			c.steps.Cleaned++
			r.dirty, r.stamp = false, k.stamp
			(k.target & c.z).each(func(m uint8) { c.members[m].copied.clear(i) })
		}
	}
	c.cleanFree(0)
	k.regions = k.regions[:0]
	k.active, k.sent = false, false
	k.nextAt = 0
}

// cleanerLost: a member failed, left or came back while a batch was out.
func (c *Core) cleanerLost() {
	k := &c.cleaner
	if k.active && k.sent && k.wait&(c.failed|^c.z) != 0 {
		k.spoiled = true
	}
}
