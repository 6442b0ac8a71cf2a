package volume

import (
	"context"
	"fmt"
	"sort"

	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	recordsv1 "github.com/moraine-storage/moraine/agent/cluster/records/v1"
	"github.com/moraine-storage/moraine/drivers/store"
	"github.com/moraine-storage/moraine/plugins/errdefs"
	"google.golang.org/protobuf/proto"
)

// GetVolume implements api.Volumes.
func (m *Manager) GetVolume(ctx context.Context, r *apiv1.GetVolumeRequest) (*apiv1.Volume, error) {
	v, err := m.find(ctx, r.Name)
	if err != nil {
		return nil, err
	}
	out := m.view(v.Record)
	// Only here: it walks the maps of the snapshots, which a list of all
	// volumes should not.
	if mem := member(v.Record); mem != nil {
		info, err := m.replicaInfo(mem)
		for _, l := range info.Layers {
			if n, xerr := m.exclusive(mem, l.Snapshot); err == nil && xerr == nil {
				out.Usage.SnapshotBytes += n
			}
		}
	}
	return out, nil
}

// volumes reads all records in order of name. One that cannot be read is
// logged and left out: the others are still there.
func (m *Manager) volumes(ctx context.Context) ([]volumeRecord, error) {
	vols, _, err := m.o.Records.Volumes.List(ctx)
	if err != nil {
		if len(vols) == 0 {
			return nil, err
		}
		m.o.Logger.Error("some volume records cannot be read", "error", err)
	}
	sort.Slice(vols, func(i, j int) bool { return vols[i].Record.Name < vols[j].Record.Name })
	return vols, nil
}

// ListVolumes implements api.Volumes; the page token is the last name.
func (m *Manager) ListVolumes(ctx context.Context, r *apiv1.ListVolumesRequest) (*apiv1.ListVolumesResponse, error) {
	if r.PageSize < 0 {
		return nil, fmt.Errorf("page size %d: %w", r.PageSize, errdefs.ErrInvalidArgument)
	}
	vols, err := m.volumes(ctx)
	if err != nil {
		return nil, err
	}
	out := &apiv1.ListVolumesResponse{}
	for _, v := range vols {
		if v.Record.Name <= r.PageToken && r.PageToken != "" || !hasLabels(v.Record, r.Labels) {
			continue
		}
		if r.PageSize > 0 && len(out.Volumes) == int(r.PageSize) {
			out.NextPageToken = out.Volumes[len(out.Volumes)-1].Name
			break
		}
		out.Volumes = append(out.Volumes, m.view(v.Record))
	}
	return out, nil
}

func hasLabels(r *recordsv1.Volume, want map[string]string) bool {
	for k, v := range want {
		if have, ok := r.GetSpec().GetLabels()[k]; !ok || have != v {
			return false
		}
	}
	return true
}

func cloneSpec(s *apiv1.VolumeSpec) *apiv1.VolumeSpec {
	if s == nil {
		return &apiv1.VolumeSpec{}
	}
	return proto.Clone(s).(*apiv1.VolumeSpec)
}

// specRecord and specView translate between the API's spec and the record's.
func specRecord(s *apiv1.VolumeSpec) *recordsv1.VolumeSpec {
	return &recordsv1.VolumeSpec{
		SizeBytes: s.SizeBytes, Replicas: s.Replicas, Pool: s.Pool, Fs: s.Fs, Driver: s.Driver, Stripes: s.Stripes,
		MaxIops: s.MaxIops, MaxBandwidth: s.MaxBandwidth, Labels: s.Labels, Encrypt: s.Encrypt, FromSnapshot: s.FromSnapshot,
		MinInSync: s.MinInSync, MkfsOptions: s.MkfsOptions, MountOptions: s.MountOptions,
	}
}

func specView(r *recordsv1.Volume) *apiv1.VolumeSpec {
	s := r.GetSpec()
	return cloneSpec(&apiv1.VolumeSpec{
		SizeBytes: r.GetSizeBytes(), Replicas: s.GetReplicas(), Pool: s.GetPool(), Fs: s.GetFs(), Driver: s.GetDriver(), Stripes: s.GetStripes(),
		MaxIops: s.GetMaxIops(), MaxBandwidth: s.GetMaxBandwidth(), Labels: s.GetLabels(), Encrypt: s.GetEncrypt(), FromSnapshot: s.GetFromSnapshot(),
		MinInSync: s.GetMinInSync(), MkfsOptions: s.GetMkfsOptions(), MountOptions: s.GetMountOptions(),
	})
}

// view is the volume as the API shows it: the record, and what this node sees.
func (m *Manager) view(r *recordsv1.Volume) *apiv1.Volume {
	v := &apiv1.Volume{
		Id: r.Id, Name: r.Name, Spec: specView(r), State: stateView(r), CreatedAt: r.CreatedAt, Epoch: r.GetEpoch().GetN(),
		Snapshots: uint32(len(r.Snapshots)), Formatted: r.Formatted, Usage: &apiv1.Usage{},
	}
	for g, group := range r.Groups {
		for _, mem := range group.Members {
			rep := &apiv1.Replica{Id: mem.ReplicaId, DriveId: mem.DriveId, Node: m.o.NodeName, Role: roleWord(mem.Role), Group: uint32(g)}
			if info, err := m.replicaInfo(mem); err != nil {
				v.Conditions = append(v.Conditions, condition("replica-unavailable", apiv1.Severity_ERROR, "replica "+mem.ReplicaId, err.Error(), "see `moraine drive list`"))
			} else {
				rep.AllocatedBytes = info.Mapped
				v.Usage.AllocatedBytes += info.Mapped
			}
			v.Replicas = append(v.Replicas, rep)
		}
	}
	for _, a := range r.Attachments {
		v.Attachments = append(v.Attachments, m.attachmentView(r, a))
	}
	m.addMountUsage(r, v)
	return v
}

