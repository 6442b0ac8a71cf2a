package store

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/vfs"
)

// write does one random write.
func (c *csRun) write(id ID, nested bool) {
	v := c.vols[id]
	q := c.qs[id]
	n := len(v.now)
	var at, k int
	switch c.r.IntN(4) {
	case 0: // a few sectors
		k = 1 + c.r.IntN(7)
		at = c.r.IntN(n - k)
	case 1, 2: // blocks
		k = 8 * (1 + c.r.IntN(6))
		at = c.r.IntN((n-k)/8) * 8
	default: // up to three extents
		k = 8 * (1 + c.r.IntN(48))
		at = c.r.IntN((n-k)/8) * 8
	}
	c.gen++
	buf := make([]byte, k*csSector)
	for i := range k {
		fillSector(buf[i*csSector:][:csSector], v.vol, at+i, c.gen)
		v.begun(at+i, c.gen)
	}
	req := &block.Request{Op: block.OpWrite, Off: int64(at) * csSector, Len: int64(len(buf)), Buf: buf}
	if c.r.IntN(8) == 0 && !nested {
		req.Flags = block.FUA
	}
	c.note("write vol %d [%d,+%d) gen %d flags %d nested %v", v.vol, at, k, c.gen, req.Flags, nested)
	gen := c.gen
	c.do(q, req)
	if c.full(req.Err) {
		return
	}
	for i := range k {
		v.now[at+i] = gen
		if req.Flags&block.FUA != 0 {
			v.durable[at+i] = gen
			v.maybe[at+i] = []sectorVal{gen}
		}
	}
}

// full says that a request lacked space: then it changed nothing (S6).
func (c *csRun) full(err error) bool {
	if errors.Is(err, block.ErrNoSpace) {
		c.note("no space")
		return true
	}
	c.must(err)
	return false
}

// pair writes two parts of one block at once.
func (c *csRun) pair(id ID) {
	v := c.vols[id]
	at := c.r.IntN(len(v.now)/8) * 8
	a, b := at+c.r.IntN(4), at+4+c.r.IntN(4)
	c.gen++
	reqs := make([]*block.Request, 0, 2)
	for _, i := range []int{a, b} {
		buf := make([]byte, csSector)
		fillSector(buf, v.vol, i, c.gen)
		v.begun(i, c.gen)
		reqs = append(reqs, &block.Request{Op: block.OpWrite, Off: int64(i) * csSector, Len: csSector, Buf: buf})
	}
	c.note("pair vol %d %d %d gen %d", v.vol, a, b, c.gen)
	gen := c.gen
	c.do(c.qs[id], reqs...)
	for k, i := range []int{a, b} {
		if !c.full(reqs[k].Err) {
			v.now[i] = gen
		}
	}
}

func (c *csRun) erase(id ID) {
	v := c.vols[id]
	op := block.OpTrim
	per := ExtentSize / csSector
	at := c.r.IntN(len(v.now)/per) * per
	k := per * (1 + c.r.IntN(min(3, (len(v.now)-at)/per)))
	if c.r.IntN(2) == 0 {
		op = block.OpZero
		k = 1 + c.r.IntN(3*per)
		at = c.r.IntN(len(v.now) - k)
	}
	for i := at; i < at+k; i++ {
		v.begun(i, 0)
	}
	req := &block.Request{Op: op, Off: int64(at) * csSector, Len: int64(k) * csSector}
	if op == block.OpZero && c.r.IntN(3) == 0 {
		req.Flags = block.NoHole
	}
	c.note("%s vol %d [%d,+%d)", op, v.vol, at, k)
	c.do(c.qs[id], req)
	if c.full(req.Err) {
		return
	}
	for i := at; i < at+k; i++ {
		v.now[i] = 0
	}
}

