package volume

import (
	"context"
	"fmt"

	"github.com/moraine-storage/moraine/plugins/errdefs"
)

var errStopping = fmt.Errorf("the agent is stopping: %w", errdefs.ErrUnavailable)

// unsettled is an attachment whose device may be there and which is not served:
// what an earlier agent left and cannot be gone on with yet, or a half-made
// attachment that could not be undone. While there is one, nothing else may
// become primary of its volume here: that would make the device a stale one,
// or a second device (0001, 4.1.4).
type unsettled struct {
	file *attachFile // nil: it cannot be understood
	why  string      // for people
}

func (m *Manager) setUnsettled(id string, u *unsettled) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if u == nil {
		delete(m.unsettled, id)
		return
	}
	m.unsettled[id] = u
}

// mayServe says why this node may not become primary of a volume now.
func (m *Manager) mayServe(id, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return errStopping
	}
	u := m.unsettled[id]
	switch {
	case u == nil:
		return nil
	case u.file == nil:
		return fmt.Errorf("volume %q: its attachment file on this node cannot be understood (%s); it and the device it may stand for are left alone for the agent that wrote it: %w", name, u.why, errdefs.ErrUnavailable)
	default:
		return fmt.Errorf("volume %q: what an earlier attachment left on this node is not served again yet (%s); it is gone on with as soon as that ends, or given up by `moraine volume detach --force %s`: %w", name, u.why, name, errdefs.ErrUnavailable)
	}
}

// settleAttachment tries to go on with an unsettled attachment, and says
// whether it has tried. Called with the volume's lock.
func (m *Manager) settleAttachment(ctx context.Context, id string) bool {
	m.mu.Lock()
	u, ready := m.unsettled[id], m.ready
	m.mu.Unlock()
	if !ready || u == nil || u.file == nil {
		return false
	}
	m.recoverLocked(ctx, u.file)
	return true
}

// detachUnserved detaches a volume that has no data path here: it gives up, by
// force, what is unsettled, and ends a session that is one in name only.
func (m *Manager) detachUnserved(ctx context.Context, v volumeRecord, force bool) (volumeRecord, error) {
	m.mu.Lock()
	u := m.unsettled[v.Record.Id]
	m.mu.Unlock()
	mine := v.Record.Primary != nil && v.Record.Primary.NodeId == m.o.NodeID
	switch {
	case u == nil && mine:
		return m.endSession(ctx, v)
	case u == nil || u.file == nil || !force:
		return v, m.mayServe(v.Record.Id, v.Record.Name)
	}
	const why = "it was given up by force"
	var err error
	if mine {
		err = m.abandon(ctx, u.file, v, why)
	} else {
		err = m.buryDevice(ctx, u.file, why)
	}
	if err != nil {
		return v, fmt.Errorf("volume %q: give up its device: %w", v.Record.Name, err)
	}
	m.setUnsettled(v.Record.Id, nil)
	return m.o.Records.Volumes.Get(ctx, idOf(v.Record.Id))
}
