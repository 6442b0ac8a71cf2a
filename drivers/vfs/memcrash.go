package vfs

import (
	"math/rand/v2"
	"sort"
)

// Kill returns the disk as it is after the death of the process alone: every
// operation that returned is there, synced or not, and stays unsynced.
func (m *Mem) Kill() *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.cloneLocked(func(old, c *inode) {
		c.now = make(map[int64]*[memPage]byte, len(old.now))
		for i, p := range old.now {
			if p != old.durable[i] { // may still be written by the old disk
				cp := *p
				p = &cp
			}
			c.now[i] = p
		}
		c.size = old.size
		c.log = append([]fileOp(nil), old.log...)
	}, len(m.pending), true)
}

// PowerCut returns the disk as it may be after a power cut: of each file what
// was synced, and of each later operation each sector or nothing, or all of
// it, as r says; of the directories a prefix of what was not synced.
func (m *Mem) PowerCut(r *rand.Rand) *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	mood := r.IntN(4) // whole disks that keep all or nothing happen too
	return m.cloneLocked(func(old, c *inode) {
		fileMood := mood
		if r.IntN(3) == 0 {
			fileMood = r.IntN(4)
		}
		for _, op := range old.log {
			op.survive(c, r, fileMood)
		}
		c.durable = copyPages(c.now)
		c.durableSize = c.size
	}, r.IntN(len(m.pending)+1), false)
}

// cloneLocked copies the disk; fill brings a fresh copy of an inode (holding
// the durable state) to what it shall hold.
func (m *Mem) cloneLocked(fill func(old, c *inode), dirOps int, keepPending bool) *Mem {
	out := NewMem(m.cap)
	out.diskSeq, out.memory = m.diskSeq, m.memory
	for d := range m.dirs {
		out.dirs[d] = true
	}
	copies := map[*inode]*inode{}
	dup := func(n *inode) *inode {
		if n == nil {
			return nil
		}
		if c := copies[n]; c != nil {
			return c
		}
		c := &inode{now: copyPages(n.durable), durable: copyPages(n.durable), size: n.durableSize, durableSize: n.durableSize}
		fill(n, c)
		copies[n] = c
		return c
	}
	dupNames := func(names map[string]*inode) map[string]*inode {
		keys := make([]string, 0, len(names))
		for k := range names {
			keys = append(keys, k)
		}
		sort.Strings(keys) // the order decides which random numbers a file gets
		o := make(map[string]*inode, len(names))
		for _, k := range keys {
			o[k] = dup(names[k])
		}
		return o
	}
	out.durable = dupNames(m.durable)
	if keepPending {
		out.names = dupNames(m.names)
		for _, op := range m.pending {
			op.node = dup(op.node)
			out.pending = append(out.pending, op)
		}
		return out
	}
	for _, op := range m.pending[:dirOps] {
		op.node = dup(op.node)
		op.apply(out.durable)
	}
	out.names = make(map[string]*inode, len(out.durable))
	for k, n := range out.durable {
		out.names[k] = n
	}
	return out
}

// survive applies what is left of one unsynced operation.
func (op fileOp) survive(c *inode, r *rand.Rand, mood int) {
	switch mood {
	case 0: // this file kept everything
		op.apply(c)
		return
	case 1: // and this one nothing
		return
	}
	switch r.IntN(3) {
	case 0:
		op.apply(c)
		return
	case 1:
		return
	}
	if op.kind == OpTruncate || op.kind == OpAllocate {
		op.apply(c)
		return
	}
	for off := op.off; off < op.off+op.len; {
		end := min((off/memSector+1)*memSector, op.off+op.len)
		if r.IntN(2) == 0 {
			part := fileOp{kind: op.kind, off: off, len: end - off}
			if op.kind == OpWrite {
				part.data = op.data[off-op.off : end-op.off]
			}
			part.apply(c)
		}
		off = end
	}
}

func (op fileOp) apply(n *inode) {
	switch op.kind {
	case OpWrite:
		n.write(op.data, op.off)
	case OpPunch:
		n.punch(op.off, op.len)
	case OpTruncate:
		n.truncate(op.off)
	}
}
