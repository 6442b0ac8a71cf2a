package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/moraine-storage/moraine/backends"
	"github.com/moraine-storage/moraine/plugins/errdefs"
	"github.com/moraine-storage/moraine/plugins/schema"
)

// Name of the backend, as in `backend "local"`.
const Name = "local"

// Backend offers the media of this node. Make it with New.
type Backend struct {
	version string
	change  chan struct{} // capacity 1: held by what changes media or mounts, one at a time

	mu      sync.Mutex
	cfg     *config                             // guarded by mu; nil before Configure; never changed in place
	ids     map[backends.DriveID]identity       // guarded by mu: of devices, read at a mount
	drive   map[backends.DriveID]backends.Drive // guarded by mu: as last seen, to know what is gone
	deleted int                                 // guarded by mu: counts deletions
}

var _ interface {
	backends.Backend
	backends.Provisioner
	backends.Expander
	backends.HealthReporter
} = (*Backend)(nil)

// New makes the backend; version is the program's.
func New(version string) *Backend {
	return &Backend{version: version, change: make(chan struct{}, 1),
		ids: map[backends.DriveID]identity{}, drive: map[backends.DriveID]backends.Drive{}}
}

// Info implements backends.Configurer.
func (b *Backend) Info(context.Context) (backends.Info, error) {
	return backends.Info{Name: Name, Version: b.version, Contract: backends.ContractVersion}, nil
}

// ConfigSchema implements backends.Configurer.
func (b *Backend) ConfigSchema(context.Context) (schema.Schema, error) {
	return blockSchema, nil
}

// Configure implements backends.Configurer.
func (b *Backend) Configure(_ context.Context, c backends.Config) error {
	cfg, err := newConfig(c)
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cfg = cfg
	return nil
}

func (b *Backend) config(ctx context.Context, call string) (*config, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cfg == nil {
		return nil, fmt.Errorf("%s: %w: backend local is not configured", call, errdefs.ErrFailedPrecondition)
	}
	return b.cfg, ctx.Err()
}

// lock takes the turn to change media or mounts.
func (b *Backend) lock(ctx context.Context) (unlock func(), err error) {
	select {
	case b.change <- struct{}{}:
		return func() { <-b.change }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (b *Backend) remember(id identity) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ids[id.ID] = id
}

func (b *Backend) recall(id backends.DriveID) (identity, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	got, ok := b.ids[id]
	return got, ok
}

func (b *Backend) forget(id backends.DriveID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.ids, id)
	delete(b.drive, id)
	b.deleted++
}

// drives scans, and adds the drives that are gone.
func (b *Backend) drives(ctx context.Context, c *config, candidates bool) ([]*entry, error) {
	b.mu.Lock()
	before := b.deleted
	b.mu.Unlock()
	all, err := b.scan(ctx, c, candidates)
	if err != nil {
		return nil, err
	}
	marked := c.attached()
	b.mu.Lock()
	defer b.mu.Unlock()
	here := map[backends.DriveID]bool{}
	for _, e := range all {
		if e.drive.ID != "" {
			here[e.drive.ID] = true
			if b.deleted == before { // else what was seen may be deleted by now
				b.drive[e.drive.ID] = e.drive
			}
		}
	}
	gone := map[backends.DriveID]backends.Drive{}
	for id, d := range b.drive {
		if !here[id] {
			gone[id] = d
		}
	}
	for _, id := range marked {
		if _, ok := gone[id]; !ok && !here[id] {
			gone[id] = backends.Drive{ID: id, Source: c.marker(id), Node: c.node}
		}
	}
	for _, d := range gone {
		d.State, d.Reason = backends.StateGone, "its medium is not among the configured paths any more, or was removed"
		for _, e := range all {
			if e.drive.ID == "" && e.drive.Source == d.Source && e.drive.State == backends.StateRefused {
				d.Reason = "its identity cannot be read: " + e.drive.Reason
			}
		}
		all = append(all, &entry{drive: d})
	}
	if !candidates {
		all = slices.DeleteFunc(all, func(e *entry) bool { return e.drive.ID == "" })
	}
	return all, nil
}

// attached lists the drives that have a marker in the run directory.
func (c *config) attached() []backends.DriveID {
	names, err := os.ReadDir(filepath.Join(c.runDir, "drives"))
	if err != nil {
		return nil // none was attached yet
	}
	var out []backends.DriveID
	for _, n := range names {
		if id := backends.DriveID(n.Name()); id.Check() == nil {
			out = append(out, id)
		}
	}
	return out
}