// withReplica calls fn with a member's replica on this node.
func (m *Manager) withReplica(mem *recordsv1.Member, fn func(*store.Replica) error) error {
	s, release, err := m.o.Drives.Acquire(mem.DriveId)
	if err != nil {
		return err
	}
	defer release()
	id, err := store.ParseID(mem.ReplicaId)
	if err != nil {
		return err
	}
	r, err := s.Replica(id)
	if err != nil {
		return err
	}
	return fn(r)
}

func (m *Manager) replicaInfo(mem *recordsv1.Member) (info store.ReplicaInfo, err error) {
	err = m.withReplica(mem, func(r *store.Replica) error { info = r.Info(); return nil })
	return info, err
}

// exclusive is the space that deleting a snapshot would give back.
func (m *Manager) exclusive(mem *recordsv1.Member, snap store.ID) (n int64, err error) {
	err = m.withReplica(mem, func(r *store.Replica) error { n, err = r.Exclusive(&snap); return err })
	return n, err
}

func (m *Manager) attachmentView(r *recordsv1.Volume, a *recordsv1.Attachment) *apiv1.Attachment {
	out := &apiv1.Attachment{
		Node: a.NodeId, Kind: kindWord(a.Kind), Driver: a.Driver, Device: a.Device, Path: a.Path,
		ReadOnly: a.Access == recordsv1.Access_READ_ONLY, Consumers: consumersOf(a, ""), Since: a.Since, State: "ready",
	}
	if a.NodeId == m.o.NodeID {
		out.Node = m.o.NodeName
		l := m.attached(r.Id)
		switch {
		case l == nil:
			out.State = "recovering"
		case l.failure() != "":
			out.State = "failed"
		}
	}
	if a.Kind == recordsv1.AttachmentKind_SOCKET {
		out.Uri, out.Path = m.exportURI(r.Name), ""
	}
	return out
}

// addMountUsage tells how full a mounted file system is.
func (m *Manager) addMountUsage(r *recordsv1.Volume, v *apiv1.Volume) {
	a := attachmentOf(r, m.o.NodeID)
	if a == nil || a.Path == "" || a.Kind != recordsv1.AttachmentKind_BLOCK {
		return
	}
	if u, err := m.o.Host.Usage(a.Path); err == nil {
		v.Usage.FilesystemSizeBytes, v.Usage.FilesystemUsedBytes = u.Size, u.Used
	}
}

func (m *Manager) snapshotView(r *recordsv1.Volume, s *recordsv1.Snapshot) *apiv1.Snapshot {
	out := &apiv1.Snapshot{
		Id: s.Id, Volume: r.Name, VolumeId: r.Id, Name: s.Name, State: snapshotWord(s.State), CreatedAt: s.CreatedAt, SizeBytes: s.SizeBytes, Labels: s.Labels,
	}
	mem := member(r)
	if mem == nil {
		return out
	}
	info, err := m.replicaInfo(mem)
	if err != nil {
		return out
	}
	for _, l := range info.Layers {
		if l.Snapshot.String() == s.Id {
			out.AllocatedBytes = l.Mapped
			if n, err := m.exclusive(mem, l.Snapshot); err == nil {
				out.ExclusiveBytes = n
			}
		}
	}
	return out
}

func stateView(r *recordsv1.Volume) apiv1.VolumeState {
	switch r.State {
	case recordsv1.VolumeState_VOLUME_CREATING:
		return apiv1.VolumeState_CREATING
	case recordsv1.VolumeState_VOLUME_FAILED:
		return apiv1.VolumeState_VOLUME_FAILED
	case recordsv1.VolumeState_VOLUME_DELETING:
		return apiv1.VolumeState_DELETING
	}
	if len(r.Attachments) > 0 {
		return apiv1.VolumeState_ATTACHED
	}
	return apiv1.VolumeState_DETACHED
}

func stateWord(s recordsv1.VolumeState) string {
	switch s {
	case recordsv1.VolumeState_VOLUME_CREATING:
		return "being created"
	case recordsv1.VolumeState_VOLUME_READY:
		return "ready"
	case recordsv1.VolumeState_VOLUME_FAILED:
		return "failed"
	case recordsv1.VolumeState_VOLUME_DELETING:
		return "being deleted"
	}
	return s.String()
}

func snapshotWord(s recordsv1.SnapshotState) string {
	switch s {
	case recordsv1.SnapshotState_SNAPSHOT_CREATING:
		return "creating"
	case recordsv1.SnapshotState_SNAPSHOT_READY:
		return "ready"
	case recordsv1.SnapshotState_SNAPSHOT_DELETING:
		return "deleting"
	}
	return s.String()
}

func roleWord(r recordsv1.Role) string {
	switch r {
	case recordsv1.Role_IN_SYNC:
		return "in_sync"
	case recordsv1.Role_SYNCING:
		return "syncing"
	case recordsv1.Role_OUTDATED:
		return "outdated"
	case recordsv1.Role_FORKED:
		return "forked"
	case recordsv1.Role_LEAVING:
		return "leaving"
	}
	return r.String()
}

func kindWord(k recordsv1.AttachmentKind) string {
	switch k {
	case recordsv1.AttachmentKind_BLOCK:
		return "block"
	case recordsv1.AttachmentKind_EXPORT:
		return "export"
	case recordsv1.AttachmentKind_CLIENT:
		return "client"
	case recordsv1.AttachmentKind_SOCKET:
		return "socket"
	}
	return k.String()
}
