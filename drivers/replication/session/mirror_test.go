package session

import (
	"errors"
	"testing"
	"time"

	"github.com/moraine-storage/moraine/drivers/aio"
	"github.com/moraine-storage/moraine/drivers/block"
)

// member is a queue whose answers the test gives.
type member struct {
	err  map[block.Op]error
	done []*block.Request
	seen int
}

func (m *member) Submit(reqs []*block.Request) {
	for _, r := range reqs {
		m.seen++
		r.Err = m.err[r.Op]
		m.done = append(m.done, r)
	}
}
func (m *member) Reap(done []*block.Request) int {
	n := copy(done, m.done)
	m.done = m.done[n:]
	return n
}
func (m *member) InFlight() int    { return len(m.done) }
func (m *member) Info() block.Info { return block.Info{Size: 1 << 20} }
func (m *member) Close() error     { return nil }

// wakeOnly is as much of an engine as the mirror uses.
type wakeOnly struct {
	aio.Engine
	woken chan struct{}
}

func (w wakeOnly) Wake() {
	select {
	case w.woken <- struct{}{}:
	default:
	}
}

func newMirror(t *testing.T, m *member, l Limits) (*Mirror, wakeOnly) {
	t.Helper()
	e := wakeOnly{woken: make(chan struct{}, 1)}
	mir, err := New(Options{Engine: e, Member: m, Limits: l})
	if err != nil {
		t.Fatal(err)
	}
	return mir, e
}

func do(m *Mirror, op block.Op, f block.Flags) error {
	r := &block.Request{Op: op, Flags: f, Len: 512}
	m.Submit([]*block.Request{r})
	done := make([]*block.Request, 4)
	for m.Reap(done) == 0 {
		time.Sleep(time.Millisecond)
	}
	return r.Err
}

// Goal: FlushWhileMemberDrops, the last member: after one failed flush every
// later one fails although the medium would say yes; writes and reads go on.
func TestFailedFlushIsSticky(t *testing.T) {
	mem := &member{err: map[block.Op]error{block.OpFlush: block.ErrIO}}
	m, _ := newMirror(t, mem, Limits{})
	if err := do(m, block.OpFlush, 0); !errors.Is(err, block.ErrIO) {
		t.Fatalf("flush: %v", err)
	}
	mem.err = nil
	seen := mem.seen
	if err := do(m, block.OpFlush, 0); !errors.Is(err, block.ErrIO) {
		t.Errorf("second flush: %v", err)
	}
	if err := do(m, block.OpWrite, block.FUA); !errors.Is(err, block.ErrIO) {
		t.Errorf("FUA write: %v", err)
	}
	if mem.seen != seen {
		t.Errorf("member was flushed again in hope")
	}
	if err := do(m, block.OpWrite, 0); err != nil {
		t.Errorf("write: %v", err)
	}
	if err := do(m, block.OpRead, 0); err != nil {
		t.Errorf("read: %v", err)
	}
	if n := m.InFlight(); n != 0 {
		t.Errorf("%d in flight", n)
	}
}

// Goal: an error that says nothing of the medium does not end flushing.
func TestHarmlessErrorsAreNotSticky(t *testing.T) {
	for _, e := range []error{block.ErrInvalid, block.ErrNoSpace, block.ErrReadOnly, block.ErrUnsupported} {
		mem := &member{err: map[block.Op]error{block.OpWrite: e}}
		m, _ := newMirror(t, mem, Limits{})
		if err := do(m, block.OpWrite, block.FUA); !errors.Is(err, e) {
			t.Errorf("write: %v, want %v", err, e)
		}
		if err := do(m, block.OpFlush, 0); err != nil {
			t.Errorf("flush after %v: %v", e, err)
		}
	}
}

// Goal: the limiter lets through what the limits say over a long run, whatever the order of
// clock readings, keeps order, and loses nothing.
func TestLimiterRate(t *testing.T) {
	now := time.Unix(1000, 0)
	l := newLimiter(Limits{IOPS: 1000, Bandwidth: 1 << 20}, func() {})
	defer l.stop()
	passed := 0
	var next uint64
	take := func(r *block.Request) {
		if r.Tag != next {
			t.Fatalf("request %d came before %d", r.Tag, next)
		}
		next++
		passed++
	}
	for i := range 5000 {
		r := &block.Request{Op: block.OpWrite, Len: 512, Tag: uint64(i)}
		if l.admit(r, now) {
			take(r)
		}
	}
	end := now.Add(2 * time.Second)
	for ; now.Before(end); now = now.Add(3 * time.Millisecond) {
		for _, r := range l.due(nil, now) {
			take(r)
		}
	}
	// 1000 per second for 2 s, plus the burst of 0.1 s.
	if passed < 2000 || passed > 2120 {
		t.Errorf("%d operations in 2 s at 1000 per second", passed)
	}
	if passed+l.waiting() != 5000 {
		t.Errorf("%d passed, %d wait, of 5000", passed, l.waiting())
	}
}

func TestLimiterBandwidth(t *testing.T) {
	now := time.Unix(1000, 0)
	l := newLimiter(Limits{Bandwidth: 10 << 20}, func() {})
	defer l.stop()
	var bytes int64
	for range 100 {
		if r := (&block.Request{Op: block.OpRead, Len: 1 << 20}); l.admit(r, now) {
			bytes += r.Len
		}
	}
	for end := now.Add(4 * time.Second); now.Before(end); now = now.Add(time.Millisecond) {
		for _, r := range l.due(nil, now) {
			bytes += r.Len
		}
	}
	if bytes < 40<<20 || bytes > 43<<20 {
		t.Errorf("%d bytes in 4 s at 10 MiB per second", bytes)
	}
	if !l.admit(&block.Request{Op: block.OpFlush}, now) {
		t.Error("a flush was delayed")
	}
}

// Goal: limits change while requests wait; lifting them frees what waits.
func TestChangeLimitsFreesWaiters(t *testing.T) {
	mem := &member{}
	m, e := newMirror(t, mem, Limits{IOPS: 1})
	var reqs []*block.Request
	for range 8 {
		reqs = append(reqs, &block.Request{Op: block.OpWrite, Len: 512})
	}
	m.Submit(reqs)
	done := make([]*block.Request, 16)
	first := m.Reap(done)
	if first == 8 || m.InFlight() != 8-first {
		t.Fatalf("%d of 8 passed at 1 per second", first)
	}
	if err := m.SetLimits(Limits{IOPS: -1}); !errors.Is(err, block.ErrInvalid) {
		t.Errorf("negative limit: %v", err)
	}
	if err := m.SetLimits(Limits{}); err != nil {
		t.Fatal(err)
	}
	<-e.woken
	if n := m.Reap(done); n != 8-first || m.InFlight() != 0 {
		t.Errorf("%d freed, %d in flight", n, m.InFlight())
	}
}
