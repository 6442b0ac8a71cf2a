package host

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/moraine-storage/moraine/backends"
	"github.com/moraine-storage/moraine/plugins/errdefs"
	"github.com/moraine-storage/moraine/plugins/schema"
	"github.com/moraine-storage/moraine/plugins/sdk"
)

var _ interface {
	backends.Backend
	backends.Provisioner
	backends.Expander
	backends.Fencer
	backends.HealthReporter
} = (*Instance)(nil)

// call runs f on the process that serves now, under the nearer of the caller's
// deadline and limit.
func call[T any](ctx context.Context, i *Instance, limit time.Duration, f func(context.Context, *sdk.Conn) (T, error)) (T, error) {
	var zero T
	select {
	case i.slots <- struct{}{}:
		defer func() { <-i.slots }()
	case <-ctx.Done():
		return zero, fmt.Errorf("backend %s: %w: too many calls: %w", i.spec.Instance, errdefs.ErrUnavailable, ctx.Err())
	}
	if err := ctx.Err(); err != nil {
		return zero, fmt.Errorf("backend %s: %w", i.spec.Instance, err)
	}
	p, err := i.enter()
	if err != nil {
		return zero, err
	}
	defer p.leave()
	inner, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	out, err := f(inner, p.conn)
	i.judgeCall(ctx, p, err)
	if errors.Is(err, context.Canceled) && ctx.Err() == nil {
		// Nobody cancelled: the process is being replaced, and its connection
		// was closed under the call.
		err = fmt.Errorf("%w: %w: plugin process ended: %v", errdefs.ErrUnavailable, errdefs.ErrIndeterminate, err)
	}
	if err != nil {
		return zero, fmt.Errorf("backend %s: %w", i.spec.Instance, err)
	}
	return out, nil
}

// enter counts a call into the process that serves.
func (i *Instance) enter() (*process, error) {
	i.mu.Lock()
	p, st := i.proc, i.st
	i.mu.Unlock()
	if p != nil && p.enter() {
		return p, nil
	}
	why := "plugin is " + string(st.State)
	if st.LastError != "" {
		why += ", last error: " + st.LastError
	}
	return nil, fmt.Errorf("backend %s: %w: %s", i.spec.Instance, errdefs.ErrUnavailable, why)
}

// judgeCall counts calls that ran into the host's deadline (not the caller's): a plugin
// may answer health checks and yet hang in everything else.
func (i *Instance) judgeCall(ctx context.Context, p *process, err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch {
	case i.proc != p:
	case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
		i.late++
	case ctx.Err() == nil: // it answered, be it with an error
		i.late = 0
	}
}

// do is call for methods without a result.
func do(ctx context.Context, i *Instance, limit time.Duration, f func(context.Context, *sdk.Conn) error) error {
	_, err := call(ctx, i, limit, func(ctx context.Context, c *sdk.Conn) (struct{}, error) { return struct{}{}, f(ctx, c) })
	return err
}

// Full returns the instance with the abilities of the plugin that runs now;
// ErrUnavailable when none does.
func (i *Instance) Full() (backends.Full, error) {
	i.mu.Lock()
	p := i.proc
	i.mu.Unlock()
	if p == nil {
		_, err := i.enter()
		return backends.Full{}, err
	}
	return backends.Full{Backend: i, Provisioner: i, Expander: i, Fencer: i, HealthReporter: i, Capabilities: p.info.Capabilities}, nil
}

// Info implements backends.Configurer; the plugin is asked each time.
func (i *Instance) Info(ctx context.Context) (backends.Info, error) {
	return call(ctx, i, i.h.t.Ping, func(ctx context.Context, c *sdk.Conn) (backends.Info, error) { return c.Info(ctx) })
}

// ConfigSchema implements backends.Configurer.
func (i *Instance) ConfigSchema(ctx context.Context) (schema.Schema, error) {
	return call(ctx, i, i.h.t.Quick, func(ctx context.Context, c *sdk.Conn) (schema.Schema, error) { return c.ConfigSchema(ctx) })
}

// Configure implements backends.Configurer. Only Options count: instance, node
// and run directory are the host's.
func (i *Instance) Configure(ctx context.Context, c backends.Config) error {
	return i.Reconfigure(ctx, c.Options)
}

// Discover implements backends.Catalog.
func (i *Instance) Discover(ctx context.Context) ([]backends.Drive, error) {
	return call(ctx, i, i.h.t.Media, func(ctx context.Context, c *sdk.Conn) ([]backends.Drive, error) { return c.Discover(ctx) })
}

// Get implements backends.Catalog.
func (i *Instance) Get(ctx context.Context, id backends.DriveID) (backends.Drive, error) {
	return call(ctx, i, i.h.t.Quick, func(ctx context.Context, c *sdk.Conn) (backends.Drive, error) { return c.Get(ctx, id) })
}

// List implements backends.Catalog.
func (i *Instance) List(ctx context.Context, p backends.Page) (backends.Drives, error) {
	return call(ctx, i, i.h.t.Quick, func(ctx context.Context, c *sdk.Conn) (backends.Drives, error) { return c.List(ctx, p) })
}

// Create implements backends.Provisioner.
func (i *Instance) Create(ctx context.Context, r backends.CreateRequest) (backends.Drive, error) {
	return call(ctx, i, i.h.t.Slow, func(ctx context.Context, c *sdk.Conn) (backends.Drive, error) { return c.Create(ctx, r) })
}

// Delete implements backends.Provisioner.
func (i *Instance) Delete(ctx context.Context, id backends.DriveID) error {
	return do(ctx, i, i.h.t.Slow, func(ctx context.Context, c *sdk.Conn) error { return c.Delete(ctx, id) })
}

// Attach implements backends.Attacher.
func (i *Instance) Attach(ctx context.Context, id backends.DriveID, node backends.NodeID) (backends.Attachment, error) {
	return call(ctx, i, i.h.t.Media, func(ctx context.Context, c *sdk.Conn) (backends.Attachment, error) { return c.Attach(ctx, id, node) })
}

// Detach implements backends.Attacher.
func (i *Instance) Detach(ctx context.Context, id backends.DriveID, node backends.NodeID) error {
	return do(ctx, i, i.h.t.Media, func(ctx context.Context, c *sdk.Conn) error { return c.Detach(ctx, id, node) })
}

// Expand implements backends.Expander.
func (i *Instance) Expand(ctx context.Context, id backends.DriveID, size int64) (backends.Drive, error) {
	return call(ctx, i, i.h.t.Slow, func(ctx context.Context, c *sdk.Conn) (backends.Drive, error) { return c.Expand(ctx, id, size) })
}

// Fence implements backends.Fencer.
func (i *Instance) Fence(ctx context.Context, id backends.DriveID, node backends.NodeID) error {
	return do(ctx, i, i.h.t.Media, func(ctx context.Context, c *sdk.Conn) error { return c.Fence(ctx, id, node) })
}

// Health implements backends.HealthReporter.
func (i *Instance) Health(ctx context.Context, id backends.DriveID) (backends.Health, error) {
	return call(ctx, i, i.h.t.Quick, func(ctx context.Context, c *sdk.Conn) (backends.Health, error) { return c.Health(ctx, id) })
}
