package kvtest

import (
	"context"
	"errors"
	"time"

	"github.com/moraine-storage/moraine/agent/cluster"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

func (e *env) grant(ttl time.Duration) cluster.Lease {
	e.Helper()
	l, err := e.KV.Grant(e.ctx, ttl)
	e.must(err)
	if l.ID() == 0 || l.TTL() < ttl {
		e.Fatalf("lease %v of %v, asked for %v", l.ID(), l.TTL(), ttl)
	}
	return l
}

// testLeaseExpiry: a lease that nobody keeps ends not before its ttl, deletes
// its keys and only them, and a watch sees it.
func testLeaseExpiry(e *env) {
	w := e.watch(e.prefix, 0)
	start := time.Now()
	l := e.grant(cluster.MinLeaseTTL)
	e.txn(cluster.Txn{Then: []cluster.Op{
		cluster.PutLeased(e.key("a"), []byte("1"), l.ID()), cluster.PutLeased(e.key("b"), []byte("1"), l.ID()),
	}})
	e.put(e.key("c"), "stays")
	if it := e.get(e.key("a")); it.Lease != l.ID() {
		e.Errorf("item bound to lease %v, want %v", it.Lease, l.ID())
	}
	evs := e.events(w, 5)
	if took := time.Since(start); took < l.TTL() {
		e.Errorf("lease of %v ended after %v", l.TTL(), took)
	}
	if a, b := e.show(evs[3]), e.show(evs[4]); !(a == "delete a" && b == "delete b" || a == "delete b" && b == "delete a") {
		e.Errorf("events at the end: %q, %q", a, b)
	}
	if items, _, err := cluster.ListAll(e.ctx, e.KV, e.prefix); err != nil || len(items) != 1 || items[0].Key != e.key("c") {
		e.Errorf("left: %v, %v", items, err)
	}
	if err := l.KeepAlive(e.ctx); !errdefs.IsNotFound(err) {
		e.Errorf("keep a lease that is over: %v", err)
	}
	e.must(l.Revoke(e.ctx))
}

// testLeaseKept: a lease that is kept outlives several ttls; KeepLease returns
// once it is over.
func testLeaseKept(e *env) {
	l := e.grant(cluster.MinLeaseTTL)
	e.txn(cluster.Txn{Then: []cluster.Op{cluster.PutLeased(e.key("a"), nil, l.ID())}})
	ctx, cancel := context.WithTimeout(e.ctx, l.TTL()*5/2)
	defer cancel()
	if err := cluster.KeepLease(ctx, l, func(err error) { e.Log("keep:", err) }); !errors.Is(err, context.DeadlineExceeded) {
		e.Errorf("keep: %v", err)
	}
	e.get(e.key("a"))
	e.must(l.Revoke(e.ctx))
	if err := cluster.KeepLease(e.ctx, l, nil); !errdefs.IsNotFound(err) {
		e.Errorf("keep after the end: %v", err)
	}
}

// testLeaseRevoke: revoking deletes at once, at one revision, and may be done
// again.
func testLeaseRevoke(e *env) {
	l := e.grant(time.Hour)
	w := e.watch(e.prefix, 0)
	e.txn(cluster.Txn{Then: []cluster.Op{
		cluster.PutLeased(e.key("a"), nil, l.ID()), cluster.PutLeased(e.key("b"), nil, l.ID()),
	}})
	e.must(l.Revoke(e.ctx))
	if items, _, err := cluster.ListAll(e.ctx, e.KV, e.prefix); err != nil || len(items) > 0 {
		e.Errorf("left after revoke: %v, %v", items, err)
	}
	if evs := e.events(w, 4); evs[2].Kind != cluster.EventDelete || evs[2].Item.ModRevision != evs[3].Item.ModRevision {
		e.Errorf("events: %+v", evs)
	}
	e.must(l.Revoke(e.ctx))
}

// testLeaseMovedKey: a key put again without a lease, or with another, is bound
// by the last put only.
func testLeaseMovedKey(e *env) {
	first, second := e.grant(time.Hour), e.grant(time.Hour)
	e.txn(cluster.Txn{Then: []cluster.Op{
		cluster.PutLeased(e.key("free"), nil, first.ID()), cluster.PutLeased(e.key("moved"), nil, first.ID()),
	}})
	e.put(e.key("free"), "")
	e.txn(cluster.Txn{Then: []cluster.Op{cluster.PutLeased(e.key("moved"), nil, second.ID())}})
	e.must(first.Revoke(e.ctx))
	if it := e.get(e.key("free")); it.Lease != 0 {
		e.Errorf("still bound: %+v", it)
	}
	if it := e.get(e.key("moved")); it.Lease != second.ID() {
		e.Errorf("bound to %v, want %v", it.Lease, second.ID())
	}
	e.must(second.Revoke(e.ctx))
	e.get(e.key("free"))
	if _, err := e.KV.Get(e.ctx, e.key("moved")); !errdefs.IsNotFound(err) {
		e.Errorf("outlived its lease: %v", err)
	}
}

// testLeaseGone: a transaction that binds to a lease that is over fails as a
// whole, and definitely; so do impossible ttls.
func testLeaseGone(e *env) {
	l := e.grant(time.Hour)
	e.must(l.Revoke(e.ctx))
	_, err := e.KV.Txn(e.ctx, cluster.Txn{Then: []cluster.Op{
		cluster.Put(e.key("a"), nil), cluster.PutLeased(e.key("b"), nil, l.ID()),
	}})
	if !errdefs.IsNotFound(err) || errdefs.Indeterminate(err) {
		e.Errorf("put with a lease that is over: %v", err)
	}
	if items, _, err := cluster.ListAll(e.ctx, e.KV, e.prefix); err != nil || len(items) > 0 {
		e.Errorf("half a transaction: %v, %v", items, err)
	}
	for _, ttl := range []time.Duration{-time.Second, 0, time.Millisecond, cluster.MaxLeaseTTL + 1} {
		if _, err := e.KV.Grant(e.ctx, ttl); !errdefs.IsInvalidArgument(err) {
			e.Errorf("lease of %v: %v", ttl, err)
		}
	}
}
