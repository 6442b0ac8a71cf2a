package store

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	arenaChunkNodes = 1024 // 4 MiB per chunk
	arenaMaxChunks  = 1 << 14
)

// nodeID names a node of a view; 0 is the empty node: all holes.
type nodeID uint32

// arena holds the nodes of all views outside the Go heap: 1 TiB of map is
// 128 MiB that the collector should neither scan nor double. Nodes are handed
// out and freed under the store's mutex; they are read without it by whoever
// holds a reference.
type arena struct {
	chunks [arenaMaxChunks]atomic.Pointer[arenaChunk]
	next   nodeID   // never handed out yet
	free   []nodeID // freed
	live   int      // nodes in use
	made   int64    // nodes handed out since start: work, for tests of O(1)
}

type arenaChunk struct {
	mem  []byte
	refs [arenaChunkNodes]atomic.Int32
	// gen is the checkpoint generation in which the node was made; guarded by
	// the store's mutex.
	gen [arenaChunkNodes]uint32
}

type leaf [leafEntries]uint64

type inner [innerEntries]nodeID

func newArena() *arena { return &arena{next: 1} }

// alloc returns a zeroed node with one reference.
func (a *arena) alloc(gen uint32) nodeID {
	var id nodeID
	reused := len(a.free) > 0
	if reused {
		id = a.free[len(a.free)-1]
		a.free = a.free[:len(a.free)-1]
	} else {
		id = a.next
		a.next++
	}
	ci := int(id) / arenaChunkNodes
	if ci >= arenaMaxChunks {
		panic("store: map of this drive exceeds 64 GiB of memory")
	}
	c := a.chunks[ci].Load()
	if c == nil {
		mem, err := unix.Mmap(-1, 0, arenaChunkNodes*nodeSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
		if err != nil {
			panic(fmt.Sprintf("store: no memory for the map: %v", err))
		}
		c = &arenaChunk{mem: mem}
		a.chunks[ci].Store(c)
	}
	if reused {
		clear(c.mem[int(id)%arenaChunkNodes*nodeSize:][:nodeSize])
	}
	c.refs[int(id)%arenaChunkNodes].Store(1)
	c.gen[int(id)%arenaChunkNodes] = gen
	a.live++
	a.made++
	return id
}

func (a *arena) put(id nodeID) {
	a.live--
	a.free = append(a.free, id)
}

func (a *arena) chunk(id nodeID) (*arenaChunk, int) {
	return a.chunks[id/arenaChunkNodes].Load(), int(id % arenaChunkNodes)
}

func (a *arena) leaf(id nodeID) *leaf {
	c, i := a.chunk(id)
	return (*leaf)(unsafe.Pointer(&c.mem[i*nodeSize]))
}

func (a *arena) inner(id nodeID) *inner {
	c, i := a.chunk(id)
	return (*inner)(unsafe.Pointer(&c.mem[i*nodeSize]))
}

func (a *arena) refs(id nodeID) *atomic.Int32 {
	c, i := a.chunk(id)
	return &c.refs[i]
}

func (a *arena) gen(id nodeID) uint32 {
	c, i := a.chunk(id)
	return c.gen[i]
}

// close unmaps everything; no node may be touched afterwards.
func (a *arena) close() error {
	var first error
	for i := range int(a.next)/arenaChunkNodes + 1 {
		if c := a.chunks[i].Swap(nil); c != nil {
			if err := unix.Munmap(c.mem); err != nil && first == nil {
				first = err
			}
		}
	}
	return first
}
