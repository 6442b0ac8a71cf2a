package store

import (
	"fmt"
	"math/bits"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	exChunkShift = 20 // extents per chunk: 64 GiB of data
	exChunkSize  = 1 << exChunkShift
	exMaxChunks  = 1 << (31 - exChunkShift)
	exWords      = exChunkSize / 64
	countMax     = 255 // stored count that means: see over
)

// extents counts the leaves that name each physical extent and knows which
// extents are free. An extent is in exactly one state:
//
//	fresh    at or above hwm: never given out since open, reads as zeros
//	used     count > 0, or handed to a writer whose map entry is to come
//	pending  freed, but the free is not durable or I/O may still be under way (pending.go)
//	suspect  free, but may hold old bytes: for whole-extent writes, or punched first
//	clean    free and reads as zeros
//
// Everything is guarded by the store's mutex but count, which anyone reads.
type extents struct {
	chunks [exMaxChunks]atomic.Pointer[exChunk]
	over   map[uint32]uint32 // counts of 255 and more

	hwm      uint32 // first extent never given out
	limit    uint32 // extents the drive may hold
	nClean   int
	nSuspect int
	nUsed    int // used, without pending
	cleanAt  uint32
	susAt    uint32
}

// exChunk is 1 MiB of counts, four to a word so that they can be read with
// one atomic load, and two bitmaps of 128 KiB.
type exChunk struct {
	counts  [exChunkSize / 4]uint32
	clean   [exWords]uint64
	suspect [exWords]uint64
}

func newExtents(limit uint32) *extents {
	return &extents{limit: limit, over: map[uint32]uint32{}}
}

func (x *extents) chunk(p uint32) *exChunk {
	c := x.chunks[p>>exChunkShift].Load()
	if c == nil {
		mem, err := unix.Mmap(-1, 0, int(unsafe.Sizeof(exChunk{})), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
		if err != nil {
			panic(fmt.Sprintf("store: no memory for extent counts: %v", err))
		}
		c = (*exChunk)(unsafe.Pointer(&mem[0]))
		x.chunks[p>>exChunkShift].Store(c)
	}
	return c
}

func (x *extents) close() error {
	var first error
	for i := range x.chunks {
		if c := x.chunks[i].Swap(nil); c != nil {
			mem := unsafe.Slice((*byte)(unsafe.Pointer(c)), int(unsafe.Sizeof(*c)))
			if err := unix.MunmapPtr(unsafe.Pointer(&mem[0]), uintptr(len(mem))); err != nil && first == nil {
				first = err
			}
		}
	}
	return first
}

// sole says whether one leaf alone names p. Any goroutine.
func (x *extents) sole(p uint32) bool {
	c := x.chunks[p>>exChunkShift].Load()
	if c == nil {
		return false
	}
	i := p % exChunkSize
	return uint8(atomic.LoadUint32(&c.counts[i/4])>>(i%4*8)) == 1
}

func (x *extents) count(p uint32) uint32 {
	c := x.chunk(p)
	i := p % exChunkSize
	n := uint32(uint8(c.counts[i/4] >> (i % 4 * 8)))
	if n == countMax {
		return x.over[p]
	}
	return n
}

func (x *extents) put(p, n uint32) {
	c := x.chunk(p)
	i, sh := p%exChunkSize/4, p%4*8
	if n >= countMax {
		x.over[p] = n
		n = countMax
	} else if len(x.over) > 0 {
		delete(x.over, p)
	}
	atomic.StoreUint32(&c.counts[i], c.counts[i]&^(0xff<<sh)|n<<sh)
}

func (x *extents) inc(p uint32) { x.put(p, x.count(p)+1) }

// dec returns the new count. The caller frees the extent at 0.
func (x *extents) dec(p uint32) uint32 {
	n := x.count(p)
	if n == 0 {
		panic(fmt.Sprintf("store: extent %d released twice", p))
	}
	x.put(p, n-1)
	return n - 1
}

// take hands out one extent, or false. It prefers what has been used before:
// whole says that the writer overwrites all of it, so that old bytes do not
// matter. suspect tells that it must be punched before a part is written.
func (x *extents) take(whole bool) (p uint32, suspect, ok bool) {
	switch {
	case whole && x.nSuspect > 0:
		p, suspect, ok = x.takeBit(&x.susAt, false), true, true
	case !whole && x.nClean > 0:
		p, ok = x.takeBit(&x.cleanAt, true), true
	case x.hwm < x.limit:
		p, ok = x.hwm, true
		x.hwm++
		x.chunk(p)
	case x.nClean > 0:
		p, ok = x.takeBit(&x.cleanAt, true), true
	case x.nSuspect > 0:
		p, suspect, ok = x.takeBit(&x.susAt, false), true, true
	default:
		return 0, false, false
	}
	x.nUsed++
	return p, suspect, ok
}

// takeBit removes the next set bit at or after *at, which exists.
func (x *extents) takeBit(at *uint32, clean bool) uint32 {
	p := *at
	for {
		if p >= x.hwm {
			p = 0
		}
		c := x.chunk(p)
		words := &c.suspect
		if clean {
			words = &c.clean
		}
		i := p % exChunkSize
		if w := words[i/64] >> (i % 64); w != 0 {
			p += uint32(bits.TrailingZeros64(w))
			i = p % exChunkSize
			words[i/64] &^= 1 << (i % 64)
			*at = p + 1
			if clean {
				x.nClean--
			} else {
				x.nSuspect--
			}
			return p
		}
		p = p&^63 + 64
	}
}

func (x *extents) setSuspect(p uint32) {
	i := p % exChunkSize
	w := &x.chunk(p).suspect[i/64]
	if *w&(1<<(i%64)) != 0 {
		panic(fmt.Sprintf("store: extent %d freed twice", p))
	}
	*w |= 1 << (i % 64)
	x.nSuspect++
}

func (x *extents) setClean(p uint32) {
	i := p % exChunkSize
	x.chunk(p).clean[i/64] |= 1 << (i % 64)
	x.nClean++
}

// suspectRun takes the next run of at most most suspect extents.
func (x *extents) suspectRun(most int) (p uint32, n int) {
	if x.nSuspect == 0 {
		return 0, 0
	}
	p = x.takeBit(&x.susAt, false)
	for n = 1; n < most; n++ {
		q := p + uint32(n)
		if q >= x.hwm {
			break
		}
		i := q % exChunkSize
		w := &x.chunk(q).suspect[i/64]
		if *w&(1<<(i%64)) == 0 {
			break
		}
		*w &^= 1 << (i % 64)
		x.nSuspect--
	}
	x.susAt = p + uint32(n)
	return p, n
}
