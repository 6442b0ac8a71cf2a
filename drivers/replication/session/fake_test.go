package session

import (
	"math/rand/v2"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/moraine-storage/moraine/drivers/aio"
	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/block/memblock"
	"github.com/moraine-storage/moraine/drivers/replication"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeMember is a replica in memory that promises everything and never
// forgets: enough to serve from.
type fakeMember struct {
	id   string
	disk *memblock.Disk
	wrap func(q block.Queue) block.Queue
	old  replication.Promised
	mute map[replication.ControlKind]bool // not answered
	asks map[replication.ControlKind]int
	shut bool
}

func (f *fakeMember) Ask(ctl *replication.Control, answer func(replication.Reply)) {
	f.asks[ctl.Kind]++
	if f.mute[ctl.Kind] {
		return
	}
	var r replication.Reply
	if ctl.Kind == replication.AskPromote {
		r = replication.Reply{Promised: f.old, LossID: "1", Size: fakeSize}
		f.old = ctl.Promised
	}
	answer(r)
}

func (f *fakeMember) Open(o OpenOptions) (block.Queue, error) {
	var q block.Queue = f.disk.OpenQueue(o.Engine.Wake)
	if f.wrap != nil {
		q = f.wrap(q)
	}
	return q, nil
}

func (f *fakeMember) Close() error { f.shut = true; return nil }

// fakeRecords is a record in memory.
type fakeRecords struct {
	rec replication.Record
	rev uint64
}

func (s *fakeRecords) Swap(rev uint64, rec *replication.Record, done func(replication.Outcome, uint64)) {
	if rev != s.rev {
		done(replication.IsLost, 0)
		return
	}
	s.rec = *rec
	s.rev++
	done(replication.IsStored, s.rev)
}

func (s *fakeRecords) Read(done func(*replication.Record, uint64, bool, error)) {
	r := s.rec
	r.Members = append([]replication.Member{}, r.Members...)
	r.Snapshots = append([]replication.Snapshot{}, r.Snapshots...)
	done(&r, s.rev, false, nil)
}

const fakeSize = 16 << 20

type fakeRig struct {
	t       testing.TB
	e       aio.Engine
	members map[string]*fakeMember
	records *fakeRecords
	g       *Group
	over    []error
	scratch []*block.Request
	wall    time.Duration // added to the wall clock
}

func newFakeRig(t testing.TB, names []string, change func(*GroupOptions, *fakeRig)) *fakeRig {
	t.Helper()
	e, err := aio.New(aio.Inline)
	if err != nil {
		t.Fatal(err)
	}
	r := &fakeRig{t: t, e: e, members: map[string]*fakeMember{}, records: &fakeRecords{rev: 1}, scratch: make([]*block.Request, 64)}
	r.records.rec = replication.Record{Size: fakeSize, Clean: true}
	for _, n := range names {
		d, err := memblock.New(memblock.Options{Size: fakeSize})
		if err != nil {
			t.Fatal(err)
		}
		r.members[n] = &fakeMember{id: n, disk: d, asks: map[replication.ControlKind]int{}, mute: map[replication.ControlKind]bool{}}
		r.records.rec.Members = append(r.records.rec.Members, replication.Member{Replica: n, Role: replication.InSync, LossID: "1"})
	}
	o := GroupOptions{Engine: e, Size: fakeSize, Records: r.records,
		Core: replication.Config{Node: "n", Session: replication.Session{1}, Local: names[0], Rand: rand.Uint64,
			Lease: time.Minute, LeaseEvery: time.Second, RetryEvery: 20 * time.Millisecond, ReplicaDeadline: time.Minute, CleanIdle: time.Hour, CopyChunk: 64 << 10},
		Find: func(id string) (Member, error) { return r.members[id], nil },
		Over: func(err error) { r.over = append(r.over, err) },
		Wall: func() time.Time { return time.Now().Add(r.wall) },
	}
	if change != nil {
		change(&o, r)
	}
	if r.g, err = NewGroup(o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.g.Close(); err != nil {
			t.Error(err)
		}
		for _, m := range r.members {
			if !m.shut {
				t.Errorf("member %s was not closed", m.id)
			}
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// until drives the group.
func (r *fakeRig) until(what string, fn func() bool) {
	r.t.Helper()
	end := time.Now().Add(30 * time.Second)
	for !fn() {
		if time.Now().After(end) {
			r.t.Fatalf("%s: not within 30 s: %s", what, r.g.core.Describe())
		}
		var ev [4]aio.Event
		if _, err := r.e.Wait(ev[:], 5*time.Millisecond); err != nil {
			r.t.Fatal(err)
		}
		r.reap()
	}
}

func (r *fakeRig) reap() {
	for {
		n := r.g.Reap(r.scratch)
		for _, q := range r.scratch[:n] {
			*q.Owner.(*int)++
		}
		if n < len(r.scratch) {
			return
		}
	}
}

// start submits a request; ended counts its answers.
func (r *fakeRig) start(op block.Op, off, n int64, buf []byte) (q *block.Request, ended *int) {
	ended = new(int)
	q = &block.Request{Op: op, Off: off, Len: n, Buf: buf, Owner: ended}
	r.g.Submit([]*block.Request{q})
	r.reap()
	return q, ended
}

func (r *fakeRig) do(op block.Op, off, n int64, buf []byte) error {
	r.t.Helper()
	q, ended := r.start(op, off, n, buf)
	r.until(op.String(), func() bool { return *ended > 0 })
	return q.Err
}
