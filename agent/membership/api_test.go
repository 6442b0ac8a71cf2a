package membership

import (
	"context"
	"crypto/tls"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	recordsv1 "github.com/moraine-storage/moraine/agent/cluster/records/v1"
	"github.com/moraine-storage/moraine/agent/identity"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// Goal: the calls for nodes and tokens, good and bad; a token's secret is in
// one answer; callers over TCP are who they say.
func TestAPI(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	a := newHost(t, "a", true)
	a.up()
	svc := a.n.API()
	user, err := svc.CreateToken(ctx, &apiv1.CreateTokenRequest{Kind: "user", Role: "operator", Description: "ci"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := svc.CreateToken(ctx, &apiv1.CreateTokenRequest{Kind: "join", Ttl: durationpb.New(time.Minute)}); err != nil {
		t.Fatal(err)
	}
	for name, r := range map[string]*apiv1.CreateTokenRequest{
		"no kind":        {},
		"no role":        {Kind: "user"},
		"unknown role":   {Kind: "user", Role: "root"},
		"join with role": {Kind: "join", Role: "admin"},
		"for nothing":    {Kind: "join", Ttl: durationpb.New(0)},
		"for less":       {Kind: "user", Role: "admin", Ttl: durationpb.New(-time.Hour)},
		"no duration":    {Kind: "user", Role: "admin", Ttl: &durationpb.Duration{Seconds: 1, Nanos: -1}},
	} {
		if _, err := svc.CreateToken(ctx, r); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for kind, want := range map[string]int{"": 2, "join": 1, "user": 1} {
		l, err := svc.ListTokens(ctx, &apiv1.ListTokensRequest{Kind: kind})
		if err != nil || len(l.Tokens) != want || strings.Contains(l.String(), strings.Split(user.Secret, ".")[2]) {
			t.Errorf("kind %q: %v, %v", kind, l, err)
		}
	}
	if _, err := svc.ListTokens(ctx, &apiv1.ListTokensRequest{Kind: "x"}); !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
	if _, err := svc.RemoveNode(ctx, &apiv1.RemoveNodeRequest{Name: "a", Force: true}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("removed itself: %v", err)
	}
	if _, err := svc.UpdateNode(ctx, &apiv1.UpdateNodeRequest{Name: "b", Draining: true}); !errdefs.IsNotFound(err) {
		t.Errorf("drained nobody: %v", err)
	}

	request := func(token string, certs *identity.Identity) *http.Request {
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://a/", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		r.TLS = &tls.ConnectionState{}
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		if certs != nil {
			cert, err := certs.ClientTLS(identity.Who{}).GetClientCertificate(nil)
			if err != nil {
				t.Fatal(err)
			}
			r.TLS.PeerCertificates = append(r.TLS.PeerCertificates, cert.Leaf)
		}
		return r
	}
	if _, role, err := a.n.Authorize(request(user.Secret, nil)); err != nil || role != recordsv1.TokenRole_OPERATOR {
		t.Errorf("token: %v, %v", role, err)
	}
	if _, role, err := a.n.Authorize(request("", a.n.Identity())); err != nil || role != recordsv1.TokenRole_ADMIN {
		t.Errorf("node: %v, %v", role, err)
	}
	other := newHost(t, "other", true)
	other.up()
	for name, r := range map[string]*http.Request{
		"nobody": request("", nil), "garbage": request("x", nil), "a good node with a bad token": request("x", a.n.Identity()),
		"a node of another cluster": request("", other.n.Identity()),
	} {
		if _, role, err := a.n.Authorize(r); err == nil || role != 0 || !errors.Is(err, errdefs.ErrUnauthenticated) && !errors.Is(err, errdefs.ErrPermissionDenied) {
			t.Errorf("%s: %v, %v", name, role, err)
		}
	}
	if _, err := svc.RevokeToken(ctx, &apiv1.RevokeTokenRequest{Id: user.Token.Id}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.n.Authorize(request(user.Secret, nil)); !errors.Is(err, errdefs.ErrUnauthenticated) {
		t.Errorf("revoked: %v", err)
	}
}
