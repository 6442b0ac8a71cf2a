package local

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/moraine-storage/moraine/drivers/aio"
	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/block/faultblock"
	"github.com/moraine-storage/moraine/drivers/replication"
	"github.com/moraine-storage/moraine/drivers/replication/session"
	"github.com/moraine-storage/moraine/drivers/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const volumeSize = 4 << 20

// drive is one store with one replica.
type drive struct {
	dir   string
	s     *store.Store
	id    store.ID
	r     *store.Replica
	fault *faultblock.Queue // around the present queue to the top
	rules []faultblock.Rule // of the next ones
}

// records is the cluster store: it may lose answers and changes.
type records struct {
	rec   replication.Record
	rev   uint64
	fault func() replication.Outcome // of the next Swap; nil or IsStored: none
	apply bool                       // an unknown one was executed
	swaps int
}

func (s *records) Swap(rev uint64, rec *replication.Record, done func(replication.Outcome, uint64)) {
	s.swaps++
	out := replication.IsStored
	if s.fault != nil {
		out = s.fault()
	}
	if rev != s.rev {
		done(replication.IsLost, 0)
		return
	}
	if out == replication.IsStored || s.apply {
		b, err := EncodeRecord(rec) // as a real store would keep it
		if err != nil {
			panic(err)
		}
		r, err := DecodeRecord(b)
		if err != nil {
			panic(err)
		}
		s.rec = *r
		s.rev++
	}
	done(out, s.rev)
}

func (s *records) Read(done func(*replication.Record, uint64, bool, error)) {
	b, err := EncodeRecord(&s.rec)
	if err != nil {
		done(nil, 0, false, err)
		return
	}
	r, err := DecodeRecord(b)
	done(r, s.rev, false, err)
}

type rig struct {
	t       *testing.T
	e       aio.Engine
	drives  []*drive
	rec     *records
	g       *session.Group
	own     map[store.SessionID]bool
	last    replication.Session
	over    error
	lives   bool
	scratch []*block.Request
	change  func(*session.GroupOptions)
}

func newRig(t *testing.T, n int) *rig {
	t.Helper()
	r := &rig{t: t, rec: &records{rev: 1}, own: map[store.SessionID]bool{}, scratch: make([]*block.Request, 64)}
	r.rec.rec = replication.Record{Size: volumeSize, Clean: true}
	for i := range n {
		d := &drive{dir: t.TempDir(), id: store.NewID()}
		if err := store.Format(d.dir, store.FormatOptions{ClusterID: store.ID{1}, SizeLimit: 64 << 20}); err != nil {
			t.Fatal(err)
		}
		r.drives = append(r.drives, d)
		r.openDrive(i)
		var err error
		if d.r, err = d.s.CreateReplica(store.ReplicaSpec{ID: d.id, VolumeID: store.ID{2}, Size: volumeSize}); err != nil {
			t.Fatal(err)
		}
		r.rec.rec.Members = append(r.rec.rec.Members, replication.Member{Replica: d.id.String(), Role: replication.InSync,
			LossID: fmt.Sprintf("%x", d.r.Info().LossID)})
	}
	var err error
	if r.e, err = aio.New(r.drives[0].s.Mode()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.close)
	return r
}

func (r *rig) openDrive(i int) {
	r.t.Helper()
	d := r.drives[i]
	s, err := store.Open(d.dir, store.Options{})
	if err != nil {
		r.t.Fatal(err)
	}
	d.s = s
	if d.r != nil {
		if d.r, err = s.Replica(d.id); err != nil {
			r.t.Fatal(err)
		}
	}
}

func (r *rig) close() {
	r.leave()
	for _, d := range r.drives {
		if err := d.s.Close(); err != nil {
			r.t.Error(err)
		}
	}
	if err := r.e.Close(); err != nil {
		r.t.Error(err)
	}
}

// attach begins a session; the one before, if any, has been left. keep: its
// device is still there.
func (r *rig) attach(keep bool) {
	r.t.Helper()
	r.begin(keep)
	r.until("opened", func() bool { return r.g.Serving() || r.over != nil })
}

// attachWith begins a session while another still lives and is driven.
func (r *rig) attachWith(drive func()) {
	r.t.Helper()
	r.begin(false)
	r.until("opened", func() bool { drive(); return r.g.Serving() || r.over != nil })
}

