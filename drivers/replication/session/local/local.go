// Package local is the member of a mirror whose replica lies on a drive of
// this node: a session.Member over a store.Replica.
//
// Invariants:
//  1. A message is executed only while its gate is the one that the last
//     PROMOTE of this member opened, and a PROMOTE only with a gate above all
//     before; the replica itself tells sessions apart.
//  2. Messages that the replica wants on the goroutine of its queue's owner
//     (FREEZE, THAW, DROP, GROW) are executed within Ask; the others one by
//     one on a goroutine, but LEASE, which must not wait behind a sync.
//
// Goroutines: two workers per member (messages, leases); owner New/Close;
// woken by Ask.
package local

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"

	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/replication"
	"github.com/moraine-storage/moraine/drivers/replication/session"
	"github.com/moraine-storage/moraine/drivers/store"
)

// Options of New.
type Options struct {
	Replica *store.Replica
	// Own says whether a session was an earlier one of this node, boot and
	// data directory: its process is dead, so its lease need not be waited
	// for. nil: none was.
	Own func(s store.SessionID) bool
	// Wrap puts a queue around the one to the top; for tests that make a
	// medium fail. May be nil.
	Wrap func(q block.Queue) block.Queue
}

// Member is a session.Member.
type Member struct {
	r      *store.Replica
	o      Options
	ctx    context.Context
	cancel context.CancelFunc
	work   worker
	leases worker

	mu      sync.Mutex
	session replication.Session
	gate    uint64
	open    bool
}

var _ session.Member = (*Member)(nil)

// New makes a member; its replica must be there until Close.
func New(o Options) (*Member, error) {
	if o.Replica == nil {
		return nil, errors.New("local member: no replica")
	}
	m := &Member{r: o.Replica, o: o}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	m.work.start()
	m.leases.start()
	return m, nil
}

// Close implements session.Member.
func (m *Member) Close() error {
	m.cancel()
	m.work.stop()
	m.leases.stop()
	return nil
}

// Open implements session.Member.
func (m *Member) Open(o session.OpenOptions) (block.Queue, error) {
	if o.Layer != (replication.SnapshotID{}) {
		return m.r.OpenSnapshot(o.Engine, store.ID(o.Layer))
	}
	m.mu.Lock()
	s, ok := m.session, m.open && m.gate == o.Gate
	m.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("open replica %s behind gate %d: %w", m.r.ID(), o.Gate, block.ErrFenced)
	}
	q, err := m.r.OpenQueue(o.Engine, store.SessionID(s))
	if err == nil && m.o.Wrap != nil {
		q = m.o.Wrap(q)
	}
	return q, err
}

// Ask implements session.Member.
func (m *Member) Ask(ctl *replication.Control, answer func(replication.Reply)) {
	run := func() { answer(m.execute(ctl)) }
	switch ctl.Kind {
	case replication.AskFreeze, replication.AskThaw, replication.AskDrop, replication.AskGrow:
		run()
	case replication.AskLease:
		m.leases.do(run)
	default:
		m.work.do(run)
	}
}

func (m *Member) execute(ctl *replication.Control) replication.Reply {
	if ctl.Kind == replication.AskPromote {
		return m.promote(ctl)
	}
	m.mu.Lock()
	ok := m.open && m.gate == ctl.Gate && m.session == ctl.Promised.Session
	m.mu.Unlock()
	if !ok {
		return m.refused(fmt.Errorf("%v behind gate %d: %w", ctl.Kind, ctl.Gate, block.ErrFenced))
	}
	r, err := m.inside(ctl)
	if err != nil {
		return m.refused(err)
	}
	return r
}

// refused is the reply to a message that was not done.
func (m *Member) refused(err error) replication.Reply {
	r := replication.Reply{Err: err}
	var f *store.FencedError
	switch {
	case errors.As(err, &f):
		r.Promised = promisedOf(f.Promised)
	case errors.Is(err, block.ErrFenced):
		r.Promised = promisedOf(m.r.Probe().Promised)
	}
	return r
}

