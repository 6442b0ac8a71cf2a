package apitest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"regexp"
	"sort"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/moraine-storage/moraine/agent/api"
	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

const (
	extentBytes      = 64 << 10
	defaultSizeBytes = 10 << 30
	// maxSizeBytes is what 2^32 extents hold.
	maxSizeBytes = 32 << 40
)

// Options of a fake. The zero value is ready.
type Options struct {
	// Now is the clock; nil: time.Now.
	Now func() time.Time
	// NewID makes identities of 32 hex digits; nil: random ones.
	NewID func() string
	// Hook runs before each call with its name and request; its error is the
	// call's. It may be changed with SetHook while the fake is in use.
	Hook func(ctx context.Context, call string, req proto.Message) error
	// RunDir is the start of device, mount and socket paths; "" is
	// "/run/moraine". Nothing is made there.
	RunDir string
	// Node is the name of the only node; "" is "node-a".
	Node string
}

// Fake is an agent in memory. Make one with NewFake.
type Fake struct {
	now    func() time.Time
	newID  func() string
	runDir string
	node   string
	nodeID string
	clstID string
	start  time.Time

	mu      sync.Mutex
	hook    func(context.Context, string, proto.Message) error
	volumes map[string]*volume // by name
	nextDev int
	writes  uint64 // contents so far: no two are the same
	events  []*apiv1.Event
	ops     []*apiv1.Operation
	changed chan struct{} // closed and replaced at each new event or change of an operation
	status  *apiv1.Status // or nil: made from the state
	doctor  *apiv1.DoctorReport
	pools   []*apiv1.Pool
	drives  []*apiv1.Drive
	plugins []*apiv1.Plugin
}

var _ api.Service = (*Fake)(nil)

// volume is a volume and what the message does not say.
type volume struct {
	msg       *apiv1.Volume
	data      map[int64]uint64  // extent number -> content
	snapshots map[string]*shot  // by name
	attached  map[string]bool   // consumers of attachments
	mounted   map[string]string // consumers of the mount -> target
	byMount   bool              // the mount attached it
}

type shot struct {
	msg  *apiv1.Snapshot
	data map[int64]uint64
	// formatted says whether the volume had its filesystem then.
	formatted bool
}

// NewFake returns an agent with one node, one pool "default" of 100 GiB on one
// drive, one plugin, and no volumes.
func NewFake(o Options) *Fake {
	f := &Fake{
		now: o.Now, newID: o.NewID, hook: o.Hook, runDir: o.RunDir, node: o.Node,
		volumes: map[string]*volume{}, changed: make(chan struct{}),
	}
	if f.now == nil {
		f.now = time.Now
	}
	if f.newID == nil {
		f.newID = randomID
	}
	if f.runDir == "" {
		f.runDir = "/run/moraine"
	}
	if f.node == "" {
		f.node = "node-a"
	}
	f.start = f.now()
	f.nodeID, f.clstID = f.newID(), f.newID()
	f.drives = []*apiv1.Drive{{
		Id: f.newID(), Node: f.node, Pool: "default", Backend: "local", Path: "/var/lib/moraine/drives/default",
		State: "ready", CapacityBytes: 100 << 30, IoMode: "uring", LossId: f.newID(), OpenCounter: 1,
	}}
	f.pools = []*apiv1.Pool{{Name: "default", Drives: 1, CapacityBytes: 100 << 30}}
	f.plugins = []*apiv1.Plugin{{Name: "local", Kind: "backend", Builtin: true, Version: "1", State: "running", Pid: 4242}}
	f.doctor = &apiv1.DoctorReport{Checks: []*apiv1.DoctorReport_Check{
		{Name: "fuse", Ok: true, Detail: "/dev/fuse can be opened"},
		{
			Name: "kernel nbd", Severity: apiv1.Severity_WARNING, Detail: "module nbd is not there; loop devices are used",
			Fix: "install the kernel's nbd module",
		},
	}}
	return f
}

func randomID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

// SetHook replaces the hook; nil removes it.
func (f *Fake) SetHook(h func(ctx context.Context, call string, req proto.Message) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hook = h
}

// SetStatus, SetDoctor and the others replace what the fake tells of itself.
func (f *Fake) SetStatus(s *apiv1.Status) { f.set(func() { f.status = s }) }

// SetDoctor sets the answer of RunDoctor.
func (f *Fake) SetDoctor(r *apiv1.DoctorReport) { f.set(func() { f.doctor = r }) }

// SetPlugins sets the answer of ListPlugins.
func (f *Fake) SetPlugins(p ...*apiv1.Plugin) { f.set(func() { f.plugins = p }) }

