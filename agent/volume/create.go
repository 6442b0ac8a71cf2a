package volume

import (
	"context"
	"errors"
	"fmt"
	"strings"

	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	"github.com/moraine-storage/moraine/agent/cluster/records"
	recordsv1 "github.com/moraine-storage/moraine/agent/cluster/records/v1"
	"github.com/moraine-storage/moraine/agent/drive"
	"github.com/moraine-storage/moraine/agent/placement"
	"github.com/moraine-storage/moraine/drivers/store"
	"github.com/moraine-storage/moraine/plugins/errdefs"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// CreateVolume implements api.Volumes.
func (m *Manager) CreateVolume(ctx context.Context, r *apiv1.CreateVolumeRequest) (*apiv1.Volume, error) {
	if err := checkName("volume", r.Name); err != nil {
		return nil, err
	}
	if from := r.GetSpec().GetFromSnapshot(); from != "" {
		if _, _, err := splitSnapshot(from); err != nil {
			return nil, fmt.Errorf("volume %q: from-snapshot: %w", r.Name, err)
		}
		return m.cloneFrom(ctx, from, r.Name, r.Spec)
	}
	spec, err := m.defaults().normalise(r.Name, r.Spec)
	if err != nil {
		return nil, err
	}
	unlock, err := m.locks.lock(ctx, "name/"+r.Name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if v, err := m.existing(ctx, r.Name, r.Spec); v != nil || err != nil {
		return v, err
	}
	drives, err := m.place(spec)
	if err != nil {
		return nil, fmt.Errorf("create volume %q: %w", r.Name, err)
	}
	rec := m.newRecord(r.Name, spec, drives)
	v, err := m.create(ctx, rec)
	if err != nil {
		return nil, err
	}
	return m.view(v.Record), nil
}

// existing answers a repeated create: the volume, or why it is another one.
// A volume that a crash left half made is finished first.
func (m *Manager) existing(ctx context.Context, name string, asked *apiv1.VolumeSpec) (*apiv1.Volume, error) {
	v, err := m.o.Records.Volumes.GetByName(ctx, name)
	if errdefs.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if v.Record.State == recordsv1.VolumeState_VOLUME_DELETING {
		return nil, fmt.Errorf("volume %q is being deleted: %w", name, errdefs.ErrAborted)
	}
	if asked != nil && asked.SizeBytes != 0 {
		asked = cloneSpec(asked)
		asked.SizeBytes = roundUp(asked.SizeBytes, m.defaults().Extent)
	}
	if err := sameSpec(name, specView(v.Record), asked); err != nil {
		return nil, err
	}
	if v.Record.State == recordsv1.VolumeState_VOLUME_CREATING {
		v, err = m.finishExisting(ctx, v.Record.Id)
		if errors.Is(err, errOriginGone) {
			return nil, nil // and so is the volume
		}
		if err != nil {
			return nil, err
		}
	}
	return m.view(v.Record), nil
}

// finishExisting is finishCreate of another call's volume, under its lock.
func (m *Manager) finishExisting(ctx context.Context, id string) (volumeRecord, error) {
	unlock, err := m.locks.lock(ctx, id)
	if err != nil {
		return volumeRecord{}, err
	}
	defer unlock()
	v, err := m.o.Records.Volumes.Get(ctx, idOf(id))
	if err != nil || v.Record.State != recordsv1.VolumeState_VOLUME_CREATING {
		return v, err
	}
	return m.finishOrBury(ctx, v)
}

// finishOrBury is finishCreate of a volume that an earlier call left. A clone
// that can never be made is taken back: nobody was told that it exists.
func (m *Manager) finishOrBury(ctx context.Context, v volumeRecord) (volumeRecord, error) {
	now, err := m.finishCreate(ctx, v)
	if !errors.Is(err, errOriginGone) {
		return now, err
	}
	if berr := m.bury(ctx, v); berr != nil {
		return v, berr
	}
	m.event(apiv1.Severity_WARNING, "volume.clone-dropped", v.Record.Name, err.Error(), "id", v.Record.Id)
	return v, err
}

// place chooses the drives of a new volume.
func (m *Manager) place(spec *apiv1.VolumeSpec) ([]string, error) {
	provisioned := map[string]int64{}
	var candidates []placement.Drive
	for _, d := range m.o.Drives.List() {
		if d.ID == "" {
			continue
		}
		for _, r := range m.replicasOn(d) {
			provisioned[d.ID] += r.Size
		}
		candidates = append(candidates, placement.Drive{
			ID: d.ID, Node: m.o.NodeID, Pool: d.Pool, State: d.State, Capacity: d.Info.Capacity, Free: d.Info.Free, Provisioned: provisioned[d.ID],
		})
	}
	d, err := placement.Place(candidates, placement.Request{
		Replicas: int(spec.Replicas), Pool: spec.Pool, Size: spec.SizeBytes, Local: m.o.NodeID,
	})
	return d.Drives, err
}

// replicasOn lists the replicas of a drive; none while it is not open.
func (m *Manager) replicasOn(d drive.Status) []store.ReplicaInfo {
	s, release, err := m.o.Drives.Acquire(d.ID)
	if err != nil {
		return nil
	}
	defer release()
	return s.Replicas()
}

func (m *Manager) newRecord(name string, spec *apiv1.VolumeSpec, drives []string) *recordsv1.Volume {
	rec := &recordsv1.Volume{
		Id: string(records.NewID()), Name: name, CreatedAt: timestamppb.Now(), State: recordsv1.VolumeState_VOLUME_CREATING,
		Spec: specRecord(spec), Clean: true, Epoch: &recordsv1.Epoch{N: 1, Tag: randomTag()},
		SizeBytes: spec.SizeBytes, SectorBytes: 512, GrainBytes: uint32(m.defaults().Extent), RegionBytes: uint32(m.defaults().Region),
		StripeUnitBytes: 1 << 20, Groups: []*recordsv1.Group{{}},
	}
	for _, d := range drives {
		rec.Groups[0].Members = append(rec.Groups[0].Members, &recordsv1.Member{
			ReplicaId: string(records.NewID()), DriveId: d, Role: recordsv1.Role_IN_SYNC,
		})
	}
	return rec
}

// create writes the record, makes the replicas, and says that the volume is
// there. What fails after the record was written is taken back by tombstones.
func (m *Manager) create(ctx context.Context, rec *recordsv1.Volume) (volumeRecord, error) {
	// Nobody deletes it before its replicas are made: they would stay for ever.
	unlock, err := m.locks.lock(ctx, rec.Id)
	if err != nil {
		return volumeRecord{}, err
	}
	defer unlock()
	v, err := m.o.Records.Volumes.Create(ctx, rec)
	if errdefs.Indeterminate(err) {
		v, err = m.settleCreate(ctx, rec, err)
	}
	if err != nil {
		return v, fmt.Errorf("create volume %q: %w", rec.Name, err)
	}
	done, err := m.finishCreate(ctx, v)
	if err != nil {
		return v, errors.Join(err, m.bury(context.WithoutCancel(ctx), v))
	}
	m.info("volume.created", rec.Name, "", "id", rec.Id, "size", fmt.Sprint(rec.SizeBytes))
	return done, nil
}

// settleCreate asks whether a create whose answer was lost has happened. A
// record that is not there may still come: its name is random in effect (its
// ID is), so the worst is a volume in state creating that nobody was told of,
// which the next create of that name finishes.
func (m *Manager) settleCreate(ctx context.Context, rec *recordsv1.Volume, lost error) (volumeRecord, error) {
	v, err := m.o.Records.Volumes.Get(ctx, records.ID(rec.Id))
	if err != nil {
		return v, errors.Join(lost, err)
	}
	return v, nil
}

// finishCreate makes the replicas of a record in state creating. Idempotent.
func (m *Manager) finishCreate(ctx context.Context, v volumeRecord) (volumeRecord, error) {
	for _, g := range v.Record.Groups {
		for _, mem := range g.Members {
			if err := m.makeReplica(v.Record, mem); err != nil {
				return v, fmt.Errorf("create volume %q: replica on drive %s: %w", v.Record.Name, mem.DriveId, err)
			}
		}
	}
	return m.update(ctx, v, func(r *recordsv1.Volume) { r.State = recordsv1.VolumeState_VOLUME_READY })
}

func (m *Manager) makeReplica(rec *recordsv1.Volume, mem *recordsv1.Member) error {
	s, release, err := m.o.Drives.Acquire(mem.DriveId)
	if err != nil {
		return err
	}
	defer release()
	spec, err := replicaSpec(rec, mem)
	if err != nil {
		return err
	}
	if o := rec.Origin; o != nil {
		return cloneReplica(s, spec, o)
	}
	_, err = s.CreateReplica(spec)
	return err
}

func replicaSpec(rec *recordsv1.Volume, mem *recordsv1.Member) (store.ReplicaSpec, error) {
	id, err := store.ParseID(mem.ReplicaId)
	if err != nil {
		return store.ReplicaSpec{}, err
	}
	vol, err := store.ParseID(rec.Id)
	if err != nil {
		return store.ReplicaSpec{}, err
	}
	return store.ReplicaSpec{ID: id, VolumeID: vol, Size: rec.SizeBytes, Grain: int64(rec.GrainBytes), Untracked: len(rec.Groups[0].Members) == 1}, nil
}

// bury removes a volume's record and leaves a tombstone for each replica, in
// one transaction; then the replicas here go (invariant 4).
func (m *Manager) bury(ctx context.Context, v volumeRecord) error {
	changes := []records.Change{m.o.Records.Volumes.Deleting(v)}
	for _, g := range v.Record.Groups {
		for _, mem := range g.Members {
			changes = append(changes, m.o.Records.Tombstones.Creating(&recordsv1.Tombstone{
				Id: mem.ReplicaId, VolumeId: v.Record.Id, DriveId: mem.DriveId, DeletedAt: timestamppb.Now(),
			}))
		}
	}
	if _, err := m.o.Records.Commit(ctx, changes...); err != nil {
		return fmt.Errorf("delete volume %q: %w", v.Record.Name, err)
	}
	for _, g := range v.Record.Groups {
		for _, mem := range g.Members {
			m.retire(ctx, mem.ReplicaId, mem.DriveId)
		}
	}
	return nil
}

// retire deletes a replica whose tombstone is in the cluster store, and then
// the tombstone. What does not work now is done at the next start.
func (m *Manager) retire(ctx context.Context, replica, driveID string) {
	id, err := store.ParseID(replica)
	if err != nil {
		return
	}
	s, release, err := m.o.Drives.Acquire(driveID)
	if err != nil {
		m.o.Logger.Info("replica will be deleted when its drive is back", "replica", replica, "drive", driveID, "reason", err)
		return
	}
	defer release()
	if err := s.Delete(id, true); err != nil && !errdefs.IsNotFound(err) {
		m.o.Logger.Warn("replica not deleted yet", "replica", replica, "error", err)
		return
	}
	t, err := m.o.Records.Tombstones.Get(ctx, records.ID(replica))
	if err == nil {
		err = m.o.Records.Tombstones.Delete(ctx, t)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		m.o.Logger.Warn("tombstone stays", "replica", replica, "error", err)
	}
}

// DeleteVolume implements api.Volumes.
func (m *Manager) DeleteVolume(ctx context.Context, r *apiv1.DeleteVolumeRequest) (*apiv1.DeleteVolumeResponse, error) {
	v, unlock, err := m.lock(ctx, r.Name)
	if errdefs.IsNotFound(err) {
		return &apiv1.DeleteVolumeResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	defer unlock()
	rec := v.Record
	if l := m.attached(rec.Id); l != nil || rec.Primary != nil {
		if a := attachmentOf(rec, m.o.NodeID); a != nil && len(a.Consumers) > 0 {
			return nil, inUse(rec, a.Consumers)
		}
		return nil, fmt.Errorf("volume %q is attached; detach it first: %w", rec.Name, errdefs.ErrFailedPrecondition)
	}
	if names := snapshotNames(rec); len(names) > 0 && !r.WithSnapshots {
		some := strings.Join(names[:min(5, len(names))], ", ")
		if len(names) > 5 {
			some += ", …"
		}
		return nil, fmt.Errorf("volume %q has %d snapshots (%s); delete them first, or delete them with it (--snapshots): %w", rec.Name, len(names), some, errdefs.ErrFailedPrecondition)
	}
	for _, s := range rec.Snapshots {
		m.dropSnapExport(s.Id)
	}
	if err := m.bury(ctx, v); err != nil {
		return nil, err
	}
	m.info("volume.deleted", rec.Name, "", "id", rec.Id)
	return &apiv1.DeleteVolumeResponse{Existed: true}, nil
}

// snapshotNames are those that a person may want: not what is being deleted.
func snapshotNames(rec *recordsv1.Volume) []string {
	var names []string
	for _, s := range rec.Snapshots {
		if s.State != recordsv1.SnapshotState_SNAPSHOT_DELETING {
			names = append(names, s.Name)
		}
	}
	return names
}