func (m *Member) promote(ctl *replication.Control) replication.Reply {
	m.mu.Lock()
	if m.session == ctl.Promised.Session && ctl.Gate <= m.gate {
		m.mu.Unlock()
		return m.refused(fmt.Errorf("promote to gate %d: %w", ctl.Gate, block.ErrFenced))
	}
	m.session, m.gate, m.open = ctl.Promised.Session, ctl.Gate, false
	m.mu.Unlock()
	rec, err := EncodeRecord(ctl.Record)
	if err != nil {
		return replication.Reply{Err: err}
	}
	ctx, cancel := context.WithTimeout(m.ctx, ctl.Timeout)
	defer cancel()
	a, err := m.r.Promote(ctx, promiseOf(ctl.Promised, rec))
	if err != nil {
		return m.refused(err)
	}
	r := replication.Reply{Promised: promisedOf(a.Old), LossID: strconv.FormatUint(a.LossID, 16), Remaining: a.Remaining,
		OwnGrant: m.o.Own != nil && a.Whose != (store.SessionID{}) && m.o.Own(a.Whose), Size: a.Info.Size}
	if len(a.OldRecord) > 0 {
		if r.Record, err = DecodeRecord(a.OldRecord); err != nil {
			return replication.Reply{Err: fmt.Errorf("promote replica %s: %w", m.r.ID(), err)}
		}
	}
	for i := range a.Info.Layers {
		r.Layers = append(r.Layers, replication.SnapshotID(a.Info.Layers[i].Snapshot))
	}
	m.mu.Lock()
	m.open = true
	m.mu.Unlock()
	return r
}

// inside executes a message of the session that holds the gate.
func (m *Member) inside(ctl *replication.Control) (r replication.Reply, err error) {
	s := store.SessionID(ctl.Promised.Session)
	layer := store.ID(ctl.Layer)
	switch ctl.Kind {
	case replication.AskLease:
		return r, m.r.Lease(s, ctl.Lease)
	case replication.AskAdvance:
		rec, err := EncodeRecord(ctl.Record)
		if err != nil {
			return r, err
		}
		return r, m.r.Advance(s, promiseOf(ctl.Promised, rec))
	}
	err = m.r.InGate(s, func() (err error) {
		switch ctl.Kind {
		case replication.AskClean:
			return m.r.Clean(&layer, store.Stamp{Epoch: store.Epoch(ctl.Stamp.Epoch), Counter: ctl.Stamp.Counter}, ctl.Regions...)
		case replication.AskState:
			r.States, r.Size, err = m.states(layer)
			return err
		case replication.AskGrow:
			return m.grow(ctl.Size)
		case replication.AskFreeze:
			return m.r.Freeze(layer)
		case replication.AskThaw:
			return m.r.Thaw(layer)
		case replication.AskDrop:
			return m.r.Drop(layer)
		}
		return fmt.Errorf("message %v: %w", ctl.Kind, block.ErrUnsupported)
	})
	return r, err
}

// grow makes the replica as large at least. A replica that an earlier job
// left larger stays so: the volume ends where the record says.
func (m *Member) grow(size int64) error {
	if m.r.Info().Size >= size {
		return nil
	}
	return m.r.Grow(size)
}

// states tells the regions of a layer that are dirty or have a stamp.
func (m *Member) states(layer store.ID) (out []replication.RegionState, size int64, err error) {
	info := m.r.Info()
	size = info.Size
	if !layer.IsZero() {
		size = -1
		for i := range info.Layers {
			if info.Layers[i].Snapshot == layer {
				size = info.Layers[i].Size
			}
		}
		if size < 0 {
			return nil, 0, fmt.Errorf("state of snapshot %s: %w", layer, block.ErrIO)
		}
	}
	n := uint32((size + store.RegionSize - 1) / store.RegionSize)
	err = m.r.States(&layer, 0, n, func(s store.RegionState) error {
		if s.Dirty || s.Stamp != (store.Stamp{}) {
			out = append(out, replication.RegionState{Region: s.Region, Dirty: s.Dirty,
				Stamp: replication.Stamp{Epoch: replication.Epoch(s.Stamp.Epoch), Counter: s.Stamp.Counter}})
		}
		return nil
	})
	return out, size, err
}

func promiseOf(p replication.Promised, rec []byte) store.Promise {
	return store.Promise{Promised: store.Promised{Epoch: store.Epoch(p.Epoch), Session: store.SessionID(p.Session)}, Record: rec}
}

func promisedOf(p store.Promised) replication.Promised {
	return replication.Promised{Epoch: replication.Epoch(p.Epoch), Session: replication.Session(p.Session)}
}
