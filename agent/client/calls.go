package client

import (
	"context"

	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
)

// The calls of api.Service, each with the words that name it in an error.

// CreateVolume implements api.Service.
func (c *Client) CreateVolume(ctx context.Context, r *apiv1.CreateVolumeRequest) (*apiv1.Volume, error) {
	return unary(ctx, c, "create volume", r.GetName(), c.rpc.CreateVolume, r)
}

// GetVolume implements api.Service.
func (c *Client) GetVolume(ctx context.Context, r *apiv1.GetVolumeRequest) (*apiv1.Volume, error) {
	return unary(ctx, c, "show volume", r.GetName(), c.rpc.GetVolume, r)
}

// ListVolumes implements api.Service.
func (c *Client) ListVolumes(ctx context.Context, r *apiv1.ListVolumesRequest) (*apiv1.ListVolumesResponse, error) {
	return unary(ctx, c, "list volumes", "", c.rpc.ListVolumes, r)
}

// DeleteVolume implements api.Service.
func (c *Client) DeleteVolume(ctx context.Context, r *apiv1.DeleteVolumeRequest) (*apiv1.DeleteVolumeResponse, error) {
	return unary(ctx, c, "delete volume", r.GetName(), c.rpc.DeleteVolume, r)
}

// UpdateVolume implements api.Service.
func (c *Client) UpdateVolume(ctx context.Context, r *apiv1.UpdateVolumeRequest) (*apiv1.Volume, error) {
	return unary(ctx, c, "update volume", r.GetName(), c.rpc.UpdateVolume, r)
}

// ResizeVolume implements api.Service.
func (c *Client) ResizeVolume(ctx context.Context, r *apiv1.ResizeVolumeRequest) (*apiv1.Volume, error) {
	return unary(ctx, c, "resize volume", r.GetName(), c.rpc.ResizeVolume, r)
}

// CloneVolume implements api.Service.
func (c *Client) CloneVolume(ctx context.Context, r *apiv1.CloneVolumeRequest) (*apiv1.Volume, error) {
	return unary(ctx, c, "clone volume", r.GetSource(), c.rpc.CloneVolume, r)
}

// AttachVolume implements api.Service.
func (c *Client) AttachVolume(ctx context.Context, r *apiv1.AttachVolumeRequest) (*apiv1.AttachVolumeResponse, error) {
	return unary(ctx, c, "attach volume", r.GetName(), c.rpc.AttachVolume, r)
}

// DetachVolume implements api.Service.
func (c *Client) DetachVolume(ctx context.Context, r *apiv1.DetachVolumeRequest) (*apiv1.DetachVolumeResponse, error) {
	return unary(ctx, c, "detach volume", r.GetName(), c.rpc.DetachVolume, r)
}

// MountVolume implements api.Service.
func (c *Client) MountVolume(ctx context.Context, r *apiv1.MountVolumeRequest) (*apiv1.MountVolumeResponse, error) {
	return unary(ctx, c, "mount volume", r.GetName(), c.rpc.MountVolume, r)
}

// UnmountVolume implements api.Service.
func (c *Client) UnmountVolume(ctx context.Context, r *apiv1.UnmountVolumeRequest) (*apiv1.UnmountVolumeResponse, error) {
	return unary(ctx, c, "unmount volume", r.GetName(), c.rpc.UnmountVolume, r)
}

// ExportVolume implements api.Service.
func (c *Client) ExportVolume(ctx context.Context, r *apiv1.ExportVolumeRequest) (*apiv1.ExportVolumeResponse, error) {
	return unary(ctx, c, "export volume", r.GetName(), c.rpc.ExportVolume, r)
}

// CreateSnapshot implements api.Service.
func (c *Client) CreateSnapshot(ctx context.Context, r *apiv1.CreateSnapshotRequest) (*apiv1.Snapshot, error) {
	return unary(ctx, c, "create snapshot of volume", r.GetVolume(), c.rpc.CreateSnapshot, r)
}

// GetSnapshot implements api.Service.
func (c *Client) GetSnapshot(ctx context.Context, r *apiv1.GetSnapshotRequest) (*apiv1.Snapshot, error) {
	return unary(ctx, c, "show snapshot", r.GetName(), c.rpc.GetSnapshot, r)
}

