package kvtest

import (
	"errors"
	"slices"

	"github.com/moraine-storage/moraine/agent/cluster"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

func (e *env) list(req cluster.ListRequest) cluster.Page {
	e.Helper()
	p, err := e.KV.List(e.ctx, req)
	e.must(err)
	return p
}

// fill puts n keys under prefix, named so that their order is their number's.
func (e *env) fill(prefix string, n int) {
	e.Helper()
	for i := 0; i < n; {
		var txn cluster.Txn
		for ; i < n && len(txn.Then) < cluster.MaxTxnOps; i++ {
			txn.Then = append(txn.Then, cluster.Put(prefix+string(rune('a'+i/26/26))+string(rune('a'+i/26%26))+string(rune('a'+i%26)), []byte{byte(i)}))
		}
		e.txn(txn)
	}
}

// testListPages: any page size yields all keys once, in order, and nothing of
// the neighbours.
func testListPages(e *env) {
	const n = 23
	e.put(e.key("k"), "the prefix without the slash")
	e.put(e.key("k0"), "sorts behind k/")
	e.fill(e.key("k/"), n)
	for _, limit := range []int{1, 2, 7, n - 1, n, n + 1, 0} {
		var keys []string
		req := cluster.ListRequest{Prefix: e.key("k/"), Limit: limit}
		for pages := 1; ; pages++ {
			p := e.list(req)
			if limit > 0 && len(p.Items) > limit {
				e.Errorf("limit %d: page of %d", limit, len(p.Items))
			}
			for _, it := range p.Items {
				keys = append(keys, it.Key)
				if len(it.Value) != 1 || int(it.Value[0]) != len(keys)-1 || it.ModRevision == 0 {
					e.Errorf("limit %d: item %d: %+v", limit, len(keys)-1, it)
				}
			}
			if req.Revision != 0 && p.Revision != req.Revision {
				e.Errorf("limit %d: pages of revisions %d and %d", limit, req.Revision, p.Revision)
			}
			if p.Next == "" {
				break
			}
			if pages > n {
				e.Fatalf("limit %d: no end of pages", limit)
			}
			req.After, req.Revision = p.Next, p.Revision
		}
		if len(keys) != n || !slices.IsSorted(keys) {
			e.Errorf("limit %d: %d keys %q", limit, len(keys), keys)
		}
	}
	if p := e.list(cluster.ListRequest{Prefix: e.key("none/")}); len(p.Items) != 0 || p.Next != "" || p.Revision == 0 {
		e.Errorf("empty listing: %+v", p)
	}
	e.fill(e.key("many/"), cluster.MaxListItems+5)
	if p := e.list(cluster.ListRequest{Prefix: e.key("many/"), Limit: 1 << 30}); len(p.Items) != cluster.MaxListItems || p.Next == "" {
		e.Errorf("huge limit: %d items, next %q", len(p.Items), p.Next)
	}
	items, rev, err := cluster.ListAll(e.ctx, e.KV, e.key("many/"))
	if err != nil || len(items) != cluster.MaxListItems+5 || rev == 0 {
		e.Errorf("ListAll: %d items at %d, %v", len(items), rev, err)
	}
}

// testListOneRevision: changes made between two pages are not seen.
func testListOneRevision(e *env) {
	e.fill(e.key("k/"), 6)
	first := e.list(cluster.ListRequest{Prefix: e.key("k/"), Limit: 2})
	e.txn(cluster.Txn{Then: []cluster.Op{
		cluster.Delete(e.key("k/aad")), cluster.Put(e.key("k/aae"), []byte("new")), cluster.Put(e.key("k/aadd"), nil),
	}})
	rest := e.list(cluster.ListRequest{Prefix: e.key("k/"), After: first.Next, Revision: first.Revision})
	if len(rest.Items) != 4 || rest.Items[1].Key != e.key("k/aad") || rest.Items[2].Value[0] != 4 {
		e.Errorf("second page shows later changes: %+v", rest.Items)
	}
	if now := e.list(cluster.ListRequest{Prefix: e.key("k/")}); len(now.Items) != 6 || now.Revision <= first.Revision {
		e.Errorf("listing of now: %+v", now)
	}
	// A listing and a watch from behind it miss nothing and repeat nothing.
	w := e.watch(e.key("k/"), first.Revision+1)
	if evs := e.events(w, 3); evs[0].Item.ModRevision != first.Revision+1 && evs[0].Item.ModRevision <= first.Revision {
		e.Errorf("watch behind the listing: %+v", evs)
	}
}

// testListInvalid: bad requests are refused as such.
func testListInvalid(e *env) {
	for i, req := range []cluster.ListRequest{
		{},
		{Prefix: e.prefix, After: "elsewhere"},
		{Prefix: e.prefix, Limit: -1},
		{Prefix: e.prefix, Revision: -1},
	} {
		if _, err := e.KV.List(e.ctx, req); !errdefs.IsInvalidArgument(err) {
			e.Errorf("request %d: %v", i, err)
		}
	}
	if _, err := e.KV.List(e.ctx, cluster.ListRequest{Prefix: e.prefix, Revision: 1 << 60}); !errors.Is(err, errdefs.ErrOutOfRange) {
		e.Errorf("listing of the future: %v", err)
	}
	if _, err := e.KV.Watch(e.ctx, "", 0); !errdefs.IsInvalidArgument(err) {
		e.Errorf("watch of everything: %v", err)
	}
	if _, err := e.KV.Watch(e.ctx, e.prefix, -1); !errdefs.IsInvalidArgument(err) {
		e.Errorf("watch from -1: %v", err)
	}
}
