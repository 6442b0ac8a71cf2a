package replication

import (
	"errors"
	"testing"
	"time"

	"github.com/moraine-storage/moraine/drivers/block"
)

// The tests of this file are schedules of 0001 section 8, level T: the core,
// message by message. The same names at level S are in package sim.

// A write is on A and not on C: no read may see it before it is on all.
func TestReadBehindWrite(t *testing.T) {
	r := newRig(t, Config{}, 3).attach()
	w := r.write(0)
	r.land(w, "A", nil)
	a, b := r.read(0), r.read(0)
	if s := r.sentTo(a) + r.sentTo(b); s != "" {
		t.Fatalf("reads went to %s while the write is on A alone", s)
	}
	other := r.read(64 << 10)
	if r.sentTo(other) == "" {
		t.Fatal("a read elsewhere waits")
	}
	r.land(w, "BC", nil)
	r.want(w, true, "write on all")
	if r.sentTo(a) == "" || r.sentTo(b) == "" {
		t.Fatal("reads still wait")
	}
	r.land(a, "", nil)
	r.want(a, true, "read")
}

// B misses a write in flight and is removed: the record first, then ADVANCE,
// then the acknowledgment; the region is dirty until cleaned anew, with a
// stamp that B cannot have.
func TestRemovalMissedWriteSameEpoch(t *testing.T) {
	r := newRig(t, Config{CleanIdle: time.Millisecond, NoResync: true}, 3).attach()
	w := r.write(0)
	r.land(w, "AC", nil)
	r.want(w, false, "B has not answered")
	r.holdStore = true
	r.c.Lost(r.now, 1)
	r.drain()
	r.want(w, false, "removal is not recorded")
	var advances []*Control
	r.holdAsk = func(ctl *Control) bool {
		if ctl.Kind == AskAdvance {
			advances = append(advances, ctl)
			return true
		}
		return false
	}
	r.holdStore = false
	r.swap(r.stores[0])
	r.drain()
	if r.roles() != "A1B3C1" {
		t.Fatalf("record %s", r.roles())
	}
	r.want(w, false, "nobody has promised the new record")
	if len(advances) != 2 {
		t.Fatalf("%d ADVANCE", len(advances))
	}
	for _, ctl := range advances {
		r.want(w, false, "one has not promised the new record")
		r.c.Answer(r.now, ctl, Reply{})
		r.drain()
	}
	r.want(w, true, "removed, recorded, promised")
	stamp := r.c.regions.at(0).stamp
	for range 10 {
		r.tick(10 * time.Millisecond)
		for len(r.sends) > 0 {
			r.land(r.sends[0].Op, "", nil)
		}
	}
	if g := r.c.regions.at(0); g.dirty || g.stamp == stamp || g.stamp.Epoch.N != 6 {
		t.Fatalf("region 0 is %+v, want clean with a stamp of epoch 6", g)
	}
}

// The answer to a removal is lost: acknowledgments wait until it is known,
// applied or not; not applied and read back unchanged, it is made again.
func TestRemoveUnknownOutcome(t *testing.T) {
	for _, applied := range []bool{true, false} {
		r := newRig(t, Config{}, 3).attach()
		w := r.write(0)
		r.land(w, "AC", nil)
		r.holdStore = true
		r.c.Lost(r.now, 1)
		r.drain()
		if applied {
			r.apply(r.stores[0])
		}
		first := r.stores[0]
		r.stores = nil
		r.want(w, false, "outcome unknown")
		r.c.Stored(r.now, Unknown, 0)
		r.drain() // reads the record back
		r.want(w, applied, "read back")
		if !applied {
			if len(r.stores) != 1 {
				t.Fatalf("%d changes follow", len(r.stores))
			}
			r.swap(r.stores[0])
			r.drain()
			r.want(w, true, "made again")
			if r.apply(first) != IsLost {
				t.Fatal("the first attempt could still be executed")
			}
		}
		if r.roles() != "A1B3C1" {
			t.Errorf("record %s", r.roles())
		}
	}
}

