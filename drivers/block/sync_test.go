package block_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/moraine-storage/moraine/drivers/aio"
	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/block/blocktest"
	"github.com/moraine-storage/moraine/drivers/block/faultblock"
	"github.com/moraine-storage/moraine/drivers/block/memblock"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var ctx = context.Background()

// eachSync runs f over the ways a Sync works: the caller as owner with requests
// that end in Submit and with ones that end later, and an owner goroutine.
func eachSync(t *testing.T, f func(t *testing.T, mode aio.Mode, async bool)) {
	for _, c := range []struct {
		name  string
		mode  aio.Mode
		async bool
	}{{"Inline", aio.Inline, false}, {"InlineAsync", aio.Inline, true}, {"Threads", aio.Threads, true}, {"Auto", aio.Auto, false}, {"AutoAsync", aio.Auto, true}} {
		t.Run(c.name, func(t *testing.T) { f(t, c.mode, c.async) })
	}
}

func newSync(t *testing.T, mode aio.Mode, o memblock.Options, wrap func(block.Queue, aio.Engine) block.Queue) (*block.Sync, *memblock.Disk) {
	t.Helper()
	d, err := memblock.New(o)
	if err != nil {
		t.Fatal(err)
	}
	s, err := block.NewSync(func() (aio.Engine, error) { return aio.New(mode) }, func(e aio.Engine) (block.Queue, error) {
		var q block.Queue = d.OpenQueue(e.Wake)
		if wrap != nil {
			q = wrap(q, e)
		}
		return q, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for range 2 {
			if err := s.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		}
	})
	return s, d
}

// TestSyncModel: many goroutines, each with its own stripe and a byte array of
// what it must hold.
func TestSyncModel(t *testing.T) {
	eachSync(t, func(t *testing.T, mode aio.Mode, async bool) {
		const workers, stripe = 8, 512 << 10
		seed := blocktest.Seed(t)
		s, _ := newSync(t, mode, memblock.Options{Size: workers * stripe, Async: async, Seed: seed}, nil)
		var wg sync.WaitGroup
		for w := range int64(workers) {
			wg.Go(func() { useStripe(t, s, rand.New(rand.NewPCG(seed, uint64(w))), w*stripe, stripe) })
		}
		wg.Wait()
	})
}

func useStripe(t *testing.T, s *block.Sync, r *rand.Rand, base, size int64) {
	model := make([]byte, size)
	for range 200 {
		off := r.Int64N(size/512) * 512
		n := min((1+r.Int64N(64))*512, size-off)
		var err error
		switch r.IntN(6) {
		case 0, 1:
			p := blocktest.Pattern(int(n), r.Uint64())
			err = s.WriteAt(ctx, p, base+off, 0)
			copy(model[off:], p)
		case 2:
			err = s.Zero(ctx, base+off, n, block.FUA)
			clear(model[off : off+n])
		case 3:
			err = s.Trim(ctx, base+off, n, 0)
			lo, length := block.CutInwards(base+off, n, memblock.Grain, s.Info().Size)
			clear(model[lo-base:][:length])
		case 4:
			err = s.Flush(ctx)
		default:
			got := make([]byte, n)
			err = s.ReadAt(ctx, got, base+off)
			if !bytes.Equal(got, model[off:off+n]) {
				t.Errorf("read of %d bytes at %d differs", n, base+off)
			}
		}
		if err != nil {
			t.Error(err)
			return
		}
	}
	got := make([]byte, size)
	if err := s.ReadAt(ctx, got, base); err != nil || !bytes.Equal(got, model) {
		t.Errorf("stripe at %d differs at the end (%v)", base, err)
	}
}

// small lets requests be 64 KiB at most, so that longer ones are cut.
type small struct{ block.Queue }

func (s small) Info() block.Info {
	i := s.Queue.Info()
	i.MaxLen = 64<<10 + 512
	return i
}

