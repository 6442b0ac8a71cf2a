package volume

import (
	"context"
	"errors"
	"fmt"
	"time"

	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	"github.com/moraine-storage/moraine/agent/cluster/records"
	recordsv1 "github.com/moraine-storage/moraine/agent/cluster/records/v1"
	"github.com/moraine-storage/moraine/drivers/store"
	"github.com/moraine-storage/moraine/plugins/errdefs"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// asPrimary runs change and then commit as the volume's primary: under the
// attachment that there is, with requests held, or under one for maintenance.
// commit gets the primary, whose record it may update. keep names a snapshot
// in the making, which a maintenance attach would otherwise take for one that
// a crash left behind.
func (m *Manager) asPrimary(ctx context.Context, v volumeRecord, keep string, change, commit func(p *primary) error) (volumeRecord, error) {
	l := m.attached(v.Record.Id)
	if l == nil {
		return m.maintain(ctx, v, keep, func(p *primary) error {
			if err := change(p); err != nil {
				return err
			}
			return commit(p)
		})
	}
	if l.closing {
		return v, fmt.Errorf("volume %q is half detached; detach it again: %w", l.name, errdefs.ErrFailedPrecondition)
	}
	l.p.v = v
	err := l.quiesce(ctx, func() error { return change(l.p) }, func() error { return commit(l.p) })
	return l.p.v, err
}

// updateSnapshot changes one snapshot in the record; gone from it if fn says false.
func (p *primary) updateSnapshot(ctx context.Context, id string, fn func(*recordsv1.Snapshot)) error {
	v, err := p.m.update(ctx, p.v, func(r *recordsv1.Volume) {
		for _, s := range r.Snapshots {
			if s.Id == id {
				fn(s)
			}
		}
	})
	if err != nil {
		return err
	}
	p.v = v
	return nil
}

// CreateSnapshot implements api.Snapshots: record creating, hold, freeze,
// record ready, release (0001, 4.5). What a mounted file system has in memory
// is written out before, as far as it can be without holding it up.
func (m *Manager) CreateSnapshot(ctx context.Context, r *apiv1.CreateSnapshotRequest) (*apiv1.Snapshot, error) {
	name := r.Name
	if name == "" {
		name = time.Now().UTC().Format("snap-20060102-150405.000")
	}
	if err := checkName("snapshot", name); err != nil {
		return nil, err
	}
	if err := checkLabels(r.Labels); err != nil {
		return nil, fmt.Errorf("snapshot %q: %v: %w", name, err, errdefs.ErrInvalidArgument)
	}
	v, unlock, err := m.lock(ctx, r.Volume)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if s := snapshotByName(v.Record, name); s != nil {
		if s.State == recordsv1.SnapshotState_SNAPSHOT_READY {
			return m.snapshotView(v.Record, s), nil // asked again
		}
		if v, err = m.forgetHalfMade(ctx, v, s.Id); err != nil {
			return nil, fmt.Errorf("snapshot %s@%s: %w", r.Volume, name, err)
		}
	}
	s, err := m.snapshotLocked(ctx, v, name, r.Labels)
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (m *Manager) snapshotLocked(ctx context.Context, v volumeRecord, name string, labels map[string]string) (*apiv1.Snapshot, error) {
	now, id, err := m.takeSnapshot(ctx, v, name, labels, recordsv1.SnapshotState_SNAPSHOT_READY)
	if err != nil {
		return nil, err
	}
	m.info("snapshot.created", now.Record.Name, "", "snapshot", name)
	return m.snapshotView(now.Record, snapshotByName(now.Record, id)), nil
}

// takeSnapshot makes a snapshot that is in the record as is afterwards: ready,
// or already deleting, for one that nobody is told of. Whoever becomes the
// volume's primary next deletes the latter: a crash leaves nothing behind.
func (m *Manager) takeSnapshot(ctx context.Context, v volumeRecord, name string, labels map[string]string, as recordsv1.SnapshotState) (volumeRecord, string, error) {
	if len(v.Record.Snapshots) >= snapshotsMax {
		return v, "", fmt.Errorf("volume %q has %d snapshots, the most there can be; delete some: %w", v.Record.Name, snapshotsMax, errdefs.ErrResourceExhausted)
	}
	id := string(records.NewID())
	sid, err := store.ParseID(id)
	if err != nil {
		return v, "", err
	}
	if l := m.attached(v.Record.Id); l != nil && l.file.Mount != "" {
		if err := m.o.Host.Sync(ctx, l.file.Mount); err != nil {
			m.o.Logger.Warn("file system not written out before the snapshot", "volume", v.Record.Name, "error", err)
		}
	}
	v, err = m.update(ctx, v, func(rec *recordsv1.Volume) {
		rec.Snapshots = append(rec.Snapshots, &recordsv1.Snapshot{
			Id: id, Name: name, State: recordsv1.SnapshotState_SNAPSHOT_CREATING, CreatedAt: timestamppb.Now(), SizeBytes: rec.SizeBytes, Labels: labels,
		})
	})
	if err != nil {
		return v, "", fmt.Errorf("snapshot %s@%s: %w", v.Record.Name, name, err)
	}
	now, err := m.freeze(ctx, v, id, sid, as)
	if err != nil {
		return now, "", fmt.Errorf("snapshot %s@%s: %w", v.Record.Name, name, errors.Join(err, m.thaw(ctx, id, sid)))
	}
	return now, id, nil
}

func (m *Manager) freeze(ctx context.Context, v volumeRecord, id string, sid store.ID, as recordsv1.SnapshotState) (volumeRecord, error) {
	if l := m.attached(v.Record.Id); l != nil && !l.closing {
		// A freeze makes durable what was written before it: most of it is done
		// here, while requests still run.
		if err := l.p.store.Flush(ctx); err != nil {
			return v, err
		}
	}
	return m.asPrimary(ctx, v, id,
		func(p *primary) error { return p.replica.Freeze(sid) },
		func(p *primary) error {
			return p.updateSnapshot(ctx, id, func(s *recordsv1.Snapshot) { s.State = as })
		})
}

// dropSnapshot deletes what of a snapshot is on the drive, and then its entry,
// which says deleting already.
func (m *Manager) dropSnapshot(ctx context.Context, v volumeRecord, id string) error {
	sid, err := store.ParseID(id)
	if err != nil {
		return err
	}
	_, err = m.asPrimary(ctx, v, id,
		func(p *primary) error { return p.replica.Drop(sid) },
		func(p *primary) error { return p.forgetSnapshot(ctx, id) })
	return err
}

// thaw takes back a snapshot that did not become ready: everywhere or nowhere.
func (m *Manager) thaw(ctx context.Context, id string, sid store.ID) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleWait)
	defer cancel()
	vols, _, err := m.o.Records.Volumes.List(ctx)
	if err != nil && len(vols) == 0 {
		return err
	}
	for _, v := range vols {
		for _, s := range v.Record.Snapshots {
			if s.Id != id || s.State == recordsv1.SnapshotState_SNAPSHOT_READY {
				continue
			}
			// The record first: a "ready" whose answer was lost may still come, and
			// would then name what is gone. After this it cannot.
			v, err := m.update(ctx, v, func(r *recordsv1.Volume) {
				snapshotByName(r, id).State = recordsv1.SnapshotState_SNAPSHOT_DELETING
			})
			if err != nil {
				return err
			}
			_, err = m.asPrimary(ctx, v, id,
				func(p *primary) error { return p.replica.Thaw(sid) },
				func(p *primary) error { return p.forgetSnapshot(ctx, id) })
			return err
		}
	}
	return nil // it became ready after all, or is gone
}

