package etcdkv

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/moraine-storage/moraine/agent/cluster"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// answers are the errors by which etcd proves that a request did not take
// effect: refused before it was proposed, or refused alike by every member when
// it was applied. ErrNoSpace is not among them: etcd applies the request that
// crosses the quota and then answers with that error.
var answers = []struct{ is, class error }{
	{rpctypes.ErrCompacted, cluster.ErrCompacted},
	{rpctypes.ErrFutureRev, errdefs.ErrOutOfRange},
	{rpctypes.ErrLeaseNotFound, errdefs.ErrNotFound},
	{rpctypes.ErrLeaseTTLTooLarge, errdefs.ErrInvalidArgument},
	{rpctypes.ErrTooManyRequests, cluster.ErrUnavailable},
	{rpctypes.ErrRequestTooLarge, errdefs.ErrInvalidArgument},
	{rpctypes.ErrTooManyOps, errdefs.ErrInvalidArgument},
	{rpctypes.ErrDuplicateKey, errdefs.ErrInvalidArgument},
	{rpctypes.ErrEmptyKey, errdefs.ErrInvalidArgument},
	{rpctypes.ErrNoLeader, cluster.ErrUnavailable},
	{rpctypes.Error(rpctypes.ErrGRPCNotSupportedForLearner), cluster.ErrUnavailable},
	{rpctypes.ErrMemberNotFound, errdefs.ErrNotFound},
	{rpctypes.ErrMemberNotLearner, errdefs.ErrFailedPrecondition},
	{rpctypes.ErrMemberLearnerNotReady, ErrNotCaughtUp},
	{rpctypes.ErrMemberExist, errdefs.ErrAlreadyExists},
	{rpctypes.ErrPeerURLExist, errdefs.ErrAlreadyExists},
	{rpctypes.ErrTooManyLearners, errdefs.ErrAborted},
	{rpctypes.ErrMemberNotEnoughStarted, errdefs.ErrFailedPrecondition},
	{rpctypes.ErrUnhealthy, errdefs.ErrAborted}, // a member is not connected for long enough: later
	{rpctypes.ErrPermissionDenied, errdefs.ErrPermissionDenied},
	{rpctypes.ErrAuthFailed, errdefs.ErrUnauthenticated},
	{rpctypes.ErrInvalidAuthToken, errdefs.ErrUnauthenticated},
}

// translate gives err its class. mayHaveHappened is true for calls that change
// something and were sent.
func translate(ctx context.Context, err error, mayHaveHappened bool) error {
	if err == nil {
		return nil
	}
	cause := normal(err)
	for _, a := range answers {
		if errors.Is(cause, a.is) {
			return fmt.Errorf("%w: %w", a.class, errOnce(cause))
		}
	}
	switch {
	case errors.Is(cause, rpctypes.ErrNoSpace) && mayHaveHappened:
		return fmt.Errorf("cluster store is full: %w: %w", errdefs.ErrResourceExhausted, errdefs.ErrIndeterminate)
	case errors.Is(cause, rpctypes.ErrNoSpace):
		return fmt.Errorf("cluster store is full: %w", errdefs.ErrResourceExhausted)
	case ctx.Err() != nil && mayHaveHappened:
		return fmt.Errorf("%w: %w", cluster.ErrIndeterminate, ctx.Err())
	case ctx.Err() != nil:
		return ctx.Err()
	case mayHaveHappened:
		return fmt.Errorf("%w: %w", cluster.ErrIndeterminate, errOnce(cause))
	}
	return fmt.Errorf("%w: %w", cluster.ErrUnavailable, errOnce(cause))
}

// normal turns a gRPC status into etcd's client-side value, so that errors
// from the server in process and from one behind a socket compare alike.
func normal(err error) error {
	if s, ok := status.FromError(err); ok && s.Code() != codes.OK {
		return rpctypes.Error(status.Error(s.Code(), s.Message()))
	}
	return rpctypes.Error(err)
}

// errOnce strips the types of err: its text explains, its class was decided.
func errOnce(err error) error { return errors.New(err.Error()) }
