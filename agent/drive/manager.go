package drive

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/go-hclog"
	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	"github.com/moraine-storage/moraine/agent/event"
	"github.com/moraine-storage/moraine/backends"
	"github.com/moraine-storage/moraine/drivers/aio"
	"github.com/moraine-storage/moraine/drivers/store"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// Options of a Manager; all are needed.
type Options struct {
	NodeID    string // this node
	ClusterID string // 32 hex digits
	Registry  Registry
	Events    *event.Log
	Logger    hclog.Logger
	Interval  time.Duration // between health checks
	Timeout   time.Duration // of one call to a backend
}

// Source is one configured backend.
type Source struct {
	Kind    string // "local"
	Pool    string
	Backend Provider
}

// Provider gives the backend as it is now; ErrUnavailable while its process
// does not run. A *host.Instance is one.
type Provider interface {
	Full() (backends.Full, error)
}

// Manager owns the drives of this node.
type Manager struct {
	o      Options
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu      sync.Mutex
	sources []*source
	drives  map[string]*drive // by ID
	notes   map[string]Status // media that are no drives: refused ones, by source

	urgent struct { // what Suspect asked for; its lock is held for moments only
		mu    sync.Mutex
		ctx   context.Context // of the looks; nil before Start and after Close
		again map[string]bool // by ID of drives that are looked at: once more
		seen  map[string]seenError
	}
}

// seenError is the last error of a drive's medium since it was opened.
type seenError struct {
	err error
	at  time.Time
}

// source is a Source and when it was last looked through.
type source struct {
	Source
	scan    sync.Mutex // one discovery at a time
	scanned time.Time  // zero: never with success; guarded by scan
}

// drive is one drive; fields but st are set once.
type drive struct {
	id  string
	src Source
	// claim is held while the drive is opened, reopened or closed.
	claim sync.Mutex
	// looking is held during a check: one that began earlier must not set the
	// state after one that saw more.
	looking sync.Mutex

	mu     sync.Mutex
	st     Status
	store  *store.Store // or nil: not open
	users  int          // of store
	record Record
}

// Status is what people see of a drive.
type Status struct {
	ID, Pool, Backend, Path, Serial string
	Source                          string
	State                           string // ready, full, failed, read-only, gone, refused
	Reason                          string // when not ready
	Since                           time.Time
	Info                            store.Info // zero if never opened
	Mode                            aio.Mode   // of I/O
	OpenCounter                     uint64
}

// States of a drive.
const (
	Ready   = "ready"
	Full    = "full"
	Failed  = "failed"
	Gone    = "gone"
	Refused = "refused"
)

// New returns a manager without drives; Start starts watching.
func New(o Options) *Manager {
	return &Manager{o: o, drives: map[string]*drive{}, notes: map[string]Status{}}
}

// Start starts the monitor.
func (m *Manager) Start() {
	ctx, cancel := context.WithCancel(context.Background())
	m.cancel = cancel
	m.urgent.mu.Lock()
	m.urgent.ctx, m.urgent.again, m.urgent.seen = ctx, map[string]bool{}, map[string]seenError{}
	m.urgent.mu.Unlock()
	m.done.Go(func() { m.monitor(ctx) })
}

// Add takes a source in and opens its drives. A drive that cannot be opened is
// there as failed, with its reason; the error is the source's own (it cannot
// be asked now), and is tried again by the monitor.
func (m *Manager) Add(ctx context.Context, src Source) error {
	s := &source{Source: src}
	m.mu.Lock()
	m.sources = append(m.sources, s)
	m.mu.Unlock()
	return m.discover(ctx, s)
}

// discover looks for drives of a source that are not known yet.
func (m *Manager) discover(ctx context.Context, s *source) error {
	s.scan.Lock()
	defer s.scan.Unlock()
	fail := func(err error) error {
		return fmt.Errorf("backend %q of pool %q: discover drives: %w", s.Kind, s.Pool, err)
	}
	b, err := s.Backend.Full()
	if err != nil {
		return fail(err)
	}
	dctx, cancel := context.WithTimeout(ctx, m.o.Timeout)
	found, err := b.Discover(dctx)
	cancel()
	if err != nil {
		return fail(err)
	}
	for _, f := range found {
		if f.State == backends.StateBlank {
			if why := m.missing(ctx, s.Source, f, found); why != "" {
				m.note(s.Source, f, Refused, why)
				continue
			}
		}
		m.adopt(ctx, s.Source, b, f)
	}
	s.scanned = time.Now()
	return nil
}

