package identity

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/moraine-storage/moraine/agent/cluster/records"
	recordsv1 "github.com/moraine-storage/moraine/agent/cluster/records/v1"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// Tokens makes, lists and checks the tokens of a cluster.
type Tokens struct {
	store     *records.Store
	authority Hash
	now       func() time.Time
}

// NewTokens keeps tokens in a store; authority goes into those it makes.
func NewTokens(store *records.Store, authority Hash) *Tokens {
	return &Tokens{store: store, authority: authority, now: time.Now}
}

// CreateJoin makes a token with which one node may join within ttl: 0 is one
// hour, at most 7 days.
func (t *Tokens) CreateJoin(ctx context.Context, ttl time.Duration, description string) (Token, *recordsv1.Token, error) {
	if ttl == 0 {
		ttl = JoinTTL
	}
	if ttl < time.Second || ttl > JoinTTLMax {
		return Token{}, nil, fmt.Errorf("make join token: it would last %v: want between 1s and %v: %w", ttl, JoinTTLMax, errdefs.ErrInvalidArgument)
	}
	return t.create(ctx, &recordsv1.Token{Kind: recordsv1.TokenKind_TOKEN_JOIN, Description: description}, ttl)
}

// CreatePerson makes a token by which a person or a program calls the API with
// a role; ttl 0: it lasts until it is revoked.
func (t *Tokens) CreatePerson(ctx context.Context, role recordsv1.TokenRole, ttl time.Duration, description string) (Token, *recordsv1.Token, error) {
	if _, ok := recordsv1.TokenRole_name[int32(role)]; !ok || role == recordsv1.TokenRole_TOKEN_ROLE_UNSPECIFIED {
		return Token{}, nil, fmt.Errorf("make token: role: want reader, operator or admin: %w", errdefs.ErrInvalidArgument)
	}
	if ttl < 0 || ttl != 0 && ttl < time.Second {
		return Token{}, nil, fmt.Errorf("make token: it would last %v: want at least 1s, or nothing for one without end: %w", ttl, errdefs.ErrInvalidArgument)
	}
	return t.create(ctx, &recordsv1.Token{Kind: recordsv1.TokenKind_TOKEN_PERSON, Role: role, Description: description}, ttl)
}

func (t *Tokens) create(ctx context.Context, r *recordsv1.Token, ttl time.Duration) (Token, *recordsv1.Token, error) {
	if len(r.Description) > descriptionBytesMax || strings.ContainsAny(r.Description, "\x00\n\r") {
		return Token{}, nil, fmt.Errorf("make token: description: want at most %d bytes on one line: %w", descriptionBytesMax, errdefs.ErrInvalidArgument)
	}
	all, _, err := t.store.Tokens.List(ctx)
	if err != nil && len(all) == 0 {
		return Token{}, nil, fmt.Errorf("make token: %w", err)
	}
	if left := t.sweep(ctx, all); left >= tokensMax {
		return Token{}, nil, fmt.Errorf("make token: there are %d: revoke some: %w", left, errdefs.ErrResourceExhausted)
	}
	tok := newToken(r.Kind, t.authority)
	now := t.now()
	r.Id, r.SecretHash, r.CreatedAt = string(tok.ID), tok.hash(), timestamppb.New(now)
	if ttl != 0 {
		r.ExpiresAt = timestamppb.New(now.Add(ttl))
	}
	if _, err := t.store.Tokens.Create(ctx, r); err != nil {
		return Token{}, nil, fmt.Errorf("make token: %w", err)
	}
	return tok, r, nil
}

// sweep deletes join tokens that were spent long ago, and tells how many tokens
// are left. What it cannot delete now, a later call will.
func (t *Tokens) sweep(ctx context.Context, all []records.Versioned[*recordsv1.Token]) int {
	left := len(all)
	for _, v := range all {
		end := v.Record.ExpiresAt
		if v.Record.Kind != recordsv1.TokenKind_TOKEN_JOIN || end == nil || t.now().Before(end.AsTime().Add(spentKept)) {
			continue
		}
		if t.store.Tokens.Delete(ctx, v) == nil {
			left--
		}
	}
	return left
}

