package session

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/moraine-storage/moraine/drivers/aio"
	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/block/buffer"
	"github.com/moraine-storage/moraine/drivers/replication"
)

const (
	// maxLen is the longest request: what one buffer of payload holds, and
	// the largest that NBD carries.
	maxLen = buffer.MaxSize
	// payloadMax bounds the copies of what clients write. A loop has at most
	// 64 MiB of requests from its clients in flight; what members that have
	// left still send, or slow ones that are caught up, may be as much again,
	// and buffers are rounded up to powers of two.
	payloadMax = 256 << 20
	// reapBatch completions are taken from a member at once.
	reapBatch = 64
	// jump is how far the wall clock may move against boottime between two
	// ticks before leases are void: steps by hand and images of machines
	// that are restored are seconds, slewing is below 1 ms.
	jump = 250 * time.Millisecond
	// layerIdle is how long the queue to a frozen layer stays open unused.
	layerIdle = 5 * time.Second
)

// GroupOptions of NewGroup.
type GroupOptions struct {
	Engine  aio.Engine         // of the loop; woken by answers and by time
	Core    replication.Config // Rand is required; the rest has defaults
	Size    int64              // bytes, as the record says now
	Records Records
	// Find gives the member for a replica of the record, called once for each
	// that the session meets. An error means that it cannot be reached.
	Find func(replica string) (Member, error)

	// Announce makes the attachment file list session n, durably, before it
	// returns; if the device that outlived its mirror may not go on (lives is
	// false) it fails that device first, why says why. An error ends the group.
	Announce func(n uint64, lives bool, why error) error
	// Opened is told that the volume serves, and whether a device that
	// outlived its mirror may go on.
	Opened func(lives bool, why error)
	// Over is told that the session has ended: replication.ErrDetached, or why.
	Over func(err error)

	Clock func() time.Duration // nil: Boottime
	Wall  func() time.Time     // nil: time.Now
}

// Group is the mirror of a volume with several replicas: a block.Queue that
// drives a replication.Core. All methods but Info and ClockJumped belong to
// the owner of the engine.
type Group struct {
	o     GroupOptions
	core  *replication.Core
	now   func() time.Duration
	size  atomic.Int64
	grain int64

	links   [replication.MaxMembers]*link // behind the last gate
	members [replication.MaxMembers]Member
	all     []*link // also those of layers, and those that only drain
	tokens  uint64
	scratch []*block.Request
	flights []*flight // free
	came    []*flight // ended, to be told to the core
	lost    []*flight // ended without a queue

	inflight int
	ended    []*block.Request // completed, not reaped
	starved  []*block.Request // wait for memory
	calls    []*call          // free
	live     []*call
	payload  *buffer.Pool

	mail   mailbox
	asks   []*asked
	jobs   map[uint64]func(error)
	timer  *time.Timer
	every  time.Duration
	due    atomic.Bool   // a tick
	wall   time.Duration // wall clock less boottime, at the last tick
	over   error         // the session has ended, or was given up
	dead   bool          // the core is not called any more
	closed bool

	performing bool
}

// NewGroup begins to attach. Requests are taken at once; they are held until
// the volume serves.
func NewGroup(o GroupOptions) (*Group, error) {
	if o.Engine == nil || o.Records == nil || o.Find == nil || o.Core.Rand == nil {
		return nil, errors.New("mirror: an engine, a record store, members and random numbers are needed")
	}
	if o.Size <= 0 || o.Size%block.SectorSize != 0 {
		return nil, fmt.Errorf("mirror of %d bytes: %w", o.Size, block.ErrInvalid)
	}
	if o.Clock == nil {
		o.Clock = Boottime
	}
	if o.Wall == nil {
		o.Wall = time.Now
	}
	if o.Core.Grain == 0 {
		o.Core.Grain = 64 << 10
	}
	if o.Core.CopyChunk == 0 {
		o.Core.CopyChunk = 256 << 10
	}
	g := &Group{o: o, core: replication.New(o.Core), now: o.Clock, grain: o.Core.Grain, jobs: map[uint64]func(error){},
		payload: buffer.New(payloadMax), scratch: make([]*block.Request, reapBatch)}
	g.size.Store(o.Size)
	g.every = g.core.TickEvery()
	g.timer = time.AfterFunc(g.every, func() {
		g.due.Store(true)
		o.Engine.Wake()
	})
	now := g.now()
	g.wall = time.Duration(o.Wall().UnixNano()) - now
	g.core.Attach(now)
	g.perform()
	return g, nil
}

