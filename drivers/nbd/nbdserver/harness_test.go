package nbdserver

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/moraine-storage/moraine/drivers/aio"
	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/block/memblock"
	"github.com/moraine-storage/moraine/drivers/nbd"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fixed serves a set of exports by name; "" is "vol".
type fixed map[string]*Export

func (f fixed) Lookup(_ context.Context, name string, _ Peer) (*Export, error) {
	if name == "" {
		name = "vol"
	}
	e, ok := f[name]
	if !ok {
		return nil, errdefs.ErrNotFound
	}
	return e, nil
}

func (f fixed) List(context.Context, Peer) ([]nbd.ExportEntry, error) {
	var l []nbd.ExportEntry
	for n, e := range f {
		l = append(l, nbd.ExportEntry{Name: n, Description: e.Description})
	}
	return l, nil
}

// startLoop runs a loop over a queue; mode "" is inline.
func startLoop(t testing.TB, mode aio.Mode, newQueue func(aio.Engine) (block.Queue, error), limits Limits) *Loop {
	t.Helper()
	if mode == "" {
		mode = aio.Inline
	}
	l, err := NewLoop(LoopOptions{Name: "test", NewQueue: newQueue, Limits: limits,
		NewEngine: func() (aio.Engine, error) { return aio.New(mode) }})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

func memDisk(t testing.TB, o memblock.Options) *memblock.Disk {
	t.Helper()
	d, err := memblock.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func memQueue(d *memblock.Disk) func(aio.Engine) (block.Queue, error) {
	return func(e aio.Engine) (block.Queue, error) { return d.OpenQueue(e.Wake), nil }
}

// startServer serves exports on a unix socket and returns its path.
func startServer(t testing.TB, o ServerOptions) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, o, ln)
	return path
}

func serveOn(t testing.TB, o ServerOptions, ln net.Listener) *Server {
	t.Helper()
	s, err := NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(ln) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-served; err != nil && !strings.Contains(err.Error(), "shutting down") {
			t.Errorf("serve: %v", err)
		}
	})
	return s
}