func (r *rig) begin(keep bool) {
	r.t.Helper()
	o := session.GroupOptions{Engine: r.e, Size: r.rec.rec.Size, Records: r.rec,
		Core: replication.Config{Node: "n1", Session: replication.Session(store.NewID()), Local: r.drives[0].id.String(), Rand: rand.Uint64,
			Lease: 4 * time.Second, LeaseEvery: 100 * time.Millisecond, ReplicaDeadline: 10 * time.Second, ControlTimeout: 10 * time.Second,
			PromoteTimeout: 3 * time.Second, RetryEvery: 20 * time.Millisecond, CleanIdle: 30 * time.Millisecond, CopyChunk: 128 << 10},
		Find: r.find,
		Opened: func(lives bool, _ error) {
			r.lives = lives
		},
	}
	if keep {
		o.Core.OwnSessions = []uint64{r.rec.rec.Active}
	}
	if r.change != nil {
		r.change(&o)
	}
	me := o.Core.Session
	r.over, r.last = nil, me
	o.Over = func(err error) {
		if r.last == me {
			r.over = err
		}
	}
	g, err := session.NewGroup(o)
	if err != nil {
		r.t.Fatal(err)
	}
	r.g = g
}

func (r *rig) find(id string) (session.Member, error) {
	for _, d := range r.drives {
		if d.id.String() == id {
			return New(Options{Replica: d.r, Own: func(s store.SessionID) bool { return r.own[s] },
				Wrap: func(q block.Queue) block.Queue {
					d.fault = faultblock.New(q, r.e.Wake, d.rules...)
					return d.fault
				}})
		}
	}
	return nil, errors.New("not on this node")
}

// leave ends the session without a word, as the death of the process does.
func (r *rig) leave() {
	r.t.Helper()
	if r.g == nil {
		return
	}
	if err := r.g.Close(); err != nil {
		r.t.Error(err)
	}
	r.own[store.SessionID(r.last)] = true
	r.g = nil
}

// detach ends the session as asked.
func (r *rig) detach() {
	r.t.Helper()
	ended := false
	r.g.Detach(func(err error) {
		if err != nil {
			r.t.Errorf("detach: %v", err)
		}
		ended = true
	})
	r.until("detached", func() bool { return ended && r.over != nil })
	r.leave()
}

func (r *rig) until(what string, fn func() bool) {
	r.t.Helper()
	for end := time.Now().Add(60 * time.Second); !fn(); {
		if time.Now().After(end) {
			r.t.Fatalf("%s: not within a minute: over %v, %s", what, r.over, r.g.Core().Describe())
		}
		var ev [4]aio.Event
		if _, err := r.e.Wait(ev[:], 5*time.Millisecond); err != nil {
			r.t.Fatal(err)
		}
		r.reap()
	}
}

func (r *rig) reap() {
	for {
		n := r.g.Reap(r.scratch)
		for _, q := range r.scratch[:n] {
			q.Owner.(func(*block.Request))(q)
		}
		if n < len(r.scratch) {
			return
		}
	}
}

func (r *rig) start(q *block.Request, ended func(*block.Request)) {
	q.Owner = ended
	r.g.Submit([]*block.Request{q})
	r.reap()
}

func (r *rig) do(op block.Op, off, n int64, buf []byte) error {
	r.t.Helper()
	over := false
	q := &block.Request{Op: op, Off: off, Len: n, Buf: buf}
	r.start(q, func(*block.Request) { over = true })
	r.until(op.String(), func() bool { return over })
	return q.Err
}

func (r *rig) ok(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) write(off int64, n int, v byte) {
	r.t.Helper()
	r.ok(r.do(block.OpWrite, off, int64(n), bytes.Repeat([]byte{v}, n)))
}

func (r *rig) job(start func(done func(error))) (err error) {
	r.t.Helper()
	over := false
	start(func(e error) { err, over = e, true })
	r.until("job", func() bool { return over })
	return err
}

func (r *rig) quiet() {
	r.t.Helper()
	r.until("quiet", func() bool { return r.g.Quiet() || r.over != nil })
	if r.over != nil {
		r.t.Fatal(r.over)
	}
}

func (r *rig) role(i int) replication.Role {
	for _, m := range r.rec.rec.Members {
		if m.Replica == r.drives[i].id.String() {
			return m.Role
		}
	}
	return 0
}

// contents reads a replica or a snapshot of it past the mirror.
func (r *rig) contents(i int, snap *store.ID) []byte {
	r.t.Helper()
	v, err := r.drives[i].r.View(snap)
	r.ok(err)
	b := make([]byte, v.Size())
	if _, err := v.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		r.t.Fatal(err)
	}
	r.ok(v.Close())
	return b
}

// equal compares all replicas with each other and with want.
func (r *rig) equal(want []byte) {
	r.t.Helper()
	r.quiet()
	r.leave()
	for i := range r.drives {
		if r.role(i) != replication.InSync {
			r.t.Errorf("replica %d has role %d", i, r.role(i))
		}
		got := r.contents(i, nil)
		if !bytes.Equal(got, want) {
			for k := range got {
				if k < len(want) && got[k] != want[k] {
					r.t.Fatalf("replica %d differs at byte %d: %d, want %d", i, k, got[k], want[k])
				}
			}
			r.t.Fatalf("replica %d has %d bytes, want %d", i, len(got), len(want))
		}
	}
}
