package memblock_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/moraine-storage/moraine/drivers/aio"
	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/block/blocktest"
	"github.com/moraine-storage/moraine/drivers/block/memblock"
)

func TestInline(t *testing.T) {
	blocktest.Run(t, func(t *testing.T, size int64) (blocktest.Target, error) {
		d, err := memblock.New(memblock.Options{Size: size, Crashable: true})
		if err != nil {
			return blocktest.Target{}, err
		}
		return blocktest.Target{Queue: d.OpenQueue(nil)}, nil
	})
}

func TestAsync(t *testing.T) {
	seed := blocktest.Seed(t)
	blocktest.Run(t, func(t *testing.T, size int64) (blocktest.Target, error) {
		d, err := memblock.New(memblock.Options{Size: size, Async: true, Seed: seed})
		if err != nil {
			return blocktest.Target{}, err
		}
		e, err := aio.New(aio.Inline)
		if err != nil {
			return blocktest.Target{}, err
		}
		return blocktest.Target{Queue: d.OpenQueue(e.Wake), Engine: e}, nil
	})
}

func TestOptions(t *testing.T) {
	for _, size := range []int64{-512, 0, 1, 513, memblock.MaxSize + 512} {
		if _, err := memblock.New(memblock.Options{Size: size}); !errors.Is(err, block.ErrInvalid) {
			t.Errorf("size %d: %v, want invalid", size, err)
		}
	}
}

// do runs requests on a synchronous disk.
func do(t *testing.T, q block.Queue, reqs ...*block.Request) {
	t.Helper()
	q.Submit(reqs)
	if n := q.Reap(make([]*block.Request, len(reqs)+1)); n != len(reqs) {
		t.Fatalf("%d of %d requests ended", n, len(reqs))
	}
	for _, r := range reqs {
		if r.Err != nil {
			t.Fatalf("%v at %d: %v", r.Op, r.Off, r.Err)
		}
	}
}

// TestCrash: what was flushed or written with FUA stays, of the rest each
// sector is one of its versions, and every version turns up for some seed.
func TestCrash(t *testing.T) {
	seen := map[byte]bool{}
	for seed := range uint64(200) {
		d, err := memblock.New(memblock.Options{Size: 1 << 20, Crashable: true})
		if err != nil {
			t.Fatal(err)
		}
		q := d.OpenQueue(nil)
		sectors := func(b byte, n int) []byte { return bytes.Repeat([]byte{b}, n*block.SectorSize) }
		do(t, q, blocktest.WriteRequest(sectors(1, 8), 0))
		do(t, q, &block.Request{Op: block.OpFlush})
		do(t, q, blocktest.WriteRequest(sectors(2, 8), 0))
		do(t, q, blocktest.WriteRequest(sectors(3, 8), 0))
		fua := blocktest.WriteRequest(sectors(4, 2), 0)
		fua.Flags = block.FUA
		do(t, q, fua)
		if err := d.Crash(seed); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 10*block.SectorSize)
		do(t, q, blocktest.ReadRequest(got, 0))
		for s := range 10 {
			b := got[s*block.SectorSize]
			if !bytes.Equal(got[s*block.SectorSize:(s+1)*block.SectorSize], sectors(b, 1)) {
				t.Fatalf("seed %d: sector %d is torn", seed, s)
			}
			switch {
			case s < 2 && b != 4, s >= 2 && s < 8 && (b < 1 || b > 3), s >= 8 && b != 0:
				t.Fatalf("seed %d: sector %d holds %d", seed, s, b)
			case s >= 2 && s < 8:
				seen[b] = true
			}
		}
		// What the crash left is what the next crash keeps.
		if err := d.Crash(seed + 1); err != nil {
			t.Fatal(err)
		}
		again := make([]byte, len(got))
		do(t, q, blocktest.ReadRequest(again, 0))
		if !bytes.Equal(got, again) {
			t.Fatalf("seed %d: a second crash changed the disk", seed)
		}
	}
	if len(seen) != 3 {
		t.Errorf("versions seen after crashes: %v, want 1, 2 and 3", seen)
	}
}

func TestReadOnlyAndGrow(t *testing.T) {
	d, err := memblock.New(memblock.Options{Size: 1 << 20, ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	q := d.OpenQueue(nil)
	w := blocktest.WriteRequest(make([]byte, 512), 0)
	q.Submit([]*block.Request{w})
	q.Reap(make([]*block.Request, 1))
	if !errors.Is(w.Err, block.ErrReadOnly) {
		t.Errorf("write to a read-only disk: %v", w.Err)
	}
	do(t, q, &block.Request{Op: block.OpFlush}, blocktest.ReadRequest(make([]byte, 512), 0))
	if err := d.Grow(512); !errors.Is(err, block.ErrInvalid) {
		t.Errorf("shrink: %v", err)
	}
	if err := d.Grow(2<<20 + 512); err != nil {
		t.Fatal(err)
	}
	do(t, q, blocktest.ReadRequest(make([]byte, 512), 2<<20))
}
