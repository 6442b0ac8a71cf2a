package memkv_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/moraine-storage/moraine/agent/cluster"
	"github.com/moraine-storage/moraine/agent/cluster/kvtest"
	"github.com/moraine-storage/moraine/agent/cluster/memkv"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestKV(t *testing.T) {
	s := memkv.New(memkv.Options{})
	kvtest.Run(t, kvtest.Fixture{
		KV: s.Client(), Second: s.Client(),
		Compact: func(_ context.Context, rev int64) error { s.Compact(rev); return nil },
	})
}

// TestFaults checks what each kind of fault does to a transaction, for the
// client it is injected into and only for it.
func TestFaults(t *testing.T) {
	ctx := context.Background()
	for _, c := range []struct {
		kind                   memkv.FaultKind
		indeterminate, applied bool
	}{
		{memkv.Unreachable, false, false},
		{memkv.RequestLost, true, false},
		{memkv.AnswerLost, true, true},
	} {
		s := memkv.New(memkv.Options{})
		kv, other := s.Client(), s.Client()
		kv.Inject(memkv.Fault{Kind: c.kind, Call: memkv.CallTxn, Prefix: "a", Count: 1})
		txn := cluster.Txn{Then: []cluster.Op{cluster.Put("a", []byte("1"))}}
		if _, err := kv.Txn(ctx, cluster.Txn{Then: []cluster.Op{cluster.Put("b", nil)}}); err != nil {
			t.Errorf("%v: another key: %v", c.kind, err)
		}
		_, err := kv.Txn(ctx, txn)
		if !errdefs.IsUnavailable(err) || errdefs.Indeterminate(err) != c.indeterminate {
			t.Errorf("%v: %v", c.kind, err)
		}
		if _, err := other.Get(ctx, "a"); (err == nil) != c.applied {
			t.Errorf("%v: applied %v, want %v", c.kind, err == nil, c.applied)
		}
		if res, err := kv.Txn(ctx, txn); err != nil || !res.OK {
			t.Errorf("%v: after the fault: %v", c.kind, err)
		}
		kv.Inject(memkv.Fault{Kind: c.kind})
		if _, err := kv.Get(ctx, "a"); !errdefs.IsUnavailable(err) || errdefs.Indeterminate(err) {
			t.Errorf("%v: read: %v", c.kind, err)
		}
		if _, err := kv.Grant(ctx, time.Minute); errdefs.Indeterminate(err) != c.indeterminate {
			t.Errorf("%v: grant: %v", c.kind, err)
		}
		kv.Clear()
		if _, err := kv.Get(ctx, "a"); err != nil {
			t.Errorf("%v: after clear: %v", c.kind, err)
		}
	}
}

// TestFaultEndsWatch: a watch that is cut off says so, and a new one goes on
// where it stopped.
func TestFaultEndsWatch(t *testing.T) {
	ctx := context.Background()
	s := memkv.New(memkv.Options{})
	kv, other := s.Client(), s.Client()
	w, err := kv.Watch(ctx, "a", 0)
	if err != nil {
		t.Fatal(err)
	}
	from := s.Revision() + 1
	time.AfterFunc(time.Millisecond, func() { kv.Inject(memkv.Fault{Kind: memkv.Unreachable}) })
	for range 2 {
		if _, err := w.Next(ctx); !errors.Is(err, cluster.ErrUnavailable) {
			t.Errorf("next: %v", err)
		}
	}
	if _, err := other.Txn(ctx, cluster.Txn{Then: []cluster.Op{cluster.Put("a", nil)}}); err != nil {
		t.Fatal(err)
	}
	kv.Clear()
	w, err = kv.Watch(ctx, "a", from)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := w.Next(ctx); err != nil || len(b.Events) != 1 {
		t.Errorf("after the fault: %+v, %v", b, err)
	}
}

