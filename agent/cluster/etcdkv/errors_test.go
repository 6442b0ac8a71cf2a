package etcdkv

import (
	"context"
	"errors"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/moraine-storage/moraine/agent/cluster"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// TestTranslate: each answer of etcd, as the server in process and as a dialled
// client give it, gets its class, and is indeterminate exactly when it does not
// prove that a change failed.
func TestTranslate(t *testing.T) {
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	live := context.Background()
	for _, c := range []struct {
		ctx           context.Context
		err, class    error
		indeterminate bool // of a change
	}{
		{live, rpctypes.ErrGRPCCompacted, cluster.ErrCompacted, false},
		{live, rpctypes.ErrCompacted, cluster.ErrCompacted, false},
		{live, rpctypes.ErrGRPCFutureRev, errdefs.ErrOutOfRange, false},
		{live, rpctypes.ErrGRPCLeaseNotFound, errdefs.ErrNotFound, false},
		{live, rpctypes.ErrGRPCTooManyOps, errdefs.ErrInvalidArgument, false},
		{live, rpctypes.ErrGRPCRequestTooLarge, errdefs.ErrInvalidArgument, false},
		{live, rpctypes.ErrGRPCRequestTooManyRequests, cluster.ErrUnavailable, false},
		{live, rpctypes.ErrGRPCNoLeader, cluster.ErrUnavailable, false},
		{live, rpctypes.ErrGRPCPermissionDenied, errdefs.ErrPermissionDenied, false},
		{live, rpctypes.ErrGRPCNoSpace, errdefs.ErrResourceExhausted, true},
		{live, rpctypes.ErrGRPCStopped, errdefs.ErrUnavailable, true},
		{live, rpctypes.ErrGRPCLeaderChanged, errdefs.ErrUnavailable, true},
		{live, rpctypes.ErrGRPCTimeout, errdefs.ErrUnavailable, true},
		{live, rpctypes.ErrGRPCTimeoutDueToLeaderFail, errdefs.ErrUnavailable, true},
		{live, rpctypes.ErrGRPCCorrupt, errdefs.ErrUnavailable, true},
		{live, status.Error(codes.Unavailable, "transport is closing"), errdefs.ErrUnavailable, true},
		{live, status.Error(codes.Unknown, "no such error"), errdefs.ErrUnavailable, true},
		{live, context.DeadlineExceeded, errdefs.ErrUnavailable, true}, // not ours: the client's own
		{gone, context.Canceled, context.Canceled, true},
		{gone, status.Error(codes.Canceled, "context canceled"), context.Canceled, true},
		{gone, rpctypes.ErrGRPCLeaseNotFound, errdefs.ErrNotFound, false},
	} {
		read, change := translate(c.ctx, c.err, false), translate(c.ctx, c.err, true)
		if !errors.Is(read, c.class) || errdefs.Indeterminate(read) {
			t.Errorf("%v: a read gives %v", c.err, read)
		}
		if !errors.Is(change, c.class) || errdefs.Indeterminate(change) != c.indeterminate {
			t.Errorf("%v: a change gives %v", c.err, change)
		}
	}
	if err := translate(live, nil, true); err != nil {
		t.Error(err)
	}
}