// catchUp lets a resync run until the core sends the change that lets C in.
func (r *rig) catchUp() {
	r.t.Helper()
	for range 400 {
		r.tick(10 * time.Millisecond)
		for len(r.sends) > 0 {
			r.land(r.sends[0].Op, "", nil)
		}
		for _, s := range r.stores {
			if s.Record.Members[2].Role == InSync {
				return
			}
		}
		if k := len(r.stores); k > 0 {
			s := r.stores[k-1]
			r.stores = r.stores[:k-1]
			r.swap(s)
			r.drain()
		}
	}
	r.t.Fatalf("C does not join: %s", r.c.Describe())
}

// C is added, the answer lost: from the moment the change is sent nothing is
// acknowledged without C and no read is answered without its lease.
func TestJoinUnknownOutcome(t *testing.T) {
	r := newRig(t, Config{}, 3)
	r.rec.Members[2] = Member{Replica: "C", Role: Outdated}
	r.attach()
	r.holdStore = true
	r.catchUp()
	join := r.stores[len(r.stores)-1]
	r.stores = nil
	r.apply(join) // applied; the answer is lost
	w := r.write(0)
	r.land(w, "AB", nil)
	r.want(w, false, "C may be in sync")
	r.c.Stored(r.now, Unknown, 0)
	// C was taken over by somebody else meanwhile.
	r.rec.Primary = Primary{Node: "d", Session: Session{9}}
	r.rev++
	r.drain()
	r.want(w, true, "ended")
	if !errors.Is(r.done[w], block.ErrFenced) || !errors.Is(r.over, block.ErrFenced) {
		t.Errorf("write %v, session %v, want fenced", r.done[w], r.over)
	}
}

// A pause between the data of a read and its reply: the lease is looked at
// when the reply is due, and renewed before it goes.
func TestLeaseCheckAfterRead(t *testing.T) {
	r := newRig(t, Config{ReplicaDeadline: time.Hour, HoldDeadline: time.Hour}, 2).attach()
	o := r.read(0)
	r.holdAsk = func(ctl *Control) bool { return ctl.Kind == AskLease }
	r.now += 10 * time.Second
	r.land(o, "A", nil)
	r.want(o, false, "no lease holds")
	if len(r.asks) < 2 {
		t.Fatalf("%d leases asked for", len(r.asks))
	}
	sent := r.now
	r.c.Answer(r.now, r.asks[0], Reply{})
	r.drain()
	r.want(o, false, "one of two leases")
	// Measured from when it was sent: an answer that comes after L is void.
	r.now = sent + 2*time.Second
	r.c.Answer(r.now, r.asks[1], Reply{})
	r.drain()
	r.want(o, false, "answered after the lease was over")
	r.holdAsk = nil
	r.tick(time.Second)
	r.want(o, true, "renewed")
}

// Old session P is leased by X and Y; D1 promotes X and dies; D2 promotes Y:
// what counts is Y's grant to P. And a replica that was opened anew answers
// with the longest lease it ever granted.
func TestLeaseAcrossTwoTakeovers(t *testing.T) {
	r := newRig(t, Config{}, 1)
	r.reply = func(ctl *Control) Reply {
		return Reply{LossID: rigLoss, Promised: Promised{Epoch: Epoch{N: 4, Tag: 1}}, Size: 8 << 20, Remaining: 2 * time.Second}
	}
	r.c.Attach(r.now)
	r.drain()
	begin := r.now
	for !r.open {
		r.tick(10 * time.Millisecond)
		if r.now > begin+time.Minute {
			t.Fatal("does not open")
		}
	}
	if waited := r.now - begin; waited < 2020*time.Millisecond {
		t.Errorf("opened after %v, want 2.02 s", waited)
	}
}

