// Package memblock is a block device in memory, for tests and as the medium of
// benchmarks of what lies above it. It can lose what was not flushed, as a
// power cut does.
//
// A Disk is the medium; OpenQueue gives one owner access to it. Several queues
// of one disk may be used at the same time, by several goroutines.
package memblock

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/moraine-storage/moraine/drivers/block"
)

const (
	// Grain is the unit of allocation, as in a store.
	Grain = 64 << 10
	// MaxLen is the largest request.
	MaxLen = 32 << 20
	// MaxSize bounds the table of grains: 2^24 pointers are 128 MiB.
	MaxSize = 1 << 40
)

// Options of a Disk.
type Options struct {
	Size     int64 // bytes, multiple of SectorSize, 1 to MaxSize
	ReadOnly bool

	// Crashable keeps what each sector held since the last flush, so that
	// Crash can choose. It costs an allocation per written sector.
	Crashable bool

	// Async ends requests in a random order drawn from Seed, some of them
	// after a later Reap, as a real medium does. The default ends them in
	// Submit.
	Async bool
	Seed  uint64
}

// Disk is the medium.
type Disk struct {
	o Options

	mu     sync.RWMutex       // reads shared; guards all below
	grains [][]byte           // nil: a hole
	old    map[int64][][]byte // crashable: by sector, contents since the last flush, oldest first; nil is zeros
	size   int64
}

// New makes an empty disk: all holes.
func New(o Options) (*Disk, error) {
	if o.Size <= 0 || o.Size > MaxSize || o.Size%block.SectorSize != 0 {
		return nil, fmt.Errorf("memory disk of %d bytes: not 1 to %d sectors: %w", o.Size, int64(MaxSize/block.SectorSize), block.ErrInvalid)
	}
	d := &Disk{o: o, size: o.Size, grains: make([][]byte, (o.Size+Grain-1)/Grain)}
	if o.Crashable {
		d.old = map[int64][][]byte{}
	}
	return d, nil
}

// Grow makes the disk larger; what is new reads as zeros. It never shrinks.
func (d *Disk) Grow(size int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if size < d.size || size > MaxSize || size%block.SectorSize != 0 {
		return fmt.Errorf("grow memory disk of %d bytes to %d: %w", d.size, size, block.ErrInvalid)
	}
	d.grains = append(d.grains, make([][]byte, (size+Grain-1)/Grain-int64(len(d.grains)))...)
	d.size = size
	return nil
}

// Crash makes the disk as after a power cut: each sector holds what the last
// flush covered or any of what was written since, chosen by seed. Requests in
// flight on open queues must have been reaped.
func (d *Disk) Crash(seed uint64) error {
	if !d.o.Crashable {
		return fmt.Errorf("crash memory disk: not made crashable: %w", block.ErrInvalid)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	r := rand.New(rand.NewPCG(seed, 0))
	sectors := make([]int64, 0, len(d.old))
	for sector := range d.old {
		sectors = append(sectors, sector)
	}
	slices.Sort(sectors) // one seed, one outcome
	for _, sector := range sectors {
		if i := r.IntN(len(d.old[sector]) + 1); i < len(d.old[sector]) {
			d.set(sector*block.SectorSize, block.SectorSize, d.old[sector][i], false)
		}
	}
	clear(d.old)
	return nil
}

// span calls f for each part of [off, off+n) in one grain.
func span(off, n int64, f func(grain, from, length, done int64)) {
	for done := int64(0); done < n; {
		from := (off + done) % Grain
		length := min(Grain-from, n-done)
		f((off+done)/Grain, from, length, done)
		done += length
	}
}

func (d *Disk) read(p []byte, off int64) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	span(off, int64(len(p)), func(g, from, length, done int64) {
		if d.grains[g] == nil {
			clear(p[done : done+length])
		} else {
			copy(p[done:done+length], d.grains[g][from:])
		}
	})
}

// write changes [off, off+n) to p, or to zeros when p is nil. Zeroing a
// whole grain frees it unless keep is set.
func (d *Disk) write(p []byte, off, n int64, keep bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.remember(off, n)
	d.set(off, n, p, keep)
}

func (d *Disk) set(off, n int64, p []byte, keep bool) {
	span(off, n, func(g, from, length, done int64) {
		whole := from == 0 && (length == Grain || off+done+length == d.size)
		switch {
		case p == nil && whole && !keep:
			d.grains[g] = nil
			return
		case d.grains[g] == nil && p == nil && !keep:
			return
		case d.grains[g] == nil:
			d.grains[g] = make([]byte, Grain)
		}
		if p == nil {
			clear(d.grains[g][from : from+length])
		} else {
			copy(d.grains[g][from:from+length], p[done:])
		}
	})
}

// remember keeps what the sectors hold now, for Crash.
func (d *Disk) remember(off, n int64) {
	if d.old == nil {
		return
	}
	for at := off; at < off+n; at += block.SectorSize {
		var content []byte
		if g := d.grains[at/Grain]; g != nil {
			content = slices.Clone(g[at%Grain : at%Grain+block.SectorSize])
		}
		sector := at / block.SectorSize
		d.old[sector] = append(d.old[sector], content)
	}
}

// sync makes [off, off+n) durable as it is; n < 0 means everything.
func (d *Disk) sync(off, n int64) {
	if !d.o.Crashable {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if n < 0 {
		clear(d.old)
		return
	}
	for at := off; at < off+n; at += block.SectorSize {
		delete(d.old, at/block.SectorSize)
	}
}

// extents appends the state of [off, off+n), grain by grain, merged.
func (d *Disk) extents(dst []block.Extent, off, n int64, limit int) []block.Extent {
	d.mu.RLock()
	defer d.mu.RUnlock()
	first := len(dst)
	for end := off + n; off < end; {
		next := min((off/Grain+1)*Grain, end)
		hole := d.grains[off/Grain] == nil
		if last := len(dst) - 1; last >= first && dst[last].Hole == hole {
			dst[last].Len += next - off
		} else {
			if limit > 0 && len(dst)-first == limit {
				return dst
			}
			dst = append(dst, block.Extent{Off: off, Len: next - off, Hole: hole, Zero: hole})
		}
		off = next
	}
	return dst
}
