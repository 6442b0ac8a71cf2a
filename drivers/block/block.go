package block

import (
	"fmt"
	"time"
)

// SectorSize is the unit of addressing and of atomicity in bytes: a sector is
// never torn (contrib/design 0001, F1).
const SectorSize = 512

// Op is what a request asks for.
type Op uint8

// The operations of the data path.
const (
	OpRead  Op = iota + 1 // fill Buf from [Off, Off+Len)
	OpWrite               // write Buf to [Off, Off+Len)
	OpFlush               // make durable every operation that completed before this was submitted
	OpTrim                // the range may be forgotten; cut inwards to the grain, then reads as zeros
	OpZero                // the range reads as zeros afterwards, exactly
	OpCache               // a hint that the range will be read soon
)

func (o Op) String() string {
	switch o {
	case OpRead:
		return "read"
	case OpWrite:
		return "write"
	case OpFlush:
		return "flush"
	case OpTrim:
		return "trim"
	case OpZero:
		return "zero"
	case OpCache:
		return "cache"
	}
	return fmt.Sprintf("op(%d)", uint8(o))
}

// Flags modify a request.
type Flags uint8

// Flags of a request.
const (
	FUA      Flags = 1 << iota // durable before it completes (write, trim, zero)
	NoHole                     // zero: keep the range allocated
	FastZero                   // zero: fail with ErrUnsupported when slower than writing
)

// Request is one operation in flight. The submitter allocates and pools it;
// from Submit until it is returned by Reap it belongs to the Queue. Buf is
// never kept after completion, and a write never changes it. Buf should be
// aligned to 4096 bytes in memory; when it is not, the Queue copies.
type Request struct {
	Op    Op
	Flags Flags
	Off   int64  // bytes, from the start of the device
	Len   int64  // bytes; equals len(Buf) for read and write
	Buf   []byte // read and write only

	// Deadline after which the Queue completes the request with ErrTimeout
	// if it still waits for something that may not come; zero means none.
	Deadline time.Time

	// Err is valid after Reap: nil or one of the errors of this package,
	// possibly wrapped. A failed write left each sector old or new.
	Err error

	// Owner is the submitter's own, untouched by queues. Wrapping queues
	// submit their own Requests and keep the original here.
	Owner any
	// Tag is the submitter's own number, untouched by queues.
	Tag uint64
}

// End returns the first byte after the request.
func (r *Request) End() int64 { return r.Off + r.Len }

// Queue takes requests for one device. All methods but Info are called by one
// goroutine, the owner, which also drives the aio.Engine that the Queue was
// made with: completions happen inside Engine.Wait and Engine.Poll, or inside
// Submit itself, and are handed out by Reap.
//
// Overlap: two requests in flight whose ranges overlap, at least one of them
// no read, take effect in either order unless the implementation says more.
type Queue interface {
	// Submit starts requests. It never blocks for a request of another
	// owner; where the medium cannot block (memory) it may finish them.
	// Invalid requests complete with an error like any other.
	Submit(reqs []*Request)
	// Reap returns completed requests in done and how many. It does not
	// block. It makes what the completed requests changed kept (survives
	// death of the process), once for the whole batch.
	Reap(done []*Request) int
	// InFlight is the number of requests submitted and not reaped.
	InFlight() int
	// Info is constant but for Size, which grows on resize. Any goroutine.
	Info() Info
	// Close ends the queue; requests in flight are waited for (the owner
	// must not have any it has not reaped). Idempotent.
	Close() error
}

// Info describes a device.
type Info struct {
	Size      int64 // bytes, multiple of SectorSize
	BlockSize int   // preferred I/O size in bytes (4096)
	Grain     int64 // bytes; TRIM frees whole grains
	MaxLen    int64 // largest request in bytes
	ReadOnly  bool
	Trim      bool // TRIM frees space
	Zero      bool // zeroing is cheaper than writing zeros
}

// Extent is a run of bytes of one allocation state.
type Extent struct {
	Off, Len int64
	Hole     bool // no space is allocated
	Zero     bool // reads as zeros
}

// Extenter is the optional ability to tell the allocation of a range.
type Extenter interface {
	// Extents appends the state of [off, off+length) to dst, in order and
	// without gaps, neighbours of one state merged, at most limit of them
	// (0 = all). It is called by the owner of the queue.
	Extents(dst []Extent, off, length int64, limit int) ([]Extent, error)
}
