package session

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/moraine-storage/moraine/drivers/aio"
	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/block/buffer"
	"github.com/moraine-storage/moraine/drivers/replication"
)

// conn is a queue over a connection that can break, hold requests for ever,
// and like a real one ends what it holds when it is closed.
type conn struct {
	block.Queue
	hold   bool
	held   []*block.Request
	ended  []*block.Request
	err    error
	events int
}

func (c *conn) Submit(reqs []*block.Request) {
	if c.hold || c.err != nil {
		c.held = append(c.held, reqs...)
		c.flushErr()
		return
	}
	c.Queue.Submit(reqs)
}

func (c *conn) flushErr() {
	if c.err == nil {
		return
	}
	for _, r := range c.held {
		r.Err = block.ErrIO
		c.ended = append(c.ended, r)
	}
	c.held = nil
}

func (c *conn) Reap(done []*block.Request) int {
	n := copy(done, c.ended)
	c.ended = c.ended[n:]
	return n + c.Queue.Reap(done[n:])
}

func (c *conn) Err() error { return c.err }

func (c *conn) Close() error {
	c.snap(block.ErrClosed)
	return nil
}

func (c *conn) snap(err error) {
	if c.err == nil {
		c.err = err
	}
	c.flushErr()
}

func (c *conn) Ready(aio.Event) { c.events++ }

// Goal: a connection that breaks or hangs costs its member, not the client:
// removed before the answer, caught up behind a new connection, joined again.
func TestConnectionBreaks(t *testing.T) {
	for _, how := range []string{"broken in flight", "broken while idle", "hangs"} {
		t.Run(how, func(t *testing.T) {
			var conns []*conn
			r := newFakeRig(t, abc, func(o *GroupOptions, r *fakeRig) {
				o.Core.ReplicaDeadline = 500 * time.Millisecond
				o.Core.LeaseEvery = 100 * time.Millisecond
				r.members["c"].wrap = func(q block.Queue) block.Queue {
					conns = append(conns, &conn{Queue: q})
					return conns[len(conns)-1]
				}
			})
			r.until("opened", r.g.Serving)
			c := conns[0]
			data := bytes.Repeat([]byte{3}, 4096)
			if how == "broken while idle" {
				c.snap(errors.New("reset by peer"))
			} else {
				c.hold = true
			}
			q, ended := r.start(block.OpWrite, 0, 4096, data)
			if how == "broken in flight" {
				c.snap(errors.New("reset by peer"))
			}
			r.until("answer", func() bool { return *ended == 1 })
			if q.Err != nil || r.g.core.Steps().Removed != 1 {
				t.Fatalf("write: %v, steps %+v", q.Err, r.g.core.Steps())
			}
			r.until("joined again", func() bool { return r.g.core.Steps().Joined == 1 })
			if len(conns) < 2 || c.err == nil {
				t.Errorf("%d connections, the first: %v", len(conns), c.err)
			}
			got := make([]byte, 4096)
			check := &block.Request{Op: block.OpRead, Len: 4096, Buf: got}
			m := r.members["c"].disk.OpenQueue(nil)
			m.Submit([]*block.Request{check})
			if m.Reap(r.scratch) != 1 || !bytes.Equal(got, data) {
				t.Error("it joined without the write that it missed")
			}
			if err := m.Close(); err != nil {
				t.Error(err)
			}
			last := conns[len(conns)-1]
			for _, l := range r.g.all {
				if l.q == last {
					r.g.Ready(aio.Event{Token: l.token})
				}
			}
			if last.events != 1 || c.events != 0 {
				t.Errorf("events went to %d and %d", c.events, last.events)
			}
		})
	}
}

// Goal: a mirror before a group limits it and passes everything else on.
func TestMirrorBeforeGroup(t *testing.T) {
	r := newFakeRig(t, abc, nil)
	r.until("opened", r.g.Serving)
	m, err := New(Options{Engine: r.e, Member: r.g, Limits: Limits{IOPS: 100000}})
	if err != nil {
		t.Fatal(err)
	}
	m.Ready(aio.Event{Token: 99}) // of a connection that is gone
	q := &block.Request{Op: block.OpWrite, Len: 4096, Buf: make([]byte, 4096)}
	m.Submit([]*block.Request{q})
	for end := time.Now().Add(10 * time.Second); m.Reap(r.scratch) == 0; {
		if time.Now().After(end) {
			t.Fatal("no answer")
		}
	}
	if q.Err != nil || m.InFlight() != 0 {
		t.Errorf("write: %v, %d in flight", q.Err, m.InFlight())
	}
}

// Goal: more payload than there is memory for waits and is not lost.
func TestWritesWaitForMemory(t *testing.T) {
	r := newFakeRig(t, abc, nil)
	r.until("opened", r.g.Serving)
	if err := r.do(block.OpWrite, 0, 4096, make([]byte, 4096)); err != nil {
		t.Fatal(err)
	}
	r.g.payload.Close()
	r.g.payload = buffer.New(64 << 10)
	ended := new(int)
	var reqs []*block.Request
	for i := range 64 {
		reqs = append(reqs, &block.Request{Op: block.OpWrite, Off: int64(i) * 8192, Len: 8192, Buf: bytes.Repeat([]byte{byte(i)}, 8192), Owner: ended})
	}
	r.g.Submit(reqs)
	if len(r.g.starved) == 0 {
		t.Fatal("nothing had to wait")
	}
	r.until("all is written", func() bool { return *ended == 64 })
	for i, q := range reqs {
		got := make([]byte, 8192)
		if err := r.do(block.OpRead, q.Off, 8192, got); err != nil || q.Err != nil || !bytes.Equal(got, q.Buf) {
			t.Errorf("write %d: %v, read: %v", i, q.Err, err)
		}
	}
}

// Goal: jobs are refused with the reason once the session is over.
func TestJobsAfterTheEnd(t *testing.T) {
	r := newFakeRig(t, abc, func(o *GroupOptions, _ *fakeRig) {
		o.Announce = func(uint64, bool, error) error { return block.ErrIO }
	})
	r.until("over", func() bool { return r.g.Err() != nil })
	var got []error
	note := func(err error) { got = append(got, err) }
	r.g.Snapshot(replication.SnapshotID{1}, note)
	r.g.DropSnapshot(replication.SnapshotID{1}, note)
	r.g.Resize(fakeSize*2, note)
	r.g.Detach(note)
	r.g.ClockJumped()
	r.reap()
	if len(got) != 4 {
		t.Fatalf("%d of 4 jobs were answered", len(got))
	}
	for _, err := range got {
		if !errors.Is(err, block.ErrIO) {
			t.Errorf("job: %v", err)
		}
	}
}

// BenchmarkPayload is what the copy of a 4 KiB write costs with its buffer.
func BenchmarkPayload(b *testing.B) {
	p := buffer.New(1 << 20)
	defer p.Close()
	src := make([]byte, 32*4096)
	b.ReportAllocs()
	for i := range b.N {
		buf, err := p.Get(4096)
		if err != nil {
			b.Fatal(err)
		}
		copy(buf, src[i%32*4096:])
		p.Put(buf)
	}
}
