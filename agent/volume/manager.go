package volume

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/moraine-storage/moraine/agent/api"
	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	"github.com/moraine-storage/moraine/agent/cluster/records"
	recordsv1 "github.com/moraine-storage/moraine/agent/cluster/records/v1"
	"github.com/moraine-storage/moraine/agent/drive"
	"github.com/moraine-storage/moraine/agent/event"
	"github.com/moraine-storage/moraine/agent/operation"
	"github.com/moraine-storage/moraine/drivers"
	"github.com/moraine-storage/moraine/plugins/errdefs"
	"google.golang.org/protobuf/proto"
)

// Options of a Manager. All fields are needed unless they say otherwise.
type Options struct {
	NodeID, NodeName string
	DataDir, RunDir  string
	Records          *records.Store
	Drives           *drive.Manager
	Host             Host
	// Drivers make block devices; the first one that works on this host is used.
	Drivers    []drivers.Driver
	Events     *event.Log
	Operations *operation.Table
	Logger     hclog.Logger
	Defaults   Defaults
	// Plugins lists the backend processes, for people. May be nil.
	Plugins func() []*apiv1.Plugin
	// HostChecks adds to the doctor's report; may be nil.
	HostChecks func(context.Context) []drivers.Support
	// Version and Commit of the agent.
	Version, Commit string
}

// volumeRecord is a volume's record as read at a revision.
type volumeRecord = records.Versioned[*recordsv1.Volume]

// Manager implements api.Service on one node.
type Manager struct {
	o       Options
	files   attachDir
	started time.Time
	locks   locks

	mu      sync.Mutex
	live    map[string]*live       // attached here, by volume ID; entries change under the volume's lock
	exports map[string]*snapExport // snapshots served by NBD, by snapshot ID
	// unsettled are attachments of an earlier agent, or half undone ones, whose
	// device may still be there, by volume ID.
	unsettled map[string]*unsettled
	ready     bool
	closed    bool
	def       Defaults

	watchers  sync.WaitGroup
	stopRetry context.CancelFunc // set by Start; guarded by mu
}

var _ api.Service = (*Manager)(nil)

// New returns a manager that serves nothing yet; Start recovers.
func New(o Options) *Manager {
	return &Manager{
		o: o, files: attachDir(filepath.Join(o.DataDir, "attachments")), started: time.Now(),
		live: map[string]*live{}, exports: map[string]*snapExport{}, unsettled: map[string]*unsettled{}, def: o.Defaults,
	}
}

// SetDefaults changes what new volumes get; those that exist keep theirs.
func (m *Manager) SetDefaults(d Defaults) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.def = d
}

func (m *Manager) defaults() Defaults {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.def
}

func idOf(s string) records.ID { return records.ID(s) }

// find reads a volume's record by name or, if it looks like one, by ID.
func (m *Manager) find(ctx context.Context, name string) (volumeRecord, error) {
	v, err := m.o.Records.Volumes.GetByName(ctx, name)
	if !errdefs.IsNotFound(err) {
		return v, err
	}
	if id, perr := records.ParseID(name); perr == nil {
		if v, err := m.o.Records.Volumes.Get(ctx, id); !errdefs.IsNotFound(err) {
			return v, err
		}
	}
	return v, fmt.Errorf("volume %q: %w", name, errdefs.ErrNotFound)
}

// lock finds a volume and holds its lock until unlock is called. The record is
// as it was after the lock was taken.
func (m *Manager) lock(ctx context.Context, name string) (v volumeRecord, unlock func(), err error) {
	for {
		v, err = m.find(ctx, name)
		if err != nil {
			return v, nil, err
		}
		unlock, err = m.locks.lock(ctx, v.Record.Id)
		if err != nil {
			return v, nil, fmt.Errorf("volume %q: another call is working on it: %w", name, err)
		}
		again, err := m.find(ctx, name)
		if err != nil {
			unlock()
			return v, nil, err
		}
		if again.Record.Id == v.Record.Id {
			if m.settleAttachment(ctx, again.Record.Id) {
				again, err = m.o.Records.Volumes.Get(ctx, idOf(again.Record.Id))
			}
			if err != nil {
				unlock()
				return v, nil, err
			}
			return again, unlock, nil
		}
		unlock() // deleted, and the name given to another, meanwhile
	}
}

