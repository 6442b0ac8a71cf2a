package apitest

import (
	"context"
	"fmt"
	"maps"
	"sort"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// normalSpec fills in the defaults and checks the rest.
func normalSpec(in *apiv1.VolumeSpec) (*apiv1.VolumeSpec, error) {
	s := &apiv1.VolumeSpec{}
	if in != nil {
		s = proto.CloneOf(in)
	}
	if s.SizeBytes == 0 {
		s.SizeBytes = defaultSizeBytes
	}
	if err := checkSize(s.SizeBytes); err != nil {
		return nil, err
	}
	s.SizeBytes = roundUp(s.SizeBytes)
	s.Replicas = max(s.Replicas, 1)
	s.Stripes = max(s.Stripes, 1)
	s.MinInSync = max(s.MinInSync, 1)
	if s.Fs == "" {
		s.Fs = "ext4"
	}
	if s.Driver == "" {
		s.Driver = "nbd"
	}
	return s, checkSpec(s)
}

func checkSpec(s *apiv1.VolumeSpec) error {
	bad := func(what string, got any, want string) error {
		return fmt.Errorf("%s %v: %s: %w", what, got, want, errdefs.ErrInvalidArgument)
	}
	switch {
	case s.Fs != "ext4" && s.Fs != "xfs" && s.Fs != "none":
		return bad("fs", s.Fs, "ext4, xfs or none")
	case s.Driver != "nbd" && s.Driver != "fuse":
		return bad("driver", s.Driver, "nbd or fuse")
	case s.MaxIops < 0:
		return bad("max_iops", s.MaxIops, "0 (no limit) or more")
	case s.MaxBandwidth < 0:
		return bad("max_bandwidth", s.MaxBandwidth, "0 (no limit) or more")
	case s.Pool != "" && s.Pool != "default":
		return fmt.Errorf("pool %q: %w", s.Pool, errdefs.ErrNotFound)
	case s.Replicas > 1:
		return fmt.Errorf("%d replicas: there is one drive: %w", s.Replicas, errdefs.ErrResourceExhausted)
	case s.Encrypt:
		return fmt.Errorf("encryption: %w", errdefs.ErrUnimplemented)
	}
	return nil
}

func checkSize(n int64) error {
	if n < 0 || n > maxSizeBytes {
		return fmt.Errorf("size %d: 1 to %d bytes: %w", n, int64(maxSizeBytes), errdefs.ErrOutOfRange)
	}
	return nil
}

func roundUp(n int64) int64 { return (n + extentBytes - 1) / extentBytes * extentBytes }

// CreateVolume implements api.Service.
func (f *Fake) CreateVolume(ctx context.Context, r *apiv1.CreateVolumeRequest) (*apiv1.Volume, error) {
	if err := f.enter(ctx, "CreateVolume", r); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	v, err := f.createLocked(r.GetName(), r.GetSpec(), "")
	if err != nil {
		return nil, fmt.Errorf("create volume %q: %w", r.GetName(), err)
	}
	return f.viewLocked(v), nil
}

// createLocked makes a volume or returns the one that is there. source is the
// snapshot or volume that it is a copy of, "" for a blank one.
func (f *Fake) createLocked(name string, in *apiv1.VolumeSpec, source string) (*volume, error) {
	if err := checkName("volume", name); err != nil {
		return nil, err
	}
	in = proto.CloneOf(in)
	if in == nil {
		in = &apiv1.VolumeSpec{}
	}
	from := source
	if from == "" {
		from = in.FromSnapshot
	}
	var base *shot
	if from != "" {
		var err error
		var of *volume
		if of, base, err = f.findShotLocked(from); err != nil {
			return nil, err
		}
		if in.Fs == "" {
			in.Fs = of.msg.Spec.Fs // it is in the content
		}
		if in.SizeBytes == 0 {
			in.SizeBytes = base.msg.SizeBytes
		}
	}
	spec, err := normalSpec(in)
	if err != nil {
		return nil, err
	}
	if base != nil && spec.SizeBytes < base.msg.SizeBytes {
		return nil, fmt.Errorf("size %d: the source has %d: %w", spec.SizeBytes, base.msg.SizeBytes, errdefs.ErrOutOfRange)
	}
	spec.FromSnapshot = from
	if old := f.volumes[name]; old != nil {
		if proto.Equal(old.msg.Spec, spec) {
			return old, nil
		}
		return nil, fmt.Errorf("it exists with another specification (size %d, fs %s): %w",
			old.msg.Spec.SizeBytes, old.msg.Spec.Fs, errdefs.ErrAlreadyExists)
	}
	v := &volume{
		msg: &apiv1.Volume{
			Id: f.newID(), Name: name, Spec: spec, State: apiv1.VolumeState_DETACHED,
			CreatedAt: timestamppb.New(f.now()), Epoch: 1,
			Replicas: []*apiv1.Replica{{Id: f.newID(), DriveId: f.drives[0].GetId(), Node: f.node, Role: "in_sync"}},
		},
		data: map[int64]uint64{}, snapshots: map[string]*shot{},
		attached: map[string]bool{}, mounted: map[string]string{},
	}
	if base != nil {
		v.data = maps.Clone(base.data)
		v.msg.Formatted = base.formatted
	}
	f.volumes[name] = v
	f.eventLocked("volume.created", "volume "+name, "created", map[string]string{"size_bytes": fmt.Sprint(spec.SizeBytes)})
	return v, nil
}

// GetVolume implements api.Service.
func (f *Fake) GetVolume(ctx context.Context, r *apiv1.GetVolumeRequest) (*apiv1.Volume, error) {
	if err := f.enter(ctx, "GetVolume", r); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	v, err := f.findLocked(r.GetName())
	if err != nil {
		return nil, err
	}
	return f.viewLocked(v), nil
}

// ListVolumes implements api.Service. Pages are in the order of names.
func (f *Fake) ListVolumes(ctx context.Context, r *apiv1.ListVolumesRequest) (*apiv1.ListVolumesResponse, error) {
	if err := f.enter(ctx, "ListVolumes", r); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	if r.GetPageSize() < 0 {
		return nil, fmt.Errorf("list volumes: page size %d: 0 (all) or more: %w", r.GetPageSize(), errdefs.ErrInvalidArgument)
	}
	resp := &apiv1.ListVolumesResponse{}
	for _, name := range sortedKeys(f.volumes) {
		if name <= r.GetPageToken() && r.GetPageToken() != "" {
			continue
		}
		v := f.volumes[name]
		if !hasLabels(v.msg.Spec.Labels, r.GetLabels()) {
			continue
		}
		if n := int(r.GetPageSize()); n > 0 && len(resp.Volumes) == n {
			resp.NextPageToken = resp.Volumes[n-1].Name
			break
		}
		resp.Volumes = append(resp.Volumes, f.viewLocked(v))
	}
	return resp, nil
}

func hasLabels(have, want map[string]string) bool {
	for k, v := range want {
		if got, ok := have[k]; !ok || got != v {
			return false
		}
	}
	return true
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

// UpdateVolume implements api.Service.
func (f *Fake) UpdateVolume(ctx context.Context, r *apiv1.UpdateVolumeRequest) (*apiv1.Volume, error) {
	if err := f.enter(ctx, "UpdateVolume", r); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	v, err := f.findLocked(r.GetName())
	if err != nil {
		return nil, fmt.Errorf("update: %w", err)
	}
	spec := proto.CloneOf(v.msg.Spec)
	if r.MaxIops != nil {
		spec.MaxIops = r.GetMaxIops()
	}
	if r.MaxBandwidth != nil {
		spec.MaxBandwidth = r.GetMaxBandwidth()
	}
	if err := checkSpec(spec); err != nil {
		return nil, fmt.Errorf("update volume %q: %w", r.GetName(), err)
	}
	for k, val := range r.GetSetLabels() {
		if spec.Labels == nil {
			spec.Labels = map[string]string{}
		}
		spec.Labels[k] = val
	}
	for _, k := range r.GetRemoveLabels() {
		delete(spec.Labels, k)
	}
	v.msg.Spec = spec
	f.eventLocked("volume.updated", "volume "+v.msg.Name, "updated", nil)
	return f.viewLocked(v), nil
}

// DeleteVolume implements api.Service.
func (f *Fake) DeleteVolume(ctx context.Context, r *apiv1.DeleteVolumeRequest) (*apiv1.DeleteVolumeResponse, error) {
	if err := f.enter(ctx, "DeleteVolume", r); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	v, err := f.findLocked(r.GetName())
	if errdefs.IsNotFound(err) {
		return &apiv1.DeleteVolumeResponse{}, nil
	}
	if len(v.msg.Attachments) > 0 {
		return nil, fmt.Errorf("delete volume %q: in use by %v: %w", r.GetName(), v.consumers(), errdefs.ErrFailedPrecondition)
	}
	if len(v.snapshots) > 0 && !r.GetWithSnapshots() {
		return nil, fmt.Errorf("delete volume %q: it has snapshots %v: %w", r.GetName(), sortedKeys(v.snapshots), errdefs.ErrFailedPrecondition)
	}
	delete(f.volumes, v.msg.Name)
	f.eventLocked("volume.deleted", "volume "+v.msg.Name, "deleted", nil)
	return &apiv1.DeleteVolumeResponse{Existed: true}, nil
}

// ResizeVolume implements api.Service.
func (f *Fake) ResizeVolume(ctx context.Context, r *apiv1.ResizeVolumeRequest) (*apiv1.Volume, error) {
	if err := f.enter(ctx, "ResizeVolume", r); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	v, err := f.findLocked(r.GetName())
	if err != nil {
		return nil, fmt.Errorf("resize: %w", err)
	}
	if err := checkSize(r.GetSizeBytes()); err != nil {
		return nil, fmt.Errorf("resize volume %q: %w", r.GetName(), err)
	}
	size := roundUp(r.GetSizeBytes())
	if size < v.msg.Spec.SizeBytes {
		return nil, fmt.Errorf("resize volume %q: to %d bytes: it has %d and can only grow: %w",
			r.GetName(), size, v.msg.Spec.SizeBytes, errdefs.ErrOutOfRange)
	}
	if size > v.msg.Spec.SizeBytes {
		v.msg.Spec.SizeBytes = size
		f.eventLocked("volume.resized", "volume "+v.msg.Name, "resized", map[string]string{"size_bytes": fmt.Sprint(size)})
	}
	return f.viewLocked(v), nil
}

// CloneVolume implements api.Service.
func (f *Fake) CloneVolume(ctx context.Context, r *apiv1.CloneVolumeRequest) (*apiv1.Volume, error) {
	if err := f.enter(ctx, "CloneVolume", r); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	v, err := f.cloneLocked(r)
	if err != nil {
		return nil, fmt.Errorf("clone %q to %q: %w", r.GetSource(), r.GetName(), err)
	}
	return f.viewLocked(v), nil
}

func (f *Fake) cloneLocked(r *apiv1.CloneVolumeRequest) (*volume, error) {
	if err := checkName("volume", r.GetName()); err != nil {
		return nil, err
	}
	if _, s, err := f.findShotLocked(r.GetSource()); err == nil {
		return f.createLocked(r.GetName(), r.GetSpec(), s.msg.Volume+"@"+s.msg.Name)
	} else if !errdefs.IsInvalidArgument(err) {
		return nil, err
	}
	src, err := f.findLocked(r.GetSource())
	if err != nil {
		return nil, err
	}
	// Of the volume as it is now, by a snapshot that goes when the clone is made.
	name := "clone-" + r.GetName()
	_, existed := src.snapshots[name]
	if _, err := f.snapshotLocked(src, name, nil); err != nil {
		return nil, err
	}
	v, err := f.createLocked(r.GetName(), r.GetSpec(), src.msg.Name+"@"+name)
	if !existed {
		delete(src.snapshots, name)
	}
	return v, err
}

// Write changes the content of a volume, as a container would: every extent
// that the range touches becomes allocated and different.
func (f *Fake) Write(name string, off, length int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	v, err := f.findLocked(name)
	if err != nil {
		return err
	}
	if off < 0 || length < 0 || off > v.msg.Spec.SizeBytes-length {
		return fmt.Errorf("write volume %q: %d+%d of %d: %w", name, off, length, v.msg.Spec.SizeBytes, errdefs.ErrOutOfRange)
	}
	for e := off / extentBytes; e*extentBytes < off+length; e++ {
		f.writes++
		v.data[e] = f.writes
	}
	return nil
}

// Trim makes the extents within a range holes again.
func (f *Fake) Trim(name string, off, length int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	v, err := f.findLocked(name)
	if err != nil {
		return err
	}
	for e := roundUp(off) / extentBytes; (e+1)*extentBytes <= off+length; e++ {
		delete(v.data, e)
	}
	return nil
}
