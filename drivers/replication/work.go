package replication

import (
	"slices"
	"time"

	"github.com/moraine-storage/moraine/drivers/block"
)

type jobKind uint8

const (
	jobSnapshot jobKind = iota
	jobThaw             // of a snapshot that an earlier session left half made
	jobDropSnapshot
	jobResize
	jobDetach
)

// workStep of a volumeJob.
type workStep uint8

const (
	stepBegin   workStep = iota
	stepRecord           // the record says what is going to happen
	stepHold             // wait for what runs
	stepClean            // flush and clean all
	stepMembers          // every member of need does it
	stepFinal            // the record says that it happened
	stepUndo             // members take it back
	stepForget           // the record forgets it
)

// volumeJob changes the whole volume (4.5). One runs at a time.
type volumeJob struct {
	kind     jobKind
	number   uint64
	id       SnapshotID
	size     int64
	step     workStep
	held     bool
	asked    Set
	done     Set
	deadline time.Duration
	flushed  bool
}

func (c *Core) addJob(now time.Duration, w *volumeJob) (uint64, error) {
	c.now = now
	if c.over != nil || !c.opened {
		return 0, ErrBusy
	}
	if k := len(c.work); k > 0 && c.work[k-1].kind == jobDetach {
		return 0, ErrBusy
	}
	c.workSeq++
	w.number = c.workSeq
	c.work = append(c.work, w)
	c.pump()
	return w.number, nil
}

// Snapshot freezes the volume under id. Finished follows with the number.
func (c *Core) Snapshot(now time.Duration, id SnapshotID) (uint64, error) {
	return c.addJob(now, &volumeJob{kind: jobSnapshot, id: id})
}

// DropSnapshot deletes a snapshot from the record and from all members.
func (c *Core) DropSnapshot(now time.Duration, id SnapshotID) (uint64, error) {
	return c.addJob(now, &volumeJob{kind: jobDropSnapshot, id: id})
}

// Resize grows the volume to size bytes.
func (c *Core) Resize(now time.Duration, size int64) (uint64, error) {
	if size < c.size || size%c.cfg.BlockSize != 0 {
		return 0, block.ErrInvalid
	}
	return c.addJob(now, &volumeJob{kind: jobResize, size: size})
}

// Detach ends the session; the device is gone already. Over with ErrDetached follows.
func (c *Core) Detach(now time.Duration) (uint64, error) {
	return c.addJob(now, &volumeJob{kind: jobDetach})
}

func (c *Core) detaching() bool {
	return len(c.work) > 0 && c.work[0].kind == jobDetach && c.work[0].step == stepFinal
}

// workStep drives the first job one step on.
func (c *Core) workStep() {
	if len(c.work) == 0 || c.serving == 0 {
		return
	}
	w := c.work[0]
	if w.kind == jobSnapshot && (w.step == stepHold || w.step == stepClean || w.step == stepMembers) && w.deadline != 0 && c.now > w.deadline {
		c.snapshotUndo(w)
	}
	switch w.step {
	case stepBegin:
		c.workBegin(w)
	case stepRecord, stepFinal, stepForget:
		c.change.wanted = true
		c.propose()
	case stepHold:
		if c.idle() {
			w.step = stepClean
			w.flushed = false
			c.workClean(w)
		}
	case stepClean:
		c.workClean(w)
	case stepMembers:
		c.workMembers(w, w.message())
	case stepUndo:
		c.workMembers(w, Control{Kind: AskThaw, Layer: w.id})
	}
}

// workBegin: a member that is caught up leaves and starts anew afterwards.
func (c *Core) workBegin(w *volumeJob) {
	c.abortResync("volume job")
	if c.rs != nil {
		return // it may be joining: first that is known
	}
	switch w.kind {
	case jobThaw:
		w.step = stepUndo
	case jobResize:
		w.step = stepMembers
	case jobDropSnapshot:
		w.step = stepRecord
		if s := c.rec.snapshot(w.id); s == nil {
			c.workEnd(nil)
		} else if s.State == Deleting {
			w.step = stepMembers
		}
	default:
		if c.todoRec.n > 0 {
			return // members may differ there: first that
		}
		if w.kind == jobDetach {
			c.hold(w)
			return
		}
		switch s := c.rec.snapshot(w.id); {
		case s == nil:
			w.step = stepRecord
		case s.State == Ready:
			c.workEnd(nil)
		default:
			c.workEnd(ErrAborted)
		}
	}
}

func (c *Core) hold(w *volumeJob) {
	w.step, w.held = stepHold, true
	w.deadline = c.now + c.cfg.HoldDeadline/2
	c.holding++
}

func (c *Core) unhold(w *volumeJob) {
	if w.held {
		w.held = false
		c.holding--
		c.releaseHeld()
	}
}

// idle: nothing is under way on the members, and they are the recorded set.
func (c *Core) idle() bool {
	return c.issued.n == 0 && c.waiting.n == 0 && c.unlease.n == 0 && c.stalled.n == 0 && c.parked.n == 0 && c.jobs == 0 && c.todoRec.n == 0 &&
		!c.cleaner.active && !c.cleaner.flushing && c.settled()
}

