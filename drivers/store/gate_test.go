package store

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/vfs"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

func promiseOf(n, tag uint64, s SessionID) Promise {
	return Promise{Promised: Promised{Epoch{n, tag}, s}, Record: []byte{byte(n)}}
}

// Goal: the rules of PROMOTE and ADVANCE (REPLICATION 2).
func TestPromoteRules(t *testing.T) {
	g := newMemRig(t, 0, 1<<20, testOptions{})
	defer g.close()
	a, b := SessionID{10}, SessionID{11}
	ctx := context.Background()
	steps := []struct {
		name    string
		run     func() error
		refused bool
	}{
		{"higher", func() error { _, err := g.r.Promote(ctx, promiseOf(5, 1, a)); return err }, false},
		{"the same again", func() error { _, err := g.r.Promote(ctx, promiseOf(5, 1, a)); return err }, false},
		{"equal n, other tag", func() error { _, err := g.r.Promote(ctx, promiseOf(5, 2, a)); return err }, true},
		{"equal n, other session", func() error { _, err := g.r.Promote(ctx, promiseOf(5, 1, b)); return err }, true},
		{"lower", func() error { _, err := g.r.Promote(ctx, promiseOf(4, 1, b)); return err }, true},
		{"advance of another session", func() error { return g.r.Advance(b, promiseOf(6, 1, b)) }, true},
		{"advance", func() error { return g.r.Advance(a, promiseOf(6, 7, a)) }, false},
		{"advance back", func() error { return g.r.Advance(a, promiseOf(5, 1, a)) }, true},
		{"lease of another session", func() error { return g.r.Lease(b, time.Second) }, true},
		{"lease", func() error { return g.r.Lease(a, time.Second) }, false},
		{"takeover", func() error { _, err := g.r.Promote(ctx, promiseOf(7, 1, b)); return err }, false},
		{"lease of the old session", func() error { return g.r.Lease(a, time.Second) }, true},
	}
	for _, s := range steps {
		err := s.run()
		if (err != nil) != s.refused {
			t.Fatalf("%s: %v", s.name, err)
		}
		var f *FencedError
		if s.refused && (!errors.As(err, &f) || !errors.Is(err, block.ErrFenced) || !errdefs.IsFailedPrecondition(err)) {
			t.Fatalf("%s: error of other kind: %v", s.name, err)
		}
	}
	if p := g.r.Probe(); p.Promised.Epoch != (Epoch{7, 1}) || string(p.Record) != "\x07" || p.LeaseAge < 0 {
		t.Fatalf("probe %+v", p)
	}
	if _, err := g.r.OpenQueue(g.e, a); !errors.Is(err, block.ErrFenced) {
		t.Fatalf("open by the old session: %v", err)
	}
	if err := g.write(0, 1, 512); !errors.Is(err, block.ErrFenced) {
		t.Fatalf("write of the old session: %v", err)
	}
}

// PromoteThenReplicaRestarts (level C): what was promised is refused to the old
// session after a power cut at any moment after the answer. The mutation that
// answers before the promise is durable must be seen.
func TestPromoteThenReplicaRestarts(t *testing.T) {
	lost := func(o testOptions) (n int) {
		for seed := range uint64(40) {
			g := newMemRig(t, 0, 1<<20, o)
			if err := g.write(0, 1, 4096); err != nil {
				t.Fatal(err)
			}
			if _, err := g.r.Promote(context.Background(), promiseOf(9, 1, SessionID{9})); err != nil {
				t.Fatal(err)
			}
			g.m = g.m.PowerCut(newRand(seed))
			g.open(1, testOptions{})
			r, err := g.s.Replica(g.id)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := r.OpenQueue(g.e, testSession); err == nil {
				t.Fatal("the gate is open without a promise")
			}
			if _, err := r.Promote(context.Background(), promiseOf(2, 5, testSession)); err == nil {
				n++
			}
			if err := g.s.Close(); err != nil {
				t.Fatal(err)
			}
		}
		return n
	}
	if n := lost(testOptions{}); n != 0 {
		t.Errorf("%d of 40 cuts lost the promise", n)
	}
	if n := lost(testOptions{noPromiseSync: true}); n == 0 {
		t.Error("mutation not seen: promise answered before it is durable")
	}
}

// PromoteDrainsZombie, as far as it is the store's: PROMOTE answers only after
// the device I/O of the old session has ended; what had not begun is dropped.
func TestPromoteDrains(t *testing.T) {
	m := vfs.NewMem(0)
	s := newStore(t, "/d", Options{FS: m, BootID: csBoot(0)})
	r := newReplica(t, s, 1<<20, false)
	e := vfs.NewMemEngine(m, newRand(1)) // holds operations back until polled
	q, err := r.OpenQueue(e, testSession)
	if err != nil {
		t.Fatal(err)
	}
	buf := slices.Repeat([]byte{1}, 4096)
	write := func(off int64) *block.Request {
		return &block.Request{Op: block.OpWrite, Off: off, Len: 4096, Buf: buf}
	}
	started, waiting := write(0), write(8192) // the second waits for the first's extent
	q.Submit([]*block.Request{started, waiting})
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	if _, err := r.Promote(ctx, promiseOf(8, 1, SessionID{8})); !errdefs.IsUnavailable(err) {
		t.Fatalf("promote with a write in the device: %v", err)
	}
	if got := r.Probe().Promised.Epoch.N; got != 1 {
		t.Fatalf("promised %d without a drain", got)
	}
	answer := make(chan error, 1)
	go func() {
		_, err := r.Promote(context.Background(), promiseOf(8, 1, SessionID{8}))
		answer <- err
	}()
	done := make([]*block.Request, 4)
	for n := 0; n < 2; {
		if _, err := e.Wait(nil, time.Millisecond); err != nil {
			t.Fatal(err)
		}
		n += q.Reap(done)
	}
	if err := <-answer; err != nil {
		t.Fatal(err)
	}
	if started.Err != nil || !errors.Is(waiting.Err, block.ErrFenced) {
		t.Errorf("started: %v; waiting: %v", started.Err, waiting.Err)
	}
	late := write(0)
	q.Submit([]*block.Request{late})
	if n := q.Reap(done); n != 1 || !errors.Is(late.Err, block.ErrFenced) {
		t.Errorf("late write: %d, %v", n, late.Err)
	}
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	q2, err := r.OpenQueue(e, SessionID{8})
	if err != nil {
		t.Fatal(err)
	}
	if err := q2.Close(); err != nil {
		t.Fatal(err)
	}
}

