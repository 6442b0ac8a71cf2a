// Package blocktest is the conformance suite of block.Queue. Each queue, and
// each wrapper of one, passes it in one test.
package blocktest

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/moraine-storage/moraine/drivers/aio"
	"github.com/moraine-storage/moraine/drivers/block"
)

// patience is far beyond what any step takes, so that only a hang fails.
const patience = 60 * time.Second

// Target is what is checked: a fresh queue that nobody has used, all zeros,
// and the engine it was made with (or nil: then Reap alone makes progress). The
// suite closes both. The size is what the test asked for, or more where sizes
// are rounded up.
type Target struct {
	Queue  block.Queue
	Engine aio.Engine
}

// Run checks queues made by fresh, which runs on the owner's goroutine.
func Run(t *testing.T, fresh func(t *testing.T, size int64) (Target, error)) {
	t.Helper()
	for _, c := range []struct {
		name string
		size int64
		fn   func(*owner)
	}{
		{"Info", 4 << 20, checkInfo},
		{"Zeros", 4 << 20, checkFresh},
		{"Boundaries", 4<<20 + 1536, checkBoundaries},
		{"Misaligned", 4 << 20, checkMisaligned},
		{"Invalid", 4 << 20, checkInvalid},
		{"Empty", 1 << 20, checkEmpty},
		{"Largest", 96 << 20, checkLargest},
		{"Flags", 4 << 20, checkFlags},
		{"TrimZero", 2 << 20, checkTrimZero},
		{"Untouched", 1 << 20, checkUntouched},
		{"Extents", 16 << 20, checkExtents},
		{"Depth", 16 << 20, checkDepth},
		{"Random", 8 << 20, func(o *owner) { checkRandom(o, 1) }},
		{"RandomDepth32", 8<<20 + 512, func(o *owner) { checkRandom(o, 32) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			done := make(chan struct{})
			go func() {
				defer close(done) // also when FailNow ends this goroutine
				runtime.LockOSThread()
				defer runtime.UnlockOSThread()
				runOne(t, c.size, fresh, c.fn)
			}()
			<-done
		})
	}
}

func runOne(t *testing.T, size int64, fresh func(*testing.T, int64) (Target, error), fn func(*owner)) {
	target, err := fresh(t, size)
	if err != nil {
		t.Errorf("make queue: %v", err)
		return
	}
	o := &owner{T: t, q: target.Queue, e: target.Engine, info: target.Queue.Info()}
	defer func() {
		if t.Failed() {
			return // what is in flight is not known
		}
		if n := o.q.InFlight(); n != 0 {
			t.Errorf("%d requests in flight at the end", n)
		}
		for range 2 {
			if err := o.q.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		}
		if o.e != nil {
			if err := o.e.Close(); err != nil {
				t.Errorf("close engine: %v", err)
			}
		}
	}()
	if o.info.Size < size {
		t.Errorf("size %d, want %d at least", o.info.Size, size)
		return
	}
	fn(o)
}

// owner is one check: the goroutine that owns a queue.
type owner struct {
	*testing.T
	q    block.Queue
	e    aio.Engine
	info block.Info
	done [16]*block.Request
}

// reap hands ended requests to f until at least one has ended.
func (o *owner) reap(f func(*block.Request)) {
	o.Helper()
	for end := time.Now().Add(patience); ; {
		total := 0
		for {
			n := o.q.Reap(o.done[:])
			for _, r := range o.done[:n] {
				f(r)
			}
			total += n
			if n < len(o.done) {
				break
			}
		}
		if total > 0 {
			return
		}
		if time.Now().After(end) {
			o.Fatalf("no request has ended; %d in flight", o.q.InFlight())
		}
		if o.e != nil {
			if _, err := o.e.Wait(nil, time.Second); err != nil {
				o.Fatalf("wait: %v", err)
			}
		}
	}
}

// do brings requests to their end.
func (o *owner) do(reqs ...*block.Request) {
	o.Helper()
	pending := map[*block.Request]bool{}
	for _, r := range reqs {
		pending[r] = true
	}
	before := o.q.InFlight()
	o.q.Submit(reqs)
	if got := o.q.InFlight(); got != before+len(reqs) {
		o.Errorf("%d in flight after submitting %d to %d", got, len(reqs), before)
	}
	for len(pending) > 0 {
		o.reap(func(r *block.Request) {
			if !pending[r] {
				o.Fatalf("reaped a request that is not in flight: %v at %d", r.Op, r.Off)
			}
			delete(pending, r)
		})
	}
}

