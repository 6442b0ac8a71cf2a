package replication

import (
	"errors"
	"time"

	"github.com/moraine-storage/moraine/drivers/block"
)

// Submit takes a client's operation.
func (c *Core) Submit(now time.Duration, o *Op) {
	c.now = now
	o.arrived, o.confirm = now, c.leaseSeq
	switch {
	case c.over != nil:
		err := c.over
		if err == ErrDetached {
			err = block.ErrClosed
		}
		c.complete(o, err)
	case c.holding > 0 || !c.opened:
		c.held.push(o)
	default:
		c.admit(o)
		if len(c.granted) > 0 {
			c.pump()
		}
	}
}

// admit checks an operation and asks for its lock.
func (c *Core) admit(o *Op) {
	if o.Kind == block.OpFlush {
		c.issueFlush(o)
		return
	}
	if o.Off < 0 || o.Len < 0 || o.Off > c.size || o.Len > c.size-o.Off {
		c.answer(o, block.ErrInvalid)
		return
	}
	if o.Kind == block.OpTrim {
		end := (o.Off + o.Len) / c.cfg.Grain * c.cfg.Grain
		if o.Off+o.Len == c.size {
			end = c.size
		}
		o.Off = (o.Off + c.cfg.Grain - 1) / c.cfg.Grain * c.cfg.Grain
		o.Len = max(0, end-o.Off)
	}
	if o.Len == 0 || o.Kind == block.OpCache {
		c.answer(o, nil)
		return
	}
	if c.inReconcile(o) {
		o.moveTo(&c.parked)
		return
	}
	o.lock.Start = o.Off / c.cfg.BlockSize * c.cfg.BlockSize
	o.lock.End = (o.Off + o.Len + c.cfg.BlockSize - 1) / c.cfg.BlockSize * c.cfg.BlockSize
	o.lock.Exclusive = o.Kind != block.OpRead
	c.lock(o)
}

func (c *Core) lock(o *Op) {
	if c.mut == MutReadsUnlocked && o.Kind == block.OpRead {
		c.startRead(o)
		return
	}
	o.locked = true
	if c.locks.Acquire(&o.lock) {
		c.start(o)
		return
	}
	o.moveTo(&c.waiting)
}

func (c *Core) unlock(o *Op) {
	if o.locked {
		o.locked = false
		c.granted = c.locks.Release(&o.lock, c.granted)
	}
}

// answer ends an operation of which nothing was sent.
func (c *Core) answer(o *Op, err error) {
	o.unlist()
	o.acked = true
	c.complete(o, err)
}

// start runs an operation whose lock was granted.
func (c *Core) start(o *Op) {
	switch {
	case o.role == roleCopy:
		c.copyStart(o)
	case c.inReconcile(o): // the set grew while it waited
		c.unlock(o)
		o.moveTo(&c.parked)
	case o.Kind == block.OpRead:
		c.startRead(o)
	default:
		c.issueWrite(o)
	}
}

func (c *Core) issue(o *Op) {
	c.opID++
	o.id, o.issued = c.opID, c.now
	o.unlist()
	c.issued.push(o)
}

// send hands o to each of set.
func (c *Core) send(o *Op, do block.Op, set Set) {
	o.out |= set
	for set != 0 {
		m := set.first()
		set &^= bit(m)
		c.fx = append(c.fx, Effect{Kind: Send, Member: m, Do: do, Op: o})
	}
}

func (c *Core) issueWrite(o *Op) {
	if c.flushErr != nil && o.Flags&block.FUA != 0 {
		c.unlock(o)
		c.answer(o, c.flushErr)
		return
	}
	o.stage = stageWrite
	c.issue(o)
	c.touch(o)
	targets := c.need
	if t := c.syncSet &^ c.need; t != 0 {
		targets |= c.syncTargets(o, t)
	}
	o.wait = targets
	c.send(o, o.Kind, targets&^c.failed)
}

// syncTargets are those of t that get a write: the ones for which all its
// regions are outside todo. A write that is partly inside puts all its
// regions back.
func (c *Core) syncTargets(o *Op, t Set) Set {
	if c.rs == nil {
		return 0
	}
	first, last := c.span(o)
	in, out := false, false
	for i := first; i <= last; i++ {
		if c.rs.todo.has(i) {
			in = true
		} else {
			out = true
		}
	}
	if c.mut == MutWriteIntoTodo {
		for i := first; i <= last; i++ {
			c.rs.todo.clear(i)
		}
		return t
	}
	if !in {
		return t
	}
	if out {
		c.steps.MixedToTodo++
		for i := first; i <= last; i++ {
			c.rs.todo.set(i)
		}
	}
	return 0
}

func (c *Core) issueFlush(o *Op) {
	if c.flushErr != nil {
		c.answer(o, c.flushErr)
		return
	}
	o.stage = stageWrite
	c.issue(o)
	o.seq = c.seq
	o.wait = c.need
	c.send(o, block.OpFlush, c.need&^c.failed&^c.notDrained())
}

// flushMembers makes the mirror flush some members for itself.
func (c *Core) flushMembers(set Set, after func(ok Set)) {
	o := c.NewOp()
	o.Kind, o.role, o.after = block.OpFlush, roleFlush, after
	o.stage = stageWrite
	c.issue(o)
	o.seq = c.seq
	o.wait = set
	c.send(o, block.OpFlush, set&^c.failed)
	if o.out == 0 {
		c.settle(o)
	}
}

