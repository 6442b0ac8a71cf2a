package session

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/drivers/aio"
	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/replication"
)

// Member is one replica as a Group reaches it: control messages of 0001
// section 2, and queues behind the gate that a PROMOTE has opened. The Group
// owns it and calls everything on its owner's goroutine.
type Member interface {
	// Ask executes a message and calls answer once, from any goroutine, also
	// from within Ask. It must not block for a medium longer than a freeze
	// takes. The message must not be changed. A message whose gate is not the
	// one that the last PROMOTE opened is refused with block.ErrFenced.
	Ask(ctl *replication.Control, answer func(replication.Reply))
	// Open gives a queue behind a gate; it has been opened by a PROMOTE whose
	// answer has come. It does not block.
	Open(o OpenOptions) (block.Queue, error)
	// Close ends the member; its queues are closed already. Messages under way
	// are given up or waited for; none is answered after it.
	Close() error
}

// OpenOptions say what Member.Open opens.
type OpenOptions struct {
	Engine aio.Engine
	Gate   uint64
	// Layer is the frozen layer to read; zero: the top, for reading and writing.
	Layer replication.SnapshotID
	// Token is for descriptors that the queue watches: their events come to
	// its method Ready(aio.Event).
	Token uint64
}

// Connection is what a queue over a connection has besides: why it is over.
// Closing it ends what is in flight on it; other queues are closed only when
// all of theirs has ended.
type Connection interface {
	Err() error
}

// Records is the volume's record in the cluster store. Both calls return at
// once; done is called exactly once, from any goroutine, within a bounded
// time: when the answer is lost, with Unknown or an error.
type Records interface {
	// Swap stores rec if the record's revision is rev. rec must not be kept
	// or changed after done.
	Swap(rev uint64, rec *replication.Record, done func(out replication.Outcome, rev uint64))
	// Read reads the record and its revision, linearizably. back says that the
	// cluster store is known to have been restored from an older state. The
	// record read is the caller's.
	Read(done func(rec *replication.Record, rev uint64, back bool, err error))
}

// Boottime is CLOCK_BOOTTIME: it goes on while the machine is suspended.
func Boottime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("clock_gettime(CLOCK_BOOTTIME): " + err.Error()) // since Linux 2.6.39; leases are void without
	}
	return time.Duration(ts.Nano())
}
