package faultblock_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/moraine-storage/moraine/drivers/aio"
	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/block/blocktest"
	"github.com/moraine-storage/moraine/drivers/block/faultblock"
	"github.com/moraine-storage/moraine/drivers/block/memblock"
)

func open(size int64, async bool, rules ...faultblock.Rule) (*faultblock.Queue, aio.Engine, error) {
	d, err := memblock.New(memblock.Options{Size: size, Async: async})
	if err != nil {
		return nil, nil, err
	}
	e, err := aio.New(aio.Inline)
	if err != nil {
		return nil, nil, err
	}
	return faultblock.New(d.OpenQueue(e.Wake), e.Wake, rules...), e, nil
}

func TestTransparent(t *testing.T) {
	for _, rules := range [][]faultblock.Rule{nil, {{Delay: 50 * time.Microsecond, Percent: 10, Seed: 1}}} {
		blocktest.Run(t, func(t *testing.T, size int64) (blocktest.Target, error) {
			q, e, err := open(size, true, rules...)
			return blocktest.Target{Queue: q, Engine: e}, err
		})
	}
}

// fixture runs single requests through rules.
type fixture struct {
	*testing.T
	q *faultblock.Queue
	e aio.Engine
}

func newFixture(t *testing.T, rules ...faultblock.Rule) *fixture {
	q, e, err := open(1<<20, false, rules...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(q.Close(), q.Close(), e.Close()); err != nil {
			t.Error(err)
		}
	})
	return &fixture{T: t, q: q, e: e}
}

func (f *fixture) do(r *block.Request) error {
	f.Helper()
	f.q.Submit([]*block.Request{r})
	f.reap()
	return r.Err
}

func (f *fixture) reap() *block.Request {
	f.Helper()
	done := make([]*block.Request, 1)
	for end := time.Now().Add(30 * time.Second); f.q.Reap(done) == 0; {
		if time.Now().After(end) {
			f.Fatalf("nothing ended, %d in flight", f.q.InFlight())
		}
		if _, err := f.e.Wait(nil, time.Second); err != nil {
			f.Fatal(err)
		}
	}
	return done[0]
}

func TestErrorBefore(t *testing.T) {
	f := newFixture(t, faultblock.Rule{Ops: []block.Op{block.OpWrite}, Off: 4096, End: 8192, Skip: 1, Count: 2, Err: block.ErrNoSpace})
	ones := bytes.Repeat([]byte{1}, 512)
	want := []error{nil, block.ErrNoSpace, block.ErrNoSpace, nil}
	for i, w := range want {
		if err := f.do(blocktest.WriteRequest(ones, 4096+int64(i)*512)); !errors.Is(err, w) {
			t.Errorf("write %d: %v, want %v", i, err, w)
		}
		// Outside the range and of another kind: never chosen.
		if err := errors.Join(f.do(blocktest.WriteRequest(ones, 8192)), f.do(blocktest.WriteRequest(ones, 3584)),
			f.do(blocktest.ReadRequest(make([]byte, 512), 4096)), f.do(&block.Request{Op: block.OpFlush})); err != nil {
			t.Errorf("bystander: %v", err)
		}
	}
	got := make([]byte, 2048)
	if err := f.do(blocktest.ReadRequest(got, 4096)); err != nil {
		t.Fatal(err)
	}
	if got[0] != 1 || got[512] != 0 || got[1024] != 0 || got[1536] != 1 {
		t.Error("a failed write reached the medium, or a good one did not")
	}
	if n := f.q.Faults(); n != 2 {
		t.Errorf("%d faults, want 2", n)
	}
}

func TestErrorAfter(t *testing.T) {
	f := newFixture(t, faultblock.Rule{Ops: []block.Op{block.OpWrite}, Count: 1, Err: block.ErrIO, After: true})
	if err := f.do(blocktest.WriteRequest(bytes.Repeat([]byte{1}, 512), 0)); !errors.Is(err, block.ErrIO) {
		t.Fatalf("write: %v", err)
	}
	got := make([]byte, 512)
	if err := f.do(blocktest.ReadRequest(got, 0)); err != nil || got[0] != 1 {
		t.Errorf("the write did not reach the medium: %d, %v", got[0], err)
	}
}

func TestHold(t *testing.T) {
	f := newFixture(t, faultblock.Rule{Ops: []block.Op{block.OpFlush}, Hold: true, Err: block.ErrIO, After: true})
	held := &block.Request{Op: block.OpFlush}
	f.q.Submit([]*block.Request{held})
	if err := f.do(blocktest.ReadRequest(make([]byte, 512), 0)); err != nil {
		t.Fatal(err)
	}
	if f.q.Held() != 1 || f.q.InFlight() != 1 {
		t.Fatalf("%d held, %d in flight", f.q.Held(), f.q.InFlight())
	}
	go f.q.Release()
	if r := f.reap(); r != held || !errors.Is(r.Err, block.ErrIO) {
		t.Errorf("released: %v, %v", r.Op, r.Err)
	}
}

func TestDelay(t *testing.T) {
	f := newFixture(t, faultblock.Rule{Delay: 20 * time.Millisecond})
	start := time.Now()
	if err := f.do(&block.Request{Op: block.OpFlush}); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took < 20*time.Millisecond {
		t.Errorf("delayed by %v only", took)
	}
}

// TestSeed: the same seed chooses the same requests, another one others.
func TestSeed(t *testing.T) {
	run := func(seed uint64) string {
		f := newFixture(t, faultblock.Rule{Percent: 50, Seed: seed, Err: block.ErrIO})
		var b strings.Builder
		for range 64 {
			if f.do(&block.Request{Op: block.OpFlush}) != nil {
				b.WriteByte('x')
			} else {
				b.WriteByte('.')
			}
		}
		return b.String()
	}
	if a, b := run(5), run(5); a != b {
		t.Errorf("one seed, two outcomes: %s %s", a, b)
	}
	if a, b := run(5), run(6); a == b {
		t.Errorf("two seeds, one outcome: %s", a)
	}
	if s := (faultblock.Rule{Ops: []block.Op{block.OpWrite}, Off: 512, Seed: 9, Err: block.ErrIO}).String(); !strings.Contains(s, "write") || !strings.Contains(s, "seed=9") {
		t.Errorf("rule prints as %q", s)
	}
}

func TestClosed(t *testing.T) {
	f := newFixture(t)
	if err := f.q.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.do(&block.Request{Op: block.OpFlush}); !errors.Is(err, block.ErrClosed) {
		t.Errorf("request after close: %v", err)
	}
}