// SetDrives sets the answer of ListDrives.
func (f *Fake) SetDrives(d ...*apiv1.Drive) { f.set(func() { f.drives = d }) }

func (f *Fake) set(fn func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fn()
}

// enter runs the hook and takes the mutex.
func (f *Fake) enter(ctx context.Context, call string, req proto.Message) error {
	f.mu.Lock()
	hook := f.hook
	f.mu.Unlock()
	if hook != nil {
		if err := hook(ctx, call, req); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	f.mu.Lock()
	return nil
}

// nameRule is the rule for names of volumes and snapshots (DESIGN 7).
var nameRule = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9_.-]{0,126}[A-Za-z0-9])?$`)

func checkName(what, name string) error {
	if nameRule.MatchString(name) {
		return nil
	}
	return fmt.Errorf("%s name %q: 1 to 128 letters, digits, '_', '.', '-', with a letter or digit at both ends: %w",
		what, name, errdefs.ErrInvalidArgument)
}

// splitSnapshot takes VOLUME@SNAPSHOT apart.
func splitSnapshot(s string) (vol, snap string, err error) {
	vol, snap, ok := strings.Cut(s, "@")
	if !ok || vol == "" || snap == "" {
		return "", "", fmt.Errorf("snapshot %q: VOLUME@SNAPSHOT is needed: %w", s, errdefs.ErrInvalidArgument)
	}
	return vol, snap, nil
}

// findLocked looks a volume up by name or id. mu must be held.
func (f *Fake) findLocked(name string) (*volume, error) {
	if v := f.volumes[name]; v != nil {
		return v, nil
	}
	for _, v := range f.volumes {
		if v.msg.Id == name {
			return v, nil
		}
	}
	return nil, fmt.Errorf("volume %q: %w", name, errdefs.ErrNotFound)
}

// findShotLocked looks a snapshot up by VOLUME@SNAPSHOT. mu must be held.
func (f *Fake) findShotLocked(name string) (*volume, *shot, error) {
	vn, sn, err := splitSnapshot(name)
	if err != nil {
		return nil, nil, err
	}
	v, err := f.findLocked(vn)
	if err != nil {
		return nil, nil, err
	}
	s := v.snapshots[sn]
	if s == nil {
		return nil, nil, fmt.Errorf("snapshot %q: %w", name, errdefs.ErrNotFound)
	}
	return v, s, nil
}

// eventLocked records an event. mu must be held.
func (f *Fake) eventLocked(typ, object, message string, fields map[string]string) {
	f.events = append(f.events, &apiv1.Event{
		Cursor: uint64(len(f.events) + 1), At: timestamppb.New(f.now()), Type: typ,
		Severity: apiv1.Severity_INFO, Object: object, Message: message, Fields: fields,
	})
	f.wakeLocked()
}

// wakeLocked wakes those who watch. mu must be held.
func (f *Fake) wakeLocked() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// viewLocked is the volume as the API shows it. mu must be held.
func (f *Fake) viewLocked(v *volume) *apiv1.Volume {
	m := proto.CloneOf(v.msg)
	m.Snapshots = uint32(len(v.snapshots))
	alloc := int64(len(v.data)) * extentBytes
	m.Usage = &apiv1.Usage{AllocatedBytes: alloc, SnapshotBytes: snapshotBytes(v)}
	for _, r := range m.Replicas {
		r.AllocatedBytes = alloc
	}
	for _, a := range m.Attachments {
		a.Consumers = v.consumers()
		if a.Path != "" {
			m.Usage.FilesystemSizeBytes, m.Usage.FilesystemUsedBytes = m.Spec.SizeBytes, alloc
		}
	}
	return m
}

// consumers are those of attachment and mount, sorted, each once; the command
// line's is shown as "cli".
func (v *volume) consumers() []string {
	set := map[string]bool{}
	for c := range v.attached {
		set[shown(c)] = true
	}
	for c := range v.mounted {
		set[shown(c)] = true
	}
	out := make([]string, 0, len(set))
	for c := range set {
		out = append(out, c)
	}
	sort.Strings(out)
	return out
}

func shown(consumer string) string {
	if consumer == "" {
		return "cli"
	}
	return consumer
}

// snapshotBytes is the space that only snapshots hold: every content of an
// extent that the volume itself does not have any more, counted once.
func snapshotBytes(v *volume) int64 {
	type held struct {
		extent int64
		value  uint64
	}
	set := map[held]bool{}
	for _, s := range v.snapshots {
		for e, val := range s.data {
			if v.data[e] != val {
				set[held{e, val}] = true
			}
		}
	}
	return int64(len(set)) * extentBytes
}
