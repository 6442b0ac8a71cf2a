package nbdserver

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/drivers/aio"
	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/block/rangelock"
	"github.com/moraine-storage/moraine/drivers/nbd"
)

// LoopOptions say what a loop is made of.
type LoopOptions struct {
	Name string // of the volume, for logs
	// NewEngine makes the engine. It is called on the loop's own thread, which
	// an io_uring with a single issuer insists on.
	NewEngine func() (aio.Engine, error)
	// NewQueue makes the queue over the engine, on the same thread. The loop
	// closes both.
	NewQueue func(aio.Engine) (block.Queue, error)
	Logger   hclog.Logger // nil: no log
	Limits   Limits
}

// Watcher is the optional ability of a Queue that watches descriptors of its
// own on the loop's engine (a mirror's connections to replicas): events whose
// token has not TokenLoop set are passed on to it.
type Watcher interface {
	Ready(ev aio.Event)
}

// TokenLoop is the bit of Event.Token that marks sockets of the loop itself.
const TokenLoop uint64 = 1 << 63

// Loop moves the data of one volume: one goroutine, locked to its thread, that
// owns an engine, a queue and every connection.
type Loop struct {
	opts   LoopOptions
	log    hclog.Logger
	limits Limits

	// Shared with other goroutines.
	mu       sync.Mutex
	inbox    []*posted // guarded by mu
	over     bool      // guarded by mu: nothing posted runs any more
	hasInbox atomic.Bool
	started  atomic.Bool
	wake     func() // guarded by mu: engine.Wake, nil before there is one
	done     chan struct{}
	shared   struct {
		sync.Mutex
		Stats
	}

	// The goroutine's own, from here on.
	engine     aio.Engine
	queue      block.Queue
	extenter   block.Extenter // or nil
	watcher    Watcher        // or nil
	blocking   bool           // of the engine
	info       block.Info     // of the queue, read again each round
	pool       pool
	locks      rangelock.Table
	conns      []*conn // by slot; nil: free
	nconns     int
	free       *request
	ready      []*request // granted, not started
	work       []*request // being started
	later      []*request // next pieces, for the next round
	granted    []*rangelock.Lock
	batch      []*block.Request
	reaped     [reapBatch]*block.Request
	marked     []*conn
	throttled  bool // some connection may wait for room
	load       int64
	inflight   int    // requests admitted or being received, not finished
	receiving  int    // of these, bulk writes that are not here whole
	progress   uint64 // grows with each request finished and each send
	holds      int
	waits      []*waiter
	stopping   bool
	active     bool // something happened in this round
	round      uint64
	pollfds    []unix.PollFd
	polled     []*conn
	iov        [maxIOV]unix.Iovec
	events     [maxEvents]aio.Event
	tlsScratch []byte
	stats      Stats
	generation uint32 // of connections, for tokens
	credit     int    // of spinning
	sleeps     int

	statusBuf    []byte
	statusEnds   []int
	extents      []nbd.Extent
	blockExtents []block.Extent
}

// posted is a function for the loop's goroutine.
type posted struct {
	f   func()
	ran bool
	ch  chan struct{} // closed when it ran or never will
}

// waiter waits until a condition holds at the end of a round.
type waiter struct {
	cond func() bool
	ch   chan struct{}
}

// NewLoop prepares a loop; Start runs it.
func NewLoop(o LoopOptions) (*Loop, error) {
	if o.NewEngine == nil || o.NewQueue == nil {
		return nil, fmt.Errorf("loop %s: %w: no engine or queue", o.Name, block.ErrInvalid)
	}
	l := &Loop{opts: o, log: o.Logger, limits: o.Limits, done: make(chan struct{})}
	if l.log == nil {
		l.log = hclog.NewNullLogger()
	}
	l.limits.setDefaults()
	return l, nil
}

// Start makes engine and queue and begins to serve. Once.
func (l *Loop) Start() error {
	if l.started.Swap(true) {
		return fmt.Errorf("loop %s: started twice", l.opts.Name)
	}
	errc := make(chan error, 1)
	go l.goroutine(errc)
	return <-errc
}

func (l *Loop) goroutine(errc chan<- error) {
	// Never unlocked: the thread ends with the goroutine, and whatever the
	// engine has tied to it.
	runtime.LockOSThread()
	defer close(l.done)
	if err := l.open(); err != nil {
		l.end()
		errc <- fmt.Errorf("loop %s: %w", l.opts.Name, err)
		return
	}
	errc <- nil
	err := l.serve()
	if err != nil {
		l.log.Error("data path ended", "volume", l.opts.Name, "error", err)
	}
	l.end()
	l.shut()
}