// missing says why a blank medium is not taken: a drive of this node was there
// and is not found any more. A directory whose file system is not mounted
// looks blank (invariant 2).
func (m *Manager) missing(ctx context.Context, src Source, f backends.Drive, found []backends.Drive) string {
	recs, err := m.o.Registry.ListDrives(ctx)
	if err != nil {
		return fmt.Sprintf("whether a drive was here before cannot be told: %v", err)
	}
	for _, r := range recs {
		here := slices.ContainsFunc(found, func(d backends.Drive) bool { return d.ID != "" && hexID(d.ID) == r.ID })
		if !here && r.Backend == src.Kind && r.Node == m.o.NodeID && r.Source == f.Source {
			return fmt.Sprintf("it is blank, but drive %s was here: mount or bring back what was here, or use another path for a new drive", r.ID)
		}
	}
	return ""
}

// adopt takes one discovered medium in.
func (m *Manager) adopt(ctx context.Context, src Source, b backends.Full, f backends.Drive) {
	if f.State == backends.StateBlank {
		id := backends.DriveID(uuid.NewString())
		cctx, cancel := context.WithTimeout(ctx, m.o.Timeout)
		created, err := b.Create(cctx, backends.CreateRequest{ID: id, Source: f.Source})
		cancel()
		if err != nil {
			m.note(src, f, Failed, fmt.Sprintf("prepare drive: %v", err))
			return
		}
		m.o.Events.Record(apiv1.Severity_INFO, "drive.created", "drive "+hexID(id), "", "source", f.Source, "pool", src.Pool)
		f = created
	}
	if f.ID == "" {
		m.note(src, f, Refused, f.Reason)
		return
	}
	id := hexID(f.ID)
	m.mu.Lock()
	delete(m.notes, f.Source)
	d := m.drives[id]
	known := d != nil
	if !known {
		d = &drive{id: id, src: src, st: Status{ID: id, Pool: src.Pool, Backend: src.Kind, Source: f.Source, Serial: f.Serial, State: Gone, Reason: "not opened yet"}}
		m.drives[id] = d
	}
	m.mu.Unlock()
	if known {
		switch {
		case d.src.Backend != src.Backend:
			m.note(src, f, Refused, fmt.Sprintf("drive %s is in pool %q already: one medium cannot be in two", id, d.src.Pool))
		case f.State == backends.StateRefused && f.Source != d.st.Source: // a copy; its original is used
			m.note(src, f, Refused, f.Reason)
		}
		return // the monitor looks after it
	}
	if f.State != backends.StateReady {
		m.setState(d, stateOf(f.State), f.Reason)
		return
	}
	m.open(ctx, d)
}

func stateOf(s backends.State) string {
	switch s {
	case backends.StateReady:
		return Ready
	case backends.StateGone:
		return Gone
	case backends.StateRefused:
		return Refused
	}
	return Failed
}

func (m *Manager) note(src Source, f backends.Drive, state, reason string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.notes[f.Source].Reason == reason {
		return
	}
	m.notes[f.Source] = Status{Pool: src.Pool, Backend: src.Kind, Source: f.Source, Path: f.Source, State: state, Reason: reason, Since: time.Now()}
	m.o.Logger.Warn("drive not used", "source", f.Source, "pool", src.Pool, "reason", reason)
}

// hexID is a backend's drive ID (a UUID) in the form that records use.
func hexID(id backends.DriveID) string { return strings.ReplaceAll(string(id), "-", "") }

// backendID is the inverse.
func backendID(id string) backends.DriveID {
	u, err := uuid.Parse(id)
	if err != nil {
		return backends.DriveID(id)
	}
	return backends.DriveID(u.String())
}

