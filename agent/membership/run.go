package membership

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/moraine-storage/moraine/agent/cluster/etcdkv"
	"github.com/moraine-storage/moraine/agent/cluster/records"
	recordsv1 "github.com/moraine-storage/moraine/agent/cluster/records/v1"
	membershipv1 "github.com/moraine-storage/moraine/agent/membership/v1"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// run looks again and again whether something is to be done, until ctx ends.
func (n *Node) run(ctx context.Context) {
	defer close(n.done)
	for {
		for _, do := range []struct {
			what string
			fn   func(context.Context) error
		}{
			{"does this node belong", n.belongs},
			{"look for other nodes", n.refresh},
			{"renew certificate", n.keepCertificate},
			{"own copy of the cluster store", n.keepMember},
			{"members of the cluster store", n.lead},
		} {
			callCtx, cancel := context.WithTimeout(ctx, callTimeout+memberPatience)
			err := do.fn(callCtx)
			cancel()
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				n.log.Debug("tried again", "what", do.what, "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(n.o.interval):
		}
	}
}

// call bounds one call of the loop.
func call[T any](ctx context.Context, fn func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return fn(ctx)
}

// belongs notices that this node was removed while it ran: it leaves the store
// to the others, and tells the agent.
func (n *Node) belongs(ctx context.Context) error {
	if n.gone {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	err := checkRemoved(ctx, n.records, n.node)
	if !errors.Is(err, ErrRemoved) {
		return err
	}
	n.gone = true
	if n.member != nil {
		err = errors.Join(err, n.member.Close())
		n.member = nil
	}
	if n.o.Failed != nil {
		n.o.Failed(err)
	}
	return err
}

// refresh learns where members and nodes are.
func (n *Node) refresh(ctx context.Context) error {
	if n.o.Bind == "" {
		return nil
	}
	c := &membershipv1.Contacts{}
	members, err := call(ctx, n.kv.Members)
	if err != nil {
		return err
	}
	for _, m := range members {
		if !m.Learner {
			c.Store = append(c.Store, m.ClientURLs...)
		}
	}
	nodes, err := call(ctx, n.nodes)
	if err != nil {
		return err
	}
	for _, v := range nodes {
		c.Api = append(c.Api, v.Record.Address)
	}
	if len(c.Store) == 0 {
		return nil // the only member has not yet told where it listens
	}
	n.learn(c)
	if have := n.kv.Endpoints(); !slices.Equal(trimContacts(have), trimContacts(c.Store)) {
		n.kv.SetEndpoints(trimContacts(c.Store))
	}
	return nil
}

// nodes lists what can be read of the nodes' records.
func (n *Node) nodes(ctx context.Context) ([]records.Versioned[*recordsv1.Node], error) {
	all, _, err := n.records.Nodes.List(ctx)
	if err != nil && len(all) == 0 {
		return nil, err
	}
	return all, nil
}

// keepCertificate renews it in time.
func (n *Node) keepCertificate(ctx context.Context) error {
	if time.Now().Before(n.id.RenewAt()) {
		return nil
	}
	if err := n.renew(ctx); err != nil {
		n.log.Warn("certificate not renewed", "ends", n.id.Expires(), "error", err)
		return err
	}
	n.log.Info("certificate renewed", "ends", n.id.Expires())
	return nil
}

// keepMember carries out what the cluster has decided about this node's copy
// of the store.
func (n *Node) keepMember(ctx context.Context) error {
	if n.member != nil {
		return n.watchMember(ctx)
	}
	if n.o.Bind == "" || n.gone {
		return nil
	}
	_, err := call(ctx, func(ctx context.Context) (any, error) { return n.records.StoreMembers.Get(ctx, n.node) })
	switch {
	case errdefs.IsNotFound(err):
		return nil
	case err != nil:
		return err
	case !n.id.Server():
		return fmt.Errorf("this node shall keep a copy of the store, and has joined as no server: %w", errdefs.ErrFailedPrecondition)
	}
	return n.becomeMember(ctx)
}

// watchMember notices when the own member has ended, and tells it where to
// listen if that has changed.
func (n *Node) watchMember(ctx context.Context) error {
	select {
	case <-n.member.Failed():
	default:
		return n.tellPeerURL(ctx)
	}
	if !n.told {
		n.told = true
		if n.o.Failed != nil && !n.member.Removed() {
			n.o.Failed(fmt.Errorf("cluster store: %s: %w", n.member.Reason(), errdefs.ErrUnavailable))
		}
	}
	if !n.member.Removed() || n.o.Bind == "" {
		return nil // only a restart of the process helps; clients use the others
	}
	n.log.Info("this node keeps no copy of the cluster store any more")
	n.told = false
	return n.dropStore()
}

// tellPeerURL puts this member's address into the list of members, if it is not
// there: it has listened nowhere before, or has moved.
func (n *Node) tellPeerURL(ctx context.Context) error {
	if n.o.Bind == "" {
		return nil
	}
	all, err := call(ctx, n.kv.Members)
	if err != nil {
		return err
	}
	for _, m := range all {
		if m.ID == n.member.MemberID() && !slices.Equal(m.PeerURLs, []string{n.o.PeerURL()}) {
			return n.kv.UpdateMember(ctx, m.ID, n.o.PeerURL())
		}
	}
	return nil
}

// becomeMember starts this node's member as a learner.
func (n *Node) becomeMember(ctx context.Context) error {
	all, err := call(ctx, n.kv.Members)
	if err != nil {
		return err
	}
	mine := slices.IndexFunc(all, func(m etcdkv.Member) bool {
		return m.Name == string(n.node) || m.Name == "" && slices.Contains(m.PeerURLs, n.o.PeerURL())
	})
	switch {
	case mine >= 0 && all[mine].Name != "" && !n.hasStore():
		n.log.Warn("this node's copy of the cluster store is lost; it gets a new one")
		return n.kv.RemoveMember(ctx, all[mine].ID) // the next look adds it anew
	case mine < 0 && n.hasStore():
		n.log.Info("removing an old copy of the cluster store")
		return n.dropStore()
	case mine < 0:
		if _, all, err = n.kv.AddLearner(ctx, n.o.PeerURL()); err != nil {
			return err
		}
	}
	var join []etcdkv.PeerMember
	for _, m := range all {
		name := m.Name
		if slices.Contains(m.PeerURLs, n.o.PeerURL()) {
			name = string(n.node)
		}
		for _, u := range m.PeerURLs {
			join = append(join, etcdkv.PeerMember{Name: name, URL: u})
		}
	}
	s, err := etcdkv.Start(ctx, n.serverOptions(join, memberPatience))
	if err != nil {
		if errors.Is(err, etcdkv.ErrRemoved) || errors.Is(err, errdefs.ErrDataLoss) {
			return errors.Join(err, n.dropStore()) // it was not yet anybody's copy
		}
		return err
	}
	n.member, n.told = s, false
	n.log.Info("this node keeps a copy of the cluster store")
	return nil
}

// lead takes the next steps of the plan, if this node's member leads the store.
func (n *Node) lead(ctx context.Context) error {
	if n.o.Bind == "" || n.member == nil || !n.member.Leading() {
		return nil
	}
	v, err := n.look(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, s := range plan(v) {
		if err := n.take(ctx, s); err != nil {
			errs = append(errs, fmt.Errorf("%v member %x of node %s: %w", s.kind, s.member, s.node, err))
			continue
		}
		n.log.Info("cluster store", "step", s.kind.String(), "node", s.node, "because", s.why)
	}
	return errors.Join(errs...)
}

// look collects what the plan is made from.
func (n *Node) look(ctx context.Context) (view, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	v := view{assigned: map[records.ID]bool{}, leader: n.node, self: n.member.MemberID()}
	var err error
	if v.members, err = n.kv.Members(ctx); err != nil {
		return v, err
	}
	assigned, _, err := n.records.StoreMembers.List(ctx)
	if err != nil {
		return v, err
	}
	for _, a := range assigned {
		v.assigned[records.ID(a.Record.Id)] = true
	}
	lives, _, err := n.records.Lives.List(ctx)
	if err != nil {
		return v, err
	}
	nodes, _, err := n.records.Nodes.List(ctx) // one that cannot be read must not be taken for removed
	if err != nil {
		return v, err
	}
	now := time.Now()
	for _, r := range nodes {
		id := records.ID(r.Record.Id)
		alive := slices.ContainsFunc(lives, func(l records.Versioned[*recordsv1.Life]) bool { return l.Record.Id == r.Record.Id })
		if alive {
			delete(n.silent, id)
		} else if _, ok := n.silent[id]; !ok {
			n.silent[id] = now
		}
		v.nodes = append(v.nodes, nodeView{
			id: id, server: r.Record.Server && r.Record.PeerUrl != "", peerURL: r.Record.PeerUrl, zone: r.Record.Labels["zone"],
			alive: alive, dead: !alive && now.Sub(n.silent[id]) > n.o.deadAfter,
		})
	}
	return v, nil
}

// take carries out one step; each may be repeated.
func (n *Node) take(ctx context.Context, s step) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	switch s.kind {
	case stepPromote:
		return n.kv.Promote(ctx, s.member)
	case stepAssign:
		_, err := n.records.StoreMembers.Create(ctx, storeMember(s.node))
		if errdefs.IsAlreadyExists(err) {
			return nil
		}
		return err
	case stepRemove:
		if err := n.unassign(ctx, s.node); err != nil { // first, so that it does not come back
			return err
		}
		return n.kv.RemoveMember(ctx, s.member)
	case stepUnassign:
		return n.unassign(ctx, s.node)
	}
	return fmt.Errorf("step %d: %w", s.kind, errdefs.ErrInternal)
}

func (n *Node) unassign(ctx context.Context, node records.ID) error {
	if node == "" {
		return nil
	}
	if _, err := records.ParseID(string(node)); err != nil {
		return nil // a member of before this was recorded
	}
	v, err := n.records.StoreMembers.Get(ctx, node)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	return n.records.StoreMembers.Delete(ctx, v)
}
