package errdefs_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// failing answers every Check with the error that the test has set.
type failing struct {
	grpc_health_v1.UnimplementedHealthServer
	fail func() error
}

func (f *failing) Check(context.Context, *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	return nil, f.fail()
}

// serve starts a real gRPC server on a unix socket and returns a client of it.
func serve(t *testing.T, f *failing) grpc_health_v1.HealthClient {
	t.Helper()
	sock := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(s, f)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	conn, err := grpc.NewClient("unix:"+sock, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		s.Stop()
		<-done
	})
	return grpc_health_v1.NewHealthClient(conn)
}

// TestClassesOverWire: each class, wrapped, keeps itself, its text and whether
// it may have happened over a real connection, and gains no other class.
func TestClassesOverWire(t *testing.T) {
	all := map[string]error{
		"invalid": errdefs.ErrInvalidArgument, "range": errdefs.ErrOutOfRange, "notfound": errdefs.ErrNotFound,
		"exists": errdefs.ErrAlreadyExists, "denied": errdefs.ErrPermissionDenied, "unauth": errdefs.ErrUnauthenticated,
		"precondition": errdefs.ErrFailedPrecondition, "aborted": errdefs.ErrAborted, "exhausted": errdefs.ErrResourceExhausted,
		"unavailable": errdefs.ErrUnavailable, "unimplemented": errdefs.ErrUnimplemented, "dataloss": errdefs.ErrDataLoss,
		"internal": errdefs.ErrInternal, "canceled": context.Canceled, "deadline": context.DeadlineExceeded,
	}
	f := &failing{}
	c := serve(t, f)
	for name, class := range all {
		for _, indeterminate := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/indeterminate=%v", name, indeterminate), func(t *testing.T) {
				sent := fmt.Errorf("attach drive d-1: %w", class)
				if indeterminate {
					sent = fmt.Errorf("%w: %w", sent, errdefs.ErrIndeterminate)
				}
				f.fail = func() error { return errdefs.ToGRPC(sent) }
				_, err := c.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
				got := errdefs.FromGRPC(err)
				if got.Error() != sent.Error() {
					t.Errorf("text: got %q, sent %q", got, sent)
				}
				if errdefs.Indeterminate(got) != indeterminate {
					t.Errorf("indeterminate: got %v", errdefs.Indeterminate(got))
				}
				for other, o := range all {
					want := other == name || name == "deadline" && other == "unavailable"
					if errors.Is(got, o) != want {
						t.Errorf("is %s: got %v, want %v", other, !want, want)
					}
				}
				// A second hop (plugin, agent, API) changes nothing.
				again := errdefs.FromGRPC(errdefs.ToGRPC(got))
				if !errors.Is(again, class) || errdefs.Indeterminate(again) != indeterminate || again.Error() != got.Error() {
					t.Errorf("second hop: %v", again)
				}
			})
		}
	}
}

// TestTransportErrors: what the transport says on its own is indeterminate
// wherever the request may have arrived.
func TestTransportErrors(t *testing.T) {
	for _, tc := range []struct {
		err           error
		class         error
		indeterminate bool
	}{
		{status.Error(codes.Unavailable, "EOF"), errdefs.ErrUnavailable, true},
		{status.Error(codes.DeadlineExceeded, "late"), errdefs.ErrUnavailable, true},
		{status.Error(codes.Canceled, ""), context.Canceled, true},
		{status.Error(codes.ResourceExhausted, "received message larger than max"), errdefs.ErrInternal, true},
		{status.Error(codes.Unknown, "?"), errdefs.ErrInternal, true},
		{status.Error(codes.Unimplemented, "unknown method"), errdefs.ErrUnimplemented, false},
		{status.Error(codes.NotFound, "x"), errdefs.ErrNotFound, false},
		{status.Error(codes.Code(4711), "x"), errdefs.ErrInternal, false},
	} {
		got := errdefs.FromGRPC(tc.err)
		if !errors.Is(got, tc.class) || errdefs.Indeterminate(got) != tc.indeterminate || got.Error() == "" {
			t.Errorf("%v: got %v, indeterminate %v", tc.err, got, errdefs.Indeterminate(got))
		}
	}
	if plain := errors.New("plain"); errdefs.FromGRPC(plain) != plain {
		t.Error("an error that is no status must stay as it is")
	}
	if errdefs.ToGRPC(nil) != nil || errdefs.FromGRPC(nil) != nil {
		t.Error("nil must stay nil")
	}
}

// TestDeadlineOfCaller: a call that runs out of time is unavailable, a
// deadline, and may have happened.
func TestDeadlineOfCaller(t *testing.T) {
	release := make(chan struct{})
	f := &failing{fail: func() error { <-release; return nil }}
	c := serve(t, f)
	t.Cleanup(func() { close(release) })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := c.Check(ctx, &grpc_health_v1.HealthCheckRequest{})
	got := errdefs.FromGRPC(err)
	if !errors.Is(got, context.DeadlineExceeded) || !errdefs.IsUnavailable(got) || !errdefs.Indeterminate(got) {
		t.Fatalf("got %v", got)
	}
}

// TestHostileText: long and broken texts neither lose the class nor grow.
func TestHostileText(t *testing.T) {
	f := &failing{}
	c := serve(t, f)
	for _, text := range []string{strings.Repeat("\u00e9", 1<<20), "\xff\xfe", "line\nline\x00"} {
		f.fail = func() error { return errdefs.ToGRPC(fmt.Errorf("%s: %w", text, errdefs.ErrNotFound)) }
		_, err := c.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
		got := errdefs.FromGRPC(err)
		if !errdefs.IsNotFound(got) || len(got.Error()) > 4<<10 {
			t.Errorf("%.20q: got %.60v (%d bytes)", text, got, len(got.Error()))
		}
	}
}
