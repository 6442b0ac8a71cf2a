package store

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// gate is the volatile part of fencing (REPLICATION 1, 2). Guarded by the
// store's mutex, but mu, which serialises promotions.
type gate struct {
	mu     chan struct{} // holds one token
	open   bool
	grant  time.Duration // CLOCK_BOOTTIME; latest end of any lease granted to any session
	whose  SessionID     // of that grant; zero: not known
	last   time.Duration // when the last LEASE was answered; 0: never
	inside int           // control operations under way (InGate)
}

func (g *gate) init(s *Store) {
	g.mu = make(chan struct{}, 1)
	g.mu <- struct{}{}
	// What was granted before this opening is not known: the longest lease
	// that ever was may still run.
	g.grant = s.opened + s.sb.leaseMax
}

// Promise is what a mirror asks a replica to promise.
type Promise struct {
	Promised
	Record []byte // the volume's record; at most 256 KiB
}

// PromoteAnswer is what a replica says of itself when it has promised.
type PromoteAnswer struct {
	Old       Promised // promised before
	OldRecord []byte
	LossID    uint64
	Remaining time.Duration // until no lease granted before can hold
	Whose     SessionID     // session of that grant; zero: not known
	Info      ReplicaInfo
	Free      int64 // bytes of the drive
}

// ProbeAnswer is what a replica says when asked; nothing changes.
type ProbeAnswer struct {
	Promised Promised
	Record   []byte
	LeaseAge time.Duration // since the last LEASE; < 0: none since open
	LossID   uint64
}

// FencedError says what was promised instead. It is block.ErrFenced on the
// data path and FailedPrecondition on the control path.
type FencedError struct {
	Replica  ID
	Promised Promised
}

func (e *FencedError) Error() string {
	return fmt.Sprintf("replica %s has promised epoch %d to session %s", e.Replica, e.Promised.Epoch.N, e.Promised.Session)
}

// Unwrap gives both classes.
func (e *FencedError) Unwrap() []error {
	return []error{block.ErrFenced, errdefs.ErrFailedPrecondition}
}

func (r *Replica) fencedLocked() error {
	return fmt.Errorf("%w", &FencedError{r.rs.spec.ID, r.rs.prom})
}

// Promote shuts the gate, waits until every operation that earlier sessions
// started has ended, device I/O included, makes the promise durable and opens
// the gate for the new session. Until ctx ends: then nothing is promised, and
// the gate stays shut.
func (r *Replica) Promote(ctx context.Context, p Promise) (*PromoteAnswer, error) {
	if len(p.Record) > maxRecord {
		return nil, fmt.Errorf("promote replica %s: record of %d bytes: %w", r.ID(), len(p.Record), errdefs.ErrInvalidArgument)
	}
	select {
	case <-r.gate.mu:
	case <-ctx.Done():
		return nil, fmt.Errorf("promote replica %s: %w: %w", r.ID(), ctx.Err(), errdefs.ErrUnavailable)
	}
	defer func() { r.gate.mu <- struct{}{} }()
	s := r.s
	s.mu.Lock()
	if r.deleted {
		s.mu.Unlock()
		return nil, fmt.Errorf("promote replica %s: %w", r.ID(), errdefs.ErrNotFound)
	}
	old := r.rs.prom
	if p.Epoch.N < old.Epoch.N || p.Epoch.N == old.Epoch.N && p.Promised != old {
		err := r.fencedLocked()
		s.mu.Unlock()
		return nil, fmt.Errorf("promote: %w", err)
	}
	r.gate.open = false
	q := r.queue
	s.mu.Unlock()
	if q != nil {
		if err := q.fence(ctx); err != nil {
			return nil, fmt.Errorf("promote replica %s: %w", r.ID(), err)
		}
	}
	if err := r.drainControl(ctx); err != nil {
		return nil, fmt.Errorf("promote replica %s: %w", r.ID(), err)
	}
	return r.promise(p)
}

// InGate runs a control operation (Freeze, Clean, Grow, ...) of a session: it
// refuses when the gate is not open for that session, and a promotion waits
// until fn has returned. It never waits itself.
func (r *Replica) InGate(session SessionID, fn func() error) error {
	s := r.s
	s.mu.Lock()
	if r.deleted || s.closed || !r.gate.open || r.rs.prom.Session != session {
		err := r.fencedLocked()
		s.mu.Unlock()
		return err
	}
	r.gate.inside++
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		r.gate.inside--
		s.mu.Unlock()
	}()
	return fn()
}