// open claims the drive and opens its store. Its outcome is the drive's state.
func (m *Manager) open(ctx context.Context, d *drive) {
	d.claim.Lock()
	defer d.claim.Unlock()
	d.mu.Lock()
	isOpen := d.store != nil
	d.mu.Unlock()
	if isOpen {
		return
	}
	if err := m.openStore(ctx, d); err != nil {
		m.setState(d, Failed, err.Error())
		return
	}
	m.setState(d, Ready, "")
}

func (m *Manager) openStore(ctx context.Context, d *drive) error {
	b, err := d.src.Backend.Full()
	if err != nil {
		return err
	}
	actx, cancel := context.WithTimeout(ctx, m.o.Timeout)
	att, err := b.Attach(actx, backendID(d.id), backends.NodeID(m.o.NodeID))
	cancel()
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	if att.Kind != backends.KindDir {
		return fmt.Errorf("backend %q gave a %v where a directory is needed: %w", d.src.Kind, att.Kind, errdefs.ErrUnimplemented)
	}
	rec, err := m.claim(ctx, d, att)
	if err != nil {
		return err
	}
	cluster, err := store.ParseID(m.o.ClusterID)
	if err != nil {
		return err
	}
	driveID, err := store.ParseID(d.id)
	if err != nil {
		return err
	}
	// A directory of its own: the backend and the file system have files beside it.
	dir := filepath.Join(att.Path, "store")
	if rec, err = m.format(ctx, rec, dir, att.Size, cluster, driveID); err != nil {
		return err
	}
	s, err := store.Open(dir, store.Options{
		Logger: m.o.Logger.Named("store").With("drive", d.id[:8]), ExpectCluster: &cluster, ExpectDrive: &driveID, OpenCounter: rec.OpenCounter,
		SizeLimit: att.Size,
	})
	if err != nil {
		return fmt.Errorf("open store in %s: %w", dir, err)
	}
	m.urgent.mu.Lock()
	delete(m.urgent.seen, d.id)
	m.urgent.mu.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.store, d.record = s, rec
	d.st.Path, d.st.Serial, d.st.Info, d.st.OpenCounter = att.Path, rec.Serial, s.Info(), rec.OpenCounter
	d.st.Mode = s.Mode()
	return nil
}

// claim raises the open counter in the drive's record and makes it this
// node's (invariant 1).
func (m *Manager) claim(ctx context.Context, d *drive, att backends.Attachment) (Record, error) {
	rec, err := m.o.Registry.GetDrive(ctx, d.id)
	if errdefs.IsNotFound(err) {
		rec, err = Record{ID: d.id, Node: m.o.NodeID}, nil
	}
	if err != nil {
		return rec, fmt.Errorf("drive record: %w", err)
	}
	if rec.Node != m.o.NodeID && rec.Open {
		return rec, fmt.Errorf("node %s has it open and has not given it back: %w", rec.Node, errdefs.ErrFailedPrecondition)
	}
	if rec.Serial != "" && att.Serial != "" && rec.Serial != att.Serial {
		return rec, fmt.Errorf("its medium has serial %q, the drive was made on %q: a copy of a drive is never used: %w", att.Serial, rec.Serial, errdefs.ErrFailedPrecondition)
	}
	rec.Node, rec.Pool, rec.Backend, rec.Source, rec.Size, rec.Open = m.o.NodeID, d.src.Pool, d.src.Kind, d.st.Source, att.Size, true
	if att.Serial != "" {
		rec.Serial = att.Serial
	}
	rec.OpenCounter++
	rec, err = m.o.Registry.PutDrive(ctx, rec)
	if err != nil {
		return rec, fmt.Errorf("claim drive: %w", err)
	}
	return rec, nil
}

