// Package api is the public contract of the agent as Go interfaces over the
// messages of agent/api/v1. The agent implements them (agent/volume), the
// server carries them over gRPC and HTTP (agent/apiserver), and the client
// implements them again (agent/client), so that a front end runs inside the
// agent's process or far from it with the same code.
//
// Errors have a class of plugins/errdefs. Every mutating call may be repeated.
package api

//go:generate protoc -I v1 -I /usr/include --go_out=v1 --go_opt=paths=source_relative --connect-go_out=v1 --connect-go_opt=paths=source_relative,simple v1/moraine.proto

import (
	"context"

	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
)

// Volumes creates, shows and removes volumes.
type Volumes interface {
	CreateVolume(context.Context, *apiv1.CreateVolumeRequest) (*apiv1.Volume, error)
	GetVolume(context.Context, *apiv1.GetVolumeRequest) (*apiv1.Volume, error)
	ListVolumes(context.Context, *apiv1.ListVolumesRequest) (*apiv1.ListVolumesResponse, error)
	DeleteVolume(context.Context, *apiv1.DeleteVolumeRequest) (*apiv1.DeleteVolumeResponse, error)
}

// VolumeChanges alters volumes and makes new ones of old.
type VolumeChanges interface {
	UpdateVolume(context.Context, *apiv1.UpdateVolumeRequest) (*apiv1.Volume, error)
	ResizeVolume(context.Context, *apiv1.ResizeVolumeRequest) (*apiv1.Volume, error)
	CloneVolume(context.Context, *apiv1.CloneVolumeRequest) (*apiv1.Volume, error)
}

// Attachments brings volumes to this node: as a block device, as a mounted
// filesystem, or as an NBD socket.
type Attachments interface {
	AttachVolume(context.Context, *apiv1.AttachVolumeRequest) (*apiv1.AttachVolumeResponse, error)
	DetachVolume(context.Context, *apiv1.DetachVolumeRequest) (*apiv1.DetachVolumeResponse, error)
	MountVolume(context.Context, *apiv1.MountVolumeRequest) (*apiv1.MountVolumeResponse, error)
	UnmountVolume(context.Context, *apiv1.UnmountVolumeRequest) (*apiv1.UnmountVolumeResponse, error)
	ExportVolume(context.Context, *apiv1.ExportVolumeRequest) (*apiv1.ExportVolumeResponse, error)
}

// Snapshots freezes, compares and restores states of volumes.
type Snapshots interface {
	CreateSnapshot(context.Context, *apiv1.CreateSnapshotRequest) (*apiv1.Snapshot, error)
	GetSnapshot(context.Context, *apiv1.GetSnapshotRequest) (*apiv1.Snapshot, error)
	ListSnapshots(context.Context, *apiv1.ListSnapshotsRequest) (*apiv1.ListSnapshotsResponse, error)
	// DiffSnapshot calls send with batches of extents in ascending order; an
	// error of send ends it and is returned.
	DiffSnapshot(ctx context.Context, r *apiv1.DiffSnapshotRequest, send func(*apiv1.DiffExtents) error) error
	RestoreSnapshot(context.Context, *apiv1.RestoreSnapshotRequest) (*apiv1.Volume, error)
	DeleteSnapshot(context.Context, *apiv1.DeleteSnapshotRequest) (*apiv1.DeleteSnapshotResponse, error)
}

// Cluster shows what there is: nodes, pools, drives, plugins, and their health.
type Cluster interface {
	GetStatus(context.Context, *apiv1.GetStatusRequest) (*apiv1.Status, error)
	RunDoctor(context.Context, *apiv1.RunDoctorRequest) (*apiv1.DoctorReport, error)
	ListNodes(context.Context, *apiv1.ListNodesRequest) (*apiv1.ListNodesResponse, error)
	ListPools(context.Context, *apiv1.ListPoolsRequest) (*apiv1.ListPoolsResponse, error)
	ListDrives(context.Context, *apiv1.ListDrivesRequest) (*apiv1.ListDrivesResponse, error)
	ListPlugins(context.Context, *apiv1.ListPluginsRequest) (*apiv1.ListPluginsResponse, error)
}

// Observer follows what happens.
type Observer interface {
	// WatchEvents calls send for each event in order of cursors until ctx
	// ends, or until the kept ones are sent if the request does not follow.
	WatchEvents(ctx context.Context, r *apiv1.WatchEventsRequest, send func(*apiv1.Event) error) error
	ListOperations(context.Context, *apiv1.ListOperationsRequest) (*apiv1.ListOperationsResponse, error)
	GetOperation(context.Context, *apiv1.GetOperationRequest) (*apiv1.Operation, error)
	// WatchOperation calls send with the operation now and at each change,
	// and returns when it has finished.
	WatchOperation(ctx context.Context, r *apiv1.GetOperationRequest, send func(*apiv1.Operation) error) error
}

// Nodes changes who belongs to the cluster and who may speak to it. It is a
// service of its own: front ends have no use for it.
type Nodes interface {
	CreateToken(context.Context, *apiv1.CreateTokenRequest) (*apiv1.CreateTokenResponse, error)
	ListTokens(context.Context, *apiv1.ListTokensRequest) (*apiv1.ListTokensResponse, error)
	RevokeToken(context.Context, *apiv1.RevokeTokenRequest) (*apiv1.RevokeTokenResponse, error)
	UpdateNode(context.Context, *apiv1.UpdateNodeRequest) (*apiv1.UpdateNodeResponse, error)
	RemoveNode(context.Context, *apiv1.RemoveNodeRequest) (*apiv1.RemoveNodeResponse, error)
}

// Service is what every front end may use.
type Service interface {
	Volumes
	VolumeChanges
	Attachments
	Snapshots
	Cluster
	Observer
}
