package records_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/moraine-storage/moraine/agent/cluster"
	"github.com/moraine-storage/moraine/agent/cluster/memkv"
	"github.com/moraine-storage/moraine/agent/cluster/records"
	recordsv1 "github.com/moraine-storage/moraine/agent/cluster/records/v1"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var ctx = context.Background()

func open() (*records.Store, *memkv.Client) {
	kv := memkv.New(memkv.Options{}).Client()
	return records.New(kv), kv
}

func volume(name string) *recordsv1.Volume {
	return &recordsv1.Volume{
		Id: string(records.NewID()), Name: name, SizeBytes: 10 << 30,
		Epoch: &recordsv1.Epoch{N: 1, Tag: 1<<63 + 5},
		Groups: []*recordsv1.Group{{Members: []*recordsv1.Member{
			{ReplicaId: string(records.NewID()), DriveId: string(records.NewID()), Role: recordsv1.Role_IN_SYNC},
		}}},
	}
}

func must[T any](v T, err error) func(t *testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// TestLife walks a volume's record through create, look-up, update, delete.
func TestLife(t *testing.T) {
	st, _ := open()
	in := volume("pg")
	v := must(st.Volumes.Create(ctx, in))(t)
	if v.Revision == 0 || in.OldestReader != records.FormatVersion || in.Attempt == "" {
		t.Errorf("after create: %+v", v)
	}
	id := records.ID(in.Id)
	for what, got := range map[string]records.Versioned[*recordsv1.Volume]{
		"by id": must(st.Volumes.Get(ctx, id))(t), "by name": must(st.Volumes.GetByName(ctx, "pg"))(t),
	} {
		if !proto.Equal(got.Record, in) || got.Revision != v.Revision {
			t.Errorf("%s: %+v", what, got)
		}
	}
	for _, other := range []*recordsv1.Volume{volume("pg"), {Id: in.Id, Name: "other"}} {
		if _, err := st.Volumes.Create(ctx, other); !errdefs.IsAlreadyExists(err) {
			t.Errorf("create again: %v", err)
		}
	}
	if _, err := st.Volumes.GetByName(ctx, "other"); !errdefs.IsNotFound(err) {
		t.Errorf("a refused create left a name: %v", err)
	}
	first := in.Attempt
	stale := must(st.Volumes.Get(ctx, id))(t)
	v.Record.State = recordsv1.VolumeState_VOLUME_READY
	v2 := must(st.Volumes.Update(ctx, v))(t)
	if v2.Revision <= v.Revision || v2.Record.Attempt == first {
		t.Errorf("after update: %+v", v2)
	}
	if _, err := st.Volumes.Update(ctx, stale); !errors.Is(err, errdefs.ErrAborted) {
		t.Errorf("stale update: %v", err)
	}
	if err := st.Volumes.Delete(ctx, stale); !errors.Is(err, errdefs.ErrAborted) {
		t.Errorf("stale delete: %v", err)
	}
	v2.Record.Name = "renamed"
	if _, err := st.Volumes.Update(ctx, v2); !errdefs.IsInvalidArgument(err) {
		t.Errorf("rename: %v", err)
	}
	v2.Record.Name = "pg"
	if err := st.Volumes.Delete(ctx, v2); err != nil {
		t.Fatal(err)
	}
	if err := st.Volumes.Delete(ctx, v2); !errdefs.IsNotFound(err) {
		t.Errorf("delete again: %v", err)
	}
	if _, err := st.Volumes.Update(ctx, v2); !errdefs.IsNotFound(err) {
		t.Errorf("update after delete: %v", err)
	}
	must(st.Volumes.Create(ctx, volume("pg")))(t) // the name is free again
}

// TestInvalid: what is no identity or no name never reaches the store.
func TestInvalid(t *testing.T) {
	st, _ := open()
	for _, v := range []*recordsv1.Volume{
		{Name: "a"}, {Id: "x", Name: "a"}, {Id: strings.Repeat("A", 32), Name: "a"},
		{Id: strings.Repeat("a", 31) + "/", Name: "a"},
		volume(""), volume("-a"), volume("a-"), volume("a/b"), volume("a\n"), volume(strings.Repeat("a", 129)), volume("ä"),
	} {
		if _, err := st.Volumes.Create(ctx, v); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q %q: %v", v.Id, v.Name, err)
		}
	}
	for _, name := range []string{"a", "A.b_c-9", strings.Repeat("a", 128)} {
		must(st.Volumes.Create(ctx, volume(name)))(t)
	}
	if _, err := st.Volumes.Get(ctx, "../x"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("get: %v", err)
	}
	if _, err := st.Volumes.GetByName(ctx, "../x"); !errdefs.IsNotFound(err) {
		t.Errorf("get by name: %v", err)
	}
	if _, err := st.Drives.GetByName(ctx, "x"); !errdefs.IsNotFound(err) {
		t.Errorf("drive by name: %v", err)
	}
	large := volume("large")
	large.Failure = strings.Repeat("x", cluster.MaxValueBytes)
	if _, err := st.Volumes.Create(ctx, large); !errors.Is(err, errdefs.ErrResourceExhausted) {
		t.Errorf("large record: %v", err)
	}
	if _, err := st.Volumes.Update(ctx, records.Versioned[*recordsv1.Volume]{Record: volume("a")}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("update of what was not read: %v", err)
	}
}

