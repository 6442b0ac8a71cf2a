// Package kvtest is the conformance suite of cluster.KV. An implementation
// passes it with a test of a dozen lines:
//
//	func TestKV(t *testing.T) {
//		kvtest.Run(t, kvtest.Fixture{KV: open(t), Second: openAnother(t), Compact: compact})
//	}
//
// The cases share one store and keep apart by prefix; they run in parallel,
// but for those that compact. Nothing in them depends on speed: waits end by an
// event or by a timeout that only a failure reaches.
package kvtest

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/moraine-storage/moraine/agent/cluster"
)

// patience is how long a case waits for what must happen before it fails.
const patience = 60 * time.Second

// Fixture is what the suite runs against.
type Fixture struct {
	// KV is the client under test. The suite leaves it open.
	KV cluster.KV

	// Second is another client of the same store; the suite closes it.
	Second cluster.KV

	// Compact makes the store forget what is older than a revision.
	Compact func(ctx context.Context, rev int64) error
}

// env is what a case gets.
type env struct {
	*testing.T
	Fixture
	ctx    context.Context
	prefix string // unique to the case, ends in a slash
}

// key returns a key of the case.
func (e *env) key(format string, args ...any) string {
	return e.prefix + fmt.Sprintf(format, args...)
}

// Run runs all cases against the fixture.
func Run(t *testing.T, f Fixture) {
	parallel := []struct {
		name string
		run  func(*env)
	}{
		{"get", testGet},
		{"txn conditions", testConditions},
		{"txn atomic", testAtomic},
		{"txn without effect", testNoEffect},
		{"txn invalid", testInvalid},
		{"txn largest", testLargest},
		{"txn both clients", testBothClients},
		{"buffers", testBuffers},
		{"binary", testBinary},
		{"counter", testCounter},
		{"list pages", testListPages},
		{"list one revision", testListOneRevision},
		{"list invalid", testListInvalid},
		{"watch order", testWatchOrder},
		{"watch from revision", testWatchFromRevision},
		{"watch from now", testWatchFromNow},
		{"watch whole transactions", testWatchWhole},
		{"watch prefix", testWatchPrefix},
		{"watch concurrent", testWatchConcurrent},
		{"watch next cancelled", testWatchNextCancelled},
		{"watch cancelled", testWatchCancelled},
		{"watch closed", testWatchClosed},
		{"lease expiry", testLeaseExpiry},
		{"lease kept", testLeaseKept},
		{"lease revoke", testLeaseRevoke},
		{"lease moved key", testLeaseMovedKey},
		{"lease gone", testLeaseGone},
		{"cancelled", testCancelled},
	}
	serial := []struct {
		name string
		run  func(*env)
	}{
		{"compaction", testCompaction},
		{"compaction of a running watch", testCompactionCatchesUp},
		{"close twice", testCloseTwice},
	}
	start := func(t *testing.T, run func(*env)) {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		prefix := strings.ReplaceAll(t.Name(), "/", "_") + "/"
		run(&env{T: t, Fixture: f, ctx: ctx, prefix: prefix})
	}
	t.Run("parallel", func(t *testing.T) {
		for _, c := range parallel {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				start(t, c.run)
			})
		}
	})
	for _, c := range serial {
		t.Run(c.name, func(t *testing.T) { start(t, c.run) })
	}
}

// must stops the case on an error.
func (e *env) must(err error) {
	e.Helper()
	if err != nil {
		e.Fatal(err)
	}
}

// txn runs a transaction that must be carried out.
func (e *env) txn(txn cluster.Txn) cluster.TxnResult {
	e.Helper()
	res, err := e.KV.Txn(e.ctx, txn)
	e.must(err)
	return res
}

// put sets key unconditionally and returns the revision.
func (e *env) put(key, value string) int64 {
	e.Helper()
	return e.txn(cluster.Txn{Then: []cluster.Op{cluster.Put(key, []byte(value))}}).Revision
}

// get reads a key that must be there.
func (e *env) get(key string) cluster.Item {
	e.Helper()
	it, err := e.KV.Get(e.ctx, key)
	e.must(err)
	return it
}

// watch opens a watch that ends with the case.
func (e *env) watch(prefix string, from int64) cluster.Watcher {
	e.Helper()
	w, err := e.KV.Watch(e.ctx, prefix, from)
	e.must(err)
	e.Cleanup(func() { w.Close() })
	return w
}

// events reads n events of a watch, checking what must hold for every batch.
func (e *env) events(w cluster.Watcher, n int) []cluster.Event {
	e.Helper()
	var all []cluster.Event
	for len(all) < n {
		b, err := w.Next(e.ctx)
		e.must(err)
		if len(b.Events) == 0 {
			e.Fatal("empty batch")
		}
		for _, ev := range b.Events {
			if k := len(all); k > 0 && ev.Item.ModRevision < all[k-1].Item.ModRevision {
				e.Fatalf("event of revision %d after one of %d", ev.Item.ModRevision, all[k-1].Item.ModRevision)
			}
			all = append(all, ev)
		}
		if last := all[len(all)-1].Item.ModRevision; b.Revision != last {
			e.Fatalf("batch says revision %d, its last event is of %d", b.Revision, last)
		}
	}
	if len(all) > n {
		e.Fatalf("%d events, want %d: %v", len(all), n, all)
	}
	return all
}

// show prints an event for comparison.
func (e *env) show(ev cluster.Event) string {
	key := strings.TrimPrefix(ev.Item.Key, e.prefix)
	if ev.Kind == cluster.EventDelete {
		return "delete " + key
	}
	return fmt.Sprintf("%v %s=%s", ev.Kind, key, ev.Item.Value)
}
