package nbdserver_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/moraine-storage/moraine/drivers/block/memblock"
	"github.com/moraine-storage/moraine/drivers/nbd"
	"github.com/moraine-storage/moraine/drivers/nbd/internal/nbdtest"
	"github.com/moraine-storage/moraine/drivers/nbd/nbdclient"
	"github.com/moraine-storage/moraine/drivers/nbd/nbdserver"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// Goal: garbage in the handshake ends its connection and nothing else.
func TestHandshakeGarbage(t *testing.T) {
	_, path := serve(t, memblock.Options{Size: 1 << 20}, nbdserver.Limits{})
	option := func(opt, n uint32, payload []byte) []byte {
		p := be.AppendUint32([]byte{0, 0, 0, 3}, 0)[:4]
		p = be.AppendUint64(p, nbd.MagicOption)
		p = be.AppendUint32(p, opt)
		return append(be.AppendUint32(p, n), payload...)
	}
	for name, p := range map[string][]byte{
		"text":                 []byte("GET / HTTP/1.1\r\nHost: example.org\r\n\r\n"),
		"flags":                {0xff, 0xff, 0xff, 0xff},
		"option magic":         make([]byte, 64),
		"huge option":          option(nbd.OptGo, 0xffffffff, nil),
		"huge unknown option":  option(4711, 0x7fffffff, nil),
		"huge name":            option(nbd.OptExportName, 1<<20, nil),
		"unknown export":       option(nbd.OptExportName, 3, []byte("abc")),
		"name that is no text": option(nbd.OptExportName, 2, []byte{0xff, 0}),
	} {
		t.Run(name, func(t *testing.T) {
			nc := dial(t, path)
			if _, err := nc.Write(p); err != nil {
				t.Fatal(err)
			}
			(&raw{Conn: nc, t: t}).ends()
			connect(t, path, simple).works()
		})
	}
}

// Goal: clients that say nothing are dropped in time, and hold up others only
// as long as that.
func TestHalfOpen(t *testing.T) {
	l := nbdtest.Loop(t, "", nbdtest.Queue(nbdtest.Disk(t, memblock.Options{Size: 1 << 20})), nbdserver.Limits{})
	path := nbdtest.Unix(t, nbdserver.ServerOptions{Exports: nbdtest.NewExports(&nbdserver.Export{Name: "vol", Loop: l}),
		MaxHalfOpen: 1, HandshakeTimeout: 200 * time.Millisecond})
	mute := dial(t, path)
	connect(t, path, simple).works() // waits for the slot of the mute one
	(&raw{Conn: mute, t: t}).ends()
}

