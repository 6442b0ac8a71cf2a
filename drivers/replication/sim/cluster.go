package sim

import (
	"time"

	"github.com/moraine-storage/moraine/drivers/replication"
)

// clusterStore is the one key of the volume: compare-and-swap with outages,
// answers that are lost, and requests that are executed late.
type clusterStore struct {
	w     *world
	rec   replication.Record
	rev   uint64
	down  bool
	late  []func() // wait for the end of the outage
	cut   [maxNodes]bool
	known map[replication.Epoch]replication.Session
	clean bool // the record that the last claim replaced
	ready map[snapID]readyMark
}

const storeTimeout = 150 * time.Millisecond

// call brings a request to the store and its answer back; exactly one of
// answer and unknown is called on the node.
func (s *clusterStore) call(n *node, exec func(), answer, unknown func()) {
	w := s.w
	ended := false
	end := func(fn func()) {
		n.onAgent(func() {
			if !ended {
				ended = true
				fn()
			}
		})
	}
	w.after(storeTimeout, func() { end(unknown) })
	w.after(w.delay()*2, func() {
		run := func() {
			exec()
			if w.chance(0.03) && !w.halt {
				w.res.Faults["store answer lost"]++
				return
			}
			w.after(w.delay()*2, func() {
				if !s.cut[n.i] {
					end(answer)
				}
			})
		}
		switch {
		case s.cut[n.i]:
			if w.chance(0.3) { // it was in a buffer
				w.after(w.between(storeTimeout, 4*storeTimeout), run)
			}
		case s.down:
			if w.chance(0.6) {
				s.late = append(s.late, run)
			}
		case w.chance(0.01) && !w.halt:
			w.res.Faults["store request late"]++
			w.after(w.between(storeTimeout, 5*storeTimeout), run)
		default:
			run()
		}
	})
}

func (s *clusterStore) swap(n *node, rev uint64, rec *replication.Record, reply func(replication.Outcome, uint64)) {
	out, at := replication.IsLost, uint64(0)
	s.call(n, func() {
		if s.rev == rev {
			s.check(rec)
			s.mark(rec)
			s.noteReady(rec)
			s.rec = *rec
			s.rev++
			out, at = replication.IsStored, s.rev
			s.w.log("record %d: epoch %d active %d primary %s/%x %v", s.rev, rec.Epoch.N, rec.Active, rec.Primary.Node, rec.Primary.Session[:2], rec.Members)
		}
	}, func() { reply(out, at) }, func() { reply(replication.Unknown, 0) })
}

func (s *clusterStore) read(n *node, reply func(*replication.Record, uint64, error)) {
	var rec replication.Record
	var rev uint64
	s.call(n, func() { rec, rev = s.rec, s.rev }, func() { reply(&rec, rev, nil) }, func() { reply(nil, 0, replication.ErrLost) })
}

// check: I-EPOCH and I-LAST over every record that is ever stored.
func (s *clusterStore) check(rec *replication.Record) {
	in := 0
	for _, m := range rec.Members {
		if m.Role == replication.InSync {
			in++
		}
	}
	if in == 0 {
		s.w.fail("I-LAST: a record without in-sync members")
	}
	changed := rec.Primary != s.rec.Primary
	for i := range rec.Members {
		a, b := rec.Members[i].Role == replication.InSync, s.rec.Members[i].Role == replication.InSync
		changed = changed || a != b
	}
	if changed && rec.Epoch.N <= s.rec.Epoch.N {
		s.w.fail("I-EPOCH: primary or in-sync set changes without a higher epoch than %d", s.rec.Epoch.N)
	}
	if p, ok := s.known[rec.Epoch]; ok && p != rec.Primary.Session && rec.Primary.Session != (replication.Session{}) {
		s.w.fail("I-EPOCH: epoch %v is shared by two sessions", rec.Epoch)
	}
	s.known[rec.Epoch] = rec.Primary.Session
}

// readyMark is when a snapshot became ready, and the active epoch then. Whoever
// asked for it may hear of that much later.
type readyMark struct {
	at     time.Duration
	active uint64
}

func (s *clusterStore) noteReady(rec *replication.Record) {
	for _, x := range rec.Snapshots {
		if _, ok := s.ready[x.ID]; !ok && x.State == replication.Ready {
			s.ready[x.ID] = readyMark{s.w.now, rec.Active}
		}
	}
}

// mark notes what an ACTIVATE means for what clients were told.
func (s *clusterStore) mark(rec *replication.Record) {
	if rec.Primary != s.rec.Primary {
		s.clean = s.rec.Clean
	}
	if rec.Active == s.rec.Active {
		return
	}
	lossy := !s.clean
	for i, m := range rec.Members {
		if i < len(s.rec.Members) && m.Role == replication.InSync && s.rec.Members[i].Role == replication.InSync && m.LossID == s.rec.Members[i].LossID {
			lossy = false
		}
	}
	s.w.hist.marks = append(s.w.hist.marks, mark{at: s.w.now, n: rec.Active, lossy: lossy})
}

func (s *clusterStore) up() {
	s.down = false
	late := s.late
	s.late = nil
	for _, fn := range late {
		s.w.after(s.w.between(0, 300*time.Millisecond), fn)
	}
}
