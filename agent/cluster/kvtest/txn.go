package kvtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/moraine-storage/moraine/agent/cluster"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// testGet: what a key shows before, after puts and after a delete.
func testGet(e *env) {
	k := e.key("a")
	if _, err := e.KV.Get(e.ctx, k); !errdefs.IsNotFound(err) {
		e.Errorf("get of nothing: %v", err)
	}
	r1 := e.put(k, "one")
	if it := e.get(k); string(it.Value) != "one" || it.Key != k || it.CreateRevision != r1 || it.ModRevision != r1 || it.Lease != 0 {
		e.Errorf("after create at %d: %+v", r1, it)
	}
	r2 := e.put(k, "two")
	if r2 <= r1 {
		e.Errorf("revisions %d then %d", r1, r2)
	}
	if it := e.get(k); string(it.Value) != "two" || it.CreateRevision != r1 || it.ModRevision != r2 {
		e.Errorf("after change at %d: %+v", r2, it)
	}
	e.txn(cluster.Txn{Then: []cluster.Op{cluster.Delete(k)}})
	if _, err := e.KV.Get(e.ctx, k); !errdefs.IsNotFound(err) {
		e.Errorf("get after delete: %v", err)
	}
	if r3 := e.put(k, ""); e.get(k).CreateRevision != r3 {
		e.Error("a key made anew must have a new CreateRevision")
	}
	if it := e.get(k); !it.Exists() || len(it.Value) != 0 {
		e.Errorf("empty value: %+v", it)
	}
}

// testConditions: each kind of condition on a present and an absent key.
func testConditions(e *env) {
	there, gone, mark := e.key("there"), e.key("gone"), e.key("mark")
	rev := e.put(there, "x")
	for i, c := range []struct {
		conds []cluster.Cond
		want  bool
	}{
		{nil, true},
		{[]cluster.Cond{cluster.Absent(gone)}, true},
		{[]cluster.Cond{cluster.Absent(there)}, false},
		{[]cluster.Cond{cluster.Exists(there)}, true},
		{[]cluster.Cond{cluster.Exists(gone)}, false},
		{[]cluster.Cond{cluster.AtRevision(there, rev)}, true},
		{[]cluster.Cond{cluster.AtRevision(there, rev-1)}, false},
		{[]cluster.Cond{cluster.AtRevision(there, rev+1)}, false},
		{[]cluster.Cond{cluster.AtRevision(gone, rev)}, false},
		{[]cluster.Cond{cluster.AtRevision(gone, 0)}, true},
		{[]cluster.Cond{cluster.AtRevision(there, 0)}, false},
		{[]cluster.Cond{cluster.AtRevision(there, rev), cluster.Absent(gone)}, true},
		{[]cluster.Cond{cluster.AtRevision(there, rev), cluster.Exists(gone)}, false},
		{[]cluster.Cond{cluster.Exists(gone), cluster.AtRevision(there, rev)}, false},
		{[]cluster.Cond{cluster.Exists(there), cluster.AtRevision(there, rev)}, true},
	} {
		want := strconv.Itoa(i)
		res := e.txn(cluster.Txn{If: c.conds, Then: []cluster.Op{cluster.Put(mark, []byte(want))}})
		it, err := e.KV.Get(e.ctx, mark)
		if err != nil && !errdefs.IsNotFound(err) {
			e.Fatal(err)
		}
		if did := string(it.Value) == want; res.OK != c.want || did != c.want {
			e.Errorf("case %d: %+v: ok %v, done %v, want %v", i, c.conds, res.OK, did, c.want)
		}
		if res.OK && it.ModRevision != res.Revision {
			e.Errorf("case %d: put at %d, result says %d", i, it.ModRevision, res.Revision)
		}
		if res.OK && res.Current != nil {
			e.Errorf("case %d: current values although it was done", i)
		}
		if !res.OK {
			e.checkCurrent(i, c.conds, res.Current, there, rev)
		}
	}
	// A transaction of conditions only is a consistent read.
	if res := e.txn(cluster.Txn{If: []cluster.Cond{cluster.Absent(there)}}); res.OK || string(res.Current[0].Value) != "x" {
		e.Errorf("conditions only: %+v", res)
	}
}