// TestRestore: the store goes back, revisions and all, and watches end.
func TestRestore(t *testing.T) {
	ctx := context.Background()
	s := memkv.New(memkv.Options{})
	kv := s.Client()
	put := func(k, v string) int64 {
		t.Helper()
		res, err := kv.Txn(ctx, cluster.Txn{Then: []cluster.Op{cluster.Put(k, []byte(v))}})
		if err != nil {
			t.Fatal(err)
		}
		return res.Revision
	}
	rev := put("a", "old")
	l, err := kv.Grant(ctx, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Txn(ctx, cluster.Txn{Then: []cluster.Op{cluster.PutLeased("leased", nil, l.ID())}}); err != nil {
		t.Fatal(err)
	}
	snapshot := s.Snapshot()
	put("a", "new")
	put("b", "new")
	w, err := kv.Watch(ctx, "a", 0)
	if err != nil {
		t.Fatal(err)
	}
	s.Restore(snapshot)
	if _, err := w.Next(ctx); !errors.Is(err, cluster.ErrUnavailable) {
		t.Errorf("watch across a restore: %v", err)
	}
	items, _, err := cluster.ListAll(ctx, kv, "\x61")
	if err != nil || len(items) != 1 || string(items[0].Value) != "old" || items[0].ModRevision != rev {
		t.Errorf("after restore: %+v, %v", items, err)
	}
	for _, k := range []string{"b", "leased"} {
		if _, err := kv.Get(ctx, k); !errdefs.IsNotFound(err) {
			t.Errorf("%s after restore: %v", k, err)
		}
	}
	if err := l.KeepAlive(ctx); !errdefs.IsNotFound(err) {
		t.Errorf("lease after restore: %v", err)
	}
	if got := put("a", "again"); got != rev+2 {
		t.Errorf("next revision %d, want %d", got, rev+2)
	}
}

// TestOwnClock: with a clock of the caller's, leases end by it alone.
func TestOwnClock(t *testing.T) {
	ctx := context.Background()
	now := time.Unix(1000, 0)
	s := memkv.New(memkv.Options{Now: func() time.Time { return now }})
	kv := s.Client()
	l, err := kv.Grant(ctx, 1500*time.Millisecond)
	if err != nil || l.TTL() != 2*time.Second {
		t.Fatalf("ttl %v, %v", l.TTL(), err)
	}
	if _, err := kv.Txn(ctx, cluster.Txn{Then: []cluster.Op{cluster.PutLeased("a", nil, l.ID())}}); err != nil {
		t.Fatal(err)
	}
	w, err := kv.Watch(ctx, "a", 0)
	if err != nil {
		t.Fatal(err)
	}
	now = now.Add(1999 * time.Millisecond)
	if err := l.KeepAlive(ctx); err != nil {
		t.Error(err)
	}
	now = now.Add(1999 * time.Millisecond)
	if _, err := kv.Get(ctx, "a"); err != nil {
		t.Error(err)
	}
	now = now.Add(time.Millisecond)
	s.Expire()
	if b, err := w.Next(ctx); err != nil || b.Events[0].Kind != cluster.EventDelete {
		t.Errorf("%+v, %v", b, err)
	}
}

// TestLogBound: the history is bounded; a watch that lags behind it is told.
func TestLogBound(t *testing.T) {
	ctx := context.Background()
	s := memkv.New(memkv.Options{})
	kv := s.Client()
	w, err := kv.Watch(ctx, "k", 0)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 1<<16 + 1 {
		if _, err := kv.Txn(ctx, cluster.Txn{Then: []cluster.Op{cluster.Put("k", []byte{byte(i)})}}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Next(ctx); !errors.Is(err, cluster.ErrCompacted) {
		t.Errorf("a watch that lagged behind: %v", err)
	}
	if it, err := kv.Get(ctx, "k"); err != nil || it.Value[0] != 0 {
		t.Errorf("%+v, %v", it, err)
	}
}
