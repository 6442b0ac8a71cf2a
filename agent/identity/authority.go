package identity

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/moraine-storage/moraine/agent/cluster/records"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// Hash is a SHA-256: of a certificate (DER) or of a public key
// (SubjectPublicKeyInfo).
type Hash [sha256.Size]byte

// Authority is the certificate authority of one cluster, with its key.
type Authority struct {
	cluster records.ID
	cert    *x509.Certificate
	key     *ecdsa.PrivateKey
}

// Subject is what a certificate says of a node.
type Subject struct {
	Node   records.ID
	Server bool
	// Addresses of the node: IP addresses and host names, at most 32.
	Addresses []string
}

// NewAuthority makes the authority of a cluster.
func NewAuthority(cluster records.ID, now time.Time) (*Authority, error) {
	if _, err := records.ParseID(string(cluster)); err != nil {
		return nil, fmt.Errorf("make authority: cluster: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make authority: %w", err)
	}
	t := &x509.Certificate{
		SerialNumber:          newSerial(),
		Subject:               pkix.Name{CommonName: "Moraine cluster authority", Organization: []string{string(cluster)}},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(authorityLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make authority: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make authority: %w", err)
	}
	return &Authority{cluster: cluster, cert: cert, key: key}, nil
}

// newSerial draws the serial number of a certificate: 127 random bits.
func newSerial() *big.Int {
	var b [16]byte
	rand.Read(b[:]) // never fails: the runtime ends the process instead
	b[0] = b[0]&0x7f | 0x40
	return new(big.Int).SetBytes(b[:])
}

// ParseAuthority reads an authority from its certificate (DER) and its key
// (PKCS #8), and checks that they belong together.
func ParseAuthority(certDER, keyDER []byte) (*Authority, error) {
	cert, cluster, err := parseAuthorityCert(certDER)
	if err != nil {
		return nil, err
	}
	key, err := parseKey(keyDER)
	if err != nil {
		return nil, fmt.Errorf("authority's key: %w", err)
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("authority: key and certificate do not belong together: %w", errdefs.ErrDataLoss)
	}
	return &Authority{cluster: cluster, cert: cert, key: key}, nil
}

// parseAuthorityCert reads the certificate of an authority and checks that it
// is one.
func parseAuthorityCert(der []byte) (*x509.Certificate, records.ID, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, "", fmt.Errorf("authority's certificate: %v: %w", err, errdefs.ErrInvalidArgument)
	}
	cluster, err := clusterOf(cert.Subject)
	if err == nil && !cert.IsCA {
		err = fmt.Errorf("it is that of a node: %w", errdefs.ErrInvalidArgument)
	}
	if err == nil {
		if serr := cert.CheckSignatureFrom(cert); serr != nil {
			err = fmt.Errorf("%v: %w", serr, errdefs.ErrInvalidArgument)
		}
	}
	if err != nil {
		return nil, "", fmt.Errorf("authority's certificate: %w", err)
	}
	return cert, cluster, nil
}

func clusterOf(n pkix.Name) (records.ID, error) {
	if len(n.Organization) != 1 {
		return "", fmt.Errorf("it names no cluster: %w", errdefs.ErrInvalidArgument)
	}
	return records.ParseID(n.Organization[0])
}

func parseKey(der []byte) (*ecdsa.PrivateKey, error) {
	k, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("cannot be read: %w", errdefs.ErrInvalidArgument) // the cause could quote it
	}
	key, ok := k.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("is not an ECDSA key on P-256: %w", errdefs.ErrInvalidArgument)
	}
	return key, nil
}

// Cluster is the cluster whose authority it is.
func (a *Authority) Cluster() records.ID { return a.cluster }

// Certificate is the authority's certificate, DER.
func (a *Authority) Certificate() []byte { return bytes.Clone(a.cert.Raw) }