// A region in todo gets no foreground write, one that was copied does.
func TestSyncingGetsWriteBeforeCopy(t *testing.T) {
	r := newRig(t, Config{CopyJobs: 1, CopyChunk: 1 << 20}, 3)
	r.rec.Members[2] = Member{Replica: "C", Role: Outdated}
	r.reply = func(ctl *Control) Reply {
		a := Reply{LossID: rigLoss, Promised: Promised{Epoch: Epoch{N: 4, Tag: 1}}, Size: 8 << 20}
		if ctl.Kind == AskState && ctl.Replica != "C" {
			for g := range uint32(2) {
				a.States = append(a.States, RegionState{Region: g, Stamp: Stamp{Epoch{N: 3}, 1}})
			}
		}
		return a
	}
	r.attach()
	for range 20 {
		r.tick(100 * time.Millisecond)
		if len(r.sends) > 0 {
			break
		}
	}
	copying := r.sends[0].Op // region 0, read from A
	w1 := r.write(1 << 20)   // region 1: in todo
	if s := r.sentTo(w1); s != "AB" {
		t.Fatalf("a write to a region in todo went to %s", s)
	}
	r.land(w1, "", nil)
	w0 := r.write(0) // region 0: waits for the copy
	if s := r.sentTo(w0); s != "" {
		t.Fatalf("a write passes the copy of its region, to %s", s)
	}
	r.land(copying, "A", nil)
	if s := r.sentTo(copying); s != "C" {
		t.Fatalf("the copy goes to %q", s)
	}
	r.land(copying, "C", nil)
	if s := r.sentTo(w0); s != "ABC" {
		t.Fatalf("a write to a region just copied went to %s", s)
	}
	w2 := r.write(4096) // acknowledged without C, lock held until C has it
	r.land(w2, "AB", nil)
	r.want(w2, true, "C is not in need")
	w3 := r.write(4096)
	if s := r.sentTo(w3); s != "" {
		t.Fatalf("W2 passes W1 on its way to C, to %s", s)
	}
	r.land(w2, "C", nil)
	if s := r.sentTo(w3); s != "ABC" {
		t.Fatalf("the second write went to %s", s)
	}
}

// A flush: a member dies during its own; an error on one of two; an error on
// the last, which never leaves and is never flushed again.
func TestFlushWhileMemberDrops(t *testing.T) {
	r := newRig(t, Config{NoResync: true}, 3).attach()
	f := r.submit(block.OpFlush, 0, 0)
	r.land(f, "A", nil)
	r.land(f, "B", block.ErrIO)
	r.want(f, false, "C has not flushed")
	r.land(f, "C", nil)
	r.want(f, true, "B is gone, A and C have")
	if r.done[f] != nil || r.roles() != "A1B3C1" && r.roles() != "A1B2C1" {
		t.Fatalf("flush %v, record %s", r.done[f], r.roles())
	}
	r.c.Lost(r.now, 2)
	r.drain()
	f = r.submit(block.OpFlush, 0, 0)
	r.land(f, "A", block.ErrIO)
	r.want(f, true, "the last member's error")
	if !errors.Is(r.done[f], block.ErrIO) || r.rec.Members[0].Role != InSync {
		t.Fatalf("flush %v, record %s", r.done[f], r.roles())
	}
	f = r.submit(block.OpFlush, 0, 0)
	if r.sentTo(f) != "" || !errors.Is(r.done[f], block.ErrIO) {
		t.Errorf("flushed again in hope: %v", r.done[f])
	}
}

// The last member never leaves the set: errors are the client's, and when it
// is out of reach requests are held until the deadline.
func TestLastInSync(t *testing.T) {
	r := newRig(t, Config{HoldDeadline: 5 * time.Second, NoResync: true}, 2).attach()
	r.c.Lost(r.now, 1)
	r.drain()
	for _, e := range []error{block.ErrIO, block.ErrNoSpace} {
		w := r.write(0)
		r.land(w, "A", e)
		if !errors.Is(r.done[w], e) {
			t.Errorf("write: %v, want %v", r.done[w], e)
		}
	}
	w := r.write(1 << 20)
	r.holdAsk = func(ctl *Control) bool { return true }
	r.c.Lost(r.now, 0)
	r.drain()
	r.tick(time.Second)
	r.want(w, false, "held")
	for range 10 {
		r.tick(time.Second)
	}
	if !errors.Is(r.done[w], block.ErrTimeout) {
		t.Errorf("held write: %v", r.done[w])
	}
	if r.rec.Members[0].Role != InSync {
		t.Errorf("record %s", r.roles())
	}
}

