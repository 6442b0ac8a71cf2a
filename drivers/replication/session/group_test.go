package session

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/block/faultblock"
	"github.com/moraine-storage/moraine/drivers/replication"
)

var abc = []string{"a", "b", "c"}

// BenchmarkWrite3 is a 4 KiB write to three members in memory, 32 at a time.
func BenchmarkWrite3(b *testing.B) { benchGroup(b, block.OpWrite, 32) }

// BenchmarkWrite3Alone is the same one at a time.
func BenchmarkWrite3Alone(b *testing.B) { benchGroup(b, block.OpWrite, 1) }

// BenchmarkRead3 is a 4 KiB read.
func BenchmarkRead3(b *testing.B) { benchGroup(b, block.OpRead, 32) }

func benchGroup(b *testing.B, op block.Op, batch int) {
	r := newFakeRig(b, abc, nil)
	r.until("opened", r.g.Serving)
	reqs := make([]*block.Request, batch)
	mem := make([]byte, batch*4096)
	for i := range reqs {
		reqs[i] = &block.Request{}
	}
	round := func(n int) {
		for i := range n {
			*reqs[i] = block.Request{Op: op, Off: int64(i) * 8192, Len: 4096, Buf: mem[i*4096 : i*4096+4096]}
		}
		r.g.Submit(reqs[:n])
		for got := 0; got < n; {
			k := r.g.Reap(r.scratch)
			for _, q := range r.scratch[:k] {
				if q.Err != nil {
					b.Fatal(q.Err)
				}
			}
			got += k
		}
	}
	round(batch)
	b.SetBytes(4096)
	b.ReportAllocs()
	b.ResetTimer()
	for i := 0; i < b.N; i += batch {
		round(min(batch, b.N-i))
	}
}

// Goal: nothing is allocated per operation once pools are filled.
func TestSteadyStateAllocatesNothing(t *testing.T) {
	r := newFakeRig(t, abc, nil)
	r.until("opened", r.g.Serving)
	q := []*block.Request{{}}
	buf := make([]byte, 4096)
	op := block.OpWrite
	one := func() {
		*q[0] = block.Request{Op: op, Off: 4096, Len: 4096, Buf: buf}
		r.g.Submit(q)
		for r.g.Reap(r.scratch) == 0 {
		}
	}
	for _, op = range []block.Op{block.OpWrite, block.OpRead} {
		for range 100 {
			one()
		}
		// Ticks and leases allocate a little, so the bound is not zero.
		if n := testing.AllocsPerRun(2000, one); n >= 0.5 && !raceEnabled {
			t.Errorf("%v: %v allocations per operation", op, n)
		}
	}
}

