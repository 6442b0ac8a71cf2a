package identity

import (
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"github.com/moraine-storage/moraine/agent/cluster/records"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// Peer is a node that has proved who it is.
type Peer struct {
	Node   records.ID
	Server bool
	// KeyHash names its key.
	KeyHash Hash
	// Expired: its certificate has ended; it may ask for a new one and nothing
	// else.
	Expired bool
}

// Who is what a TLS configuration accepts at the other end.
type Who struct {
	// Node, if set, is the only node accepted.
	Node records.ID
	// Server accepts servers only.
	Server bool
	// Lapsed accepts certificates that have ended, up to 400 days: the caller
	// looks at Peer.Expired.
	Lapsed bool
}

func isServer(leaf *x509.Certificate, cluster records.ID) bool {
	return slices.Contains(leaf.DNSNames, ServerName(cluster))
}

// check verifies the certificate at the other end of a connection.
func (id *Identity) check(certs []*x509.Certificate, who Who, usage x509.ExtKeyUsage) (Peer, error) {
	if len(certs) == 0 {
		return Peer{}, fmt.Errorf("no certificate was shown: %w", errdefs.ErrUnauthenticated)
	}
	leaf := certs[0]
	of, err := clusterOf(leaf.Subject)
	if err != nil {
		return Peer{}, fmt.Errorf("certificate of a stranger (%.80q): %w", leaf.Subject.CommonName, errdefs.ErrPermissionDenied)
	}
	if of != id.cluster {
		return Peer{}, fmt.Errorf("certificate of node %.40s of cluster %s, this is cluster %s: %w", leaf.Subject.CommonName, of, id.cluster, errdefs.ErrPermissionDenied)
	}
	now, expired := id.now(), false
	if late := now.Sub(leaf.NotAfter); late > 0 && late <= lapseMax && who.Lapsed {
		now, expired = leaf.NotAfter, true
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: id.roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
		return Peer{}, fmt.Errorf("certificate of node %.40s: %v: %w", leaf.Subject.CommonName, err, errdefs.ErrPermissionDenied)
	}
	node, err := records.ParseID(leaf.Subject.CommonName)
	if err != nil {
		return Peer{}, fmt.Errorf("certificate: node: %v: %w", err, errdefs.ErrPermissionDenied)
	}
	p := Peer{Node: node, Server: isServer(leaf, id.cluster), KeyHash: sha256.Sum256(leaf.RawSubjectPublicKeyInfo), Expired: expired}
	if who.Server && !p.Server {
		return Peer{}, fmt.Errorf("node %s is no server: %w", node, errdefs.ErrPermissionDenied)
	}
	if who.Node != "" && node != who.Node {
		return Peer{}, fmt.Errorf("node %s answers where node %s was expected: %w", node, who.Node, errdefs.ErrPermissionDenied)
	}
	return p, nil
}

// PeerOf returns who is at the other end of a connection that was made with
// ServerTLS or ClientTLS; Unauthenticated when no certificate was shown.
func (id *Identity) PeerOf(cs tls.ConnectionState) (Peer, error) {
	return id.check(cs.PeerCertificates, Who{Lapsed: true}, x509.ExtKeyUsageAny)
}

// ServerTLS is for listeners that every caller reaches with a certificate of
// this cluster.
func (id *Identity) ServerTLS(who Who) *tls.Config {
	c := id.config()
	c.ClientAuth = tls.RequireAnyClientCert
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		_, err := id.check(cs.PeerCertificates, who, x509.ExtKeyUsageClientAuth)
		return err
	}
	return c
}

// OpenServerTLS is for listeners that callers also reach without a certificate,
// to join or with a token. A certificate that is shown must be of this cluster.
func (id *Identity) OpenServerTLS(who Who) *tls.Config {
	c := id.ServerTLS(who)
	verify := c.VerifyConnection
	c.ClientAuth = tls.RequestClientCert
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 {
			return nil
		}
		return verify(cs)
	}
	return c
}

// ClientTLS is for calls to other nodes of the cluster. Who answers is known by
// its certificate, not by its address: nodes may move.
func (id *Identity) ClientTLS(who Who) *tls.Config {
	c := id.config()
	c.InsecureSkipVerify = true // VerifyConnection does it, by cluster and node instead of by address
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		_, err := id.check(cs.PeerCertificates, who, x509.ExtKeyUsageServerAuth)
		return err
	}
	return c
}

func (id *Identity) config() *tls.Config {
	return &tls.Config{
		MinVersion:           tls.VersionTLS13,
		GetCertificate:       func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return id.current(), nil },
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return id.current(), nil },
		Time:                 id.now,
	}
}

// PinnedTLS is for who has no certificate, but a token: the other end must show
// the authority with that hash, and the certificate of a node that it signed;
// of a server, if serverOnly, since only those may see a join token.
func PinnedTLS(authority Hash, serverOnly bool) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, // VerifyConnection does it, by the hash in the token
		VerifyConnection: func(cs tls.ConnectionState) error {
			return checkPinned(cs.PeerCertificates, authority, serverOnly, time.Now())
		},
	}
}

func checkPinned(certs []*x509.Certificate, authority Hash, serverOnly bool, now time.Time) error {
	if len(certs) == 0 {
		return fmt.Errorf("no certificate was shown: %w", errdefs.ErrUnauthenticated)
	}
	var ca *x509.Certificate
	for _, c := range certs[1:] {
		if h := sha256.Sum256(c.Raw); subtle.ConstantTimeCompare(h[:], authority[:]) == 1 {
			ca = c
		}
	}
	if ca == nil {
		return fmt.Errorf("what answers there is not of the cluster that the token is for: %w", errdefs.ErrPermissionDenied)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	if _, err := certs[0].Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err != nil {
		return fmt.Errorf("certificate of node %.40s: %v: %w", certs[0].Subject.CommonName, err, errdefs.ErrPermissionDenied)
	}
	cluster, err := clusterOf(ca.Subject)
	if err != nil {
		return fmt.Errorf("authority's certificate: %v: %w", err, errdefs.ErrPermissionDenied)
	}
	if serverOnly && !isServer(certs[0], cluster) {
		return fmt.Errorf("node %.40s is no server, so nobody can join through it; name a server of the cluster: %w", certs[0].Subject.CommonName, errdefs.ErrFailedPrecondition)
	}
	return nil
}
