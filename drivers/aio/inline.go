package aio

import (
	"time"

	"golang.org/x/sys/unix"
)

// inline runs each operation inside Submit.
type inline struct {
	p      *poller
	queue  fifo
	busy   bool // a Submit further up the stack is draining queue
	closed bool
}

func newInline() (Engine, error) {
	p, err := newPoller()
	if err != nil {
		return nil, err
	}
	return &inline{p: p}, nil
}

// Submit implements Engine. Operations submitted by a completion run when
// the completion has returned, from the outermost Submit: a chain of any length
// needs no stack.
func (e *inline) Submit(ops ...*Op) {
	for _, op := range ops {
		e.queue.push(op)
	}
	if e.busy {
		return
	}
	e.busy = true
	for op := e.queue.pop(); op != nil; op = e.queue.pop() {
		op.prog = 0
		if e.closed {
			op.Err = unix.ESHUTDOWN
		} else {
			op.Err = op.run()
		}
		op.Done.Complete(op)
	}
	e.busy = false
}

func (e *inline) Poll() int { return 0 }

func (e *inline) Watch(fd int, interest uint32, token uint64) error {
	if e.closed {
		return ErrClosed
	}
	return e.p.watch(fd, interest, token)
}

func (e *inline) Unwatch(fd int) error {
	if e.closed {
		return ErrClosed
	}
	return e.p.unwatch(fd)
}

func (e *inline) Wait(events []Event, d time.Duration) (int, error) {
	if e.closed {
		return 0, ErrClosed
	}
	return e.p.wait(events, d)
}

func (e *inline) Wake()          { e.p.w.wake() }
func (e *inline) InFlight() int  { return 0 }
func (e *inline) Blocking() bool { return false }

func (e *inline) Close() error {
	if !e.closed {
		e.closed = true
		e.p.close()
	}
	return nil
}
