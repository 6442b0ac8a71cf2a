// Package rangelock orders operations on byte ranges: reads are shared,
// everything else is exclusive, and conflicting locks are granted in the order
// in which they were asked for (REPLICATION 3.1, S7).
//
// A Table is plain data of one goroutine: no mutex, no waiting, no allocation.
// A lock that cannot be granted at once is granted by the Release of the last
// lock before it that conflicts; Release tells which.
//
//	if t.Acquire(&l) { run(l) }            // now, or
//	granted = t.Release(&l, granted[:0])   // later: run each of granted
//
// How it works: each Lock is a node of a treap keyed by (Start, arrival) and
// augmented with the greatest End below it. A lock counts the conflicting
// locks that are in the table when it arrives; each of those, when released,
// takes one off the count of every later lock that it conflicts with. So a
// lock is granted exactly when all that came before it and conflict are gone,
// and nobody starves. Both operations cost O(log n + conflicts).
//
// Invariants: (1) waits of a lock = number of locks in the table that arrived
// before it and conflict with it; (2) every node's max is the greatest End in
// its subtree; (3) heap order of prio.
package rangelock

// Lock is one range, owned by the caller and reused freely between Release and
// the next Acquire. The zero range (Start == End) conflicts with nothing.
type Lock struct {
	Start, End int64 // bytes, [Start, End)
	Exclusive  bool
	// Owner is the caller's own.
	Owner any

	left, right *Lock
	max         int64  // greatest End in this subtree
	seq         uint64 // order of arrival
	prio        uint32
	waits       int32 // conflicting locks ahead of this one
	held        bool  // in the table
}

// Granted says whether l is in a table and waits for nothing.
func (l *Lock) Granted() bool { return l.held && l.waits == 0 }

// Table is a set of locks. The zero value is ready.
type Table struct {
	root *Lock
	n    int
	seq  uint64
	rnd  uint32
}

// Len is the number of locks in the table, waiting ones included.
func (t *Table) Len() int { return t.n }

// Acquire enters l and says whether it is granted at once. It panics when l is
// in a table already or its range is reversed: both are mistakes of the caller.
func (t *Table) Acquire(l *Lock) bool {
	if l.held || l.Start > l.End {
		panic("rangelock: acquire of a held or reversed lock")
	}
	if t.rnd == 0 {
		t.rnd = 0x9e3779b9
	}
	t.rnd ^= t.rnd << 13
	t.rnd ^= t.rnd >> 17
	t.rnd ^= t.rnd << 5
	t.seq++
	l.seq, l.prio, l.held = t.seq, t.rnd, true
	l.left, l.right, l.max = nil, nil, l.End
	l.waits = countConflicts(t.root, l)
	t.root = insert(t.root, l)
	t.n++
	return l.waits == 0
}

// Release takes l out, granted or not, and appends to dst the locks that are
// granted by it, in no particular order of arrival (they do not conflict with
// one another, or they are all shared).
func (t *Table) Release(l *Lock, dst []*Lock) []*Lock {
	if !l.held {
		panic("rangelock: release of a lock that is not held")
	}
	t.root = remove(t.root, l)
	t.n--
	l.held, l.left, l.right = false, nil, nil
	if t.root == nil {
		return dst
	}
	return unblock(t.root, l, dst)
}

func (l *Lock) conflicts(o *Lock) bool {
	return max(l.Start, o.Start) < min(l.End, o.End) && (l.Exclusive || o.Exclusive)
}

func (l *Lock) before(o *Lock) bool {
	return l.Start < o.Start || l.Start == o.Start && l.seq < o.seq
}

func (l *Lock) update() {
	m := l.End
	if l.left != nil && l.left.max > m {
		m = l.left.max
	}
	if l.right != nil && l.right.max > m {
		m = l.right.max
	}
	l.max = m
}

func countConflicts(n, l *Lock) int32 {
	var c int32
	for n != nil && n.max > l.Start {
		if n.left != nil && n.left.max > l.Start {
			c += countConflicts(n.left, l)
		}
		if n.conflicts(l) {
			c++
		}
		if n.Start >= l.End {
			break
		}
		n = n.right
	}
	return c
}

func unblock(n, l *Lock, dst []*Lock) []*Lock {
	for n != nil && n.max > l.Start {
		if n.left != nil && n.left.max > l.Start {
			dst = unblock(n.left, l, dst)
		}
		if n.seq > l.seq && n.conflicts(l) {
			if n.waits--; n.waits == 0 {
				dst = append(dst, n)
			}
		}
		if n.Start >= l.End {
			break
		}
		n = n.right
	}
	return dst
}

// insert descends to where l's priority lets it be the root, then splits.
func insert(n, l *Lock) *Lock {
	if n == nil {
		return l
	}
	if l.prio > n.prio {
		l.left, l.right = split(n, l)
		l.update()
		return l
	}
	if l.before(n) {
		n.left = insert(n.left, l)
	} else {
		n.right = insert(n.right, l)
	}
	if l.End > n.max {
		n.max = l.End
	}
	return n
}

// split parts the subtree n into what sorts before l and what sorts after.
func split(n, l *Lock) (lo, hi *Lock) {
	if n == nil {
		return nil, nil
	}
	if n.before(l) {
		n.right, hi = split(n.right, l)
		n.update()
		return n, hi
	}
	lo, n.left = split(n.left, l)
	n.update()
	return lo, n
}

func remove(n, l *Lock) *Lock {
	if n == nil {
		panic("rangelock: lock is not in this table")
	}
	if n == l {
		return merge(n.left, n.right)
	}
	if l.before(n) {
		n.left = remove(n.left, l)
	} else {
		n.right = remove(n.right, l)
	}
	n.update()
	return n
}

func merge(a, b *Lock) *Lock {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	case a.prio > b.prio:
		a.right = merge(a.right, b)
		a.update()
		return a
	}
	b.left = merge(a, b.left)
	b.update()
	return b
}
