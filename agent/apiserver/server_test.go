package apiserver_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/moraine-storage/moraine/agent/api"
	"github.com/moraine-storage/moraine/agent/api/apitest"
	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	"github.com/moraine-storage/moraine/agent/api/v1/apiv1connect"
	"github.com/moraine-storage/moraine/agent/apiserver"
	"github.com/moraine-storage/moraine/agent/client"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve starts a server over svc and returns its socket.
func serve(t *testing.T, svc api.Service, o apiserver.Options) string {
	t.Helper()
	if o.Socket == "" {
		o.Socket = filepath.Join(t.TempDir(), "agent.sock")
	}
	s, err := apiserver.Start(svc, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return o.Socket
}

func dial(t *testing.T, socket string) *client.Client {
	t.Helper()
	c, err := client.New(socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// overHTTP is an HTTP client whose connections all go to socket.
func overHTTP(t *testing.T, socket string, h2 bool) *http.Client {
	t.Helper()
	var p http.Protocols
	p.SetHTTP1(!h2)
	p.SetUnencryptedHTTP2(h2)
	tr := &http.Transport{Protocols: &p, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func TestClientConforms(t *testing.T) {
	fake := apitest.NewFake(apitest.Options{})
	apitest.Run(t, apitest.Harness{
		New: func(t *testing.T) api.Service { return dial(t, serve(t, fake, apiserver.Options{})) },
		Write: func(t *testing.T, _ api.Service, volume string, off, length int64) {
			if err := fake.Write(volume, off, length); err != nil {
				t.Fatal(err)
			}
		},
	})
}

// Every protocol of the handler carries calls, streams and errors.
func TestProtocols(t *testing.T) {
	for name, tt := range map[string]struct {
		h2   bool
		opts []connect.ClientOption
	}{
		"connect http1":      {false, nil},
		"connect json http1": {false, []connect.ClientOption{connect.WithProtoJSON()}},
		"connect h2c":        {true, nil},
		"grpc":               {true, []connect.ClientOption{connect.WithGRPC()}},
		"grpc-web http1":     {false, []connect.ClientOption{connect.WithGRPCWeb()}},
		"grpc json":          {true, []connect.ClientOption{connect.WithGRPC(), connect.WithProtoJSON()}},
	} {
		t.Run(name, func(t *testing.T) {
			socket := serve(t, apitest.NewFake(apitest.Options{}), apiserver.Options{})
			c := apiv1connect.NewMoraineClient(overHTTP(t, socket, tt.h2), "http://agent", tt.opts...)
			v, err := c.CreateVolume(t.Context(), &apiv1.CreateVolumeRequest{Name: "pg", Spec: &apiv1.VolumeSpec{SizeBytes: 1 << 30}})
			if err != nil || v.Spec.SizeBytes != 1<<30 {
				t.Fatalf("create: %v, %v", v, err)
			}
			_, err = c.GetVolume(t.Context(), &apiv1.GetVolumeRequest{Name: "nope"})
			if connect.CodeOf(err) != connect.CodeNotFound {
				t.Errorf("get of nothing: %v", err)
			}
			s, err := c.WatchEvents(t.Context(), &apiv1.WatchEventsRequest{})
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for s.Receive() {
				n++
			}
			if err := errors.Join(s.Err(), s.Close()); err != nil || n != 1 {
				t.Errorf("%d events, %v", n, err)
			}
		})
	}
}

// A stock gRPC client finds the codes of the API where it looks for them.
func TestRealGRPCClient(t *testing.T) {
	socket := serve(t, apitest.NewFake(apitest.Options{}), apiserver.Options{})
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	v := &apiv1.Volume{}
	err = conn.Invoke(ctx, apiv1connect.MoraineCreateVolumeProcedure, &apiv1.CreateVolumeRequest{Name: "pg"}, v)
	if err != nil || v.Name != "pg" {
		t.Fatalf("create: %v %v", v, err)
	}
	err = conn.Invoke(ctx, apiv1connect.MoraineGetVolumeProcedure, &apiv1.GetVolumeRequest{Name: "nope"}, v)
	if status.Code(err) != codes.NotFound {
		t.Errorf("get of nothing: %v", err)
	}
}

// HTTP and JSON by hand, as with curl.
func TestPlainJSON(t *testing.T) {
	socket := serve(t, apitest.NewFake(apitest.Options{}), apiserver.Options{})
	c := overHTTP(t, socket, false)
	post := func(call, body string) (int, string) {
		r, err := c.Post("http://agent/moraine.v1.Moraine/"+call, "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		return r.StatusCode, string(b)
	}
	code, body := post("CreateVolume", `{"name":"pg","spec":{"sizeBytes":"1073741824"}}`)
	var v struct{ Name string }
	if err := json.Unmarshal([]byte(body), &v); code != 200 || err != nil || v.Name != "pg" {
		t.Errorf("create: %d %s", code, body)
	}
	for call, tt := range map[string]struct {
		body string
		code int
		text string
	}{
		"GetVolume":    {`{"name":"nope"}`, 404, "not_found"},
		"CreateVolume": {`{"name":"pg","spec":{"sizeBytes":"2"}}`, 409, "already_exists"},
		"ResizeVolume": {`{"name":"pg","siez_bytes":1}`, 400, "invalid_argument"},
		"DeleteVolume": {`{"name":`, 400, "invalid_argument"},
		"NoSuchCall":   {`{}`, 404, ""},
		"ListVolumes":  {`{"pageToken":"` + strings.Repeat("x", 1<<20) + `"}`, 429, "resource_exhausted"},
	} {
		if code, body := post(call, tt.body); code != tt.code || !strings.Contains(body, tt.text) {
			t.Errorf("%s: %d %.200s, want %d %s", call, code, body, tt.code, tt.text)
		}
	}
}

// Every class crosses a real connection in both directions, with and without
// the doubt whether it happened, in each protocol; the text is kept.
func TestErrorClasses(t *testing.T) {
	classes := []error{
		errdefs.ErrInvalidArgument, errdefs.ErrOutOfRange, errdefs.ErrNotFound, errdefs.ErrAlreadyExists,
		errdefs.ErrPermissionDenied, errdefs.ErrUnauthenticated, errdefs.ErrFailedPrecondition, errdefs.ErrAborted,
		errdefs.ErrResourceExhausted, errdefs.ErrUnavailable, errdefs.ErrUnimplemented, errdefs.ErrDataLoss,
		errdefs.ErrInternal, context.Canceled, context.DeadlineExceeded,
	}
	fake := apitest.NewFake(apitest.Options{})
	c := dial(t, serve(t, fake, apiserver.Options{}))
	for _, class := range classes {
		for _, maybe := range []bool{false, true} {
			err := fmt.Errorf("frob volume \"pg\": gadget 7: %w", class)
			if maybe {
				err = fmt.Errorf("%w (%w)", err, errdefs.ErrIndeterminate)
			}
			fake.SetHook(func(context.Context, string, proto.Message) error { return err })
			_, unary := c.GetVolume(t.Context(), &apiv1.GetVolumeRequest{Name: "x"})
			stream := c.WatchEvents(t.Context(), &apiv1.WatchEventsRequest{}, func(*apiv1.Event) error { return nil })
			for how, got := range map[string]error{"unary": unary, "stream": stream} {
				if got == nil || got.Error() != err.Error() {
					t.Errorf("%s: text %v, want %v", how, got, err)
				}
				if errdefs.Indeterminate(got) != maybe {
					t.Errorf("%s %v: indeterminate is %v", how, class, !maybe)
				}
				for _, other := range classes {
					is, want := errors.Is(got, other), other == class
					if class == context.DeadlineExceeded && other == errdefs.ErrUnavailable {
						want = true
					}
					if is != want {
						t.Errorf("%s %v: errors.Is %v gives %v", how, class, other, is)
					}
				}
			}
		}
	}
	fake.SetHook(func(context.Context, string, proto.Message) error { return errors.New("no class") })
	if _, err := c.GetVolume(t.Context(), &apiv1.GetVolumeRequest{}); !errors.Is(err, errdefs.ErrInternal) {
		t.Errorf("an error without a class arrives as %v", err)
	}
	fake.SetHook(func(context.Context, string, proto.Message) error {
		return fmt.Errorf("%s\xff: %w", strings.Repeat("ü\n", 100000), errdefs.ErrAborted)
	})
	if _, err := c.GetVolume(t.Context(), &apiv1.GetVolumeRequest{}); !errors.Is(err, errdefs.ErrAborted) || len(err.Error()) > 5000 {
		t.Errorf("an error with a huge text arrives with %d bytes: %.80v", len(err.Error()), err)
	}
}

func TestPanicEndsOneCall(t *testing.T) {
	var logged bytes.Buffer
	log := hclog.New(&hclog.LoggerOptions{Output: &logged, Level: hclog.Info})
	fake := apitest.NewFake(apitest.Options{})
	socket := filepath.Join(t.TempDir(), "s")
	s, err := apiserver.Start(fake, apiserver.Options{Socket: socket, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	c := dial(t, socket)
	fake.SetHook(func(context.Context, string, proto.Message) error { panic("broken invariant 4711") })
	_, err = c.CreateVolume(t.Context(), &apiv1.CreateVolumeRequest{Name: "a"})
	if !errors.Is(err, errdefs.ErrInternal) || !errdefs.Indeterminate(err) || !strings.Contains(err.Error(), "4711") {
		t.Errorf("a panic gives %v", err)
	}
	if err := c.WatchEvents(t.Context(), &apiv1.WatchEventsRequest{}, nil); !errors.Is(err, errdefs.ErrInternal) {
		t.Errorf("a panic in a stream gives %v", err)
	}
	fake.SetHook(nil)
	if _, err := c.GetStatus(t.Context(), &apiv1.GetStatusRequest{}); err != nil {
		t.Errorf("the next call: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if !strings.Contains(logged.String(), "TestPanicEndsOneCall") || !strings.Contains(logged.String(), "CreateVolume") {
		t.Errorf("the log lacks the stack: %s", logged.String())
	}
}

func TestOtherUsersAreRefused(t *testing.T) {
	socket := serve(t, apitest.NewFake(apitest.Options{}), apiserver.Options{Allow: func(uint32) bool { return false }})
	st, err := os.Stat(socket)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode of the socket: %v %v", st.Mode(), err)
	}
	_, err = dial(t, socket).GetStatus(t.Context(), &apiv1.GetStatusRequest{})
	if !errors.Is(err, errdefs.ErrPermissionDenied) {
		t.Errorf("a refused user gets %v", err)
	}
	r, err := overHTTP(t, socket, false).Get("http://agent/")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusForbidden {
		t.Errorf("plain HTTP of a refused user: %s", r.Status)
	}
}

func TestSocketPaths(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]error{
		"":                             errdefs.ErrInvalidArgument,
		"relative.sock":                errdefs.ErrInvalidArgument,
		"/" + strings.Repeat("x", 120): errdefs.ErrInvalidArgument,
		file:                           errdefs.ErrFailedPrecondition,
	} {
		s, err := apiserver.Start(apitest.NewFake(apitest.Options{}), apiserver.Options{Socket: path})
		if !errors.Is(err, want) {
			t.Errorf("socket %q: %v, want %v", path, err, want)
		}
		if err == nil {
			_ = s.Close()
		}
	}
	if b, err := os.ReadFile(file); string(b) != "precious" {
		t.Errorf("the file in the way: %q %v", b, err)
	}
}

func TestStaleSocketIsReplacedALiveOneIsNot(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_, err = apiserver.Start(apitest.NewFake(apitest.Options{}), apiserver.Options{Socket: path})
	if !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("start on a socket that answers: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	serve(t, apitest.NewFake(apitest.Options{}), apiserver.Options{Socket: path})
	_, err = apiserver.Start(apitest.NewFake(apitest.Options{}), apiserver.Options{Socket: path})
	if !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("start beside another agent: %v", err)
	}
	if _, err := dial(t, path).GetStatus(t.Context(), &apiv1.GetStatusRequest{}); err != nil {
		t.Errorf("the first agent after that: %v", err)
	}
}

// An agent whose directory was removed does not take the socket of the next
// one with it.
func TestCloseLeavesTheSocketOfAnother(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	path := filepath.Join(dir, "agent.sock")
	old, err := apiserver.Start(apitest.NewFake(apitest.Options{}), apiserver.Options{Socket: path})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	serve(t, apitest.NewFake(apitest.Options{}), apiserver.Options{Socket: path})
	if err := old.Close(); err != nil {
		t.Errorf("close of the old one: %v", err)
	}
	if _, err := dial(t, path).GetStatus(t.Context(), &apiv1.GetStatusRequest{}); err != nil {
		t.Errorf("the new one after that: %v", err)
	}
}

// A new agent can listen as soon as the old one is closed, many times.
func TestRestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	fake := apitest.NewFake(apitest.Options{})
	c := dial(t, path)
	for range 5 {
		s, err := apiserver.Start(fake, apiserver.Options{Socket: path})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.GetStatus(t.Context(), &apiv1.GetStatusRequest{}); err != nil {
			t.Errorf("after a restart: %v", err)
		}
		for range 2 {
			if err := s.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		}
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket after Close: %v", err)
		}
		_, err = c.GetStatus(t.Context(), &apiv1.GetStatusRequest{})
		if !errors.Is(err, errdefs.ErrUnavailable) {
			t.Errorf("without an agent: %v", err)
		}
	}
}

// Drain lets a unary call finish and ends a stream.
func TestDrain(t *testing.T) {
	fake := apitest.NewFake(apitest.Options{})
	path := filepath.Join(t.TempDir(), "agent.sock")
	s, err := apiserver.Start(fake, apiserver.Options{Socket: path})
	if err != nil {
		t.Fatal(err)
	}
	c := dial(t, path)
	inCall, goOn := make(chan struct{}), make(chan struct{})
	fake.SetHook(func(_ context.Context, call string, _ proto.Message) error {
		if call == "CreateVolume" {
			close(inCall)
			<-goOn
		}
		return nil
	})
	created, watched := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := c.CreateVolume(context.Background(), &apiv1.CreateVolumeRequest{Name: "pg"})
		created <- err
	}()
	go func() {
		watched <- c.WatchEvents(context.Background(), &apiv1.WatchEventsRequest{Follow: true}, func(*apiv1.Event) error { return nil })
	}()
	<-inCall
	drained := make(chan error, 1)
	go func() { drained <- s.Drain(context.Background()) }()
	if err := <-watched; !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("the stream ended with %v", err)
	}
	select {
	case err := <-drained:
		t.Fatalf("drained with a call in flight: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(goOn)
	if err := <-created; err != nil {
		t.Errorf("the call in flight: %v", err)
	}
	if err := <-drained; err != nil {
		t.Errorf("drain: %v", err)
	}
	if err := errors.Join(s.Drain(t.Context()), s.Close(), s.Err()); err != nil {
		t.Errorf("again: %v", err)
	}
}

// A call cut off in the middle may have happened, and the client says so.
func TestCutOffCallIsIndeterminate(t *testing.T) {
	fake := apitest.NewFake(apitest.Options{})
	path := filepath.Join(t.TempDir(), "agent.sock")
	s, err := apiserver.Start(fake, apiserver.Options{Socket: path})
	if err != nil {
		t.Fatal(err)
	}
	c := dial(t, path)
	inCall := make(chan struct{})
	fake.SetHook(func(ctx context.Context, _ string, _ proto.Message) error {
		close(inCall)
		<-ctx.Done()
		return ctx.Err()
	})
	done := make(chan error, 1)
	go func() {
		_, err := c.DeleteVolume(context.Background(), &apiv1.DeleteVolumeRequest{Name: "pg"})
		done <- err
	}()
	<-inCall
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	err = <-done
	if !errors.Is(err, errdefs.ErrUnavailable) || !errdefs.Indeterminate(err) || client.IsNotReached(err) {
		t.Errorf("a call cut off: %v", err)
	}
	_, err = c.DeleteVolume(t.Context(), &apiv1.DeleteVolumeRequest{Name: "pg"})
	if !errors.Is(err, errdefs.ErrUnavailable) || errdefs.Indeterminate(err) || !client.IsNotReached(err) {
		t.Errorf("a call to nobody: %v", err)
	}
	if !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), path) {
		t.Errorf("a call to nobody says %v", err)
	}
}

func TestDeadlineReachesTheService(t *testing.T) {
	fake := apitest.NewFake(apitest.Options{})
	c := dial(t, serve(t, fake, apiserver.Options{}))
	fake.SetHook(func(ctx context.Context, _ string, _ proto.Message) error {
		if _, ok := ctx.Deadline(); !ok {
			return fmt.Errorf("no deadline: %w", errdefs.ErrInternal)
		}
		<-ctx.Done()
		return ctx.Err()
	})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := c.GetVolume(ctx, &apiv1.GetVolumeRequest{Name: "x"})
	if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("past the deadline: %v", err)
	}
}

// Bytes that are no HTTP, and a peer that says nothing, hurt nobody else.
func TestGarbage(t *testing.T) {
	socket := serve(t, apitest.NewFake(apitest.Options{}), apiserver.Options{})
	for _, garbage := range []string{
		"\x00\x01\x02\x03\xff\xff", "GET\r\n\r\n", strings.Repeat("A", 1<<20),
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + strings.Repeat("\xff", 100),
		"POST /moraine.v1.Moraine/GetStatus HTTP/1.1\r\nHost: a\r\nContent-Type: application/grpc\r\nContent-Length: 5\r\n\r\n\x00\xff\xff\xff\xff",
	} {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write([]byte(garbage)) // the server may close it before it has all
		defer conn.Close()
	}
	if _, err := dial(t, socket).GetStatus(t.Context(), &apiv1.GetStatusRequest{}); err != nil {
		t.Errorf("after garbage: %v", err)
	}
}