func (l *Loop) open() error {
	e, err := l.opts.NewEngine()
	if err != nil {
		return fmt.Errorf("engine: %w", err)
	}
	q, err := l.opts.NewQueue(e)
	if err != nil {
		return errors.Join(fmt.Errorf("queue: %w", err), e.Close())
	}
	l.engine, l.queue, l.blocking = e, q, e.Blocking()
	l.mu.Lock()
	l.wake = e.Wake
	l.mu.Unlock()
	l.extenter, _ = q.(block.Extenter)
	l.watcher, _ = q.(Watcher)
	l.info = q.Info()
	l.credit = spinCredit
	return nil
}

// end refuses all further functions and releases who waits for one.
func (l *Loop) end() {
	l.mu.Lock()
	left := l.inbox
	l.inbox, l.over = nil, true
	l.mu.Unlock()
	for _, p := range left {
		close(p.ch)
	}
	for _, w := range l.waits {
		close(w.ch)
	}
	l.waits = nil
}

// shut closes what the loop owns; nothing is in flight, or the engine failed.
func (l *Loop) shut() {
	l.publish()
	if l.inflight > 0 {
		// The kernel may still write into the buffers: they are left to it.
		l.log.Error("data path ended with requests in flight", "volume", l.opts.Name, "requests", l.inflight)
	} else {
		l.pool.close()
	}
	if err := errors.Join(l.queue.Close(), l.engine.Close()); err != nil {
		l.log.Error("close data path", "volume", l.opts.Name, "error", err)
	}
}

// serve runs rounds until the loop is stopped and nothing is in flight.
func (l *Loop) serve() error {
	for {
		l.runPosted()
		if l.stopping {
			for _, c := range l.conns {
				if c != nil {
					l.closeConn(c, nil)
				}
			}
		}
		l.pump()
		if l.stopping && l.inflight == 0 {
			return nil
		}
		if err := l.wait(); err != nil {
			for _, c := range l.conns {
				if c != nil {
					l.closeConn(c, err)
				}
			}
			return err
		}
	}
}

// pump executes what was received and sends what was answered.
func (l *Loop) pump() {
	l.info = l.queue.Info()
	l.reap()
	l.ready = append(l.ready, l.later...)
	l.later = l.later[:0]
	for again := true; again; {
		before := l.progress
		l.parseThrottled()
		l.run()
		l.flushMarked(true)
		// What was finished or sent may have made room for who waits for it.
		again = l.anyThrottled() && l.progress != before
	}
	for len(l.marked) > 0 {
		n := len(l.marked) - 1
		c := l.marked[n]
		l.marked[n], l.marked = nil, l.marked[:n]
		c.marked = false
		c.settle()
	}
	for i := 0; i < len(l.waits); i++ {
		if w := l.waits[i]; w.cond() {
			close(w.ch)
			l.waits = append(l.waits[:i], l.waits[i+1:]...)
			i--
		}
	}
	if l.active {
		l.publish()
	}
}

// parseThrottled tries the connections that were over a limit again.
func (l *Loop) parseThrottled() {
	if !l.throttled {
		return
	}
	l.throttled = false
	for _, c := range l.conns {
		if c != nil && c.throttled {
			c.parse()
		}
	}
}

// anyThrottled finds out whether a connection waits for room.
func (l *Loop) anyThrottled() bool {
	for _, c := range l.marked {
		l.throttled = l.throttled || c.open && c.throttled
	}
	return l.throttled
}

// flushMarked sends the output that is worth it, or all.
func (l *Loop) flushMarked(all bool) {
	for i := 0; i < len(l.marked); i++ {
		c := l.marked[i]
		if !c.open || c.blocked || c.out.empty() && (c.tls == nil || c.tls.Idle()) {
			continue
		}
		if all || c.out.replies >= flushEvery || c.out.bytes >= flushBytes {
			c.flush()
		}
	}
}

// wait sleeps until something happens, and receives.
func (l *Loop) wait() error {
	n, err := l.waitEvents()
	if err != nil {
		return fmt.Errorf("wait: %w", err)
	}
	l.info = l.queue.Info() // it may have grown meanwhile
	for _, ev := range l.events[:n] {
		if ev.Token&TokenLoop == 0 {
			if l.watcher != nil {
				l.watcher.Ready(ev)
			}
			l.active = true
			continue
		}
		l.event(ev)
	}
	return nil
}

