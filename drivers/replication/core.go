package replication

import (
	"fmt"
	"time"

	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/block/rangelock"
)

// Config of a Core.
type Config struct {
	Node    string
	Session Session // fresh: never used before
	Local   string  // replica on this node, read first; "" if none
	// OwnSessions are the n of the sessions that this node's attachment file
	// lists for a device that is still there; nil without such a device.
	OwnSessions []uint64
	// Takeover allows to replace another primary. The driver has checked what
	// 4.1.1 asks for.
	Takeover bool

	BlockSize  int64 // locks are rounded out to it; 4096
	RegionSize int64 // power of two; 1 MiB
	Grain      int64 // TRIM is cut inwards to it
	CopyChunk  int64 // bytes copied at once; divides RegionSize
	CopyJobs   int   // regions copied at a time

	Lease           time.Duration // 2 s
	LeaseEvery      time.Duration // 0.5 s
	ReplicaDeadline time.Duration // oldest unanswered operation, or silence, of a member
	HoldDeadline    time.Duration // a client operation is answered EIO after it
	ControlTimeout  time.Duration
	PromoteTimeout  time.Duration // for the members of an attach that do not answer
	RetryEvery      time.Duration // resync, promote of unreachable members, record reads
	CleanIdle       time.Duration // a region is cleaned when not written for so long
	MaxDirty        int           // regions; beyond, cleaned without waiting for idleness
	MinInSync       int
	ConfirmedReads  bool
	NoResync        bool // a maintenance attach that only wants the in-sync set

	Rand     func() uint64
	Mutation Mutation
}

func (g *Config) setDefaults() {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	defN := func(d *int64, v int64) {
		if *d == 0 {
			*d = v
		}
	}
	defN(&g.BlockSize, 4096)
	defN(&g.RegionSize, 1<<20)
	defN(&g.Grain, 64<<10)
	defN(&g.CopyChunk, 256<<10)
	def(&g.Lease, 2*time.Second)
	def(&g.LeaseEvery, g.Lease/4)
	def(&g.ReplicaDeadline, 2*time.Second)
	def(&g.HoldDeadline, 30*time.Second)
	def(&g.ControlTimeout, 2*time.Second)
	def(&g.PromoteTimeout, 3*time.Second)
	def(&g.RetryEvery, time.Second)
	def(&g.CleanIdle, 10*time.Second)
	if g.CopyJobs == 0 {
		g.CopyJobs = 4
	}
	if g.MaxDirty == 0 {
		g.MaxDirty = 4096
	}
	if g.MinInSync == 0 {
		g.MinInSync = 1
	}
}

type phase uint8

const (
	phaseNew      phase = iota
	phaseClaim          // 4.1.1, 4.1.2
	phasePromote        // 4.1.3
	phaseState          // 4.1.4
	phaseActivate       // 4.1.5
	phaseServing        // from 4.1.5 on: the set is ours
)

// Steps counts how often each step of section 4 was taken.
type Steps struct {
	Claimed, Promoted, Activated, WaitedOut, Opened                 int
	Reconciled, Removed, Advanced, Cleaned                          int
	ResyncStarted, LayersCaught, RegionsCopied, HolesCopied, Joined int
	ResyncAborted, Snapshots, SnapshotsAborted, Thawed, Resized     int
	Detached, Resumed, Repaired, Unknowns, Fenced, HeldToDeadline   int
	ReadsRenewed, MixedToTodo, FlushErrors, NoSpaceAll, StampKept   int
	SnapshotsDropped                                                int
}

type member struct {
	id       string
	lossID   string // as it answered PROMOTE
	gate     uint64
	promoted bool // its gate is open for this session
	busy     bool // a PROMOTE is under way
	lossy    bool // came back without what it had
	retryAt  time.Duration

	heard      time.Duration // last LEASE answer (or when it began to count)
	leaseUntil time.Duration
	confirmed  uint64 // number of the latest lease request answered
	flushed    uint64 // everything that ended before this sequence is durable
	copied     bitset // regions copied to it whose common stamp it has yet to get
	answer     Reply  // to PROMOTE, during attach
	answered   bool
	states     []RegionState
	stated     bool
}

