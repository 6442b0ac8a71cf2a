package etcdkv

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/moraine-storage/moraine/agent/cluster"
	"github.com/moraine-storage/moraine/agent/cluster/kvtest"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// patience is how long a test waits for what must happen before it fails.
const patience = 2 * time.Minute

// loopback draws an address of this machine: tests that run at once, here or
// in another process, do not meet.
func loopback() string {
	return fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(254), rand.IntN(256), 1+rand.IntN(254))
}

// testMember is one member of a store under test.
type testMember struct {
	t    *testing.T
	id   *testIdentity
	opts ServerOptions
	s    *Server // nil while it is stopped
}

// testStore is a store of several members.
type testStore struct {
	t       *testing.T
	root    *authority
	members []*testMember
	client  *Client // of a node that is no server
}

func listenAt(id *testIdentity, address string) *Listen {
	return &Listen{
		PeerURL: "https://" + address + ":7423", ClientURL: "https://" + address + ":7424",
		TLS: id.TLSFiles, ServerName: testServerName,
	}
}

func newMember(t *testing.T, id *testIdentity) *testMember {
	return &testMember{t: t, id: id, opts: ServerOptions{
		Dir: filepath.Join(t.TempDir(), "etcd"), Name: id.name, Listen: listenAt(id, loopback()), Patience: patience,
	}}
}

func (m *testMember) start() {
	m.t.Helper()
	s, err := Start(context.Background(), m.opts)
	if err != nil {
		m.t.Fatal(err)
	}
	m.s = s
}

func (m *testMember) stop() {
	m.t.Helper()
	if m.s == nil {
		return
	}
	if err := m.s.Close(); err != nil {
		m.t.Error(err)
	}
	m.s = nil
}

// newStore starts a store of n members, grown from one.
func newStore(t *testing.T, n int) *testStore {
	t.Helper()
	st := &testStore{t: t, root: newAuthority(t)}
	first := newMember(t, st.root.issue(t, true))
	first.start()
	st.members = append(st.members, first)
	t.Cleanup(st.stop)
	st.client = st.dial()
	// First all learners, then all votes: etcd wants every voter connected for
	// five seconds before it takes another member in.
	var ids []uint64
	for len(st.members) < n {
		m := newMember(t, st.root.issue(t, true))
		ids = append(ids, st.add(m))
		m.start()
		st.members = append(st.members, m)
	}
	for _, id := range ids {
		st.promote(id)
	}
	st.client.SetEndpoints(st.endpoints())
	return st
}

func (st *testStore) stop() {
	if st.client != nil {
		st.client.Close()
	}
	var wg sync.WaitGroup
	for _, m := range st.members {
		wg.Go(m.stop)
	}
	wg.Wait()
}

// dial makes a client of a node that is no server and knows all members.
func (st *testStore) dial() *Client {
	st.t.Helper()
	id := st.root.issue(st.t, false)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	k, err := Dial(ctx, ClientOptions{Endpoints: st.endpoints(), TLS: id.client()})
	if err != nil {
		st.t.Fatal(err)
	}
	return k
}

func (st *testStore) endpoints() []string {
	var out []string
	for _, m := range st.members {
		out = append(out, m.opts.Listen.ClientURL)
	}
	return out
}

// join adds a member as a learner and promotes it.
func (st *testStore) join(id *testIdentity) *testMember {
	st.t.Helper()
	m := newMember(st.t, id)
	mid := st.add(m)
	m.start()
	st.members = append(st.members, m)
	st.promote(mid)
	st.client.SetEndpoints(st.endpoints())
	return m
}

// add makes room for a member.
func (st *testStore) add(m *testMember) uint64 {
	st.t.Helper()
	var mid uint64
	var all []Member
	st.eventually(func(ctx context.Context) (err error) {
		mid, all, err = st.client.AddLearner(ctx, m.opts.Listen.PeerURL)
		return err
	})
	m.opts.Join = nil
	for _, o := range all {
		name := o.Name
		if o.ID == mid {
			name = m.opts.Name
		}
		m.opts.Join = append(m.opts.Join, PeerMember{name, o.PeerURLs[0]})
	}
	return mid
}