// CLEAN goes out under the lock of its region: a new write waits until all
// have answered; one that never answers leaves first.
func TestCleanRacesWrite(t *testing.T) {
	for _, lost := range []bool{false, true} {
		r := newRig(t, Config{CleanIdle: time.Millisecond, NoResync: true}, 2).attach()
		w := r.write(0)
		r.land(w, "", nil)
		r.holdAsk = func(ctl *Control) bool { return ctl.Kind == AskClean }
		for range 10 {
			r.tick(10 * time.Millisecond)
			for len(r.sends) > 0 {
				r.land(r.sends[0].Op, "", nil) // the flush
			}
		}
		if len(r.asks) != 2 {
			t.Fatalf("%d CLEAN", len(r.asks))
		}
		w = r.write(0)
		r.c.Answer(r.now, r.asks[0], Reply{})
		r.drain()
		if s := r.sentTo(w); s != "" {
			t.Fatalf("a write went to %s while CLEAN is under way", s)
		}
		var a Reply
		if lost {
			a.Err = ErrLost
		}
		r.c.Answer(r.now, r.asks[1], a)
		r.drain()
		r.tick(time.Millisecond)
		want := "AB"
		if lost {
			want = "A"
		}
		if s := r.sentTo(w); s != want {
			t.Fatalf("lost %v: the write went to %q", lost, s)
		}
	}
}

// Outdated members that return first decide nothing: attach waits for A.
func TestOutdatedFirst(t *testing.T) {
	r := newRig(t, Config{}, 3)
	r.rec.Members[1].Role, r.rec.Members[2].Role = Outdated, Outdated
	away := true
	r.reply = func(ctl *Control) Reply {
		if away && ctl.Replica == "A" {
			return Reply{Err: ErrLost}
		}
		return Reply{LossID: rigLoss, Promised: Promised{Epoch: Epoch{N: 4, Tag: 1}}, Size: 8 << 20}
	}
	r.c.Attach(r.now)
	r.drain()
	for range 1000 {
		r.tick(10 * time.Millisecond)
	}
	if r.open || r.over != nil || r.roles() != "A1B3C3" {
		t.Fatalf("open %v, over %v, record %s", r.open, r.over, r.roles())
	}
	away = false
	for range 200 {
		r.tick(10 * time.Millisecond)
	}
	if !r.open {
		t.Fatal("A is back, and the volume does not open")
	}
}

// C, which is caught up, has done a write that then ends with an error on the
// only other member that is left: C does not join before the region is copied
// to it anew. A, which hangs, held up the join until after the last copy.
func TestErrorElsewhereBeforeJoin(t *testing.T) {
	r := newRig(t, Config{CopyJobs: 1, CopyChunk: 1 << 20}, 3)
	r.rec.Members[2] = Member{Replica: "C", Role: Outdated}
	r.reply = func(ctl *Control) Reply {
		a := Reply{LossID: rigLoss, Promised: Promised{Epoch: Epoch{N: 4, Tag: 1}}, Size: 8 << 20}
		if ctl.Kind == AskState && ctl.Replica != "C" {
			a.States = []RegionState{{Region: 1, Stamp: Stamp{Epoch{N: 3}, 1}}}
		}
		return a
	}
	r.attach()
	for range 20 {
		if r.tick(100 * time.Millisecond); len(r.sends) > 0 {
			break
		}
	}
	copying := r.sends[0].Op // region 1, read from a member in sync
	w := r.write(0)
	if s := r.sentTo(w); s != "ABC" {
		t.Fatalf("a write outside todo went to %s", s)
	}
	from := r.sentTo(copying)
	r.land(copying, from, nil)
	r.land(w, "C", nil)
	r.holdStore = true
	r.c.Lost(r.now, 0)
	r.drain()
	r.land(w, "B", block.ErrIO)
	r.land(copying, "C", nil) // the last region: C would join now
	r.holdStore = false
	for _, s := range r.stores {
		r.swap(s)
	}
	r.drain()
	r.want(w, true, "A is gone, B cannot")
	if !errors.Is(r.done[w], block.ErrIO) {
		t.Fatalf("write: %v", r.done[w])
	}
	for range 20 {
		for _, s := range r.sends {
			if s.Op != w && s.Do == block.OpRead && s.Op.Off == 0 {
				return // region 0 is copied
			}
		}
		if r.rec.Members[2].Role == InSync {
			break
		}
		r.tick(20 * time.Millisecond)
	}
	t.Fatalf("region 0 is not copied: record %s, %s", r.roles(), r.c.Describe())
}
