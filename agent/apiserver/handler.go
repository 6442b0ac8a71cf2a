package apiserver

import (
	"context"
	"fmt"
	"runtime/debug"
	"time"

	"connectrpc.com/connect"
	"github.com/hashicorp/go-hclog"

	"github.com/moraine-storage/moraine/agent/api"
	"github.com/moraine-storage/moraine/agent/api/apierr"
	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// handler is the generated handler interface over a service. Unary calls are
// those of the service itself; streams turn into its callbacks.
type handler struct {
	api.Service
	// stopping is closed when streams shall end.
	stopping <-chan struct{}
}

func (h handler) WatchEvents(ctx context.Context, r *apiv1.WatchEventsRequest, s *connect.ServerStream[apiv1.Event]) error {
	return h.stream(ctx, func(ctx context.Context) error { return h.Service.WatchEvents(ctx, r, s.Send) })
}

func (h handler) WatchOperation(ctx context.Context, r *apiv1.GetOperationRequest, s *connect.ServerStream[apiv1.Operation]) error {
	return h.stream(ctx, func(ctx context.Context) error { return h.Service.WatchOperation(ctx, r, s.Send) })
}

func (h handler) DiffSnapshot(ctx context.Context, r *apiv1.DiffSnapshotRequest, s *connect.ServerStream[apiv1.DiffExtents]) error {
	return h.stream(ctx, func(ctx context.Context) error { return h.Service.DiffSnapshot(ctx, r, s.Send) })
}

// stream runs fn with a context that ends with the server too.
func (h handler) stream(ctx context.Context, fn func(context.Context) error) error {
	streamCtx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	errStopping := fmt.Errorf("the agent is stopping: %w", errdefs.ErrUnavailable)
	done := make(chan struct{})
	defer close(done)
	go func() {
		select {
		case <-h.stopping:
			cancel(errStopping)
		case <-done:
		}
	}()
	err := fn(streamCtx)
	if err != nil && ctx.Err() == nil && streamCtx.Err() != nil {
		return errStopping // not the client's cancelling, as it would look
	}
	return err
}

// edge is the interceptor of every call: it logs at debug level, catches
// panics, and translates errors.
type edge struct {
	log hclog.Logger
}

func (e edge) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, r connect.AnyRequest) (resp connect.AnyResponse, err error) {
		start := time.Now()
		defer func() { err = e.finish(r.Spec().Procedure, start, recover(), err) }()
		return next(ctx, r)
	}
}

func (e edge) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, c connect.StreamingHandlerConn) (err error) {
		start := time.Now()
		defer func() { err = e.finish(c.Spec().Procedure, start, recover(), err) }()
		return next(ctx, c)
	}
}

func (e edge) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next // a server's interceptor sees no clients
}

// finish turns the end of a call, by return or by panic, into its answer.
func (e edge) finish(procedure string, start time.Time, panicked any, err error) error {
	if panicked != nil {
		e.log.Error("panic in an API call", "call", procedure, "panic", fmt.Sprint(panicked), "stack", string(debug.Stack()))
		// What the call had done before is not known.
		err = fmt.Errorf("%s: the agent has a fault (%v), its log has the details: %w",
			procedure, panicked, indeterminate{errdefs.ErrInternal})
	}
	if e.log.IsDebug() {
		args := []any{"call", procedure, "took", time.Since(start).String()}
		if err != nil {
			args = append(args, "error", err.Error())
		}
		e.log.Debug("API call", args...)
	}
	return apierr.ToWire(err)
}

// indeterminate adds the fact that it may have happened, without a text.
type indeterminate struct{ class error }

func (i indeterminate) Error() string   { return i.class.Error() }
func (i indeterminate) Unwrap() []error { return []error{i.class, errdefs.ErrIndeterminate} }
