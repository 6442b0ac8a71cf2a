package volume

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/go-hclog"
	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	"github.com/moraine-storage/moraine/agent/cluster/memkv"
	"github.com/moraine-storage/moraine/agent/cluster/records"
	recordsv1 "github.com/moraine-storage/moraine/agent/cluster/records/v1"
	"github.com/moraine-storage/moraine/agent/drive"
	"github.com/moraine-storage/moraine/agent/event"
	"github.com/moraine-storage/moraine/agent/operation"
	"github.com/moraine-storage/moraine/backends"
	"github.com/moraine-storage/moraine/backends/fake"
	"github.com/moraine-storage/moraine/drivers"
	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/plugins/errdefs"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// node is a host: real stores on real drives, a cluster store in memory, and
// a kernel that is faked. Managers come and go on it as agents do.
type node struct {
	t      *testing.T
	dir    string
	kv     *memkv.Client
	recs   *records.Store
	drives *drive.Manager
	media  *fake.Media
	drive  backends.DriveID // the one on it
	kernel *kernel
	events *event.Log
	id     string
}

// provider is a backend whose process always runs.
type provider struct{ b backends.Full }

func (p provider) Full() (backends.Full, error) { return p.b, nil }

// memRegistry keeps drive records in memory.
type memRegistry struct {
	mu sync.Mutex
	m  map[string]drive.Record
}

func (r *memRegistry) GetDrive(_ context.Context, id string) (drive.Record, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	rec, ok := r.m[id]
	if !ok {
		return rec, fmt.Errorf("drive %s: %w", id, errdefs.ErrNotFound)
	}
	return rec, nil
}

func (r *memRegistry) ListDrives(context.Context) ([]drive.Record, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []drive.Record
	for _, rec := range r.m {
		out = append(out, rec)
	}
	return out, nil
}

func (r *memRegistry) PutDrive(_ context.Context, rec drive.Record) (drive.Record, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.m[rec.ID].Revision != rec.Revision {
		return rec, errdefs.ErrAborted
	}
	rec.Revision++
	r.m[rec.ID] = rec
	return rec, nil
}

