// Package faultblock is a block.Queue that does what a bad medium does: it
// fails, delays or holds the requests that its rules choose. Rules print as
// what they are, so that a failure message is a reproduction.
package faultblock

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/moraine-storage/moraine/drivers/block"
)

// Rule chooses requests and says what happens to them. The first rule that
// chooses a request is the one applied.
type Rule struct {
	Ops      []block.Op // empty: every operation
	Off, End int64      // requests that touch [Off, End); End 0: no bound
	Skip     int        // let this many pass first
	Count    int        // then choose this many; 0: no bound
	Percent  int        // of those chosen so, this share by Seed; 0: all
	Seed     uint64

	// Err fails the request before it reaches the medium; with After, once
	// the medium has done it (the outcome is then unknown to the submitter).
	Err   error
	After bool
	// Delay holds the request back for so long before it goes on.
	Delay time.Duration
	// Hold keeps the request until Release.
	Hold bool
}

func (r Rule) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "ops=%v range=[%d,%d) skip=%d count=%d percent=%d seed=%d:", r.Ops, r.Off, r.End, r.Skip, r.Count, r.Percent, r.Seed)
	if r.Err != nil {
		fmt.Fprintf(&b, " err=%q after=%v", r.Err.Error(), r.After)
	}
	if r.Delay > 0 {
		fmt.Fprintf(&b, " delay=%v", r.Delay)
	}
	if r.Hold {
		b.WriteString(" hold")
	}
	return b.String()
}

type armed struct {
	Rule
	seen, chosen int
	rand         *rand.Rand
}

func (a *armed) choose(r *block.Request) bool {
	match := len(a.Ops) == 0
	for _, op := range a.Ops {
		match = match || op == r.Op
	}
	if r.Op != block.OpFlush {
		// A request of length 0 still stands at its offset.
		match = match && (a.End == 0 || r.Off < a.End) && max(r.End(), r.Off+1) > a.Off
	}
	if !match || (a.Count > 0 && a.chosen >= a.Count) {
		return false
	}
	if a.seen++; a.seen <= a.Skip {
		return false
	}
	if a.Percent > 0 && a.rand.IntN(100) >= a.Percent {
		return false
	}
	a.chosen++
	return true
}

// Queue applies rules to what goes to another queue. Set, Release, Held and
// Faults may be called by any goroutine, the rest by the owner as usual.
type Queue struct {
	q    block.Queue
	wake func()

	failed []*block.Request         // owner's: to reap, never submitted
	after  map[*block.Request]error // owner's: to fail once the medium has done them
	pass   []*block.Request         // owner's scratch

	mu      sync.Mutex
	rules   []*armed
	held    []*block.Request // until Release
	delayed map[*time.Timer]*block.Request
	free    []*block.Request // released or due: to submit
	faults  int
	closed  bool
}

var (
	_ block.Queue    = (*Queue)(nil)
	_ block.Extenter = (*Queue)(nil)
)

// New wraps q. wake is the Wake of the owner's engine; it is called when a
// request goes on.
func New(q block.Queue, wake func(), rules ...Rule) *Queue {
	f := &Queue{q: q, wake: wake, after: map[*block.Request]error{}, delayed: map[*time.Timer]*block.Request{}}
	f.Set(rules...)
	return f
}

// Unwrap returns the queue below.
func (f *Queue) Unwrap() block.Queue { return f.q }

// Set replaces the rules; requests held or delayed stay so.
func (f *Queue) Set(rules ...Rule) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules = f.rules[:0]
	for _, r := range rules {
		f.rules = append(f.rules, &armed{Rule: r, rand: rand.New(rand.NewPCG(r.Seed, 7))})
	}
}

// Release lets held requests go on, in their order of arrival.
func (f *Queue) Release() {
	f.mu.Lock()
	f.free = append(f.free, f.held...)
	f.held = nil
	f.mu.Unlock()
	f.wake()
}

// Held is the number of requests that a Hold rule keeps.
func (f *Queue) Held() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.held)
}

// Faults is how often a rule was applied.
func (f *Queue) Faults() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.faults
}

// Submit implements block.Queue.
func (f *Queue) Submit(reqs []*block.Request) {
	f.mu.Lock()
	for _, r := range reqs {
		f.apply(r)
	}
	f.mu.Unlock()
	f.forward()
}

// apply decides about one request; mu is held.
func (f *Queue) apply(r *block.Request) {
	if f.closed {
		r.Err = block.ErrClosed
		f.failed = append(f.failed, r)
		return
	}
	var rule *armed
	for _, a := range f.rules {
		if a.choose(r) {
			rule = a
			f.faults++
			break
		}
	}
	switch {
	case rule == nil:
		f.pass = append(f.pass, r)
		return
	case rule.Err != nil && !rule.After:
		r.Err = rule.Err
		f.failed = append(f.failed, r)
		return
	case rule.Err != nil:
		f.after[r] = rule.Err
	}
	switch {
	case rule.Hold:
		f.held = append(f.held, r)
	case rule.Delay > 0:
		f.delay(r, rule.Delay)
	default:
		f.pass = append(f.pass, r)
	}
}

func (f *Queue) delay(r *block.Request, d time.Duration) {
	var t *time.Timer
	t = time.AfterFunc(d, func() {
		f.mu.Lock() // after apply has stored t
		if _, ok := f.delayed[t]; ok {
			delete(f.delayed, t)
			f.free = append(f.free, r)
		}
		f.mu.Unlock()
		f.wake()
	})
	f.delayed[t] = r
}

// forward submits what may go on.
func (f *Queue) forward() {
	f.mu.Lock()
	f.pass = append(f.pass, f.free...)
	f.free = f.free[:0]
	f.mu.Unlock()
	if len(f.pass) > 0 {
		f.q.Submit(f.pass)
		clear(f.pass)
		f.pass = f.pass[:0]
	}
}

// Reap implements block.Queue.
func (f *Queue) Reap(done []*block.Request) int {
	f.forward()
	n := copy(done, f.failed)
	f.failed = f.failed[:copy(f.failed, f.failed[n:])]
	m := f.q.Reap(done[n:])
	for _, r := range done[n : n+m] {
		if err, ok := f.after[r]; ok {
			delete(f.after, r)
			r.Err = err
		}
	}
	return n + m
}

// InFlight implements block.Queue.
func (f *Queue) InFlight() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.failed) + len(f.held) + len(f.delayed) + len(f.free) + f.q.InFlight()
}

// Info implements block.Queue.
func (f *Queue) Info() block.Info { return f.q.Info() }

// Extents implements block.Extenter. Where the queue below cannot tell, all
// is allocated data, which is always a safe answer.
func (f *Queue) Extents(dst []block.Extent, off, length int64, limit int) ([]block.Extent, error) {
	if x, ok := f.q.(block.Extenter); ok {
		return x.Extents(dst, off, length, limit)
	}
	if size := f.Info().Size; off < 0 || length < 0 || off > size || length > size-off {
		return dst, fmt.Errorf("extents of %d bytes at %d: %w", length, off, block.ErrInvalid)
	}
	if length > 0 {
		dst = append(dst, block.Extent{Off: off, Len: length})
	}
	return dst, nil
}

// Close implements block.Queue. The owner has reaped everything, so nothing
// is held or delayed.
func (f *Queue) Close() error {
	f.mu.Lock()
	f.closed = true
	f.rules = nil
	f.mu.Unlock()
	return f.q.Close()
}
