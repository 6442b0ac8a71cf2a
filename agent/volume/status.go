package volume

import (
	"context"
	"fmt"
	"os"
	"sort"
	"strings"

	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	recordsv1 "github.com/moraine-storage/moraine/agent/cluster/records/v1"
	"github.com/moraine-storage/moraine/agent/drive"
	"github.com/moraine-storage/moraine/plugins/errdefs"
	"google.golang.org/protobuf/types/known/timestamppb"
)

func condition(code string, sev apiv1.Severity, object, message, fix string) *apiv1.Condition {
	return &apiv1.Condition{Code: code, Severity: sev, Object: object, Message: message, Fix: fix}
}

// GetStatus implements api.Cluster.
func (m *Manager) GetStatus(ctx context.Context, _ *apiv1.GetStatusRequest) (*apiv1.Status, error) {
	pools, err := m.ListPools(ctx, &apiv1.ListPoolsRequest{})
	if err != nil {
		return nil, err
	}
	vols, err := m.volumes(ctx)
	if err != nil {
		return nil, err
	}
	cl, err := m.o.Records.Cluster(ctx)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	s := &apiv1.Status{
		Version: m.o.Version, Commit: m.o.Commit, Node: m.o.NodeName, NodeId: m.o.NodeID, ClusterId: cl.Id, StartedAt: timestamppb.New(m.started),
		Ready: m.ready, Volumes: uint32(len(vols)), Attached: uint32(len(m.live)), Pools: pools.Pools, DataDir: m.o.DataDir,
	}
	m.mu.Unlock()
	s.Conditions = m.conditions()
	return s, nil
}

// conditions are what a person should know of this node now.
func (m *Manager) conditions() []*apiv1.Condition {
	var out []*apiv1.Condition
	for _, d := range m.o.Drives.List() {
		if c := driveCondition(d); c != nil {
			out = append(out, c)
		}
	}
	m.mu.Lock()
	for _, l := range m.live {
		if l.failure() != "" {
			out = append(out, condition("device-failed", apiv1.Severity_ERROR, "volume "+l.name, l.failure(), "stop what uses it, then `moraine volume detach --force "+l.name+"` and attach it again"))
		}
	}
	m.mu.Unlock()
	if m.o.Plugins != nil {
		for _, p := range m.o.Plugins() {
			if p.State != "running" {
				out = append(out, condition("plugin-down", apiv1.Severity_WARNING, "plugin "+p.Name, "the plugin is "+p.State+": "+p.LastError, "I/O goes on; it is started again by itself"))
			}
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Object < out[j].Object })
	return out
}

func driveCondition(d drive.Status) *apiv1.Condition {
	object, fix := "drive "+d.ID, ""
	if d.ID == "" {
		object = "drive " + d.Source
	}
	sev := apiv1.Severity_ERROR
	switch d.State {
	case drive.Ready:
		return nil
	case drive.Full:
		sev, fix = apiv1.Severity_WARNING, "delete volumes or snapshots, or add a drive to pool "+d.Pool
	case drive.Refused:
		sev, fix = apiv1.Severity_WARNING, "see the reason; a drive with foreign data is never touched unless its options say so"
	case drive.Gone:
		fix = "bring the medium back; its volumes go on by themselves"
	default:
		fix = "look at the medium; when it is healthy again and no volume uses it, it is opened again"
	}
	c := condition("drive-"+d.State, sev, object, d.Path+": "+d.Reason, fix)
	c.Since = timestamppb.New(d.Since)
	return c
}

