package kvtest

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/moraine-storage/moraine/agent/cluster"
)

// testWatchOrder: puts and deletes arrive in order, with value and revision.
func testWatchOrder(e *env) {
	w := e.watch(e.prefix, 0)
	k := e.key("a")
	r1 := e.put(k, "1")
	r2 := e.put(k, "2")
	r3 := e.txn(cluster.Txn{Then: []cluster.Op{cluster.Delete(k)}}).Revision
	r4 := e.put(k, "3")
	evs := e.events(w, 4)
	for i, want := range []struct {
		text string
		rev  int64
	}{{"put a=1", r1}, {"put a=2", r2}, {"delete a", r3}, {"put a=3", r4}} {
		if got := e.show(evs[i]); got != want.text || evs[i].Item.ModRevision != want.rev {
			e.Errorf("event %d: %q at %d, want %q at %d", i, got, evs[i].Item.ModRevision, want.text, want.rev)
		}
	}
	if evs[1].Item.CreateRevision != r1 || evs[3].Item.CreateRevision != r4 {
		e.Errorf("create revisions of %+v", evs)
	}
}

// testWatchFromRevision: a watch of the past begins exactly where asked.
func testWatchFromRevision(e *env) {
	var revs []int64
	for i := range 5 {
		revs = append(revs, e.put(e.key("%d", i), strconv.Itoa(i)))
	}
	for from := range revs {
		evs := e.events(e.watch(e.prefix, revs[from]), len(revs)-from)
		for i, ev := range evs {
			if ev.Item.ModRevision != revs[from+i] {
				e.Errorf("from %d: event %d is of %d", revs[from], i, ev.Item.ModRevision)
			}
		}
	}
	// A revision between two of this prefix begins with the next one.
	if ev := e.events(e.watch(e.prefix, revs[3]+1), 1)[0]; ev.Item.ModRevision != revs[4] {
		e.Errorf("from %d: %+v", revs[3]+1, ev)
	}
	// A revision of the future delivers nothing older.
	w := e.watch(e.prefix, revs[4]+1)
	last := e.put(e.key("last"), "x")
	if ev := e.events(w, 1)[0]; ev.Item.ModRevision != last {
		e.Errorf("from the future: %+v", ev)
	}
}

// testWatchFromNow: a watch from 0 sees what comes after Watch has returned,
// at once and without exception.
func testWatchFromNow(e *env) {
	for i := range 20 {
		k := e.key("%d", i)
		e.put(k, "before")
		w := e.watch(k, 0)
		e.put(k, "after")
		if got := e.events(w, 1)[0]; string(got.Item.Value) != "after" {
			e.Fatalf("round %d: first event %+v", i, got)
		}
	}
}

// testWatchWhole: all changes of a transaction arrive in one batch.
func testWatchWhole(e *env) {
	w := e.watch(e.prefix, 0)
	var txn cluster.Txn
	for i := range cluster.MaxTxnOps {
		txn.Then = append(txn.Then, cluster.Put(e.key("%03d", i), make([]byte, 1000)))
	}
	rev := e.txn(txn).Revision
	b, err := w.Next(e.ctx)
	e.must(err)
	if len(b.Events) != cluster.MaxTxnOps || b.Revision != rev {
		e.Errorf("batch of %d events at %d, want %d at %d", len(b.Events), b.Revision, cluster.MaxTxnOps, rev)
	}
}

// testWatchPrefix: only keys under the prefix are delivered.
func testWatchPrefix(e *env) {
	w := e.watch(e.key("b/"), 0)
	for _, k := range []string{"a", "b", "b.", "b0", "c", "b/1"} {
		e.put(e.key("%s", k), k)
	}
	e.txn(cluster.Txn{Then: []cluster.Op{cluster.Put(e.key("z"), nil), cluster.Put(e.key("b/2"), nil)}})
	for i, ev := range e.events(w, 2) {
		if want := e.key("b/%d", i+1); ev.Item.Key != want {
			e.Errorf("event for %q, want %q", ev.Item.Key, want)
		}
	}
}

// testWatchConcurrent: while several writers write, watches from different
// points see the same sequence.
func testWatchConcurrent(e *env) {
	const writers, each = 4, 25
	early := e.watch(e.prefix, 0)
	start := e.put(e.key("start"), "x")
	var wg sync.WaitGroup
	errs := make(chan error, writers*each)
	for i := range writers {
		wg.Go(func() {
			for n := range each {
				_, err := e.KV.Txn(e.ctx, cluster.Txn{Then: []cluster.Op{cluster.Put(e.key("w%d", i), []byte(strconv.Itoa(n)))}})
				errs <- err
			}
		})
	}
	evs := e.events(early, writers*each+1)
	wg.Wait()
	close(errs)
	for err := range errs {
		e.must(err)
	}
	late := e.events(e.watch(e.prefix, start), writers*each+1)
	a, b := make([]string, len(evs)), make([]string, len(evs))
	next := map[string]int{}
	for i := range evs {
		a[i], b[i] = e.show(evs[i]), e.show(late[i])
		if k := evs[i].Item.Key; i > 0 {
			if string(evs[i].Item.Value) != strconv.Itoa(next[k]) {
				e.Errorf("%s: %s, want %d", k, evs[i].Item.Value, next[k])
			}
			next[k]++
			if evs[i].Item.ModRevision <= evs[i-1].Item.ModRevision {
				e.Errorf("revisions %d, %d", evs[i-1].Item.ModRevision, evs[i].Item.ModRevision)
			}
		}
	}
	if !slices.Equal(a, b) {
		e.Errorf("two watches differ:\n%q\n%q", a, b)
	}
}

