package etcdkv

import (
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/tlsutil"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// Listen is how a member of a store can be reached, always over TLS 1.3 with
// certificates on both sides.
type Listen struct {
	// PeerURL and ClientURL, "https://10.0.0.1:7423", are where the member
	// listens, for other members and for clients, and what it tells them. The
	// host is an IP address of this machine.
	PeerURL, ClientURL string

	// TLS are the PEM files of this member. They are read again for each
	// connection: replace them to renew the certificate.
	TLS TLSFiles

	// ServerName is the name that the certificates of members must have.
	// Clients need a certificate of the same authority, whatever its name.
	ServerName string
}

// TLSFiles are paths: the authority, the member's certificate, its key.
type TLSFiles struct{ CA, Certificate, Key string }

// PeerMember is one member in ServerOptions.Join.
type PeerMember struct {
	Name string
	URL  string
}

// parseURL checks one URL of a Listen.
func parseURL(what, s string) (url.URL, error) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" || u.Path != "" || u.RawQuery != "" || u.User != nil || u.Port() == "" {
		return url.URL{}, fmt.Errorf("%s URL %q: want https://ADDRESS:PORT: %w", what, s, errdefs.ErrInvalidArgument)
	}
	ip := net.ParseIP(u.Hostname())
	if ip == nil || ip.IsUnspecified() {
		return url.URL{}, fmt.Errorf("%s URL %q: want the IP address at which others reach this member: %w", what, s, errdefs.ErrInvalidArgument)
	}
	return *u, nil
}

// apply puts l into etcd's configuration.
func (l *Listen) apply(cfg *embed.Config) error {
	peer, err := parseURL("peer", l.PeerURL)
	if err != nil {
		return err
	}
	client, err := parseURL("client", l.ClientURL)
	if err != nil {
		return err
	}
	if l.TLS.CA == "" || l.TLS.Certificate == "" || l.TLS.Key == "" || l.ServerName == "" {
		return fmt.Errorf("a member that listens needs authority, certificate, key and server name: %w", errdefs.ErrInvalidArgument)
	}
	cfg.AdvertisePeerUrls, cfg.ListenPeerUrls = []url.URL{peer}, []url.URL{peer}
	cfg.AdvertiseClientUrls = append(cfg.AdvertiseClientUrls, client)
	cfg.ListenClientUrls = append(cfg.ListenClientUrls, client)
	info := transport.TLSInfo{
		CertFile: l.TLS.Certificate, KeyFile: l.TLS.Key, TrustedCAFile: l.TLS.CA, ClientCertAuth: true,
		SkipClientSANVerify: true, // who calls is known by the name below, not by its address
	}
	cfg.ClientTLSInfo, cfg.PeerTLSInfo = info, info
	cfg.PeerTLSInfo.ServerName = l.ServerName
	cfg.PeerTLSInfo.AllowedHostnames = []string{l.ServerName}
	cfg.TlsMinVersion = string(tlsutil.TLSVersion13)
	// Members are machines apart: what is lost on the way is noticed sooner
	// than a TCP connection would.
	cfg.GRPCKeepAliveMinTime = keepAliveTime / 2
	cfg.GRPCKeepAliveInterval = time.Minute
	cfg.GRPCKeepAliveTimeout = keepAliveTimeout
	return nil
}

// initialCluster is etcd's form of the members.
func initialCluster(members []PeerMember) string {
	var out []string
	for _, m := range members {
		out = append(out, m.Name+"="+m.URL)
	}
	return strings.Join(out, ",")
}
