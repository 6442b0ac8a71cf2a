package buffer

import (
	"errors"
	"sync"
	"testing"
	"unsafe"

	"github.com/moraine-storage/moraine/drivers/block"
)

func TestSizes(t *testing.T) {
	p := New(1 << 30)
	defer p.Close()
	for _, c := range []struct{ n, capacity int }{
		{1, 4096}, {4096, 4096}, {4097, 8192}, {65536, 65536}, {65537, 131072}, {256 << 10, 256 << 10},
		{256<<10 + 1, 512 << 10}, {1 << 20, 1 << 20}, {MaxSize - 1, MaxSize}, {MaxSize, MaxSize},
	} {
		b, err := p.Get(c.n)
		if err != nil {
			t.Fatalf("get %d: %v", c.n, err)
		}
		if len(b) != c.n || cap(b) != c.capacity || uintptr(unsafe.Pointer(&b[0]))%4096 != 0 {
			t.Errorf("get %d: length %d, capacity %d at %p", c.n, len(b), cap(b), &b[0])
		}
		for i := range b {
			b[i] = 1
		}
		p.Put(b[:1])
	}
	for _, n := range []int{-1, 0, MaxSize + 1} {
		if _, err := p.Get(n); !errors.Is(err, block.ErrInvalid) {
			t.Errorf("get %d: %v", n, err)
		}
	}
	if s := p.Stats(); s.Out != 0 {
		t.Errorf("%d bytes out at the end", s.Out)
	}
}

func TestLimit(t *testing.T) {
	p := New(64 << 10)
	defer p.Close()
	var all [][]byte
	for {
		b, err := p.Get(8000)
		if err != nil {
			if !errors.Is(err, block.ErrNoMemory) {
				t.Fatal(err)
			}
			break
		}
		all = append(all, b)
	}
	if len(all) != 8 {
		t.Errorf("%d buffers of 8 KiB from 64 KiB", len(all))
	}
	p.Put(all[0])
	if _, err := p.Get(8192); err != nil {
		t.Errorf("after a put: %v", err)
	}
	if _, err := p.Get(1); !errors.Is(err, block.ErrNoMemory) {
		t.Errorf("limit passed: %v", err)
	}
}

// TestDistinct: buffers that are out at one time never overlap.
func TestDistinct(t *testing.T) {
	p := New(256 << 20)
	defer p.Close()
	var wg sync.WaitGroup
	for g := range byte(8) {
		wg.Go(func() {
			for i := range 300 {
				n := 1 + (i*7919+int(g)*104729)%(300<<10)
				b, err := p.Get(n)
				if err != nil {
					t.Error(err)
					return
				}
				for j := range b {
					b[j] = g
				}
				for j := range b {
					if b[j] != g {
						t.Errorf("byte %d of a buffer of %d was written by %d", j, g, b[j])
						return
					}
				}
				p.Put(b)
			}
		})
	}
	wg.Wait()
}

func TestIdle(t *testing.T) {
	p := New(1 << 30)
	var all [][]byte
	for range 5 {
		b, err := p.Get(MaxSize)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b)
	}
	for _, b := range all {
		p.Put(b)
	}
	if s := p.Stats(); s.Mapped != keepLarge*MaxSize {
		t.Errorf("%d bytes kept, want %d", s.Mapped, keepLarge*MaxSize)
	}
	small, err := p.Get(10)
	if err != nil {
		t.Fatal(err)
	}
	small[0] = 9
	p.Idle()
	if s := p.Stats(); s.Mapped != slabSize || small[0] != 9 {
		t.Errorf("%d bytes mapped when idle, want one slab; byte in use %d", s.Mapped, small[0])
	}
	p.Close()
	p.Put(small)
	if _, err := p.Get(10); !errors.Is(err, block.ErrClosed) {
		t.Errorf("get after close: %v", err)
	}
}

func TestForeign(t *testing.T) {
	p := New(1 << 20)
	for name, b := range map[string][]byte{
		"nothing": nil, "small": make([]byte, 100), "odd": make([]byte, 5000), "never got": make([]byte, 1<<24)[:4096:4096],
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: put of a foreign buffer was accepted", name)
				}
			}()
			p.Put(b)
		}()
	}
}

func TestNoAllocation(t *testing.T) {
	p := New(1 << 30)
	defer p.Close()
	if n := testing.AllocsPerRun(100, func() {
		b, err := p.Get(4096)
		if err != nil {
			t.Fatal(err)
		}
		p.Put(b)
	}); n != 0 {
		t.Errorf("%.1f allocations per get and put", n)
	}
}
