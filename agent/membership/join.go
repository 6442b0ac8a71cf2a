package membership

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"connectrpc.com/connect"

	"github.com/moraine-storage/moraine/agent/api/apierr"
	"github.com/moraine-storage/moraine/agent/cluster/records"
	"github.com/moraine-storage/moraine/agent/identity"
	membershipv1 "github.com/moraine-storage/moraine/agent/membership/v1"
	"github.com/moraine-storage/moraine/agent/membership/v1/membershipv1connect"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// remote is the service of one other node.
type remote struct {
	membershipv1connect.MembershipClient
	http *http.Transport
}

func (r remote) close() { r.http.CloseIdleConnections() }

// dialService makes a client of the service at host:port.
func dialService(address string, t *tls.Config) remote {
	var p http.Protocols
	p.SetHTTP2(true)
	// One call each: a connection that is made too late for it does not stay.
	tr := &http.Transport{TLSClientConfig: t, Protocols: &p, DisableKeepAlives: true}
	return remote{membershipv1connect.NewMembershipClient(&http.Client{Transport: tr}, "https://"+address, connect.WithReadMaxBytes(maxResponseBytes)), tr}
}

// join asks the nodes in o.Join, one after the other, until one takes this node
// in, and saves the identity that it gets.
func join(ctx context.Context, o *Options, node records.ID) (*identity.Identity, *membershipv1.Contacts, error) {
	if o.Token == "" {
		return nil, nil, fmt.Errorf("join %s: a token is needed: make one with `moraine node token create` on a node of the cluster, and give it as cluster.token_file: %w", strings.Join(o.Join, ", "), errdefs.ErrInvalidArgument)
	}
	tok, err := identity.ParseToken(o.Token)
	if err != nil {
		return nil, nil, fmt.Errorf("join: %w", err)
	}
	csr, _, err := identity.Request(o.identityDir())
	if err != nil {
		return nil, nil, fmt.Errorf("join: %w", err)
	}
	req := &membershipv1.JoinRequest{
		Token: tok.Reveal(), NodeId: string(node), Name: o.Name, Csr: csr, Server: o.Server, Addresses: o.Addresses(),
		Labels: o.Labels, Address: o.APIAddress, PeerUrl: o.PeerURL(), ClientUrl: o.ClientURL(), Version: o.Version,
	}
	var errs []error
	for _, address := range o.Join {
		if address == o.APIAddress {
			continue // this node itself, in a list that all nodes share
		}
		id, contacts, err := joinAt(ctx, o, address, tok, req)
		if err == nil {
			return id, contacts, nil
		}
		errs = append(errs, fmt.Errorf("join the cluster at %s: %w", address, err))
		if ctx.Err() != nil {
			break
		}
	}
	if len(errs) == 0 {
		return nil, nil, fmt.Errorf("join: the list names this node alone: %w", errdefs.ErrInvalidArgument)
	}
	return nil, nil, errors.Join(errs...)
}

func joinAt(ctx context.Context, o *Options, address string, tok identity.Token, req *membershipv1.JoinRequest) (*identity.Identity, *membershipv1.Contacts, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r := dialService(address, identity.PinnedTLS(tok.Authority, true))
	defer r.close()
	resp, err := r.Join(ctx, req)
	if err != nil {
		return nil, nil, wireError(ctx, err)
	}
	key := resp.AuthorityKey
	if len(key) == 0 {
		key = nil
	}
	id, err := identity.Save(o.identityDir(), resp.Authority, key, resp.Chain)
	if err != nil {
		return nil, nil, err
	}
	if id.AuthorityHash() != tok.Authority {
		return nil, nil, fmt.Errorf("the authority in the answer is not that in the token: %w", errdefs.ErrPermissionDenied)
	}
	return id, resp.Contacts, nil
}