// forgetHalfMade takes back a snapshot that is creating or deleting although
// nobody is at it: who holds the volume's lock is the only one who could.
func (m *Manager) forgetHalfMade(ctx context.Context, v volumeRecord, id string) (volumeRecord, error) {
	sid, err := store.ParseID(id)
	if err != nil {
		return v, err
	}
	if err := m.thaw(ctx, id, sid); err != nil {
		return v, err
	}
	return m.o.Records.Volumes.Get(ctx, idOf(v.Record.Id))
}

func snapshotByName(r *recordsv1.Volume, name string) *recordsv1.Snapshot {
	for _, s := range r.Snapshots {
		if s.Name == name || s.Id == name {
			return s
		}
	}
	return nil
}

// findSnapshot resolves VOLUME@SNAPSHOT without a lock.
func (m *Manager) findSnapshot(ctx context.Context, name string) (volumeRecord, *recordsv1.Snapshot, error) {
	vol, snap, err := splitSnapshot(name)
	if err != nil {
		return volumeRecord{}, nil, err
	}
	v, err := m.find(ctx, vol)
	if err != nil {
		return v, nil, err
	}
	s := snapshotByName(v.Record, snap)
	if s == nil {
		return v, nil, fmt.Errorf("snapshot %q: %w", name, errdefs.ErrNotFound)
	}
	return v, s, nil
}

// GetSnapshot implements api.Snapshots.
func (m *Manager) GetSnapshot(ctx context.Context, r *apiv1.GetSnapshotRequest) (*apiv1.Snapshot, error) {
	v, s, err := m.findSnapshot(ctx, r.Name)
	if err != nil {
		return nil, err
	}
	return m.snapshotView(v.Record, s), nil
}

// ListSnapshots implements api.Snapshots.
func (m *Manager) ListSnapshots(ctx context.Context, r *apiv1.ListSnapshotsRequest) (*apiv1.ListSnapshotsResponse, error) {
	out := &apiv1.ListSnapshotsResponse{}
	var vols []volumeRecord
	if r.Volume != "" {
		v, err := m.find(ctx, r.Volume)
		if err != nil {
			return nil, err
		}
		vols = append(vols, v)
	} else {
		var err error
		if vols, err = m.volumes(ctx); err != nil {
			return nil, err
		}
	}
	for _, v := range vols {
		for _, s := range v.Record.Snapshots {
			out.Snapshots = append(out.Snapshots, m.snapshotView(v.Record, s))
		}
	}
	return out, nil
}