// ListNodes implements api.Cluster.
func (m *Manager) ListNodes(ctx context.Context, r *apiv1.ListNodesRequest) (*apiv1.ListNodesResponse, error) {
	nodes, _, err := m.o.Records.Nodes.List(ctx)
	if err != nil {
		return nil, err
	}
	vols, err := m.volumes(ctx)
	if err != nil {
		return nil, err
	}
	out := &apiv1.ListNodesResponse{}
	for _, n := range nodes {
		if r.Name != "" && n.Record.Name != r.Name && n.Record.Id != r.Name {
			continue
		}
		node := &apiv1.Node{Id: n.Record.Id, Name: n.Record.Name, Address: n.Record.Address, Labels: n.Record.Labels, Version: n.Record.Version,
			Draining: n.Record.State == recordsv1.NodeState_NODE_DRAINING, Server: n.Record.Server}
		if life, err := m.o.Records.Lives.Get(ctx, idOf(n.Record.Id)); err == nil {
			node.Alive, node.StartedAt = true, life.Record.StartedAt
		}
		if n.Record.Id == m.o.NodeID {
			node.Drives = uint32(len(m.o.Drives.List()))
		}
		for _, v := range vols {
			if attachmentOf(v.Record, n.Record.Id) != nil {
				node.Volumes++
			}
		}
		out.Nodes = append(out.Nodes, node)
	}
	if r.Name != "" && len(out.Nodes) == 0 {
		return nil, fmt.Errorf("node %q: %w", r.Name, errdefs.ErrNotFound)
	}
	return out, nil
}

// ListPools implements api.Cluster.
func (m *Manager) ListPools(_ context.Context, r *apiv1.ListPoolsRequest) (*apiv1.ListPoolsResponse, error) {
	pools := map[string]*apiv1.Pool{}
	for _, d := range m.o.Drives.List() {
		p := pools[d.Pool]
		if p == nil {
			p = &apiv1.Pool{Name: d.Pool}
			pools[d.Pool] = p
		}
		if c := driveCondition(d); c != nil {
			p.Conditions = append(p.Conditions, c)
		}
		if d.ID == "" {
			continue
		}
		p.Drives++
		p.CapacityBytes += d.Info.Capacity
		p.UsedBytes += d.Info.Used
		if d.State == drive.Ready || d.State == drive.Full {
			p.FreeBytes += d.Info.Free
		}
		for _, rep := range m.replicasOn(d) {
			p.Replicas++
			p.ProvisionedBytes += rep.Size
		}
	}
	out := &apiv1.ListPoolsResponse{}
	for name, p := range pools {
		if r.Name == "" || r.Name == name {
			out.Pools = append(out.Pools, p)
		}
	}
	if r.Name != "" && len(out.Pools) == 0 {
		return nil, fmt.Errorf("pool %q: %w", r.Name, errdefs.ErrNotFound)
	}
	sort.Slice(out.Pools, func(i, j int) bool { return out.Pools[i].Name < out.Pools[j].Name })
	return out, nil
}

// ListDrives implements api.Cluster.
func (m *Manager) ListDrives(_ context.Context, r *apiv1.ListDrivesRequest) (*apiv1.ListDrivesResponse, error) {
	out := &apiv1.ListDrivesResponse{}
	for _, d := range m.o.Drives.List() {
		if r.Pool != "" && d.Pool != r.Pool {
			continue
		}
		v := &apiv1.Drive{
			Id: d.ID, Node: m.o.NodeName, Pool: d.Pool, Backend: d.Backend, Path: d.Path, Serial: d.Serial, State: d.State,
			CapacityBytes: d.Info.Capacity, UsedBytes: d.Info.Used, FreeBytes: d.Info.Free, OpenCounter: d.OpenCounter,
		}
		if d.OpenCounter > 0 {
			v.LossId = lossWord(d.Info.LossID)
			v.IoMode = string(d.Mode)
		}
		if v.Path == "" {
			v.Path = d.Source
		}
		for _, rep := range m.replicasOn(d) {
			v.Replicas++
			v.ReplicaIds = append(v.ReplicaIds, rep.ID.String())
		}
		if c := driveCondition(d); c != nil {
			v.Conditions = append(v.Conditions, c)
		}
		out.Drives = append(out.Drives, v)
	}
	return out, nil
}