// TestLargestVolume: the record of limits.go's sum fits.
func TestLargestVolume(t *testing.T) {
	st, _ := open()
	v := volume(strings.Repeat("v", 128))
	for range 1024 {
		v.Snapshots = append(v.Snapshots, &recordsv1.Snapshot{
			Id: string(records.NewID()), Name: strings.Repeat("s", 128), State: recordsv1.SnapshotState_SNAPSHOT_READY, SizeBytes: 1 << 62,
		})
	}
	for range 64 {
		g := &recordsv1.Group{}
		for range 8 {
			g.Members = append(g.Members, &recordsv1.Member{
				ReplicaId: string(records.NewID()), DriveId: string(records.NewID()), Role: recordsv1.Role_IN_SYNC, LossId: string(records.NewID()),
			})
		}
		v.Groups = append(v.Groups, g)
	}
	must(st.Volumes.Create(ctx, v))(t)
	t.Logf("%d bytes", proto.Size(v))
}

// TestUnknownFields: a field of a later version survives a rewrite by this one.
func TestUnknownFields(t *testing.T) {
	st, kv := open()
	in := volume("pg")
	v := must(st.Volumes.Create(ctx, in))(t)
	raw := must(proto.Marshal(v.Record))(t)
	raw = protowire.AppendTag(raw, 1000, protowire.BytesType)
	raw = protowire.AppendString(raw, "from the future")
	must(kv.Txn(ctx, cluster.Txn{Then: []cluster.Op{cluster.Put("volume/"+in.Id, raw)}}))(t)
	v = must(st.Volumes.Get(ctx, records.ID(in.Id)))(t)
	v.Record.Clean = true
	must(st.Volumes.Update(ctx, v))(t)
	it := must(kv.Get(ctx, "volume/"+in.Id))(t)
	if !strings.Contains(string(it.Value), "from the future") {
		t.Error("an unknown field was lost")
	}
	if got := must(st.Volumes.Get(ctx, records.ID(in.Id)))(t); !got.Record.Clean {
		t.Error("the change was lost")
	}
}