// settleWait bounds how long a lost answer is inquired about before the
// caller gets the indeterminate error.
const settleWait = 30 * time.Second

// update changes a volume's record and settles a lost answer: on return the
// change was made, or it was not and never will be, or the error is
// indeterminate (the cluster store stayed away). fn changes a copy of the
// record; on error the result is v as it was.
func (m *Manager) update(ctx context.Context, v volumeRecord, fn func(*recordsv1.Volume)) (volumeRecord, error) {
	next := v
	next.Record = proto.Clone(v.Record).(*recordsv1.Volume)
	fn(next.Record)
	done, err := m.o.Records.Volumes.Update(ctx, next)
	if errdefs.Indeterminate(err) {
		done, err = m.settle(ctx, next, err)
		if err != nil && done.Revision > v.Revision {
			return done, err // the record as it is now, without the change
		}
	}
	if err != nil {
		return v, err
	}
	return done, nil
}

func (m *Manager) settle(ctx context.Context, v volumeRecord, lost error) (volumeRecord, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleWait)
	defer cancel()
	for {
		outcome, now, err := m.o.Records.Settle(ctx, records.ID(v.Record.Id), v.Revision, v.Record.Attempt)
		switch {
		case err == nil && outcome == records.Made:
			return now, nil
		case err == nil:
			return now, fmt.Errorf("volume %q: the change was not made: %w", v.Record.Name, errdefs.ErrAborted)
		case errdefs.IsNotFound(err):
			return v, err
		}
		select {
		case <-ctx.Done():
			return v, errors.Join(lost, err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (m *Manager) event(sev apiv1.Severity, typ, volume, message string, kv ...string) {
	m.o.Events.Record(sev, typ, "volume "+volume, message, kv...)
}

func (m *Manager) info(typ, volume, message string, kv ...string) {
	m.event(apiv1.Severity_INFO, typ, volume, message, kv...)
}

// attached returns the attachment of a volume on this node, or nil.
func (m *Manager) attached(id string) *live {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.live[id]
}

// goLive enters l among what is attached here and watches its device. An agent
// that is stopping lets go of it instead, for the next one.
func (m *Manager) goLive(ctx context.Context, l *live) error {
	m.mu.Lock()
	closed := m.closed
	if !closed {
		m.live[l.id] = l
	}
	m.mu.Unlock()
	if closed {
		return errors.Join(errStopping, l.release(ctx))
	}
	if l.device != nil {
		l.watch()
	}
	return nil
}

func (m *Manager) dropLive(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.live, id)
}

// Close lets go of all volumes without detaching any: devices stay, their
// requests wait in the kernel for the next agent (rule 12).
func (m *Manager) Close(ctx context.Context) error {
	m.mu.Lock()
	m.closed = true
	if m.stopRetry != nil {
		m.stopRetry()
	}
	var all []*live
	for _, l := range m.live {
		all = append(all, l)
	}
	m.mu.Unlock()
	var errs []error
	for _, l := range all {
		unlock, err := m.locks.lock(ctx, l.id)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if m.attached(l.id) == l {
			errs = append(errs, l.release(ctx))
			m.dropLive(l.id)
		}
		unlock()
	}
	m.closeSnapExports()
	m.watchers.Wait()
	return errors.Join(errs...)
}

// locks are the per-volume locks of a node.
type locks struct {
	mu   sync.Mutex
	held map[string]chan struct{} // closed at unlock
}

// lock waits for the lock of key or the end of ctx.
func (l *locks) lock(ctx context.Context, key string) (unlock func(), err error) {
	for {
		l.mu.Lock()
		if l.held == nil {
			l.held = map[string]chan struct{}{}
		}
		wait, taken := l.held[key]
		if !taken {
			ch := make(chan struct{})
			l.held[key] = ch
			l.mu.Unlock()
			return sync.OnceFunc(func() {
				l.mu.Lock()
				delete(l.held, key)
				l.mu.Unlock()
				close(ch)
			}), nil
		}
		l.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", errdefs.ErrAborted, ctx.Err())
		}
	}
}
