package membership

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/moraine-storage/moraine/agent/cluster/records"
	recordsv1 "github.com/moraine-storage/moraine/agent/cluster/records/v1"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

func storeMember(node records.ID) *recordsv1.StoreMember {
	return &recordsv1.StoreMember{Id: string(node), Since: timestamppb.Now()}
}

// Register makes this node's record if it bootstraps, and brings it up to date
// otherwise, with its labels as they are now.
func (n *Node) Register(ctx context.Context, labels map[string]string) error {
	for {
		err := n.register(ctx, labels)
		if !errors.Is(err, errdefs.ErrAborted) {
			return err
		}
	}
}

func (n *Node) register(ctx context.Context, labels map[string]string) error {
	hash := n.id.KeyHash()
	v, err := n.records.Nodes.Get(ctx, n.node)
	if errdefs.IsNotFound(err) {
		if n.member == nil { // it has joined, so its record was made then
			return fmt.Errorf("the cluster has no record of this node (%s): %w", n.node, ErrRemoved)
		}
		now := timestamppb.Now()
		r := &recordsv1.Node{Id: string(n.node), Name: n.o.Name, CreatedAt: now, State: recordsv1.NodeState_NODE_READY, StateSince: now, KeyHash: hash[:]}
		n.describe(r, labels)
		_, err = n.records.Nodes.Create(ctx, r)
		return nameTaken(n.o.Name, err)
	}
	if err != nil {
		return err
	}
	if err := sameName(v.Record.Name, n.o.Name); err != nil {
		return err
	}
	if len(v.Record.KeyHash) == 0 { // a record of before keys were recorded
		v.Record.KeyHash = hash[:]
	}
	if v.Record.State == recordsv1.NodeState_NODE_STATE_UNSPECIFIED {
		v.Record.State, v.Record.StateSince = recordsv1.NodeState_NODE_READY, timestamppb.Now()
	}
	n.describe(v.Record, labels)
	_, err = n.records.Nodes.Update(ctx, v)
	return err
}

func nameTaken(name string, err error) error {
	if errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("another node of the cluster has the name %q; give this one another (name = …): %w", name, err)
	}
	return err
}

