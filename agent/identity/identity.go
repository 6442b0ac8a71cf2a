package identity

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/moraine-storage/moraine/agent/cluster/records"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// Identity is what a node is, in its folder: key, certificate, authority.
type Identity struct {
	dir     string
	node    records.ID
	cluster records.ID
	ca      *x509.Certificate
	roots   *x509.CertPool
	key     *ecdsa.PrivateKey
	now     func() time.Time

	mu        sync.Mutex
	cert      *tls.Certificate // never nil; replaced, not changed
	authority *Authority       // nil on nodes that are no servers
}

// Request makes a certificate request (PKCS #10) for the key of the folder,
// making folder and key at the first call. The second result names the key.
func Request(dir string) ([]byte, Hash, error) {
	key, err := loadOrMakeKey(dir)
	if err != nil {
		return nil, Hash{}, fmt.Errorf("certificate request: %w", err)
	}
	h, err := keyHash(&key.PublicKey)
	if err != nil {
		return nil, Hash{}, fmt.Errorf("certificate request: %w", err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "moraine node"}}, key)
	if err != nil {
		return nil, Hash{}, fmt.Errorf("certificate request: %w", err)
	}
	return csr, h, nil
}

// Save completes a folder in which Request was called: authority is the
// authority's certificate (DER), caKey its key (PKCS #8) or nil, and chain what
// Issue returned.
func Save(dir string, authority, caKey, chain []byte) (*Identity, error) {
	fail := func(err error) (*Identity, error) { return nil, fmt.Errorf("save identity in %s: %w", dir, err) }
	key, err := readKey(filepath.Join(dir, nodeKeyFile))
	if err != nil {
		return fail(err)
	}
	ca, cluster, err := parseAuthorityCert(authority)
	if err != nil {
		return fail(err)
	}
	if _, _, err := checkChain(chain, key, ca, cluster); err != nil {
		return fail(err)
	}
	if caKey != nil {
		if _, err := ParseAuthority(authority, caKey); err != nil {
			return fail(err)
		}
		if err := writeFile(filepath.Join(dir, caKeyFile), encodePEM("PRIVATE KEY", caKey)); err != nil {
			return fail(err)
		}
	}
	if err := writeFile(filepath.Join(dir, caCertFile), encodePEM("CERTIFICATE", authority)); err != nil {
		return fail(err)
	}
	if err := writeFile(filepath.Join(dir, nodeCertFile), chain); err != nil {
		return fail(err)
	}
	return Open(dir)
}