// TestNewerAndDamaged: records of a newer format and garbage are refused with
// their own errors, and do not hide the others.
func TestNewerAndDamaged(t *testing.T) {
	st, kv := open()
	good := must(st.Drives.Create(ctx, &recordsv1.Drive{Id: string(records.NewID())}))(t)
	newer, garbage, misplaced := records.NewID(), records.NewID(), records.NewID()
	put := func(id records.ID, b []byte) {
		must(kv.Txn(ctx, cluster.Txn{Then: []cluster.Op{cluster.Put("drive/"+string(id), b)}}))(t)
	}
	put(newer, must(proto.Marshal(&recordsv1.Drive{Id: string(newer), OldestReader: records.FormatVersion + 1}))(t))
	put(garbage, []byte{0xff, 0xff, 0xff})
	put(misplaced, must(proto.Marshal(good.Record))(t))
	if _, err := st.Drives.Get(ctx, newer); !errors.Is(err, records.ErrNewerFormat) || !strings.Contains(err.Error(), string(newer)) {
		t.Errorf("newer: %v", err)
	}
	for _, id := range []records.ID{garbage, misplaced} {
		if _, err := st.Drives.Get(ctx, id); !errors.Is(err, records.ErrDamaged) || !errors.Is(err, errdefs.ErrDataLoss) {
			t.Errorf("damaged: %v", err)
		}
	}
	all, rev, err := st.Drives.List(ctx)
	if len(all) != 1 || rev == 0 || !errors.Is(err, records.ErrNewerFormat) || !errors.Is(err, records.ErrDamaged) {
		t.Errorf("list: %v at %d, %v", all, rev, err)
	}
	// A create over a record that cannot be read is refused too.
	if _, err := st.Drives.Create(ctx, &recordsv1.Drive{Id: string(newer)}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("create over a newer record: %v", err)
	}
}

// TestCommit: several records change together or not at all, and the error
// names the one that was in the way.
func TestCommit(t *testing.T) {
	st, _ := open()
	a, b := must(st.Volumes.Create(ctx, volume("a")))(t), must(st.Volumes.Create(ctx, volume("b")))(t)
	tomb := func(v records.Versioned[*recordsv1.Volume]) *recordsv1.Tombstone {
		return &recordsv1.Tombstone{Id: v.Record.Groups[0].Members[0].ReplicaId, VolumeId: v.Record.Id}
	}
	if _, err := st.Commit(ctx, st.Volumes.Deleting(a), st.Tombstones.Creating(tomb(a))); err != nil {
		t.Fatal(err)
	}
	if _, err := st.Volumes.GetByName(ctx, "a"); !errdefs.IsNotFound(err) {
		t.Errorf("volume: %v", err)
	}
	if ts, _, err := st.Tombstones.List(ctx); err != nil || len(ts) != 1 || ts[0].Record.VolumeId != a.Record.Id {
		t.Errorf("tombstones: %v, %v", ts, err)
	}
	_, err := st.Commit(ctx, st.Volumes.Deleting(b), st.Tombstones.Creating(tomb(a)))
	if !errdefs.IsAlreadyExists(err) || !strings.Contains(err.Error(), "tombstone "+tomb(a).Id) {
		t.Errorf("second tombstone: %v", err)
	}
	if _, err := st.Volumes.GetByName(ctx, "b"); err != nil {
		t.Errorf("half a transaction: %v", err)
	}
	stale := b
	b = must(st.Volumes.Update(ctx, b))(t)
	if _, err := st.Commit(ctx, st.Volumes.Unchanged(stale), st.Tombstones.Creating(tomb(b))); !errors.Is(err, errdefs.ErrAborted) {
		t.Errorf("on a stale record: %v", err)
	}
	if _, err := st.Commit(ctx, st.Volumes.Unchanged(b), st.Tombstones.Creating(tomb(b))); err != nil {
		t.Error(err)
	}
	if _, err := st.Commit(ctx); !errdefs.IsInvalidArgument(err) {
		t.Errorf("commit of nothing: %v", err)
	}
}

