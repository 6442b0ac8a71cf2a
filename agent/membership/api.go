package membership

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	"github.com/moraine-storage/moraine/agent/api"
	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	"github.com/moraine-storage/moraine/agent/cluster/records"
	recordsv1 "github.com/moraine-storage/moraine/agent/cluster/records/v1"
	"github.com/moraine-storage/moraine/agent/identity"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// API implements api.Nodes.
func (n *Node) API() api.Nodes { return nodesAPI{n} }

type nodesAPI struct{ n *Node }

var roles = map[string]recordsv1.TokenRole{
	"reader": recordsv1.TokenRole_READER, "operator": recordsv1.TokenRole_OPERATOR, "admin": recordsv1.TokenRole_ADMIN,
}

func (a nodesAPI) CreateToken(ctx context.Context, r *apiv1.CreateTokenRequest) (*apiv1.CreateTokenResponse, error) {
	ttl := r.Ttl.AsDuration()
	if r.Ttl != nil && (r.Ttl.CheckValid() != nil || ttl <= 0) {
		return nil, fmt.Errorf("make token: it must last longer than nothing: %w", errdefs.ErrInvalidArgument)
	}
	var tok identity.Token
	var rec *recordsv1.Token
	var err error
	switch r.Kind {
	case "join":
		if a.n.o.Bind == "" {
			return nil, fmt.Errorf("make join token: this node has no address at which others could reach it: set bind and start the agent again: %w", errdefs.ErrFailedPrecondition)
		}
		if r.Role != "" {
			return nil, fmt.Errorf("make join token: it has no role: %w", errdefs.ErrInvalidArgument)
		}
		tok, rec, err = a.n.tokens.CreateJoin(ctx, ttl, r.Description)
	case "user":
		role, ok := roles[r.Role]
		if !ok {
			return nil, fmt.Errorf("make token: role %.40q: want reader, operator or admin: %w", r.Role, errdefs.ErrInvalidArgument)
		}
		tok, rec, err = a.n.tokens.CreatePerson(ctx, role, ttl, r.Description)
	default:
		return nil, fmt.Errorf("make token: kind %.40q: want join or user: %w", r.Kind, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return nil, err
	}
	return &apiv1.CreateTokenResponse{Token: tokenMessage(rec), Secret: tok.Reveal()}, nil
}

func tokenMessage(r *recordsv1.Token) *apiv1.Token {
	t := &apiv1.Token{Id: r.Id, Kind: "join", Description: r.Description, CreatedAt: r.CreatedAt, ExpiresAt: r.ExpiresAt, UsedBy: r.UsedBy, UsedAt: r.UsedAt}
	if r.Kind == recordsv1.TokenKind_TOKEN_PERSON {
		t.Kind, t.Role = "user", strings.ToLower(r.Role.String())
	}
	return t
}

func (a nodesAPI) ListTokens(ctx context.Context, r *apiv1.ListTokensRequest) (*apiv1.ListTokensResponse, error) {
	if r.Kind != "" && r.Kind != "join" && r.Kind != "user" {
		return nil, fmt.Errorf("list tokens: kind %.40q: want join or user: %w", r.Kind, errdefs.ErrInvalidArgument)
	}
	all, err := a.n.tokens.List(ctx)
	if err != nil {
		return nil, err
	}
	out := &apiv1.ListTokensResponse{}
	for _, t := range all {
		if m := tokenMessage(t); r.Kind == "" || r.Kind == m.Kind {
			out.Tokens = append(out.Tokens, m)
		}
	}
	return out, nil
}

func (a nodesAPI) RevokeToken(ctx context.Context, r *apiv1.RevokeTokenRequest) (*apiv1.RevokeTokenResponse, error) {
	if err := a.n.tokens.Revoke(ctx, r.Id); err != nil {
		return nil, err
	}
	return &apiv1.RevokeTokenResponse{}, nil
}

func (a nodesAPI) UpdateNode(ctx context.Context, r *apiv1.UpdateNodeRequest) (*apiv1.UpdateNodeResponse, error) {
	set := Admin{a.n.records}.Undrain
	if r.Draining {
		set = Admin{a.n.records}.Drain
	}
	if err := set(ctx, r.Name); err != nil {
		return nil, err
	}
	return &apiv1.UpdateNodeResponse{}, nil
}

func (a nodesAPI) RemoveNode(ctx context.Context, r *apiv1.RemoveNodeRequest) (*apiv1.RemoveNodeResponse, error) {
	v, err := Admin{a.n.records}.Find(ctx, r.Name)
	if err != nil {
		return nil, err
	}
	if records.ID(v.Record.Id) == a.n.node {
		return nil, fmt.Errorf("remove node %q: it is the one that answers this call: ask another node of the cluster: %w", r.Name, errdefs.ErrFailedPrecondition)
	}
	h, err := Admin{a.n.records}.Remove(ctx, r.Name, r.Force)
	if err != nil {
		return nil, err
	}
	return &apiv1.RemoveNodeResponse{GivenUp: h.String()}, nil
}

// Authorize tells who makes a call over TCP: a node of the cluster by its
// certificate, which may do everything, or the holder of a user's token, sent
// as "Authorization: Bearer TOKEN", who may do what its role says.
func (n *Node) Authorize(r *http.Request) (name string, role recordsv1.TokenRole, err error) {
	if text, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok {
		tok, err := identity.ParseToken(text)
		if err != nil {
			return "", 0, fmt.Errorf("%v: %w", err, errdefs.ErrUnauthenticated)
		}
		rec, err := n.tokens.Authenticate(r.Context(), tok)
		if err != nil {
			return tok.String(), 0, err
		}
		return tok.String(), rec.Role, nil
	}
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return "", 0, fmt.Errorf("neither a token nor a certificate was shown: %w", errdefs.ErrUnauthenticated)
	}
	peer, err := n.id.PeerOf(*r.TLS)
	if err == nil && peer.Expired {
		err = fmt.Errorf("certificate of node %s has ended: %w", peer.Node, errdefs.ErrUnauthenticated)
	}
	if err != nil {
		return "", 0, err
	}
	name = "node " + string(peer.Node)
	if err := checkRemoved(r.Context(), n.records, peer.Node); err != nil {
		return name, 0, err
	}
	return name, recordsv1.TokenRole_ADMIN, nil
}
