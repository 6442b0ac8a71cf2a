package etcdkv

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/moraine-storage/moraine/agent/cluster/kvtest"
)

// open starts a store that ends with the test.
func open(t *testing.T, opts ServerOptions) *Server {
	t.Helper()
	if opts.Dir == "" {
		opts.Dir = filepath.Join(t.TempDir(), "etcd")
	}
	opts.Name = "test"
	s, err := Start(context.Background(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestEmbedded(t *testing.T) {
	t.Parallel()
	s := open(t, ServerOptions{})
	kv := s.Client()
	kvtest.Run(t, kvtest.Fixture{KV: kv, Second: s.Client(), Compact: kv.Compact})
}

// TestDialled runs the suite over a socket; both clients put the same prefix
// before their keys, which no case may notice.
func TestDialled(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "s")
	open(t, ServerOptions{ClientSocket: socket})
	dial := func() *Client {
		c, err := Dial(context.Background(), ClientOptions{Endpoints: []string{"unix://" + socket}, Prefix: "moraine/"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	kv := dial()
	kvtest.Run(t, kvtest.Fixture{KV: kv, Second: dial(), Compact: kv.Compact})
}
