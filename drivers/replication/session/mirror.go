package session

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/moraine-storage/moraine/drivers/aio"
	"github.com/moraine-storage/moraine/drivers/block"
)

// Options of a Mirror.
type Options struct {
	Engine aio.Engine  // of the loop; woken when a limited request is due
	Member block.Queue // the local replica; owned by the mirror from now on
	Limits Limits
	// Failed is told, on the owner's goroutine, of each request that a member
	// answered with an error that is not the client's own fault. It must not
	// block. May be nil.
	Failed func(op block.Op, err error)
}

// Mirror implements block.Queue and block.Extenter.
type Mirror struct {
	member   block.Queue
	extents  block.Extenter // or nil
	failed   func(block.Op, error)
	limiter  *limiter         // or nil: no limits
	flushErr error            // sticky, invariant 1
	ended    []*block.Request // answered without a member: refused flushes
	limits   atomic.Pointer[Limits]
	engine   aio.Engine
	batch    []*block.Request // scratch of Submit
}

// New makes a mirror.
func New(o Options) (*Mirror, error) {
	if o.Member == nil || o.Engine == nil {
		return nil, errors.New("mirror: a member and an engine are needed")
	}
	if err := o.Limits.validate(); err != nil {
		return nil, err
	}
	m := &Mirror{member: o.Member, failed: o.Failed, engine: o.Engine}
	m.extents, _ = o.Member.(block.Extenter)
	m.limiter = newLimiter(o.Limits, o.Engine.Wake)
	return m, nil
}

// SetLimits changes the limits while requests run. Any goroutine.
func (m *Mirror) SetLimits(l Limits) error {
	if err := l.validate(); err != nil {
		return err
	}
	m.limits.Store(&l)
	m.engine.Wake()
	return nil
}

// Submit implements block.Queue.
func (m *Mirror) Submit(reqs []*block.Request) {
	if m.flushErr == nil && m.limiter == nil {
		m.member.Submit(reqs)
		return
	}
	m.batch = m.batch[:0]
	for _, r := range reqs {
		if m.flushErr != nil && needsFlush(r) {
			r.Err = m.flushErr
			m.ended = append(m.ended, r)
			continue
		}
		if m.limiter != nil && !m.limiter.admit(r, time.Now()) {
			continue
		}
		m.batch = append(m.batch, r)
	}
	if len(m.batch) > 0 {
		m.member.Submit(m.batch)
	}
}

func needsFlush(r *block.Request) bool {
	return r.Op == block.OpFlush || r.Flags&block.FUA != 0
}

// Reap implements block.Queue.
func (m *Mirror) Reap(done []*block.Request) int {
	if l := m.limits.Swap(nil); l != nil {
		m.changeLimits(*l)
	}
	if m.limiter != nil {
		m.batch = m.limiter.due(m.batch[:0], time.Now())
		if len(m.batch) > 0 {
			m.member.Submit(m.batch)
		}
	}
	n := copy(done, m.ended)
	if n > 0 {
		m.ended = m.ended[:copy(m.ended, m.ended[n:])]
	}
	k := m.member.Reap(done[n:])
	for _, r := range done[n : n+k] {
		if r.Err != nil {
			m.sawError(r)
		}
	}
	return n + k
}

func (m *Mirror) changeLimits(l Limits) {
	old := m.limiter
	m.limiter = newLimiter(l, m.engine.Wake)
	if old == nil {
		return
	}
	waiting := old.stop()
	if len(waiting) > 0 {
		m.Submit(waiting)
	}
}

func (m *Mirror) sawError(r *block.Request) {
	if errors.Is(r.Err, block.ErrInvalid) || errors.Is(r.Err, block.ErrReadOnly) || errors.Is(r.Err, block.ErrUnsupported) {
		return
	}
	if needsFlush(r) && m.flushErr == nil && !errors.Is(r.Err, block.ErrNoSpace) && !errors.Is(r.Err, block.ErrFenced) {
		m.flushErr = fmt.Errorf("an earlier flush failed, attach the volume anew: %w", r.Err)
	}
	if m.failed != nil {
		m.failed(r.Op, r.Err)
	}
}

// InFlight implements block.Queue.
func (m *Mirror) InFlight() int {
	n := m.member.InFlight() + len(m.ended)
	if m.limiter != nil {
		n += m.limiter.waiting()
	}
	return n
}

// Info implements block.Queue.
func (m *Mirror) Info() block.Info { return m.member.Info() }

// Extents implements block.Extenter.
func (m *Mirror) Extents(dst []block.Extent, off, length int64, limit int) ([]block.Extent, error) {
	if m.extents == nil {
		return append(dst, block.Extent{Off: off, Len: length}), nil
	}
	return m.extents.Extents(dst, off, length, limit)
}

// Ready passes events of descriptors on to a member that watches some (a
// Group with connections).
func (m *Mirror) Ready(ev aio.Event) {
	if w, ok := m.member.(watcher); ok {
		w.Ready(ev)
	}
}

// Member returns the queue of the local replica, for control operations that
// run on the owner's goroutine while requests are held.
func (m *Mirror) Member() block.Queue { return m.member }

// Close implements block.Queue.
func (m *Mirror) Close() error {
	if m.limiter != nil {
		m.limiter.stop()
	}
	return m.member.Close()
}
