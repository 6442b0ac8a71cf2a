package local

import (
	"bytes"
	"errors"
	"flag"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/block/faultblock"
	"github.com/moraine-storage/moraine/drivers/replication"
	"github.com/moraine-storage/moraine/drivers/replication/session"
)

var seedFlag = flag.Uint64("seed", 0, "seed of TestRandom; 0: drawn")

// model is what each sector may hold: what was acknowledged, or any of what
// failed since.
type model struct {
	sectors [][]byte // possible values
	busy    []bool   // a change is in flight
	reads   []int    // reads in flight
}

const sector = block.SectorSize

func newModel() *model {
	m := &model{sectors: make([][]byte, volumeSize/sector), busy: make([]bool, volumeSize/sector), reads: make([]int, volumeSize/sector)}
	for i := range m.sectors {
		m.sectors[i] = []byte{0}
	}
	return m
}

func (m *model) free(off, n int64, write bool) bool {
	for i := off / sector; i < (off+n)/sector; i++ {
		if m.busy[i] || write && m.reads[i] > 0 {
			return false
		}
	}
	return true
}

func (m *model) mark(off, n int64, on bool) {
	for i := off / sector; i < (off+n)/sector; i++ {
		m.busy[i] = on
	}
}

func (m *model) reading(off, n int64, d int) {
	for i := off / sector; i < (off+n)/sector; i++ {
		m.reads[i] += d
	}
}

// wrote: a change of a range to v has ended.
func (m *model) wrote(off, n int64, v byte, err error) {
	for i := off / sector; i < (off+n)/sector; i++ {
		if err == nil {
			m.sectors[i] = []byte{v}
		} else if !bytes.Contains(m.sectors[i], []byte{v}) {
			m.sectors[i] = append(m.sectors[i], v)
		}
	}
}

// saw checks what was read; from then on it is what the sector holds.
func (m *model) saw(t *testing.T, what string, off int64, b []byte) {
	t.Helper()
	for k := 0; k < len(b); k += sector {
		i := (off + int64(k)) / sector
		v := b[k]
		if !bytes.Equal(b[k:k+sector], bytes.Repeat([]byte{v}, sector)) {
			t.Fatalf("%s: sector %d is torn", what, i)
		}
		if !bytes.Contains(m.sectors[i], []byte{v}) {
			t.Fatalf("%s: sector %d reads %d, want one of %v", what, i, v, m.sectors[i])
		}
		m.sectors[i] = []byte{v}
	}
}

// Goal: whatever members fail, whenever the process dies and whatever the
// cluster store loses: what was acknowledged is read, and in the end all
// replicas are equal.
func TestRandom(t *testing.T) {
	rounds := 3
	if testing.Short() {
		rounds = 1
	}
	var sum replication.Steps
	for range rounds {
		seed := *seedFlag
		if seed == 0 {
			seed = rand.Uint64()
		}
		t.Logf("seed %d (run again with -seed)", seed)
		runRandom(t, rand.New(rand.NewPCG(seed, 1)), &sum)
		if t.Failed() {
			return
		}
	}
	t.Logf("%d removed, %d joined, %d unknown outcomes, %d regions copied, %d reconciled, %d cleaned",
		sum.Removed, sum.Joined, sum.Unknowns, sum.RegionsCopied, sum.Reconciled, sum.Cleaned)
	if sum.Removed == 0 || sum.Joined == 0 || sum.Unknowns == 0 || sum.Reconciled == 0 {
		t.Error("the schedule was too tame to mean anything")
	}
}

// add counts what a session did.
func (r *rig) add(sum *replication.Steps) {
	s := r.g.Core().Steps()
	sum.Removed += s.Removed
	sum.Joined += s.Joined
	sum.Unknowns += s.Unknowns
	sum.RegionsCopied += s.RegionsCopied
	sum.Reconciled += s.Reconciled
	sum.Cleaned += s.Cleaned
}