func (o *owner) must(reqs ...*block.Request) {
	o.Helper()
	o.do(reqs...)
	for _, r := range reqs {
		if r.Err != nil {
			o.Fatalf("%v of %d bytes at %d: %v", r.Op, r.Len, r.Off, r.Err)
		}
	}
}

var (
	garbage = bytes.Repeat([]byte{0xa5}, 64<<10)
	zeros   = make([]byte, 64<<10)
)

func (o *owner) read(off, n int64) []byte {
	o.Helper()
	r := ReadRequest(Aligned(int(n)), off)
	for b := r.Buf; len(b) > 0; b = b[min(len(b), len(garbage)):] {
		copy(b, garbage) // so that a read that fills nothing shows
	}
	o.must(r)
	return r.Buf
}

func (o *owner) write(p []byte, off int64) {
	o.Helper()
	o.must(WriteRequest(p, off))
}

// expect compares a range of the device.
func (o *owner) expect(off int64, want []byte, what string) {
	o.Helper()
	if diff := Differ(o.read(off, int64(len(want))), want); diff >= 0 {
		o.Fatalf("%s: byte %d of [%d,%d) differs", what, diff, off, off+int64(len(want)))
	}
}

// allZero says whether p is zeros.
func allZero(p []byte) bool {
	for len(p) > 0 {
		n := min(len(p), len(zeros))
		if !bytes.Equal(p[:n], zeros[:n]) {
			return false
		}
		p = p[n:]
	}
	return true
}

// ReadRequest makes a request to fill p.
func ReadRequest(p []byte, off int64) *block.Request {
	return &block.Request{Op: block.OpRead, Off: off, Len: int64(len(p)), Buf: p}
}

// WriteRequest makes a request to write p.
func WriteRequest(p []byte, off int64) *block.Request {
	return &block.Request{Op: block.OpWrite, Off: off, Len: int64(len(p)), Buf: p}
}

// Differ returns the first index where a and b, of one length, differ, or -1.
func Differ(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return len(a)
}

// noise is where Pattern copies from: making random bytes one by one is slow
// under the race detector.
var noise = sync.OnceValue(func() []byte {
	b := make([]byte, 1<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b) // never fails
	return b
})

// Pattern returns n bytes that depend on seed, other ones in each sector. It
// begins in memory at a multiple of 4096.
func Pattern(n int, seed uint64) []byte {
	p := Aligned(n)
	from := noise()
	r := rand.NewPCG(seed, 9)
	for off := 0; off < n; off += block.SectorSize {
		at := r.Uint64() % uint64(len(from)-block.SectorSize)
		copy(p[off:min(off+block.SectorSize, n)], from[at:])
	}
	return p
}

// Seed returns a new seed and prints it.
func Seed(t *testing.T) uint64 {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return seed
}

func checkInfo(o *owner) {
	i := o.info
	if i.Size%block.SectorSize != 0 || i.BlockSize < block.SectorSize || i.BlockSize&(i.BlockSize-1) != 0 {
		o.Errorf("size %d, block size %d", i.Size, i.BlockSize)
	}
	if i.Grain < int64(i.BlockSize) || i.Grain%block.SectorSize != 0 {
		o.Errorf("grain %d with block size %d", i.Grain, i.BlockSize)
	}
	if i.MaxLen < 32<<20 || i.MaxLen%block.SectorSize != 0 {
		o.Errorf("largest request %d, want 32 MiB at least", i.MaxLen)
	}
	if i.ReadOnly {
		o.Error("read-only")
	}
	if got := o.q.Info(); got != i {
		o.Errorf("info changed: %+v, %+v", i, got)
	}
}

func checkFresh(o *owner) {
	o.expect(0, make([]byte, o.info.Size), "fresh device")
}

// checkBoundaries writes around each boundary that an implementation has:
// sector, block, grain, region, end of the device.
func checkBoundaries(o *owner) {
	model := make([]byte, o.info.Size)
	seed := Seed(o.T)
	for _, at := range []int64{0, 512, 4096, o.info.Grain, 2 * o.info.Grain, 1 << 20, o.info.Size} {
		for _, before := range []int64{0, 512, 4096, 5632} {
			for _, n := range []int64{512, 1024, 4096, 8192, o.info.Grain, o.info.Grain + 512} {
				off := at - before
				if off < 0 || off+n > o.info.Size {
					continue
				}
				seed++
				p := Pattern(int(n), seed)
				o.write(p, off)
				copy(model[off:], p)
				lo, hi := max(off-4096, 0), min(off+n+4096, o.info.Size)
				o.expect(lo, model[lo:hi], fmt.Sprintf("after a write of %d at %d", n, off))
			}
		}
	}
	o.expect(0, model, "whole device")
}