// format makes the store of a drive that never had one (invariant 2).
func (m *Manager) format(ctx context.Context, rec Record, dir string, size int64, cluster, id store.ID) (Record, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		return rec, fmt.Errorf("look for a store: %w", err)
	}
	if rec.Formatted {
		if len(entries) == 0 {
			return rec, fmt.Errorf("the store that was made in %s is missing; it is not made anew, because volumes may have lived on it: %w", dir, errdefs.ErrDataLoss)
		}
		return rec, nil
	}
	err = store.Format(dir, store.FormatOptions{ClusterID: cluster, DriveID: id, SizeLimit: size})
	if err != nil && !errdefs.IsAlreadyExists(err) { // a crash between Format and the record
		return rec, fmt.Errorf("make store in %s: %w", dir, err)
	}
	rec.Formatted = true
	return m.o.Registry.PutDrive(ctx, rec)
}

func (m *Manager) setState(d *drive, state, reason string) {
	d.mu.Lock()
	old := d.st.State
	first := d.st.Since.IsZero()
	if old == state && d.st.Reason == reason && !first {
		d.mu.Unlock()
		return
	}
	d.st.State, d.st.Reason, d.st.Since = state, reason, time.Now()
	path := d.st.Path
	d.mu.Unlock()
	if old == state && !first {
		return
	}
	sev := apiv1.Severity_INFO
	if state != Ready {
		sev = apiv1.Severity_ERROR
	}
	m.o.Events.Record(sev, "drive."+state, "drive "+d.id, reason, "path", path, "pool", d.src.Pool)
}

// Acquire returns the open store of a drive and counts its user: the drive is
// not closed or reopened until release is called.
func (m *Manager) Acquire(id string) (s *store.Store, release func(), err error) {
	m.mu.Lock()
	d := m.drives[id]
	m.mu.Unlock()
	if d == nil {
		return nil, nil, fmt.Errorf("drive %s is not on this node: %w", id, errdefs.ErrUnavailable)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.store == nil {
		return nil, nil, fmt.Errorf("drive %s is %s (%s): %w", id, d.st.State, d.st.Reason, errdefs.ErrUnavailable)
	}
	d.users++
	return d.store, sync.OnceFunc(func() {
		d.mu.Lock()
		d.users--
		d.mu.Unlock()
	}), nil
}

// List returns the drives in order of ID, then the media that are not used.
func (m *Manager) List() []Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out, notes []Status
	for _, d := range m.drives {
		d.mu.Lock()
		if d.store != nil {
			d.st.Info = d.store.Info()
		}
		out = append(out, d.st)
		d.mu.Unlock()
	}
	for _, n := range m.notes {
		notes = append(notes, n)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].ID < out[j].ID })
	sort.Slice(notes, func(i, j int) bool { return notes[i].Source < notes[j].Source })
	return append(out, notes...)
}

// Close closes all stores and gives the drives back. Volumes must be released
// before: a store with users is an error, and stays claimed.
func (m *Manager) Close(ctx context.Context) error {
	if m.cancel != nil {
		m.cancel()
		m.urgent.mu.Lock()
		m.urgent.ctx = nil
		m.urgent.mu.Unlock()
		m.done.Wait()
	}
	m.mu.Lock()
	var all []*drive
	for _, d := range m.drives {
		all = append(all, d)
	}
	m.mu.Unlock()
	var errs []error
	for _, d := range all {
		errs = append(errs, m.closeDrive(ctx, d, true))
	}
	return errors.Join(errs...)
}

// closeDrive closes the store; giveBack says in the record that it is closed.
func (m *Manager) closeDrive(ctx context.Context, d *drive, giveBack bool) error {
	d.claim.Lock()
	defer d.claim.Unlock()
	d.mu.Lock()
	s, users, rec := d.store, d.users, d.record
	if s == nil {
		d.mu.Unlock()
		return nil
	}
	if users > 0 {
		d.mu.Unlock()
		return fmt.Errorf("drive %s: %d volumes still use it: %w", d.id, users, errdefs.ErrFailedPrecondition)
	}
	d.store = nil
	d.mu.Unlock()
	err := s.Close()
	if err != nil || !giveBack {
		return err
	}
	rec.Open = false
	if _, err := m.o.Registry.PutDrive(ctx, rec); err != nil {
		return fmt.Errorf("drive %s: give back: %w", d.id, err)
	}
	return nil
}