func (l *Loop) event(ev aio.Event) {
	slot := int(uint32(ev.Token))
	if slot >= len(l.conns) || l.conns[slot] == nil || l.conns[slot].token != ev.Token {
		return // of a connection that was closed in this round
	}
	c := l.conns[slot]
	if ev.Ready&aio.HangUp != 0 {
		c.hangup()
		return
	}
	if ev.Ready&aio.Writable != 0 && c.blocked {
		c.flush()
		c.mark()
		l.active = true
	}
	if ev.Ready&aio.Readable != 0 {
		c.receive()
	}
}

// waitEvents is Engine.Wait, after a short look when a request is expected.
func (l *Loop) waitEvents() (int, error) {
	if l.receiveBuffered() || len(l.later) > 0 {
		return l.engine.Wait(l.events[:], 0)
	}
	if l.active && l.inflight == 0 && l.spins() {
		if n, err := l.spin(); n > 0 || err != nil || l.hasInbox.Load() {
			l.active = false
			return n, err
		}
	}
	l.active = false
	if !l.pool.used {
		return l.engine.Wait(l.events[:], -1)
	}
	start := time.Now()
	n, err := l.engine.Wait(l.events[:], trimAfter)
	if n == 0 && err == nil && time.Since(start) >= trimAfter {
		l.pool.trim()
	}
	return n, err
}

// spin looks for the next request for a while. First whoever else is ready may
// have the processor: often that is the client, woken on this very one by the
// reply, which would otherwise wait until the spin is over. When that took long,
// others need the processor more than the loop: a loop that sleeps is woken at
// once, one that yielded waits for its turn.
func (l *Loop) spin() (int, error) {
	start := time.Now()
	yield()
	for {
		n, err := l.engine.Wait(l.events[:], 0)
		found := n > 0 || err != nil || l.hasInbox.Load()
		switch took := time.Since(start); {
		case took > spinLost:
			l.credit, l.sleeps = 0, -spinBackoff
			return n, err
		case found:
			l.credit = min(l.credit+1, spinCredit)
			return n, err
		case took > spinFor:
			l.credit--
			return 0, nil
		}
	}
}

// spins says whether to look before sleeping: while that found something lately,
// and now and then to find out.
func (l *Loop) spins() bool {
	if l.credit > 0 {
		return true
	}
	if l.sleeps++; l.sleeps >= spinProbe {
		l.sleeps, l.credit = 0, 1
		return true
	}
	return false
}

// receiveBuffered takes what TLS connections hold inside, which no event tells of.
func (l *Loop) receiveBuffered() bool {
	if l.tlsScratch == nil {
		return false
	}
	again := false
	for _, c := range l.conns {
		if c != nil && c.buffered && !c.throttled && !c.leaving {
			c.receive()
			again = true
		}
	}
	return again
}

// runPosted runs the functions that others have posted.
func (l *Loop) runPosted() {
	if !l.hasInbox.Load() {
		return
	}
	l.mu.Lock()
	todo := l.inbox
	l.inbox = nil
	l.hasInbox.Store(false)
	l.mu.Unlock()
	for _, p := range todo {
		p.f()
		p.ran = true
		close(p.ch)
	}
}

// post hands f to the loop's goroutine and returns before it has run.
func (l *Loop) post(f func()) (*posted, error) {
	p := &posted{f: f, ch: make(chan struct{})}
	l.mu.Lock()
	if l.over || l.wake == nil {
		l.mu.Unlock()
		return nil, fmt.Errorf("loop %s: %w", l.opts.Name, block.ErrClosed)
	}
	l.inbox = append(l.inbox, p)
	l.hasInbox.Store(true)
	wake := l.wake
	l.mu.Unlock()
	wake()
	return p, nil
}

// call runs f on the loop's goroutine and waits for it.
func (l *Loop) call(ctx context.Context, f func()) error {
	p, err := l.post(f)
	if err != nil {
		return err
	}
	select {
	case <-p.ch:
	case <-ctx.Done():
		return fmt.Errorf("loop %s: %w", l.opts.Name, ctx.Err())
	}
	if !p.ran {
		return fmt.Errorf("loop %s: %w", l.opts.Name, block.ErrClosed)
	}
	return nil
}

// yield lets other threads of this processor run. As a raw system call it keeps
// the Go scheduler's processor, as any preemption by the kernel would.
func yield() { _, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) }

// pollNow is poll(2) with no time-out; it cannot block.
func pollNow(fds []unix.PollFd) (int, unix.Errno) {
	var zero unix.Timespec
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&fds[0])), uintptr(len(fds)),
			uintptr(unsafe.Pointer(&zero)), 0, 0, 0)
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}
