package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	"github.com/moraine-storage/moraine/agent/cluster/memkv"
	"github.com/moraine-storage/moraine/agent/cluster/records"
	recordsv1 "github.com/moraine-storage/moraine/agent/cluster/records/v1"
	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/store"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

var bg = context.Background()

func mount(t *testing.T, m *Manager, name, who string) string {
	t.Helper()
	r, err := m.MountVolume(bg, &apiv1.MountVolumeRequest{Name: name, Consumer: who})
	if err != nil {
		t.Fatal(err)
	}
	return r.Path
}

func fill(b byte) []byte { return bytes.Repeat([]byte{b}, 8192) }

func (n *node) write(t *testing.T, name string, off int64, b byte) {
	t.Helper()
	if err := n.try(name, func(d blockDevice) error { return d.WriteAt(bg, fill(b), off, 0) }); err != nil {
		t.Fatalf("write: %v", err)
	}
}

func (n *node) read(t *testing.T, name string, off int64) byte {
	t.Helper()
	p := make([]byte, 8192)
	if err := n.try(name, func(d blockDevice) error { return d.ReadAt(bg, p, off) }); err != nil {
		t.Fatalf("read: %v", err)
	}
	if !bytes.Equal(p, fill(p[0])) {
		t.Fatalf("a torn block at %d", off)
	}
	return p[0]
}

type blockDevice interface {
	ReadAt(ctx context.Context, p []byte, off int64) error
	WriteAt(ctx context.Context, p []byte, off int64, f block.Flags) error
}

// try uses the device of a volume, whatever record of it there is.
func (n *node) try(name string, f func(blockDevice) error) error {
	v, err := n.recs.Volumes.GetByName(bg, name)
	if err != nil {
		return err
	}
	d, err := n.kernel.device((&fakeDriver{}).path(v.Record.Id))
	if err != nil {
		return err
	}
	return f(d)
}

// Goal: SigkillKeepsAcks at the level of the agent: a device outlives ten
// killed agents, everything answered is there, counts of consumers too.
func TestDeviceOutlivesAgents(t *testing.T) {
	n := newNode(t)
	m := n.manager()
	create(t, m, "a")
	path := mount(t, m, "a", "docker:1")
	mount(t, m, "a", "docker:2")
	for i := range 10 {
		n.write(t, "a", int64(i)<<20, byte(i+1))
		n.kill(m)
		m = n.manager()
		for j := range i + 1 {
			if got := n.read(t, "a", int64(j)<<20); got != byte(j+1) {
				t.Fatalf("after kill %d: block %d is %d", i, j, got)
			}
		}
	}
	v, err := m.GetVolume(bg, &apiv1.GetVolumeRequest{Name: "a"})
	if err != nil {
		t.Fatal(err)
	}
	if len(v.Attachments) != 1 || len(v.Attachments[0].Consumers) != 2 || v.Attachments[0].Path != path || v.Attachments[0].State != "ready" {
		t.Errorf("attachments: %v", v.Attachments)
	}
	for _, who := range []string{"docker:1", "docker:2"} {
		if _, err := m.UnmountVolume(bg, &apiv1.UnmountVolumeRequest{Name: "a", Consumer: who}); err != nil {
			t.Fatal(err)
		}
	}
	n.nothingLeft(t)
	if n.kernel.mkfs != 1 {
		t.Errorf("made %d file systems", n.kernel.mkfs)
	}
}

// nothingLeft checks that no device, mount or attachment file is left.
func (n *node) nothingLeft(t *testing.T) {
	t.Helper()
	n.kernel.mu.Lock()
	defer n.kernel.mu.Unlock()
	if len(n.kernel.devices)+len(n.kernel.mounts) > 0 {
		t.Errorf("left behind: devices %v, mounts %v", n.kernel.devices, n.kernel.mounts)
	}
	files, err := os.ReadDir(filepath.Join(n.dir, "data", "attachments"))
	if err != nil || len(files) > 0 {
		t.Errorf("attachment files %v, %v", files, err)
	}
}

// Goal: an orderly stop leaves the device (rule 12), and the next agent serves it.
func TestStopLeavesDevices(t *testing.T) {
	n := newNode(t)
	m := n.manager()
	create(t, m, "a")
	mount(t, m, "a", "x")
	n.write(t, "a", 1<<20, 7)
	if err := m.Close(bg); err != nil {
		t.Fatal(err)
	}
	if n.try("a", func(blockDevice) error { return nil }) == nil {
		t.Error("the device is served by nobody, and yet answers")
	}
	m = n.manager()
	if got := n.read(t, "a", 1<<20); got != 7 {
		t.Errorf("read %d", got)
	}
	if _, err := m.UnmountVolume(bg, &apiv1.UnmountVolumeRequest{Name: "a", Consumer: "x"}); err != nil {
		t.Fatal(err)
	}
	n.nothingLeft(t)
}