func (c *csRun) flush(id ID) {
	v := c.vols[id]
	c.note("flush vol %d", v.vol)
	// What was acknowledged before becomes durable; a nested write does not.
	before := map[ID][]sectorVal{}
	for i, o := range c.vols {
		before[i] = slices.Clone(o.now)
	}
	req := &block.Request{Op: block.OpFlush}
	c.do(c.qs[id], req)
	c.must(req.Err)
	for i, o := range c.vols { // one flush covers the whole store
		if i != id {
			continue
		}
		for k := range o.durable {
			o.durable[k] = before[i][k]
			if o.now[k] == before[i][k] {
				delete(o.maybe, k)
			} else {
				o.maybe[k] = []sectorVal{o.now[k]}
			}
		}
	}
}

// control runs a control operation that a crash may cut.
func (c *csRun) control(op *csOp, fn func() error) {
	c.snap = op
	c.note("%s %s", op.kind, op.snap)
	err := fn()
	c.snap = nil
	c.must(err)
}

func (c *csRun) newID() ID {
	c.next++
	var id ID
	le.PutUint64(id[:], c.next)
	id[15] = byte(c.depth + 1)
	return id
}

func (c *csRun) create() {
	id := c.newID()
	v := newVolume(id, c.next<<8|uint64(c.depth), csSectors)
	c.control(&csOp{kind: "create", vol: id, vol2: v}, func() error {
		_, err := c.s.CreateReplica(ReplicaSpec{ID: id, Size: csExtents * ExtentSize, Untracked: c.r.IntN(2) == 0})
		return err
	})
	c.vols[id] = v
	c.openQueue(id)
}

func (c *csRun) closeQueue(id ID) {
	c.must(c.qs[id].Close())
	delete(c.qs, id)
}

func (c *csRun) admin(id ID) {
	v := c.vols[id]
	rep, err := c.s.Replica(id)
	c.must(err)
	snaps := slices.Collect(maps.Keys(v.snaps))
	slices.SortFunc(snaps, func(a, b ID) int { return strings.Compare(string(a[:]), string(b[:])) })
	switch k := c.r.IntN(10); {
	case k < 4:
		snap := c.newID()
		val := slices.Clone(v.now)
		c.control(&csOp{kind: "freeze", vol: id, snap: snap, val: val}, func() error { return rep.Freeze(snap) })
		v.snaps[snap] = val
		v.flushed()
	case k < 6 && len(snaps) > 0:
		snap := snaps[c.r.IntN(len(snaps))]
		c.control(&csOp{kind: "drop", vol: id, snap: snap}, func() error { return rep.Drop(snap) })
		delete(v.snaps, snap)
	case k < 7 && len(snaps) > 0:
		snap := snaps[c.r.IntN(len(snaps))]
		c.closeQueue(id)
		val := slices.Clone(v.snaps[snap])
		for len(val) < len(v.now) {
			val = append(val, 0)
		}
		c.control(&csOp{kind: "restore", vol: id, snap: snap, val: val}, func() error { return rep.Restore(snap) })
		v.now = slices.Clone(val)
		v.flushed()
		c.openQueue(id)
	case k < 8 && len(snaps) > 0 && len(c.vols) < csVolumes+2:
		snap := snaps[c.r.IntN(len(snaps))]
		nid := c.newID()
		nv := newVolume(nid, v.vol, len(v.now))
		copy(nv.now, v.snaps[snap])
		nv.flushed()
		c.control(&csOp{kind: "create", vol: nid, vol2: nv}, func() error {
			_, err := c.s.Clone(ReplicaSpec{ID: nid, Size: int64(len(v.now)) * csSector, Untracked: true}, id, snap)
			return err
		})
		c.vols[nid] = nv
		c.openQueue(nid)
	case k < 9 && len(c.vols) > 1:
		c.closeQueue(id)
		c.control(&csOp{kind: "delete", vol: id}, func() error { return c.s.Delete(id, true) })
		delete(c.vols, id)
	case len(v.now) < 2*csSectors:
		size := int64(len(v.now))*csSector + ExtentSize
		c.control(&csOp{kind: "grow", vol: id}, func() error { return rep.Grow(size) })
		for int64(len(v.now))*csSector < size {
			v.now, v.durable = append(v.now, 0), append(v.durable, 0)
		}
	}
}

