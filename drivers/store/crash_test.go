package store

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/vfs"
)

// The crash-replay test. Goal: after a power cut at any step, reopening under
// another boot yields every flushed write, each unflushed sector old or new,
// and no byte of another volume; after the death of the process alone, every
// acknowledged write. Method: a random workload over a disk in memory that
// knows what was synced; at random steps the disk is cloned as it may look
// after a cut; the clone is checked (Check), opened, compared with a model
// sector by sector, and worked on further.

const (
	csVolumes = 3
	csExtents = 12 // of each volume
	csSector  = block.SectorSize
	csSectors = csExtents * ExtentSize / csSector
)

// sector is the model's contents of one sector: who wrote it, when. 0: zeros.
type sectorVal uint64

// fill writes a sector that names its volume, place and generation.
func fillSector(b []byte, vol uint64, at int, v sectorVal) {
	if v == 0 {
		clear(b)
		return
	}
	for i := 0; i < csSector; i += 32 {
		le.PutUint64(b[i:], vol)
		le.PutUint64(b[i+8:], uint64(at))
		le.PutUint64(b[i+16:], uint64(v))
		le.PutUint64(b[i+24:], ^uint64(v)*0x9e3779b97f4a7c15)
	}
}

// parseSector is the inverse; it fails on torn or foreign bytes.
func parseSector(b []byte, vol uint64, at int) (sectorVal, error) {
	if allZero(b) {
		return 0, nil
	}
	v := sectorVal(le.Uint64(b[16:]))
	want := make([]byte, csSector)
	fillSector(want, vol, at, v)
	if string(want) != string(b) {
		return 0, fmt.Errorf("foreign or torn: volume %d sector %d holds volume %d sector %d generation %d",
			vol, at, le.Uint64(b), le.Uint64(b[8:]), v)
	}
	return v, nil
}

// csVolume is the model of one replica.
type csVolume struct {
	id      ID
	vol     uint64 // its name in sectors; a clone keeps its source's
	durable []sectorVal
	// maybe holds, per sector, what was written since it was last durable, in
	// any order of survival; the last acknowledged one is now.
	maybe map[int][]sectorVal
	now   []sectorVal
	snaps map[ID][]sectorVal
}

func newVolume(id ID, vol uint64, n int) *csVolume {
	return &csVolume{id: id, vol: vol, durable: make([]sectorVal, n), now: make([]sectorVal, n), maybe: map[int][]sectorVal{}, snaps: map[ID][]sectorVal{}}
}

func (v *csVolume) clone() *csVolume {
	c := *v
	c.durable, c.now = slices.Clone(v.durable), slices.Clone(v.now)
	c.maybe = map[int][]sectorVal{}
	for k, m := range v.maybe {
		c.maybe[k] = slices.Clone(m)
	}
	c.snaps = maps.Clone(v.snaps) // contents never change
	return &c
}

// begun notes that sectors may be val from now on; acked that they are.
func (v *csVolume) begun(at int, val sectorVal) { v.maybe[at] = append(v.maybe[at], val) }

// flushed: all that was acknowledged is durable.
func (v *csVolume) flushed() {
	copy(v.durable, v.now)
	v.maybe = map[int][]sectorVal{}
}

// csRun is one life of the disk.
type csRun struct {
	t      testing.TB
	r      *rand.Rand
	m      *vfs.Mem
	s      *Store
	opt    Options
	vols   map[ID]*csVolume
	qs     map[ID]block.Queue
	eng    *vfs.MemEngine
	gen    sectorVal
	next   uint64
	cuts   []int // steps at which a power cut or a kill is tried
	step   int
	depth  int
	snap   *csOp // control operation under way
	fail   func(format string, args ...any)
	trace  []string
	inHook bool
	nested bool
	small  bool // the drive may be full: a nested write would need a flush
}

// csOp is a control operation that a crash may find half done.
type csOp struct {
	kind string
	vol  ID
	snap ID
	val  []sectorVal
	vol2 *csVolume
}

func csBoot(n int) string { return fmt.Sprintf("%032x", n+1) }

func csOpen(m *vfs.Mem, boot int, o testOptions) (*Store, error) {
	o.manual = true
	if o.journalBound == 0 {
		o.journalBound = 3000
	}
	return Open("/d", Options{FS: m, BootID: csBoot(boot), test: o})
}

func (c *csRun) note(format string, args ...any) {
	c.trace = append(c.trace, fmt.Sprintf(format, args...))
}

func (c *csRun) must(err error) {
	if err != nil {
		c.fail("unexpected error: %v", err)
	}
}

