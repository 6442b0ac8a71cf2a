package block_test

import (
	"errors"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/block/blocktest"
)

func TestCutInwards(t *testing.T) {
	const g = 65536
	for _, c := range []struct{ off, n, size, wantOff, wantN int64 }{
		{0, 0, 1 << 30, 0, 0},
		{0, g, 1 << 30, 0, g},
		{512, g, 1 << 30, g, 0},
		{512, 2 * g, 1 << 30, g, g},
		{0, g - 512, 1 << 30, 0, 0},
		{0, g + 512, 1 << 30, 0, g},
		{g, g + 512, 2*g + 512, g, g + 512}, // to the end of the device
		{2 * g, 512, 2*g + 512, 2 * g, 512},
		{2*g + 512, 512, 2*g + 1024, 3 * g, 0},
		{0, 3 * g, 3 * g, 0, 3 * g},
	} {
		off, n := block.CutInwards(c.off, c.n, g, c.size)
		if n != c.wantN || (n > 0 && off != c.wantOff) {
			t.Errorf("[%d,+%d) of %d: [%d,+%d), want [%d,+%d)", c.off, c.n, c.size, off, n, c.wantOff, c.wantN)
		}
	}
}

func TestValidateReadOnly(t *testing.T) {
	info := block.Info{Size: 1 << 20, MaxLen: 1 << 20, ReadOnly: true}
	for op, want := range map[block.Op]error{
		block.OpRead: nil, block.OpFlush: nil, block.OpCache: nil,
		block.OpWrite: block.ErrReadOnly, block.OpTrim: block.ErrReadOnly, block.OpZero: block.ErrReadOnly,
	} {
		r := &block.Request{Op: op, Len: 512, Buf: make([]byte, 512)}
		if err := block.Validate(r, info); !errors.Is(err, want) {
			t.Errorf("%v: %v, want %v", op, err, want)
		}
	}
}

// TestValidateAccepts: whatever the numbers, what is accepted lies inside the
// device and fits its buffer.
func TestValidateAccepts(t *testing.T) {
	seed := blocktest.Seed(t)
	r := rand.New(rand.NewPCG(seed, 1))
	info := block.Info{Size: 1 << 30, MaxLen: 32 << 20}
	edges := []int64{0, 512, 1 << 20, 32 << 20, 1 << 30, 1 << 62, math.MaxInt64 - 511, math.MinInt64, -512}
	number := func() int64 { return edges[r.IntN(len(edges))] + r.Int64N(3)*512 + r.Int64N(50)/49 }
	buf := make([]byte, 33<<20)
	accepted := 0
	for range 200000 {
		req := &block.Request{Op: block.Op(r.IntN(8)), Flags: block.Flags(r.IntN(16)), Off: number(), Len: number()}
		req.Buf = buf[:max(min(number(), int64(len(buf))), 0)]
		if block.Validate(req, info) != nil || req.Op == block.OpFlush {
			continue
		}
		accepted++
		if req.Off < 0 || req.Len < 0 || req.End() < req.Off || req.End() > info.Size || req.Len > info.MaxLen || (req.Off|req.Len)%512 != 0 {
			t.Fatalf("accepted %v of %d at %d", req.Op, req.Len, req.Off)
		}
		if (req.Op == block.OpRead || req.Op == block.OpWrite) && int64(len(req.Buf)) != req.Len {
			t.Fatalf("accepted %v of %d with a buffer of %d", req.Op, req.Len, len(req.Buf))
		}
	}
	if accepted == 0 {
		t.Error("nothing was accepted")
	}
}
