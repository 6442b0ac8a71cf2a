package backends

import (
	"context"
	"fmt"

	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// Full is a backend with every optional interface present: what the backend
// does not implement answers ErrUnimplemented (Health: through Get). Capabilities tells which is
// which. Callers hold a Full and never assert types.
type Full struct {
	Backend
	Provisioner
	Expander
	Fencer
	HealthReporter
	Capabilities Capabilities
}

// Complete resolves the optional abilities of b once. A Full stays as it is.
func Complete(b Backend) Full {
	if f, ok := b.(Full); ok {
		return f
	}
	f := Full{Backend: b}
	a := absent{b}
	if f.Provisioner, f.Capabilities.Provision = find[Provisioner](b); !f.Capabilities.Provision {
		f.Provisioner = a
	}
	if f.Expander, f.Capabilities.Expand = find[Expander](b); !f.Capabilities.Expand {
		f.Expander = a
	}
	if f.Fencer, f.Capabilities.Fence = find[Fencer](b); !f.Capabilities.Fence {
		f.Fencer = a
	}
	if f.HealthReporter, f.Capabilities.Health = find[HealthReporter](b); !f.Capabilities.Health {
		f.HealthReporter = a
	}
	return f
}

// Info adds what Complete found to what the backend says of itself.
func (f Full) Info(ctx context.Context) (Info, error) {
	i, err := f.Backend.Info(ctx)
	if err != nil {
		return Info{}, err
	}
	i.Capabilities = f.Capabilities
	return i, nil
}

func find[T any](b Backend) (T, bool) {
	for {
		if t, ok := b.(T); ok {
			return t, true
		}
		u, ok := b.(Unwrapper)
		if !ok {
			var none T
			return none, false
		}
		b = u.Unwrap()
	}
}

// absent stands in for what a backend does not implement.
type absent struct{ b Backend }

func missing(call string) error {
	return fmt.Errorf("%s: %w by this backend", call, errdefs.ErrUnimplemented)
}

func (absent) Create(context.Context, CreateRequest) (Drive, error) {
	return Drive{}, missing("create drive")
}
func (absent) Delete(context.Context, DriveID) error { return missing("delete drive") }
func (absent) Expand(context.Context, DriveID, int64) (Drive, error) {
	return Drive{}, missing("expand drive")
}
func (absent) Fence(context.Context, DriveID, NodeID) error { return missing("fence drive") }
func (a absent) Health(ctx context.Context, id DriveID) (Health, error) {
	d, err := a.b.Get(ctx, id)
	if err != nil {
		return Health{}, err
	}
	return Health{State: d.State, Reason: d.Reason, Checked: now()}, nil
}