// open opens queues for all volumes.
func (c *csRun) openQueues() {
	c.qs = map[ID]block.Queue{}
	for _, id := range c.ids() {
		c.openQueue(id)
	}
}

func (c *csRun) openQueue(id ID) {
	r, err := c.s.Replica(id)
	c.must(err)
	p := Promise{Promised: Promised{Epoch{r.Info().Promised.Epoch.N + 1, c.r.Uint64()}, SessionID{1}}}
	_, err = r.Promote(context.Background(), p)
	c.must(err)
	q, err := r.OpenQueue(c.eng, SessionID{1})
	c.must(err)
	c.qs[id] = q
}

func (c *csRun) ids() []ID {
	ids := slices.Collect(maps.Keys(c.vols))
	slices.SortFunc(ids, func(a, b ID) int { return strings.Compare(string(a[:]), string(b[:])) })
	return ids
}

// do submits requests and drives the queue until all have been reaped.
func (c *csRun) do(q block.Queue, reqs ...*block.Request) {
	q.Submit(reqs)
	done := make([]*block.Request, 8)
	for n := 0; n < len(reqs); {
		k := q.Reap(done)
		n += k
		if k == 0 {
			if c.eng.InFlight() == 0 {
				c.fail("queue is stuck: %d of %d done", n, len(reqs))
			}
			c.eng.Poll()
		}
	}
}

// hook sees each step of the disk.
func (c *csRun) hook(e vfs.Event) {
	c.step++
	if c.inHook {
		return
	}
	c.inHook = true
	defer func() { c.inHook = false }()
	if len(c.cuts) > 0 && c.step >= c.cuts[0] {
		c.cuts = c.cuts[1:]
		c.note("step %d: cut before %v", c.step, e)
		c.crash()
		c.trace = c.trace[:len(c.trace)-1]
	}
	if e.Kind == vfs.OpSync && strings.HasSuffix(e.Name, "/data") && !c.nested && !c.small && c.snap == nil && c.r.IntN(3) == 0 {
		// Another volume writes while the data is being synced: its entry comes
		// before the flush record and is not covered by it.
		c.nested = true
		c.inHook = false
		ids := c.ids()
		if len(ids) > 0 {
			id := ids[c.r.IntN(len(ids))]
			rep, err := c.s.Replica(id)
			if err == nil && rep.rs.spec.Untracked && c.qs[id] != nil && c.qs[id].InFlight() == 0 {
				c.write(id, true)
			}
		}
		c.nested = false
	}
}

// crash tries both ways to die here, on clones.
func (c *csRun) crash() {
	power := c.r.IntN(4) != 0
	seed := c.r.Uint64()
	r := rand.New(rand.NewPCG(seed, 1))
	var m *vfs.Mem
	if power {
		m = c.m.PowerCut(r)
	} else {
		m = c.m.Kill()
	}
	child := &csRun{t: c.t, r: r, m: m, opt: c.opt, vols: map[ID]*csVolume{}, small: c.small, gen: c.gen, next: c.next, depth: c.depth + 1, snap: c.snap, trace: slices.Clone(c.trace), fail: c.fail}
	for id, v := range c.vols {
		child.vols[id] = v.clone()
	}
	boot := c.depth
	if power {
		boot++
	}
	child.verify(boot, power)
	child.trace = nil
}

// verify opens the disk after a crash and compares it with the model.
func (c *csRun) verify(boot int, power bool) {
	defer func(f func(string, ...any), tr []string) { c.fail = f }(c.fail, c.trace)
	parent := c.fail
	c.fail = func(format string, args ...any) {
		parent("depth %d power %v: %s\ntrace:\n%s", c.depth, power, fmt.Sprintf(format, args...), strings.Join(tail(c.trace, 25), "\n"))
	}
	if rep, err := Check("/d", CheckOptions{FS: c.m, BootID: csBoot(boot), Data: true}); err != nil {
		c.fail("check: %v", err)
	} else if len(rep.Problems) > 0 {
		c.fail("check: %v", rep.Problems)
	}
	s, err := csOpen(c.m, boot, c.opt.test)
	if err != nil {
		c.fail("reopen: %v", err)
		return
	}
	c.s = s
	c.eng = vfs.NewMemEngine(c.m, nil)
	c.settle()
	for _, id := range c.ids() {
		v := c.vols[id]
		rep, err := s.Replica(id)
		if err != nil {
			c.fail("volume %d: %v", v.vol, err)
			continue
		}
		c.compare(v, rep, nil, power)
		have := map[ID]bool{}
		for _, l := range rep.Info().Layers {
			have[l.Snapshot] = true
		}
		for snap := range v.snaps {
			if !have[snap] {
				c.fail("volume %d: snapshot %s is gone", v.vol, snap)
				continue
			}
			c.compareSnap(v, rep, snap)
		}
		for snap := range have {
			if v.snaps[snap] == nil {
				c.fail("volume %d: snapshot %s came from nowhere", v.vol, snap)
			}
		}
	}
	for _, ri := range s.Replicas() {
		if c.vols[ri.ID] == nil {
			c.fail("replica %s came from nowhere", ri.ID)
		}
	}
	// What was read is what is there now: go on from it.
	if c.depth < 3 {
		c.work(12)
	}
	for _, q := range c.qs {
		c.must(q.Close())
	}
	c.must(s.Close())
}