// Goal: a promotion waits for control operations of the old session, and bars
// new ones.
func TestPromoteDrainsControl(t *testing.T) {
	g := newMemRig(t, 0, 1<<20, testOptions{})
	defer g.close()
	inside, leave := make(chan struct{}), make(chan struct{})
	old := make(chan error, 1)
	go func() {
		old <- g.r.InGate(testSession, func() error { close(inside); <-leave; return g.r.Freeze(ID{1}) })
	}()
	<-inside
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := g.r.Promote(ctx, promiseOf(9, 1, SessionID{9})); !errdefs.IsUnavailable(err) {
		t.Fatalf("promote over a control operation: %v", err)
	}
	if err := g.r.InGate(testSession, func() error { return nil }); !errors.Is(err, block.ErrFenced) {
		t.Errorf("new control operation: %v", err)
	}
	close(leave)
	if err := <-old; err != nil {
		t.Error(err)
	}
	if _, err := g.r.Promote(context.Background(), promiseOf(9, 1, SessionID{9})); err != nil {
		t.Error(err)
	}
}

// Goal: a replica that restarts waits out the longest lease it ever granted.
func TestLeaseSurvivesReplicaRestart(t *testing.T) {
	m := vfs.NewMem(0)
	now := time.Hour
	clock := func() time.Duration { return now }
	if err := Format("/d", FormatOptions{FS: m}); err != nil {
		t.Fatal(err)
	}
	open := func() *Store {
		s, err := Open("/d", Options{FS: m, BootID: csBoot(0), Now: clock, test: testOptions{manual: true}})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open()
	r := newReplica(t, s, 1<<20, false)
	if err := r.Lease(testSession, 2*time.Second); err != nil {
		t.Fatal(err)
	}
	now += time.Second
	a := promote(t, r, 2)
	if a.Remaining != time.Second || a.Whose != testSession {
		t.Errorf("remaining %v of %s", a.Remaining, a.Whose)
	}
	m = m.PowerCut(newRand(1))
	now += 500 * time.Millisecond
	s2 := open()
	r2, err := s2.Replica(r.ID())
	if err != nil {
		t.Fatal(err)
	}
	if a := promote(t, r2, 3); a.Remaining != 2*time.Second || !(a.Whose == SessionID{}) {
		t.Errorf("after a restart: remaining %v of %s", a.Remaining, a.Whose)
	}
	if err := errors.Join(s.Close(), s2.Close()); err != nil {
		t.Fatal(err)
	}
}

// Goal: loss id and open counter say what they must.
func TestOpenings(t *testing.T) {
	m := vfs.NewMem(0)
	if err := Format("/d", FormatOptions{FS: m, ClusterID: ID{1}, DriveID: ID{2}}); err != nil {
		t.Fatal(err)
	}
	if err := Format("/d", FormatOptions{FS: m}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("format over a store: %v", err)
	}
	var last Info
	for i, c := range []struct {
		name     string
		boot     int
		diskSeq  uint64
		counter  uint64
		sameLoss bool
	}{
		{"first", 0, 0, 0, false},
		{"same boot", 0, 0, 0, true},
		{"same boot, device came back", 0, 3, 0, false},
		{"other boot", 1, 3, 0, false},
		{"given counter", 1, 3, 40, true},
	} {
		m.SetDiskSeq(c.diskSeq)
		s, err := Open("/d", Options{FS: m, BootID: csBoot(c.boot), OpenCounter: c.counter})
		if err != nil {
			t.Fatal(err)
		}
		in := s.Info()
		if i > 0 && (in.LossID == last.LossID) != c.sameLoss {
			t.Errorf("%s: same loss id %v", c.name, !c.sameLoss)
		}
		if in.OpenCounter <= last.OpenCounter || c.counter != 0 && in.OpenCounter != c.counter {
			t.Errorf("%s: open counter %d", c.name, in.OpenCounter)
		}
		last = in
		if _, err := Open("/d", Options{FS: m, BootID: csBoot(c.boot)}); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("second opener: %v", err)
		}
		for range 2 {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	other := ID{77}
	for name, o := range map[string]Options{
		"cluster": {ExpectCluster: &other}, "drive": {ExpectDrive: &other}, "counter": {OpenCounter: 40},
	} {
		o.FS, o.BootID = m, csBoot(1)
		if _, err := Open("/d", o); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("other %s: %v", name, err)
		}
	}
	if _, err := Open("/nothing", Options{FS: m}); !errdefs.IsNotFound(err) {
		t.Errorf("no store: %v", err)
	}
}
