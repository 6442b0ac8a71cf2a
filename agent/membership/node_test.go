package membership

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"

	"github.com/moraine-storage/moraine/agent/cluster"
	"github.com/moraine-storage/moraine/agent/cluster/records"
	recordsv1 "github.com/moraine-storage/moraine/agent/cluster/records/v1"
	"github.com/moraine-storage/moraine/agent/identity"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// TestMain looks for goroutines that were left. Stores that were told to stop
// while they started end in the background, within seconds.
func TestMain(m *testing.M) {
	code := m.Run()
	err := goleak.Find()
	for begin := time.Now(); err != nil && code == 0 && time.Since(begin) < time.Minute; err = goleak.Find() {
		time.Sleep(100 * time.Millisecond)
	}
	if err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// patience is how long a test waits for what must happen before it fails.
const patience = 2 * time.Minute

// host is one node under test: what of the agent matters here.
type host struct {
	t    *testing.T
	o    Options
	n    *Node // nil while it is down
	http *http.Server
	wg   sync.WaitGroup
	stop context.CancelFunc
	errs chan error // what Options.Failed was told
}

func newHost(t *testing.T, name string, server bool) *host {
	t.Helper()
	dir, err := os.MkdirTemp("", "mship")
	if err != nil {
		t.Fatal(err)
	}
	bind := fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(254), rand.IntN(256), 1+rand.IntN(254))
	h := &host{t: t, errs: make(chan error, 8)}
	h.o = Options{
		DataDir: dir, Name: name, Bind: bind, PeerPort: 7423, ClientPort: 7424, APIAddress: bind + ":7420", Server: server,
		Labels: map[string]string{"zone": name}, Version: "test", Logger: hclog.NewNullLogger(),
		Failed: func(err error) { h.errs <- err }, interval: 100 * time.Millisecond,
	}
	t.Cleanup(func() {
		h.down()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return h
}

// open starts the node as an agent does.
func (h *host) open() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	n, err := Open(ctx, h.o)
	if err != nil {
		return err
	}
	h.n = n
	if err := n.Register(ctx, h.o.Labels); err != nil {
		h.down()
		return err
	}
	runCtx, stop := context.WithCancel(context.Background())
	h.stop = stop
	h.wg.Go(func() { h.live(runCtx, n) })
	if h.o.Bind != "" {
		return h.serve()
	}
	return nil
}

func (h *host) serve() error {
	l, err := net.Listen("tcp", h.o.APIAddress)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle(h.n.Handler())
	h.http = &http.Server{Handler: mux, TLSConfig: h.n.Identity().OpenServerTLS(identity.Who{Lapsed: true}), ErrorLog: log.New(io.Discard, "", 0)}
	srv := h.http
	h.wg.Go(func() { _ = srv.ServeTLS(l, "", "") })
	return nil
}

// live keeps the node's life.
func (h *host) live(ctx context.Context, n *Node) {
	for ctx.Err() == nil {
		l, err := n.KV().Grant(ctx, time.Second)
		if err == nil {
			err = n.records.Announce(ctx, &recordsv1.Life{Id: string(n.ID())}, l.ID())
		}
		if err == nil {
			_ = cluster.KeepLease(ctx, l, nil)
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (h *host) up() {
	h.t.Helper()
	if err := h.open(); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) down() {
	if h.http != nil {
		h.http.Close()
		h.http = nil
	}
	if h.stop != nil {
		h.stop()
		h.stop = nil
	}
	h.wg.Wait()
	if h.n != nil {
		for range 2 { // twice does no harm
			if err := h.n.Close(); err != nil {
				h.t.Errorf("%s: %v", h.o.Name, err)
			}
		}
		h.n = nil
	}
}

// invite makes h join the cluster of by.
func (h *host) invite(by *host) *host {
	h.t.Helper()
	until(h.t, "token", func(ctx context.Context) error { // a member that is just removed answers no more
		tok, _, err := by.n.Tokens().CreateJoin(ctx, 0, "")
		h.o.Join, h.o.Token = []string{by.o.APIAddress}, tok.Reveal()
		return err
	})
	return h
}

// until waits until the condition holds.
func until(t *testing.T, what string, fn func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		callCtx, callCancel := context.WithTimeout(ctx, 10*time.Second)
		err := fn(callCtx)
		callCancel()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// votes waits until the store has that many voters and no learner, as seen by h.
func (h *host) votes(want int) {
	h.t.Helper()
	until(h.t, fmt.Sprintf("%d votes", want), func(ctx context.Context) error {
		all, err := h.n.kv.Members(ctx)
		if err != nil {
			return err
		}
		voters := 0
		for _, m := range all {
			if !m.Learner {
				voters++
			}
		}
		if voters != want || len(all) != want {
			return fmt.Errorf("%d votes, %d members", voters, len(all))
		}
		return nil
	})
}

// sees waits until h sees those nodes, alive.
func (h *host) sees(hosts ...*host) {
	h.t.Helper()
	until(h.t, "nodes", func(ctx context.Context) error {
		nodes, _, err := h.n.records.Nodes.List(ctx)
		if err != nil || len(nodes) != len(hosts) {
			return fmt.Errorf("%d nodes, %w", len(nodes), errors.Join(err, errdefs.ErrAborted))
		}
		for _, o := range hosts {
			v, err := h.n.records.Nodes.GetByName(ctx, o.o.Name)
			if err == nil {
				_, err = h.n.records.Lives.Get(ctx, records.ID(v.Record.Id))
			}
			if err != nil {
				return fmt.Errorf("%s: %w", o.o.Name, err)
			}
			if v.Record.Labels["zone"] != o.o.Name || v.Record.Address != o.o.APIAddress || len(v.Record.KeyHash) == 0 {
				h.t.Fatalf("record %v", v.Record)
			}
		}
		return nil
	})
}

func (h *host) put(key, value string) {
	h.t.Helper()
	until(h.t, "put", func(ctx context.Context) error {
		_, err := h.n.KV().Txn(ctx, cluster.Txn{Then: []cluster.Op{cluster.Put(key, []byte(value))}})
		return err
	})
}

func (h *host) has(key, value string) {
	h.t.Helper()
	until(h.t, "get", func(ctx context.Context) error {
		it, err := h.n.KV().Get(ctx, key)
		if err == nil && string(it.Value) != value {
			h.t.Fatalf("%s: %s is %q, want %q", h.o.Name, key, it.Value, value)
		}
		return err
	})
}

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
	guessed[len("moraine-join.")+33+5] ^= 3 // in the secret
	time.Sleep(1100 * time.Millisecond)     // the shortest token there is expires
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
