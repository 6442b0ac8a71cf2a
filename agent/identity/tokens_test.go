package identity

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/moraine-storage/moraine/agent/cluster/memkv"
	"github.com/moraine-storage/moraine/agent/cluster/records"
	recordsv1 "github.com/moraine-storage/moraine/agent/cluster/records/v1"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newTokens(t *testing.T) (*Tokens, *records.Store) {
	t.Helper()
	kv := memkv.New(memkv.Options{}).Client()
	t.Cleanup(func() { kv.Close() })
	st := records.New(kv)
	return NewTokens(st, Hash{1, 2, 3}), st
}

// join uses a token up for a node, as the join call does.
func join(ctx context.Context, t *Tokens, st *records.Store, tok Token, node records.ID, key Hash) error {
	u, err := t.Using(ctx, tok, node, key)
	if err != nil || u.Repeated {
		return err
	}
	_, err = st.Commit(ctx, *u.Change)
	return err
}

// Goal: a join token works once, for one node, in its time, and its use can be
// repeated by that node alone.
func TestJoinToken(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	tokens, st := newTokens(t)
	tok, rec, err := tokens.CreateJoin(ctx, 0, "rack 7")
	if err != nil {
		t.Fatal(err)
	}
	if got := rec.ExpiresAt.AsTime().Sub(rec.CreatedAt.AsTime()); got != JoinTTL {
		t.Errorf("lasts %v", got)
	}
	tok, err = ParseToken(" " + tok.Reveal() + "\n")
	if err != nil || tok.Authority != (Hash{1, 2, 3}) {
		t.Fatalf("%v, %v", tok, err)
	}
	node, key := records.NewID(), Hash{9}
	wrong := tok
	wrong.secret[0] ^= 1
	unknown := tok
	unknown.ID = records.NewID()
	asPerson := tok
	asPerson.Kind = recordsv1.TokenKind_TOKEN_PERSON
	for name, bad := range map[string]Token{"wrong secret": wrong, "unknown": unknown, "another kind": asPerson} {
		if err := join(ctx, tokens, st, bad, node, key); !errors.Is(err, errdefs.ErrUnauthenticated) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := tokens.Authenticate(ctx, tok); !errors.Is(err, errdefs.ErrUnauthenticated) {
		t.Errorf("a join token calls the API: %v", err)
	}
	if _, err := tokens.Authenticate(ctx, asPerson); !errors.Is(err, errdefs.ErrUnauthenticated) {
		t.Errorf("a join token calls the API as a person's: %v", err)
	}
	for range 2 { // the second is the repeated call after a lost answer
		if err := join(ctx, tokens, st, tok, node, key); err != nil {
			t.Fatal(err)
		}
	}
	for name, err := range map[string]error{
		"another node":           join(ctx, tokens, st, tok, records.NewID(), key),
		"another key":            join(ctx, tokens, st, tok, node, Hash{8}),
		"wrong secret, repeated": join(ctx, tokens, st, wrong, node, key),
	} {
		if !errors.Is(err, errdefs.ErrUnauthenticated) {
			t.Errorf("%s: %v", name, err)
		}
	}
	tokens.now = func() time.Time { return time.Now().Add(2 * JoinTTL) }
	if err := join(ctx, tokens, st, tok, node, key); !errors.Is(err, errdefs.ErrUnauthenticated) || !strings.Contains(err.Error(), "expired") {
		t.Errorf("expired: %v", err)
	}
}

// Goal: of many nodes that use one token at once, one gets in.
func TestJoinTokenRace(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	tokens, st := newTokens(t)
	tok, _, err := tokens.CreateJoin(ctx, time.Minute, "")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	errs := make([]error, 16)
	for i := range errs {
		wg.Go(func() { errs[i] = join(ctx, tokens, st, tok, records.NewID(), Hash{byte(i)}) })
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		switch {
		case err == nil:
			won++
		case !errors.Is(err, errdefs.ErrUnauthenticated) && !errors.Is(err, errdefs.ErrAborted):
			t.Error(err)
		}
	}
	if won != 1 {
		t.Errorf("%d nodes have joined with one token", won)
	}
}

// Goal: tokens of people have a role, can be limited and revoked, and are
// listed without what would help to guess them.
func TestPersonToken(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	tokens, st := newTokens(t)
	tok, _, err := tokens.CreatePerson(ctx, recordsv1.TokenRole_OPERATOR, 0, "ci")
	if err != nil {
		t.Fatal(err)
	}
	short, _, err := tokens.CreatePerson(ctx, recordsv1.TokenRole_READER, time.Hour, "")
	if err != nil {
		t.Fatal(err)
	}
	if r, err := tokens.Authenticate(ctx, tok); err != nil || r.Role != recordsv1.TokenRole_OPERATOR {
		t.Errorf("%v, %v", r, err)
	}
	if err := join(ctx, tokens, st, tok, records.NewID(), Hash{}); !errors.Is(err, errdefs.ErrUnauthenticated) {
		t.Errorf("joined with a person's token: %v", err)
	}
	list, err := tokens.List(ctx)
	if err != nil || len(list) != 2 {
		t.Fatalf("%v, %v", list, err)
	}
	for _, r := range list {
		if r.SecretHash != nil {
			t.Errorf("listed with its hash: %v", r)
		}
	}
	tokens.now = func() time.Time { return time.Now().Add(24 * time.Hour) }
	if _, err := tokens.Authenticate(ctx, short); !errors.Is(err, errdefs.ErrUnauthenticated) {
		t.Errorf("expired: %v", err)
	}
	if _, err := tokens.Authenticate(ctx, tok); err != nil {
		t.Errorf("one without end: %v", err)
	}
	for _, id := range []string{"", "abc", "zzzz"} {
		if err := tokens.Revoke(ctx, id); err == nil {
			t.Errorf("revoked %q", id)
		}
	}
	if err := tokens.Revoke(ctx, string(tok.ID)[:12]); err != nil {
		t.Fatal(err)
	}
	if _, err := tokens.Authenticate(ctx, tok); !errors.Is(err, errdefs.ErrUnauthenticated) {
		t.Errorf("revoked: %v", err)
	}
	if err := tokens.Revoke(ctx, string(tok.ID)); !errdefs.IsNotFound(err) {
		t.Errorf("revoked twice: %v", err)
	}
}

// Goal: what cannot be is refused when the token is made.
func TestCreateRefused(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	tokens, _ := newTokens(t)
	for name, make := range map[string]func() error{
		"join for long":     func() error { _, _, err := tokens.CreateJoin(ctx, JoinTTLMax+1, ""); return err },
		"join for nothing":  func() error { _, _, err := tokens.CreateJoin(ctx, -time.Second, ""); return err },
		"long description":  func() error { _, _, err := tokens.CreateJoin(ctx, 0, strings.Repeat("x", 257)); return err },
		"two lines":         func() error { _, _, err := tokens.CreateJoin(ctx, 0, "a\nb"); return err },
		"no role":           func() error { _, _, err := tokens.CreatePerson(ctx, 0, 0, ""); return err },
		"unknown role":      func() error { _, _, err := tokens.CreatePerson(ctx, 99, 0, ""); return err },
		"person for moment": func() error { _, _, err := tokens.CreatePerson(ctx, 1, time.Millisecond, ""); return err },
	} {
		if err := make(); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Goal: spent join tokens go away after a while, others stay.
func TestSweep(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	tokens, _ := newTokens(t)
	if _, _, err := tokens.CreateJoin(ctx, 0, "old"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := tokens.CreatePerson(ctx, recordsv1.TokenRole_ADMIN, time.Hour, "person"); err != nil {
		t.Fatal(err)
	}
	tokens.now = func() time.Time { return time.Now().Add(JoinTTL + spentKept + time.Minute) }
	if _, _, err := tokens.CreateJoin(ctx, 0, "new"); err != nil {
		t.Fatal(err)
	}
	list, err := tokens.List(ctx)
	got := map[string]bool{}
	for _, r := range list {
		got[r.Description] = true
	}
	if err != nil || len(list) != 2 || !got["person"] || !got["new"] {
		t.Errorf("%v, %v", list, err)
	}
}

// Goal: no way of printing a token but Reveal shows its secret.
func TestTokenHidden(t *testing.T) {
	t.Parallel()
	tok := newToken(recordsv1.TokenKind_TOKEN_JOIN, Hash{})
	secret := strings.Split(tok.Reveal(), ".")[2]
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		for _, v := range []any{tok, &tok, []Token{tok}, struct{ T Token }{tok}} {
			out := fmt.Sprintf(verb, v)
			if strings.Contains(out, secret) || strings.Contains(out, fmt.Sprintf("%x", tok.secret)) || strings.Contains(out, fmt.Sprint(tok.secret[:8])[1:]) {
				t.Errorf("%s of %T shows the secret: %s", verb, v, out)
			}
		}
	}
	for _, bad := range []string{"", "x", tok.Reveal()[1:], tok.Reveal()[:120], tok.Reveal() + ".x", tok.Reveal() + "A", strings.Replace(tok.Reveal(), "join", "else", 1)} {
		_, err := ParseToken(bad)
		if !errdefs.IsInvalidArgument(err) || strings.Contains(err.Error(), secret[:8]) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add(newToken(recordsv1.TokenKind_TOKEN_JOIN, Hash{1}).Reveal())
	f.Add(newToken(recordsv1.TokenKind_TOKEN_PERSON, Hash{}).Reveal())
	f.Add("moraine-join...")
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := ParseToken(s)
		if err != nil {
			return
		}
		if again, err := ParseToken(tok.Reveal()); err != nil || again != tok {
			t.Errorf("%q: %v", s, err)
		}
		if tok.Reveal() != strings.TrimSpace(s) {
			t.Errorf("%q has two forms", s)
		}
	})
}