// checkMisaligned uses buffers that are not aligned in memory.
func checkMisaligned(o *owner) {
	for _, shift := range []int{1, 3, 512, 2048} {
		p := Pattern(12288+shift, uint64(shift))[shift:]
		off := int64(shift) * block.SectorSize
		o.write(p[:8192], off)
		got := Aligned(8192 + shift)[shift:]
		o.must(ReadRequest(got, off))
		if Differ(got, p[:8192]) >= 0 {
			o.Errorf("buffer shifted by %d: other bytes", shift)
		}
	}
}

func checkInvalid(o *owner) {
	size, buf := o.info.Size, make([]byte, 8192)
	o.write(Pattern(4096, 3), size-4096)
	keep := o.read(size-8192, 8192)
	req := func(op block.Op, f block.Flags, off, n int64, b []byte) *block.Request {
		return &block.Request{Op: op, Flags: f, Off: off, Len: n, Buf: b}
	}
	cases := []struct {
		r    *block.Request
		want error
	}{
		{req(0, 0, 0, 0, nil), block.ErrInvalid},
		{req(99, 0, 0, 512, nil), block.ErrInvalid},
		{req(block.OpRead, 0x80, 0, 512, buf[:512]), block.ErrInvalid},
		{req(block.OpWrite, block.NoHole, 0, 512, buf[:512]), block.ErrInvalid},
		{req(block.OpRead, 0, 1, 512, buf[:512]), block.ErrInvalid},
		{req(block.OpWrite, 0, 512, 100, buf[:100]), block.ErrInvalid},
		{req(block.OpRead, 0, 0, 512, buf[:1024]), block.ErrInvalid},
		{req(block.OpWrite, 0, 0, 1024, buf[:512]), block.ErrInvalid},
		{req(block.OpWrite, 0, 0, 512, nil), block.ErrInvalid},
		{req(block.OpRead, 0, -512, 512, buf[:512]), block.ErrInvalid},
		{req(block.OpWrite, 0, -512, 512, buf[:512]), block.ErrInvalid},
		{req(block.OpTrim, 0, 0, -512, nil), block.ErrInvalid},
		{req(block.OpZero, 0, -1<<63, 512, nil), block.ErrInvalid},
		{req(block.OpZero, 0, 512, 1<<62, nil), block.ErrInvalid},
		{req(block.OpRead, 0, size, 512, buf[:512]), block.ErrInvalid},
		{req(block.OpRead, 0, size-512, 1024, buf[:1024]), block.ErrInvalid},
		{req(block.OpTrim, 0, size-512, 1024, nil), block.ErrInvalid},
		{req(block.OpCache, 0, size, 512, nil), block.ErrInvalid},
		{req(block.OpWrite, 0, size-4096, 8192, buf), block.ErrNoSpace},
		{req(block.OpWrite, 0, size, 512, buf[:512]), block.ErrNoSpace},
		{req(block.OpZero, 0, size-4096, 8192, nil), block.ErrNoSpace},
		{req(block.OpWrite, 0, 1<<63-512, 512, buf[:512]), block.ErrNoSpace},
		{req(block.OpRead, 0, 1<<63-512, 512, buf[:512]), block.ErrInvalid},
	}
	var all []*block.Request
	for _, c := range cases {
		all = append(all, c.r)
	}
	good := WriteRequest(Pattern(512, 4), 512)
	all = append(all, good)
	o.do(all...)
	for _, c := range cases {
		if !errors.Is(c.r.Err, c.want) {
			o.Errorf("%v flags %#x of %d at %d: %v, want %v", c.r.Op, c.r.Flags, c.r.Len, c.r.Off, c.r.Err, c.want)
		}
	}
	if good.Err != nil {
		o.Errorf("valid request among invalid ones: %v", good.Err)
	}
	o.expect(size-8192, keep, "after refused requests")
}

