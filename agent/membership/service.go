package membership

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/moraine-storage/moraine/agent/api/apierr"
	"github.com/moraine-storage/moraine/agent/cluster/records"
	recordsv1 "github.com/moraine-storage/moraine/agent/cluster/records/v1"
	"github.com/moraine-storage/moraine/agent/identity"
	membershipv1 "github.com/moraine-storage/moraine/agent/membership/v1"
	"github.com/moraine-storage/moraine/agent/membership/v1/membershipv1connect"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// service answers those who join and those who have joined.
type service struct {
	id       *identity.Identity
	store    *records.Store
	tokens   *identity.Tokens
	contacts func(context.Context) *membershipv1.Contacts
}

// Handler serves Join, Renew and Contact below path. Its listener must use the
// identity's OpenServerTLS, with Lapsed set: who calls is taken from the
// connection.
func (n *Node) Handler() (path string, h http.Handler) {
	s := &service{id: n.id, store: n.records, tokens: n.tokens, contacts: n.Contacts}
	path, inner := membershipv1connect.NewMembershipHandler(s,
		connect.WithInterceptors(connect.UnaryInterceptorFunc(wireErrors)), connect.WithReadMaxBytes(maxMessageBytes))
	return path, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := r.Context()
		if r.TLS != nil {
			peer, err := n.id.PeerOf(*r.TLS)
			ctx = context.WithValue(ctx, callerKey{}, caller{peer, err})
		}
		inner.ServeHTTP(w, r.WithContext(ctx))
	})
}

func wireErrors(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
		resp, err := next(ctx, r)
		return resp, apierr.ToWire(err)
	}
}

type callerKey struct{}

// caller is who calls, or why that is not known.
type caller struct {
	peer identity.Peer
	err  error
}

// node returns the record of the calling node.
func (s *service) node(ctx context.Context) (*recordsv1.Node, identity.Peer, error) {
	c, ok := ctx.Value(callerKey{}).(caller)
	if !ok {
		return nil, identity.Peer{}, fmt.Errorf("call without TLS: %w", errdefs.ErrUnauthenticated)
	}
	if c.err != nil {
		return nil, identity.Peer{}, c.err
	}
	if err := checkRemoved(ctx, s.store, c.peer.Node); err != nil {
		return nil, identity.Peer{}, err
	}
	v, err := s.store.Nodes.Get(ctx, c.peer.Node)
	if err != nil {
		return nil, identity.Peer{}, err
	}
	if !bytes.Equal(v.Record.KeyHash, c.peer.KeyHash[:]) {
		return nil, identity.Peer{}, fmt.Errorf("node %q: its key is not the one it has joined with: %w", v.Record.Name, errdefs.ErrUnauthenticated)
	}
	return v.Record, c.peer, nil
}

// ErrRemoved: the node was removed from the cluster.
var ErrRemoved = fmt.Errorf("this node was removed from the cluster: %w", errdefs.ErrPermissionDenied)

// checkRemoved tells a node that was removed.
func checkRemoved(ctx context.Context, st *records.Store, id records.ID) error {
	r, err := st.RemovedNodes.Get(ctx, id)
	switch {
	case errdefs.IsNotFound(err):
		return nil
	case err != nil:
		return err
	}
	return fmt.Errorf("node %q (%s), removed at %s; to use it again, empty its data directory and join with a new token: %w",
		r.Record.Name, id, r.Record.RemovedAt.AsTime().UTC().Format(time.RFC3339), ErrRemoved)
}

// Join implements the service.
func (s *service) Join(ctx context.Context, r *membershipv1.JoinRequest) (*membershipv1.JoinResponse, error) {
	a := s.id.Authority()
	if a == nil {
		return nil, fmt.Errorf("join: this node is no server; name one that is: %w", errdefs.ErrFailedPrecondition)
	}
	tok, err := identity.ParseToken(r.Token)
	if err != nil {
		return nil, fmt.Errorf("join: %w", err)
	}
	node, hash, err := checkJoin(r)
	if err != nil {
		return nil, fmt.Errorf("join: %w", err)
	}
	if err := s.admit(ctx, tok, node, hash); err != nil {
		return nil, fmt.Errorf("join as node %q: %w", r.Name, err)
	}
	chain, err := a.Issue(r.Csr, identity.Subject{Node: records.ID(node.Id), Server: node.Server, Addresses: r.Addresses}, time.Now())
	if err != nil {
		return nil, fmt.Errorf("join: %w", err)
	}
	resp := &membershipv1.JoinResponse{Chain: chain, Authority: a.Certificate(), Contacts: s.contacts(ctx)}
	if node.Server {
		if resp.AuthorityKey, err = a.Key(); err != nil {
			return nil, fmt.Errorf("join: %w", err)
		}
	}
	return resp, nil
}

