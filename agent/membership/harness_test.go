package membership

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
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
	flag.Parse()
	if err := flag.Set("test.parallel", "5"); err != nil { // they wait for each other's stores, not for a processor
		panic(err)
	}
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
