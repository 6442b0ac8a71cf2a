package identity

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moraine-storage/moraine/agent/cluster/records"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// bootstrap makes the first node of a cluster.
func bootstrap(t testing.TB, cluster records.ID) *Identity {
	t.Helper()
	id, err := Bootstrap(filepath.Join(t.TempDir(), "identity"), cluster, Subject{Node: records.NewID(), Server: true, Addresses: []string{"127.0.0.1", "node-a.example"}})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// member makes another node of the cluster of id.
func member(t testing.TB, id *Identity, s Subject) *Identity {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "identity")
	csr, _, err := Request(dir)
	if err != nil {
		t.Fatal(err)
	}
	if s.Node == "" {
		s.Node = records.NewID()
	}
	chain, err := id.Authority().Issue(csr, s, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	var caKey []byte
	if s.Server {
		if caKey, err = id.Authority().Key(); err != nil {
			t.Fatal(err)
		}
	}
	m, err := Save(dir, id.AuthorityCertificate(), caKey, chain)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// shake lets a client and a server shake hands and returns what each says.
func shake(t testing.TB, client, server *tls.Config) (seen tls.ConnectionState, clientErr, serverErr error) {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	deadline := time.Now().Add(time.Minute)
	a.SetDeadline(deadline)
	b.SetDeadline(deadline)
	done := make(chan error, 1)
	s := tls.Server(b, server)
	go func() {
		err := s.Handshake()
		if err == nil {
			_, err = s.Write([]byte("x"))
		}
		if err != nil {
			b.Close()
		}
		done <- err
	}()
	c := tls.Client(a, client)
	clientErr = c.Handshake()
	if clientErr == nil {
		_, clientErr = io.ReadFull(c, make([]byte, 1)) // TLS 1.3: the server's refusal comes after the client's handshake
	}
	a.Close()
	serverErr = <-done
	return s.ConnectionState(), clientErr, serverErr
}

// Goal: nodes of one cluster speak to each other, know whom they speak to, and
// nobody else gets in; each refusal says why.
func TestMutualTLS(t *testing.T) {
	t.Parallel()
	ours, theirs := records.NewID(), records.NewID()
	a := bootstrap(t, ours)
	b := member(t, a, Subject{})
	s := member(t, a, Subject{Server: true})
	foreign := bootstrap(t, theirs)
	pretender := member(t, bootstrap(t, ours), Subject{Server: true}) // same cluster ID, another authority

	tests := []struct {
		name           string
		client, server *tls.Config
		want           string // in the error of either side; "": none
		class          error
	}{
		{"nodes", b.ClientTLS(Who{}), a.ServerTLS(Who{}), "", nil},
		{"expected node", b.ClientTLS(Who{Node: a.Node()}), a.ServerTLS(Who{Node: b.Node()}), "", nil},
		{"server to server", s.ClientTLS(Who{Server: true}), a.ServerTLS(Who{Server: true}), "", nil},
		{"another node", b.ClientTLS(Who{Node: s.Node()}), a.ServerTLS(Who{}), "was expected", errdefs.ErrPermissionDenied},
		{"no server", a.ClientTLS(Who{Server: true}), b.ServerTLS(Who{}), "is no server", errdefs.ErrPermissionDenied},
		{"caller is no server", b.ClientTLS(Who{}), a.ServerTLS(Who{Server: true}), "is no server", errdefs.ErrPermissionDenied},
		{"foreign caller", unchecked(foreign), a.ServerTLS(Who{}), "of cluster " + string(theirs) + ", this is cluster " + string(ours), errdefs.ErrPermissionDenied},
		{"foreign server", a.ClientTLS(Who{}), foreign.OpenServerTLS(Who{}), "of cluster " + string(theirs), errdefs.ErrPermissionDenied},
		{"foreign caller of an open server", unchecked(foreign), a.OpenServerTLS(Who{}), "of cluster " + string(theirs), errdefs.ErrPermissionDenied},
		{"pretender", unchecked(pretender), a.ServerTLS(Who{}), "unknown authority", errdefs.ErrPermissionDenied},
		{"nobody", PinnedTLS(a.AuthorityHash(), true), a.ServerTLS(Who{}), "didn't provide a certificate", nil},
		{"nobody, open", PinnedTLS(a.AuthorityHash(), true), a.OpenServerTLS(Who{}), "", nil},
		{"pinned, wrong cluster", PinnedTLS(a.AuthorityHash(), true), foreign.OpenServerTLS(Who{}), "not of the cluster that the token is for", errdefs.ErrPermissionDenied},
		{"pinned, no server", PinnedTLS(a.AuthorityHash(), true), b.OpenServerTLS(Who{}), "no server", errdefs.ErrFailedPrecondition},
		{"pinned, any node", PinnedTLS(a.AuthorityHash(), false), b.OpenServerTLS(Who{}), "", nil},
		{"old TLS", oldTLS(b.ClientTLS(Who{})), a.ServerTLS(Who{}), "protocol version", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			seen, cerr, serr := shake(t, tt.client, tt.server)
			both := errors.Join(cerr, serr)
			if tt.want == "" {
				if both != nil {
					t.Errorf("refused: %v", both)
				}
				if seen.Version != tls.VersionTLS13 {
					t.Errorf("version %x", seen.Version)
				}
				return
			}
			if cerr == nil || serr == nil || !strings.Contains(both.Error(), tt.want) || tt.class != nil && !errors.Is(both, tt.class) {
				t.Errorf("client: %v\nserver: %v\nwant %q", cerr, serr, tt.want)
			}
		})
	}
	seen, _, _ := shake(t, b.ClientTLS(Who{}), a.ServerTLS(Who{}))
	p, err := a.PeerOf(seen)
	if err != nil || p.Node != b.Node() || p.Server || p.Expired {
		t.Errorf("peer %+v, %v", p, err)
	}
	if _, err := a.PeerOf(tls.ConnectionState{}); !errors.Is(err, errdefs.ErrUnauthenticated) {
		t.Errorf("nobody: %v", err)
	}
}

// unchecked shows a certificate and believes everything.
func unchecked(id *Identity) *tls.Config {
	c := id.ClientTLS(Who{})
	c.VerifyConnection = nil
	return c
}

func oldTLS(c *tls.Config) *tls.Config {
	c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	return c
}

// Goal: an ended certificate is refused, but for renewal, and for that not for
// ever; a clock that is a day behind does no harm.
func TestTime(t *testing.T) {
	t.Parallel()
	a := bootstrap(t, records.NewID())
	b := member(t, a, Subject{})
	for _, tt := range []struct {
		name    string
		later   time.Duration
		lapsed  bool
		ok      bool
		expired bool
	}{
		{"now", 0, false, true, false},
		{"a clock behind", -24 * time.Hour, false, true, false},
		{"long before it began", -backdate - 2*time.Hour, false, false, false},
		{"ended", certificateLife + time.Hour, false, false, false},
		{"ended, to renew", certificateLife + time.Hour, true, true, true},
		{"a season later, to renew", certificateLife + 90*24*time.Hour, true, true, true},
		{"forgotten", certificateLife + lapseMax + time.Hour, true, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			judge, err := Open(a.dir)
			if err != nil {
				t.Fatal(err)
			}
			judge.now = func() time.Time { return time.Now().Add(tt.later) }
			p, err := judge.check([]*x509.Certificate{b.current().Leaf}, Who{Lapsed: tt.lapsed}, x509.ExtKeyUsageClientAuth)
			if (err == nil) != tt.ok || p.Expired != tt.expired {
				t.Errorf("peer %+v, %v", p, err)
			}
		})
	}
}