// ListPlugins implements api.Cluster.
func (m *Manager) ListPlugins(context.Context, *apiv1.ListPluginsRequest) (*apiv1.ListPluginsResponse, error) {
	out := &apiv1.ListPluginsResponse{}
	if m.o.Plugins != nil {
		out.Plugins = m.o.Plugins()
	}
	return out, nil
}

// WatchEvents implements api.Observer.
func (m *Manager) WatchEvents(ctx context.Context, r *apiv1.WatchEventsRequest, send func(*apiv1.Event) error) error {
	return m.o.Events.Watch(ctx, r, send)
}

// ListOperations implements api.Observer.
func (m *Manager) ListOperations(_ context.Context, r *apiv1.ListOperationsRequest) (*apiv1.ListOperationsResponse, error) {
	return &apiv1.ListOperationsResponse{Operations: m.o.Operations.List(r.All)}, nil
}

// GetOperation implements api.Observer.
func (m *Manager) GetOperation(_ context.Context, r *apiv1.GetOperationRequest) (*apiv1.Operation, error) {
	return m.o.Operations.Get(r.Id)
}

// WatchOperation implements api.Observer.
func (m *Manager) WatchOperation(ctx context.Context, r *apiv1.GetOperationRequest, send func(*apiv1.Operation) error) error {
	return m.o.Operations.Watch(ctx, r.Id, send)
}

// RunDoctor implements api.Cluster: what this host can do, and what to mend.
func (m *Manager) RunDoctor(ctx context.Context, _ *apiv1.RunDoctorRequest) (*apiv1.DoctorReport, error) {
	out := &apiv1.DoctorReport{}
	add := func(name string, ok bool, sev apiv1.Severity, detail, fix string) {
		if ok {
			sev, fix = apiv1.Severity_INFO, ""
		}
		out.Checks = append(out.Checks, &apiv1.DoctorReport_Check{Name: name, Ok: ok, Severity: sev, Detail: detail, Fix: fix})
	}
	var chosen string
	for _, d := range m.o.Drivers {
		s := d.Probe(ctx)
		detail := s.Reason
		if s.Available && chosen == "" {
			chosen = s.Name
			detail += "; used for new devices"
		}
		add("driver "+s.Name, s.Available, apiv1.Severity_WARNING, strings.TrimPrefix(detail, "; "), s.Fix)
	}
	add("block devices", chosen != "", apiv1.Severity_ERROR, map[bool]string{true: "made by driver " + chosen, false: "no driver works on this host"}[chosen != ""], "load the nbd module, or provide /dev/fuse and /dev/loop-control")
	if m.o.HostChecks != nil {
		for _, s := range m.o.HostChecks(ctx) {
			add(s.Name, s.Available, apiv1.Severity_WARNING, s.Reason, s.Fix)
		}
	}
	add("root", os.Geteuid() == 0, apiv1.Severity_ERROR, fmt.Sprintf("running as user %d", os.Geteuid()), "run the agent as root: devices and mounts need it")
	for _, d := range m.o.Drives.List() {
		c := driveCondition(d)
		name := "drive " + d.Path
		if c == nil {
			add(name, true, apiv1.Severity_INFO, fmt.Sprintf("pool %s, %d of %d bytes free", d.Pool, d.Info.Free, d.Info.Capacity), "")
		} else {
			add(name, false, c.Severity, d.State+": "+d.Reason, c.Fix)
		}
	}
	for _, p := range m.mustPlugins(ctx) {
		add("plugin "+p.Name, p.State == "running", apiv1.Severity_WARNING, p.State+" "+p.LastError, "it is started again by itself; see the agent's log")
	}
	return out, nil
}

func (m *Manager) mustPlugins(ctx context.Context) []*apiv1.Plugin {
	r, err := m.ListPlugins(ctx, nil)
	if err != nil {
		return nil
	}
	return r.Plugins
}