// settle decides what became of the control operation under way.
func (c *csRun) settle() {
	op := c.snap
	c.snap = nil
	if op == nil {
		return
	}
	v := c.vols[op.vol]
	rep, err := c.s.Replica(op.vol)
	switch op.kind {
	case "delete":
		if err != nil {
			delete(c.vols, op.vol)
		}
	case "create":
		if err == nil {
			c.vols[op.vol] = op.vol2.clone()
		}
	case "freeze", "drop":
		for _, l := range rep.Info().Layers {
			if l.Snapshot == op.snap {
				if op.kind == "freeze" {
					v.snaps[op.snap] = op.val
				}
				return
			}
		}
		delete(v.snaps, op.snap)
	case "restore":
		// Either contents: accept per volume whichever matches the first
		// sector that tells them apart.
		buf := c.readView(rep, nil)
		for i := range op.val {
			got, perr := parseSector(buf[i*csSector:][:csSector], v.vol, i)
			if perr != nil {
				c.fail("restore: %v", perr)
				return
			}
			if got != op.val[i] {
				return // not restored
			}
		}
		v.durable, v.now, v.maybe = slices.Clone(op.val), slices.Clone(op.val), map[int][]sectorVal{}
	case "grow":
		n := int(rep.Info().Size / csSector)
		for len(v.now) < n {
			v.now, v.durable = append(v.now, 0), append(v.durable, 0)
		}
	}
}

func (c *csRun) readView(rep *Replica, snap *ID) []byte {
	v, err := rep.View(snap)
	if err != nil {
		c.fail("view: %v", err)
		return nil
	}
	buf := make([]byte, v.Size())
	if _, err := v.ReadAt(buf, 0); err != nil {
		c.fail("read view: %v", err)
	}
	c.must(v.Close())
	return buf
}

// compare checks the top and takes over what it holds.
func (c *csRun) compare(v *csVolume, rep *Replica, _ *ID, power bool) {
	buf := c.readView(rep, nil)
	if len(buf) != len(v.now)*csSector {
		c.fail("volume %d has %d bytes, want %d", v.vol, len(buf), len(v.now)*csSector)
		return
	}
	for i := range v.now {
		got, err := parseSector(buf[i*csSector:][:csSector], v.vol, i)
		if err != nil {
			c.fail("%v", err)
			return
		}
		ok := got == v.now[i]
		if !ok && power {
			ok = got == v.durable[i] || slices.Contains(v.maybe[i], got)
		}
		if !ok && !power {
			// Not acknowledged, yet there: what was under way.
			under := v.maybe[i]
			for k := len(under) - 1; k >= 0 && under[k] != v.now[i]; k-- {
				ok = ok || under[k] == got
			}
		}
		if !ok {
			c.fail("volume %d sector %d: got generation %d, now %d, durable %d, maybe %v", v.vol, i, got, v.now[i], v.durable[i], v.maybe[i])
			return
		}
		v.now[i] = got
	}
	// Opening made it durable for all but what the data file had not synced
	// under the same boot; a flush comes with opening in any case.
	v.flushed()
}

func (c *csRun) compareSnap(v *csVolume, rep *Replica, snap ID) {
	buf := c.readView(rep, &snap)
	for i, want := range v.snaps[snap] {
		got, err := parseSector(buf[i*csSector:][:csSector], v.vol, i)
		if err != nil {
			c.fail("snapshot %s: %v", snap, err)
			return
		}
		if got != want {
			c.fail("volume %d snapshot %s sector %d: got generation %d, want %d", v.vol, snap, i, got, want)
			return
		}
	}
}

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 3)) }

func tail(s []string, n int) []string { return s[max(0, len(s)-n):] }