// Core is the mirror of one attached volume as a state machine. Its methods
// are the events; what they want done comes out of Effects. One goroutine.
type Core struct {
	cfg   Config
	now   time.Duration
	fx    []Effect
	spare []Effect
	phase phase
	over  error // the session has ended
	mut   Mutation
	steps Steps

	rec     Record // last one known to be stored
	rev     uint64
	advance Epoch // epoch of the record that all of serving promised
	advWait Set
	change  changeState
	members [MaxMembers]member
	nm      uint8

	serving Set // in-sync set of the last record that was advanced to
	maybe   Set // in-sync members of changes whose outcome is not known
	joining Set
	need    Set
	syncSet Set // syncing members that get foreground writes
	z       Set
	failed  Set // members of need that are not sent to any more

	locks   rangelock.Table
	granted []*rangelock.Lock
	waiting opList // in the lock table, not granted
	issued  opList
	held    opList
	parked  opList // wait for a reconcile
	stalled opList // wait for a member to read from
	unlease opList // reads whose data is here
	holding int
	pool    []*Op
	opID    uint64
	seq     uint64
	turn    uint8

	regions  regionTable
	size     int64
	dirtyQ   []uint32 // regions that are dirty in the mirror's view
	todoRec  bitset   // the reconcile set
	urgent   []uint32 // of it, those that I/O waits for
	copying  bitset   // regions under a copy job
	recAt    uint32   // where the reconcile goes on
	recRetry time.Duration
	jobs     int   // copy jobs under way
	flushErr error // sticky: the last member failed a flush
	cleaner  cleaner
	rs       *resync
	rsTurn   uint8
	work     []*volumeJob // snapshot, resize, detach: one at a time, in order
	workSeq  uint64

	leaseSeq  uint64
	leaseNext time.Duration
	openAt    time.Duration
	opened    bool
	base      Record // as read, before step 2
	claimN    uint64
	lives     Attach
	promoteBy time.Duration
	promoteAt time.Duration
	localSlot uint8
}

// New makes a core that does nothing until Attach.
func New(cfg Config) *Core {
	cfg.setDefaults()
	return &Core{cfg: cfg, mut: cfg.Mutation, localSlot: MaxMembers}
}

// Steps returns the counts of steps taken.
func (c *Core) Steps() Steps { return c.steps }

// Err is why the session has ended, or nil.
func (c *Core) Err() error { return c.over }

// Serving says whether requests are taken.
func (c *Core) Serving() bool { return c.opened && c.over == nil }

// Need is the set of members without which nothing is acknowledged.
func (c *Core) Need() Set { return c.need }

// Record is the record as last known to be stored, and its revision.
func (c *Core) Record() (Record, uint64) { return c.rec.clone(), c.rev }

// Replica is the id of the member in a slot.
func (c *Core) Replica(m uint8) string { return c.members[m].id }

// Quiet says that nothing is left to do in the background: all members that
// can be are in sync, nothing is dirty.
func (c *Core) Quiet() bool {
	return c.opened && c.over == nil && len(c.dirtyQ) == 0 && c.todoRec.n == 0 && c.rs == nil && c.issued.n == 0 &&
		c.failed == 0 && c.maybe == 0 && !c.change.busy && len(c.work) == 0 && c.serving == c.need && c.holding == 0 &&
		c.outdated() == 0 && c.copiedLeft() == 0
}

func (c *Core) copiedLeft() (n int) {
	c.z.each(func(m uint8) { n += c.members[m].copied.n })
	return n
}

func (c *Core) outdated() (s Set) {
	for i := range c.rec.Members {
		if r := c.rec.Members[i].Role; r == Outdated || r == Syncing {
			s |= bit(c.slot(c.rec.Members[i].Replica))
		}
	}
	return s
}

// slot finds or makes the slot of a replica.
func (c *Core) slot(id string) uint8 {
	for i := range c.nm {
		if c.members[i].id == id {
			return i
		}
	}
	if c.nm == MaxMembers {
		return MaxMembers - 1 // 16 members came and went: the driver attaches anew before
	}
	c.members[c.nm].id = id
	if id == c.cfg.Local {
		c.localSlot = c.nm
	}
	c.nm++
	return c.nm - 1
}

func (c *Core) inSync(r *Record) (s Set) {
	for i := range r.Members {
		if r.Members[i].Role == InSync {
			s |= bit(c.slot(r.Members[i].Replica))
		}
	}
	return s
}

func (c *Core) live() Set { return c.need &^ c.failed }

// recompute derives need and Z. Members that left are closed, and what waited
// for them goes on.
func (c *Core) recompute() {
	old := c.z
	c.need = c.serving | c.inSync(&c.rec) | c.maybe | c.joining
	if c.phase < phaseServing {
		c.need = 0
	}
	c.z = c.need | c.syncSet
	if c.rs != nil && c.rs.promoted {
		c.z |= bit(c.rs.m)
	}
	left := old &^ c.z
	left.each(func(m uint8) {
		if !c.failed.Has(m) {
			c.emit(Effect{Kind: Close, Member: m})
		}
		c.members[m].promoted = false
		c.members[m].copied = bitset{}
		c.members[m].gate++ // answers to come are for nobody
		c.members[m].busy = false
		c.members[m].lossy = false
		c.failed &^= bit(m)
	})
	c.sweep()
}

// sweep looks at everything in flight again after need or Z changed.
func (c *Core) sweep() {
	for o := c.issued.head; o != nil; {
		next := o.next
		o.wait &= c.z
		c.settle(o)
		o = next
	}
	c.recheckReads()
	c.unstall()
}

