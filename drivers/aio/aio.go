package aio

import (
	"errors"
	"fmt"
	"syscall"
	"time"
)

// Kind is what an Op does.
type Kind uint8

// Operations of an engine.
const (
	Read     Kind = iota + 1 // pread(FD, Buf, Off)
	Write                    // pwrite(FD, Buf, Off)
	Datasync                 // fdatasync(FD)
)

// Op is one file operation in flight. Engines never allocate per Op and keep
// no reference after Done was called. Short transfers are continued by the
// engine; a read past the end of the file is filled with zeros.
type Op struct {
	Kind Kind
	FD   int
	Buf  []byte
	Off  int64

	// Err is 0 or why the operation failed; valid when Done is called.
	Err syscall.Errno
	// Done receives the Op when it has ended, on the owner's goroutine, from
	// within Submit, Poll or Wait. Never nil.
	Done Completer

	// Owner is the submitter's own.
	Owner any

	next  *Op    // engine's own: free list or queue
	prog  int    // engine's own: bytes transferred so far
	index uint32 // engine's own: slot in flight
}

// Completer is told of ended operations.
type Completer interface {
	Complete(op *Op)
}

// Ready bits of a watched descriptor.
const (
	Readable uint32 = 1 << iota // data, or end of stream, or an error to collect
	Writable
	HangUp // the peer has shut down its sending side or the whole connection (POLLRDHUP, POLLHUP, POLLERR)
)

// Event says that a watched descriptor is ready.
type Event struct {
	Token uint64
	Ready uint32
}

// Engine is owned by one goroutine, which calls everything but Wake and Close.
type Engine interface {
	// Submit starts operations. The inline engine has ended them on return of
	// the outermost Submit: those submitted by a completion run after it.
	// Operations in flight at one time are not ordered against each other:
	// a Datasync covers the writes that completed before it was submitted.
	// Pass a kept slice (Submit(ops...)): Submit(op) through the interface
	// allocates one for the call. After Close operations end with ESHUTDOWN.
	Submit(ops ...*Op)
	// Poll runs the completions that are there; no waiting. It returns how many.
	Poll() int
	// Watch reports readiness of fd by Wait with this token until Unwatch:
	// level-triggered. interest is a set of Readable and Writable; calling it
	// again changes interest and token. HangUp is always reported.
	Watch(fd int, interest uint32, token uint64) error
	// Unwatch ends it; no event with its token is reported afterwards.
	Unwatch(fd int) error
	// Wait flushes what was submitted, then blocks until an operation has
	// completed, a watched descriptor is ready, Wake was called, or d has
	// passed (d < 0: no limit; 0: just look). Completions have been run when
	// it returns. It fills events and returns how many.
	Wait(events []Event, d time.Duration) (int, error)
	// Wake makes the current or next Wait return. Any goroutine, also after Close.
	Wake()
	// InFlight is the number of operations not completed.
	InFlight() int
	// Blocking says whether operations of this engine may take long, so that
	// a caller does better to submit many before it waits. False: inline.
	Blocking() bool
	// Close waits for operations in flight and frees the engine. Idempotent.
	Close() error
}

// Mode selects an engine.
type Mode string

// Modes of New.
const (
	Auto    Mode = "auto"    // uring if the kernel allows it, else threads
	Inline  Mode = "inline"  //
	Uring   Mode = "uring"   //
	Threads Mode = "threads" //
)

// ErrClosed is returned by Watch, Unwatch and Wait of a closed engine.
var ErrClosed = errors.New("aio: engine is closed")

// New makes an engine. An engine that the kernel does not allow is an error
// that says why; only Auto chooses another.
func New(mode Mode) (Engine, error) {
	switch mode {
	case Inline:
		return newInline()
	case Threads:
		return newThreads()
	case Uring:
		return newUring(ringFlagSets)
	case Auto:
		if e, err := newUring(ringFlagSets); err == nil {
			return e, nil
		}
		return newThreads()
	}
	return nil, fmt.Errorf("aio engine %q: unknown mode", string(mode))
}