// checkJoin checks all of a request but its token, and makes the record.
func checkJoin(r *membershipv1.JoinRequest) (*recordsv1.Node, identity.Hash, error) {
	bad := func(format string, args ...any) (*recordsv1.Node, identity.Hash, error) {
		return nil, identity.Hash{}, fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
	}
	id, err := records.ParseID(r.NodeId)
	if err != nil {
		return nil, identity.Hash{}, fmt.Errorf("node: %w", err)
	}
	_, hash, err := identity.CheckRequest(r.Csr)
	if err != nil {
		return nil, identity.Hash{}, err
	}
	if len(r.Labels) > labelsMax {
		return bad("%d labels, at most %d", len(r.Labels), labelsMax)
	}
	for k, v := range r.Labels {
		if k == "" || len(k) > labelBytesMax || len(v) > labelBytesMax {
			return bad("label %.80q: key and value have at most %d bytes", k, labelBytesMax)
		}
	}
	for _, s := range []string{r.Address, r.PeerUrl, r.ClientUrl, r.Version} {
		if len(s) > labelBytesMax {
			return bad("address or version of %d bytes, at most %d", len(s), labelBytesMax)
		}
	}
	now := timestamppb.Now()
	return &recordsv1.Node{
		Id: string(id), Name: r.Name, Address: r.Address, Labels: r.Labels, CreatedAt: now, Version: r.Version,
		State: recordsv1.NodeState_NODE_READY, StateSince: now, Server: r.Server, PeerUrl: r.PeerUrl, ClientUrl: r.ClientUrl, KeyHash: hash[:],
	}, hash, nil
}

// admit uses the token up and makes the node's record, in one transaction.
func (s *service) admit(ctx context.Context, tok identity.Token, node *recordsv1.Node, hash identity.Hash) error {
	for {
		use, err := s.tokens.Using(ctx, tok, records.ID(node.Id), hash)
		if err != nil {
			return err
		}
		if err := checkRemoved(ctx, s.store, records.ID(node.Id)); err != nil {
			return err
		}
		if use.Repeated {
			v, err := s.store.Nodes.Get(ctx, records.ID(node.Id))
			if err == nil {
				node.Server = v.Record.Server // as it was admitted
			}
			return err
		}
		_, err = s.store.Commit(ctx, *use.Change, s.store.Nodes.Creating(node))
		switch {
		case err == nil:
			return nil
		case errors.Is(err, errdefs.ErrAborted):
			continue // somebody was faster: Using says what that means
		case errdefs.IsAlreadyExists(err):
			return fmt.Errorf("the cluster has a node of that name (or identity) already: choose another name, or remove that one first: %w", err)
		}
		return err
	}
}

// Renew implements the service.
func (s *service) Renew(ctx context.Context, r *membershipv1.RenewRequest) (*membershipv1.RenewResponse, error) {
	a := s.id.Authority()
	if a == nil {
		return nil, fmt.Errorf("renew certificate: this node is no server; ask one that is: %w", errdefs.ErrFailedPrecondition)
	}
	node, peer, err := s.node(ctx)
	if err != nil {
		return nil, fmt.Errorf("renew certificate: %w", err)
	}
	_, hash, err := identity.CheckRequest(r.Csr)
	if err != nil {
		return nil, fmt.Errorf("renew certificate: %w", err)
	}
	if hash != peer.KeyHash {
		return nil, fmt.Errorf("renew certificate: the request is for another key: %w", errdefs.ErrPermissionDenied)
	}
	chain, err := a.Issue(r.Csr, identity.Subject{Node: peer.Node, Server: node.Server, Addresses: r.Addresses}, time.Now())
	if err != nil {
		return nil, fmt.Errorf("renew certificate: %w", err)
	}
	return &membershipv1.RenewResponse{Chain: chain, Contacts: s.contacts(ctx)}, nil
}

// Contact implements the service.
func (s *service) Contact(ctx context.Context, _ *membershipv1.ContactRequest) (*membershipv1.Contacts, error) {
	_, peer, err := s.node(ctx)
	if err == nil && peer.Expired {
		err = fmt.Errorf("the certificate has ended: renew it first: %w", errdefs.ErrUnauthenticated)
	}
	if err != nil {
		return nil, fmt.Errorf("contact: %w", err)
	}
	return s.contacts(ctx), nil
}

// trimContacts keeps an answer within its limits, without doubles.
func trimContacts(in []string) []string {
	in = slices.DeleteFunc(slices.Clone(in), func(s string) bool { return strings.TrimSpace(s) == "" })
	slices.Sort(in)
	in = slices.Compact(in)
	return in[:min(len(in), contactsMax)]
}