// Info implements block.Queue.
func (g *Group) Info() block.Info {
	return block.Info{Size: g.size.Load(), BlockSize: 4096, Grain: g.grain, MaxLen: maxLen, Trim: true, Zero: true}
}

// InFlight implements block.Queue.
func (g *Group) InFlight() int { return g.inflight }

// Submit implements block.Queue.
func (g *Group) Submit(reqs []*block.Request) {
	g.inflight += len(reqs)
	now := g.now()
	info := g.Info()
	for _, r := range reqs {
		r.Err = nil
		switch err := block.Validate(r, info); {
		case err != nil:
			g.answer(r, err)
		case g.dead:
			g.answer(r, g.deadErr())
		default:
			g.begin(now, r)
		}
	}
	g.perform()
}

// Reap implements block.Queue.
func (g *Group) Reap(done []*block.Request) int {
	for g.step() {
	}
	n := copy(done, g.ended)
	if n > 0 {
		rest := copy(g.ended, g.ended[n:])
		clear(g.ended[rest:])
		g.ended = g.ended[:rest]
		g.inflight -= n
	}
	return n
}

// step does what can be done without the engine; false: nothing was there.
// The clock is read after data was taken from members: a lease that is seen
// to hold then held when the data was read (0001, I-LEASE).
func (g *Group) step() bool {
	did := g.readMail()
	g.reapLinks()
	if len(g.came) > 0 || len(g.lost) > 0 {
		did = true
		now := g.now()
		g.tellCore(now)
		g.perform()
	}
	if g.due.Load() && !g.closed {
		did = true
		g.due.Store(false)
		g.tick(g.now())
	}
	if len(g.starved) > 0 && g.feed() {
		did = true
	}
	return did
}

// Serving says whether the volume serves.
func (g *Group) Serving() bool { return !g.dead && g.core.Serving() }

// Quiet says that nothing is left to do in the background.
func (g *Group) Quiet() bool { return !g.dead && g.core.Quiet() }

// Err is why the session has ended, or nil.
func (g *Group) Err() error { return g.over }

// Core gives the state machine for looking at it: Steps, Record, Need.
func (g *Group) Core() *replication.Core { return g.core }

// ClockJumped voids all leases: the machine was restored from an image or
// migrated. Jumps of the wall clock are noticed by the group itself. Any
// goroutine.
func (g *Group) ClockJumped() {
	g.post(func() {
		g.core.ClockJumped(g.now())
		g.perform()
	})
}

// Snapshot freezes the volume under id; done is told on the owner's goroutine.
func (g *Group) Snapshot(id replication.SnapshotID, done func(error)) {
	g.job(done, func(now time.Duration) (uint64, error) { return g.core.Snapshot(now, id) })
}

// DropSnapshot deletes a snapshot from the record and from all members.
func (g *Group) DropSnapshot(id replication.SnapshotID, done func(error)) {
	g.job(done, func(now time.Duration) (uint64, error) { return g.core.DropSnapshot(now, id) })
}

// Resize grows the volume; Info tells the size before done is told.
func (g *Group) Resize(size int64, done func(error)) {
	g.job(done, func(now time.Duration) (uint64, error) { return g.core.Resize(now, size) })
}

// Detach ends the session; the device is gone already. Over with
// replication.ErrDetached follows.
func (g *Group) Detach(done func(error)) {
	g.job(func(err error) {
		if errors.Is(err, replication.ErrDetached) {
			err = nil
		}
		done(err)
	}, g.core.Detach)
}

func (g *Group) job(done func(error), start func(now time.Duration) (uint64, error)) {
	if g.dead {
		done(g.deadErr())
		return
	}
	n, err := start(g.now())
	if err != nil {
		done(err)
		g.perform()
		return
	}
	g.jobs[n] = done
	g.perform()
}

func (g *Group) deadErr() error {
	if g.over != nil {
		return g.over
	}
	return block.ErrClosed
}

// Close implements block.Queue: the session is given up as it stands. What is
// still on its way to members is waited for.
func (g *Group) Close() error {
	if g.closed {
		return nil
	}
	g.closed = true
	g.timer.Stop()
	g.kill(block.ErrClosed)
	var events [8]aio.Event // levels: who drives the engine after this sees them again
	for {
		for g.step() {
		}
		if len(g.all) == 0 {
			break
		}
		if _, err := g.o.Engine.Wait(events[:], time.Second); err != nil {
			return fmt.Errorf("close mirror: %w", err)
		}
	}
	var err error
	for i := range g.members {
		if m := g.members[i]; m != nil {
			err = errors.Join(err, m.Close())
			g.members[i] = nil
		}
	}
	g.mail.close()
	g.payload.Close()
	return err
}
