package membership

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moraine-storage/moraine/agent/cluster/etcdkv"
	"github.com/moraine-storage/moraine/agent/cluster/records"
	recordsv1 "github.com/moraine-storage/moraine/agent/cluster/records/v1"
	"github.com/moraine-storage/moraine/agent/identity"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// three starts a cluster of three servers.
func three(t *testing.T) (a, b, c *host) {
	t.Helper()
	a, b, c = newHost(t, "a", true), newHost(t, "b", true), newHost(t, "c", true)
	a.up()
	b.invite(a).up()
	b.votes(1) // two servers have one vote
	c.invite(b).up()
	a.votes(3)
	return a, b, c
}

// Goal: three nodes find each other, restart one by one and all at once, with
// their content; a client node beside them; one vote for two, three for three.
func TestThreeNodes(t *testing.T) {
	t.Parallel()
	a, b, c := three(t)
	client := newHost(t, "client", false)
	client.invite(c).up()
	for _, h := range []*host{a, b, c, client} {
		h.sees(a, b, c, client)
	}
	a.put("k", "1")
	for i, h := range []*host{a, b, c, client} {
		h.down()
		if h != client {
			client.put("k", fmt.Sprint(i))
			client.has("k", fmt.Sprint(i))
		}
		h.up()
		h.has("k", fmt.Sprint(min(i, 2)))
	}
	all := []*host{a, b, c, client}
	for _, h := range all {
		h.down()
	}
	var wg sync.WaitGroup
	for _, h := range all {
		wg.Go(func() {
			if err := h.open(); err != nil {
				t.Errorf("%s: %v", h.o.Name, err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	for _, h := range all {
		h.has("k", "2")
		h.sees(all...)
	}
	if client.n.Identity().Authority() != nil || client.n.Identity().Server() {
		t.Error("a client has the authority's key")
	}
}

// Goal: five servers have five votes; when two are removed, three.
func TestFiveNodes(t *testing.T) {
	t.Parallel()
	a, b, c := three(t)
	d, e := newHost(t, "d", true), newHost(t, "e", true)
	d.invite(b).up()
	e.invite(c).up()
	e.votes(5)
	admin := Admin{Store: a.n.records}
	for _, h := range []*host{d, e} {
		h.down()
		until(t, "removed", func(ctx context.Context) error { _, err := admin.Remove(ctx, h.o.Name, false); return err })
	}
	a.votes(3)
	b.put("k", "v")
	c.has("k", "v")
}

// Goal: a node whose copy of the store is lost gets a new one; a node whose
// whole disk is lost is a new node, and must be removed before its name is free.
func TestDiskLost(t *testing.T) {
	t.Parallel()
	a, b, c := three(t)
	a.put("k", "v")
	c.down()
	if err := os.RemoveAll(filepath.Join(c.o.DataDir, "etcd")); err != nil {
		t.Fatal(err)
	}
	before := members(t, a)
	c.up()
	until(t, "new copy", func(context.Context) error {
		now := members(t, a)
		if now[string(c.n.ID())] == before[string(c.n.ID())] || len(now) != 3 {
			return errors.New("not yet")
		}
		return nil
	})
	a.votes(3)
	c.has("k", "v")

	c.down()
	if err := os.RemoveAll(c.o.DataDir); err != nil {
		t.Fatal(err)
	}
	if err := c.invite(a).open(); !errdefs.IsAlreadyExists(err) {
		t.Fatalf("joined under a name that is taken: %v", err)
	}
	admin := Admin{Store: b.n.records}
	until(t, "removed", func(ctx context.Context) error { _, err := admin.Remove(ctx, "c", false); return err })
	c.up() // the token was not used up
	a.sees(a, b, c)
	a.votes(3)
	c.has("k", "v")
}

func members(t *testing.T, h *host) map[string]uint64 {
	t.Helper()
	out := map[string]uint64{}
	until(t, "members", func(ctx context.Context) error {
		all, err := h.n.kv.Members(ctx)
		for _, m := range all {
			out[m.Name] = m.ID
		}
		return err
	})
	return out
}

// Goal: tokens that are no good, and nodes that may not come, are refused with
// the reason; nothing is left of the attempt.
func TestJoinRefused(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, other := newHost(t, "a", true), newHost(t, "other", true)
	a.up()
	other.up()
	client := newHost(t, "client", false)
	client.invite(a).up()
	good := func() string {
		tok, _, err := a.n.Tokens().CreateJoin(ctx, time.Hour, "")
		if err != nil {
			t.Fatal(err)
		}
		return tok.Reveal()
	}
	used := client.o.Token
	expired, _, err := a.n.Tokens().CreateJoin(ctx, time.Second, "")
	if err != nil {
		t.Fatal(err)
	}
	revoked := good()
	if err := a.n.Tokens().Revoke(ctx, strings.Split(revoked, ".")[1]); err != nil {
		t.Fatal(err)
	}
	foreign, _, err := other.n.Tokens().CreateJoin(ctx, time.Hour, "")
	if err != nil {
		t.Fatal(err)
	}
	person, _, err := a.n.Tokens().CreatePerson(ctx, recordsv1.TokenRole_ADMIN, 0, "")
	if err != nil {
		t.Fatal(err)
	}
	guessed := []byte(good())
	if c := &guessed[len("moraine-join.")+33+5]; *c != 'A' { // in the secret
		*c = 'A'
	} else {
		*c = 'B'
	}
	time.Sleep(1100 * time.Millisecond) // the shortest token there is expires
	for _, tt := range []struct {
		name, token, as, at string
		class               error
		text                string
	}{
		{"no token", "", "n", a.o.APIAddress, errdefs.ErrInvalidArgument, "token is needed"},
		{"no token at all", "hello", "n", a.o.APIAddress, errdefs.ErrInvalidArgument, "four parts"},
		{"used", used, "n", a.o.APIAddress, errdefs.ErrUnauthenticated, "has used it"},
		{"expired", expired.Reveal(), "n", a.o.APIAddress, errdefs.ErrUnauthenticated, "expired"},
		{"revoked", revoked, "n", a.o.APIAddress, errdefs.ErrUnauthenticated, "revoked"},
		{"guessed", string(guessed), "n", a.o.APIAddress, errdefs.ErrUnauthenticated, "secret is wrong"},
		{"of a person", person.Reveal(), "n", a.o.APIAddress, errdefs.ErrUnauthenticated, "not for this"},
		{"of another cluster", foreign.Reveal(), "n", a.o.APIAddress, errdefs.ErrPermissionDenied, "not of the cluster that the token is for"},
		{"at a client", good(), "n", client.o.APIAddress, errdefs.ErrFailedPrecondition, "no server"},
		{"name taken", good(), "a", a.o.APIAddress, errdefs.ErrAlreadyExists, "another name"},
		{"no name for a node", good(), "a b", a.o.APIAddress, errdefs.ErrInvalidArgument, "letters, digits"},
		{"nobody there", good(), "n", "127.0.0.1:1", errdefs.ErrUnavailable, "127.0.0.1:1"},
	} {
		h := newHost(t, tt.as, true)
		h.o.Join, h.o.Token = []string{h.o.APIAddress, tt.at}, tt.token
		err := h.open()
		if !errors.Is(err, tt.class) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.text)
		}
		if parts := strings.Split(tt.token, "."); len(parts) > 2 && strings.Contains(fmt.Sprint(err), parts[2]) {
			t.Errorf("%s: the error has the secret: %v", tt.name, err)
		}
		if _, err := identity.Open(h.o.identityDir()); !errdefs.IsNotFound(err) {
			t.Errorf("%s: an identity was left: %v", tt.name, err)
		}
	}
	a.sees(a, client)
}

// Goal: a joiner whose answer was lost asks again with the same token and is
// taken in as what it was.
func TestJoinRepeated(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	a, b := newHost(t, "a", true), newHost(t, "b", true)
	a.up()
	b.invite(a)
	node, err := NodeID(b.o.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := join(ctx, &b.o, node); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"node.crt", "ca.crt", "ca.key"} { // as if nothing had come back
		if err := os.Remove(filepath.Join(b.o.identityDir(), f)); err != nil {
			t.Fatal(err)
		}
	}
	b.up()
	a.sees(a, b)
}

// Goal: removal is refused while the node is in use; forced, it says what is
// given up; the removed node notices, running or coming back, and its name is
// free again.
func TestRemoved(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	a, b, c := three(t)
	admin := Admin{Store: a.n.records}
	c.sees(a, b, c)
	h, err := admin.Remove(ctx, "c", false)
	if !errdefs.IsFailedPrecondition(err) || !h.Alive || !strings.Contains(err.Error(), "its agent runs") {
		t.Errorf("removed a running node: %v", err)
	}
	drive, vol := records.NewID(), records.NewID()
	if _, err := a.n.records.Drives.Create(ctx, &recordsv1.Drive{Id: string(drive), NodeId: string(c.n.ID())}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.n.records.Volumes.Create(ctx, &recordsv1.Volume{
		Id: string(vol), Name: "precious", Groups: []*recordsv1.Group{{Members: []*recordsv1.Member{{ReplicaId: string(records.NewID()), DriveId: string(drive)}}}},
		Attachments: []*recordsv1.Attachment{{NodeId: string(c.n.ID())}},
	}); err != nil {
		t.Fatal(err)
	}
	if h, err = admin.Remove(ctx, "c", false); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "only copy of volumes precious") || !strings.Contains(err.Error(), "attached there are volumes precious") {
		t.Errorf("%v, %v", h, err)
	}
	until(t, "removed", func(ctx context.Context) error { h, err = admin.Remove(ctx, "c", true); return err })
	if len(h.Only) != 1 {
		t.Errorf("a forced removal does not tell what it gave up: %v", h)
	}
	select {
	case err := <-c.errs:
		if !errors.Is(err, ErrRemoved) {
			t.Errorf("told %v", err)
		}
	case <-time.After(patience):
		t.Fatal("a running node does not notice that it was removed")
	}
	c.down()
	a.votes(1) // of two
	if err := c.open(); !errors.Is(err, ErrRemoved) {
		t.Errorf("a removed node came back: %v", err)
	}
	if err := c.invite(a).open(); !errors.Is(err, ErrRemoved) {
		t.Errorf("a removed node came back with a token: %v", err)
	}
	again := newHost(t, "c", true)
	again.invite(a).up()
	a.sees(a, b, again)

	for range 2 { // twice does no harm
		until(t, "drained", func(ctx context.Context) error { return admin.Drain(ctx, "b") })
	}
	b.down()
	b.up() // a restart does not undo it
	if v, err := admin.Find(ctx, "b"); err != nil || v.Record.State != recordsv1.NodeState_NODE_DRAINING {
		t.Errorf("%v, %v", v.Record, err)
	}
	if err := admin.Undrain(ctx, string(b.n.ID())); err != nil {
		t.Error(err)
	}
	if err := admin.Drain(ctx, "nobody"); !errdefs.IsNotFound(err) {
		t.Errorf("drained nobody: %v", err)
	}
}

// Goal: a node alone listens nowhere; given an address later it takes others
// in; its identity lost, it does not make up a new one.
func TestAlone(t *testing.T) {
	t.Parallel()
	a := newHost(t, "a", true)
	bind, api := a.o.Bind, a.o.APIAddress
	a.o.Bind, a.o.APIAddress = "", ""
	a.up()
	a.put("k", "v")
	if c, err := net.Dial("tcp", bind+":7424"); err == nil {
		c.Close()
		t.Error("it listens")
	}
	a.down()
	a.up()
	a.has("k", "v")
	a.down()
	a.o.Bind, a.o.APIAddress = bind, api
	a.up()
	b := newHost(t, "b", false)
	b.invite(a).up()
	b.has("k", "v")

	if _, err := (Admin{Store: b.n.records}).Remove(context.Background(), "nobody", true); !errdefs.IsNotFound(err) {
		t.Errorf("removed nobody: %v", err)
	}
	b.down()
	until(t, "removed", func(ctx context.Context) error {
		_, err := (Admin{Store: a.n.records}).Remove(ctx, "b", false)
		return err
	})
	if _, err := (Admin{Store: a.n.records}).Remove(context.Background(), "a", true); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("removed the last node: %v", err)
	}
	a.down()
	if err := os.RemoveAll(a.o.identityDir()); err != nil {
		t.Fatal(err)
	}
	if err := a.open(); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("went on without its identity: %v", err)
	}
	other := newHost(t, "other", true)
	other.up()
	a.invite(other)
	if err := a.open(); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "cluster of its own") {
		t.Errorf("a node with a cluster of its own joined another: %v", err)
	}
}

