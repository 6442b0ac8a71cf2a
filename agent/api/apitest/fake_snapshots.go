package apitest

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// diffBatch is the number of extents in one message of a diff: small, so that
// tests see several.
const diffBatch = 4

// CreateSnapshot implements api.Service.
func (f *Fake) CreateSnapshot(ctx context.Context, r *apiv1.CreateSnapshotRequest) (*apiv1.Snapshot, error) {
	if err := f.enter(ctx, "CreateSnapshot", r); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	v, err := f.findLocked(r.GetVolume())
	if err != nil {
		return nil, fmt.Errorf("create snapshot: %w", err)
	}
	name := r.GetName()
	if name == "" {
		base := "snap-" + f.now().UTC().Format("20060102-150405")
		name = base
		for i := 2; v.snapshots[name] != nil; i++ {
			name = fmt.Sprintf("%s-%d", base, i)
		}
	}
	s, err := f.snapshotLocked(v, name, r.GetLabels())
	if err != nil {
		return nil, fmt.Errorf("create snapshot %q of volume %q: %w", name, r.GetVolume(), err)
	}
	return f.shotViewLocked(v, s), nil
}

// snapshotLocked makes the snapshot or returns the one that is there.
func (f *Fake) snapshotLocked(v *volume, name string, labels map[string]string) (*shot, error) {
	if err := checkName("snapshot", name); err != nil {
		return nil, err
	}
	if s := v.snapshots[name]; s != nil {
		return s, nil
	}
	s := &shot{
		msg: &apiv1.Snapshot{
			Id: f.newID(), Volume: v.msg.Name, VolumeId: v.msg.Id, Name: name, State: "ready",
			CreatedAt: timestamppb.New(f.now()), SizeBytes: v.msg.Spec.SizeBytes, Labels: maps.Clone(labels),
		},
		data: maps.Clone(v.data), formatted: v.msg.Formatted,
	}
	v.snapshots[name] = s
	f.eventLocked("snapshot.created", "snapshot "+v.msg.Name+"@"+name, "created", nil)
	return s, nil
}

// shotViewLocked is the snapshot as the API shows it.
func (f *Fake) shotViewLocked(v *volume, s *shot) *apiv1.Snapshot {
	m := proto.CloneOf(s.msg)
	m.AllocatedBytes = int64(len(s.data)) * extentBytes
	for e, val := range s.data {
		only := v.data[e] != val
		for _, o := range v.snapshots {
			only = only && (o == s || o.data[e] != val)
		}
		if only {
			m.ExclusiveBytes += extentBytes
		}
	}
	return m
}

// GetSnapshot implements api.Service.
func (f *Fake) GetSnapshot(ctx context.Context, r *apiv1.GetSnapshotRequest) (*apiv1.Snapshot, error) {
	if err := f.enter(ctx, "GetSnapshot", r); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	v, s, err := f.findShotLocked(r.GetName())
	if err != nil {
		return nil, err
	}
	return f.shotViewLocked(v, s), nil
}

// ListSnapshots implements api.Service: by volume, then by time.
func (f *Fake) ListSnapshots(ctx context.Context, r *apiv1.ListSnapshotsRequest) (*apiv1.ListSnapshotsResponse, error) {
	if err := f.enter(ctx, "ListSnapshots", r); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	vols := sortedKeys(f.volumes)
	if r.GetVolume() != "" {
		v, err := f.findLocked(r.GetVolume())
		if err != nil {
			return nil, fmt.Errorf("list snapshots: %w", err)
		}
		vols = []string{v.msg.Name}
	}
	resp := &apiv1.ListSnapshotsResponse{}
	for _, name := range vols {
		v := f.volumes[name]
		of := []*apiv1.Snapshot{}
		for _, sn := range sortedKeys(v.snapshots) {
			of = append(of, f.shotViewLocked(v, v.snapshots[sn]))
		}
		slices.SortStableFunc(of, func(a, b *apiv1.Snapshot) int { return a.CreatedAt.AsTime().Compare(b.CreatedAt.AsTime()) })
		resp.Snapshots = append(resp.Snapshots, of...)
	}
	return resp, nil
}

