// Package buffer hands out page-aligned memory outside the Go heap, for
// payloads of requests: the collector neither scans nor counts it, it never
// moves, and direct I/O takes it as it is.
//
// Sizes are powers of two from MinSize to MaxSize. Small ones are cut from
// slabs that stay; a large one is a mapping of its own that goes back to the
// kernel when enough are kept. With the race detector on (or the build tag
// moraine_poison) a returned buffer is filled with a pattern, and a write to it
// after that is found when it is handed out again.
package buffer

import (
	"fmt"
	"math/bits"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/drivers/block"
)

// Pool is bounded and may be used by any goroutine. Buffers of one pool must
// go back to it.
type Pool struct {
	limit int64

	mu     sync.Mutex
	free   [classes][][]byte
	out    int64 // bytes handed out
	mapped int64 // bytes mapped: out, and what is kept
	closed bool
}

// New makes a pool that hands out at most limit bytes at one time; it maps
// nothing yet.
func New(limit int64) *Pool { return &Pool{limit: limit} }

func classOf(n int) int {
	if n <= MinSize {
		return 0
	}
	return bits.Len(uint(n-1)) - minBits
}

// Get returns a buffer of n bytes, 1 to MaxSize; its capacity is the next
// power of two and its contents are anything. block.ErrNoMemory says that the
// limit is reached or the kernel has none: wait for a Put.
func (p *Pool) Get(n int) ([]byte, error) {
	if n <= 0 || n > MaxSize {
		return nil, fmt.Errorf("buffer of %d bytes: not 1 to %d: %w", n, MaxSize, block.ErrInvalid)
	}
	class := classOf(n)
	size := int64(MinSize) << class
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, block.ErrClosed
	}
	if p.out+size > p.limit {
		return nil, block.ErrNoMemory
	}
	if len(p.free[class]) == 0 {
		if err := p.refill(class); err != nil {
			return nil, err
		}
	}
	list := p.free[class]
	b := list[len(list)-1]
	p.free[class] = list[:len(list)-1]
	p.out += size
	checkPoison(b)
	return b[:n], nil
}

// refill maps memory for one class; mu is held.
func (p *Pool) refill(class int) error {
	size := MinSize << class
	length := max(size, slabSize)
	// The Ptr forms: unix.Mmap keeps a table of mappings, which only whole ones leave.
	ptr, err := unix.MmapPtr(-1, 0, nil, uintptr(length), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return fmt.Errorf("map %d bytes: %w: %w", length, err, block.ErrNoMemory)
	}
	m := unsafe.Slice((*byte)(ptr), length)
	p.mapped += int64(length)
	for off := 0; off < length; off += size {
		b := m[off : off+size : off+size]
		poison(b)
		p.free[class] = append(p.free[class], b)
	}
	return nil
}

// Put takes a buffer back, as Get returned it or shortened at its end. A
// buffer that is none of this package's is a bug and panics.
func (p *Pool) Put(b []byte) {
	b = b[:cap(b)]
	if len(b) < MinSize || len(b) > MaxSize || len(b)&(len(b)-1) != 0 || uintptr(unsafe.Pointer(&b[0]))%MinSize != 0 {
		panic(fmt.Sprintf("buffer: put of %d bytes at %p: not from a pool", len(b), unsafe.SliceData(b)))
	}
	class := classOf(len(b))
	p.mu.Lock()
	defer p.mu.Unlock()
	checkOnce(p.free[class], b)
	if p.out < int64(len(b)) {
		panic("buffer: more was put than got")
	}
	p.out -= int64(len(b))
	if len(b) > slabSize && (p.closed || len(p.free[class]) >= keepLarge) {
		p.unmap(b)
		return
	}
	poison(b)
	p.free[class] = append(p.free[class], b)
}

func (p *Pool) unmap(b []byte) {
	if err := unix.MunmapPtr(unsafe.Pointer(&b[0]), uintptr(len(b))); err != nil {
		panic(fmt.Sprintf("buffer: unmap %d bytes: %v", len(b), err))
	}
	p.mapped -= int64(len(b))
}

// Stats of a pool, in bytes.
type Stats struct {
	Limit, Out, Mapped int64
}

// Stats tells what is handed out and what is mapped.
func (p *Pool) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return Stats{Limit: p.limit, Out: p.out, Mapped: p.mapped}
}

// Idle gives the memory of all free buffers back to the kernel: large ones
// are unmapped, the pages of small ones dropped.
func (p *Pool) Idle() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for class := range p.free {
		if size := MinSize << class; size > slabSize {
			for _, b := range p.free[class] {
				p.unmap(b)
			}
			p.free[class] = nil
			continue
		}
		for _, b := range p.free[class] {
			// A refusal costs memory, nothing else.
			_ = unix.Madvise(b, unix.MADV_DONTNEED)
			poison(b)
		}
	}
}

// Close makes Get fail and gives back what is free. Slabs stay mapped while
// the process lives: a buffer that is still out may lie in one.
func (p *Pool) Close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.Idle()
}