// Goal: a mount that came to its end after the next agent had looked for it does
// not keep the volume from being detached, neither by the agent after that nor
// by a call.
func TestLateMount(t *testing.T) {
	for _, restart := range []bool{true, false} {
		n := newNode(t)
		m := n.manager()
		v := create(t, m, "a")
		mount(t, m, "a", "x")
		l := m.attached(v.Id)
		l.file.Mount = ""
		if err := m.files.save(l.file); err != nil {
			t.Fatal(err)
		}
		if restart {
			rec, err := n.recs.Volumes.GetByName(bg, "a")
			if err != nil {
				t.Fatal(err)
			}
			attachmentOf(rec.Record, n.id).Consumers = nil
			if _, err := n.recs.Volumes.Update(bg, rec); err != nil {
				t.Fatal(err)
			}
			n.kill(m)
			m = n.manager()
		} else if err := unmount(m, "a"); err != nil {
			t.Fatal(err)
		}
		n.nothingLeft(t)
		if err := remove(m, "a"); err != nil {
			t.Error(err)
		}
	}
}

// Goal: StaleDeviceReattach in the small (0001, 4.1.4): a device that outlived
// its mirror is removed, not served, when another primary has been active.
func TestStaleDeviceIsNotServed(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(r *recordsv1.Volume)
	}{
		{"another was active and detached", func(r *recordsv1.Volume) { r.Primary = nil; r.Active += 2; r.Epoch.N += 2 }},
		{"another was active in this node's name", func(r *recordsv1.Volume) { r.Active += 2; r.Epoch.N += 2 }},
		{"another is primary", func(r *recordsv1.Volume) {
			r.Primary = &recordsv1.Primary{NodeId: string(records.NewID()), Session: "s"}
			r.Epoch.N++
		}},
		{"all replicas lost power", func(r *recordsv1.Volume) { r.Groups[0].Members[0].LossId = "0000000000000001" }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t)
			m := n.manager()
			create(t, m, "a")
			mount(t, m, "a", "x")
			n.kill(m)
			v, err := n.recs.Volumes.GetByName(bg, "a")
			if err != nil {
				t.Fatal(err)
			}
			tt.change(v.Record)
			wantPrimary := v.Record.Primary != nil && v.Record.Primary.NodeId != n.id
			// A drive that promised less than the record's active epoch came back
			// older; promise what the other primary would have.
			if v.Record.Active > 2 && tt.name != "all replicas lost power" {
				n.promise(t, v.Record)
			}
			if _, err := n.recs.Volumes.Update(bg, v); err != nil {
				t.Fatal(err)
			}
			n.manager()
			n.kernel.mu.Lock()
			left := len(n.kernel.devices) + len(n.kernel.mounts)
			n.kernel.mu.Unlock()
			if left > 0 {
				t.Errorf("stale device or mount is still there: %v %v", n.kernel.devices, n.kernel.mounts)
			}
			now, err := n.recs.Volumes.GetByName(bg, "a")
			if err != nil {
				t.Fatal(err)
			}
			if (now.Record.Primary != nil) != wantPrimary {
				t.Errorf("primary is %v", now.Record.Primary)
			}
		})
	}
}

// promise makes the replica promise the record's active epoch.
func (n *node) promise(t *testing.T, r *recordsv1.Volume) {
	t.Helper()
	m := n.managerUnstarted()
	mem := member(r)
	if err := m.withReplica(mem, promiseTo(r.Active)); err != nil {
		t.Fatal(err)
	}
}

func promiseTo(active uint64) func(*store.Replica) error {
	return func(r *store.Replica) error {
		_, err := r.Promote(bg, store.Promise{Promised: store.Promised{Epoch: store.Epoch{N: active, Tag: 1}, Session: store.SessionID{1}}})
		return err
	}
}

// Goal: a drive that came back older than the record is not used without a
// person's word, and the device waits.
func TestDriveRolledBack(t *testing.T) {
	n := newNode(t)
	m := n.manager()
	create(t, m, "a")
	v, err := n.recs.Volumes.GetByName(bg, "a")
	if err != nil {
		t.Fatal(err)
	}
	v.Record.Active, v.Record.Epoch.N = 50, 50
	if _, err := n.recs.Volumes.Update(bg, v); err != nil {
		t.Fatal(err)
	}
	_, err = m.AttachVolume(bg, &apiv1.AttachVolumeRequest{Name: "a"})
	if !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("attach: %v", err)
	}
	now, err := n.recs.Volumes.GetByName(bg, "a")
	if err != nil {
		t.Fatal(err)
	}
	if now.Record.Primary != nil || now.Record.Active != 50 {
		t.Errorf("record after the refusal: primary %v, active %d", now.Record.Primary, now.Record.Active)
	}
}

