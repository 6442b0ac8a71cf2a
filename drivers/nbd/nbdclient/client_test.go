package nbdclient_test

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/moraine-storage/moraine/drivers/aio"
	"github.com/moraine-storage/moraine/drivers/block/blocktest"
	"github.com/moraine-storage/moraine/drivers/block/memblock"
	"github.com/moraine-storage/moraine/drivers/nbd"
	"github.com/moraine-storage/moraine/drivers/nbd/internal/nbdtest"
	"github.com/moraine-storage/moraine/drivers/nbd/nbdclient"
	"github.com/moraine-storage/moraine/drivers/nbd/nbdserver"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Goal: what the queue contract promises holds through client, wire and
// server, in each form of replies, with media that complete in and out of
// order, plain and over TLS.
func TestConformance(t *testing.T) {
	forms := map[string]nbdclient.Options{
		"simple":     {NoStructured: true},
		"structured": {NoExtended: true},
		"extended":   {},
	}
	for form, o := range forms {
		for _, async := range []bool{false, true} {
			for _, secure := range []bool{false, true} {
				if secure && async {
					continue // nothing that the others do not have
				}
				t.Run(fmt.Sprintf("%s async=%v tls=%v", form, async, secure), func(t *testing.T) {
					t.Parallel()
					blocktest.Run(t, func(t *testing.T, size int64) (blocktest.Target, error) {
						return connect(t, o, memblock.Options{Size: size, Async: async, Seed: 1}, secure)
					})
				})
			}
		}
	}
}

// connect serves a fresh disk and returns a client of it.
func connect(t *testing.T, o nbdclient.Options, d memblock.Options, secure bool) (blocktest.Target, error) {
	mode := aio.Inline
	if d.Async {
		mode = aio.Threads
	}
	l := nbdtest.Loop(t, mode, nbdtest.Queue(nbdtest.Disk(t, d)), nbdserver.Limits{})
	so := nbdserver.ServerOptions{Exports: nbdtest.NewExports(&nbdserver.Export{Name: "vol", Loop: l})}
	network, addr := "unix", ""
	if secure {
		so.TLS = nbd.TLSRequired
		so.TLSConfig, o.TLS = nbdtest.Certificates(t, "")
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return blocktest.Target{}, err
		}
		nbdtest.Serve(t, so, ln)
		network, addr = "tcp", ln.Addr().String()
	} else {
		addr = nbdtest.Unix(t, so)
	}
	e, err := aio.New(aio.Inline)
	if err != nil {
		return blocktest.Target{}, err
	}
	o.Grain = memblock.Grain
	s, err := nbdclient.Dial(context.Background(), network, addr, o)
	if err != nil {
		_ = e.Close()
		return blocktest.Target{}, err
	}
	c, err := s.Queue(e, 1)
	if err != nil {
		_ = e.Close()
		return blocktest.Target{}, err
	}
	return blocktest.Target{Queue: c, Engine: e}, nil
}

func TestStatus(t *testing.T) {
	for _, o := range []nbdclient.Options{{NoExtended: true}, {}} {
		o.Contexts = []string{nbd.ContextAllocation}
		t.Run(fmt.Sprintf("extended=%v", !o.NoExtended), func(t *testing.T) {
			d := nbdtest.Disk(t, memblock.Options{Size: 1 << 20})
			l := nbdtest.Loop(t, "", nbdtest.Queue(d), nbdserver.Limits{})
			path := nbdtest.Unix(t, nbdserver.ServerOptions{Exports: nbdtest.NewExports(&nbdserver.Export{Name: "vol", Loop: l})})
			ctx, cancel := context.WithTimeout(context.Background(), nbdtest.Patience)
			defer cancel()
			dev, err := nbdclient.OpenDevice(ctx, "unix", path, o)
			if err != nil {
				t.Fatal(err)
			}
			defer dev.Close()
			if dev.Negotiated().Extended == o.NoExtended {
				t.Fatalf("extended headers: %v", dev.Negotiated().Extended)
			}
			if err := dev.WriteAt(ctx, make([]byte, 65536), 131072, 0); err != nil {
				t.Fatal(err)
			}
			got, err := dev.Status(ctx, nbd.ContextAllocation, 0, 1<<20)
			want := []nbd.Extent{{Len: 131072, Flags: 3}, {Len: 65536}, {Len: 1<<20 - 131072 - 65536, Flags: 3}}
			if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
				t.Fatalf("status: %v, %v; want %v", got, err, want)
			}
			if _, err := dev.Status(ctx, "other:context", 0, 4096); err == nil {
				t.Fatal("status of a context that was not negotiated")
			}
			if err := dev.Close(); err != nil {
				t.Fatal(err)
			}
			waitFor(t, func() bool { return l.Stats().Open == 0 })
			if s := l.Stats(); s.Broken != 0 || s.InFlight != 0 {
				t.Fatalf("after a good-bye: %+v", s)
			}
		})
	}
}

func waitFor(t *testing.T, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(nbdtest.Patience); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it did not happen")
		}
	}
}
