package sim

import (
	"slices"

	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/replication"
)

// control executes a message of section 2.
func (r *replica) control(c *replication.Control, from *node, reply func(replication.Reply)) {
	refuse := replication.Reply{Err: block.ErrFenced, Promised: r.promised}
	life := r.life
	after := func(fn func()) {
		r.w.after(r.disk(), func() {
			if r.life == life {
				r.n.whenAwake(func() {
					if r.life == life {
						fn()
					}
				})
			}
		})
	}
	if c.Kind == replication.AskPromote {
		r.promote(c, from, after, reply)
		return
	}
	if !r.inGate(c.Promised.Session, c.Gate) {
		reply(refuse)
		return
	}
	// A control operation is inside the gate until it ends.
	run := &running{sess: c.Promised.Session}
	r.runs = append(r.runs, run)
	after(func() {
		r.runs = slices.DeleteFunc(r.runs, func(x *running) bool { return x == run })
		reply(r.inside(c))
	})
}

func (r *replica) inside(c *replication.Control) replication.Reply {
	switch c.Kind {
	case replication.AskLease:
		end := r.n.clock() + c.Lease
		if end > r.grantEnd {
			r.grantEnd, r.whose = end, c.Promised.Session
		}
		r.leaseMax = max(r.leaseMax, c.Lease)
	case replication.AskAdvance:
		if c.Promised.Epoch.N < r.promised.Epoch.N {
			return replication.Reply{Err: block.ErrFenced, Promised: r.promised}
		}
		r.setPromise(c.Promised, c.Record)
	case replication.AskClean:
		l := r.layer(c.Layer)
		r.w.log("%s: clean %v %v", r.id, c.Regions, c.Stamp)
		for _, g := range c.Regions {
			l.dirty[g], l.stamp[g] = false, c.Stamp
		}
		r.logged = append(r.logged, cleaned{c.Layer, c.Regions, c.Stamp})
	case replication.AskState:
		l := r.layer(c.Layer)
		if l == nil {
			return replication.Reply{Err: block.ErrIO}
		}
		a := replication.Reply{Size: l.size}
		for g := range l.dirty {
			if l.dirty[g] || l.stamp[g] != (replication.Stamp{}) {
				a.States = append(a.States, replication.RegionState{Region: uint32(g), Dirty: l.dirty[g], Stamp: l.stamp[g]})
			}
		}
		return a
	case replication.AskGrow:
		r.sync()
		r.sizeD = max(r.sizeD, c.Size)
	case replication.AskFreeze:
		if r.layer(c.Layer) == nil {
			r.sync()
			l := r.top.clone(c.Layer)
			l.size = r.sizeD
			r.frozen = append(r.frozen, l)
			r.top.dirty, r.top.dirtyD = [maxRegions]bool{}, [maxRegions]bool{}
		}
	case replication.AskThaw, replication.AskDrop:
		r.drop(c.Layer)
	}
	return replication.Reply{}
}

// drop merges a layer upwards: what was dirty in it is dirty above.
func (r *replica) drop(id snapID) {
	k := slices.IndexFunc(r.frozen, func(l *layer) bool { return l.id == id })
	if k < 0 {
		return
	}
	r.sync()
	above := r.top
	if k+1 < len(r.frozen) {
		above = r.frozen[k+1]
	}
	for g := range above.dirty {
		above.dirty[g] = above.dirty[g] || r.frozen[k].dirty[g]
		above.dirtyD[g] = above.dirtyD[g] || r.frozen[k].dirtyD[g]
	}
	r.frozen = slices.Delete(r.frozen, k, k+1)
}

func (r *replica) setPromise(p replication.Promised, rec *replication.Record) {
	if p.Epoch.N < r.ever.Epoch.N || p.Epoch.N == r.ever.Epoch.N && p != r.ever {
		r.w.fail("I-EPOCH: replica %s: promise falls from %d to %d", r.id, r.ever.Epoch.N, p.Epoch.N)
	}
	r.ever = p
	r.sync()
	r.promised, r.record = p, rec
	if r.w.opt.Fault != FaultPromiseNotSynced {
		r.promisedD, r.recordD = p, rec
	}
}

func (r *replica) promote(c *replication.Control, from *node, after func(func()), reply func(replication.Reply)) {
	p := r.promised
	stale := p == c.Promised && r.sess == p.Session && c.Gate <= r.gate
	if r.sess == c.Promised.Session && c.Gate <= r.gate && r.w.opt.Fault != FaultNoGateNumber {
		stale = true
	}
	if c.Promised.Epoch.N < p.Epoch.N || c.Promised.Epoch.N == p.Epoch.N && c.Promised != p || stale && r.w.opt.Fault != FaultNoGateNumber {
		reply(replication.Reply{Err: block.ErrFenced, Promised: p})
		return
	}
	r.open = false
	r.w.log("%s: promote by %x gate %d, %d running", r.id, c.Promised.Session[:2], c.Gate, len(r.runs))
	r.sess, r.gate = c.Promised.Session, c.Gate
	var drained func()
	deadline := r.w.now + c.Timeout
	drained = func() {
		if r.sess != c.Promised.Session || r.gate != c.Gate {
			return // another PROMOTE came
		}
		same := r.promised.Session == c.Promised.Session && r.w.opt.Fault == FaultNoDrainSame
		if len(r.runs) > 0 && r.w.opt.Fault != FaultNoDrain && !same {
			if r.w.now < deadline {
				after(drained)
			}
			return
		}
		old := r.promised
		if c.Promised.Epoch.N < old.Epoch.N {
			return
		}
		oldRec := r.record
		r.setPromise(c.Promised, c.Record)
		r.open = true
		a := replication.Reply{Promised: old, Record: oldRec, LossID: r.lossID, Size: r.sizeD,
			Remaining: max(0, r.grantEnd-r.n.clock()), OwnGrant: from.dead[r.whose]}
		if r.w.opt.Fault == FaultGrantReset {
			a.Remaining, r.grantEnd = 0, 0
		}
		for _, l := range r.frozen {
			a.Layers = append(a.Layers, l.id)
		}
		reply(a)
	}
	after(drained)
}
