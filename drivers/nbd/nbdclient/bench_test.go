package nbdclient_test

import (
	"context"
	"fmt"
	"math/rand"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/drivers/aio"
	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/block/blocktest"
	"github.com/moraine-storage/moraine/drivers/block/memblock"
	"github.com/moraine-storage/moraine/drivers/nbd/internal/nbdtest"
	"github.com/moraine-storage/moraine/drivers/nbd/nbdclient"
	"github.com/moraine-storage/moraine/drivers/nbd/nbdserver"
)

// BenchmarkLoop is the cost of server and client together, in one process, on
// a memory disk: wall time and CPU per request.
func BenchmarkLoop(b *testing.B) {
	for _, c := range []struct {
		name  string
		op    block.Op
		size  int
		depth int
	}{
		{"read4k-1", block.OpRead, 4096, 1}, {"write4k-1", block.OpWrite, 4096, 1},
		{"read4k-32", block.OpRead, 4096, 32}, {"write4k-32", block.OpWrite, 4096, 32},
		{"read1M-8", block.OpRead, 1 << 20, 8}, {"write1M-8", block.OpWrite, 1 << 20, 8},
	} {
		b.Run(c.name, func(b *testing.B) {
			const size = 256 << 20
			d := nbdtest.Disk(b, memblock.Options{Size: size})
			l := nbdtest.Loop(b, "", nbdtest.Queue(d), nbdserver.Limits{})
			path := nbdtest.Unix(b, nbdserver.ServerOptions{Exports: nbdtest.NewExports(&nbdserver.Export{Name: "vol", Loop: l})})
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			e, err := aio.New(aio.Inline)
			if err != nil {
				b.Fatal(err)
			}
			defer e.Close()
			s, err := nbdclient.Dial(context.Background(), "unix", path, nbdclient.Options{})
			if err != nil {
				b.Fatal(err)
			}
			q, err := s.Queue(e, 1)
			if err != nil {
				b.Fatal(err)
			}
			defer q.Close()
			for off := int64(0); off < size; off += 1 << 20 { // allocate
				drive(b, e, q, []*block.Request{blocktest.WriteRequest(blocktest.Aligned(1<<20), off)}, 1, func(*block.Request) bool { return false })
			}
			rng := rand.New(rand.NewSource(1))
			reqs := make([]*block.Request, c.depth)
			for i := range reqs {
				p := blocktest.Aligned(c.size)
				reqs[i] = &block.Request{Op: c.op, Buf: p, Len: int64(c.size)}
				reqs[i].Off = rng.Int63n(size/int64(c.size)) * int64(c.size)
			}
			left := b.N - c.depth
			b.SetBytes(int64(c.size))
			b.ResetTimer()
			own, all := threadCPU(b), processCPU(b)
			drive(b, e, q, reqs, c.depth, func(r *block.Request) bool {
				r.Off = rng.Int63n(size/int64(c.size)) * int64(c.size)
				left--
				return left >= 0
			})
			own, all = threadCPU(b)-own, processCPU(b)-all
			n := float64(max(b.N, c.depth))
			b.ReportMetric(float64(own.Nanoseconds())/n/1e3, "client-cpu-µs/op")
			b.ReportMetric(float64((all-own).Nanoseconds())/n/1e3, "server-cpu-µs/op")
			b.ReportMetric(n/b.Elapsed().Seconds(), "IOPS")
		})
	}
}

// drive keeps reqs in flight until again says no and all have ended.
func drive(b testing.TB, e aio.Engine, q *nbdclient.Client, reqs []*block.Request, depth int, again func(*block.Request) bool) {
	done := make([]*block.Request, depth)
	events := make([]aio.Event, 4)
	next := make([]*block.Request, 0, depth)
	q.Submit(reqs)
	for q.InFlight() > 0 {
		n, err := e.Wait(events, -1)
		if err != nil {
			b.Fatal(err)
		}
		for _, ev := range events[:n] {
			q.Ready(ev)
		}
		n = q.Reap(done)
		next = next[:0]
		for _, r := range done[:n] {
			if r.Err != nil {
				b.Fatal(fmt.Errorf("%v at %d: %w", r.Op, r.Off, r.Err))
			}
			if again(r) {
				next = append(next, r)
			}
		}
		if len(next) > 0 {
			q.Submit(next)
		}
	}
}

func threadCPU(b *testing.B) time.Duration { return usage(b, unix.RUSAGE_THREAD) }

func processCPU(b *testing.B) time.Duration { return usage(b, unix.RUSAGE_SELF) }

func usage(b *testing.B, who int) time.Duration {
	var ru unix.Rusage
	if err := unix.Getrusage(who, &ru); err != nil {
		b.Fatal(err)
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

// Goal (nbdserver invariant 5): no allocation per request, in server and client.
func TestNoAllocations(t *testing.T) {
	d := nbdtest.Disk(t, memblock.Options{Size: 16 << 20})
	l := nbdtest.Loop(t, "", nbdtest.Queue(d), nbdserver.Limits{})
	path := nbdtest.Unix(t, nbdserver.ServerOptions{Exports: nbdtest.NewExports(&nbdserver.Export{Name: "vol", Loop: l})})
	e, err := aio.New(aio.Inline)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	s, err := nbdclient.Dial(context.Background(), "unix", path, nbdclient.Options{})
	if err != nil {
		t.Fatal(err)
	}
	q, err := s.Queue(e, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	reqs := make([]*block.Request, 32)
	for i := range reqs {
		reqs[i] = blocktest.ReadRequest(blocktest.Aligned(4096<<(i%8)), int64(i)<<18)
		if i%2 == 0 {
			reqs[i].Op = block.OpWrite
		}
	}
	rounds := func(n int) float64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		left := n
		drive(t, e, q, reqs, len(reqs), func(*block.Request) bool { left--; return left > 0 })
		runtime.ReadMemStats(&after)
		return float64(after.Mallocs-before.Mallocs) / float64(n)
	}
	rounds(5000) // pools fill
	if per := rounds(20000); per > 0.05 {
		t.Fatalf("%.3f allocations per request", per)
	}
}