func (s small) Submit(reqs []*block.Request) {
	for _, r := range reqs {
		if r.Len > 64<<10+512 {
			panic("request is too long")
		}
	}
	s.Queue.Submit(reqs)
}

func TestSyncLong(t *testing.T) {
	s, _ := newSync(t, aio.Inline, memblock.Options{Size: 4 << 20}, func(q block.Queue, _ aio.Engine) block.Queue { return small{q} })
	want := blocktest.Pattern(3<<20, 1)
	if err := s.WriteAt(ctx, want, 512, block.FUA); err != nil {
		t.Fatal(err)
	}
	if err := s.Zero(ctx, 1<<20+512, 300<<10, 0); err != nil {
		t.Fatal(err)
	}
	clear(want[1<<20:][:300<<10])
	// Every whole grain in the range is trimmed, wherever the pieces end.
	if err := s.Trim(ctx, 2<<20+512, 1<<20, 0); err != nil {
		t.Fatal(err)
	}
	off, n := block.CutInwards(2<<20+512, 1<<20, memblock.Grain, 4<<20)
	clear(want[off-512:][:min(n, 3<<20-(off-512))])
	got := make([]byte, len(want))
	if err := s.ReadAt(ctx, got, 512); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("bytes differ at %d (%v)", blocktest.Differ(got, want), err)
	}
	for _, c := range []struct {
		err  error
		want error
	}{
		{s.WriteAt(ctx, make([]byte, 2<<20), 3<<20, 0), block.ErrNoSpace},
		{s.ReadAt(ctx, make([]byte, 2<<20), 3<<20), block.ErrInvalid},
		{s.ReadAt(ctx, make([]byte, 2<<20), -512), block.ErrInvalid},
		{s.WriteAt(ctx, make([]byte, 1<<20+1), 0, 0), block.ErrInvalid},
		{s.WriteAt(ctx, make([]byte, 1<<20), 1, 0), block.ErrInvalid},
		{s.Zero(ctx, 0, 1<<62, 0), block.ErrNoSpace},
		{s.Trim(ctx, 0, -512, 0), block.ErrInvalid},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%v, want %v", c.err, c.want)
		}
	}
	if err := s.ReadAt(ctx, got, 512); err != nil || !bytes.Equal(got, want) {
		t.Errorf("a refused request changed something (%v)", err)
	}
}

