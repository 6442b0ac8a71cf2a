package block_test

import (
	"errors"
	"testing"

	"github.com/moraine-storage/moraine/drivers/block"
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

func FuzzValidate(f *testing.F) {
	f.Add(uint8(1), uint8(0), int64(0), int64(512), 512)
	f.Add(uint8(2), uint8(1), int64(-1<<63), int64(1<<62), 0)
	f.Add(uint8(5), uint8(7), int64(1<<63-512), int64(512), 0)
	info := block.Info{Size: 1 << 30, MaxLen: 32 << 20}
	f.Fuzz(func(t *testing.T, op, flags uint8, off, length int64, n int) {
		r := &block.Request{Op: block.Op(op), Flags: block.Flags(flags), Off: off, Len: length, Buf: make([]byte, min(max(n, 0), 1<<20))}
		if block.Validate(r, info) != nil || r.Op == block.OpFlush {
			return
		}
		if r.Off < 0 || r.Len < 0 || r.End() > info.Size || r.End() < r.Off || r.Len > info.MaxLen {
			t.Errorf("accepted %v of %d at %d", r.Op, r.Len, r.Off)
		}
		if (r.Op == block.OpRead || r.Op == block.OpWrite) && int64(len(r.Buf)) != r.Len {
			t.Errorf("accepted %v of %d with a buffer of %d", r.Op, r.Len, len(r.Buf))
		}
	})
}
