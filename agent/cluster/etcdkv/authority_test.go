package etcdkv

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"
)

// testServerName is what certificates of servers have here.
const testServerName = "server.test"

var testSerial atomic.Int64

// authority is a certificate authority for a test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

// testIdentity is a certificate with its files.
type testIdentity struct {
	name string
	of   *authority
	pair tls.Certificate
	TLSFiles
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{pool: x509.NewCertPool()}
	tmpl := certificate("authority")
	tmpl.IsCA, tmpl.KeyUsage = true, x509.KeyUsageCertSign
	a.cert, a.key = sign(t, tmpl, nil)
	a.pool.AddCert(a.cert)
	return a
}

func certificate(name string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(testSerial.Add(1)), Subject: pkix.Name{CommonName: name}, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
}

// sign makes a certificate, signed by a or, if a is nil, by itself.
func sign(t *testing.T, tmpl *x509.Certificate, a *authority) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	parent, signer := tmpl, key
	if a != nil {
		parent, signer = a.cert, a.key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// issue makes a certificate of a server, or of a node that is none.
func (a *authority) issue(t *testing.T, server bool) *testIdentity {
	t.Helper()
	id := &testIdentity{name: fmt.Sprintf("node-%d", testSerial.Load()), of: a}
	tmpl := certificate(id.name)
	tmpl.DNSNames = []string{id.name + ".test"}
	if server {
		tmpl.DNSNames = append(tmpl.DNSNames, testServerName)
	}
	cert, key := sign(t, tmpl, a)
	id.pair = tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name, kind string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	id.TLSFiles = TLSFiles{CA: write("ca", "CERTIFICATE", a.cert.Raw), Certificate: write("crt", "CERTIFICATE", cert.Raw), Key: write("key", "PRIVATE KEY", der)}
	return id
}

// client is for connections to servers of the same authority. They are known by
// name, while etcd's client checks for an address.
func (id *testIdentity) client() *tls.Config { return id.trusting(id.of) }

// trusting is client for servers of another authority.
func (id *testIdentity) trusting(a *authority) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{id.pair}, InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: a.pool, DNSName: testServerName})
			return err
		},
	}
}
