package block

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"sync"

	"github.com/moraine-storage/moraine/drivers/aio"
)

// Sync is a Device over a Queue: it owns the queue and its engine, and lets
// any goroutine use them.
//
// A Queue has one owner. With an engine that may block, that is a goroutine
// of Sync's (it may be bound to its thread), and callers wait for it. With an
// inline engine there is no goroutine: the first caller becomes the owner, runs
// its own request without any hand-over, and with it what others put into the
// inbox meanwhile; when its own is done it leaves, or passes ownership to a
// caller whose request is still going on.
type Sync struct {
	e    aio.Engine
	info func() Info
	loop sync.WaitGroup // the owner goroutine, if there is one

	mu      sync.Mutex
	inbox   callList // not submitted, in order of arrival
	driven  bool     // there is an owner
	asleep  bool     // the owner waits in Engine.Wait and must be woken
	closing bool     // nothing new is accepted

	closeOnce sync.Once
	closeErr  error

	// Below: the owner's alone; ownership passes under mu.
	q      Queue
	leader *call   // the owning caller, or nil: the goroutine
	live   []*call // submitted, not reaped
	reqs   []*Request
	done   [reapBatch]*Request
	closed bool
}

// call is one request, or one function to run, of one caller.
type call struct {
	req   Request
	fn    func(Queue)
	ended bool
	ch    chan bool // true: ended; false: you are the owner now
	index int       // in live
	next  *call
}

type callList struct{ head, tail *call }

func (l *callList) push(c *call) {
	c.next = nil
	if l.tail == nil {
		l.head = c
	} else {
		l.tail.next = c
	}
	l.tail = c
}

func (l *callList) pop() *call {
	c := l.head
	if l.head = c.next; l.head == nil {
		l.tail = nil
	}
	c.next = nil
	return c
}

var calls = sync.Pool{New: func() any { return &call{ch: make(chan bool, 1)} }}

// NewSync makes an engine and a queue over it, and owns both. Each is made
// where it will be used. Close ends them.
func NewSync(newEngine func() (aio.Engine, error), newQueue func(aio.Engine) (Queue, error)) (*Sync, error) {
	e, err := newEngine()
	if err != nil {
		return nil, err
	}
	s := &Sync{e: e}
	if !e.Blocking() {
		err = s.open(newQueue)
	} else {
		s.driven = true
		opened := make(chan error)
		s.loop.Go(func() { s.drive(newQueue, opened) })
		err = <-opened
	}
	if err != nil {
		s.loop.Wait()
		return nil, err
	}
	return s, nil
}

// open makes the queue, on the goroutine that is its first owner.
func (s *Sync) open(newQueue func(aio.Engine) (Queue, error)) error {
	q, err := newQueue(s.e)
	if err != nil {
		if cerr := s.e.Close(); cerr != nil {
			err = fmt.Errorf("%w (and close engine: %v)", err, cerr)
		}
		return err
	}
	s.q, s.info = q, q.Info
	return nil
}

// drive is the owner goroutine.
func (s *Sync) drive(newQueue func(aio.Engine) (Queue, error), opened chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := s.open(newQueue)
	opened <- err
	if err != nil {
		return
	}
	for !s.closed {
		s.round()
	}
}

// run brings a call to its end.
func (s *Sync) run(c *call) error {
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		return ErrClosed
	}
	s.enter(c)
	return c.req.Err
}

// enter puts c into the inbox and returns when it has ended. Called with mu
// held, which it releases.
func (s *Sync) enter(c *call) {
	c.ended = false
	s.inbox.push(c)
	if s.driven {
		wake := s.asleep
		s.asleep = false
		s.mu.Unlock()
		if wake {
			s.e.Wake()
		}
		if <-c.ch {
			return
		}
	} else {
		s.driven = true
		s.leader = c
		s.mu.Unlock()
	}
	for !c.ended {
		s.round()
	}
	s.handOver()
}

// handOver ends the ownership of a caller whose call has ended.
func (s *Sync) handOver() {
	s.mu.Lock()
	defer s.mu.Unlock()
	var heir *call
	switch {
	case len(s.live) > 0:
		heir = s.live[0]
	case s.inbox.head != nil:
		heir = s.inbox.head
	default:
		s.driven = false
		s.leader = nil
		return
	}
	s.leader = heir
	heir.ch <- false // has room: each call gets this once at most, and then ends by itself
}

