package etcdkv

import (
	"context"
	"fmt"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// ErrNotCaughtUp: a learner does not have the store's content yet.
var ErrNotCaughtUp = fmt.Errorf("member has not caught up: %w", errdefs.ErrAborted)

// Member is one member of the store.
type Member struct {
	ID uint64
	// Name is "" until the member has started for the first time.
	Name       string
	PeerURLs   []string
	ClientURLs []string
	// Learner: it is sent everything and has no vote.
	Learner bool
}

func members(in []*pb.Member) []Member {
	out := make([]Member, 0, len(in))
	for _, m := range in {
		out = append(out, Member{ID: m.ID, Name: m.Name, PeerURLs: m.PeerURLs, ClientURLs: m.ClientURLs, Learner: m.IsLearner})
	}
	slices.SortFunc(out, func(a, b Member) int {
		switch {
		case a.ID < b.ID:
			return -1
		case a.ID > b.ID:
			return 1
		}
		return 0
	})
	return out
}

// Members lists the members, linearizably, in order of identity.
func (k *Client) Members(ctx context.Context) ([]Member, error) {
	if err := k.begin(ctx); err != nil {
		return nil, fmt.Errorf("list members of the cluster store: %w", err)
	}
	resp, err := k.c.MemberList(ctx)
	if err != nil {
		return nil, fmt.Errorf("list members of the cluster store: %w", k.fail(ctx, err, false))
	}
	return members(resp.Members), nil
}

// AddLearner makes room for a member that will listen for others at peerURL; it
// then starts with ServerOptions.Join. AlreadyExists when a member has that URL.
// It returns the new member and all members.
func (k *Client) AddLearner(ctx context.Context, peerURL string) (uint64, []Member, error) {
	if _, err := parseURL("peer", peerURL); err != nil {
		return 0, nil, err
	}
	if err := k.begin(ctx); err != nil {
		return 0, nil, fmt.Errorf("add learner %s: %w", peerURL, err)
	}
	resp, err := k.c.MemberAddAsLearner(ctx, []string{peerURL})
	if err != nil {
		return 0, nil, fmt.Errorf("add learner %s: %w", peerURL, k.fail(ctx, err, true))
	}
	return resp.Member.ID, members(resp.Members), nil
}

// Promote gives a learner a vote; ErrNotCaughtUp until it may have one, and no
// error when it has one.
func (k *Client) Promote(ctx context.Context, id uint64) error {
	if err := k.begin(ctx); err != nil {
		return fmt.Errorf("promote member %x: %w", id, err)
	}
	if _, err := k.c.MemberPromote(ctx, id); err != nil {
		err = k.fail(ctx, err, true)
		if all, lerr := k.Members(ctx); lerr == nil && slices.ContainsFunc(all, func(m Member) bool { return m.ID == id && !m.Learner }) {
			return nil // by another, or by a call whose answer was lost
		}
		return fmt.Errorf("promote member %x: %w", id, err)
	}
	return nil
}

// RemoveMember takes a member out for ever: if it comes back, it is refused. It
// is no error when there is none of that identity.
func (k *Client) RemoveMember(ctx context.Context, id uint64) error {
	if err := k.begin(ctx); err != nil {
		return fmt.Errorf("remove member %x: %w", id, err)
	}
	if _, err := k.c.MemberRemove(ctx, id); err != nil {
		if err = k.fail(ctx, err, true); !errdefs.IsNotFound(err) {
			return fmt.Errorf("remove member %x: %w", id, err)
		}
	}
	return nil
}

// UpdateMember changes where a member listens for others.
func (k *Client) UpdateMember(ctx context.Context, id uint64, peerURL string) error {
	if _, err := parseURL("peer", peerURL); err != nil {
		return err
	}
	if err := k.begin(ctx); err != nil {
		return fmt.Errorf("update member %x: %w", id, err)
	}
	if _, err := k.c.MemberUpdate(ctx, id, []string{peerURL}); err != nil {
		return fmt.Errorf("update member %x: %w", id, k.fail(ctx, err, true))
	}
	return nil
}

// SetEndpoints changes where a dialled client looks for the store; calls that
// are under way are not disturbed. Not for clients of a server in this process.
func (k *Client) SetEndpoints(endpoints []string) {
	if k.forget != nil || len(endpoints) == 0 {
		return
	}
	k.c.SetEndpoints(endpoints...)
}

// Endpoints are those that a dialled client uses.
func (k *Client) Endpoints() []string { return k.c.Endpoints() }

// MemberID is the identity of this member.
func (s *Server) MemberID() uint64 { return uint64(s.etcd.Server.MemberID()) }

// Leading says whether this member leads the store now, as far as it knows.
func (s *Server) Leading() bool {
	return s.etcd.Server.Leader() == s.etcd.Server.MemberID() && s.etcd.Server.MemberID() != 0
}

// Learner says whether this member has no vote.
func (s *Server) Learner() bool { return s.etcd.Server.IsLearner() }