func sameName(was, is string) error {
	if was != is {
		return fmt.Errorf("this node joined as %q and cannot become %q: set name = %q: %w", was, is, was, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// RegisterOutside is Register for a node whose cluster store is an etcd outside
// the agent: such a node has no identity yet, and is a cluster of one.
func RegisterOutside(ctx context.Context, st *records.Store, node records.ID, name string, labels map[string]string, version string) error {
	v, err := st.Nodes.Get(ctx, node)
	if errdefs.IsNotFound(err) {
		_, err = st.Nodes.Create(ctx, &recordsv1.Node{Id: string(node), Name: name, Labels: labels, CreatedAt: timestamppb.Now(), Version: version})
		return nameTaken(name, err)
	}
	if err != nil {
		return err
	}
	if err := sameName(v.Record.Name, name); err != nil {
		return err
	}
	v.Record.Labels, v.Record.Version = labels, version
	_, err = st.Nodes.Update(ctx, v)
	return err
}

// describe fills in what the node itself says.
func (n *Node) describe(r *recordsv1.Node, labels map[string]string) {
	r.Labels, r.Version, r.Address = labels, n.o.Version, n.o.APIAddress
	r.Server, r.PeerUrl, r.ClientUrl = n.id.Server(), n.o.PeerURL(), n.o.ClientURL()
}

// Admin changes nodes of a cluster, from any of them.
type Admin struct{ Store *records.Store }

// Find returns the node of that name or identity.
func (a Admin) Find(ctx context.Context, name string) (records.Versioned[*recordsv1.Node], error) {
	v, err := a.Store.Nodes.GetByName(ctx, name)
	if errdefs.IsNotFound(err) {
		if _, perr := records.ParseID(name); perr == nil {
			return a.Store.Nodes.Get(ctx, records.ID(name))
		}
	}
	return v, err
}

// Drain marks a node so that nothing new is placed on it; Undrain takes that
// back. What is on it stays: moving it away comes with replicated volumes.
func (a Admin) Drain(ctx context.Context, name string) error {
	return a.setState(ctx, name, recordsv1.NodeState_NODE_DRAINING)
}

// Undrain makes a node ready again.
func (a Admin) Undrain(ctx context.Context, name string) error {
	return a.setState(ctx, name, recordsv1.NodeState_NODE_READY)
}

func (a Admin) setState(ctx context.Context, name string, s recordsv1.NodeState) error {
	for {
		v, err := a.Find(ctx, name)
		if err != nil {
			return err
		}
		if v.Record.State == s {
			return nil
		}
		v.Record.State, v.Record.StateSince = s, timestamppb.Now()
		if _, err = a.Store.Nodes.Update(ctx, v); !errors.Is(err, errdefs.ErrAborted) {
			return err
		}
	}
}

// Holdings is what would be lost with a node.
type Holdings struct {
	Alive    bool
	Replicas []string // volumes that have a replica on it
	Only     []string // those of them that have no replica elsewhere: their data is lost
	Attached []string // volumes that are attached there
}

func (h Holdings) empty() bool { return !h.Alive && len(h.Replicas) == 0 && len(h.Attached) == 0 }

func (h Holdings) String() string {
	var out []string
	add := func(what string, names []string) {
		if len(names) > 0 {
			out = append(out, what+" "+strings.Join(names[:min(len(names), 10)], ", "))
			if len(names) > 10 {
				out[len(out)-1] += fmt.Sprintf(" and %d more", len(names)-10)
			}
		}
	}
	if h.Alive {
		out = append(out, "its agent runs")
	}
	add("it has the only copy of volumes", h.Only)
	add("it has replicas of volumes", h.Replicas)
	add("attached there are volumes", h.Attached)
	return strings.Join(out, "; ")
}

// Remove takes a node out of the cluster for ever. It is refused while the
// node's agent runs, or replicas or attachments are there, unless forced: a
// force is told in the result what was given up. The node itself learns of it
// when it next reaches another.
func (a Admin) Remove(ctx context.Context, name string, force bool) (Holdings, error) {
	for {
		h, err := a.remove(ctx, name, force)
		if !errors.Is(err, errdefs.ErrAborted) {
			return h, err
		}
	}
}

func (a Admin) remove(ctx context.Context, name string, force bool) (Holdings, error) {
	v, err := a.Find(ctx, name)
	if err != nil {
		return Holdings{}, err
	}
	id := records.ID(v.Record.Id)
	h, err := a.holdings(ctx, id)
	if err != nil {
		return h, fmt.Errorf("remove node %q: %w", v.Record.Name, err)
	}
	if !h.empty() && !force {
		return h, fmt.Errorf("remove node %q: %s; with force all of that is given up: %w", v.Record.Name, h, errdefs.ErrFailedPrecondition)
	}
	nodes, _, err := a.Store.Nodes.List(ctx)
	if err != nil {
		return h, fmt.Errorf("remove node %q: %w", v.Record.Name, err)
	}
	if len(nodes) == 1 {
		return h, fmt.Errorf("remove node %q: it is the last one of the cluster: %w", v.Record.Name, errdefs.ErrFailedPrecondition)
	}
	changes := []records.Change{
		a.Store.Nodes.Deleting(v),
		a.Store.RemovedNodes.Creating(&recordsv1.RemovedNode{Id: string(id), Name: v.Record.Name, RemovedAt: timestamppb.Now(), Forced: force && !h.empty()}),
	}
	if life, err := a.Store.Lives.Get(ctx, id); err == nil {
		changes = append(changes, a.Store.Lives.Deleting(life))
	}
	_, err = a.Store.Commit(ctx, changes...)
	return h, err
}

// holdings finds what is on a node. A record that cannot be read may be any of
// it, so it is an error.
func (a Admin) holdings(ctx context.Context, id records.ID) (Holdings, error) {
	var h Holdings
	drives, _, err := a.Store.Drives.List(ctx)
	if err != nil {
		return h, err
	}
	on := map[string]bool{}
	for _, d := range drives {
		on[d.Record.Id] = d.Record.NodeId == string(id)
	}
	vols, _, err := a.Store.Volumes.List(ctx)
	if err != nil {
		return h, err
	}
	for _, v := range vols {
		here, only := false, false
		for _, g := range v.Record.Groups {
			n := 0
			for _, m := range g.Members {
				if on[m.DriveId] {
					n++
				}
			}
			here = here || n > 0
			only = only || n > 0 && n == len(g.Members)
		}
		if here {
			h.Replicas = append(h.Replicas, v.Record.Name)
		}
		if only {
			h.Only = append(h.Only, v.Record.Name)
		}
		if slices.ContainsFunc(v.Record.Attachments, func(at *recordsv1.Attachment) bool { return at.NodeId == string(id) }) ||
			v.Record.Primary.GetNodeId() == string(id) {
			h.Attached = append(h.Attached, v.Record.Name)
		}
	}
	_, err = a.Store.Lives.Get(ctx, id)
	h.Alive = err == nil
	if err != nil && !errdefs.IsNotFound(err) {
		return h, err
	}
	return h, nil
}