// work runs n random operations.
func (c *csRun) work(n int) {
	c.openQueues()
	c.m.Hook = c.hook
	for range n {
		if len(c.vols) < csVolumes && c.r.IntN(2) == 0 {
			c.create()
			continue
		}
		ids := c.ids()
		if len(ids) == 0 {
			continue
		}
		id := ids[c.r.IntN(len(ids))]
		switch k := c.r.IntN(100); {
		case k < 50:
			c.write(id, false)
		case k < 55:
			c.pair(id)
		case k < 68:
			c.erase(id)
		case k < 82:
			c.flush(id)
		case k < 94:
			c.admin(id)
		default:
			c.note("background")
			c.s.runBackground()
		}
	}
	c.m.Hook = nil
}

var errStop = errors.New("stop")

// crashSeeds runs workloads until enough cuts were tried; it returns how many,
// and the first failure.
func crashSeeds(t testing.TB, first uint64, cuts int, o testOptions, until time.Time) (int, error) {
	done := 0
	for seed := first; done < cuts && (until.IsZero() || time.Now().Before(until)); seed++ {
		var failure error
		func() {
			defer func() {
				if p := recover(); p != nil {
					if p == errStop {
						return
					}
					failure = fmt.Errorf("seed %d: panic: %v", seed, p)
					if o == (testOptions{}) || os.Getenv("MORAINE_CRASH_PANIC") != "" {
						panic(p)
					}
				}
			}()
			r := rand.New(rand.NewPCG(seed, 0))
			m := vfs.NewMem(0)
			limit := int64(0)
			if r.IntN(3) == 0 { // a small drive: space is reused soon, and may lack
				limit = int64(csExtents*2+r.IntN(30)) * ExtentSize
			}
			if err := Format("/d", FormatOptions{FS: m, DriveID: ID{9}, SizeLimit: limit}); err != nil {
				t.Fatal(err)
			}
			oo := o
			if r.IntN(2) == 0 {
				oo.unit = 512
			}
			c := &csRun{t: t, r: r, m: m, opt: Options{test: oo}, vols: map[ID]*csVolume{}, small: limit > 0}
			c.fail = func(format string, args ...any) {
				failure = fmt.Errorf("seed %d: %s", seed, fmt.Sprintf(format, args...))
				panic(errStop)
			}
			var rnd *rand.Rand
			if r.IntN(2) == 0 {
				rnd = rand.New(rand.NewPCG(seed, 7))
			}
			s, err := csOpen(m, 0, oo)
			c.must(err)
			c.s, c.eng = s, vfs.NewMemEngine(m, rnd)
			at := 5
			for range 40 {
				at += 1 + r.IntN(25)
				c.cuts = append(c.cuts, at)
			}
			n := len(c.cuts)
			c.work(120)
			done += n - len(c.cuts)
			for _, q := range c.qs {
				c.must(q.Close())
			}
			c.must(s.Close())
		}()
		if failure != nil {
			return done, failure
		}
	}
	return done, nil
}

func crashCuts() int {
	if n, err := strconv.Atoi(os.Getenv("MORAINE_CRASH_CUTS")); err == nil && n > 0 {
		return n
	}
	return 300
}

func crashSeed() uint64 {
	if n, err := strconv.ParseUint(os.Getenv("MORAINE_CRASH_SEED"), 10, 64); err == nil {
		return n
	}
	return uint64(time.Now().UnixNano()) % 1e9
}

func TestCrashReplay(t *testing.T) {
	seed := crashSeed()
	t.Logf("seed %d (MORAINE_CRASH_SEED=%d repeats it)", seed, seed)
	n, err := crashSeeds(t, seed, crashCuts(), testOptions{}, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d cuts", n)
}