func (st *testStore) promote(mid uint64) {
	st.t.Helper()
	st.eventually(func(ctx context.Context) error { return st.client.Promote(ctx, mid) })
}

// eventually tries until it works.
func (st *testStore) eventually(fn func(context.Context) error) {
	st.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		callCtx, callCancel := context.WithTimeout(ctx, 5*time.Second)
		err := fn(callCtx)
		callCancel()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			st.t.Fatal(err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func put(ctx context.Context, kv cluster.KV, key, value string) error {
	_, err := kv.Txn(ctx, cluster.Txn{Then: []cluster.Op{cluster.Put(key, []byte(value))}})
	return err
}

// check reads a value through the clients of all members and of the outsider.
func (st *testStore) check(key, value string) {
	st.t.Helper()
	kvs := []*Client{st.client}
	for _, m := range st.members {
		if m.s != nil {
			kvs = append(kvs, m.s.Client())
		}
	}
	for _, kv := range kvs {
		st.eventually(func(ctx context.Context) error {
			it, err := kv.Get(ctx, key)
			if err == nil && string(it.Value) != value {
				st.t.Fatalf("%s is %q, want %q", key, it.Value, value)
			}
			return err
		})
	}
}

// Goal: the suite holds for a client over TLS of a store of three members that
// was grown from one, beside a client inside one of the members.
func TestThreeMembers(t *testing.T) {
	t.Parallel()
	st := newStore(t, 3)
	kvtest.Run(t, kvtest.Fixture{KV: st.client, Second: st.members[1].s.Client(), Compact: st.client.Compact})
}

// Goal: the suite holds inside a member, one that leads or not, and for a
// second client over TLS.
func TestInsideThreeMembers(t *testing.T) {
	t.Parallel()
	st := newStore(t, 3)
	in := st.members[2].s.Client()
	kvtest.Run(t, kvtest.Fixture{KV: in, Second: st.dial(), Compact: in.Compact})
}

// Goal: a store of five loses its leader and then one more: it goes on, and
// those that come back have what was written meanwhile.
func TestLeaderLost(t *testing.T) {
	t.Parallel()
	st := newStore(t, 5)
	for round := range 2 {
		var lost *testMember
		st.eventually(func(context.Context) error {
			for _, m := range st.members {
				if m.s != nil && m.s.Leading() {
					lost = m
					return nil
				}
			}
			return errors.New("nobody leads")
		})
		lost.stop()
		st.eventually(func(ctx context.Context) error { return put(ctx, st.client, "k", fmt.Sprint("round ", round)) })
		st.check("k", fmt.Sprint("round ", round))
	}
	for _, m := range st.members {
		if m.s == nil {
			m.start()
		}
	}
	st.check("k", "round 1")
}

// Goal: without a majority every call ends within its deadline as unavailable,
// a change that was sent as indeterminate; when the majority is back, so is the
// store, with the same clients.
func TestMajorityLost(t *testing.T) {
	t.Parallel()
	st := newStore(t, 3)
	ctx := context.Background()
	if err := put(ctx, st.client, "k", "before"); err != nil {
		t.Fatal(err)
	}
	st.members[1].stop()
	st.members[2].stop()
	inside := st.members[0].s.Client()
	var wg sync.WaitGroup
	for name, kv := range map[string]*Client{"client": st.client, "inside": inside} {
		for call, fn := range map[string]func(context.Context) error{
			"get":   func(ctx context.Context) error { _, err := kv.Get(ctx, "k"); return err },
			"txn":   func(ctx context.Context) error { return put(ctx, kv, "lost", name) },
			"grant": func(ctx context.Context) error { _, err := kv.Grant(ctx, time.Minute); return err },
			"list":  func(ctx context.Context) error { _, err := kv.Members(ctx); return err },
		} {
			wg.Go(func() { checkCut(t, name+": "+call, call == "txn", fn) })
		}
	}
	wg.Wait()
	st.members[1].start()
	st.check("k", "before")
	st.eventually(func(ctx context.Context) error { return put(ctx, st.client, "k", "after") })
	st.members[2].start()
	st.check("k", "after")
}

// checkCut makes a call to a store without a majority.
func checkCut(t *testing.T, call string, changes bool, fn func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	begin := time.Now()
	err := fn(ctx)
	switch {
	case err == nil:
		t.Errorf("%s works without a majority", call)
	case !errors.Is(err, context.DeadlineExceeded) && !errdefs.IsUnavailable(err):
		t.Errorf("%s: %v", call, err)
	case changes && !errdefs.Indeterminate(err):
		t.Errorf("%s: a change that may be in the log of a member: %v", call, err)
	case time.Since(begin) > time.Minute:
		t.Errorf("%s came back %v after its deadline", call, time.Since(begin))
	}
}

// Goal: all members stop and start again, in any order and at once.
func TestAllRestart(t *testing.T) {
	t.Parallel()
	st := newStore(t, 3)
	if err := put(context.Background(), st.client, "k", "v"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		for _, m := range st.members {
			m.stop()
		}
		var wg sync.WaitGroup
		for i := range st.members {
			m := st.members[len(st.members)-1-i]
			wg.Go(func() {
				s, err := Start(context.Background(), m.opts)
				if err != nil {
					t.Error(err)
					return
				}
				m.s = s
			})
		}
		wg.Wait()
		st.check("k", "v")
	}
	// A start alone waits for others only as long as it is told to.
	for _, m := range st.members {
		m.stop()
	}
	short := st.members[0].opts
	short.Patience = 2 * time.Second
	if s, err := Start(context.Background(), short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("started without a majority: %v, %v", s, err)
	}
	var wg sync.WaitGroup
	for _, m := range st.members {
		wg.Go(m.start)
	}
	wg.Wait()
	st.check("k", "v")
}

// Goal: a member whose disk is lost is replaced by a new one of the same node;
// the old one, should its disk come back, is refused and says so.
func TestDiskReplaced(t *testing.T) {
	t.Parallel()
	st := newStore(t, 3)
	lost := st.members[2]
	if err := put(context.Background(), st.client, "k", "v"); err != nil {
		t.Fatal(err)
	}
	old := lost.s.MemberID()
	lost.stop()
	oldOpts := lost.opts
	st.eventually(func(ctx context.Context) error { return st.client.RemoveMember(ctx, old) })
	if err := st.client.RemoveMember(context.Background(), old); err != nil {
		t.Errorf("removed twice: %v", err)
	}
	lost.opts.Dir = filepath.Join(t.TempDir(), "new")
	mid := st.add(lost)
	lost.start()
	st.promote(mid)
	st.promote(mid) // no error when it has a vote
	st.check("k", "v")
	if lost.s.Removed() || lost.s.MemberID() == old {
		t.Error("the new member is the old one")
	}
	lost.stop()

	oldOpts.Listen = listenAt(lost.id, loopback()) // the new member has the address
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s, err := Start(ctx, oldOpts)
	if err == nil { // it may serve for a moment, until another member tells it
		<-s.Failed()
		if !s.Removed() {
			t.Errorf("ended for another reason: %s", s.Reason())
		}
		s.Close()
	} else if !errors.Is(err, ErrRemoved) {
		t.Errorf("a removed member came back: %v", err)
	}
	lost.start()
	st.check("k", "v")
}

// Goal: members are told apart: a running one that is removed stops and says
// why; clients go on with the others.
func TestRemovedWhileRunning(t *testing.T) {
	t.Parallel()
	st := newStore(t, 3)
	gone := st.members[2]
	st.eventually(func(ctx context.Context) error { return st.client.RemoveMember(ctx, gone.s.MemberID()) })
	select {
	case <-gone.s.Failed():
	case <-time.After(patience):
		t.Fatal("a removed member goes on")
	}
	if !gone.s.Removed() {
		t.Errorf("failed for another reason: %s", gone.s.Reason())
	}
	if _, err := gone.s.Client().Get(context.Background(), "k"); !errdefs.IsUnavailable(err) {
		t.Errorf("a removed member answers: %v", err)
	}
	gone.stop()
	st.members = st.members[:2]
	st.client.SetEndpoints(st.endpoints())
	st.eventually(func(ctx context.Context) error { return put(ctx, st.client, "k", "v") })
	st.check("k", "v")
	all, err := st.client.Members(context.Background())
	if err != nil || len(all) != 2 {
		t.Errorf("%v, %v", all, err)
	}
	for _, m := range all {
		if m.Learner || m.Name == "" || len(m.PeerURLs) != 1 || len(m.ClientURLs) != 1 {
			t.Errorf("%+v", m)
		}
	}
}

// Goal: a store that listened nowhere learns to listen, and then grows.
func TestLearnsToListen(t *testing.T) {
	t.Parallel()
	st := &testStore{t: t, root: newAuthority(t)}
	m := newMember(t, st.root.issue(t, true))
	listen := m.opts.Listen
	m.opts.Listen = nil
	m.start()
	if err := put(context.Background(), m.s.Client(), "k", "v"); err != nil {
		t.Fatal(err)
	}
	m.stop()
	m.opts.Listen = listen
	m.start()
	st.members = append(st.members, m)
	t.Cleanup(st.stop)
	if err := m.s.Client().UpdateMember(context.Background(), m.s.MemberID(), listen.PeerURL); err != nil {
		t.Fatal(err)
	}
	st.client = st.dial()
	st.join(st.root.issue(t, true))
	st.check("k", "v")
}

// Goal: nobody without a certificate of the cluster is a client, nobody without
// one of a server is a member.
func TestStrangers(t *testing.T) {
	t.Parallel()
	st := newStore(t, 1)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	foreign := newAuthority(t).issue(t, true)
	trusting := foreign.trusting(st.root)
	nobody := trusting.Clone()
	nobody.Certificates = nil
	for name, c := range map[string]ClientOptions{
		"foreign certificate": {Endpoints: st.endpoints(), TLS: trusting},
		"no certificate":      {Endpoints: st.endpoints(), TLS: nobody},
		"foreign server":      {Endpoints: st.endpoints(), TLS: foreign.client()},
	} {
		if k, err := Dial(ctx, c); err == nil {
			k.Close()
			t.Errorf("%s: taken for a client", name)
		} else if !errdefs.IsUnavailable(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A node that is no server cannot start as a member, even if somebody makes room for it.
	m := newMember(t, st.root.issue(t, false))
	mid := st.add(m)
	opts := m.opts
	opts.Patience = 3 * time.Second
	if s, err := Start(ctx, opts); err == nil {
		s.Close()
		t.Error("a node that is no server became a member")
	}
	if err := st.client.Promote(ctx, mid); err == nil {
		t.Error("promoted a member that never started")
	}
	if err := st.client.RemoveMember(ctx, mid); err != nil {
		t.Fatal(err)
	}
	st.eventually(func(ctx context.Context) error { return put(ctx, st.client, "k", "v") })
	st.check("k", "v")
}

// Goal: what cannot be is refused before anything is touched.
func TestListenOptions(t *testing.T) {
	t.Parallel()
	id := newAuthority(t).issue(t, true)
	ok := listenAt(id, "127.0.0.1")
	change := func(f func(*Listen)) *Listen { l := *ok; f(&l); return &l }
	dir := filepath.Join(t.TempDir(), "etcd")
	for name, o := range map[string]ServerOptions{
		"join without listening": {Join: []PeerMember{{"a", ok.PeerURL}}},
		"plain HTTP":             {Listen: change(func(l *Listen) { l.PeerURL = "http://127.0.0.1:7423" })},
		"no port":                {Listen: change(func(l *Listen) { l.ClientURL = "https://127.0.0.1" })},
		"any address":            {Listen: change(func(l *Listen) { l.PeerURL = "https://0.0.0.0:7423" })},
		"host name":              {Listen: change(func(l *Listen) { l.PeerURL = "https://localhost:7423" })},
		"no name of servers":     {Listen: change(func(l *Listen) { l.ServerName = "" })},
		"no key":                 {Listen: change(func(l *Listen) { l.TLS.Key = "" })},
	} {
		o.Dir, o.Name = dir, "n"
		if s, err := Start(context.Background(), o); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v, %v", name, s, err)
		}
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("a refused start made its directory")
	}
	s := open(t, ServerOptions{})
	if _, _, err := s.Client().AddLearner(context.Background(), "http://127.0.0.1:1"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("learner: %v", err)
	}
	if err := s.Client().UpdateMember(context.Background(), 1, "x"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("update: %v", err)
	}
}
