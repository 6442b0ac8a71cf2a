package identity

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"strings"

	"github.com/moraine-storage/moraine/agent/cluster/records"
	recordsv1 "github.com/moraine-storage/moraine/agent/cluster/records/v1"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// Token is a token with its secret, as its holder has it:
//
//	KIND "." ID "." SECRET "." AUTHORITY
//
// KIND is moraine-join or moraine-user, ID the 32 digits by which the token is
// listed and revoked, SECRET 32 random bytes and AUTHORITY the SHA-256 of the
// certificate of the cluster's authority, both base64url without padding.
type Token struct {
	Kind      recordsv1.TokenKind
	ID        records.ID
	Authority Hash

	secret [32]byte
}

// kinds are the words that tokens begin with.
var kinds = map[recordsv1.TokenKind]string{
	recordsv1.TokenKind_TOKEN_JOIN:   "moraine-join",
	recordsv1.TokenKind_TOKEN_PERSON: "moraine-user",
}

func newToken(kind recordsv1.TokenKind, authority Hash) Token {
	t := Token{Kind: kind, ID: records.NewID(), Authority: authority}
	rand.Read(t.secret[:]) // never fails: the runtime ends the process instead
	return t
}

// ParseToken reads a token. Its errors do not quote it.
func ParseToken(s string) (Token, error) {
	bad := func(what string) (Token, error) {
		return Token{}, fmt.Errorf("token: %s: %w", what, errdefs.ErrInvalidArgument)
	}
	parts := strings.Split(strings.TrimSpace(s), ".")
	if len(parts) != 4 {
		return bad("want four parts with dots between them, as it was printed when it was made")
	}
	t := Token{}
	for kind, word := range kinds {
		if parts[0] == word {
			t.Kind = kind
		}
	}
	if t.Kind == 0 {
		return bad("want one that begins with moraine-join or moraine-user")
	}
	id, err := records.ParseID(parts[1])
	if err != nil {
		return bad("its identity is not 32 digits; was it cut?")
	}
	t.ID = id
	for _, p := range []struct {
		text string
		into []byte
	}{{parts[2], t.secret[:]}, {parts[3], t.Authority[:]}} {
		b, err := base64.RawURLEncoding.Strict().DecodeString(p.text)
		if err != nil || len(b) != len(p.into) {
			return bad("it is not complete; was it cut?")
		}
		copy(p.into, b)
	}
	return t, nil
}

// Reveal returns the token as its holder needs it. Print it once.
func (t Token) Reveal() string {
	enc := base64.RawURLEncoding
	return strings.Join([]string{kinds[t.Kind], string(t.ID), enc.EncodeToString(t.secret[:]), enc.EncodeToString(t.Authority[:])}, ".")
}

// String names the token without its secret.
func (t Token) String() string { return kinds[t.Kind] + "." + string(t.ID) }

// GoString and Format keep the secret out of %#v and all other verbs.
func (t Token) GoString() string { return t.String() }

// Format implements fmt.Formatter.
func (t Token) Format(f fmt.State, _ rune) { fmt.Fprint(f, t.String()) }

func (t Token) hash() []byte {
	h := sha256.Sum256(t.secret[:])
	return h[:]
}

// matches compares in constant time.
func (t Token) matches(r *recordsv1.Token) bool {
	return r.Kind == t.Kind && subtle.ConstantTimeCompare(t.hash(), r.SecretHash) == 1
}
