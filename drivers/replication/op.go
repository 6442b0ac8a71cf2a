package replication

import (
	"time"

	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/block/rangelock"
)

// Op is one operation in flight. It comes from Core.NewOp; its submitter fills
// the exported fields and hands it to Submit. From then on it belongs to the
// core until an effect with Final set names it; then the driver gives it back
// with FreeOp. Ops that the core makes for itself (copies, flushes) live by
// the same rule, so the driver treats all alike.
type Op struct {
	Kind  block.Op
	Flags block.Flags
	Off   int64 // bytes
	Len   int64
	// Owner is the driver's: the client's request, the buffer. The core never
	// touches payload. A copy has one buffer: read into by a Send that reads,
	// written from by the Sends that follow.
	Owner any
	// Layer is the frozen layer that a copy reads from; zero: the top.
	Layer SnapshotID
	// Hole is set by the driver before Done of the read of a copy whose range
	// is a hole (or all zeros) at the source.
	Hole bool

	role   role
	stage  stage
	lock   rangelock.Lock
	locked bool // in the lock table
	wait   Set  // members whose completion it still waits for
	out    Set  // members that owe a Done
	okay   Set  // members that completed it
	nospc  Set  // members that had no space
	bad    Set  // read: members that could not read it
	acked  bool
	err    error
	id     uint64 // order of issue
	seq    uint64 // flush: covers what ended before
	// confirm is the lease request after which a confirmed read is sure.
	confirm uint64
	arrived time.Duration
	issued  time.Duration
	job     *copyJob
	after   func(ok Set) // internal flush

	list       *opList
	next, prev *Op
}

// Internal says that no client waits for op.
func (o *Op) Internal() bool { return o.role != roleClient }

type role uint8

const (
	roleClient role = iota
	roleCopy
	roleFlush
)

type stage uint8

const (
	stageIdle stage = iota
	stageRead
	stageWrite
	stageLease // read: data is here, leases are not
)

// opList is an intrusive list; an op is in at most one.
type opList struct {
	head, tail *Op
	n          int
}

func (l *opList) push(o *Op) {
	o.list, o.prev, o.next = l, l.tail, nil
	if l.tail != nil {
		l.tail.next = o
	} else {
		l.head = o
	}
	l.tail = o
	l.n++
}

func (o *Op) unlist() {
	l := o.list
	if l == nil {
		return
	}
	if o.prev != nil {
		o.prev.next = o.next
	} else {
		l.head = o.next
	}
	if o.next != nil {
		o.next.prev = o.prev
	} else {
		l.tail = o.prev
	}
	o.list, o.prev, o.next = nil, nil, nil
	l.n--
}

func (o *Op) moveTo(l *opList) {
	if o.list == l {
		return
	}
	o.unlist()
	l.push(o)
}

// NewOp returns an empty op.
func (c *Core) NewOp() *Op {
	if k := len(c.pool) - 1; k >= 0 {
		o := c.pool[k]
		c.pool = c.pool[:k]
		return o
	}
	o := &Op{}
	o.lock.Owner = o
	return o
}

// FreeOp gives back an op whose Final effect the driver has seen. Nothing may
// refer to it or send from its buffer any more.
func (c *Core) FreeOp(o *Op) {
	*o = Op{lock: rangelock.Lock{Owner: o.lock.Owner}}
	c.pool = append(c.pool, o)
}
