// Package fake is a backend for tests: drives are directories under one root,
// every node of the cluster can attach them, and each call can be scripted to
// fail, hang, or end the process. It passes the suite of backendtest.
//
// Media stands for the vendor: it outlives the Backend values that use it, so
// a test restarts a backend by making a new one over the same Media.
package fake

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/moraine-storage/moraine/backends"
	"github.com/moraine-storage/moraine/plugins/errdefs"
	"github.com/moraine-storage/moraine/plugins/schema"
)

// Media is the capacity that fakes draw on. Safe for concurrent use.
type Media struct {
	root string

	mu     sync.Mutex
	drives map[backends.DriveID]*drive // guarded by mu
	total  int64                       // bytes; set once
}

type drive struct {
	backends.Drive
	spec backends.CreateRequest
}

// NewMedia makes media of total bytes whose drives are directories under root.
func NewMedia(root string, total int64) *Media {
	return &Media{root: root, drives: map[backends.DriveID]*drive{}, total: total}
}

// Break sets the state that Get and Health report for a drive, as if the
// medium had been pulled (StateGone) or had failed (StateFailed).
func (m *Media) Break(id backends.DriveID, s backends.State, reason string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if d := m.drives[id]; d != nil {
		d.State, d.Reason = s, reason
	}
}

// Backend is the fake. Make it with New.
type Backend struct {
	m    *Media
	name string

	mu    sync.Mutex
	cfg   *backends.Config // guarded by mu; nil before Configure
	rules []*Rule          // guarded by mu
}

// New makes a fake of that name over m.
func New(name string, m *Media, rules ...Rule) *Backend {
	b := &Backend{m: m, name: name}
	b.Script(rules...)
	return b
}

// Info implements backends.Configurer.
func (b *Backend) Info(ctx context.Context) (backends.Info, error) {
	if err := b.play(ctx, "info"); err != nil {
		return backends.Info{}, err
	}
	return backends.Info{Name: b.name, Version: "1.0.0", Contract: backends.ContractVersion}, nil
}

// ConfigSchema implements backends.Configurer.
func (b *Backend) ConfigSchema(ctx context.Context) (schema.Schema, error) {
	return schema.Schema{Attributes: []schema.Attribute{
		{Name: "rules", Type: schema.List, Doc: "what goes wrong: CALL:ACTION[:N], see ParseRule"},
		{Name: "limit", Type: schema.Size, Doc: "largest drive", Min: schema.Bound(backends.MinDriveSize), Default: int64(1 << 40)},
		{Name: "password", Type: schema.String, Sensitive: true, Doc: "ignored; for tests that look for leaks"},
	}}, b.play(ctx, "schema")
}

// Configure implements backends.Configurer.
func (b *Backend) Configure(ctx context.Context, c backends.Config) error {
	if err := b.play(ctx, "configure"); err != nil {
		return err
	}
	var o struct {
		Rules    []string `config:"rules"`
		Limit    int64    `config:"limit"`
		Password string   `config:"password"`
	}
	if err := schema.Decode(c.Options, &o); err != nil {
		return fmt.Errorf("configure fake: %w", err)
	}
	var rules []Rule
	for _, text := range o.Rules {
		r, err := ParseRule(text)
		if err != nil {
			return fmt.Errorf("configure fake: %w", err)
		}
		rules = append(rules, r)
	}
	b.mu.Lock()
	b.cfg = &c
	b.mu.Unlock()
	b.Script(rules...)
	return nil
}

// begin plays the script for call and refuses before Configure.
func (b *Backend) begin(ctx context.Context, call string) (*backends.Config, error) {
	if err := b.play(ctx, call); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cfg == nil {
		return nil, fmt.Errorf("%s: %w: backend %s is not configured", call, errdefs.ErrFailedPrecondition, b.name)
	}
	return b.cfg, ctx.Err()
}

// Discover implements backends.Catalog.
func (b *Backend) Discover(ctx context.Context) ([]backends.Drive, error) {
	if _, err := b.begin(ctx, "discover"); err != nil {
		return nil, err
	}
	return b.m.all(), nil
}

// Get implements backends.Catalog.
func (b *Backend) Get(ctx context.Context, id backends.DriveID) (backends.Drive, error) {
	if _, err := b.begin(ctx, "get"); err != nil {
		return backends.Drive{}, err
	}
	b.m.mu.Lock()
	defer b.m.mu.Unlock()
	d, err := b.m.getLocked(id)
	if err != nil {
		return backends.Drive{}, err
	}
	return d.Drive, nil
}

// List implements backends.Catalog.
func (b *Backend) List(ctx context.Context, p backends.Page) (backends.Drives, error) {
	if _, err := b.begin(ctx, "list"); err != nil {
		return backends.Drives{}, err
	}
	return backends.Paginate(b.m.all(), p)
}

// Create implements backends.Provisioner.
func (b *Backend) Create(ctx context.Context, r backends.CreateRequest) (backends.Drive, error) {
	c, err := b.begin(ctx, "create")
	if err == nil {
		err = r.Check()
	}
	if err != nil {
		return backends.Drive{}, err
	}
	if r.Source != "" {
		return backends.Drive{}, fmt.Errorf("create drive %s: source: %w", r.ID, errdefs.ErrNotFound)
	}
	limit, _ := c.Options["limit"].(int64)
	return b.m.create(r, limit)
}

