package apiserver

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/moraine-storage/moraine/agent/api/apitest"
	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	"github.com/moraine-storage/moraine/agent/client"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// Goal: each call there is has the least role that it should have; a call added
// later that changes something is not readable by accident.
func TestRoles(t *testing.T) {
	services := apiv1.File_moraine_proto.Services()
	count := map[Role]int{}
	for i := range services.Len() {
		s := services.Get(i)
		for j := range s.Methods().Len() {
			m := s.Methods().Get(j)
			got, want := needs(procedure(m)), Operator
			name := string(m.Name())
			switch {
			case s.Name() == "Nodes":
				want = Admin
			case strings.HasPrefix(name, "Get"), strings.HasPrefix(name, "List"), strings.HasPrefix(name, "Watch"), name == "RunDoctor", name == "DiffSnapshot":
				want = Reader
			}
			if got != want {
				t.Errorf("%s needs %v, want %v", procedure(m), got, want)
			}
			count[got]++
		}
	}
	if count[Reader] != len(readers) || count[Operator] == 0 || count[Admin] == 0 {
		t.Errorf("%v; %d calls of readers", count, len(readers))
	}
	if needs("/moraine.v2.Other/Call") != Admin || needs("/") != Admin {
		t.Error("what is not known needs less than the highest role")
	}
}

func procedure(m protoreflect.MethodDescriptor) string {
	return fmt.Sprintf("/%s/%s", m.Parent().FullName(), m.Name())
}

func selfSigned(t *testing.T) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"agent"}}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
}

// Goal: over TCP a caller does what its role allows and nothing else, an
// unknown one nothing, and paths that check for themselves are open; Close ends
// all of it, streams too.
func TestTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	roles := map[string]Role{"r": Reader, "o": Operator, "a": Admin, "n": Nobody}
	s, err := StartTCP(apitest.NewFake(apitest.Options{}), TCPOptions{
		Address: address, TLS: selfSigned(t),
		Authorize: func(r *http.Request) (string, Role, error) {
			who := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
			role, ok := roles[who]
			if !ok {
				return who, Nobody, fmt.Errorf("who: %w", errdefs.ErrUnauthenticated)
			}
			return who, role, nil
		},
		Open: map[string]http.Handler{"/open/": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "open") })},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	believe := &tls.Config{InsecureSkipVerify: true}
	for _, tt := range []struct {
		token       string
		list, write error
	}{
		{"r", nil, errdefs.ErrPermissionDenied},
		{"o", nil, nil},
		{"a", nil, nil},
		{"n", errdefs.ErrPermissionDenied, errdefs.ErrPermissionDenied},
		{"", errdefs.ErrUnauthenticated, errdefs.ErrUnauthenticated},
		{"x", errdefs.ErrUnauthenticated, errdefs.ErrUnauthenticated},
	} {
		c, err := client.NewTCP("https://"+address, believe, tt.token)
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.ListVolumes(ctx, &apiv1.ListVolumesRequest{})
		if !errors.Is(err, tt.list) {
			t.Errorf("%q lists: %v", tt.token, err)
		}
		_, err = c.CreateVolume(ctx, &apiv1.CreateVolumeRequest{Name: "v-" + tt.token, Spec: &apiv1.VolumeSpec{SizeBytes: 1 << 30}})
		if !errors.Is(err, tt.write) {
			t.Errorf("%q creates: %v", tt.token, err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	h := &http.Client{Transport: &http.Transport{TLSClientConfig: believe, DisableKeepAlives: true}}
	for path, want := range map[string]int{"/open/x": http.StatusOK, "/moraine.v1.Moraine/ListVolumes": http.StatusUnauthorized, "/": http.StatusUnauthorized} {
		resp, err := h.Get("https://" + address + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: %d, want %d", path, resp.StatusCode, want)
		}
	}
	c, err := client.NewTCP("https://"+address, believe, "r")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	streamed := make(chan error, 1)
	go func() {
		streamed <- c.WatchEvents(ctx, &apiv1.WatchEventsRequest{Follow: true}, func(*apiv1.Event) error { return nil })
	}()
	if _, err := c.GetStatus(ctx, &apiv1.GetStatusRequest{}); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}
	if err := <-streamed; err == nil {
		t.Error("a stream outlives the server")
	}
	if s.Err() != nil {
		t.Error(s.Err())
	}
	<-s.Done()
	for _, bad := range []string{"http://a:1", "https://a", "https://a:1/x", "https://u@a:1", "a:1", ""} {
		if _, err := client.NewTCP(bad, believe, ""); !errdefs.IsInvalidArgument(err) {
			t.Errorf("address %q: %v", bad, err)
		}
	}
	if _, err := StartTCP(apitest.NewFake(apitest.Options{}), TCPOptions{Address: address}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("without TLS: %v", err)
	}
}