func (e *env) checkCurrent(i int, conds []cluster.Cond, current []cluster.Item, there string, rev int64) {
	if len(current) != len(conds) {
		e.Errorf("case %d: %d current values for %d conditions", i, len(current), len(conds))
		return
	}
	for j, it := range current {
		isThere := conds[j].Key == there
		if it.Key != conds[j].Key || it.Exists() != isThere {
			e.Errorf("case %d: current value %d: %+v", i, j, it)
		}
		if isThere && (it.ModRevision != rev || string(it.Value) != "x") {
			e.Errorf("case %d: current value %d: %+v, want x at %d", i, j, it, rev)
		}
	}
}

// testAtomic: several changes happen at one revision, or none does.
func testAtomic(e *env) {
	a, b, c := e.key("a"), e.key("b"), e.key("c")
	e.put(c, "old")
	res := e.txn(cluster.Txn{If: []cluster.Cond{cluster.Absent(a)}, Then: []cluster.Op{
		cluster.Put(a, []byte("1")), cluster.Put(b, []byte("2")), cluster.Delete(c),
	}})
	if !res.OK || e.get(a).ModRevision != res.Revision || e.get(b).ModRevision != res.Revision {
		e.Errorf("not at one revision: %+v", res)
	}
	if _, err := e.KV.Get(e.ctx, c); !errdefs.IsNotFound(err) {
		e.Errorf("not deleted: %v", err)
	}
	res = e.txn(cluster.Txn{If: []cluster.Cond{cluster.Absent(a)}, Then: []cluster.Op{
		cluster.Put(b, []byte("3")), cluster.Put(c, []byte("3")),
	}})
	if res.OK || string(e.get(b).Value) != "2" {
		e.Errorf("a refused transaction changed something: %+v", res)
	}
	if _, err := e.KV.Get(e.ctx, c); !errdefs.IsNotFound(err) {
		e.Errorf("a refused transaction made a key: %v", err)
	}
}

// testNoEffect: deleting what is not there is no error and makes no event.
func testNoEffect(e *env) {
	w := e.watch(e.prefix, 0)
	if res := e.txn(cluster.Txn{Then: []cluster.Op{cluster.Delete(e.key("nothing"))}}); !res.OK || res.Revision <= 0 {
		e.Errorf("delete of nothing: %+v", res)
	}
	e.put(e.key("a"), "1")
	if got := e.show(e.events(w, 1)[0]); got != "put a=1" {
		e.Errorf("first event %q", got)
	}
}

