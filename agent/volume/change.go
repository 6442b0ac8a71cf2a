package volume

import (
	"context"
	"errors"
	"fmt"
	"time"

	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	recordsv1 "github.com/moraine-storage/moraine/agent/cluster/records/v1"
	"github.com/moraine-storage/moraine/agent/operation"
	"github.com/moraine-storage/moraine/drivers/replication/session"
	"github.com/moraine-storage/moraine/drivers/store"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// UpdateVolume implements api.VolumeChanges: labels and limits, the latter at
// once on an attached volume.
func (m *Manager) UpdateVolume(ctx context.Context, r *apiv1.UpdateVolumeRequest) (*apiv1.Volume, error) {
	v, unlock, err := m.lock(ctx, r.Name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	spec := specView(v.Record)
	if r.MaxIops != nil {
		spec.MaxIops = *r.MaxIops
	}
	if r.MaxBandwidth != nil {
		spec.MaxBandwidth = *r.MaxBandwidth
	}
	if spec.Labels == nil {
		spec.Labels = map[string]string{}
	}
	for k, val := range r.SetLabels {
		spec.Labels[k] = val
	}
	for _, k := range r.RemoveLabels {
		delete(spec.Labels, k)
	}
	if err := checkSpec(r.Name, spec); err != nil {
		return nil, err
	}
	v, err = m.update(ctx, v, func(rec *recordsv1.Volume) { rec.Spec = specRecord(spec) })
	if err != nil {
		return nil, fmt.Errorf("update volume %q: %w", r.Name, err)
	}
	if l := m.attached(v.Record.Id); l != nil && l.mirror != nil {
		l.p.v = v
		if err := l.mirror.SetLimits(session.Limits{IOPS: spec.MaxIops, Bandwidth: spec.MaxBandwidth}); err != nil {
			return nil, err
		}
	}
	m.info("volume.updated", v.Record.Name, "")
	return m.view(v.Record), nil
}

// ResizeVolume implements api.VolumeChanges: replicas first, then the record,
// the device, and the file system on it. Each step may be repeated, so a call
// that failed half-way is finished by the next.
func (m *Manager) ResizeVolume(ctx context.Context, r *apiv1.ResizeVolumeRequest) (*apiv1.Volume, error) {
	var out *apiv1.Volume
	err := m.o.Operations.Run(ctx, r.RequestId, "volume.resize", "volume "+r.Name, func(ctx context.Context, op *operation.Op) error {
		v, unlock, err := m.lock(ctx, r.Name)
		if err != nil {
			return err
		}
		defer unlock()
		v, err = m.resizeLocked(ctx, v, r.SizeBytes, op)
		if err != nil {
			return fmt.Errorf("resize volume %q: %w", r.Name, err)
		}
		out = m.view(v.Record)
		return nil
	})
	if err != nil || out != nil {
		return out, err
	}
	// Joined another call's work, which has to be the same.
	out, err = m.GetVolume(ctx, &apiv1.GetVolumeRequest{Name: r.Name})
	if err == nil && out.Spec.SizeBytes < r.SizeBytes {
		return nil, fmt.Errorf("resize volume %q: request %s was used for another size, the volume has %d bytes: %w", r.Name, r.RequestId, out.Spec.SizeBytes, errdefs.ErrAlreadyExists)
	}
	return out, err
}

func (m *Manager) resizeLocked(ctx context.Context, v volumeRecord, size int64, op *operation.Op) (volumeRecord, error) {
	if size <= 0 || size > sizeMax {
		return v, fmt.Errorf("size %d: %w: up to %d bytes (32TiB)", size, errdefs.ErrOutOfRange, int64(sizeMax))
	}
	size = roundUp(size, m.defaults().Extent)
	if size < v.Record.SizeBytes {
		return v, fmt.Errorf("size %d is smaller than now (%d): volumes only grow: %w", size, v.Record.SizeBytes, errdefs.ErrOutOfRange)
	}
	const steps = 3
	op.Progress("growing replicas", 0, steps, "steps")
	grew := size > v.Record.SizeBytes
	v, err := m.asPrimary(ctx, v, "",
		func(p *primary) error { return p.replica.Grow(size) },
		func(p *primary) error {
			nv, err := m.update(ctx, p.v, func(r *recordsv1.Volume) {
				r.SizeBytes = size
				if r.Spec != nil {
					r.Spec.SizeBytes = size
				}
			})
			if err == nil {
				p.v = nv
			}
			return err
		})
	if err != nil {
		return v, err
	}
	l := m.attached(v.Record.Id)
	if l != nil && l.device != nil {
		op.Progress("growing device", 1, steps, "steps")
		if err := l.device.Resize(ctx, size); err != nil {
			return v, fmt.Errorf("device: %w", err)
		}
		if l.file.Mount != "" {
			op.Progress("growing file system", 2, steps, "steps")
			err := m.o.Host.Grow(ctx, l.devicePath(), l.file.Mount)
			switch {
			case errors.Is(err, errdefs.ErrPermissionDenied):
				// The host does not let the agent grow it while mounted; the
				// volume has grown, and the file system does at the next mount.
				m.event(apiv1.Severity_WARNING, "volume.filesystem-grows-later", l.name, err.Error())
			case err != nil:
				return v, fmt.Errorf("the volume has grown, its file system not yet (the same command again tries it): %w", err)
			}
		}
	}
	op.Progress("grown", steps, steps, "steps")
	if grew {
		m.info("volume.resized", v.Record.Name, "", "size", fmt.Sprint(size))
	}
	return v, nil
}

// CloneVolume implements api.VolumeChanges.
func (m *Manager) CloneVolume(ctx context.Context, r *apiv1.CloneVolumeRequest) (*apiv1.Volume, error) {
	return m.cloneFrom(ctx, r.Source, r.Name, r.Spec)
}

// cloneFrom makes a volume from VOLUME@SNAPSHOT, or from VOLUME as it is now by
// a snapshot that is there for as long as that takes: it says deleting from the
// start. After a crash the next primary of the source deletes it, and a clone
// whose replica was not made by then is buried (nobody was told of it).
func (m *Manager) cloneFrom(ctx context.Context, source, name string, asked *apiv1.VolumeSpec) (*apiv1.Volume, error) {
	if err := checkName("volume", name); err != nil {
		return nil, err
	}
	unlockName, err := m.locks.lock(ctx, "name/"+name)
	if err != nil {
		return nil, err
	}
	defer unlockName()
	asked = cloneSpec(asked)
	if _, _, err := splitSnapshot(source); err == nil {
		asked.FromSnapshot = source
	} else {
		asked.FromSnapshot = "" // its snapshot has a name of its own
	}
	if v, err := m.existing(ctx, name, asked); v != nil || err != nil {
		return v, err
	}
	src, snap, done, err := m.cloneSource(ctx, source, name)
	if err != nil {
		return nil, fmt.Errorf("clone %q: %w", source, err)
	}
	defer done()
	spec, err := m.cloneSpecOf(name, src, snap, asked)
	if err != nil {
		return nil, err
	}
	spec.FromSnapshot = src.Record.Name + "@" + snap.Name
	rec := m.newRecord(name, spec, []string{member(src.Record).DriveId})
	rec.Origin = &recordsv1.Origin{VolumeId: src.Record.Id, SnapshotId: snap.Id}
	rec.Formatted = src.Record.Formatted && !m.blankSnapshot(src.Record, snap.Id)
	v, err := m.create(ctx, rec)
	if err != nil {
		return nil, err
	}
	return m.view(v.Record), nil
}

// cloneSource returns the volume and a snapshot of it, locked until done.
func (m *Manager) cloneSource(ctx context.Context, source, name string) (volumeRecord, *recordsv1.Snapshot, func(), error) {
	if _, _, err := splitSnapshot(source); err == nil {
		v, s, unlock, err := m.lockSnapshot(ctx, source)
		if err == nil && s.State != recordsv1.SnapshotState_SNAPSHOT_READY {
			unlock()
			err = fmt.Errorf("the snapshot is %s: %w", snapshotWord(s.State), errdefs.ErrFailedPrecondition)
		}
		return v, s, unlock, err
	}
	v, unlock, err := m.lock(ctx, source)
	if err != nil {
		return v, nil, nil, err
	}
	// Always a new one: a snapshot of that name is of an earlier clone, or of a
	// clone that failed, and older than "now".
	snapName := "clone-" + name
	if len(snapName) > 128 || snapshotByName(v.Record, snapName) != nil {
		snapName = time.Now().UTC().Format("clone-20060102-150405.000000000")
	}
	v, id, err := m.takeSnapshot(ctx, v, snapName, nil, recordsv1.SnapshotState_SNAPSHOT_DELETING)
	if err != nil {
		unlock()
		return v, nil, nil, err
	}
	return v, snapshotByName(v.Record, id), func() {
		defer unlock()
		m.dropHelper(context.WithoutCancel(ctx), v.Record.Id, id)
	}, nil
}

// dropHelper deletes the snapshot that a clone was made from, whatever became
// of the clone. What does not work now is done when the source is attached.
func (m *Manager) dropHelper(ctx context.Context, volume, id string) {
	ctx, cancel := context.WithTimeout(ctx, settleWait)
	defer cancel()
	v, err := m.o.Records.Volumes.Get(ctx, idOf(volume))
	if err == nil && snapshotByName(v.Record, id) != nil {
		err = m.dropSnapshot(ctx, v, id)
	}
	if err != nil {
		m.o.Logger.Warn("the snapshot of a clone is deleted later", "volume", volume, "snapshot", id, "error", err)
	}
}

// cloneSpecOf fills what the clone's spec leaves open from the source.
func (m *Manager) cloneSpecOf(name string, src volumeRecord, snap *recordsv1.Snapshot, asked *apiv1.VolumeSpec) (*apiv1.VolumeSpec, error) {
	have := specView(src.Record)
	spec := cloneSpec(asked)
	if spec.SizeBytes == 0 {
		spec.SizeBytes = snap.SizeBytes
	}
	if spec.Fs == "" {
		spec.Fs = have.Fs
	}
	if spec.Driver == "" {
		spec.Driver = have.Driver
	}
	if spec.Pool == "" {
		spec.Pool = have.Pool
	}
	if len(spec.MountOptions) == 0 {
		spec.MountOptions = have.MountOptions
	}
	spec, err := m.defaults().normalise(name, spec)
	if err != nil {
		return nil, err
	}
	switch {
	case spec.SizeBytes < snap.SizeBytes:
		return nil, fmt.Errorf("volume %q: size %d is smaller than that of the snapshot (%d): %w", name, spec.SizeBytes, snap.SizeBytes, errdefs.ErrOutOfRange)
	case spec.Fs != have.Fs && src.Record.Formatted:
		return nil, fmt.Errorf("volume %q: the snapshot has file system %s, not %s: %w", name, have.Fs, spec.Fs, errdefs.ErrInvalidArgument)
	case spec.Pool != have.Pool:
		return nil, fmt.Errorf("volume %q: a clone shares the drive of its snapshot, which is in pool %q, not %q: %w", name, have.Pool, spec.Pool, errdefs.ErrFailedPrecondition)
	case spec.Replicas != 1:
		return nil, fmt.Errorf("volume %q: %d replicas: a clone starts with the 1 of its snapshot: %w", name, spec.Replicas, errdefs.ErrFailedPrecondition)
	}
	return spec, nil
}

// errOriginGone: what a half-made clone was to be made from is not there.
var errOriginGone = fmt.Errorf("the snapshot that it was to be made from is gone: %w", errdefs.ErrNotFound)

// cloneReplica makes a clone's replica beside its origin's (0001, 4.5).
func cloneReplica(s *store.Store, spec store.ReplicaSpec, o *recordsv1.Origin) error {
	if _, err := s.Replica(spec.ID); err == nil {
		_, err = s.CreateReplica(spec) // the same one, whatever became of its origin
		return err
	}
	snap, err := store.ParseID(o.SnapshotId)
	if err != nil {
		return err
	}
	for _, r := range s.Replicas() {
		if r.VolumeID.String() != o.VolumeId {
			continue
		}
		_, err := s.Clone(spec, r.ID, snap)
		if errdefs.IsNotFound(err) {
			return fmt.Errorf("%w: %w", errOriginGone, err)
		}
		return err
	}
	return fmt.Errorf("no replica of volume %s: %w", o.VolumeId, errOriginGone)
}