// DiffSnapshot implements api.Service.
func (f *Fake) DiffSnapshot(ctx context.Context, r *apiv1.DiffSnapshotRequest, send func(*apiv1.DiffExtents) error) error {
	if err := f.enter(ctx, "DiffSnapshot", r); err != nil {
		return err
	}
	extents, err := f.diffLocked(r)
	f.mu.Unlock()
	if err != nil {
		return fmt.Errorf("compare %q with %q: %w", r.GetFrom(), r.GetTo(), err)
	}
	for batch := range slices.Chunk(extents, diffBatch) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := send(&apiv1.DiffExtents{Extents: batch}); err != nil {
			return err
		}
	}
	return nil
}

func (f *Fake) diffLocked(r *apiv1.DiffSnapshotRequest) ([]*apiv1.DiffExtents_Extent, error) {
	var v *volume
	var to map[int64]uint64
	if vt, s, err := f.findShotLocked(r.GetTo()); err == nil {
		v, to = vt, s.data
	} else if !errdefs.IsInvalidArgument(err) {
		return nil, err
	} else if v, err = f.findLocked(r.GetTo()); err != nil {
		return nil, err
	} else {
		to = v.data
	}
	from := map[int64]uint64{}
	if r.GetFrom() != "" {
		vf, s, err := f.findShotLocked(r.GetFrom())
		if err != nil {
			return nil, err
		}
		if vf != v {
			return nil, fmt.Errorf("they are of different volumes: %w", errdefs.ErrInvalidArgument)
		}
		from = s.data
	}
	return compare(from, to), nil
}

// compare lists the ranges that differ, adjacent ones of a kind as one.
func compare(from, to map[int64]uint64) []*apiv1.DiffExtents_Extent {
	all := map[int64]bool{}
	for e := range from {
		all[e] = true
	}
	for e := range to {
		all[e] = true
	}
	var out []*apiv1.DiffExtents_Extent
	for _, e := range slices.Sorted(maps.Keys(all)) {
		val, there := to[e]
		if old, was := from[e]; was && there && old == val {
			continue
		}
		off := e * extentBytes
		if n := len(out); n > 0 && out[n-1].Hole == !there && out[n-1].Offset+out[n-1].Length == off {
			out[n-1].Length += extentBytes
			continue
		}
		out = append(out, &apiv1.DiffExtents_Extent{Offset: off, Length: extentBytes, Hole: !there})
	}
	return out
}

// RestoreSnapshot implements api.Service.
func (f *Fake) RestoreSnapshot(ctx context.Context, r *apiv1.RestoreSnapshotRequest) (*apiv1.Volume, error) {
	if err := f.enter(ctx, "RestoreSnapshot", r); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	v, s, err := f.findShotLocked(r.GetName())
	if err != nil {
		return nil, fmt.Errorf("restore: %w", err)
	}
	if len(v.msg.Attachments) > 0 {
		return nil, fmt.Errorf("restore snapshot %q: the volume is in use by %v: %w", r.GetName(), v.consumers(), errdefs.ErrFailedPrecondition)
	}
	v.data, v.msg.Formatted = maps.Clone(s.data), s.formatted
	f.eventLocked("snapshot.restored", "snapshot "+r.GetName(), "restored", nil)
	return f.viewLocked(v), nil
}

// DeleteSnapshot implements api.Service.
func (f *Fake) DeleteSnapshot(ctx context.Context, r *apiv1.DeleteSnapshotRequest) (*apiv1.DeleteSnapshotResponse, error) {
	if err := f.enter(ctx, "DeleteSnapshot", r); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	v, s, err := f.findShotLocked(r.GetName())
	if errdefs.IsNotFound(err) {
		return &apiv1.DeleteSnapshotResponse{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("delete: %w", err)
	}
	delete(v.snapshots, s.msg.Name)
	f.eventLocked("snapshot.deleted", "snapshot "+v.msg.Name+"@"+s.msg.Name, "deleted", nil)
	return &apiv1.DeleteSnapshotResponse{Existed: true}, nil
}