// List returns the tokens, without secrets (nobody has those) or their hashes.
func (t *Tokens) List(ctx context.Context) ([]*recordsv1.Token, error) {
	all, _, err := t.store.Tokens.List(ctx)
	out := make([]*recordsv1.Token, 0, len(all))
	for _, v := range all {
		v.Record.SecretHash = nil
		out = append(out, v.Record)
	}
	if err != nil {
		err = fmt.Errorf("list tokens: %w", err)
	}
	return out, err
}

// Revoke deletes the token whose identity begins with id, which must name one;
// NotFound when there is none.
func (t *Tokens) Revoke(ctx context.Context, id string) error {
	if len(id) < 4 {
		return fmt.Errorf("revoke token %q: want its identity, or the first four digits of it at least: %w", id, errdefs.ErrInvalidArgument)
	}
	all, _, err := t.store.Tokens.List(ctx)
	var hits []records.Versioned[*recordsv1.Token]
	for _, v := range all {
		if strings.HasPrefix(v.Record.Id, id) {
			hits = append(hits, v)
		}
	}
	switch {
	case len(hits) == 0 && err != nil:
		return fmt.Errorf("revoke token %.40q: %w", id, err)
	case len(hits) == 0:
		return fmt.Errorf("revoke token %.40q: %w", id, errdefs.ErrNotFound)
	case len(hits) > 1:
		return fmt.Errorf("revoke token %.40q: %d tokens begin so: %w", id, len(hits), errdefs.ErrInvalidArgument)
	}
	if err := t.store.Tokens.Delete(ctx, hits[0]); err != nil {
		return fmt.Errorf("revoke token %.40q: %w", id, err)
	}
	return nil
}

// Authenticate checks the token of a person and returns its record. All that a
// stranger learns is that the token is not good.
func (t *Tokens) Authenticate(ctx context.Context, tok Token) (*recordsv1.Token, error) {
	v, err := t.find(ctx, tok, recordsv1.TokenKind_TOKEN_PERSON)
	if err != nil {
		return nil, err
	}
	return v.Record, nil
}

// find reads the record of a token and checks kind, secret and time.
func (t *Tokens) find(ctx context.Context, tok Token, kind recordsv1.TokenKind) (records.Versioned[*recordsv1.Token], error) {
	none := records.Versioned[*recordsv1.Token]{}
	if tok.Kind != kind {
		return none, fmt.Errorf("token %s: it is not for this: %w", tok, errdefs.ErrUnauthenticated)
	}
	v, err := t.store.Tokens.Get(ctx, tok.ID)
	if err != nil && !errdefs.IsNotFound(err) {
		return none, fmt.Errorf("check token: %w", err)
	}
	if err != nil || !tok.matches(v.Record) {
		return none, fmt.Errorf("token %s: it is unknown, was revoked, or its secret is wrong: %w", tok, errdefs.ErrUnauthenticated)
	}
	if end := v.Record.ExpiresAt; end != nil && t.now().After(end.AsTime()) {
		return none, fmt.Errorf("token %s: it has expired at %s: %w", tok, end.AsTime().UTC().Format(time.RFC3339), errdefs.ErrUnauthenticated)
	}
	return v, nil
}

// Use is one use of a join token.
type Use struct {
	// Change goes into the transaction that makes the node's record; nil in a
	// repeated call of the node that has used the token already.
	Change *records.Change
	// Repeated: the node has joined with this token before.
	Repeated bool
}

// Using checks a join token for a node with a key and returns how to use it up.
func (t *Tokens) Using(ctx context.Context, tok Token, node records.ID, key Hash) (Use, error) {
	v, err := t.find(ctx, tok, recordsv1.TokenKind_TOKEN_JOIN)
	if err != nil {
		return Use{}, err
	}
	if v.Record.UsedBy != "" {
		if v.Record.UsedBy == string(node) && bytes.Equal(v.Record.UsedKeyHash, key[:]) {
			return Use{Repeated: true}, nil
		}
		return Use{}, fmt.Errorf("token %s: node %s has used it at %s; make another one: %w", tok, v.Record.UsedBy, v.Record.UsedAt.AsTime().UTC().Format(time.RFC3339), errdefs.ErrUnauthenticated)
	}
	v.Record.UsedBy, v.Record.UsedKeyHash, v.Record.UsedAt = string(node), bytes.Clone(key[:]), timestamppb.New(t.now())
	c := t.store.Tokens.Updating(v)
	return Use{Change: &c}, nil
}