// lockSnapshot is lock for VOLUME@SNAPSHOT. One that is still creating is a
// half-made one, and is forgotten.
func (m *Manager) lockSnapshot(ctx context.Context, name string) (volumeRecord, *recordsv1.Snapshot, func(), error) {
	vol, snap, err := splitSnapshot(name)
	if err != nil {
		return volumeRecord{}, nil, nil, err
	}
	v, unlock, err := m.lock(ctx, vol)
	if err != nil {
		return v, nil, nil, err
	}
	s := snapshotByName(v.Record, snap)
	switch {
	case s == nil:
		err = fmt.Errorf("snapshot %q: %w", name, errdefs.ErrNotFound)
	case s.State == recordsv1.SnapshotState_SNAPSHOT_CREATING:
		if _, err = m.forgetHalfMade(ctx, v, s.Id); err == nil {
			err = fmt.Errorf("snapshot %q: %w", name, errdefs.ErrNotFound)
		}
	}
	if err != nil {
		unlock()
		return v, nil, nil, err
	}
	return v, s, unlock, nil
}

// RestoreSnapshot implements api.Snapshots; only a detached volume.
func (m *Manager) RestoreSnapshot(ctx context.Context, r *apiv1.RestoreSnapshotRequest) (*apiv1.Volume, error) {
	v, s, unlock, err := m.lockSnapshot(ctx, r.Name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if m.attached(v.Record.Id) != nil || v.Record.Primary != nil {
		return nil, fmt.Errorf("restore %q: volume %q is attached; detach it first: %w", r.Name, v.Record.Name, errdefs.ErrFailedPrecondition)
	}
	if s.State != recordsv1.SnapshotState_SNAPSHOT_READY {
		return nil, fmt.Errorf("restore %q: the snapshot is %s: %w", r.Name, snapshotWord(s.State), errdefs.ErrFailedPrecondition)
	}
	if s.SizeBytes != v.Record.SizeBytes {
		// The volume keeps its size: what the snapshot had not reads as zeros.
		m.o.Logger.Info("restore to a snapshot of another size", "volume", v.Record.Name, "size", v.Record.SizeBytes, "snapshot_size", s.SizeBytes)
	}
	id, err := store.ParseID(s.Id)
	if err != nil {
		return nil, err
	}
	now, err := m.maintain(ctx, v, "", func(p *primary) error {
		if p.v.Record.Formatted && m.blankSnapshot(p.v.Record, s.Id) {
			// As it was before the first mount: the next one makes a file system.
			// Before the restore: a file system that is found says formatted again.
			nv, err := m.update(ctx, p.v, func(r *recordsv1.Volume) { r.Formatted = false })
			if err != nil {
				return err
			}
			p.v = nv
		}
		return p.replica.Restore(id)
	})
	if err != nil {
		return nil, fmt.Errorf("restore %q: %w", r.Name, err)
	}
	m.info("snapshot.restored", v.Record.Name, "", "snapshot", s.Name)
	return m.view(now.Record), nil
}

// blankSnapshot says that nothing was ever written to what the snapshot holds.
// In doubt it says no.
func (m *Manager) blankSnapshot(rec *recordsv1.Volume, id string) bool {
	mem := member(rec)
	if mem == nil {
		return false
	}
	info, err := m.replicaInfo(mem)
	if err != nil {
		return false
	}
	for _, l := range info.Layers {
		if l.Snapshot.String() == id {
			return l.Mapped == 0
		}
	}
	return false
}

// DeleteSnapshot implements api.Snapshots: the record says deleting before
// anything is dropped, so that a crash finishes it.
func (m *Manager) DeleteSnapshot(ctx context.Context, r *apiv1.DeleteSnapshotRequest) (*apiv1.DeleteSnapshotResponse, error) {
	v, s, unlock, err := m.lockSnapshot(ctx, r.Name)
	if errdefs.IsNotFound(err) {
		return &apiv1.DeleteSnapshotResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	defer unlock()
	m.dropSnapExport(s.Id)
	v, err = m.update(ctx, v, func(rec *recordsv1.Volume) {
		snapshotByName(rec, s.Id).State = recordsv1.SnapshotState_SNAPSHOT_DELETING
	})
	if err == nil {
		err = m.dropSnapshot(ctx, v, s.Id)
	}
	if err != nil {
		return nil, fmt.Errorf("delete snapshot %q: %w", r.Name, err)
	}
	m.info("snapshot.deleted", v.Record.Name, "", "snapshot", s.Name)
	return &apiv1.DeleteSnapshotResponse{Existed: true}, nil
}
