package replication

import "time"

// region is what the mirror knows of one region. 40 bytes and its
// place in the table: 48 to 56 MiB for a volume of 1 TiB of which every region was
// written once.
type region struct {
	lastDone  uint64        // sequence when the last write to it had ended on all of Z
	lastWrite time.Duration // when it was submitted
	stamp     Stamp         // common to in_sync while clean
	inflight  uint32
	dirty     bool // on all of Z outside todo
	queued    bool // in dirtyQ
}

// regionTable is a table of pages made on first use.
type regionTable struct {
	pages [][]region
}

const regionPage = 256

func (t *regionTable) at(i uint32) *region {
	p := i / regionPage
	for int(p) >= len(t.pages) {
		t.pages = append(t.pages, nil)
	}
	if t.pages[p] == nil {
		t.pages[p] = make([]region, regionPage)
	}
	return &t.pages[p][i%regionPage]
}

func (c *Core) regionOf(off int64) uint32 { return uint32(off / c.cfg.RegionSize) }

func (c *Core) regionCount() uint32 {
	return uint32((c.size + c.cfg.RegionSize - 1) / c.cfg.RegionSize)
}

// span is the regions that an operation touches.
func (c *Core) span(o *Op) (first, last uint32) {
	return c.regionOf(o.Off), c.regionOf(o.Off + o.Len - 1)
}

func (c *Core) markDirty(i uint32) *region {
	r := c.regions.at(i)
	r.dirty = true
	if !r.queued {
		r.queued = true
		c.dirtyQ = append(c.dirtyQ, i)
	}
	return r
}

// touch accounts a write that begins, untouch one that has ended everywhere.
func (c *Core) touch(o *Op) {
	first, last := c.span(o)
	for i := first; i <= last; i++ {
		r := c.markDirty(i)
		r.inflight++
		r.lastWrite = c.now
	}
}

func (c *Core) untouch(o *Op) {
	first, last := c.span(o)
	c.seq++
	for i := first; i <= last; i++ {
		r := c.regions.at(i)
		r.inflight--
		r.lastDone = c.seq
	}
}

func (c *Core) inReconcile(o *Op) bool {
	if c.todoRec.n == 0 {
		return false
	}
	first, last := c.span(o)
	hit := false
	for i := first; i <= last; i++ {
		if c.todoRec.has(i) {
			c.urgent = append(c.urgent, i)
			hit = true
		}
	}
	return hit
}