// Done says that a Send has ended on a member. The member holds no reference
// to the buffer any more.
func (c *Core) Done(now time.Duration, o *Op, m uint8, err error) {
	c.now = now
	b := bit(m)
	o.out &^= b
	switch {
	case c.over != nil:
		if o.out == 0 && o.acked {
			o.unlist()
			c.emit(Effect{Kind: Release, Op: o, Final: true})
		}
		return
	case o.stage == stageRead:
		c.readDone(o, m, err)
	default:
		if c.failed&b == 0 && o.wait&b != 0 {
			if err == nil {
				o.wait &^= b
				o.okay |= b
				if o.Kind == block.OpFlush && c.members[m].flushed < o.seq {
					c.members[m].flushed = o.seq
				}
			} else {
				c.writeFailed(o, m, err)
			}
		}
		c.settle(o)
	}
	if len(c.granted) > 0 || c.failed != 0 || c.rs != nil || c.todoRec.n > 0 || c.cleaner.active || len(c.work) > 0 {
		c.pump()
	}
}

func isLost(err error) bool {
	return errors.Is(err, ErrLost) || errors.Is(err, block.ErrTimeout) || errors.Is(err, block.ErrClosed) || errors.Is(err, block.ErrFenced)
}

// writeFailed: member m, of Z and not failed, answered o with an error.
func (c *Core) writeFailed(o *Op, m uint8, err error) {
	last := c.live() == bit(m)
	switch {
	case isLost(err) || !c.need.Has(m) || o.role == roleCopy:
		c.fail(m) // what is copied the source has: who lacks it leaves
	case errors.Is(err, block.ErrNoSpace) && o.Kind != block.OpFlush:
		o.nospc |= bit(m)
	case last: // 3.3: it never leaves; the error is the client's
		if o.Kind == block.OpFlush || o.Flags&block.FUA != 0 {
			c.steps.FlushErrors++
			c.flushErr = err
		}
		o.err = err
		o.wait &^= bit(m)
	default:
		if o.Kind == block.OpFlush {
			c.steps.FlushErrors++
		}
		c.fail(m)
	}
}

// noSpace decides once all live members have answered: those without space
// leave when another has done it, else it is the client's error.
func (c *Core) noSpace(o *Op) {
	live := c.live()
	if o.wait&^o.nospc&live != 0 {
		return
	}
	short := o.nospc & live
	o.nospc = 0
	if o.okay&live != 0 {
		for s := short; s != 0; {
			m := s.first()
			s &^= bit(m)
			c.fail(m)
		}
		return
	}
	if short != 0 {
		c.steps.NoSpaceAll++
		o.err = block.ErrNoSpace
		o.wait &^= short
	}
}

// settle moves a write, a flush or a copy on after something ended.
func (c *Core) settle(o *Op) {
	if o.stage != stageWrite || o.list != &c.issued {
		return
	}
	if o.nospc != 0 {
		c.noSpace(o)
		if o.list != &c.issued { // settled by the failure of a member
			return
		}
	}
	switch o.role {
	case roleCopy:
		if o.wait == 0 && o.out == 0 {
			c.copyWritten(o)
		}
		return
	case roleFlush:
		if o.wait&^c.failed == 0 && !o.acked {
			o.acked = true
			o.wait = 0
			o.after(o.okay &^ c.failed)
		}
		if o.acked && o.out == 0 && o.list != nil {
			o.unlist()
			c.emit(Effect{Kind: Release, Op: o, Final: true})
		}
		return
	}
	ack := !o.acked && c.acknowledged(o)
	if o.wait == 0 || ack && c.mut == MutUnlockAtAck {
		c.finishWrite(o)
	}
	done := o.wait == 0 && o.out == 0
	if ack {
		o.acked = true
	}
	if done && o.acked {
		o.unlist()
	}
	switch {
	case ack:
		c.fx = append(c.fx, Effect{Kind: Complete, Op: o, Err: o.err, Final: done})
	case done && o.acked:
		c.fx = append(c.fx, Effect{Kind: Release, Op: o, Final: true})
	}
}

// acknowledged is the rule of 3.2, as need stands at this moment, with as many
// copies as min_in_sync asks for.
func (c *Core) acknowledged(o *Op) bool {
	if c.mut == MutAckBeforeRecord {
		return o.wait&c.need&^c.failed == 0
	}
	return o.wait&c.need == 0 && (c.need.Len() >= c.cfg.MinInSync || o.err != nil)
}

// finishWrite: every member it was sent to has completed it or has left Z.
func (c *Core) finishWrite(o *Op) {
	if !o.locked {
		return
	}
	if o.err != nil {
		// 3.3: an error may have left members different; they are made equal
		// before anyone sees the range again. One that is being caught up
		// gets the regions anew.
		first, last := c.span(o)
		for i := first; i <= last; i++ {
			if c.need.Len() > 1 {
				c.todoRec.set(i)
			}
			if c.syncSet&^c.need != 0 {
				c.rs.todo.set(i)
			}
		}
	}
	c.untouch(o)
	c.unlock(o)
}
