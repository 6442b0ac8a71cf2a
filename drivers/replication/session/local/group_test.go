package local

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/block/faultblock"
	"github.com/moraine-storage/moraine/drivers/replication"
	"github.com/moraine-storage/moraine/drivers/replication/session"
	"github.com/moraine-storage/moraine/drivers/store"
)

// Goal: the operations of a client on three real replicas, and a clean end:
// equal bytes everywhere, nothing dirty, no primary.
func TestThreeReplicas(t *testing.T) {
	r := newRig(t, 3)
	r.attach(false)
	want := make([]byte, volumeSize)
	r.write(0, 4096, 1)
	r.write(1<<20-512, 1024, 2) // two regions
	r.write(3<<20, 256<<10, 3)
	r.ok(r.do(block.OpTrim, 3<<20, 128<<10, nil))
	r.ok(r.do(block.OpZero, 512, 1024, nil))
	r.ok(r.do(block.OpFlush, 0, 0, nil))
	fill(want[:4096], 1)
	fill(want[1<<20-512:1<<20+512], 2)
	fill(want[3<<20:3<<20+256<<10], 3)
	clear(want[3<<20 : 3<<20+128<<10])
	clear(want[512:1536])
	got := make([]byte, volumeSize)
	r.ok(r.do(block.OpRead, 0, volumeSize, got))
	if !bytes.Equal(got, want) {
		t.Error("the mirror reads something else")
	}
	r.detach()
	if !r.rec.rec.Clean || r.rec.rec.Primary.Session != (replication.Session{}) {
		t.Errorf("record after detach: %+v", r.rec.rec)
	}
	for i, d := range r.drives {
		if !bytes.Equal(r.contents(i, nil), want) {
			t.Errorf("replica %d differs", i)
		}
		if n := d.r.Info().Dirty; n != 0 {
			t.Errorf("replica %d has %d dirty regions after detach", i, n)
		}
	}
	r.attach(false) // and again
	clear(got)
	r.ok(r.do(block.OpRead, 0, volumeSize, got))
	if !bytes.Equal(got, want) {
		t.Error("after attaching again it reads something else")
	}
	if s := r.g.Core().Steps(); s.Reconciled != 0 {
		t.Errorf("%d regions reconciled after a clean detach", s.Reconciled)
	}
}

func fill(b []byte, v byte) {
	for i := range b {
		b[i] = v
	}
}

// Goal: a member whose medium fails leaves the record before the client is
// answered, is caught up, and joins again.
func TestMemberFailsAndRejoins(t *testing.T) {
	for _, op := range []block.Op{block.OpWrite, block.OpFlush, block.OpTrim, block.OpZero} {
		t.Run(op.String(), func(t *testing.T) {
			r := newRig(t, 3)
			r.attach(false)
			want := make([]byte, volumeSize)
			r.write(0, 128<<10, 5)
			fill(want[:128<<10], 5)
			r.drives[2].fault.Set(faultblock.Rule{Ops: []block.Op{op}, Count: 1, Err: block.ErrIO})
			if op == block.OpWrite {
				r.write(2<<20, 8192, 6)
				fill(want[2<<20:2<<20+8192], 6)
			} else {
				r.ok(r.do(op, 0, 64<<10, nil))
				if op != block.OpFlush {
					clear(want[:64<<10])
				}
			}
			if s := r.g.Core().Steps(); s.Removed != 1 {
				t.Fatalf("answered with %d removals", s.Removed)
			}
			r.quiet()
			if s := r.g.Core().Steps(); s.Joined != 1 {
				t.Errorf("%d joined", s.Joined)
			}
			r.write(4096, 4096, 7)
			fill(want[4096:8192], 7)
			r.equal(want)
		})
	}
}

// Goal: the process dies with writes acknowledged and dirty; the next session
// keeps the device, makes regions equal, and loses nothing.
func TestAgentDies(t *testing.T) {
	r := newRig(t, 3)
	want := make([]byte, volumeSize)
	r.attach(false)
	for k := range 4 {
		off, v := int64(k)<<20|8192, byte(k+1)
		r.write(off, 64<<10, v)
		fill(want[off:off+64<<10], v)
		r.leave()
		r.attach(true)
		if r.over != nil || !r.lives {
			t.Fatalf("start %d: over %v, device lives %v", k, r.over, r.lives)
		}
		got := make([]byte, volumeSize)
		r.ok(r.do(block.OpRead, 0, volumeSize, got))
		if !bytes.Equal(got, want) {
			t.Fatalf("start %d: reads something else", k)
		}
	}
	r.equal(want)
}

// Goal: whole drives close and open again; leases that they may have granted
// are waited out.
func TestDrivesReopen(t *testing.T) {
	r := newRig(t, 2)
	r.change = func(o *session.GroupOptions) { o.Core.Lease = 500 * time.Millisecond }
	r.attach(false)
	r.write(4096, 4096, 9)
	r.ok(r.do(block.OpRead, 0, 512, make([]byte, 512))) // leases were granted
	r.leave()
	for i, d := range r.drives {
		r.ok(d.s.Close())
		r.openDrive(i)
	}
	r.attach(true)
	if s := r.g.Core().Steps(); s.WaitedOut != 1 {
		t.Errorf("served without waiting for leases: %+v", s)
	}
	want := make([]byte, volumeSize)
	fill(want[4096:8192], 9)
	r.equal(want)
}