// testInvalid: what breaks the limits is refused as such and changes nothing.
func testInvalid(e *env) {
	k := e.key("k")
	many := make([]cluster.Op, cluster.MaxTxnOps+1)
	for i := range many {
		many[i] = cluster.Put(e.key("%d", i), nil)
	}
	manyConds := make([]cluster.Cond, cluster.MaxTxnOps+1)
	for i := range manyConds {
		manyConds[i] = cluster.Absent(e.key("%d", i))
	}
	half := make([]byte, cluster.MaxTxnBytes/2)
	for name, txn := range map[string]cluster.Txn{
		"empty":          {},
		"empty key":      {Then: []cluster.Op{cluster.Put("", nil)}},
		"empty cond key": {If: []cluster.Cond{cluster.Absent("")}},
		"long key":       {Then: []cluster.Op{cluster.Put(k+strings.Repeat("x", cluster.MaxKeyBytes), nil)}},
		"large value":    {Then: []cluster.Op{cluster.Put(k, make([]byte, cluster.MaxValueBytes+1))}},
		"large sum":      {Then: []cluster.Op{cluster.Put(k, half), cluster.Put(k+"2", half)}},
		"many changes":   {Then: many},
		"many conds":     {If: manyConds, Then: many[:1]},
		"put twice":      {Then: []cluster.Op{cluster.Put(k, nil), cluster.Put(k, nil)}},
		"put and delete": {Then: []cluster.Op{cluster.Put(k, nil), cluster.Delete(k)}},
		"no kind":        {Then: []cluster.Op{{Key: k}}},
		"no cond kind":   {If: []cluster.Cond{{Key: k}}},
		"negative cond":  {If: []cluster.Cond{cluster.AtRevision(k, -1)}},
	} {
		if _, err := e.KV.Txn(e.ctx, txn); !errdefs.IsInvalidArgument(err) || errdefs.Indeterminate(err) {
			e.Errorf("%s: %v", name, err)
		}
	}
	for _, key := range []string{"", strings.Repeat("x", cluster.MaxKeyBytes+1)} {
		if _, err := e.KV.Get(e.ctx, key); !errdefs.IsInvalidArgument(err) {
			e.Errorf("get of a key of %d bytes: %v", len(key), err)
		}
	}
	if items, _, err := cluster.ListAll(e.ctx, e.KV, e.prefix); err != nil || len(items) > 0 {
		e.Errorf("left behind: %v, %v", items, err)
	}
}

// testLargest: what just keeps the limits works.
func testLargest(e *env) {
	value := bytes.Repeat([]byte{0xa5}, cluster.MaxValueBytes)
	k := e.key("large")
	e.put(k, string(value))
	if it := e.get(k); !bytes.Equal(it.Value, value) {
		e.Errorf("value of %d bytes came back with %d", len(value), len(it.Value))
	}
	long := e.prefix + strings.Repeat("k", cluster.MaxKeyBytes-len(e.prefix))
	e.put(long, "x")
	if string(e.get(long).Value) != "x" {
		e.Error("longest key lost its value")
	}
	txn := cluster.Txn{}
	for i := range cluster.MaxTxnOps {
		txn.If = append(txn.If, cluster.Absent(e.key("many/%03d", i)))
		txn.Then = append(txn.Then, cluster.Put(e.key("many/%03d", i), []byte{byte(i)}))
	}
	if res := e.txn(txn); !res.OK {
		e.Errorf("largest transaction: %+v", res)
	}
	res := e.txn(txn)
	if res.OK || len(res.Current) != cluster.MaxTxnOps || res.Current[99].Value[0] != 99 {
		e.Error("largest transaction again: wrong current values")
	}
}

// testBothClients: two clients see one store.
func testBothClients(e *env) {
	k := e.key("a")
	rev := e.put(k, "first")
	it, err := e.Second.Get(e.ctx, k)
	e.must(err)
	if string(it.Value) != "first" || it.ModRevision != rev {
		e.Errorf("second client sees %+v", it)
	}
	w := e.watch(k, rev+1)
	res, err := e.Second.Txn(e.ctx, cluster.Txn{
		If: []cluster.Cond{cluster.AtRevision(k, rev)}, Then: []cluster.Op{cluster.Put(k, []byte("second"))},
	})
	e.must(err)
	if !res.OK {
		e.Fatal("second client lost without a rival")
	}
	if got := e.events(w, 1)[0]; string(got.Item.Value) != "second" || got.Item.ModRevision != res.Revision {
		e.Errorf("first client's watch: %+v", got)
	}
}

