package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/drivers/aio"
	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/block/blocktest"
	"github.com/moraine-storage/moraine/drivers/vfs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memoryDir returns a directory on a medium that cannot block.
func memoryDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "moraine-store-")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("no tmpfs at /dev/shm: %v", err)
		}
		t.Skipf("SKIPPED: no tmpfs at /dev/shm: %v", err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// newStore formats and opens a store.
func newStore(t testing.TB, dir string, o Options) *Store {
	t.Helper()
	if err := Format(dir, FormatOptions{ClusterID: ID{7}, FS: o.FS}); err != nil {
		t.Fatal(err)
	}
	return openStore(t, dir, o)
}

func openStore(t testing.TB, dir string, o Options) *Store {
	t.Helper()
	s, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil && !t.Failed() {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

var testSession = SessionID{1, 2, 3}

// newReplica creates a replica and opens its gate for testSession.
func newReplica(t testing.TB, s *Store, size int64, tracked bool) *Replica {
	t.Helper()
	r, err := s.CreateReplica(ReplicaSpec{ID: NewID(), VolumeID: NewID(), Size: size, Untracked: !tracked})
	if err != nil {
		t.Fatal(err)
	}
	promote(t, r, 1)
	return r
}

func promote(t testing.TB, r *Replica, n uint64) *PromoteAnswer {
	t.Helper()
	a, err := r.Promote(context.Background(), Promise{Promised: Promised{Epoch{n, 5}, testSession}})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// Goal: the queue is what drivers/block says, on every engine and medium.
func TestQueueConformance(t *testing.T) {
	for _, c := range []struct {
		name    string
		mode    aio.Mode
		memory  bool
		tracked bool
		unit    int
	}{
		{"memory inline", aio.Inline, true, false, 0},
		{"memory inline tracked 4096", aio.Inline, true, true, 4096},
		{"disk inline", aio.Inline, false, false, 0},
		{"disk threads tracked", aio.Threads, false, true, 0},
		{"disk auto", aio.Auto, false, false, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			blocktest.Run(t, func(t *testing.T, size int64) (blocktest.Target, error) {
				dir := t.TempDir()
				if c.memory {
					dir = memoryDir(t)
				}
				s := newStore(t, dir, Options{test: testOptions{unit: c.unit}})
				r := newReplica(t, s, (size+ExtentSize-1)&^(ExtentSize-1), c.tracked)
				e, err := aio.New(c.mode)
				if err != nil {
					return blocktest.Target{}, err
				}
				q, err := r.OpenQueue(e, testSession)
				return blocktest.Target{Queue: q, Engine: e}, err
			})
		})
	}
}

// Goal: an engine that ends operations late and in any order changes nothing.
func TestQueueConformanceRandomOrder(t *testing.T) {
	blocktest.Run(t, func(t *testing.T, size int64) (blocktest.Target, error) {
		m := vfs.NewMem(0)
		s := newStore(t, "/d", Options{FS: m, BootID: csBoot(1)})
		r := newReplica(t, s, (size+ExtentSize-1)&^(ExtentSize-1), true)
		e := vfs.NewMemEngine(m, newRand(blocktest.Seed(t)))
		q, err := r.OpenQueue(e, testSession)
		return blocktest.Target{Queue: q, Engine: e}, err
	})
}

// rig is a store with one replica and an open queue, for tests that look at
// single steps.
type rig struct {
	t testing.TB
	s *Store
	r *Replica
	q *queue
	e aio.Engine
}

func newRig(t testing.TB, size int64) *rig {
	s := newStore(t, memoryDir(t), Options{})
	g := &rig{t: t, s: s, r: newReplica(t, s, size, false)}
	e, err := aio.New(aio.Inline)
	if err != nil {
		t.Fatal(err)
	}
	g.e = e
	g.open()
	t.Cleanup(func() { // before the store's
		if err := errors.Join(g.q.Close(), e.Close()); err != nil {
			t.Error(err)
		}
	})
	return g
}

func (g *rig) open() {
	g.t.Helper()
	q, err := g.r.OpenQueue(g.e, testSession)
	if err != nil {
		g.t.Fatal(err)
	}
	g.q = q.(*queue)
}

// do runs requests to their end.
func do(t testing.TB, q block.Queue, e aio.Engine, reqs ...*block.Request) {
	t.Helper()
	q.Submit(reqs)
	done := make([]*block.Request, 16)
	for n := 0; n < len(reqs); {
		k := q.Reap(done)
		if n += k; k == 0 {
			if _, err := e.Wait(nil, -1); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func (g *rig) do(reqs ...*block.Request) { g.t.Helper(); do(g.t, g.q, g.e, reqs...) }

func (g *rig) must(reqs ...*block.Request) {
	g.t.Helper()
	g.do(reqs...)
	for _, r := range reqs {
		if r.Err != nil {
			g.t.Fatalf("%s [%d,+%d): %v", r.Op, r.Off, r.Len, r.Err)
		}
	}
}

func (g *rig) write(off int64, b byte, n int) {
	g.t.Helper()
	buf := blocktest.Aligned(n)
	for i := range buf {
		buf[i] = b
	}
	g.must(&block.Request{Op: block.OpWrite, Off: off, Len: int64(n), Buf: buf})
}

// Goal: reads and overwrites of 4 KiB allocate nothing.
func TestNoAllocations(t *testing.T) {
	g := newRig(t, 4<<20)
	g.write(0, 1, 4<<20)
	buf := blocktest.Aligned(4096)
	reqs := make([]*block.Request, 8)
	done := make([]*block.Request, 8)
	for _, op := range []block.Op{block.OpWrite, block.OpRead} {
		run := func() {
			for i := range reqs {
				if reqs[i] == nil {
					reqs[i] = new(block.Request)
				}
				*reqs[i] = block.Request{Op: op, Off: int64(i) * 8192, Len: 4096, Buf: buf}
			}
			g.q.Submit(reqs)
			if n := g.q.Reap(done); n != len(reqs) {
				t.Fatalf("%d of %d", n, len(reqs))
			}
		}
		run()
		if n := testing.AllocsPerRun(100, run); n != 0 {
			t.Errorf("%s: %v allocations for 8 requests", op, n)
		}
	}
}

// Goal: the work of a snapshot does not depend on how much is mapped. Method:
// count the nodes made, not the time.
func TestSnapshotWork(t *testing.T) {
	made := map[int64]int64{}
	for _, mapped := range []int64{1, 64, 512} {
		g := newRig(t, 1<<30)
		for i := range mapped {
			g.write(i*ExtentSize, 1, 4096)
		}
		before := g.s.st.ar.made
		if err := g.r.Freeze(NewID()); err != nil {
			t.Fatal(err)
		}
		made[mapped] = g.s.st.ar.made - before
		// The first write after it copies one path, whatever the size.
		g.write(0, 2, 4096)
		if n := g.s.st.ar.made - before; n != 3 {
			t.Errorf("%d extents mapped: first write after a snapshot made %d nodes, want 3", mapped, n)
		}
	}
	for k, n := range made {
		if n != 0 {
			t.Errorf("%d extents mapped: snapshot made %d nodes", k, n)
		}
	}
}

func BenchmarkQueue(b *testing.B) {
	for _, c := range []struct {
		name string
		op   block.Op
		init bool
	}{{"read4k", block.OpRead, true}, {"write4k", block.OpWrite, true}, {"first4k", block.OpWrite, false}} {
		for _, depth := range []int{1, 32} {
			b.Run(fmt.Sprintf("%s/qd%d", c.name, depth), func(b *testing.B) {
				const size = 1 << 30
				g := newRig(b, size)
				if c.init {
					for off := int64(0); off < 64<<20; off += 1 << 20 {
						g.write(off, 1, 1<<20)
					}
				}
				buf := blocktest.Aligned(4096)
				reqs := make([]*block.Request, depth)
				done := make([]*block.Request, depth)
				for i := range reqs {
					reqs[i] = new(block.Request)
				}
				span := int64(64<<20) / 4096
				if !c.init {
					span = size / 4096
				}
				at := int64(0)
				b.ResetTimer()
				for n := 0; n < b.N; n += depth {
					for i := range reqs {
						at = (at*6364136223846793005 + 1442695040888963407) & (1<<62 - 1)
						*reqs[i] = block.Request{Op: c.op, Off: at >> 20 % span * 4096, Len: 4096, Buf: buf}
					}
					g.q.Submit(reqs)
					for k := 0; k < depth; {
						k += g.q.Reap(done)
					}
				}
			})
		}
	}
}

// BenchmarkRaw is what BenchmarkQueue stands on: pread and pwrite alone.
func BenchmarkRaw(b *testing.B) {
	f, err := os.Create(memoryDir(b) + "/raw")
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	fd := int(f.Fd())
	buf := blocktest.Aligned(4096)
	if _, err := f.WriteAt(make([]byte, 64<<20), 0); err != nil {
		b.Fatal(err)
	}
	for _, c := range []struct {
		name string
		fn   func(off int64) error
	}{
		{"read4k", func(off int64) error { _, err := unix.Pread(fd, buf, off%(64<<20)); return err }},
		{"write4k", func(off int64) error { _, err := unix.Pwrite(fd, buf, off%(64<<20)); return err }},
		{"first4k", func(off int64) error { _, err := unix.Pwrite(fd, buf, off); return err }},
	} {
		b.Run(c.name, func(b *testing.B) {
			at := int64(0)
			for range b.N {
				at = (at*6364136223846793005 + 1442695040888963407) & (1<<62 - 1)
				if err := c.fn(at >> 20 % (1 << 18) * 4096); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
