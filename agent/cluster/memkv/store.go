package memkv

import (
	"bytes"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moraine-storage/moraine/agent/cluster"
)

// logLenMax bounds the events remembered; at the bound the older half is
// compacted. 64 Ki events of small records are some tens of MiB at the most,
// and more than any test lags behind.
const logLenMax = 1 << 16

// Options of a Store.
type Options struct {
	// Now is the clock of the leases; nil is time.Now, and leases then end by
	// themselves. With a clock of the caller's they end at the next call
	// after their time, or at Expire.
	Now func() time.Time
}

// Store is the data that clients share. It is ready for use from any goroutine.
type Store struct {
	now func() time.Time

	mu         sync.Mutex
	rev        int64               // of the last change; 1 when empty, as in etcd
	compacted  int64               // revisions below are gone
	keys       map[string][]record // versions, oldest first; the last one is current
	log        []cluster.Event     // of all changes from compacted on, by revision
	leases     map[cluster.LeaseID]*lease
	lastLease  cluster.LeaseID
	changed    chan struct{} // closed, and replaced, whenever a watcher should look
	generation int           // grows at each Restore; watches of an older one are over
	timer      *time.Timer   // or nil: ends the next lease; only with the real clock
}

// record is one version of a key; a zero ModRevision in item means deleted.
type record struct {
	rev  int64
	item cluster.Item
}

// New returns an empty store.
func New(opts Options) *Store {
	s := &Store{
		now:     opts.Now,
		rev:     1,
		keys:    make(map[string][]record),
		leases:  make(map[cluster.LeaseID]*lease),
		changed: make(chan struct{}),
	}
	if s.now == nil {
		s.now = time.Now
		s.timer = time.AfterFunc(cluster.MaxLeaseTTL, s.Expire)
		s.timer.Stop()
	}
	return s
}

// Revision returns that of the last change.
func (s *Store) Revision() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expireLocked()
	return s.rev
}

// Compact forgets the history before rev.
func (s *Store) Compact(rev int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.compactLocked(min(rev, s.rev))
}

func (s *Store) compactLocked(rev int64) {
	if rev <= s.compacted {
		return
	}
	s.compacted = rev
	i := s.logIndexLocked(rev)
	s.log = append([]cluster.Event(nil), s.log[i:]...)
	for key, versions := range s.keys {
		first := 0 // the newest version at or below rev stays: it is what rev shows
		for first+1 < len(versions) && versions[first+1].rev <= rev {
			first++
		}
		versions = slices.Clone(versions[first:])
		if len(versions) == 1 && versions[0].rev <= rev && !versions[0].item.Exists() {
			delete(s.keys, key)
			continue
		}
		s.keys[key] = versions
	}
	s.wakeLocked()
}

// logIndexLocked is the index of the first event at or after rev.
func (s *Store) logIndexLocked(rev int64) int {
	i, _ := slices.BinarySearchFunc(s.log, rev, func(e cluster.Event, rev int64) int {
		switch {
		case e.Item.ModRevision < rev:
			return -1
		case e.Item.ModRevision > rev:
			return 1
		}
		return 0
	})
	return i
}

// currentLocked returns the item at key; only the Key is set when absent.
func (s *Store) currentLocked(key string) cluster.Item { return s.atLocked(key, s.rev) }

// atLocked returns the item at key as of rev.
func (s *Store) atLocked(key string, rev int64) cluster.Item {
	versions := s.keys[key]
	for i := len(versions) - 1; i >= 0; i-- {
		if versions[i].rev <= rev {
			if !versions[i].item.Exists() {
				break
			}
			it := versions[i].item
			it.Value = bytes.Clone(it.Value)
			return it
		}
	}
	return cluster.Item{Key: key}
}

// commitLocked makes the changes at one new revision; without any effect (only
// deletes of absent keys) the revision stays.
func (s *Store) commitLocked(ops []cluster.Op) {
	rev := s.rev + 1
	var events []cluster.Event
	for _, op := range ops {
		cur := s.currentLocked(op.Key)
		if cur.Lease != 0 {
			if l := s.leases[cur.Lease]; l != nil {
				delete(l.keys, op.Key)
			}
		}
		switch {
		case op.Kind == cluster.OpPut:
			it := cluster.Item{
				Key: op.Key, Value: bytes.Clone(op.Value), Lease: op.Lease,
				CreateRevision: cur.CreateRevision, ModRevision: rev,
			}
			if !cur.Exists() {
				it.CreateRevision = rev
			}
			if op.Lease != 0 {
				s.leases[op.Lease].keys[op.Key] = true
			}
			s.keys[op.Key] = append(s.keys[op.Key], record{rev: rev, item: it})
			events = append(events, cluster.Event{Kind: cluster.EventPut, Item: it})
		case cur.Exists():
			s.keys[op.Key] = append(s.keys[op.Key], record{rev: rev})
			events = append(events, cluster.Event{
				Kind: cluster.EventDelete, Item: cluster.Item{Key: op.Key, ModRevision: rev},
			})
		}
	}
	if len(events) == 0 {
		return
	}
	s.rev = rev
	s.log = append(s.log, events...)
	if len(s.log) > logLenMax {
		s.compactLocked(s.log[len(s.log)/2].Item.ModRevision)
	}
	s.wakeLocked()
}

func (s *Store) wakeLocked() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// listLocked returns up to limit items under prefix behind after, as of rev,
// and whether there are more.
func (s *Store) listLocked(prefix, after string, rev int64, limit int) ([]cluster.Item, bool) {
	var names []string
	for key := range s.keys {
		if strings.HasPrefix(key, prefix) && key > after {
			names = append(names, key)
		}
	}
	slices.Sort(names)
	var items []cluster.Item
	for _, key := range names {
		it := s.atLocked(key, rev)
		if !it.Exists() {
			continue
		}
		if len(items) == limit {
			return items, true
		}
		items = append(items, it)
	}
	return items, false
}