// Goal: renewal changes the certificate and nothing else, in running
// configurations too, and takes only what is for this node.
func TestRenew(t *testing.T) {
	t.Parallel()
	a := bootstrap(t, records.NewID())
	b := member(t, a, Subject{})
	config := b.ServerTLS(Who{})
	before := b.current().Leaf
	csr, h1, err := Request(b.dir)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := a.Authority().Issue(csr, Subject{Node: b.Node(), Server: true, Addresses: []string{"10.1.2.3", "b.example"}}, time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Renew(chain); err != nil {
		t.Fatal(err)
	}
	shown, err := config.GetCertificate(nil)
	if err != nil || shown.Leaf.SerialNumber.Cmp(before.SerialNumber) == 0 || !shown.Leaf.NotAfter.After(before.NotAfter) {
		t.Errorf("a running listener shows the old certificate: %v", err)
	}
	again, err := Open(b.dir)
	if err != nil || !again.Server() || again.Node() != b.Node() || !slices.Equal(again.Addresses(), []string{"10.1.2.3", "b.example"}) {
		t.Errorf("after a restart: %+v, %v", again, err)
	}
	if _, h2, err := Request(b.dir); err != nil || h2 != h1 {
		t.Errorf("the key has changed: %v", err)
	}
	if got := b.Expires().Sub(b.RenewAt()); got != renewBefore {
		t.Errorf("renewed %v before its end", got)
	}
	if err := a.RenewSelf(Subject{Server: true}); err != nil {
		t.Errorf("renew a server by itself: %v", err)
	}
	if err := b.RenewSelf(Subject{}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("renew without the authority's key: %v", err)
	}

	otherNode, err := a.Authority().Issue(csr, Subject{Node: records.NewID()}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := bootstrap(t, records.NewID()).Authority().Issue(csr, Subject{Node: b.Node()}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string][]byte{
		"another key": a.chain(), "another node": otherNode, "another cluster": foreign,
		"nothing": nil, "garbage": []byte("-----BEGIN CERTIFICATE-----\nQUJD\n-----END CERTIFICATE-----\n"),
	} {
		if err := b.Renew(bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got, err := Open(b.dir); err != nil || got.current().Leaf.SerialNumber.Cmp(again.current().Leaf.SerialNumber) != 0 {
		t.Errorf("a refused certificate was kept: %v", err)
	}
}

func (id *Identity) chain() []byte {
	c := id.current()
	return slices.Concat(encodePEM("CERTIFICATE", c.Certificate[0]), encodePEM("CERTIFICATE", c.Certificate[1]))
}

// Goal: whatever is asked for is either a proper certificate or refused.
func TestIssue(t *testing.T) {
	t.Parallel()
	a := bootstrap(t, records.NewID())
	csr, _, err := Request(filepath.Join(t.TempDir(), "x"))
	if err != nil {
		t.Fatal(err)
	}
	node := records.NewID()
	for _, tt := range []struct {
		name string
		csr  []byte
		s    Subject
		ok   bool
	}{
		{"plain", csr, Subject{Node: node}, true},
		{"addresses", csr, Subject{Node: node, Addresses: []string{"::1", "10.0.0.1", "host", "a-b.c9.example"}}, true},
		{"no node", csr, Subject{}, false},
		{"not an address", csr, Subject{Node: node, Addresses: []string{"a b"}}, false},
		{"wildcard", csr, Subject{Node: node, Addresses: []string{"*.example"}}, false},
		{"empty address", csr, Subject{Node: node, Addresses: []string{""}}, false},
		{"the name of servers", csr, Subject{Node: node, Addresses: []string{ServerName(a.Cluster())}}, false},
		{"the name of servers, shouted", csr, Subject{Node: node, Addresses: []string{strings.ToUpper(ServerName(a.Cluster()))}}, false},
		{"too many", csr, Subject{Node: node, Addresses: slices.Repeat([]string{"host"}, addressesMax+1)}, false},
		{"no request", nil, Subject{Node: node}, false},
		{"torn request", csr[:len(csr)-1], Subject{Node: node}, false},
		{"signature of another", flip(csr), Subject{Node: node}, false},
		{"RSA", rsaRequest(t), Subject{Node: node}, false},
	} {
		_, err := a.Authority().Issue(tt.csr, tt.s, time.Now())
		if (err == nil) != tt.ok || err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

func flip(b []byte) []byte {
	b = bytes.Clone(b)
	b[len(b)-3] ^= 1
	return b
}

func rsaRequest(t *testing.T) []byte {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

// Goal: folders that are incomplete, damaged or mixed are told apart and never
// taken for something else.
func TestFolder(t *testing.T) {
	t.Parallel()
	a := bootstrap(t, records.NewID())
	if _, err := Bootstrap(a.dir, a.Cluster(), Subject{Node: a.Node()}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("bootstrap over an identity: %v", err)
	}
	if _, err := Open(filepath.Join(t.TempDir(), "none")); !errdefs.IsNotFound(err) {
		t.Errorf("no folder: %v", err)
	}
	for _, f := range []string{nodeKeyFile, nodeCertFile, caCertFile, caKeyFile} {
		st, err := os.Stat(filepath.Join(a.dir, f))
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", f, st, err)
		}
	}
	// A node that asked and got no answer yet has a key only.
	dir := filepath.Join(t.TempDir(), "asked")
	if _, _, err := Request(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); !errdefs.IsNotFound(err) {
		t.Errorf("asked only: %v", err)
	}
	other := bootstrap(t, records.NewID())
	damage := map[string]func(dir string) error{
		"garbled certificate":      func(dir string) error { return os.WriteFile(filepath.Join(dir, nodeCertFile), []byte("x"), 0o600) },
		"no key":                   func(dir string) error { return os.Remove(filepath.Join(dir, nodeKeyFile)) },
		"no authority":             func(dir string) error { return os.Remove(filepath.Join(dir, caCertFile)) },
		"key of another":           func(dir string) error { return copyOver(other.dir, dir, nodeKeyFile) },
		"authority of another":     func(dir string) error { return copyOver(other.dir, dir, caCertFile) },
		"authority key of another": func(dir string) error { return copyOver(other.dir, dir, caKeyFile) },
		"certificate as key": func(dir string) error {
			return os.Rename(filepath.Join(dir, caCertFile), filepath.Join(dir, nodeKeyFile))
		},
		"huge": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, caCertFile), make([]byte, 1<<20), 0o600)
		},
	}
	for name, hurt := range damage {
		dir := filepath.Join(t.TempDir(), "copy")
		if err := os.CopyFS(dir, os.DirFS(a.dir)); err != nil {
			t.Fatal(err)
		}
		if err := hurt(dir); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir); err == nil || errdefs.IsNotFound(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The authority's key of another cluster is not saved.
	key, err := other.Authority().Key()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Save(a.dir, a.AuthorityCertificate(), key, a.chain()); err == nil {
		t.Error("saved the key of another authority")
	}
	if again, err := Open(a.dir); err != nil || again.Authority() == nil {
		t.Errorf("after a refused save: %v", err)
	}
}

func copyOver(from, to, file string) error {
	b, err := os.ReadFile(filepath.Join(from, file))
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(to, file), b, 0o600)
}

func FuzzCheckRequest(f *testing.F) {
	csr, _, err := Request(filepath.Join(f.TempDir(), "x"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(csr)
	f.Add([]byte{0x30, 0x80})
	f.Fuzz(func(t *testing.T, b []byte) {
		pub, _, err := CheckRequest(b)
		if (pub == nil) == (err == nil) {
			t.Errorf("%v, %v", pub, err)
		}
	})
}