// Goal: whatever the cluster store does to any one call of any operation
// (unreachable, request lost, answer lost), and an agent killed after it, the
// operation can be repeated, no data is lost, and nothing is left behind.
// Method: the same script with a fault at the k-th transaction, for every k.
func TestStoreFaultAtEveryStep(t *testing.T) {
	for _, kind := range []memkv.FaultKind{memkv.Unreachable, memkv.RequestLost, memkv.AnswerLost} {
		t.Run(kind.String(), func(t *testing.T) {
			for k := range 28 {
				storeFault(t, kind, k)
			}
		})
	}
}

func storeFault(t *testing.T, kind memkv.FaultKind, k int) {
	n := newNode(t)
	m := n.manager()
	n.kv.Inject(memkv.Fault{Kind: kind, Call: memkv.CallTxn, Skip: k, Count: 1})
	again := func(what string, f func() error) {
		t.Helper()
		for try := 0; ; try++ {
			err := f()
			if err == nil {
				return
			}
			if try == 2 {
				t.Fatalf("%v at %d: %s does not succeed: %v", kind, k, what, err)
			}
			n.kill(m)
			m = n.manager()
		}
	}
	spec := &apiv1.VolumeSpec{SizeBytes: 64 << 20}
	again("create", func() error {
		_, err := m.CreateVolume(bg, &apiv1.CreateVolumeRequest{Name: "a", Spec: spec})
		return err
	})
	again("mount", func() error {
		_, err := m.MountVolume(bg, &apiv1.MountVolumeRequest{Name: "a", Consumer: "x"})
		return err
	})
	n.write(t, "a", 1<<20, 5)
	again("snapshot", func() error {
		_, err := m.CreateSnapshot(bg, &apiv1.CreateSnapshotRequest{Volume: "a", Name: "s"})
		return err
	})
	n.write(t, "a", 1<<20, 6)
	again("resize", func() error {
		_, err := m.ResizeVolume(bg, &apiv1.ResizeVolumeRequest{Name: "a", SizeBytes: 96 << 20})
		return err
	})
	again("clone", func() error {
		_, err := m.CloneVolume(bg, &apiv1.CloneVolumeRequest{Source: "a@s", Name: "c"})
		return err
	})
	if got := n.read(t, "a", 1<<20); got != 6 {
		t.Fatalf("%v at %d: the volume reads %d", kind, k, got)
	}
	again("mount clone", func() error {
		_, err := m.MountVolume(bg, &apiv1.MountVolumeRequest{Name: "c", Consumer: "x"})
		return err
	})
	if got := n.read(t, "c", 1<<20); got != 5 {
		t.Fatalf("%v at %d: the clone reads %d", kind, k, got)
	}
	for _, name := range []string{"a", "c"} {
		again("unmount "+name, func() error {
			_, err := m.UnmountVolume(bg, &apiv1.UnmountVolumeRequest{Name: name, Consumer: "x"})
			return err
		})
	}
	again("delete snapshot", func() error { _, err := m.DeleteSnapshot(bg, &apiv1.DeleteSnapshotRequest{Name: "a@s"}); return err })
	for _, name := range []string{"a", "c"} {
		again("delete "+name, func() error { _, err := m.DeleteVolume(bg, &apiv1.DeleteVolumeRequest{Name: name}); return err })
	}
	n.kill(m)
	m = n.manager() // buries what was left
	n.nothingLeft(t)
	n.noReplicas(t, m, fmt.Sprintf("%v at %d", kind, k))
	if err := m.Close(bg); err != nil {
		t.Error(err)
	}
}

func (n *node) noReplicas(t *testing.T, m *Manager, when string) {
	t.Helper()
	for _, d := range n.drives.List() {
		if rs := m.replicasOn(d); len(rs) > 0 {
			t.Errorf("%s: %d replicas are left", when, len(rs))
		}
		s, release, err := n.drives.Acquire(d.ID)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(bg, time.Minute)
		if err := s.WaitIdle(ctx); err != nil {
			t.Error(err)
		}
		cancel()
		if used := s.Info().Used; used != 0 {
			t.Errorf("%s: %d bytes are still allocated", when, used)
		}
		release()
	}
}