// checkChain reads a certificate with its authority and checks that it is for
// the key and signed by the authority. Whether its time has come is not asked.
func checkChain(chain []byte, key *ecdsa.PrivateKey, ca *x509.Certificate, cluster records.ID) (*tls.Certificate, records.ID, error) {
	blocks, err := parsePEM(chain, "CERTIFICATE")
	if err != nil {
		return nil, "", fmt.Errorf("certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(blocks[0])
	if err != nil {
		return nil, "", fmt.Errorf("certificate: %v: %w", err, errdefs.ErrInvalidArgument)
	}
	switch of, err := clusterOf(leaf.Subject); {
	case err != nil:
		return nil, "", fmt.Errorf("certificate: %w", err)
	case of != cluster:
		return nil, "", fmt.Errorf("certificate of cluster %s, the authority is of cluster %s: %w", of, cluster, errdefs.ErrInvalidArgument)
	}
	if err := leaf.CheckSignatureFrom(ca); err != nil {
		return nil, "", fmt.Errorf("certificate: not signed by the cluster's authority: %v: %w", err, errdefs.ErrInvalidArgument)
	}
	if !key.PublicKey.Equal(leaf.PublicKey) {
		return nil, "", fmt.Errorf("certificate: not for the key of this node: %w", errdefs.ErrInvalidArgument)
	}
	node, err := records.ParseID(leaf.Subject.CommonName)
	if err != nil {
		return nil, "", fmt.Errorf("certificate: node: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{leaf.Raw, ca.Raw}, PrivateKey: key, Leaf: leaf}, node, nil
}

// Open reads the identity in a folder; NotFound when there is none yet.
func Open(dir string) (*Identity, error) {
	id, err := open(dir)
	if err != nil {
		return nil, fmt.Errorf("identity in %s: %w", dir, err)
	}
	return id, nil
}

func open(dir string) (*Identity, error) {
	chain, err := os.ReadFile(filepath.Join(dir, nodeCertFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no certificate: %w", errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	id := &Identity{dir: dir, now: time.Now}
	if id.key, err = readKey(filepath.Join(dir, nodeKeyFile)); err != nil {
		return nil, err
	}
	blocks, err := readPEM(filepath.Join(dir, caCertFile), "CERTIFICATE")
	if err != nil {
		return nil, err
	}
	if id.ca, id.cluster, err = parseAuthorityCert(blocks[0]); err != nil {
		return nil, err
	}
	id.roots = x509.NewCertPool()
	id.roots.AddCert(id.ca)
	if id.cert, id.node, err = checkChain(chain, id.key, id.ca, id.cluster); err != nil {
		return nil, err
	}
	key, err := readPEM(filepath.Join(dir, caKeyFile), "PRIVATE KEY")
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	default:
		if id.authority, err = ParseAuthority(blocks[0], key[0]); err != nil {
			return nil, err
		}
	}
	return id, nil
}

// Node is the node whose identity it is.
func (id *Identity) Node() records.ID { return id.node }

// Cluster is the cluster that it belongs to.
func (id *Identity) Cluster() records.ID { return id.cluster }

// AuthorityHash names the cluster's authority in tokens.
func (id *Identity) AuthorityHash() Hash { return sha256.Sum256(id.ca.Raw) }

// AuthorityCertificate is the authority's certificate, DER.
func (id *Identity) AuthorityCertificate() []byte { return slices.Clone(id.ca.Raw) }

// Authority signs certificates; nil on nodes that are no servers.
func (id *Identity) Authority() *Authority {
	id.mu.Lock()
	defer id.mu.Unlock()
	return id.authority
}

// KeyHash names this node's key.
func (id *Identity) KeyHash() Hash {
	return sha256.Sum256(id.current().Leaf.RawSubjectPublicKeyInfo)
}

// Server says whether the certificate is that of a server.
func (id *Identity) Server() bool { return isServer(id.current().Leaf, id.cluster) }

// Addresses are those in the certificate.
func (id *Identity) Addresses() []string {
	leaf := id.current().Leaf
	var out []string
	for _, ip := range leaf.IPAddresses {
		out = append(out, ip.String())
	}
	for _, name := range leaf.DNSNames {
		if name != nodeName(id.cluster, id.node) && name != ServerName(id.cluster) {
			out = append(out, name)
		}
	}
	return out
}

func (id *Identity) current() *tls.Certificate {
	id.mu.Lock()
	defer id.mu.Unlock()
	return id.cert
}

// RenewAt is when the certificate should be renewed; Expires when it ends.
func (id *Identity) RenewAt() time.Time { return id.Expires().Add(-renewBefore) }

// Expires is when the certificate ends.
func (id *Identity) Expires() time.Time { return id.current().Leaf.NotAfter }

// Renew takes a new certificate (what Issue returned for this node's request):
// the file first, then all TLS configurations, those of running listeners too.
func (id *Identity) Renew(chain []byte) error {
	cert, node, err := checkChain(chain, id.key, id.ca, id.cluster)
	if err == nil && node != id.node {
		err = fmt.Errorf("certificate of node %s, this is node %s: %w", node, id.node, errdefs.ErrInvalidArgument)
	}
	if err == nil {
		err = writeFile(filepath.Join(id.dir, nodeCertFile), chain)
	}
	if err != nil {
		return fmt.Errorf("renew certificate: %w", err)
	}
	id.mu.Lock()
	defer id.mu.Unlock()
	id.cert = cert
	return nil
}

// RenewSelf renews the certificate of a server, which has the authority's key.
func (id *Identity) RenewSelf(s Subject) error {
	a := id.Authority()
	if a == nil {
		return fmt.Errorf("renew certificate: this node does not have the authority's key: %w", errdefs.ErrFailedPrecondition)
	}
	csr, _, err := Request(id.dir)
	if err != nil {
		return err
	}
	s.Node = id.node
	chain, err := a.Issue(csr, s, id.now())
	if err != nil {
		return err
	}
	return id.Renew(chain)
}

// Files are the paths of the PEM files, for software that reads them itself.
type Files struct{ CA, Certificate, Key string }

// Files of the identity. They are replaced by Renew.
func (id *Identity) Files() Files {
	return Files{
		CA:          filepath.Join(id.dir, caCertFile),
		Certificate: filepath.Join(id.dir, nodeCertFile),
		Key:         filepath.Join(id.dir, nodeKeyFile),
	}
}

// Bootstrap makes the identity of the first node of a cluster, with a new
// authority. The folder must have no identity.
func Bootstrap(dir string, cluster records.ID, s Subject) (*Identity, error) {
	if _, err := Open(dir); !errdefs.IsNotFound(err) {
		return nil, errors.Join(fmt.Errorf("bootstrap identity in %s: there is one: %w", dir, errdefs.ErrAlreadyExists), err)
	}
	now := time.Now()
	a, err := NewAuthority(cluster, now)
	if err != nil {
		return nil, err
	}
	csr, _, err := Request(dir)
	if err != nil {
		return nil, err
	}
	chain, err := a.Issue(csr, s, now)
	if err != nil {
		return nil, err
	}
	key, err := a.Key()
	if err != nil {
		return nil, err
	}
	return Save(dir, a.Certificate(), key, chain)
}