func newNode(t *testing.T) *node {
	t.Helper()
	ctx := context.Background()
	dir := t.TempDir()
	st := memkv.New(memkv.Options{})
	n := &node{t: t, dir: dir, kv: st.Client(), kernel: newKernel(), id: strings.ReplaceAll(uuid.NewString(), "-", "")}
	n.recs = records.New(n.kv)
	cl, err := n.recs.Bootstrap(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.recs.Nodes.Create(ctx, &recordsv1.Node{Id: n.id, Name: "node-a"}); err != nil {
		t.Fatal(err)
	}
	n.events, _ = event.Open("", hclog.NewNullLogger())
	if err := os.Mkdir(filepath.Join(dir, "media"), 0o700); err != nil {
		t.Fatal(err)
	}
	media := fake.NewMedia(filepath.Join(dir, "media"), 64<<30)
	n.media = media
	b := fake.New("fake", media)
	if err := b.Configure(ctx, backends.Config{Instance: "f", Node: backends.NodeID(n.id), RunDir: dir, Options: map[string]any{"limit": int64(1 << 40)}}); err != nil {
		t.Fatal(err)
	}
	n.drive = backends.DriveID(uuid.NewString())
	if _, err := b.Create(ctx, backends.CreateRequest{ID: n.drive, Size: 8 << 30}); err != nil {
		t.Fatal(err)
	}
	n.drives = drive.New(drive.Options{
		NodeID: n.id, ClusterID: cl.Id, Registry: &memRegistry{m: map[string]drive.Record{}}, Events: n.events,
		Logger: hclog.NewNullLogger(), Interval: time.Hour, Timeout: time.Minute,
	})
	if err := n.drives.Add(ctx, drive.Source{Kind: "fake", Pool: "default", Backend: provider{backends.Complete(b)}}); err != nil {
		t.Fatal(err)
	}
	for _, d := range n.drives.List() {
		if d.State != drive.Ready {
			t.Fatalf("drive is %s: %s", d.State, d.Reason)
		}
	}
	t.Cleanup(func() {
		if err := n.drives.Close(ctx); err != nil {
			t.Errorf("close drives: %v", err)
		}
		n.kv.Close()
	})
	return n
}

// manager starts an agent's volumes on the node; ended with the test unless
// it was closed or killed before.
func (n *node) manager() *Manager {
	n.t.Helper()
	m := n.managerUnstarted()
	if err := m.Start(context.Background()); err != nil {
		n.t.Fatal(err)
	}
	return m
}

func (n *node) managerUnstarted() *Manager {
	run := filepath.Join(n.dir, "run")
	if err := os.MkdirAll(run, 0o700); err != nil {
		n.t.Fatal(err)
	}
	m := New(Options{
		NodeID: n.id, NodeName: "node-a", DataDir: filepath.Join(n.dir, "data"), RunDir: run, Records: n.recs, Drives: n.drives,
		Host: n.kernel, Drivers: []drivers.Driver{&fakeDriver{k: n.kernel}}, Events: n.events, Operations: operation.NewTable(),
		Logger: hclog.NewNullLogger(), Version: "test",
		Defaults: Defaults{Size: 1 << 30, FS: "ext4", Driver: "nbd", Extent: 64 << 10, Region: 1 << 20},
	})
	n.t.Cleanup(func() {
		if err := m.Close(context.Background()); err != nil {
			n.t.Errorf("close manager: %v", err)
		}
	})
	return m
}

// kill ends an agent as SIGKILL does: nothing of it runs any more, nothing is
// put in order. (Its loops are stopped, because a test cannot kill threads.)
func (n *node) kill(m *Manager) {
	n.kernel.disconnect()
	m.mu.Lock()
	if m.stopRetry != nil {
		m.stopRetry()
	}
	all := m.live
	m.live = map[string]*live{}
	m.mu.Unlock()
	for _, l := range all {
		if l.device != nil {
			l.device.(*fakeAttachment).end()
		}
		_ = l.closePath()
		l.p.release()
	}
	m.watchers.Wait()
}

// kernel is the host's: devices by path, mounts by directory.
type kernel struct {
	mu      sync.Mutex
	devices map[string]*kernelDevice
	mounts  map[string]string // dir -> device
	busy    map[string]bool   // dir: somebody works in it
	mkfs    int
	failFS  error // of the next Make

	failCleanup error // of the next Cleanup
}

type kernelDevice struct {
	volume string
	dev    drivers.Device // nil while no agent serves it
	size   int64
}

func newKernel() *kernel {
	return &kernel{devices: map[string]*kernelDevice{}, mounts: map[string]string{}, busy: map[string]bool{}}
}

func (k *kernel) disconnect() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, d := range k.devices {
		d.dev = nil
	}
}

func (k *kernel) device(path string) (drivers.Device, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	d := k.devices[path]
	if d == nil || d.dev == nil {
		return nil, fmt.Errorf("%s: no such device: %w", path, errdefs.ErrNotFound)
	}
	return d.dev, nil
}

const superOff = 4096

// Detect, Make and Check know file systems by a word at 4 KiB.
func (k *kernel) Detect(ctx context.Context, path string) (string, error) {
	d, err := k.device(path)
	if err != nil {
		return "", err
	}
	p := make([]byte, 512)
	if err := d.ReadAt(ctx, p, superOff); err != nil {
		return "", err
	}
	return string(bytes.TrimRight(p, "\x00")), nil
}

func (k *kernel) Make(ctx context.Context, path, fs string, _ []string, _ bool) error {
	d, err := k.device(path)
	if err != nil {
		return err
	}
	k.mu.Lock()
	k.mkfs++
	err, k.failFS = k.failFS, nil
	k.mu.Unlock()
	if err != nil {
		return err
	}
	p := make([]byte, 512)
	copy(p, fs)
	return d.WriteAt(ctx, p, superOff, block.FUA)
}

func (k *kernel) Check(ctx context.Context, path, fs string) error {
	got, err := k.Detect(ctx, path)
	if err == nil && got != fs {
		err = fmt.Errorf("%s has %q, not %q", path, got, fs)
	}
	return err
}

func (k *kernel) Mount(_ context.Context, path, dir, _ string, _ bool, _ []string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.mounts[dir] != "" {
		return fmt.Errorf("%s is mounted", dir)
	}
	k.mounts[dir] = path
	return nil
}

func (k *kernel) Bind(_ context.Context, from, to string, _ bool) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.mounts[to] = k.mounts[from]
	return nil
}