// find returns the drive of that ID; of several copies the one that may be used.
func (b *Backend) find(ctx context.Context, c *config, id backends.DriveID) (*entry, error) {
	if err := id.Check(); err != nil {
		return nil, err
	}
	all, err := b.drives(ctx, c, false)
	if err != nil {
		return nil, err
	}
	var found *entry
	for _, e := range all {
		if e.drive.ID == id && (found == nil || found.drive.State == backends.StateRefused) {
			found = e
		}
	}
	if found == nil {
		return nil, fmt.Errorf("drive %s: %w", id, errdefs.ErrNotFound)
	}
	return found, nil
}

// Discover implements backends.Catalog.
func (b *Backend) Discover(ctx context.Context) ([]backends.Drive, error) {
	c, err := b.config(ctx, "discover")
	if err != nil {
		return nil, err
	}
	// In turn with changes: a device that is being formatted must not be seen half done.
	unlock, err := b.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	all, err := b.drives(ctx, c, true)
	if err != nil {
		return nil, fmt.Errorf("discover: %w", err)
	}
	out := values(all)
	slices.SortStableFunc(out, func(x, y backends.Drive) int { // drives first, by ID
		switch {
		case x.ID == "" && y.ID == "":
			return 0
		case x.ID == "":
			return 1
		case y.ID == "" || x.ID < y.ID:
			return -1
		case x.ID > y.ID:
			return 1
		}
		return 0
	})
	return out, nil
}

func values(all []*entry) []backends.Drive {
	out := make([]backends.Drive, len(all))
	for i, e := range all {
		out[i] = e.drive
	}
	return out
}

// Get implements backends.Catalog.
func (b *Backend) Get(ctx context.Context, id backends.DriveID) (backends.Drive, error) {
	c, err := b.config(ctx, "get drive")
	if err != nil {
		return backends.Drive{}, err
	}
	e, err := b.find(ctx, c, id)
	if err != nil {
		return backends.Drive{}, err
	}
	return e.drive, nil
}

// List implements backends.Catalog. Copies of one drive are one entry.
func (b *Backend) List(ctx context.Context, p backends.Page) (backends.Drives, error) {
	c, err := b.config(ctx, "list drives")
	if err != nil {
		return backends.Drives{}, err
	}
	all, err := b.drives(ctx, c, false)
	if err != nil {
		return backends.Drives{}, fmt.Errorf("list drives: %w", err)
	}
	once := map[backends.DriveID]backends.Drive{}
	for _, d := range values(all) {
		if had, ok := once[d.ID]; !ok || had.State == backends.StateRefused {
			once[d.ID] = d
		}
	}
	list := make([]backends.Drive, 0, len(once))
	for _, d := range once {
		list = append(list, d)
	}
	return backends.Paginate(list, p)
}

// Health implements backends.HealthReporter: it reads the identity from the
// medium, past the page cache.
func (b *Backend) Health(ctx context.Context, id backends.DriveID) (backends.Health, error) {
	c, err := b.config(ctx, "health of drive")
	if err != nil {
		return backends.Health{}, err
	}
	e, err := b.find(ctx, c, id)
	if err != nil {
		return backends.Health{}, err
	}
	h := backends.Health{State: e.drive.State, Reason: e.drive.Reason, Checked: time.Now()}
	switch h.State {
	case backends.StateRefused:
		h.State = backends.StateFailed
	case backends.StateReady:
		h.Reason = ""
		if err := e.probe(); err != nil {
			h.State, h.Reason = backends.StateFailed, err.Error()
		}
	}
	return h, nil
}

// probe reads what can be read of a drive that looks well.
func (e *entry) probe() error {
	if e.sys != "" {
		if sysText(e.sys, "ro") == "1" {
			return errors.New("the device is read-only")
		}
		if s := sysText(whole(e.sys), "device/state"); s == "offline" || s == "dead" {
			return fmt.Errorf("the device is %s", s)
		}
	}
	dir := e.point
	if e.kind == dirMedium {
		dir = e.path
	}
	if dir == "" {
		return nil // not mounted: scan has just read its first sector
	}
	fi, err := os.Stat(filepath.Join(dir, identityName))
	if err != nil {
		return fmt.Errorf("read identity: %w", err)
	}
	r, err := medium{source: source{path: filepath.Join(dir, identityName)}, size: fi.Size()}.open()
	if err != nil {
		return fmt.Errorf("read identity: %w", err)
	}
	defer r.close()
	p, err := r.at(0, maxIdentity)
	if err != nil {
		return fmt.Errorf("read identity: %w", err)
	}
	got, err := decodeIdentity(p)
	if err != nil {
		return err
	}
	if got.ID != e.drive.ID {
		return fmt.Errorf("its identity file now says drive %s", got.ID)
	}
	return nil
}
