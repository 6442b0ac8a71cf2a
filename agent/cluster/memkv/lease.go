package memkv

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/moraine-storage/moraine/agent/cluster"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// lease is a granted lease, in Store.leases until its end.
type lease struct {
	ttl  time.Duration
	end  time.Time
	keys map[string]bool
}

// Expire ends the leases whose time is over. Only a store with a clock of the
// caller's needs it, to see expiry without another call.
func (s *Store) Expire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expireLocked()
}

func (s *Store) expireLocked() {
	now := s.now()
	var over []cluster.LeaseID
	for id, l := range s.leases {
		if !now.Before(l.end) {
			over = append(over, id)
		}
	}
	slices.Sort(over) // the same order in each run of a simulation
	for _, id := range over {
		s.endLeaseLocked(id)
	}
	s.armLocked()
}

// endLeaseLocked removes the lease and, at one revision, its keys.
func (s *Store) endLeaseLocked(id cluster.LeaseID) {
	var ops []cluster.Op
	for _, key := range slices.Sorted(maps.Keys(s.leases[id].keys)) {
		ops = append(ops, cluster.Delete(key))
	}
	delete(s.leases, id)
	s.commitLocked(ops)
}

// armLocked sets the timer to the end of the lease that ends first.
func (s *Store) armLocked() {
	if s.timer == nil {
		return
	}
	var first time.Time
	for _, l := range s.leases {
		if first.IsZero() || l.end.Before(first) {
			first = l.end
		}
	}
	s.timer.Stop()
	if !first.IsZero() {
		s.timer.Reset(time.Until(first))
	}
}

// clientLease is the handle that Grant returns.
type clientLease struct {
	c   *Client
	id  cluster.LeaseID
	ttl time.Duration
}

func (l *clientLease) ID() cluster.LeaseID { return l.id }
func (l *clientLease) TTL() time.Duration  { return l.ttl }

func (l *clientLease) KeepAlive(ctx context.Context) error {
	after, err := l.c.begin(ctx, CallKeepAlive, "")
	if err != nil {
		return fmt.Errorf("keep lease %x: %w", int64(l.id), err)
	}
	s := l.c.s
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expireLocked()
	st, ok := s.leases[l.id]
	if !ok {
		return fmt.Errorf("keep lease %x: over: %w", int64(l.id), errdefs.ErrNotFound)
	}
	st.end = s.now().Add(st.ttl)
	s.armLocked()
	return after
}

func (l *clientLease) Revoke(ctx context.Context) error {
	after, err := l.c.begin(ctx, CallRevoke, "")
	if err != nil {
		return fmt.Errorf("revoke lease %x: %w", int64(l.id), err)
	}
	s := l.c.s
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expireLocked()
	if _, ok := s.leases[l.id]; ok {
		s.endLeaseLocked(l.id)
		s.armLocked()
	}
	return after
}