func TestRefusals(t *testing.T) {
	l := nbdtest.Loop(t, "", nbdtest.Queue(nbdtest.Disk(t, memblock.Options{Size: 1 << 20})), nbdserver.Limits{})
	ex := nbdtest.NewExports(&nbdserver.Export{Name: "vol", Loop: l})
	path := nbdtest.Unix(t, nbdserver.ServerOptions{Exports: ex})
	for _, c := range []struct {
		name    string
		refusal error
		export  string
		want    uint32
	}{
		{"unknown", nil, "other", nbd.RepErrUnknown},
		{"policy", errdefs.ErrPermissionDenied, "vol", nbd.RepErrPolicy},
		{"shutdown", errdefs.ErrUnavailable, "vol", nbd.RepErrShutdown},
		{"own", &nbd.ReplyError{Type: nbd.RepErrTLSReqd}, "vol", nbd.RepErrTLSReqd},
	} {
		ex.Refuse(c.refusal)
		_, err := (&nbd.ClientHandshake{Export: c.export}).Run(dial(t, path))
		var re *nbd.ReplyError
		if !errors.As(err, &re) || re.Type != c.want {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// Goal: a loop that has ended refuses, and the export's Closed is called once.
func TestEndedLoop(t *testing.T) {
	l := nbdtest.Loop(t, "", nbdtest.Queue(nbdtest.Disk(t, memblock.Options{Size: 1 << 20})), nbdserver.Limits{})
	closed := make(chan bool, 2)
	path := serveExport(t, &nbdserver.Export{Name: "vol", Loop: l, Closed: func() { closed <- true }})
	l.Close()
	nc := dial(t, path)
	if _, err := simple.Run(nc); err == nil {
		(&raw{Conn: nc, t: t}).ends()
	}
	<-closed
}

func TestServerStops(t *testing.T) {
	l := nbdtest.Loop(t, "", nbdtest.Queue(nbdtest.Disk(t, memblock.Options{Size: 1 << 20})), nbdserver.Limits{})
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	s := nbdtest.Serve(t, nbdserver.ServerOptions{Exports: nbdtest.NewExports(&nbdserver.Export{Name: "vol", Loop: l})}, ln)
	cl := connect(t, ln.Addr().String(), simple)
	cl.works()
	mute := dial(t, ln.Addr().String())
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	hello := make([]byte, 18)
	if _, err := io.ReadFull(mute, hello); err != nil {
		t.Fatal(err)
	}
	if err := s.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("drain with a half-open connection: %v", err)
	}
	(&raw{Conn: mute, t: t}).ends()
	cl.works() // the loop's connections stay
	for range 2 {
		s.Close()
		if err := s.Drain(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	if ln2, err := net.Listen("unix", filepath.Join(t.TempDir(), "s")); err != nil {
		t.Fatal(err)
	} else if err := s.Serve(ln2); err == nil {
		t.Fatal("serve after close")
	}
	if _, err := nbdserver.NewServer(nbdserver.ServerOptions{}); err == nil {
		t.Fatal("server without exports")
	}
	if _, err := nbdserver.NewServer(nbdserver.ServerOptions{Exports: nbdtest.NewExports(), TLS: nbd.TLSRequired}); err == nil {
		t.Fatal("TLS without certificates")
	}
}

// Goal: each mode of TLS does what it says; the peer's certificate is checked.
func TestTLS(t *testing.T) {
	server, client := nbdtest.Certificates(t, "")
	_, stranger := nbdtest.Certificates(t, "")
	stranger.InsecureSkipVerify = true // it would take anyone; the server must not take it
	l := nbdtest.Loop(t, "", nbdtest.Queue(nbdtest.Disk(t, memblock.Options{Size: 64 << 20})), nbdserver.Limits{})
	ex := nbdtest.NewExports(&nbdserver.Export{Name: "vol", Loop: l})
	for _, c := range []struct {
		name   string
		mode   nbd.TLSMode
		client *tls.Config
		ok     bool
	}{
		{"off, plain", nbd.TLSOff, nil, true},
		{"off, TLS", nbd.TLSOff, client, false},
		{"allowed, plain", nbd.TLSAllowed, nil, true},
		{"allowed, TLS", nbd.TLSAllowed, client, true},
		{"required, plain", nbd.TLSRequired, nil, false},
		{"required, TLS", nbd.TLSRequired, client, true},
		{"required, stranger", nbd.TLSRequired, stranger, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := nbdserver.ServerOptions{Exports: ex, TLS: c.mode}
			if c.mode != nbd.TLSOff {
				o.TLSConfig = server
			}
			path := nbdtest.Unix(t, o)
			ctx := patience(t)
			dev, err := nbdclient.OpenDevice(ctx, "unix", path, nbdclient.Options{TLS: c.client})
			if err == nil {
				defer dev.Close()
				// TLS 1.3: a refused certificate shows with the first read.
				err = dev.Flush(ctx)
			}
			if c.ok != (err == nil) {
				t.Fatalf("error %v, want success %v", err, c.ok)
			}
			if !c.ok {
				return
			}
			want := bytes.Repeat([]byte("moraine "), 1<<20)
			if err := dev.WriteAt(ctx, want, 4096, 0); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, len(want))
			if err := dev.ReadAt(ctx, got, 4096); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("read back: %v, equal %v", err, bytes.Equal(got, want))
			}
		})
	}
	waitFor(t, "all are gone", func() bool { return l.Stats().Open == 0 })
}

func TestList(t *testing.T) {
	_, path := serve(t, memblock.Options{Size: 1 << 20}, nbdserver.Limits{})
	list, err := nbdclient.List(patience(t), "unix", path, nil)
	want := []nbd.ExportEntry{{Name: "vol", Description: "a volume"}, {Name: "vol@snap"}}
	if err != nil || len(list) != 2 || list[0] != want[0] || list[1] != want[1] {
		t.Fatalf("%v, %v; want %v", list, err, want)
	}
}
