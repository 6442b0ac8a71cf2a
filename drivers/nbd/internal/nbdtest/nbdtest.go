// Package nbdtest starts NBD servers for the tests of this folder.
package nbdtest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sort"
	"sync"
	"testing"
	"time"

	"github.com/moraine-storage/moraine/drivers/aio"
	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/block/memblock"
	"github.com/moraine-storage/moraine/drivers/nbd"
	"github.com/moraine-storage/moraine/drivers/nbd/nbdserver"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// Patience is far beyond what anything takes, so that only a hang fails.
const Patience = 60 * time.Second

// Exports serves exports by name; "" is "vol".
type Exports struct {
	mu      sync.Mutex
	byName  map[string]*nbdserver.Export
	refusal error
}

// NewExports makes a set of exports by their names.
func NewExports(list ...*nbdserver.Export) *Exports {
	e := &Exports{byName: map[string]*nbdserver.Export{}}
	for _, x := range list {
		e.byName[x.Name] = x
	}
	return e
}

// Refuse makes every Lookup fail.
func (e *Exports) Refuse(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.refusal = err
}

// Lookup implements nbdserver.Exports.
func (e *Exports) Lookup(_ context.Context, name string, _ nbdserver.Peer) (*nbdserver.Export, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if name == "" {
		name = "vol"
	}
	x, ok := e.byName[name]
	switch {
	case e.refusal != nil:
		return nil, e.refusal
	case !ok:
		return nil, errdefs.ErrNotFound
	}
	return x, nil
}

// List implements nbdserver.Exports.
func (e *Exports) List(context.Context, nbdserver.Peer) ([]nbd.ExportEntry, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var l []nbd.ExportEntry
	for n, x := range e.byName {
		l = append(l, nbd.ExportEntry{Name: n, Description: x.Description})
	}
	sort.Slice(l, func(i, j int) bool { return l[i].Name < l[j].Name })
	return l, nil
}

// Loop runs a loop over a queue until the test ends; mode "" is inline.
func Loop(t testing.TB, mode aio.Mode, newQueue func(aio.Engine) (block.Queue, error), limits nbdserver.Limits) *nbdserver.Loop {
	t.Helper()
	if mode == "" {
		mode = aio.Inline
	}
	l, err := nbdserver.NewLoop(nbdserver.LoopOptions{Name: "test", NewQueue: newQueue, Limits: limits,
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

// Disk makes a memory disk.
func Disk(t testing.TB, o memblock.Options) *memblock.Disk {
	t.Helper()
	d, err := memblock.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// Queue opens queues of a memory disk for a loop.
func Queue(d *memblock.Disk) func(aio.Engine) (block.Queue, error) {
	return func(e aio.Engine) (block.Queue, error) { return d.OpenQueue(e.Wake), nil }
}

// Unix serves on a unix socket, whose path it returns, until the test ends.
func Unix(t testing.TB, o nbdserver.ServerOptions) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "nbd") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	Serve(t, o, ln)
	return path
}

// Serve serves on ln until the test ends.
func Serve(t testing.TB, o nbdserver.ServerOptions, ln net.Listener) *nbdserver.Server {
	t.Helper()
	s, err := nbdserver.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(ln) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return s
}

// Certificates makes an authority and a certificate of "localhost" that serves
// both sides; dir, when not empty, gets them as nbdkit, qemu and libnbd want
// them (ca-cert.pem, server-cert.pem, server-key.pem, client-…).
func Certificates(t testing.TB, dir string) (server, client *tls.Config) {
	t.Helper()
	caKey, key := newKey(t), newKey(t)
	now := time.Now()
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature}
	caDER := sign(t, ca, ca, caKey, caKey)
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "localhost"},
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter, DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	leafDER := sign(t, leaf, ca, key, caKey)
	pool := x509.NewCertPool()
	parsed, err := x509.ParseCertificate(caDER)
	if err != nil {
		t.Fatal(err)
	}
	pool.AddCert(parsed)
	pair := tls.Certificate{Certificate: [][]byte{leafDER}, PrivateKey: key}
	if dir != "" {
		keyDER, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		writePEM(t, dir, "ca-cert.pem", "CERTIFICATE", caDER)
		for _, side := range []string{"server", "client"} {
			writePEM(t, dir, side+"-cert.pem", "CERTIFICATE", leafDER)
			writePEM(t, dir, side+"-key.pem", "PRIVATE KEY", keyDER)
		}
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool},
		&tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: pool, ServerName: "localhost"}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func sign(t testing.TB, c, parent *x509.Certificate, key, by *ecdsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, by)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func writePEM(t testing.TB, dir, name, kind string, der []byte) {
	t.Helper()
	p := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	if err := os.WriteFile(filepath.Join(dir, name), p, 0o600); err != nil {
		t.Fatal(err)
	}
}