// TestNamesRace: of many creators of one name exactly one wins.
func TestNamesRace(t *testing.T) {
	st, _ := open()
	var wg sync.WaitGroup
	errs := make(chan error, 16)
	for range cap(errs) {
		wg.Go(func() {
			_, err := st.Volumes.Create(ctx, volume("same"))
			errs <- err
		})
	}
	wg.Wait()
	won := 0
	for range cap(errs) {
		if err := <-errs; err == nil {
			won++
		} else if !errdefs.IsAlreadyExists(err) {
			t.Error(err)
		}
	}
	if all, _, err := st.Volumes.List(ctx); won != 1 || len(all) != 1 || err != nil {
		t.Errorf("%d won, %d records, %v", won, len(all), err)
	}
}

// TestWatch: typed events arrive in order; what cannot be read is reported.
func TestWatch(t *testing.T) {
	st, kv := open()
	_, rev, err := st.Volumes.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var bad []error
	w := must(st.Volumes.Watch(ctx, rev+1, func(err error) { bad = append(bad, err) }))(t)
	defer w.Close()
	v := must(st.Volumes.Create(ctx, volume("a")))(t)
	must(kv.Txn(ctx, cluster.Txn{Then: []cluster.Op{cluster.Put("volume/x", []byte("garbage"))}}))(t)
	v.Record.Clean = true
	v = must(st.Volumes.Update(ctx, v))(t)
	if err := st.Volumes.Delete(ctx, v); err != nil {
		t.Fatal(err)
	}
	var got []records.Event[*recordsv1.Volume]
	for len(got) < 3 {
		evs, last, err := w.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, evs...)
		rev = last
	}
	for i, e := range got {
		isDelete := i == 2
		if string(e.ID) != v.Record.Id || (e.Kind == cluster.EventDelete) != isDelete || (e.Record == nil) != isDelete {
			t.Errorf("event %d: %+v", i, e)
		}
	}
	if got[0].Record.Clean || !got[1].Record.Clean || got[1].Revision != v.Revision || got[2].Revision != rev {
		t.Errorf("events: %+v", got)
	}
	if len(bad) != 1 || !errors.Is(bad[0], records.ErrDamaged) {
		t.Errorf("bad: %v", bad)
	}
}

// TestBootstrap: the cluster's record is made once, whoever races.
func TestBootstrap(t *testing.T) {
	st, kv := open()
	if _, err := st.Cluster(ctx); !errdefs.IsNotFound(err) {
		t.Errorf("before: %v", err)
	}
	var wg sync.WaitGroup
	ids := make(chan string, 8)
	for range cap(ids) {
		wg.Go(func() {
			c, err := st.Bootstrap(ctx)
			if err != nil {
				t.Error(err)
			}
			ids <- c.GetId() + c.GetIncarnation()
		})
	}
	wg.Wait()
	first := <-ids
	for range cap(ids) - 1 {
		if id := <-ids; id != first || len(id) != 64 {
			t.Errorf("two clusters: %q, %q", id, first)
		}
	}
	for _, b := range [][]byte{{0xff}, nil, must(proto.Marshal(&recordsv1.Cluster{OldestReader: 1, Id: "x"}))(t)} {
		must(kv.Txn(ctx, cluster.Txn{Then: []cluster.Op{cluster.Put("cluster", b)}}))(t)
		if _, err := st.Bootstrap(ctx); !errors.Is(err, records.ErrDamaged) {
			t.Errorf("damaged record %q: %v", b, err)
		}
	}
	b := must(proto.Marshal(&recordsv1.Cluster{OldestReader: 9, Id: string(records.NewID()), Incarnation: string(records.NewID())}))(t)
	must(kv.Txn(ctx, cluster.Txn{Then: []cluster.Op{cluster.Put("cluster", b)}}))(t)
	if _, err := st.Bootstrap(ctx); !errors.Is(err, records.ErrNewerFormat) {
		t.Errorf("newer record: %v", err)
	}
}

