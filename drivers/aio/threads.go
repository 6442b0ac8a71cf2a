package aio

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// threads runs operations on a fixed pool of workers.
//
// A worker takes the oldest operation, runs it with blocking calls and puts it
// on the list of ended ones; the first on an empty list wakes the owner, who
// takes the whole list at once.
type threads struct {
	p        *poller
	inFlight int // owner only
	closed   bool
	workers  sync.WaitGroup

	mu    sync.Mutex
	cond  sync.Cond // todo grew or stop was set
	todo  fifo
	ended fifo
	idle  int // workers in cond.Wait
	stop  bool
}

func newThreads() (Engine, error) {
	p, err := newPoller()
	if err != nil {
		return nil, err
	}
	e := &threads{p: p}
	e.cond.L = &e.mu
	for range workerCount {
		e.workers.Go(e.work)
	}
	return e, nil
}

func (e *threads) work() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for {
		op := e.todo.pop()
		if op == nil {
			if e.stop {
				return
			}
			e.idle++
			e.cond.Wait()
			e.idle--
			continue
		}
		e.mu.Unlock()
		op.Err = op.run()
		e.mu.Lock()
		first := e.ended.empty()
		e.ended.push(op)
		if first {
			e.mu.Unlock()
			e.p.w.wake()
			e.mu.Lock()
		}
	}
}

func (e *threads) Submit(ops ...*Op) {
	if e.closed {
		refuse(ops)
		return
	}
	e.inFlight += len(ops)
	e.mu.Lock()
	for _, op := range ops {
		op.prog = 0
		e.todo.push(op)
	}
	wake := min(e.idle, len(ops))
	e.mu.Unlock()
	for range wake {
		e.cond.Signal()
	}
}

func (e *threads) Poll() int {
	e.mu.Lock()
	ended := e.ended.take()
	e.mu.Unlock()
	n := 0
	for op := ended.pop(); op != nil; op = ended.pop() {
		n++
		e.inFlight--
		op.Done.Complete(op)
	}
	return n
}

func (e *threads) Watch(fd int, interest uint32, token uint64) error {
	if e.closed {
		return ErrClosed
	}
	return e.p.watch(fd, interest, token)
}

func (e *threads) Unwatch(fd int) error {
	if e.closed {
		return ErrClosed
	}
	return e.p.unwatch(fd)
}

func (e *threads) Wait(events []Event, d time.Duration) (int, error) {
	if e.closed {
		return 0, ErrClosed
	}
	if e.Poll() > 0 {
		d = 0
	}
	n, err := e.p.wait(events, d)
	e.Poll()
	return n, err
}

func (e *threads) Wake()          { e.p.w.wake() }
func (e *threads) InFlight() int  { return e.inFlight }
func (e *threads) Blocking() bool { return true }

// Close implements Engine. What completions submit meanwhile still runs.
func (e *threads) Close() error {
	if e.closed {
		return nil
	}
	for e.inFlight > 0 {
		if _, err := e.Wait(nil, -1); err != nil {
			return err
		}
	}
	e.closed = true
	e.mu.Lock()
	e.stop = true
	e.mu.Unlock()
	e.cond.Broadcast()
	e.workers.Wait()
	e.p.close()
	return nil
}

// refuse ends operations that came after Close.
func refuse(ops []*Op) {
	for _, op := range ops {
		op.Err = unix.ESHUTDOWN
		op.Done.Complete(op)
	}
}
