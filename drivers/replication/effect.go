package replication

import (
	"errors"
	"time"

	"github.com/moraine-storage/moraine/drivers/block"
)

// EffectKind says what the driver has to do.
type EffectKind uint8

// Effects of the core.
const (
	// Send operation Op to Member as Do (a copy is read from one member and
	// written or zeroed on others; everything else is sent as what it is).
	// Each Send is answered by exactly one Done, also when the connection is
	// closed or lost meanwhile.
	Send EffectKind = iota + 1
	// Complete answers the client of Op with Err. Unless Final, the buffer is
	// still in use and Op must not be touched.
	Complete
	// Release: Op was answered before; its buffer is free now. Final is set.
	Release
	// Close all connections to Member that belong to this session and answer
	// what was sent on them. The next connections follow a PROMOTE.
	Close
	// Ask sends Control to its member; exactly one Answer follows, at the
	// latest Control.Timeout after.
	Ask
	// Store compares the record's revision with Rev and swaps in Record;
	// exactly one Stored follows.
	Store
	// ReadRecord asks for the record, linearizably; exactly one RecordRead follows.
	ReadRecord
	// Announce: the attachment file must list session n = Rev before what
	// follows is done; if DeviceLives is false it lists no earlier one, and a
	// device that outlived its mirror is failed first (Err says why).
	Announce
	// Opened: the mirror serves. DeviceLives says whether a device that
	// outlived its mirror may go on; if not, Err says why.
	Opened
	// Over: the session has ended with Err, all I/O fails from now on.
	Over
	// Finished: the job (Snapshot, Resize, Detach...) with number Job ended.
	Finished
)

// Effect is one thing to do, in order.
type Effect struct {
	Kind        EffectKind
	Member      uint8
	Do          block.Op
	Final       bool
	DeviceLives bool
	Op          *Op
	Err         error
	Control     *Control
	Record      *Record // Store
	Rev         uint64  // Store
	Job         uint64
}

// ControlKind is a message of 0001 section 2.
type ControlKind uint8

// Messages to a replica.
const (
	AskPromote ControlKind = iota + 1
	AskLease
	AskAdvance
	AskClean
	AskState
	AskGrow
	AskDrop
	AskFreeze
	AskThaw
)

func (k ControlKind) String() string {
	return [...]string{"?", "promote", "lease", "advance", "clean", "state", "grow", "drop", "freeze", "thaw"}[min(int(k), 9)]
}

// Control is one message to a replica. Gate is the number of the PROMOTE on
// which it rests: a replica refuses messages (and connections) of a session
// whose gate is not the one it opened last, so that nothing that was delayed
// on the way passes a later PROMOTE of the same session.
type Control struct {
	Kind     ControlKind
	Member   uint8
	Replica  string
	Gate     uint64
	Promised Promised // session of the sender; PROMOTE and ADVANCE: what to promise
	Record   *Record  // PROMOTE, ADVANCE: kept by the replica with its promise
	Lease    time.Duration
	Regions  []uint32 // CLEAN
	Stamp    Stamp    // CLEAN
	Layer    SnapshotID
	Size     int64 // GROW
	Timeout  time.Duration

	then func(Reply)
}

// Reply answers a Control.
type Reply struct {
	// Err is nil when it was done; block.ErrFenced when the replica refused
	// (then Promised is what it has promised); anything else means that the
	// outcome is not known.
	Err      error
	Promised Promised // refused: what was promised; PROMOTE: what was before
	// PROMOTE:
	Record    *Record
	LossID    string
	Remaining time.Duration
	OwnGrant  bool // the last grant was to an earlier session of this node, boot and data directory
	Layers    []SnapshotID
	Size      int64
	States    []RegionState // STATE: regions that are dirty or have a stamp, in order
}

// Outcome of a Store.
type Outcome uint8

// Outcomes.
const (
	IsStored Outcome = iota + 1
	IsLost           // the comparison failed: nothing was changed by this Store
	Unknown          // time-out, lost answer: it may have been, or may still be, executed
)

// Errors by which a session ends or refuses.
var (
	// ErrAttachedElsewhere: another node is the primary.
	ErrAttachedElsewhere = errors.New("attached on another node")
	// ErrStoreWentBack: the cluster store is older than a replica or this
	// session has seen (0001 section 4.6).
	ErrStoreWentBack = errors.New("the cluster store went back")
	// ErrLossy: all replicas lost writes that the device was told are done.
	ErrLossy = errors.New("every in-sync replica lost acknowledged writes")
	// ErrDetached: the session ended as asked.
	ErrDetached = errors.New("detached")
	// ErrBusy: another job of this kind is under way, or the volume does not serve.
	ErrBusy = errors.New("another job is under way")
	// ErrAborted: a job was given up; nothing of it remains.
	ErrAborted = errors.New("given up")
)

// ErrLost is what the driver answers to operations of a connection that broke
// or was closed: the outcome is not known.
var ErrLost = errors.New("connection lost")

func (c *Core) emit(e Effect) { c.fx = append(c.fx, e) }

// Effects returns what is to be done since the last call. The slice is valid
// until the next event. The driver calls it after each event or batch of them.
func (c *Core) Effects() []Effect {
	e := c.fx
	c.fx = c.spare[:0]
	c.spare = e
	return e
}

// ask sends a message and remembers what to do with its answer. then is not
// called after the member was promoted anew, left, or the session ended.
func (c *Core) ask(m uint8, ctl Control, then func(Reply)) {
	mem := &c.members[m]
	ctl.Member, ctl.Replica = m, mem.id
	ctl.Gate = mem.gate
	ctl.Promised = Promised{c.rec.Epoch, c.cfg.Session}
	if ctl.Timeout == 0 {
		ctl.Timeout = c.cfg.ControlTimeout
	}
	gate := mem.gate
	ctl.then = func(r Reply) {
		if c.over == nil && mem.gate == gate {
			then(r)
		}
	}
	c.emit(Effect{Kind: Ask, Member: m, Control: &ctl})
}

// askAny is ask whose then always runs while the session lasts; an answer that
// is for nobody any more counts as lost.
func (c *Core) askAny(m uint8, ctl Control, then func(Reply)) {
	c.ask(m, ctl, nil)
	sent := c.fx[len(c.fx)-1].Control
	gate := sent.Gate
	sent.then = func(r Reply) {
		if c.members[m].gate != gate {
			r = Reply{Err: ErrLost}
		}
		if c.over == nil {
			then(r)
		}
	}
}

// Answer is the reply to a Control, once.
func (c *Core) Answer(now time.Duration, ctl *Control, r Reply) {
	c.now = now
	then := ctl.then
	if then == nil {
		return
	}
	ctl.then = nil
	if r.Err != nil && errors.Is(r.Err, block.ErrFenced) && c.over == nil && c.need.Has(ctl.Member) &&
		r.Promised.Session != c.cfg.Session && r.Promised.Epoch.N > c.rec.Epoch.N && c.phase >= phaseServing {
		c.end(block.ErrFenced)
		return
	}
	then(r)
	c.pump()
}