// TestAnnounce: a life is there as long as its lease, and an update of it keeps
// the lease.
func TestAnnounce(t *testing.T) {
	st, kv := open()
	id := records.NewID()
	lease := must(kv.Grant(ctx, time.Hour))(t)
	if err := st.Announce(ctx, &recordsv1.Life{Id: string(id), Start: "1"}, lease.ID()); err != nil {
		t.Fatal(err)
	}
	life := must(st.Lives.Get(ctx, id))(t)
	if life.Lease != lease.ID() || life.Record.Start != "1" {
		t.Errorf("life: %+v", life)
	}
	must(st.Lives.Update(ctx, life))(t)
	if err := lease.Revoke(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := st.Lives.Get(ctx, id); !errdefs.IsNotFound(err) {
		t.Errorf("after the lease: %v", err)
	}
	if err := st.Announce(ctx, &recordsv1.Life{Id: string(id)}, lease.ID()); !errdefs.IsNotFound(err) {
		t.Errorf("with a lease that is over: %v", err)
	}
}

// TestSettle: for each fate of a change whose answer was lost, Settle tells the
// truth, and the change cannot be made later.
func TestSettle(t *testing.T) {
	for _, c := range []struct {
		kind      memkv.FaultKind
		meanwhile bool // another changes the record before Settle
		want      records.Outcome
	}{
		{memkv.AnswerLost, false, records.Made},
		{memkv.RequestLost, false, records.NotMade},
		{memkv.AnswerLost, true, records.Overtaken},
		{memkv.RequestLost, true, records.Overtaken},
	} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			st, kv := open()
			v := must(st.Volumes.Create(ctx, volume("a")))(t)
			before, id := v.Revision, records.ID(v.Record.Id)
			v.Record.Clean = true
			kv.Inject(memkv.Fault{Kind: c.kind, Call: memkv.CallTxn, Count: 1})
			if _, err := st.Volumes.Update(ctx, v); !errdefs.Indeterminate(err) {
				t.Fatalf("update: %v", err)
			}
			sent := v.Record.Attempt
			if c.meanwhile {
				must(st.Volumes.Update(ctx, must(st.Volumes.Get(ctx, id))(t)))(t)
			}
			got, now, err := st.Settle(ctx, id, before, sent)
			if err != nil || got != c.want {
				t.Fatalf("settle: %v, %v, want %v", got, err, c.want)
			}
			if made := c.kind == memkv.AnswerLost; now.Record.Clean != made {
				t.Errorf("record says %v", now.Record)
			}
			// The change arrives late: it must find nothing to change.
			if _, err := st.Volumes.Update(ctx, v); !errors.Is(err, errdefs.ErrAborted) {
				t.Errorf("late arrival: %v", err)
			}
			if _, err := st.Volumes.Update(ctx, now); err != nil {
				t.Errorf("going on with what Settle returned: %v", err)
			}
		})
	}
}

// FuzzVolumeRecord: no bytes under a volume's key make a reader panic, and what
// is read is written back and read again as the same.
func FuzzVolumeRecord(f *testing.F) {
	id := "00112233445566778899aabbccddeeff"
	v := volume("a")
	v.Id, v.OldestReader = id, 1
	b, err := proto.Marshal(v)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte{})
	f.Add(b[:len(b)/2])
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<16 {
			return
		}
		st, kv := open()
		must(kv.Txn(ctx, cluster.Txn{Then: []cluster.Op{cluster.Put("volume/"+id, b)}}))(t)
		v, err := st.Volumes.Get(ctx, records.ID(id))
		if err != nil {
			if !errors.Is(err, records.ErrDamaged) && !errors.Is(err, records.ErrNewerFormat) {
				t.Fatalf("class of %v", err)
			}
			return
		}
		want := proto.Clone(v.Record).(*recordsv1.Volume)
		if _, err := st.Volumes.Update(ctx, v); err != nil {
			t.Fatal(err)
		}
		got := must(st.Volumes.Get(ctx, records.ID(id)))(t).Record
		got.Attempt = want.Attempt
		if !proto.Equal(got, want) {
			t.Fatalf("rewritten as %v, was %v", got, want)
		}
	})
}
