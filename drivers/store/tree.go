package store

import "sync/atomic"

// An entry of a view: the low 31 bits are the physical extent + 1 (0: hole),
// bit 31 says that the high 32 bits are the CRC-32C of the extent's bytes. An
// extent with a checksum is immutable: writing to it allocates a new one.
const (
	entryPhys   = 1<<31 - 1
	entrySummed = 1 << 31
)

func entryOf(phys uint32) uint64 { return uint64(phys) + 1 }

// physOf returns the extent of an entry that is no hole.
func physOf(e uint64) uint32 { return uint32(e&entryPhys) - 1 }

// A view is a tree of three levels: root and mid are inner nodes, then a leaf.
// Nodes are shared between views and counted; a node with one reference whose
// ancestors have one reference each belongs to one view alone.
const (
	levelLeaf = 0
	levelMid  = 1
	levelRoot = 2
)

func rootIndex(i uint64) int { return int(i >> (leafShift + innerShift)) }
func midIndex(i uint64) int  { return int(i>>leafShift) % innerEntries }
func leafIndex(i uint64) int { return int(i) % leafEntries }

// trees owns the nodes. All methods but get and owned need the store's mutex
// (or sole ownership, while loading).
type trees struct {
	ar  *arena
	ext *extents // nil while replaying: counts are made afterwards

	// gen and pinned serve checkpoints: while pinned, a node of an older
	// generation is not changed and its page not reused; who wants to change
	// it takes over its place with a copy and leaves it in zombies.
	gen     uint32
	pinned  bool
	zombies []nodeID
}

// get returns the entry at index i. The caller holds a reference to root.
func (t *trees) get(root nodeID, i uint64) uint64 {
	if root == 0 {
		return 0
	}
	mid := t.ar.inner(root)[rootIndex(i)]
	if mid == 0 {
		return 0
	}
	lf := t.ar.inner(mid)[midIndex(i)]
	if lf == 0 {
		return 0
	}
	return atomic.LoadUint64(&t.ar.leaf(lf)[leafIndex(i)])
}

// lookup is get that also says whether the path belongs to this view alone.
func (t *trees) lookup(root nodeID, i uint64) (e uint64, sole bool) {
	if root == 0 {
		return 0, true
	}
	c, k := t.ar.chunk(root)
	sole = c.refs[k].Load() == 1
	mid := t.ar.inner(root)[rootIndex(i)]
	if mid == 0 {
		return 0, sole
	}
	sole = sole && t.ar.refs(mid).Load() == 1
	lf := t.ar.inner(mid)[midIndex(i)]
	if lf == 0 {
		return 0, sole
	}
	sole = sole && t.ar.refs(lf).Load() == 1
	return atomic.LoadUint64(&t.ar.leaf(lf)[leafIndex(i)]), sole
}

// own returns a node to change in the place of id: id itself, or a copy.
// counted says that leaves name extents.
func (t *trees) own(id nodeID, level int, counted bool) nodeID {
	if id == 0 {
		return t.ar.alloc(t.gen)
	}
	shared := t.ar.refs(id).Load() > 1
	stale := t.pinned && t.ar.gen(id) != t.gen
	if !shared && !stale {
		return id
	}
	c := t.ar.alloc(t.gen)
	if level == levelLeaf {
		src, dst := t.ar.leaf(id), t.ar.leaf(c)
		for i := range src {
			e := atomic.LoadUint64(&src[i])
			dst[i] = e
			if shared && counted && e != 0 && t.ext != nil {
				t.ext.inc(physOf(e))
			}
		}
	} else {
		src, dst := t.ar.inner(id), t.ar.inner(c)
		*dst = *src
		if shared {
			for _, ch := range src {
				if ch != 0 {
					t.ar.refs(ch).Add(1)
				}
			}
		}
	}
	if shared {
		t.ar.refs(id).Add(-1)
	} else {
		t.zombies = append(t.zombies, id) // its references moved to the copy
	}
	return c
}

// set stores e at index i and returns what was there. The view keeps its
// reference to the (new) root. Counts are the caller's: the new entry's extent
// must be counted, the old one's released.
func (t *trees) set(root *nodeID, i uint64, e uint64, counted bool) uint64 {
	if e == 0 && t.get(*root, i) == 0 {
		return 0
	}
	*root = t.own(*root, levelRoot, counted)
	r := t.ar.inner(*root)
	mid := t.own(r[rootIndex(i)], levelMid, counted)
	r[rootIndex(i)] = mid
	m := t.ar.inner(mid)
	lf := t.own(m[midIndex(i)], levelLeaf, counted)
	m[midIndex(i)] = lf
	p := &t.ar.leaf(lf)[leafIndex(i)]
	old := atomic.LoadUint64(p)
	atomic.StoreUint64(p, e)
	return old
}

// share takes one more reference to root.
func (t *trees) share(root nodeID) nodeID {
	if root != 0 {
		t.ar.refs(root).Add(1)
	}
	return root
}

// release is the resumable walk that gives up a reference.
type release struct {
	stack   []releaseNode
	counted bool
}

type releaseNode struct {
	id    nodeID
	level int
}

func newRelease(root nodeID, counted bool) *release {
	r := &release{counted: counted}
	if root != 0 {
		r.stack = append(r.stack, releaseNode{root, levelRoot})
	}
	return r
}

// step gives up at most n nodes; unref is called for each extent that a leaf
// named which is gone. It reports whether the walk is over.
func (t *trees) step(r *release, n int, unref func(phys uint32)) bool {
	for ; n > 0 && len(r.stack) > 0; n-- {
		top := r.stack[len(r.stack)-1]
		r.stack = r.stack[:len(r.stack)-1]
		if t.ar.refs(top.id).Add(-1) > 0 {
			continue
		}
		if top.level == levelLeaf {
			if r.counted && t.ext != nil {
				for _, e := range t.ar.leaf(top.id) {
					if e != 0 {
						unref(physOf(e))
					}
				}
			}
		} else {
			for _, ch := range t.ar.inner(top.id) {
				if ch != 0 {
					r.stack = append(r.stack, releaseNode{ch, top.level - 1})
				}
			}
		}
		t.drop(top.id)
	}
	return len(r.stack) == 0
}

// drop frees the page of a node without references.
func (t *trees) drop(id nodeID) {
	if t.pinned && t.ar.gen(id) != t.gen {
		t.zombies = append(t.zombies, id)
		return
	}
	t.ar.put(id)
}

// pin keeps all nodes as they are for a reader of the whole state.
func (t *trees) pin() {
	t.gen++
	t.pinned = true
}

func (t *trees) unpin() {
	t.pinned = false
	for _, id := range t.zombies {
		t.ar.put(id)
	}
	t.zombies = nil
}

// walk calls fn for each leaf of a view, in order; base is the index of its
// first entry. It stops at the first error.
func (t *trees) walk(root nodeID, from, to uint64, fn func(base uint64, id nodeID) error) error {
	if root == 0 {
		return nil
	}
	const perMid = leafEntries * innerEntries
	for ri := from / perMid; ri < innerEntries && ri*perMid < to; ri++ {
		mid := t.ar.inner(root)[ri]
		if mid == 0 {
			continue
		}
		m := t.ar.inner(mid)
		for mi := range m {
			base := ri*perMid + uint64(mi)*leafEntries
			if m[mi] == 0 || base+leafEntries <= from || base >= to {
				continue
			}
			if err := fn(base, m[mi]); err != nil {
				return err
			}
		}
	}
	return nil
}