// testBuffers: neither side keeps the other's bytes.
func testBuffers(e *env) {
	k := e.key("a")
	in := []byte("hello")
	w := e.watch(k, 0)
	e.txn(cluster.Txn{Then: []cluster.Op{cluster.Put(k, in)}})
	copy(in, "XXXXX")
	it := e.get(k)
	if string(it.Value) != "hello" {
		e.Errorf("the store kept the caller's buffer: %q", it.Value)
	}
	copy(it.Value, "YYYYY")
	ev := e.events(w, 1)[0]
	if string(ev.Item.Value) != "hello" {
		e.Errorf("the watch shares a buffer: %q", ev.Item.Value)
	}
	copy(ev.Item.Value, "ZZZZZ")
	if got := e.get(k); string(got.Value) != "hello" {
		e.Errorf("the store handed out its own buffer: %q", got.Value)
	}
}

// testBinary: keys and values are bytes, whatever they hold.
func testBinary(e *env) {
	k := e.key("%s", "\x00\xff\n%d")
	v := string([]byte{0, 1, 0xff, 0xfe, 0})
	e.put(k, v)
	if it := e.get(k); string(it.Value) != v || it.Key != k {
		e.Errorf("got %q=%q", it.Key, it.Value)
	}
	items, _, err := cluster.ListAll(e.ctx, e.KV, e.key("%s", "\x00\xff"))
	if err != nil || len(items) != 1 || items[0].Key != k {
		e.Errorf("list: %v, %v", items, err)
	}
}

// testCounter: many writers that compare and swap lose no increment.
func testCounter(e *env) {
	const writers, each = 8, 20
	k := e.key("n")
	e.put(k, "0")
	var wg sync.WaitGroup
	errs := make(chan error, writers)
	for i := range writers {
		kv := e.KV
		if i%2 == 1 {
			kv = e.Second
		}
		wg.Go(func() { errs <- increment(e.ctx, kv, k, each) })
	}
	wg.Wait()
	for range writers {
		e.must(<-errs)
	}
	if got := string(e.get(k).Value); got != strconv.Itoa(writers*each) {
		e.Errorf("counter is %s, want %d", got, writers*each)
	}
}

func increment(ctx context.Context, kv cluster.KV, key string, times int) error {
	it, err := kv.Get(ctx, key)
	if err != nil {
		return err
	}
	for done := 0; done < times; {
		n, err := strconv.Atoi(string(it.Value))
		if err != nil {
			return err
		}
		next := []byte(strconv.Itoa(n + 1))
		res, err := kv.Txn(ctx, cluster.Txn{
			If:   []cluster.Cond{cluster.AtRevision(key, it.ModRevision)},
			Then: []cluster.Op{cluster.Put(key, next)},
		})
		switch {
		case err != nil:
			return fmt.Errorf("increment: %w", err)
		case res.OK:
			it.Value, it.ModRevision = next, res.Revision
			done++
		default:
			it = res.Current[0]
		}
	}
	return nil
}

// testCancelled: a call whose context is over does nothing and says why.
func testCancelled(e *env) {
	ctx, cancel := context.WithCancel(e.ctx)
	cancel()
	k := e.key("a")
	calls := map[string]func() error{
		"get":  func() error { _, err := e.KV.Get(ctx, k); return err },
		"list": func() error { _, err := e.KV.List(ctx, cluster.ListRequest{Prefix: e.prefix}); return err },
		"txn": func() error {
			_, err := e.KV.Txn(ctx, cluster.Txn{Then: []cluster.Op{cluster.Put(k, nil)}})
			return err
		},
		"grant": func() error { _, err := e.KV.Grant(ctx, cluster.MinLeaseTTL); return err },
		"watch": func() error {
			w, err := e.KV.Watch(ctx, e.prefix, 0)
			if err == nil {
				defer w.Close()
				_, err = w.Next(e.ctx)
			}
			return err
		},
	}
	for name, call := range calls {
		if err := call(); !errors.Is(err, context.Canceled) || errdefs.Indeterminate(err) {
			e.Errorf("%s: %v", name, err)
		}
	}
	if _, err := e.KV.Get(e.ctx, k); !errdefs.IsNotFound(err) {
		e.Errorf("a cancelled transaction took effect: %v", err)
	}
}