func runRandom(t *testing.T, rnd *rand.Rand, sum *replication.Steps) {
	r := newRig(t, 3)
	r.change = func(o *session.GroupOptions) {
		o.Core.RetryEvery = 5 * time.Millisecond
		o.Core.CleanIdle = 10 * time.Millisecond
	}
	r.rec.fault = func() replication.Outcome {
		r.rec.apply = rnd.IntN(2) == 0
		if rnd.IntN(4) == 0 {
			return replication.Unknown
		}
		return replication.IsStored
	}
	m := newModel()
	r.attach(false)
	r.ok(r.over)
	inFlight := 0
	val := byte(0)
	for k := range 600 {
		switch p := rnd.IntN(100); {
		case p < 5:
			// One fails; never so that the last one would.
			d := r.drives[rnd.IntN(3)]
			op := []block.Op{block.OpWrite, block.OpFlush, block.OpRead, block.OpZero}[rnd.IntN(4)]
			if r.g.Core().Need().Len() > 1 && d.fault != nil {
				d.fault.Set(faultblock.Rule{Ops: []block.Op{op}, Count: 1 + rnd.IntN(2), Err: block.ErrIO, After: rnd.IntN(2) == 0})
			}
		case p < 6 && k > 100:
			r.until("all is answered", func() bool { return inFlight == 0 })
			for _, d := range r.drives {
				d.fault.Set()
			}
			r.add(sum)
			r.leave()
			r.attach(true)
			if r.over != nil {
				t.Fatalf("attach after a death: %v", r.over)
			}
		default:
			randomOp(t, r, rnd, m, &val, &inFlight)
		}
		if inFlight > 8 || rnd.IntN(4) == 0 {
			r.until("some are answered", func() bool { return inFlight <= 4 })
		}
	}
	r.until("all is answered", func() bool { return inFlight == 0 })
	for _, d := range r.drives {
		d.fault.Set()
	}
	want := make([]byte, volumeSize)
	r.ok(r.do(block.OpRead, 0, volumeSize, want))
	m.saw(t, "last read", 0, want)
	r.rec.fault = nil
	if err := r.do(block.OpFlush, 0, 0, nil); err != nil {
		// 3.3: after an error of the last member every flush fails, and nothing
		// is cleaned, until the volume is attached anew.
		r.add(sum)
		r.leave()
		r.attach(true)
	}
	r.quiet()
	r.add(sum)
	r.equal(want)
}

func randomOp(t *testing.T, r *rig, rnd *rand.Rand, m *model, val *byte, inFlight *int) {
	off := rnd.Int64N(volumeSize/4096) * 4096
	n := min((1+rnd.Int64N(16))*4096, volumeSize-off)
	if rnd.IntN(4) == 0 {
		off += sector
		n -= sector
	}
	q := &block.Request{Off: off, Len: n}
	v := byte(0)
	switch p := rnd.IntN(20); {
	case p < 1:
		q.Op, q.Off, q.Len = block.OpFlush, 0, 0
	case p < 8:
		q.Op, q.Buf = block.OpRead, make([]byte, n)
		if !m.free(off, n, false) {
			return
		}
		m.reading(off, n, 1)
	case p < 10:
		q.Op = block.OpZero
	default:
		q.Op = block.OpWrite
		if *val++; *val == 0 {
			*val = 1
		}
		v = *val
		q.Buf = bytes.Repeat([]byte{v}, int(n))
		if p == 19 {
			q.Flags = block.FUA
		}
	}
	changes := q.Op == block.OpWrite || q.Op == block.OpZero
	if changes {
		if !m.free(off, n, true) {
			return
		}
		m.mark(off, n, true)
	}
	*inFlight++
	r.start(q, func(q *block.Request) {
		*inFlight--
		if q.Err != nil && !errors.Is(q.Err, block.ErrIO) && !errors.Is(q.Err, block.ErrTimeout) {
			t.Fatalf("%v at %d: %v", q.Op, q.Off, q.Err)
		}
		switch {
		case changes:
			m.mark(off, n, false)
			m.wrote(off, n, v, q.Err)
			fill(q.Buf, 0xee) // the client's memory is his own again
		case q.Op == block.OpRead:
			m.reading(off, n, -1)
			if q.Err == nil {
				m.saw(t, "read", off, q.Buf)
			}
		}
	})
}
