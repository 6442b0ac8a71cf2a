package apitest

import (
	"context"
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/moraine-storage/moraine/agent/api/apierr"
	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// GetStatus implements api.Service.
func (f *Fake) GetStatus(ctx context.Context, r *apiv1.GetStatusRequest) (*apiv1.Status, error) {
	if err := f.enter(ctx, "GetStatus", r); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	if f.status != nil {
		return proto.CloneOf(f.status), nil
	}
	s := &apiv1.Status{
		Version: "v0.0.0-test", Commit: "0000000", Node: f.node, NodeId: f.nodeID, ClusterId: f.clstID,
		StartedAt: timestamppb.New(f.start), Ready: true, Volumes: uint32(len(f.volumes)),
		Pools: f.poolsLocked(), DataDir: "/var/lib/moraine",
	}
	for _, v := range f.volumes {
		if len(v.msg.Attachments) > 0 {
			s.Attached++
		}
	}
	return s, nil
}

// poolsLocked fills in what the volumes use.
func (f *Fake) poolsLocked() []*apiv1.Pool {
	var used, provisioned int64
	for _, v := range f.volumes {
		used += int64(len(v.data))*extentBytes + snapshotBytes(v)
		provisioned += v.msg.Spec.SizeBytes
	}
	out := make([]*apiv1.Pool, 0, len(f.pools))
	for _, p := range f.pools {
		p = proto.CloneOf(p)
		p.UsedBytes, p.ProvisionedBytes = used, provisioned
		p.FreeBytes, p.Replicas = p.CapacityBytes-used, uint32(len(f.volumes))
		out = append(out, p)
	}
	return out
}

// RunDoctor implements api.Service.
func (f *Fake) RunDoctor(ctx context.Context, r *apiv1.RunDoctorRequest) (*apiv1.DoctorReport, error) {
	if err := f.enter(ctx, "RunDoctor", r); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	return proto.CloneOf(f.doctor), nil
}

// ListNodes implements api.Service.
func (f *Fake) ListNodes(ctx context.Context, r *apiv1.ListNodesRequest) (*apiv1.ListNodesResponse, error) {
	if err := f.enter(ctx, "ListNodes", r); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	if n := r.GetName(); n != "" && n != f.node && n != f.nodeID {
		return nil, fmt.Errorf("node %q: %w", n, errdefs.ErrNotFound)
	}
	return &apiv1.ListNodesResponse{Nodes: []*apiv1.Node{{
		Id: f.nodeID, Name: f.node, Address: "127.0.0.1", Alive: true, Version: "v0.0.0-test",
		StartedAt: timestamppb.New(f.start), Drives: uint32(len(f.drives)), Volumes: uint32(len(f.volumes)),
		Labels: map[string]string{"zone": "z1"},
	}}}, nil
}

// ListPools implements api.Service.
func (f *Fake) ListPools(ctx context.Context, r *apiv1.ListPoolsRequest) (*apiv1.ListPoolsResponse, error) {
	if err := f.enter(ctx, "ListPools", r); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	resp := &apiv1.ListPoolsResponse{}
	for _, p := range f.poolsLocked() {
		if r.GetName() == "" || r.GetName() == p.Name {
			resp.Pools = append(resp.Pools, p)
		}
	}
	if r.GetName() != "" && len(resp.Pools) == 0 {
		return nil, fmt.Errorf("pool %q: %w", r.GetName(), errdefs.ErrNotFound)
	}
	return resp, nil
}

// ListDrives implements api.Service.
func (f *Fake) ListDrives(ctx context.Context, r *apiv1.ListDrivesRequest) (*apiv1.ListDrivesResponse, error) {
	if err := f.enter(ctx, "ListDrives", r); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	resp := &apiv1.ListDrivesResponse{}
	for i, d := range f.drives {
		if r.GetPool() != "" && r.GetPool() != d.Pool {
			continue
		}
		d = proto.CloneOf(d)
		if i == 0 { // all replicas of the fake are on its first drive
			for _, name := range sortedKeys(f.volumes) {
				v := f.volumes[name]
				d.UsedBytes += int64(len(v.data))*extentBytes + snapshotBytes(v)
				d.Replicas++
				d.ReplicaIds = append(d.ReplicaIds, v.msg.Replicas[0].Id)
			}
		}
		d.FreeBytes = d.CapacityBytes - d.UsedBytes
		resp.Drives = append(resp.Drives, d)
	}
	return resp, nil
}

// ListPlugins implements api.Service.
func (f *Fake) ListPlugins(ctx context.Context, r *apiv1.ListPluginsRequest) (*apiv1.ListPluginsResponse, error) {
	if err := f.enter(ctx, "ListPlugins", r); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	resp := &apiv1.ListPluginsResponse{}
	for _, p := range f.plugins {
		resp.Plugins = append(resp.Plugins, proto.CloneOf(p))
	}
	return resp, nil
}

// WatchEvents implements api.Service.
func (f *Fake) WatchEvents(ctx context.Context, r *apiv1.WatchEventsRequest, send func(*apiv1.Event) error) error {
	if err := f.enter(ctx, "WatchEvents", r); err != nil {
		return err
	}
	f.mu.Unlock()
	after := r.GetAfter()
	for {
		f.mu.Lock()
		var events []*apiv1.Event
		for _, e := range f.events {
			if e.Cursor > after && (r.GetObject() == "" || r.GetObject() == e.Object) {
				events = append(events, proto.CloneOf(e))
			}
		}
		changed := f.changed
		f.mu.Unlock()
		for _, e := range events {
			if err := send(e); err != nil {
				return err
			}
			after = e.Cursor
		}
		if !r.GetFollow() {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// operationLocked starts an operation; the id "" makes one.
func (f *Fake) operationLocked(id, kind, object string) *apiv1.Operation {
	if id == "" {
		id = f.newID()
	}
	op := &apiv1.Operation{
		Id: id, Kind: kind, Object: object, State: apiv1.OperationState_RUNNING,
		CreatedAt: timestamppb.New(f.now()), Total: 3, Unit: "steps",
	}
	if i := f.indexLocked(id); i >= 0 { // the same request again
		f.ops[i] = op
	} else {
		f.ops = append(f.ops, op)
	}
	f.wakeLocked()
	return op
}

// finishLocked ends an operation.
func (f *Fake) finishLocked(op *apiv1.Operation, err error) {
	op.FinishedAt = timestamppb.New(f.now())
	op.State, op.Done = apiv1.OperationState_SUCCEEDED, op.Total
	if err != nil {
		op.State, op.Error = apiv1.OperationState_OPERATION_FAILED, err.Error()
		op.ErrorCode = apierr.Code(err).String()
	}
	f.wakeLocked()
}

// PutOperation adds an operation, or replaces the one with its id, and wakes
// those who watch it.
func (f *Fake) PutOperation(op *apiv1.Operation) {
	f.mu.Lock()
	defer f.mu.Unlock()
	op = proto.CloneOf(op)
	if i := f.indexLocked(op.GetId()); i >= 0 {
		f.ops[i] = op
	} else {
		f.ops = append(f.ops, op)
	}
	f.wakeLocked()
}

// indexLocked finds an operation; -1: there is none. The newest of an id wins.
func (f *Fake) indexLocked(id string) int {
	for i := len(f.ops) - 1; i >= 0; i-- {
		if f.ops[i].Id == id {
			return i
		}
	}
	return -1
}

// ListOperations implements api.Service.
func (f *Fake) ListOperations(ctx context.Context, r *apiv1.ListOperationsRequest) (*apiv1.ListOperationsResponse, error) {
	if err := f.enter(ctx, "ListOperations", r); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	resp := &apiv1.ListOperationsResponse{}
	for _, op := range f.ops {
		if r.GetAll() || op.State == apiv1.OperationState_RUNNING {
			resp.Operations = append(resp.Operations, proto.CloneOf(op))
		}
	}
	return resp, nil
}

// GetOperation implements api.Service.
func (f *Fake) GetOperation(ctx context.Context, r *apiv1.GetOperationRequest) (*apiv1.Operation, error) {
	if err := f.enter(ctx, "GetOperation", r); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	i := f.indexLocked(r.GetId())
	if i < 0 {
		return nil, fmt.Errorf("operation %q: %w", r.GetId(), errdefs.ErrNotFound)
	}
	return proto.CloneOf(f.ops[i]), nil
}

// WatchOperation implements api.Service.
func (f *Fake) WatchOperation(ctx context.Context, r *apiv1.GetOperationRequest, send func(*apiv1.Operation) error) error {
	if err := f.enter(ctx, "WatchOperation", r); err != nil {
		return err
	}
	f.mu.Unlock()
	var last *apiv1.Operation
	for {
		f.mu.Lock()
		i := f.indexLocked(r.GetId())
		var op *apiv1.Operation
		if i >= 0 {
			op = proto.CloneOf(f.ops[i])
		}
		changed := f.changed
		f.mu.Unlock()
		if op == nil {
			return fmt.Errorf("operation %q: %w", r.GetId(), errdefs.ErrNotFound)
		}
		if !proto.Equal(op, last) {
			if err := send(op); err != nil {
				return err
			}
			last = op
		}
		if op.State != apiv1.OperationState_RUNNING {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