// round submits what is in the inbox, or waits when there is nothing, and
// collects what has ended. A function in the inbox waits until nothing is in
// flight, and what comes after it waits for it.
func (s *Sync) round() {
	s.mu.Lock()
	var fn *call
	for c := s.inbox.head; c != nil; c = s.inbox.head {
		if c.fn != nil {
			if len(s.live) == 0 {
				fn = s.inbox.pop()
			}
			break
		}
		s.inbox.pop()
		c.index = len(s.live)
		s.live = append(s.live, c)
		s.reqs = append(s.reqs, &c.req)
	}
	s.asleep = len(s.reqs) == 0 && fn == nil
	wait := s.asleep
	s.mu.Unlock()

	switch {
	case fn != nil:
		fn.fn(s.q)
		s.end(fn)
		return
	case wait:
		if _, err := s.e.Wait(nil, -1); err != nil {
			panic(fmt.Sprintf("block: wait of an open engine: %v", err))
		}
		s.mu.Lock()
		s.asleep = false
		s.mu.Unlock()
	default:
		s.q.Submit(s.reqs)
		clear(s.reqs)
		s.reqs = s.reqs[:0]
	}
	s.reap()
}

func (s *Sync) reap() {
	for {
		n := s.q.Reap(s.done[:])
		for _, r := range s.done[:n] {
			c := r.Owner.(*call)
			last := len(s.live) - 1
			s.live[c.index] = s.live[last]
			s.live[c.index].index = c.index
			s.live[last] = nil
			s.live = s.live[:last]
			s.end(c)
		}
		if n < len(s.done) {
			return
		}
	}
}

func (s *Sync) end(c *call) {
	if c == s.leader {
		c.ended = true
		return
	}
	c.ch <- true
}

// one runs a request within MaxLen.
func (s *Sync) one(ctx context.Context, r Request) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%v at %d: %w", r.Op, r.Off, err)
	}
	c := calls.Get().(*call)
	c.req, c.fn = r, nil
	c.req.Owner = c
	c.req.Deadline, _ = ctx.Deadline()
	err := s.run(c)
	c.req = Request{} // keeps no buffer alive
	calls.Put(c)
	return err
}

// all runs a request of any length in pieces of MaxLen at most. The seams of a
// trim lie between grains, so that none is left out.
func (s *Sync) all(ctx context.Context, r Request) error {
	info := s.info()
	if r.Len <= info.MaxLen {
		return s.one(ctx, r)
	}
	wide := info
	wide.MaxLen = math.MaxInt64
	if err := Validate(&r, wide); err != nil {
		return err // as a whole, before a part of it is done
	}
	for end, buf := r.End(), r.Buf; r.Off < end; r.Off += r.Len {
		r.Len = min(end-r.Off, info.MaxLen)
		if g := info.Grain; r.Op == OpTrim && g > 0 && r.Off+r.Len < end && r.Len > g {
			r.Len -= (r.Off + r.Len) % g
		}
		if buf != nil {
			r.Buf, buf = buf[:r.Len], buf[r.Len:]
		}
		if err := s.one(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

// ReadAt implements Device.
func (s *Sync) ReadAt(ctx context.Context, p []byte, off int64) error {
	return s.all(ctx, Request{Op: OpRead, Off: off, Len: int64(len(p)), Buf: p})
}

// WriteAt implements Device.
func (s *Sync) WriteAt(ctx context.Context, p []byte, off int64, f Flags) error {
	return s.all(ctx, Request{Op: OpWrite, Flags: f, Off: off, Len: int64(len(p)), Buf: p})
}

// Flush implements Device.
func (s *Sync) Flush(ctx context.Context) error { return s.one(ctx, Request{Op: OpFlush}) }

// Trim implements Device.
func (s *Sync) Trim(ctx context.Context, off, n int64, f Flags) error {
	return s.all(ctx, Request{Op: OpTrim, Flags: f, Off: off, Len: n})
}

// Zero implements Device.
func (s *Sync) Zero(ctx context.Context, off, n int64, f Flags) error {
	return s.all(ctx, Request{Op: OpZero, Flags: f, Off: off, Len: n})
}

// Info implements Device.
func (s *Sync) Info() Info { return s.info() }

// Do runs fn as the owner of the queue, with no request in flight: calls that
// come later wait until it has returned. For control operations. It must not
// call a method of this Sync but Info.
func (s *Sync) Do(ctx context.Context, fn func(q Queue)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.run(&call{fn: fn, ch: make(chan bool, 1)})
}

// Close implements Device.
func (s *Sync) Close() error {
	s.closeOnce.Do(func() {
		c := &call{ch: make(chan bool, 1), fn: func(q Queue) {
			s.closeErr = q.Close()
			if err := s.e.Close(); err != nil && s.closeErr == nil {
				s.closeErr = err
			}
			s.closed = true
		}}
		s.mu.Lock()
		s.closing = true
		s.enter(c)
	})
	s.loop.Wait()
	return s.closeErr
}