func (c *Core) settled() bool {
	return c.failed == 0 && c.serving == c.need && c.maybe == 0 && c.need == c.inSync(&c.rec)
}

// workClean makes everything durable and clean under the hold, so that a
// frozen layer is clean from birth and equal by its stamps.
func (c *Core) workClean(w *volumeJob) {
	switch {
	case !c.settled() || c.cleaner.active || c.cleaner.flushing || c.issued.n > 0:
	case c.flushErr != nil && w.kind == jobDetach:
		w.step = stepFinal // without the word clean
		c.change.wanted = true
		c.propose()
	case len(c.dirtyQ) > 0, c.copiedLeft() > 0:
		c.cleaner.nextAt = 0
	case !w.flushed && w.kind == jobDetach:
		need := c.need
		c.flushMembers(need, func(ok Set) { w.flushed = ok == need })
	case w.kind == jobDetach:
		w.step = stepFinal
		c.change.wanted = true
		c.propose()
	default:
		w.step, w.asked, w.done = stepMembers, 0, 0
		c.workMembers(w, w.message())
	}
}

func (w *volumeJob) message() Control {
	switch w.kind {
	case jobSnapshot:
		return Control{Kind: AskFreeze, Layer: w.id}
	case jobResize:
		return Control{Kind: AskGrow, Size: w.size}
	}
	return Control{Kind: AskDrop, Layer: w.id}
}

// workMembers asks every member of need; one that fails leaves first.
func (c *Core) workMembers(w *volumeJob, ctl Control) {
	step := w.step
	for s := c.need &^ c.failed &^ w.asked; s != 0; {
		m := s.first()
		s &^= bit(m)
		w.asked |= bit(m)
		c.ask(m, ctl, func(r Reply) {
			if w.step != step {
				return
			}
			if r.Err != nil {
				w.asked &^= bit(m)
				c.fail(m)
				return
			}
			w.done |= bit(m)
		})
	}
	w.asked &= c.need &^ c.failed
	w.done &= w.asked
	if w.done != c.need || !c.settled() {
		return
	}
	if w.step == stepUndo {
		c.steps.Thawed++
		w.step = stepForget
	} else {
		w.step = stepFinal
	}
	c.change.wanted = true
	c.propose()
}

// snapshotUndo: it took too long. Writers go on, the layer is merged back.
func (c *Core) snapshotUndo(w *volumeJob) {
	c.steps.SnapshotsAborted++
	c.unhold(w)
	w.step, w.asked, w.done = stepUndo, 0, 0
}

// workPropose puts the job's change into the next record.
func (c *Core) workPropose(w *volumeJob, next *Record) bool {
	s := next.snapshot(w.id)
	switch w.step {
	case stepRecord:
		if w.kind == jobDropSnapshot && s != nil {
			s.State = Deleting
		} else if w.kind == jobSnapshot && s == nil {
			next.Snapshots = append(next.Snapshots, Snapshot{w.id, Creating})
		}
		return true
	case stepForget:
		next.Snapshots = slices.DeleteFunc(next.Snapshots, func(x Snapshot) bool { return x.ID == w.id })
		return true
	case stepFinal:
		switch w.kind {
		case jobSnapshot:
			if c.inSync(next)&^w.done != 0 || c.need&^w.done != 0 || s == nil {
				return false // someone failed: it leaves first
			}
			s.State = Ready
		case jobDropSnapshot:
			next.Snapshots = slices.DeleteFunc(next.Snapshots, func(x Snapshot) bool { return x.ID == w.id })
		case jobResize:
			next.Size = w.size
		case jobDetach:
			next.Primary = Primary{}
			next.Clean = w.flushed
			c.nextEpoch(next)
		}
		return true
	}
	return false
}

// workKnown looks whether the record that is stored has the job's change.
func (c *Core) workKnown() {
	if len(c.work) == 0 {
		return
	}
	w := c.work[0]
	s := c.rec.snapshot(w.id)
	switch w.step {
	case stepRecord:
		switch {
		case w.kind == jobSnapshot && s != nil:
			if c.mut == MutFreezeNoHold {
				w.step = stepMembers
				return
			}
			c.hold(w)
		case w.kind == jobDropSnapshot && s != nil && s.State == Deleting:
			w.step = stepMembers
		}
	case stepForget:
		if s == nil {
			err := error(nil)
			if w.kind == jobSnapshot {
				err = ErrAborted
			}
			c.workEnd(err)
		}
	case stepFinal:
		switch w.kind {
		case jobSnapshot:
			if s != nil && s.State == Ready {
				c.steps.Snapshots++
				c.workEnd(nil)
			}
		case jobDropSnapshot:
			if s == nil {
				c.steps.SnapshotsDropped++
				c.workEnd(nil)
			}
		case jobResize:
			if c.rec.Size == w.size {
				c.steps.Resized++
				c.size = w.size
				c.workEnd(nil)
			}
		}
	}
}

func (c *Core) workEnd(err error) {
	w := c.work[0]
	c.work = c.work[1:]
	c.unhold(w)
	c.emit(Effect{Kind: Finished, Job: w.number, Err: err})
}
