package aio

import (
	"fmt"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What a completion belongs to: the top byte of user_data.
const (
	ofNothing = iota << 56
	ofOp      // slot
	ofPoll    // 24 bits of generation, 32 bits of descriptor
	ofWaker
	ofMask = 0xff << 56
)

// uring runs operations and watches descriptors by one ring.
//
// A watch is a one-shot poll that is armed again by the Wait after the one
// that reported it: level-triggered, at no system call of its own. The
// waker's eventfd is watched in the same way.
type uring struct {
	r   *ring
	w   *waker
	tid int // thread that is bound, or 0

	inFlight int
	slots    []*Op    // in the kernel, by number; keeps buffers reachable
	free     []uint32 // numbers to use
	waiting  fifo     // no slot yet
	ended    fifo     // Done not called yet

	watches []pollState // by descriptor
	arm     []int       // descriptors whose poll must be armed
	ready   []int       // descriptors with something to report, oldest first

	wakerArmed bool
	woken      bool   // Wake was seen and no Wait has returned for it
	awaited    uint64 // user_data of a cancelled poll that Unwatch waits for; or 0
	closed     bool
}

type pollState struct {
	watch
	gen     uint32 // of the poll in the kernel: others' completions are stale
	armed   bool
	inArm   bool
	inReady bool
	bits    uint32 // to report
}

func newUring(sets []uint32) (Engine, error) {
	r, err := newRing(sets)
	if err != nil {
		return nil, err
	}
	w, err := newWaker()
	if err != nil {
		r.close()
		return nil, fmt.Errorf("create eventfd: %w", err)
	}
	e := &uring{r: r, w: w, slots: make([]*Op, maxInFlight), free: make([]uint32, maxInFlight)}
	for i := range e.free {
		e.free[i] = uint32(len(e.free) - 1 - i)
	}
	return e, nil
}

// bind ties the engine to the calling thread at its first use, and the
// goroutine to that thread until Close.
func (e *uring) bind() {
	if e.tid != 0 {
		return
	}
	runtime.LockOSThread()
	if err := e.r.bind(); err != nil {
		panic(fmt.Sprintf("aio: %v", err)) // a fresh ring of ours: nothing can refuse it
	}
	e.tid = unix.Gettid()
}

// enter is a system call that cannot fail but for what passes by itself. Any
// other error means that the engine is used wrongly (another thread, a closed
// ring): what is in flight would be lost silently, so it ends the process.
func (e *uring) enter(wait bool, d time.Duration) {
	switch errno := e.r.enter(wait, d); errno {
	case 0, unix.EINTR, unix.ETIME, unix.EAGAIN, unix.EBUSY, unix.ENOMEM:
	case unix.EEXIST:
		panic(fmt.Sprintf("aio: engine of thread %d used by thread %d", e.tid, unix.Gettid()))
	default:
		panic(fmt.Sprintf("aio: io_uring_enter: %v", errno))
	}
}

// sqe returns an entry to fill; it flushes when the queue is full.
func (e *uring) sqe() *sqe {
	for try := 0; ; try++ {
		if s := e.r.next(); s != nil {
			return s
		}
		if try > 2 {
			time.Sleep(time.Millisecond) // the kernel is out of memory
		}
		e.enter(false, 0)
		e.collect() // EBUSY: the completion queue must drain first
	}
}

func (e *uring) Submit(ops ...*Op) {
	if e.closed {
		refuse(ops)
		return
	}
	e.bind()
	e.inFlight += len(ops)
	for _, op := range ops {
		op.prog, op.Err = 0, 0
		switch {
		case op.Kind < Read || op.Kind > Datasync || op.Off < 0: // offset -1 would mean "current position"
			op.Err = unix.EINVAL
			e.ended.push(op)
		case op.Kind != Datasync && len(op.Buf) == 0:
			e.ended.push(op)
		default:
			e.waiting.push(op)
		}
	}
	e.start()
}

// start gives slots to waiting operations.
func (e *uring) start() {
	for len(e.free) > 0 && !e.waiting.empty() {
		op := e.waiting.pop()
		op.index = e.free[len(e.free)-1]
		e.free = e.free[:len(e.free)-1]
		e.slots[op.index] = op
		e.issue(op, 0)
	}
}

// issue queues the rest of an operation that has a slot.
func (e *uring) issue(op *Op, flags uint8) {
	s := e.sqe()
	s.flags = flags
	s.fd = int32(op.FD)
	s.userData = ofOp | uint64(op.index)
	if op.Kind == Datasync {
		s.opcode, s.opFlags = opFsync, fsyncDatasync
		return
	}
	s.opcode = opRead
	if op.Kind == Write {
		s.opcode = opWrite
	}
	b := op.Buf[op.prog:]
	s.addr = uint64(uintptr(unsafe.Pointer(&b[0])))
	s.len = uint32(min(len(b), maxTransfer))
	s.off = uint64(op.Off + int64(op.prog))
}

// collect takes completions off the ring. It runs none.
func (e *uring) collect() {
	for {
		c, ok := e.r.completion()
		if !ok {
			break
		}
		switch c.userData & ofMask {
		case ofOp:
			e.opDone(e.slots[uint32(c.userData)], c.res)
		case ofPoll:
			e.pollDone(c)
		case ofWaker:
			e.wakerArmed = false
			e.woken = true
			e.w.clear()
		}
	}
}

func (e *uring) opDone(op *Op, res int32) {
	n, errno := int(res), unix.Errno(0)
	if res < 0 {
		n, errno = 0, unix.Errno(-res)
	}
	end := true
	switch {
	case op.Kind == Datasync: // whatever it says: never repeated (invariant 3)
	case errno == unix.EINTR:
		e.issue(op, 0)
		return
	case errno == unix.EAGAIN:
		e.issue(op, sqeAsync) // on a worker of the kernel, which may block
		return
	default:
		end, errno = op.advance(n, errno)
	}
	if !end {
		e.issue(op, 0)
		return
	}
	op.Err = errno
	e.slots[op.index] = nil
	e.free = append(e.free, op.index)
	e.ended.push(op)
}

// finish runs completions and starts what waited for their slots.
func (e *uring) finish() int {
	n := 0
	for op := e.ended.pop(); op != nil; op = e.ended.pop() {
		n++
		e.inFlight--
		op.Done.Complete(op)
	}
	e.start()
	return n
}

func (e *uring) Poll() int {
	if e.closed || e.tid == 0 {
		return 0 // nothing was ever submitted
	}
	if e.r.pending() > 0 || e.r.needsEnter() {
		e.enter(false, 0)
	}
	e.collect()
	return e.finish()
}

// Wait implements Engine.
func (e *uring) Wait(events []Event, d time.Duration) (int, error) {
	if e.closed {
		return 0, ErrClosed
	}
	e.bind()
	e.armPolls()
	var deadline time.Time
	if d > 0 {
		deadline = time.Now().Add(d)
	}
	for {
		look := d == 0 || e.woken || len(e.ready) > 0 || !e.ended.empty()
		if !look {
			e.enter(true, d)
		} else if e.r.pending() > 0 || e.r.needsEnter() {
			e.enter(false, 0)
		}
		e.collect()
		if e.finish() > 0 || look || e.woken || len(e.ready) > 0 {
			break
		}
		if d > 0 {
			if d = time.Until(deadline); d <= 0 {
				break
			}
		}
		e.armPolls() // a poll that told nothing asked for
	}
	e.woken = false
	return e.report(events), nil
}

func (e *uring) Wake()          { e.w.wake() }
func (e *uring) InFlight() int  { return e.inFlight }
func (e *uring) Blocking() bool { return true }

// Close implements Engine. It is called on the owner's thread; when that
// thread is gone, nothing may be in flight.
func (e *uring) Close() error {
	if e.closed {
		return nil
	}
	if mine := unix.Gettid() == e.tid; mine {
		for e.inFlight > 0 {
			if _, err := e.Wait(nil, -1); err != nil {
				return err
			}
		}
		for fd := range e.watches {
			if e.watches[fd].on {
				_ = e.Unwatch(fd) // it is watched, so it cannot fail
			}
		}
		runtime.UnlockOSThread()
	} else if e.inFlight > 0 {
		return fmt.Errorf("close engine of thread %d from thread %d: %d operations in flight", e.tid, unix.Gettid(), e.inFlight)
	}
	e.closed = true
	e.r.close()
	e.w.close()
	return nil
}