// ListSnapshots implements api.Service.
func (c *Client) ListSnapshots(ctx context.Context, r *apiv1.ListSnapshotsRequest) (*apiv1.ListSnapshotsResponse, error) {
	return unary(ctx, c, "list snapshots", r.GetVolume(), c.rpc.ListSnapshots, r)
}

// RestoreSnapshot implements api.Service.
func (c *Client) RestoreSnapshot(ctx context.Context, r *apiv1.RestoreSnapshotRequest) (*apiv1.Volume, error) {
	return unary(ctx, c, "restore snapshot", r.GetName(), c.rpc.RestoreSnapshot, r)
}

// DeleteSnapshot implements api.Service.
func (c *Client) DeleteSnapshot(ctx context.Context, r *apiv1.DeleteSnapshotRequest) (*apiv1.DeleteSnapshotResponse, error) {
	return unary(ctx, c, "delete snapshot", r.GetName(), c.rpc.DeleteSnapshot, r)
}

// GetStatus implements api.Service.
func (c *Client) GetStatus(ctx context.Context, r *apiv1.GetStatusRequest) (*apiv1.Status, error) {
	return unary(ctx, c, "get status", "", c.rpc.GetStatus, r)
}

// RunDoctor implements api.Service.
func (c *Client) RunDoctor(ctx context.Context, r *apiv1.RunDoctorRequest) (*apiv1.DoctorReport, error) {
	return unary(ctx, c, "run doctor", "", c.rpc.RunDoctor, r)
}

// ListNodes implements api.Service.
func (c *Client) ListNodes(ctx context.Context, r *apiv1.ListNodesRequest) (*apiv1.ListNodesResponse, error) {
	return unary(ctx, c, "list nodes", r.GetName(), c.rpc.ListNodes, r)
}

// ListPools implements api.Service.
func (c *Client) ListPools(ctx context.Context, r *apiv1.ListPoolsRequest) (*apiv1.ListPoolsResponse, error) {
	return unary(ctx, c, "list pools", r.GetName(), c.rpc.ListPools, r)
}

// ListDrives implements api.Service.
func (c *Client) ListDrives(ctx context.Context, r *apiv1.ListDrivesRequest) (*apiv1.ListDrivesResponse, error) {
	return unary(ctx, c, "list drives", "", c.rpc.ListDrives, r)
}

// ListPlugins implements api.Service.
func (c *Client) ListPlugins(ctx context.Context, r *apiv1.ListPluginsRequest) (*apiv1.ListPluginsResponse, error) {
	return unary(ctx, c, "list plugins", "", c.rpc.ListPlugins, r)
}

// ListOperations implements api.Service.
func (c *Client) ListOperations(ctx context.Context, r *apiv1.ListOperationsRequest) (*apiv1.ListOperationsResponse, error) {
	return unary(ctx, c, "list operations", "", c.rpc.ListOperations, r)
}

// GetOperation implements api.Service.
func (c *Client) GetOperation(ctx context.Context, r *apiv1.GetOperationRequest) (*apiv1.Operation, error) {
	return unary(ctx, c, "show operation", r.GetId(), c.rpc.GetOperation, r)
}

// DiffSnapshot implements api.Service.
func (c *Client) DiffSnapshot(ctx context.Context, r *apiv1.DiffSnapshotRequest, send func(*apiv1.DiffExtents) error) error {
	return stream(ctx, c, "compare snapshot", r.GetTo(), c.rpc.DiffSnapshot, r, send)
}

// WatchEvents implements api.Service.
func (c *Client) WatchEvents(ctx context.Context, r *apiv1.WatchEventsRequest, send func(*apiv1.Event) error) error {
	return stream(ctx, c, "watch events", "", c.rpc.WatchEvents, r, send)
}

// WatchOperation implements api.Service.
func (c *Client) WatchOperation(ctx context.Context, r *apiv1.GetOperationRequest, send func(*apiv1.Operation) error) error {
	return stream(ctx, c, "watch operation", r.GetId(), c.rpc.WatchOperation, r, send)
}