// TestSyncHeld: a request that takes long keeps others from nothing, whoever
// is the owner.
func TestSyncHeld(t *testing.T) {
	eachSync(t, func(t *testing.T, mode aio.Mode, async bool) {
		var f *faultblock.Queue
		s, _ := newSync(t, mode, memblock.Options{Size: 1 << 20, Async: async}, func(q block.Queue, e aio.Engine) block.Queue {
			f = faultblock.New(q, e.Wake, faultblock.Rule{Ops: []block.Op{block.OpFlush}, Hold: true})
			return f
		})
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if err := s.Flush(ctx); err != nil {
					t.Error(err)
				}
			})
		}
		for f.Held() < 3 {
			time.Sleep(time.Millisecond)
		}
		for range 4 {
			wg.Go(func() {
				for range 100 {
					if err := s.WriteAt(ctx, make([]byte, 512), 0, 0); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		if err := s.ReadAt(ctx, make([]byte, 512), 0); err != nil { // while held
			t.Error(err)
		}
		f.Release()
		wg.Wait()
	})
}

// TestSyncDo: the function runs alone, and once.
func TestSyncDo(t *testing.T) {
	eachSync(t, func(t *testing.T, mode aio.Mode, async bool) {
		s, _ := newSync(t, mode, memblock.Options{Size: 1 << 20, Async: async}, nil)
		var wg sync.WaitGroup
		var ran atomic.Int32
		for range 4 {
			wg.Go(func() {
				for i := range 100 {
					var err error
					if i%10 == 0 {
						err = s.Do(ctx, func(q block.Queue) {
							ran.Add(1)
							if n := q.InFlight(); n != 0 {
								t.Errorf("%d requests in flight during Do", n)
							}
						})
					} else {
						err = s.WriteAt(ctx, make([]byte, 512), 0, 0)
					}
					if err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		if ran.Load() != 40 {
			t.Errorf("functions ran %d times, want 40", ran.Load())
		}
	})
}

// TestSyncClose: calls in flight end by themselves, later ones are refused.
func TestSyncClose(t *testing.T) {
	eachSync(t, func(t *testing.T, mode aio.Mode, async bool) {
		s, _ := newSync(t, mode, memblock.Options{Size: 1 << 20, Async: async}, nil)
		var wg sync.WaitGroup
		started := make(chan struct{}, 8)
		for range 8 {
			wg.Go(func() {
				for i := 0; ; i++ {
					err := s.WriteAt(ctx, make([]byte, 512), 0, 0)
					if errors.Is(err, block.ErrClosed) {
						return
					}
					if err != nil {
						t.Errorf("write: %v", err)
						return
					}
					if i == 10 {
						started <- struct{}{}
					}
				}
			})
		}
		for range 8 {
			<-started
		}
		for range 3 {
			wg.Go(func() {
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if err := s.Do(ctx, func(block.Queue) { t.Error("ran after close") }); !errors.Is(err, block.ErrClosed) {
			t.Errorf("do after close: %v", err)
		}
		if s.Info().Size != 1<<20 {
			t.Error("info after close")
		}
	})
}

func TestSyncContext(t *testing.T) {
	s, _ := newSync(t, aio.Inline, memblock.Options{Size: 1 << 20}, nil)
	done, cancel := context.WithCancel(ctx)
	cancel()
	for _, err := range []error{
		s.WriteAt(done, make([]byte, 512), 0, 0), s.ReadAt(done, make([]byte, 512), 0), s.Flush(done),
		s.Trim(done, 0, 512, 0), s.Zero(done, 0, 512, 0), s.Do(done, func(block.Queue) { t.Error("ran") }),
	} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%v, want canceled", err)
		}
	}
}

func TestSyncOpenFails(t *testing.T) {
	broken := errors.New("broken")
	for _, mode := range []aio.Mode{aio.Inline, aio.Auto} {
		if _, err := block.NewSync(func() (aio.Engine, error) { return aio.New(mode) },
			func(aio.Engine) (block.Queue, error) { return nil, broken }); !errors.Is(err, broken) {
			t.Errorf("%s: %v, want the queue's error", mode, err)
		}
	}
	if _, err := block.NewSync(func() (aio.Engine, error) { return nil, broken }, nil); !errors.Is(err, broken) {
		t.Errorf("%v, want the engine's error", err)
	}
}

func TestSyncNoAllocation(t *testing.T) {
	s, _ := newSync(t, aio.Inline, memblock.Options{Size: 1 << 20}, nil)
	buf := make([]byte, 4096)
	if n := testing.AllocsPerRun(500, func() {
		if err := s.ReadAt(ctx, buf, 0); err != nil {
			t.Fatal(err)
		}
	}); n >= 1 {
		t.Errorf("%.1f allocations per read", n)
	}
}

func BenchmarkSync(b *testing.B) {
	d, err := memblock.New(memblock.Options{Size: 1 << 20})
	if err != nil {
		b.Fatal(err)
	}
	s, err := block.NewSync(func() (aio.Engine, error) { return aio.New(aio.Inline) },
		func(e aio.Engine) (block.Queue, error) { return d.OpenQueue(e.Wake), nil })
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	b.RunParallel(func(pb *testing.PB) {
		buf := make([]byte, 4096)
		for pb.Next() {
			if err := s.ReadAt(ctx, buf, 0); err != nil {
				b.Error(err)
			}
		}
	})
}