// Goal: a snapshot is one cut on all members, also on one that was away when
// it was made; it can be dropped; the volume grows.
func TestSnapshotAndGrow(t *testing.T) {
	r := newRig(t, 3)
	r.attach(false)
	r.write(0, 4096, 1)
	snap := store.ID{7}
	r.ok(r.job(func(done func(error)) { r.g.Snapshot(replication.SnapshotID(snap), done) }))
	atSnap := make([]byte, volumeSize)
	fill(atSnap[:4096], 1)
	r.write(2048, 4096, 2)

	// One member leaves and misses the second snapshot.
	r.drives[1].fault.Set(faultblock.Rule{Ops: []block.Op{block.OpWrite}, Count: 1, Err: block.ErrIO})
	r.write(1<<20, 4096, 3)
	second := store.ID{8}
	r.ok(r.job(func(done func(error)) { r.g.Snapshot(replication.SnapshotID(second), done) }))
	r.write(1<<20, 4096, 4)
	at2 := bytes.Clone(atSnap)
	fill(at2[2048:6144], 2)
	fill(at2[1<<20:1<<20+4096], 3)
	r.quiet()

	r.ok(r.job(func(done func(error)) { r.g.Resize(volumeSize+1<<20, done) }))
	if n := r.g.Info().Size; n != volumeSize+1<<20 {
		t.Errorf("size %d after growing", n)
	}
	r.write(volumeSize, 4096, 5)
	want := append(bytes.Clone(at2), make([]byte, 1<<20)...)
	fill(want[1<<20:1<<20+4096], 4)
	fill(want[volumeSize:volumeSize+4096], 5)
	r.quiet()
	for i := range r.drives {
		if !bytes.Equal(r.contents(i, &snap), atSnap) {
			t.Errorf("replica %d: first snapshot differs", i)
		}
		if !bytes.Equal(r.contents(i, &second), at2) {
			t.Errorf("replica %d: second snapshot differs", i)
		}
	}
	r.ok(r.job(func(done func(error)) { r.g.DropSnapshot(replication.SnapshotID(snap), done) }))
	for i, d := range r.drives {
		if n := len(d.r.Info().Layers); n != 1 {
			t.Errorf("replica %d has %d layers", i, n)
		}
	}
	r.equal(want)
}

// Goal: RemoveUnknownOutcome: the answer to the removal is lost, executed or
// not; the client is answered only when that is known.
func TestUnknownOutcome(t *testing.T) {
	for _, apply := range []bool{false, true} {
		r := newRig(t, 3)
		r.attach(false)
		r.write(0, 4096, 1)
		r.quiet()
		n := 0
		r.rec.apply = apply
		r.rec.fault = func() replication.Outcome {
			if n++; n == 1 {
				return replication.Unknown
			}
			return replication.IsStored
		}
		r.drives[0].fault.Set(faultblock.Rule{Ops: []block.Op{block.OpWrite}, Count: 1, Err: block.ErrIO})
		answered := false
		q := &block.Request{Op: block.OpWrite, Off: 4096, Len: 4096, Buf: bytes.Repeat([]byte{2}, 4096)}
		r.start(q, func(*block.Request) {
			answered = true
			if r.role(0) == replication.InSync {
				t.Error("answered while the record names who has it not")
			}
		})
		r.until("answer", func() bool { return answered })
		r.ok(q.Err)
		if s := r.g.Core().Steps(); s.Unknowns == 0 {
			t.Error("no outcome was unknown")
		}
		want := make([]byte, volumeSize)
		fill(want[:4096], 1)
		fill(want[4096:8192], 2)
		r.equal(want)
	}
}

// Goal: another session takes over; the old one is fenced, its queues end, and
// what it writes after that reaches no replica.
func TestTakeover(t *testing.T) {
	r := newRig(t, 2)
	r.attach(false)
	r.write(0, 4096, 1)
	old := r.g
	r.g = nil
	r.change = func(o *session.GroupOptions) {
		o.Core.Node, o.Core.Takeover = "n2", true
		o.Core.PromoteTimeout = 20 * time.Second
	}
	// The old session shares the engine: it must be driven for PROMOTE to drain.
	var oldErr error
	drive := func() {
		for old.Reap(r.scratch[:1]) > 0 {
			oldErr = r.scratch[0].Err
		}
	}
	r.attachWith(drive)
	r.write(4096, 4096, 2)
	q := &block.Request{Op: block.OpWrite, Off: 0, Len: 4096, Buf: bytes.Repeat([]byte{9}, 4096)}
	old.Submit([]*block.Request{q})
	r.until("the old session is told", func() bool { drive(); return oldErr != nil })
	if !errors.Is(oldErr, block.ErrFenced) {
		t.Errorf("old session's write: %v", oldErr)
	}
	r.ok(old.Close())
	want := make([]byte, volumeSize)
	fill(want[:4096], 1)
	fill(want[4096:8192], 2)
	r.equal(want)
}