// Delete implements backends.Provisioner.
func (b *Backend) Delete(ctx context.Context, id backends.DriveID) error {
	if _, err := b.begin(ctx, "delete"); err != nil {
		return err
	}
	if err := id.Check(); err != nil {
		return err
	}
	b.m.mu.Lock()
	defer b.m.mu.Unlock()
	d := b.m.drives[id]
	if d == nil {
		return nil
	}
	if d.Node != "" {
		return fmt.Errorf("delete drive %s: %w: attached to node %s", id, errdefs.ErrFailedPrecondition, d.Node)
	}
	delete(b.m.drives, id)
	return os.RemoveAll(d.Source)
}

// Attach implements backends.Attacher.
func (b *Backend) Attach(ctx context.Context, id backends.DriveID, node backends.NodeID) (backends.Attachment, error) {
	if _, err := b.begin(ctx, "attach"); err != nil {
		return backends.Attachment{}, err
	}
	if err := node.Check(); err != nil {
		return backends.Attachment{}, err
	}
	b.m.mu.Lock()
	defer b.m.mu.Unlock()
	d, err := b.m.getLocked(id)
	switch {
	case err != nil:
		return backends.Attachment{}, err
	case d.State != backends.StateReady:
		return backends.Attachment{}, fmt.Errorf("attach drive %s: %w: %s: %s", id, errdefs.ErrUnavailable, d.State, d.Reason)
	case d.Node != "" && d.Node != node:
		return backends.Attachment{}, fmt.Errorf("attach drive %s: %w: attached to node %s", id, errdefs.ErrFailedPrecondition, d.Node)
	}
	d.Node = node
	return backends.Attachment{Path: d.Source, Kind: backends.KindDir, Size: d.Size, Serial: d.Serial}, nil
}

// Detach implements backends.Attacher.
func (b *Backend) Detach(ctx context.Context, id backends.DriveID, node backends.NodeID) error {
	return b.release(ctx, "detach", id, node)
}

// Fence implements backends.Fencer. A directory cannot be fenced for real; the
// fake only forgets the attachment.
func (b *Backend) Fence(ctx context.Context, id backends.DriveID, node backends.NodeID) error {
	return b.release(ctx, "fence", id, node)
}

func (b *Backend) release(ctx context.Context, call string, id backends.DriveID, node backends.NodeID) error {
	if _, err := b.begin(ctx, call); err != nil {
		return err
	}
	if err := id.Check(); err != nil {
		return err
	}
	b.m.mu.Lock()
	defer b.m.mu.Unlock()
	if d := b.m.drives[id]; d != nil && d.Node == node {
		d.Node = ""
	}
	return nil
}

// Expand implements backends.Expander.
func (b *Backend) Expand(ctx context.Context, id backends.DriveID, size int64) (backends.Drive, error) {
	if _, err := b.begin(ctx, "expand"); err != nil {
		return backends.Drive{}, err
	}
	b.m.mu.Lock()
	defer b.m.mu.Unlock()
	d, err := b.m.getLocked(id)
	if err != nil {
		return backends.Drive{}, err
	}
	if size > d.Size {
		if size-d.Size > b.m.freeLocked() {
			return backends.Drive{}, fmt.Errorf("expand drive %s: %w: media are full", id, errdefs.ErrResourceExhausted)
		}
		d.Size = size
	}
	return d.Drive, nil
}

// Health implements backends.HealthReporter.
func (b *Backend) Health(ctx context.Context, id backends.DriveID) (backends.Health, error) {
	if _, err := b.begin(ctx, "health"); err != nil {
		return backends.Health{}, err
	}
	b.m.mu.Lock()
	defer b.m.mu.Unlock()
	d, err := b.m.getLocked(id)
	if err != nil {
		return backends.Health{}, err
	}
	return backends.Health{State: d.State, Reason: d.Reason, Checked: time.Now()}, nil
}

func (m *Media) all() []backends.Drive {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []backends.Drive
	for _, id := range slices.Sorted(maps.Keys(m.drives)) {
		out = append(out, m.drives[id].Drive)
	}
	return out
}

func (m *Media) freeLocked() int64 {
	free := m.total
	for _, d := range m.drives {
		free -= d.Size
	}
	return free
}

func (m *Media) getLocked(id backends.DriveID) (*drive, error) {
	if err := id.Check(); err != nil {
		return nil, err
	}
	if d := m.drives[id]; d != nil {
		return d, nil
	}
	return nil, fmt.Errorf("drive %s: %w", id, errdefs.ErrNotFound)
}

func (m *Media) create(r backends.CreateRequest, limit int64) (backends.Drive, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if d := m.drives[r.ID]; d != nil {
		if d.spec != r {
			return backends.Drive{}, fmt.Errorf("create drive %s: %w with another spec", r.ID, errdefs.ErrAlreadyExists)
		}
		return d.Drive, nil
	}
	size := r.Size
	if size == 0 {
		size = 1 << 30
	}
	if size > limit || size > m.freeLocked() {
		return backends.Drive{}, fmt.Errorf("create drive %s: %w: media are full", r.ID, errdefs.ErrResourceExhausted)
	}
	dir := filepath.Join(m.root, string(r.ID))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return backends.Drive{}, fmt.Errorf("create drive %s: %w: %w", r.ID, errdefs.ErrUnavailable, err)
	}
	d := &drive{spec: r, Drive: backends.Drive{ID: r.ID, Source: dir, Serial: "FAKE-" + string(r.ID[:8]), Size: size,
		Class: "fake", State: backends.StateReady, Created: time.Now().UTC()}}
	m.drives[r.ID] = d
	return d.Drive, nil
}
