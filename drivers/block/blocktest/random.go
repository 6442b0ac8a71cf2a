package blocktest

import (
	"errors"
	"math/rand/v2"
	"slices"
	"unsafe"

	"github.com/moraine-storage/moraine/drivers/block"
)

// Aligned returns n bytes aligned to 4096 in memory.
func Aligned(n int) []byte {
	const a = 4096
	b := make([]byte, n+a)
	skip := int(-uintptr(unsafe.Pointer(&b[0])) % a)
	return b[skip : skip+n : skip+n]
}

// checkExtents compares what the queue tells with what was done.
func checkExtents(o *owner) {
	x, ok := o.q.(block.Extenter)
	if !ok {
		o.Log("the queue does not tell extents")
		return
	}
	seed := Seed(o.T)
	r := rand.New(rand.NewPCG(seed, 3))
	for range 30 {
		off := r.Int64N(o.info.Size/block.SectorSize) * block.SectorSize
		n := min(r.Int64N(2*o.info.Grain/block.SectorSize)*block.SectorSize, o.info.Size-off)
		if r.IntN(3) == 0 {
			o.must(&block.Request{Op: block.OpTrim, Off: off, Len: n})
		} else {
			o.write(Pattern(int(n), r.Uint64()), off)
		}
	}
	content := o.read(0, o.info.Size)
	for range 50 {
		off := r.Int64N(o.info.Size/block.SectorSize) * block.SectorSize
		n := r.Int64N((o.info.Size-off)/block.SectorSize+1) * block.SectorSize
		checkRange(o, x, content, off, n, 0)
		checkRange(o, x, content, off, n, 1+r.IntN(4))
	}
	checkRange(o, x, content, 0, o.info.Size, 0)
	for _, c := range [][2]int64{{-512, 512}, {0, o.info.Size + 512}, {o.info.Size + 512, 0}, {0, -512}, {512, 1<<63 - 512}} {
		if _, err := x.Extents(nil, c[0], c[1], 0); !errors.Is(err, block.ErrInvalid) {
			o.Errorf("extents of %d at %d: %v, want invalid", c[1], c[0], err)
		}
	}
}

func checkRange(o *owner, x block.Extenter, content []byte, off, n int64, limit int) {
	o.Helper()
	prefix := []block.Extent{{Off: -1, Len: 1}}
	got, err := x.Extents(slices.Clone(prefix), off, n, limit)
	if err != nil {
		o.Fatalf("extents of %d at %d: %v", n, off, err)
	}
	if len(got) < 1 || got[0] != prefix[0] {
		o.Fatal("extents did not append")
	}
	got = got[1:]
	if limit > 0 && len(got) > limit {
		o.Errorf("%d extents, limit %d", len(got), limit)
	}
	at := off
	for i, e := range got {
		if e.Off != at || e.Len <= 0 || e.Off+e.Len > off+n {
			o.Fatalf("extent %d is [%d,+%d), want it to begin at %d and end by %d", i, e.Off, e.Len, at, off+n)
		}
		if i > 0 && got[i-1].Hole == e.Hole && got[i-1].Zero == e.Zero {
			o.Errorf("extents %d and %d are of one state and not merged", i-1, i)
		}
		if e.Zero && !allZero(content[e.Off:e.Off+e.Len]) {
			o.Errorf("extent [%d,+%d) is called zero and is not", e.Off, e.Len)
		}
		at += e.Len
	}
	if limit == 0 && at != off+n {
		o.Errorf("extents of [%d,%d) end at %d", off, off+n, at)
	}
	if n > 0 && len(got) == 0 {
		o.Errorf("no extents for [%d,+%d)", off, n)
	}
}

// checkRandom compares the device with a byte array under random operations,
// up to depth in flight at one time, none of which overlap.
func checkRandom(o *owner, depth int) {
	seed := Seed(o.T)
	m := &model{owner: o, r: rand.New(rand.NewPCG(seed, 4)), want: make([]byte, o.info.Size), flying: map[*block.Request]*flight{}}
	for left := 1500; left > 0 || len(m.flying) > 0; {
		var batch []*block.Request
		for left > 0 && len(m.flying) < depth && m.r.IntN(8) != 0 {
			left--
			if r := m.next(); r != nil {
				batch = append(batch, r)
			}
		}
		o.q.Submit(batch)
		if len(m.flying) > 0 {
			o.reap(m.finish)
		}
	}
	o.expect(0, m.want, "whole device at the end")
}

// model is what the device must hold.
type model struct {
	*owner
	r      *rand.Rand
	want   []byte // once everything in flight has ended
	flying map[*block.Request]*flight
}

type flight struct{ content []byte } // of a read: what it must return

// next makes a request that overlaps none in flight, or nil.
func (m *model) next() *block.Request {
	g := m.info.Grain
	off := m.r.Int64N(m.info.Size/block.SectorSize) * block.SectorSize
	longest := []int64{512, 4096, 4096, g, 4 * g}[m.r.IntN(5)]
	n := min((1+m.r.Int64N(longest/block.SectorSize))*block.SectorSize, m.info.Size-off)
	if m.r.IntN(2) == 0 {
		off = off / 4096 * 4096
	}
	r := &block.Request{Op: block.OpRead, Off: off, Len: n}
	f := &flight{}
	switch k := m.r.IntN(16); {
	case k == 0:
		r = &block.Request{Op: block.OpFlush}
	case m.overlaps(r):
		return nil
	case k < 6:
		r.Buf = Aligned(int(n))
		f.content = slices.Clone(m.want[off : off+n])
	case k < 12:
		r.Op = block.OpWrite
		r.Buf = Pattern(int(n), m.r.Uint64())
		copy(m.want[off:], r.Buf)
	case k < 14:
		r.Op = block.OpZero
		clear(m.want[off : off+n])
	case m.info.Trim:
		r.Op = block.OpTrim
		lo, length := block.CutInwards(off, n, g, m.info.Size)
		clear(m.want[lo : lo+length])
	default:
		r.Op = block.OpCache
	}
	if r.Op != block.OpRead && r.Op != block.OpCache && m.r.IntN(4) == 0 {
		r.Flags = block.FUA
	}
	if r.Op == block.OpZero && m.r.IntN(2) == 0 {
		r.Flags |= block.NoHole
	}
	m.flying[r] = f
	return r
}

func (m *model) overlaps(r *block.Request) bool {
	for other := range m.flying {
		if r.Off < other.End() && other.Off < r.End() {
			return true
		}
	}
	return false
}

func (m *model) finish(r *block.Request) {
	f, ok := m.flying[r]
	if !ok {
		m.Fatalf("reaped a request that is not in flight: %v at %d", r.Op, r.Off)
	}
	delete(m.flying, r)
	if r.Err != nil {
		m.Fatalf("%v of %d bytes at %d: %v", r.Op, r.Len, r.Off, r.Err)
	}
	if r.Op == block.OpRead {
		if i := Differ(r.Buf, f.content); i >= 0 {
			m.Fatalf("read of %d bytes at %d: byte %d differs", r.Len, r.Off, i)
		}
	}
}