// fail stops using member m: its completions do not come any more, or do not
// count. It stays in need until the record says otherwise (4.2).
func (c *Core) fail(m uint8) {
	if c.over != nil || !c.z.Has(m) || c.failed.Has(m) {
		return
	}
	if !c.need.Has(m) || c.joining.Has(m) && !c.maybe.Has(m) && !c.inSync(&c.rec).Has(m) {
		c.abortResync("member lost")
		return
	}
	c.failed |= bit(m)
	c.members[m].promoted = false
	c.emit(Effect{Kind: Close, Member: m})
	for o := c.issued.head; o != nil; {
		next := o.next
		c.settle(o)
		o = next
	}
	c.cleanerLost()
}

// end is the end of the session: everything fails with err.
func (c *Core) end(err error) {
	if c.over != nil {
		return
	}
	c.over = err
	if err == block.ErrFenced {
		c.steps.Fenced++
	}
	fail := err
	if err == ErrDetached {
		fail = block.ErrClosed
	}
	for _, l := range []*opList{&c.held, &c.parked, &c.waiting, &c.stalled, &c.unlease} {
		for o := l.head; o != nil; o = l.head {
			o.locked, o.wait = false, 0
			o.moveTo(&c.issued)
		}
	}
	for o := c.issued.head; o != nil; {
		next := o.next
		o.wait, o.locked = 0, false
		if !o.acked {
			o.acked = true
			c.complete(o, fail)
		} else if o.out == 0 {
			o.unlist()
			c.emit(Effect{Kind: Release, Op: o, Final: true})
		}
		o = next
	}
	for m := range c.nm {
		if c.members[m].promoted {
			c.emit(Effect{Kind: Close, Member: m})
			c.members[m].promoted = false
		}
	}
	for _, w := range c.work {
		c.emit(Effect{Kind: Finished, Job: w.number, Err: err})
	}
	c.work = nil
	c.emit(Effect{Kind: Over, Err: err})
}

// complete answers the client of o (internal ops have none, but the driver
// gets their buffer back), and finishes with o if nothing is under way.
func (c *Core) complete(o *Op, err error) {
	final := o.out == 0 && o.wait == 0 && !o.locked
	if final {
		o.unlist()
	}
	if o.role == roleClient {
		c.emit(Effect{Kind: Complete, Op: o, Err: err, Final: final})
	} else if final {
		c.emit(Effect{Kind: Release, Op: o, Final: true})
	}
}

// pump runs what became possible.
func (c *Core) pump() {
	for len(c.granted) > 0 {
		l := c.granted[len(c.granted)-1]
		c.granted = c.granted[:len(c.granted)-1]
		switch o := l.Owner.(type) {
		case *Op:
			// It may have been given up since.
			if c.over == nil && o.locked && l.Granted() && o.list == &c.waiting {
				c.start(o)
			}
		case *cleaner:
			o.waits--
		}
	}
	if c.over != nil || c.phase != phaseServing {
		return
	}
	if c.todoRec.n > 0 || c.rs != nil || c.cleaner.active || len(c.work) > 0 || c.failed != 0 || c.change.wanted {
		c.background()
	}
}

// background drives everything that is no client's operation one step on.
func (c *Core) background() {
	c.propose()
	c.reconcileMore()
	c.cleanerStep()
	c.resyncStep()
	c.workStep()
	if len(c.granted) > 0 {
		c.pump()
	}
}

// StartedLossy says that no member of the set that this session began with
// still had what the record said it had: acknowledged writes that were not
// flushed may be gone.
func (c *Core) StartedLossy() bool { return c.lives.Lossy }

// FlushFailed says that the last member failed a flush: every later one fails
// until the volume is attached anew.
func (c *Core) FlushFailed() bool { return c.flushErr != nil }

// Describe is the state in a line, for people.
func (c *Core) Describe() string {
	s := ""
	if o := c.issued.head; o != nil {
		s = fmt.Sprintf(" oldest: %v role %d stage %d wait %b out %b okay %b nospc %b bad %b acked %v issued %v ago", o.Kind, o.role, o.stage, o.wait, o.out, o.okay, o.nospc, o.bad, o.acked, c.now-o.issued)
	}
	if c.rs != nil {
		s += fmt.Sprintf(" resync of %d: step %d pending %v todo %d", c.rs.m, c.rs.step, c.rs.pending, c.rs.todo.n)
	}
	if len(c.work) > 0 {
		s += fmt.Sprintf(" job %+v", *c.work[0])
	}
	return fmt.Sprintf("phase %d opened %v over %v need %b serving %b failed %b maybe %b sync %b joining %b issued %d waiting %d held %d parked %d stalled %d unleased %d reconcile %d dirty %d copied %d jobs %d cleaner %v/%v resync %v change %v open %d work %d",
		c.phase, c.opened, c.over, c.need, c.serving, c.failed, c.maybe, c.syncSet, c.joining, c.issued.n, c.waiting.n, c.held.n, c.parked.n, c.stalled.n, c.unlease.n,
		c.todoRec.n, len(c.dirtyQ), c.copiedLeft(), c.jobs, c.cleaner.active, c.cleaner.flushing, c.rs != nil, c.change.busy, c.change.open, len(c.work)) + s
}
