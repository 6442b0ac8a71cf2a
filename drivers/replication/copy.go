package replication

import (
	"github.com/moraine-storage/moraine/drivers/block"
)

type copyKind uint8

const (
	copyReconcile copyKind = iota // region, from one of the set to the others (4.3)
	copyResync                    // region, to the member that is caught up (4.4.5)
	copyLayer                     // region of a frozen layer, to the same (4.4.3)
	copyRepair                    // what a client reads, to members that could not read it
)

// copyJob is the progress of an op with roleCopy.
type copyJob struct {
	kind    copyKind
	region  uint32
	off     int64 // next byte
	end     int64
	src     uint8
	tried   Set // sources that could not read it
	targets Set
	rs      *resync
}

// do is how the data in hand goes to the targets: holes are freed there.
func (j *copyJob) do(o *Op) block.Op {
	if o.Hole {
		return block.OpZero
	}
	return block.OpWrite
}

// startCopy begins a copy of a region.
func (c *Core) startCopy(kind copyKind, region uint32, layer SnapshotID, size int64) {
	o := c.NewOp()
	off := int64(region) * c.cfg.RegionSize
	o.role, o.Kind, o.Layer = roleCopy, block.OpWrite, layer
	o.job = &copyJob{kind: kind, region: region, off: off, end: min(off+c.cfg.RegionSize, size), rs: c.rs}
	c.jobs++
	if kind == copyLayer {
		c.copyStart(o)
		return
	}
	c.copying.set(region)
	o.lock.Start, o.lock.End, o.lock.Exclusive = off, off+c.cfg.RegionSize, true
	c.lock(o)
}

// copyStart: the lock is granted.
func (c *Core) copyStart(o *Op) {
	j := o.job
	o.arrived = c.now
	if j.kind == copyReconcile {
		c.markDirty(j.region).inflight++
	}
	c.copyNext(o)
}

func (c *Core) copyWanted(j *copyJob) bool {
	switch j.kind {
	case copyReconcile:
		return c.todoRec.has(j.region)
	case copyResync:
		return c.rs == j.rs && j.rs != nil && c.syncSet.Has(j.rs.m)
	}
	return c.rs == j.rs && j.rs != nil && j.rs.promoted
}

// copyNext reads the next piece.
func (c *Core) copyNext(o *Op) {
	j := o.job
	if j.off >= j.end || !c.copyWanted(j) {
		c.copyEnd(o, j.off >= j.end)
		return
	}
	set := c.serving & c.need &^ c.failed &^ j.tried
	if set == 0 {
		c.copyEnd(o, false)
		return
	}
	j.src = set.first()
	if c.localSlot < MaxMembers && set.Has(c.localSlot) {
		j.src = c.localSlot
	}
	o.Off, o.Len = j.off, min(c.cfg.CopyChunk, j.end-j.off)
	o.Hole, o.wait, o.okay = false, 0, 0
	o.stage = stageRead
	c.issue(o)
	c.send(o, block.OpRead, bit(j.src))
}

// copyRead: the source has answered.
func (c *Core) copyRead(o *Op, m uint8, err error) {
	j := o.job
	switch {
	case err != nil && isLost(err):
		c.fail(m)
		c.copyNext(o)
		return
	case err != nil:
		j.tried |= bit(m)
		c.copyNext(o)
		return
	case c.failed.Has(m) || !c.serving.Has(m) || !c.copyWanted(j):
		c.copyNext(o)
		return
	}
	targets := c.need &^ bit(m)
	if j.kind != copyReconcile {
		targets = bit(j.rs.m)
	}
	if o.Hole {
		c.steps.HolesCopied++
		if c.mut == MutHoleSkipped {
			targets = 0
		}
	}
	o.stage, o.wait = stageWrite, targets
	c.send(o, j.do(o), targets&^c.failed)
	c.settle(o)
}

// copyWritten: all targets have it, or have left.
func (c *Core) copyWritten(o *Op) {
	j := o.job
	if j.kind == copyRepair {
		o.role, o.job = roleClient, nil
		c.untouch(o)
		c.finishRead(o)
		return
	}
	j.off += o.Len
	c.copyNext(o)
}

// copyEnd ends the job; its lock is freed.
func (c *Core) copyEnd(o *Op, ok bool) {
	j := o.job
	wanted := c.copyWanted(j)
	o.stage, o.wait = stageIdle, 0
	c.jobs--
	if j.kind != copyLayer {
		c.copying.clear(j.region)
		c.seq++
		c.regions.at(j.region).lastDone = c.seq
	}
	switch {
	case j.kind == copyReconcile:
		c.regions.at(j.region).inflight--
		if ok {
			c.steps.Reconciled++
			c.todoRec.clear(j.region)
		} else {
			c.recRetry = c.now + c.cfg.RetryEvery
		}
	case !wanted:
	case !ok:
		c.abortResync("no source could be read")
	case j.kind == copyResync:
		c.steps.RegionsCopied++
		c.rs.todo.clear(j.region)
		c.members[c.rs.m].copied.set(j.region)
	default:
		c.rs.copied(c, j.region)
	}
	c.unlock(o)
	o.acked = true
	o.unlist()
	c.emit(Effect{Kind: Release, Op: o, Final: true})
	if j.kind == copyReconcile && ok {
		c.unpark()
	}
}

// reconcileMore starts copies of the reconcile set, first of what I/O waits for.
func (c *Core) reconcileMore() {
	if c.todoRec.n == 0 {
		if c.parked.n > 0 {
			c.unpark()
		}
		return
	}
	if c.serving == 0 {
		return
	}
	for c.jobs < c.cfg.CopyJobs && c.over == nil && c.now >= c.recRetry {
		i, ok := c.nextReconcile()
		if !ok {
			return
		}
		c.startCopy(copyReconcile, i, SnapshotID{}, c.size)
	}
}

func (c *Core) nextReconcile() (uint32, bool) {
	for len(c.urgent) > 0 {
		i := c.urgent[len(c.urgent)-1]
		c.urgent = c.urgent[:len(c.urgent)-1]
		if c.todoRec.has(i) && !c.copying.has(i) {
			return i, true
		}
	}
	for range 2 {
		for i, ok := c.todoRec.next(c.recAt); ok; i, ok = c.todoRec.next(i + 1) {
			if !c.copying.has(i) {
				c.recAt = i + 1
				return i, true
			}
		}
		c.recAt = 0
	}
	return 0, false
}