// Goal: a write is on all members when it is answered; what is read is it; the
// client's memory may change at once.
func TestWriteReachesAll(t *testing.T) {
	r := newFakeRig(t, abc, nil)
	data := bytes.Repeat([]byte{7}, 8192)
	if err := r.do(block.OpWrite, 4096, 8192, data); err != nil {
		t.Fatal(err)
	}
	clear(data)
	for id, m := range r.members {
		q := m.disk.OpenQueue(nil)
		got := &block.Request{Op: block.OpRead, Off: 4096, Len: 8192, Buf: make([]byte, 8192)}
		q.Submit([]*block.Request{got})
		if n := q.Reap(r.scratch); n != 1 || got.Err != nil || got.Buf[0] != 7 || got.Buf[8191] != 7 {
			t.Errorf("member %s: %v", id, got.Err)
		}
		if err := q.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := r.do(block.OpTrim, 0, 1<<20, nil); err != nil {
		t.Error(err)
	}
	if err := r.do(block.OpFlush, 0, 0, nil); err != nil {
		t.Error(err)
	}
	if err := r.do(block.OpRead, 4096, 8192, data); err != nil || data[0] != 0 {
		t.Errorf("read after trim: %v", err)
	}
	if err := r.do(block.OpRead, fakeSize, 512, data[:512]); !errors.Is(err, block.ErrInvalid) {
		t.Errorf("read past the end: %v", err)
	}
	if r.g.InFlight() != 0 {
		t.Errorf("%d in flight", r.g.InFlight())
	}
}

// Goal: a member that keeps a write is removed and the client is answered from
// the others, its memory free at once; what was kept is the old bytes still.
func TestPayloadOutlivesAnswer(t *testing.T) {
	var slow *faultblock.Queue
	r := newFakeRig(t, abc, func(o *GroupOptions, r *fakeRig) {
		o.Core.ReplicaDeadline = 300 * time.Millisecond
		o.Core.NoResync = true
		r.members["c"].wrap = func(q block.Queue) block.Queue {
			slow = faultblock.New(q, o.Engine.Wake)
			return slow
		}
	})
	r.until("opened", r.g.Serving)
	slow.Set(faultblock.Rule{Ops: []block.Op{block.OpWrite}, Hold: true})
	data := bytes.Repeat([]byte{9}, 4096)
	if err := r.do(block.OpWrite, 0, 4096, data); err != nil {
		t.Fatal(err)
	}
	clear(data)
	if slow.Held() != 1 || r.g.core.Steps().Removed != 1 {
		t.Fatalf("%d held, steps %+v", slow.Held(), r.g.core.Steps())
	}
	for range 200 { // whatever reuses freed buffers
		if err := r.do(block.OpWrite, 8192, 4096, data); err != nil {
			t.Fatal(err)
		}
	}
	slow.Release()
	q := r.members["c"].disk.OpenQueue(nil)
	got := &block.Request{Op: block.OpRead, Len: 4096, Buf: make([]byte, 4096)}
	r.until("the late write", func() bool {
		q.Submit([]*block.Request{got})
		q.Reap(r.scratch)
		return got.Buf[0] != 0
	})
	if got.Buf[0] != 9 || got.Buf[4095] != 9 {
		t.Errorf("late write carried %d, %d", got.Buf[0], got.Buf[4095])
	}
	r.until("the queue is gone", func() bool { return len(r.g.all) == 2 })
	if err := q.Close(); err != nil {
		t.Error(err)
	}
}

// Goal: a read that a member keeps beyond the hold deadline is answered only
// when nobody can write into the client's memory any more.
func TestReadGivenUpWaitsForItsBuffer(t *testing.T) {
	var slow *faultblock.Queue
	r := newFakeRig(t, []string{"a"}, func(o *GroupOptions, r *fakeRig) {
		o.Core.ReplicaDeadline, o.Core.HoldDeadline = 50*time.Millisecond, 100*time.Millisecond
		r.members["a"].wrap = func(q block.Queue) block.Queue {
			slow = faultblock.New(q, o.Engine.Wake, faultblock.Rule{Ops: []block.Op{block.OpRead}, Count: 1, Hold: true})
			return slow
		}
	})
	r.until("opened", r.g.Serving)
	first := slow
	q, ended := r.start(block.OpRead, 0, 4096, make([]byte, 4096))
	r.until("the deadline", func() bool { return r.g.core.Steps().HeldToDeadline == 1 })
	if *ended != 0 {
		t.Fatal("answered while a member held its buffer")
	}
	first.Release()
	r.until("the answer", func() bool { return *ended == 1 })
	if !errors.Is(q.Err, block.ErrTimeout) {
		t.Errorf("answer: %v", q.Err)
	}
}

// Goal: an answer that does not come in time is none, and ends what waited.
func TestMuteMemberTimesOut(t *testing.T) {
	r := newFakeRig(t, abc, func(o *GroupOptions, r *fakeRig) {
		o.Core.PromoteTimeout = 200 * time.Millisecond
		r.members["b"].mute[replication.AskPromote] = true
	})
	r.until("opened without b", r.g.Serving)
	rec, _ := r.g.core.Record()
	for _, m := range rec.Members {
		if (m.Role == replication.InSync) != (m.Replica != "b") {
			t.Errorf("member %s has role %d", m.Replica, m.Role)
		}
	}
}

// Goal: a session that could not be announced never serves, and who waits is told.
func TestAnnounceFails(t *testing.T) {
	broken := errors.New("disk full")
	r := newFakeRig(t, abc, func(o *GroupOptions, _ *fakeRig) {
		o.Announce = func(uint64, bool, error) error { return broken }
	})
	if err := r.do(block.OpWrite, 0, 4096, make([]byte, 4096)); !errors.Is(err, broken) {
		t.Errorf("write: %v", err)
	}
	if len(r.over) != 1 || !errors.Is(r.over[0], broken) || r.g.Serving() {
		t.Errorf("over: %v", r.over)
	}
	if err := r.do(block.OpRead, 0, 512, make([]byte, 512)); !errors.Is(err, broken) {
		t.Errorf("read: %v", err)
	}
	if r.records.rec.Active != 0 {
		t.Error("the set was activated")
	}
}

// Goal: a jump of the wall clock voids leases: the next read waits for new ones.
func TestWallClockJump(t *testing.T) {
	r := newFakeRig(t, abc, nil)
	if err := r.do(block.OpRead, 0, 512, make([]byte, 512)); err != nil {
		t.Fatal(err)
	}
	b := r.members["b"]
	b.mute[replication.AskLease] = true // what it granted holds for a minute
	if err := r.do(block.OpRead, 0, 512, make([]byte, 512)); err != nil {
		t.Fatal(err)
	}
	r.wall = time.Hour
	var q *block.Request
	var ended *int
	r.until("a read that must wait", func() bool {
		q, ended = r.start(block.OpRead, 0, 512, make([]byte, 512))
		return *ended == 0
	})
	b.mute[replication.AskLease] = false
	r.until("the answer", func() bool { return *ended == 1 })
	if q.Err != nil {
		t.Error(q.Err)
	}
}

// Goal: options that cannot work are refused.
func TestGroupOptions(t *testing.T) {
	if _, err := NewGroup(GroupOptions{}); err == nil {
		t.Error("no engine was taken")
	}
}

// Goal: detach answers, ends the session and leaves a clean record.
func TestDetach(t *testing.T) {
	r := newFakeRig(t, abc, nil)
	if err := r.do(block.OpWrite, 0, 4096, make([]byte, 4096)); err != nil {
		t.Fatal(err)
	}
	var got []error
	r.g.Detach(func(err error) { got = append(got, err) })
	r.until("over", func() bool { return len(r.over) > 0 })
	if len(got) != 1 || got[0] != nil || !errors.Is(r.over[0], replication.ErrDetached) {
		t.Errorf("finished %v, over %v", got, r.over)
	}
	if !r.records.rec.Clean || r.records.rec.Primary.Session != (replication.Session{}) {
		t.Errorf("record %+v", r.records.rec)
	}
	if err := r.do(block.OpRead, 0, 512, make([]byte, 512)); !errors.Is(err, block.ErrClosed) {
		t.Errorf("read after detach: %v", err)
	}
}