// testWatchNextCancelled: a Next that gave up loses nothing.
func testWatchNextCancelled(e *env) {
	w := e.watch(e.prefix, 0)
	for i := range 10 {
		ctx, cancel := context.WithTimeout(e.ctx, time.Millisecond)
		if i%2 == 0 {
			cancel()
		}
		if _, err := w.Next(ctx); !errors.Is(err, ctx.Err()) || err == nil {
			e.Fatalf("next: %v", err)
		}
		cancel()
	}
	e.put(e.key("a"), "1")
	ctx, cancel := context.WithCancel(e.ctx)
	cancel()
	if _, err := w.Next(ctx); err == nil {
		e.Error("next with a dead context succeeded")
	}
	if got := e.show(e.events(w, 1)[0]); got != "put a=1" {
		e.Errorf("got %q", got)
	}
}

// testWatchCancelled: the end of the watch's own context ends it.
func testWatchCancelled(e *env) {
	ctx, cancel := context.WithCancel(e.ctx)
	w, err := e.KV.Watch(ctx, e.prefix, 0)
	e.must(err)
	defer w.Close()
	time.AfterFunc(5*time.Millisecond, cancel)
	for range 2 {
		if _, err := w.Next(e.ctx); !errors.Is(err, context.Canceled) {
			e.Errorf("next: %v", err)
		}
	}
}

// testWatchClosed: Close ends a waiting Next, and may be called again.
func testWatchClosed(e *env) {
	w := e.watch(e.prefix, 0)
	time.AfterFunc(5*time.Millisecond, func() { w.Close() })
	for range 2 {
		if _, err := w.Next(e.ctx); !errors.Is(err, cluster.ErrClosed) {
			e.Errorf("next: %v", err)
		}
	}
	e.must(w.Close())
	e.must(w.Close())
}

// testCompaction: what is forgotten is refused as such, by listing and watch;
// what is current stays.
func testCompaction(e *env) {
	old := e.put(e.key("a"), "1")
	e.put(e.key("b"), "gone")
	e.txn(cluster.Txn{Then: []cluster.Op{cluster.Delete(e.key("b"))}})
	e.put(e.key("a"), "2")
	last := e.put(e.key("c"), "3")
	e.must(e.Compact(e.ctx, last))
	if _, err := e.KV.List(e.ctx, cluster.ListRequest{Prefix: e.prefix, Revision: old}); !errors.Is(err, cluster.ErrCompacted) {
		e.Errorf("list of the past: %v", err)
	}
	w, err := e.KV.Watch(e.ctx, e.prefix, old)
	if err == nil {
		defer w.Close()
		_, err = w.Next(e.ctx)
		if _, again := w.Next(e.ctx); !errors.Is(again, cluster.ErrCompacted) {
			e.Errorf("a failed watch came back: %v", again)
		}
	}
	if !errors.Is(err, cluster.ErrCompacted) {
		e.Errorf("watch of the past: %v", err)
	}
	items, rev, err := cluster.ListAll(e.ctx, e.KV, e.prefix)
	if err != nil || len(items) != 2 || string(items[0].Value) != "2" || rev < last {
		e.Errorf("after compaction: %v at %d, %v", items, rev, err)
	}
	w2 := e.watch(e.prefix, last+1)
	e.put(e.key("d"), "4")
	if got := e.show(e.events(w2, 1)[0]); got != "put d=4" {
		e.Errorf("watch behind the compaction: %q", got)
	}
}

// testCompactionCatchesUp: a watch that has delivered everything is not hurt by
// a compaction, however long it was idle.
func testCompactionCatchesUp(e *env) {
	w := e.watch(e.prefix, 0)
	e.put(e.key("a"), "1")
	e.events(w, 1)
	// A wait without events brings the watch up to date.
	ctx, cancel := context.WithTimeout(e.ctx, 10*time.Millisecond)
	defer cancel()
	if _, err := w.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		e.Errorf("idle next: %v", err)
	}
	rev := e.put(e.key("b"), "2")
	e.events(w, 1)
	e.must(e.Compact(e.ctx, rev))
	e.put(e.key("c"), "3")
	if got := e.show(e.events(w, 1)[0]); got != "put c=3" {
		e.Errorf("got %q", got)
	}
}

// testCloseTwice: Close ends watches and refuses later calls, for its client
// only.
func testCloseTwice(e *env) {
	w, err := e.Second.Watch(e.ctx, e.prefix, 0)
	e.must(err)
	time.AfterFunc(5*time.Millisecond, func() { e.Second.Close() })
	if _, err := w.Next(e.ctx); !errors.Is(err, cluster.ErrClosed) {
		e.Errorf("watch of a closed client: %v", err)
	}
	e.must(e.Second.Close())
	e.must(e.Second.Close())
	e.must(w.Close())
	calls := map[string]func() error{
		"get":  func() error { _, err := e.Second.Get(e.ctx, e.key("a")); return err },
		"list": func() error { _, err := e.Second.List(e.ctx, cluster.ListRequest{Prefix: e.prefix}); return err },
		"txn": func() error {
			_, err := e.Second.Txn(e.ctx, cluster.Txn{Then: []cluster.Op{cluster.Put(e.key("a"), nil)}})
			return err
		},
		"grant": func() error { _, err := e.Second.Grant(e.ctx, cluster.MinLeaseTTL); return err },
		"watch": func() error { _, err := e.Second.Watch(e.ctx, e.prefix, 0); return err },
	}
	for name, call := range calls {
		if err := call(); !errors.Is(err, cluster.ErrClosed) {
			e.Errorf("%s on a closed client: %v", name, err)
		}
	}
	e.put(e.key("b"), "the other client works")
}