// drainControl waits for control operations of sessions before.
func (r *Replica) drainControl(ctx context.Context) error {
	for {
		r.s.mu.Lock()
		n := r.gate.inside
		r.s.mu.Unlock()
		if n == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("control operations of the session before are still under way: %w: %w", ctx.Err(), errdefs.ErrUnavailable)
		case <-time.After(time.Millisecond): // rare, and never on the data path
		}
	}
}

// promise makes it durable, then answers and opens the gate.
func (r *Replica) promise(p Promise) (*PromoteAnswer, error) {
	s := r.s
	a := &PromoteAnswer{}
	rec := &record{typ: recPromise, handle: r.rs.handle, prom: p.Promised, record: bytes.Clone(p.Record)}
	s.mu.Lock()
	a.Old, a.OldRecord = r.rs.prom, bytes.Clone(r.rs.record)
	err := s.logLocked(rec)
	s.mu.Unlock()
	if err == nil && !s.opt.test.noPromiseSync {
		err = s.flush()
	}
	if err != nil {
		return nil, fmt.Errorf("promote replica %s: %w", r.ID(), err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r.gate.open = true
	a.LossID, a.Whose, a.Info, a.Free = s.sb.lossID, r.gate.whose, r.infoLocked(), s.freeBytesLocked()
	a.Remaining = max(0, r.gate.grant-s.now())
	return a, nil
}

// Advance moves the promise of the session that holds the gate to a higher
// epoch, durably; nothing drains.
func (r *Replica) Advance(session SessionID, p Promise) error {
	if p.Session != session || len(p.Record) > maxRecord {
		return fmt.Errorf("advance replica %s: %w", r.ID(), errdefs.ErrInvalidArgument)
	}
	return r.control("advance", false, func() (*record, error) {
		old := r.rs.prom
		switch {
		case !r.gate.open || old.Session != session || p.Epoch.N < old.Epoch.N:
			return nil, r.fencedLocked()
		case p.Promised == old && bytes.Equal(p.Record, r.rs.record):
			return nil, nil
		case p.Epoch.N == old.Epoch.N && p.Promised != old:
			return nil, r.fencedLocked()
		}
		return &record{typ: recPromise, handle: r.rs.handle, prom: p.Promised, record: bytes.Clone(p.Record)}, nil
	})
}

// maxLease bounds a lease: a takeover may have to wait for it after a restart.
const maxLease = time.Minute

// Lease grants the session that holds the gate that no later session serves
// for d from now. The longest lease is remembered durably first, for a
// replica that restarts must wait it out.
func (r *Replica) Lease(session SessionID, d time.Duration) error {
	if d <= 0 || d > maxLease {
		return fmt.Errorf("lease of replica %s: %v: %w", r.ID(), d, errdefs.ErrOutOfRange)
	}
	s := r.s
	if err := s.rememberLease(d); err != nil {
		return fmt.Errorf("lease of replica %s: %w", r.ID(), err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.deleted || !r.gate.open || r.rs.prom.Session != session {
		return fmt.Errorf("lease: %w", r.fencedLocked())
	}
	now := s.now()
	if end := now + d; end > r.gate.grant {
		r.gate.grant, r.gate.whose = end, session
	}
	r.gate.last = now
	return nil
}

func (s *Store) rememberLease(d time.Duration) error {
	s.mu.Lock()
	known := d <= s.sb.leaseMax
	s.mu.Unlock()
	if known {
		return nil
	}
	s.superMu.Lock()
	defer s.superMu.Unlock()
	s.mu.Lock()
	if d <= s.sb.leaseMax || s.closed {
		s.mu.Unlock()
		return nil
	}
	sb := s.sb
	sb.leaseMax = d
	s.mu.Unlock()
	if err := sb.write(s.superF); err != nil {
		return err
	}
	s.mu.Lock()
	s.sb.leaseMax, s.sb.gen = d, sb.gen
	s.mu.Unlock()
	return nil
}

// Probe answers and changes nothing.
func (r *Replica) Probe() ProbeAnswer {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	a := ProbeAnswer{Promised: r.rs.prom, Record: bytes.Clone(r.rs.record), LossID: r.s.sb.lossID, LeaseAge: -1}
	if r.gate.last != 0 {
		a.LeaseAge = r.s.now() - r.gate.last
	}
	return a
}
