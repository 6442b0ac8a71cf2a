package memkv

import (
	"github.com/moraine-storage/moraine/agent/cluster"
)

// Snapshot is the content of a store at one moment.
type Snapshot struct {
	rev   int64
	items []cluster.Item
}

// Snapshot copies the current content, as a backup of the store would. Leases
// are not part of it: a key bound to one is left out.
func (s *Store) Snapshot() Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expireLocked()
	sn := Snapshot{rev: s.rev}
	items, _ := s.listLocked("", "", s.rev, len(s.keys))
	for _, it := range items {
		if it.Lease == 0 {
			sn.items = append(sn.items, it)
		}
	}
	return sn
}

// Restore brings the store back to the snapshot, revisions included: the store
// goes back in time, as after an operator's restore (REPLICATION.md 4.6). All
// watches end with cluster.ErrUnavailable, all leases are over.
func (s *Store) Restore(sn Snapshot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rev, s.compacted = sn.rev, sn.rev
	s.log = nil
	s.leases = make(map[cluster.LeaseID]*lease)
	s.keys = make(map[string][]record, len(sn.items))
	for _, it := range sn.items {
		s.keys[it.Key] = []record{{rev: it.ModRevision, item: it}}
	}
	s.generation++
	s.armLocked()
	s.wakeLocked()
}