// Goal: the only copy of the store gone, with the identity still there, is said
// and not papered over with an empty store.
func TestStoreLost(t *testing.T) {
	t.Parallel()
	a := newHost(t, "a", true)
	a.up()
	a.down()
	if err := os.RemoveAll(filepath.Join(a.o.DataDir, "etcd")); err != nil {
		t.Fatal(err)
	}
	if err := a.open(); !errors.Is(err, errdefs.ErrDataLoss) {
		t.Errorf("%v", err)
	}
	if err := os.WriteFile(filepath.Join(a.o.DataDir, "node-id"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := a.open(); !errdefs.IsInvalidArgument(err) {
		t.Errorf("damaged node-id: %v", err)
	}
	for name, o := range map[string]Options{
		"no name":            {DataDir: a.o.DataDir},
		"join without bind":  {DataDir: a.o.DataDir, Name: "a", Join: []string{"x:1"}},
		"bind to everything": {DataDir: a.o.DataDir, Name: "a", Bind: "0.0.0.0"},
	} {
		if _, err := Open(context.Background(), o); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Goal: a node of the release before clusters, whose store has another member
// name, no authority and a bare node record, goes on with its content, alone or
// with an address, and takes others in.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	a := newHost(t, "a", true)
	node, err := NodeID(a.o.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	s, err := etcdkv.Start(ctx, etcdkv.ServerOptions{Dir: filepath.Join(a.o.DataDir, "etcd"), Name: "a"})
	if err != nil {
		t.Fatal(err)
	}
	st := records.New(s.Client())
	old, err := st.Bootstrap(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := st.Nodes.Create(ctx, &recordsv1.Node{Id: string(node), Name: "a"}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	a.up()
	b, c := newHost(t, "b", true), newHost(t, "c", true)
	b.invite(a).up()
	c.invite(a).up()
	a.votes(3)
	for _, h := range []*host{a, b, c} {
		h.sees(a, b, c)
		if h.n.Identity().Cluster() != records.ID(old.Id) {
			t.Errorf("%s is of cluster %s, was %s", h.o.Name, h.n.Identity().Cluster(), old.Id)
		}
	}
}