func checkEmpty(o *owner) {
	o.must(&block.Request{Op: block.OpRead}, &block.Request{Op: block.OpWrite, Off: 512},
		&block.Request{Op: block.OpTrim, Off: o.info.Size}, &block.Request{Op: block.OpZero, Off: o.info.Size},
		&block.Request{Op: block.OpCache}, &block.Request{Op: block.OpFlush})
	o.q.Submit(nil)
	if n := o.q.Reap(o.done[:]); n != 0 {
		o.Errorf("%d requests reaped, none submitted", n)
	}
}

func checkLargest(o *owner) {
	n := o.info.MaxLen
	if off := int64(512); off+n <= o.info.Size {
		p := Pattern(int(n), 5)
		o.write(p, off)
		o.expect(off, p, "largest request")
	}
	r := &block.Request{Op: block.OpTrim, Len: n + 512}
	if r.Len <= o.info.Size {
		if o.do(r); !errors.Is(r.Err, block.ErrInvalid) {
			o.Errorf("request of %d bytes: %v, want invalid", r.Len, r.Err)
		}
	}
}

func checkFlags(o *owner) {
	p := Pattern(8192, 6)
	w := WriteRequest(p, 4096)
	w.Flags = block.FUA
	o.must(w)
	o.expect(4096, p, "write with FUA")
	o.must(&block.Request{Op: block.OpZero, Flags: block.FUA | block.NoHole, Off: 4096, Len: 512})
	clear(p[:512])
	o.expect(4096, p, "zero with FUA and no hole")
	fast := &block.Request{Op: block.OpZero, Flags: block.FastZero, Off: 8192, Len: 4096}
	if o.do(fast); fast.Err == nil {
		clear(p[4096:])
	} else if !errors.Is(fast.Err, block.ErrUnsupported) {
		o.Errorf("fast zero: %v", fast.Err)
	}
	o.expect(4096, p, "after fast zero")
	o.must(&block.Request{Op: block.OpTrim, Flags: block.FUA, Off: 0, Len: o.info.Grain})
	r := ReadRequest(make([]byte, 512), 0)
	r.Flags = block.FUA
	o.must(r, &block.Request{Op: block.OpFlush, Flags: block.FUA}, &block.Request{Op: block.OpCache, Len: o.info.Size})
}

func checkTrimZero(o *owner) {
	g := o.info.Grain
	for _, c := range []struct{ off, n int64 }{
		{0, g}, {g, 2 * g}, {512, g}, {g - 512, 1024}, {512, 2*g + 1024}, {3 * g, 512}, {o.info.Size - g, g}, {0, o.info.Size},
	} {
		for _, op := range []block.Op{block.OpTrim, block.OpZero} {
			model := Pattern(int(o.info.Size), uint64(c.off))
			o.write(model, 0)
			o.must(&block.Request{Op: op, Off: c.off, Len: c.n})
			off, n := c.off, c.n
			if op == block.OpTrim {
				if !o.info.Trim {
					continue
				}
				off, n = block.CutInwards(c.off, c.n, g, o.info.Size)
			}
			clear(model[off : off+n])
			o.expect(0, model, fmt.Sprintf("after %v of %d at %d", op, c.n, c.off))
		}
	}
}

// checkUntouched: the submitter's own fields and a write's buffer stay.
func checkUntouched(o *owner) {
	p := Pattern(4096, 8)
	before := bytes.Clone(p)
	w := WriteRequest(p, 0)
	w.Owner, w.Tag = o, 77
	w.Err = errors.New("left over from the last use")
	o.must(w)
	if w.Owner != o || w.Tag != 77 || w.Op != block.OpWrite || w.Off != 0 || w.Len != 4096 || &w.Buf[0] != &p[0] {
		o.Errorf("request was changed: %+v", w)
	}
	if !bytes.Equal(p, before) {
		o.Error("a write changed its buffer")
	}
	clear(p) // the queue has not kept it
	o.expect(0, before, "after the buffer was used again")
}

func checkDepth(o *owner) {
	const n = 256
	reqs := make([]*block.Request, n)
	for i := range reqs {
		reqs[i] = WriteRequest(Pattern(4096, uint64(i)), int64(i)*8192)
	}
	o.must(reqs...)
	for i := range reqs {
		reqs[i] = ReadRequest(Aligned(4096), int64(i)*8192)
	}
	o.must(reqs...)
	for i, r := range reqs {
		if Differ(r.Buf, Pattern(4096, uint64(i))) >= 0 {
			o.Fatalf("block %d holds other bytes", i)
		}
	}
}