// Goal: TombstoneOnly: a replica whose record is missing stays; with a
// tombstone it goes at the next start.
func TestTombstoneOnly(t *testing.T) {
	n := newNode(t)
	m := n.manager()
	v := create(t, m, "a")
	rec, err := n.recs.Volumes.GetByName(bg, "a")
	if err != nil {
		t.Fatal(err)
	}
	if err := n.recs.Volumes.Delete(bg, rec); err != nil {
		t.Fatal(err)
	}
	n.kill(m)
	m = n.manager()
	if rs := m.replicasOn(n.drives.List()[0]); len(rs) != 1 {
		t.Fatalf("%d replicas after the record was lost", len(rs))
	}
	_, err = n.recs.Tombstones.Create(bg, &recordsv1.Tombstone{Id: v.Replicas[0].Id, VolumeId: v.Id, DriveId: v.Replicas[0].DriveId})
	if err != nil {
		t.Fatal(err)
	}
	n.kill(m)
	m = n.manager()
	n.noReplicas(t, m, "with a tombstone")
}

// Goal: bad attachment files are reported and left alone, never a panic.
func TestBadAttachmentFiles(t *testing.T) {
	n := newNode(t)
	dir := filepath.Join(n.dir, "data", "attachments")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"x.json": "{", "y.json": `{"version":99}`, "z.json": `{"version":1,"volume":"q","kind":"block"}`, "w.json": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	n.manager()
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 4 {
		t.Errorf("%d files left, %v", len(left), err)
	}
}

func FuzzAttachFile(f *testing.F) {
	f.Add([]byte(`{"version":1,"volume":"00","kind":"block","sessions":[{"n":1,"session":"x"}],"driver":{"version":1,"kind":"loop","step":"ready"}}`))
	f.Add([]byte(`{`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, err := parseAttachFile(b); err == nil {
			a.ownSessions()
			gone(a)
		}
	})
}

// Goal: a drive without its store keeps the volume waiting, and the agent up.
func TestMissingDrive(t *testing.T) {
	n := newNode(t)
	m := n.manager()
	create(t, m, "a")
	rec, err := n.recs.Volumes.GetByName(bg, "a")
	if err != nil {
		t.Fatal(err)
	}
	rec.Record.Groups[0].Members[0].DriveId = fmt.Sprintf("%032x", rand.Uint64())
	if _, err := n.recs.Volumes.Update(bg, rec); err != nil {
		t.Fatal(err)
	}
	_, err = m.AttachVolume(bg, &apiv1.AttachVolumeRequest{Name: "a"})
	if !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("attach: %v", err)
	}
	v, err := m.GetVolume(bg, &apiv1.GetVolumeRequest{Name: "a"})
	if err != nil || len(v.Conditions) == 0 {
		t.Errorf("no condition says that the replica is away: %v %v", v, err)
	}
}

// Goal: a diff to the volume as it is now, while it is attached and written,
// shows just what changed since the snapshot, and costs no space afterwards.
func TestDiffWhileAttached(t *testing.T) {
	n := newNode(t)
	m := n.manager()
	create(t, m, "a")
	mount(t, m, "a", "x")
	n.write(t, "a", 1<<20, 1)
	n.write(t, "a", 9<<20, 1)
	if _, err := m.CreateSnapshot(bg, &apiv1.CreateSnapshotRequest{Volume: "a", Name: "s"}); err != nil {
		t.Fatal(err)
	}
	for round := range 5 {
		n.write(t, "a", 1<<20, byte(round+2))
		var got []*apiv1.DiffExtents_Extent
		err := m.DiffSnapshot(bg, &apiv1.DiffSnapshotRequest{From: "a@s", To: "a"}, func(d *apiv1.DiffExtents) error {
			got = append(got, d.Extents...)
			return nil
		})
		if err != nil || len(got) != 1 || got[0].Offset != 1<<20 || got[0].Length != 64<<10 || got[0].Hole {
			t.Fatalf("round %d: %v %v", round, got, err)
		}
	}
	if b := n.read(t, "a", 1<<20); b != 6 {
		t.Errorf("read %d", b)
	}
	s, release, err := n.drives.Acquire(n.drives.List()[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	if err := s.Flush(bg); err != nil {
		t.Fatal(err)
	}
	if err := s.WaitIdle(bg); err != nil {
		t.Fatal(err)
	}
	if used := s.Info().Used; used != 4*64<<10 { // superblock of the file system, two blocks, one changed
		t.Errorf("%d bytes are allocated", used)
	}
}