// Key is the authority's key, PKCS #8: only for a file of this node and for a
// server that joins (invariant 1).
func (a *Authority) Key() ([]byte, error) { return x509.MarshalPKCS8PrivateKey(a.key) }

// Hash names the authority in tokens.
func (a *Authority) Hash() Hash { return sha256.Sum256(a.cert.Raw) }

// Issue signs a certificate for a node's request (PKCS #10, DER), of which it
// takes the public key alone: what the certificate says is the caller's word.
// The result is PEM: the certificate, then the authority's.
func (a *Authority) Issue(csr []byte, s Subject, now time.Time) ([]byte, error) {
	pub, _, err := CheckRequest(csr)
	if err != nil {
		return nil, err
	}
	if _, err := records.ParseID(string(s.Node)); err != nil {
		return nil, fmt.Errorf("issue certificate: node: %w", err)
	}
	dns, ips, err := splitAddresses(s.Addresses)
	if err != nil {
		return nil, fmt.Errorf("issue certificate: %w", err)
	}
	names := []string{nodeName(a.cluster, s.Node)}
	if s.Server {
		names = append(names, ServerName(a.cluster))
	}
	end := now.Add(certificateLife)
	if end.After(a.cert.NotAfter) {
		end = a.cert.NotAfter
	}
	t := &x509.Certificate{
		SerialNumber:          newSerial(),
		Subject:               pkix.Name{CommonName: string(s.Node), Organization: []string{string(a.cluster)}},
		NotBefore:             now.Add(-backdate),
		NotAfter:              end,
		DNSNames:              append(names, dns...),
		IPAddresses:           ips,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, pub, a.key)
	if err != nil {
		return nil, fmt.Errorf("issue certificate for node %s: %w", s.Node, err)
	}
	return slices.Concat(encodePEM("CERTIFICATE", der), encodePEM("CERTIFICATE", a.cert.Raw)), nil
}

// reserved is the domain whose names say what a node is; nobody may ask for one.
const reserved = ".moraine.internal"

// ServerName is the name that certificates of servers have, and others not.
func ServerName(cluster records.ID) string { return "server." + string(cluster) + reserved }

func nodeName(cluster, node records.ID) string {
	return string(node) + ".node." + string(cluster) + reserved
}

func splitAddresses(all []string) (dns []string, ips []net.IP, err error) {
	if len(all) > addressesMax {
		return nil, nil, fmt.Errorf("%d addresses, at most %d: %w", len(all), addressesMax, errdefs.ErrInvalidArgument)
	}
	for _, s := range all {
		if ip := net.ParseIP(s); ip != nil {
			ips = append(ips, ip)
			continue
		}
		if !isHostName(s) || strings.HasSuffix(strings.ToLower(s), reserved) {
			return nil, nil, fmt.Errorf("address %.80q: neither an IP address nor a host name that a node may have: %w", s, errdefs.ErrInvalidArgument)
		}
		dns = append(dns, s)
	}
	return dns, ips, nil
}

// isHostName checks RFC 1123, section 2.1.
func isHostName(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range []byte(label) {
			if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-') {
				return false
			}
		}
	}
	return true
}

// CheckRequest reads a certificate request and checks that its sender has the
// key. It returns the public key and its hash.
func CheckRequest(csr []byte) (crypto.PublicKey, Hash, error) {
	r, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, Hash{}, fmt.Errorf("certificate request: %v: %w", err, errdefs.ErrInvalidArgument)
	}
	if err := r.CheckSignature(); err != nil {
		return nil, Hash{}, fmt.Errorf("certificate request: %v: %w", err, errdefs.ErrInvalidArgument)
	}
	pub, ok := r.PublicKey.(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return nil, Hash{}, fmt.Errorf("certificate request: want an ECDSA key on P-256: %w", errdefs.ErrInvalidArgument)
	}
	return pub, sha256.Sum256(r.RawSubjectPublicKeyInfo), nil
}

func encodePEM(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