// wireError keeps the cause of a refused handshake, which is on this side.
func wireError(ctx context.Context, err error) error {
	for _, class := range []error{errdefs.ErrPermissionDenied, errdefs.ErrUnauthenticated, errdefs.ErrFailedPrecondition} {
		if !connect.IsWireError(err) && errors.Is(err, class) {
			return err
		}
	}
	return apierr.FromWire(ctx, err)
}

// askContacts asks known nodes where the others are; the first answer counts. A
// node that was removed gets ErrRemoved from whoever answers.
func askContacts(ctx context.Context, id *identity.Identity, api []string, self string) (*membershipv1.Contacts, error) {
	var errs []error
	for _, address := range api {
		if address == self {
			continue
		}
		c, err := contactAt(ctx, id, address)
		if err == nil {
			return c, nil
		}
		if isRemoved(err) {
			return nil, fmt.Errorf("node at %s says: %w", address, err)
		}
		errs = append(errs, fmt.Errorf("contact %s: %w", address, err))
	}
	return nil, fmt.Errorf("no other node answers: %w", errors.Join(append(errs, errdefs.ErrUnavailable)...))
}

// isRemoved recognises ErrRemoved from afar: of all refusals of Contact to a
// node with a good certificate, it alone is PermissionDenied by an answer.
func isRemoved(err error) bool {
	var e *apierr.Error
	return errors.As(err, &e) && errors.Is(err, errdefs.ErrPermissionDenied)
}

func contactAt(ctx context.Context, id *identity.Identity, address string) (*membershipv1.Contacts, error) {
	ctx, cancel := context.WithTimeout(ctx, contactTimeout)
	defer cancel()
	r := dialService(address, id.ClientTLS(identity.Who{}))
	defer r.close()
	c, err := r.Contact(ctx, &membershipv1.ContactRequest{})
	if err != nil {
		return nil, wireError(ctx, err)
	}
	return c, nil
}

// renewAt gets a new certificate from a server.
func renewAt(ctx context.Context, o *Options, id *identity.Identity, address string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	csr, _, err := identity.Request(o.identityDir())
	if err != nil {
		return err
	}
	r := dialService(address, id.ClientTLS(identity.Who{}))
	defer r.close()
	resp, err := r.Renew(ctx, &membershipv1.RenewRequest{Csr: csr, Addresses: o.Addresses()})
	if err != nil {
		return wireError(ctx, err)
	}
	return id.Renew(resp.Chain)
}

// contacts is what a node remembers of where others are.
type contacts struct {
	Store []string `json:"store"` // client URLs of members
	API   []string `json:"api"`   // host:port of nodes
}

func (c contacts) equal(o contacts) bool {
	return slices.Equal(c.Store, o.Store) && slices.Equal(c.API, o.API)
}

// loadContacts reads the file; a missing or damaged one is empty: it is only a
// hint, and made anew.
func loadContacts(path string) contacts {
	var c contacts
	st, err := os.Stat(path)
	if err != nil || st.Size() > contactsBytesMax {
		return c
	}
	b, err := os.ReadFile(path)
	if err != nil || json.Unmarshal(b, &c) != nil {
		return contacts{}
	}
	c.Store, c.API = trimContacts(c.Store), trimContacts(c.API)
	return c
}

func saveContacts(path string, c contacts) error {
	b, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	return replaceFile(path, append(b, '\n'))
}

// NodeID reads the identity of this node from its data directory, or draws it
// at the first start.
func NodeID(dataDir string) (records.ID, error) {
	path := filepath.Join(dataDir, "node-id")
	b, err := os.ReadFile(path)
	if err == nil {
		id, err := records.ParseID(strings.TrimSpace(string(b)))
		if err != nil {
			return "", fmt.Errorf("%s: %w", path, err)
		}
		return id, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	id := records.NewID()
	return id, replaceFile(path, []byte(string(id)+"\n"))
}

// replaceFile writes a file at once and durably.
func replaceFile(path string, b []byte) error {
	f, err := os.OpenFile(path+".tmp", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
