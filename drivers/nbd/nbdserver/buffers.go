package nbdserver

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// headRoom is what a buffer has before its payload, for the reply's header: a
// page, so that the payload is page-aligned. Only its end is ever touched.
const headRoom = 4096

// classes are the sizes of payload that buffers come in.
var classes = [...]int{4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 32 << 20}

// firstLarge is the class from which buffers are mapped one by one and unmapped.
const firstLarge = 3

// buffer is payload memory of one request outside the Go heap.
type buffer struct {
	mem   []byte // headRoom + size of its class
	class int
	next  *buffer
}

// payload returns the first n bytes of payload, page-aligned.
func (b *buffer) payload(n int) []byte { return b.mem[headRoom : headRoom+n : headRoom+n] }

// slab is memory that many small requests are received into.
type slab struct {
	mem  []byte
	refs int  // requests that use bytes of it
	left bool // no connection receives into it any more
	next *slab
}

// pool holds the memory of a loop; its goroutine's own.
type pool struct {
	free   [len(classes)]*buffer
	slabs  *slab
	kept   int      // bytes of large free buffers
	groups [][]byte // mappings of small buffers, until close
	used   bool     // something was given back since the last trim
}

func mapMemory(n int) ([]byte, error) {
	p, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	return p, nil
}

// get returns a buffer for n bytes of payload, n ≤ the largest class.
func (p *pool) get(n int) (*buffer, error) {
	c := 0
	for classes[c] < n {
		c++
	}
	if p.free[c] == nil {
		if err := p.grow(c); err != nil {
			return nil, err
		}
	}
	b := p.free[c]
	p.free[c], b.next = b.next, nil
	if c >= firstLarge {
		p.kept -= classes[c]
	}
	return b, nil
}

// grow maps buffers of class c: about 256 KiB of the small ones at once.
func (p *pool) grow(c int) error {
	stride, n := headRoom+classes[c], 1
	if c < firstLarge {
		n = max(1, slabSize/stride)
	}
	mem, err := mapMemory(stride * n)
	if err != nil {
		return err
	}
	if c < firstLarge {
		p.groups = append(p.groups, mem)
	} else {
		p.kept += classes[c]
	}
	for i := range n {
		p.free[c] = &buffer{mem: mem[i*stride : (i+1)*stride : (i+1)*stride], class: c, next: p.free[c]}
	}
	return nil
}

func (p *pool) put(b *buffer) {
	p.used = true
	if b.class >= firstLarge {
		if p.kept+classes[b.class] > poolKeep {
			_ = unix.Munmap(b.mem) // fails only for addresses that were never mapped
			return
		}
		p.kept += classes[b.class]
	}
	b.next = p.free[b.class]
	p.free[b.class] = b
}

func (p *pool) getSlab() (*slab, error) {
	if s := p.slabs; s != nil {
		p.slabs, s.next, s.left = s.next, nil, false
		return s, nil
	}
	mem, err := mapMemory(slabSize)
	if err != nil {
		return nil, err
	}
	return &slab{mem: mem}, nil
}

func (p *pool) putSlab(s *slab) {
	p.used = true
	s.next = p.slabs
	p.slabs = s
}

// trim gives the memory of free buffers back to the system.
func (p *pool) trim() {
	p.used = false
	for p.slabs != nil {
		_ = unix.Munmap(p.slabs.mem)
		p.slabs = p.slabs.next
	}
	for c := range p.free {
		if c < firstLarge {
			for b := p.free[c]; b != nil; b = b.next {
				_ = unix.Madvise(b.mem, unix.MADV_DONTNEED)
			}
			continue
		}
		for p.free[c] != nil {
			_ = unix.Munmap(p.free[c].mem)
			p.kept -= classes[c]
			p.free[c] = p.free[c].next
		}
	}
}

// close unmaps everything; all buffers have been put back.
func (p *pool) close() {
	p.trim()
	for _, g := range p.groups {
		_ = unix.Munmap(g)
	}
	*p = pool{}
}

// iovec fills v with p.
func iovec(v *unix.Iovec, p []byte) {
	v.Base = unsafe.SliceData(p)
	v.SetLen(len(p))
}