func (k *kernel) Unmount(_ context.Context, dir string, force bool) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.busy[dir] && !force {
		return fmt.Errorf("%s: in use by sh[1]: %w", dir, errdefs.ErrFailedPrecondition)
	}
	delete(k.mounts, dir)
	return nil
}

func (k *kernel) Mounted(dir string) (string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.mounts[dir], nil
}

func (k *kernel) Sync(context.Context, string) error         { return nil }
func (k *kernel) Empty(context.Context, string) error        { return nil }
func (k *kernel) Grow(context.Context, string, string) error { return nil }
func (k *kernel) Usage(string) (Usage, error)                { return Usage{Size: 100, Used: 10}, nil }

// fakeDriver makes devices of the fake kernel.
type fakeDriver struct{ k *kernel }

type fakeAttachment struct {
	d    *fakeDriver
	s    drivers.State
	done chan struct{}
	once sync.Once
}

func (d *fakeDriver) path(id string) string { return "/dev/fake-" + id }

func (d *fakeDriver) Attach(ctx context.Context, v drivers.Volume, o drivers.Options) (drivers.Attachment, error) {
	if err := drivers.CheckAttach(v, o); err != nil {
		return nil, err
	}
	s := drivers.NewState(drivers.KindLoop, v, o)
	s.Loop = &drivers.LoopState{MountPath: "/fake/" + v.ID, HolderKey: v.ID}
	if err := o.Persist(ctx, s.Clone()); err != nil {
		return nil, err
	}
	d.k.mu.Lock()
	d.k.devices[d.path(v.ID)] = &kernelDevice{volume: v.ID, dev: v.Device, size: v.Info.Size}
	d.k.mu.Unlock()
	s.Step, s.Device = drivers.StepReady, d.path(v.ID)
	if err := o.Persist(ctx, s.Clone()); err != nil {
		return nil, err
	}
	return &fakeAttachment{d: d, s: s, done: make(chan struct{})}, nil
}

func (d *fakeDriver) Recover(_ context.Context, v drivers.Volume, s drivers.State, _ drivers.Options) (drivers.Attachment, error) {
	if err := s.Recoverable(); err != nil {
		return nil, err
	}
	d.k.mu.Lock()
	defer d.k.mu.Unlock()
	dev := d.k.devices[s.Device]
	if dev == nil {
		return nil, errdefs.ErrNotFound
	}
	dev.dev = v.Device
	return &fakeAttachment{d: d, s: s, done: make(chan struct{})}, nil
}

func (d *fakeDriver) Cleanup(_ context.Context, s drivers.State, force bool) error {
	d.k.mu.Lock()
	defer d.k.mu.Unlock()
	path := d.path(s.Volume)
	if err := d.k.failCleanup; err != nil {
		d.k.failCleanup = nil
		return err
	}
	for dir, dev := range d.k.mounts {
		if dev == path && !force {
			return fmt.Errorf("%s is mounted at %s: %w", path, dir, errdefs.ErrFailedPrecondition)
		}
	}
	delete(d.k.devices, path)
	return nil
}

func (d *fakeDriver) Probe(context.Context) drivers.Support {
	return drivers.Support{Name: "loop", Available: true}
}

func (a *fakeAttachment) State() drivers.State { return a.s.Clone() }
func (a *fakeAttachment) Resize(_ context.Context, size int64) error {
	a.d.k.mu.Lock()
	defer a.d.k.mu.Unlock()
	a.d.k.devices[a.s.Device].size = size
	return nil
}
func (a *fakeAttachment) end() { a.once.Do(func() { close(a.done) }) }
func (a *fakeAttachment) Release(context.Context) error {
	a.d.k.mu.Lock()
	defer a.d.k.mu.Unlock()
	if d := a.d.k.devices[a.s.Device]; d != nil {
		d.dev = nil
	}
	a.end()
	return nil
}
func (a *fakeAttachment) Detach(ctx context.Context, force bool) error {
	if err := a.d.Cleanup(ctx, a.s, force); err != nil {
		return err
	}
	a.end()
	return nil
}
func (a *fakeAttachment) Done() <-chan struct{} { return a.done }
func (a *fakeAttachment) Err() error            { return nil }

// create makes a volume of 64 MiB.
func create(t *testing.T, m *Manager, name string) *apiv1.Volume {
	t.Helper()
	v, err := m.CreateVolume(context.Background(), &apiv1.CreateVolumeRequest{Name: name, Spec: &apiv1.VolumeSpec{SizeBytes: 64 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	return v
}
