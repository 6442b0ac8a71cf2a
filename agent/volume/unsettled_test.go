package volume

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	"github.com/moraine-storage/moraine/agent/cluster/memkv"
	recordsv1 "github.com/moraine-storage/moraine/agent/cluster/records/v1"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// change edits a volume's record as nobody should.
func (n *node) change(t *testing.T, name string, fn func(*recordsv1.Volume)) volumeRecord {
	t.Helper()
	v, err := n.recs.Volumes.GetByName(bg, name)
	if err != nil {
		t.Fatal(err)
	}
	fn(v.Record)
	if v, err = n.recs.Volumes.Update(bg, v); err != nil {
		t.Fatal(err)
	}
	return v
}

func (n *node) attachment(id string) string {
	return filepath.Join(n.dir, "data", "attachments", id+".json")
}

// everyCall are the calls that attach, use or give up a volume.
func everyCall(m *Manager, name string) map[string]func() error {
	return map[string]func() error{
		"attach": func() error { _, err := m.AttachVolume(bg, &apiv1.AttachVolumeRequest{Name: name}); return err },
		"mount": func() error {
			_, err := m.MountVolume(bg, &apiv1.MountVolumeRequest{Name: name, Consumer: "y"})
			return err
		},
		"unmount": func() error {
			_, err := m.UnmountVolume(bg, &apiv1.UnmountVolumeRequest{Name: name, Consumer: "x"})
			return err
		},
		"detach": func() error { _, err := m.DetachVolume(bg, &apiv1.DetachVolumeRequest{Name: name}); return err },
		"export": func() error { _, err := m.ExportVolume(bg, &apiv1.ExportVolumeRequest{Name: name}); return err },
		"unexport": func() error {
			_, err := m.ExportVolume(bg, &apiv1.ExportVolumeRequest{Name: name, Stop: true})
			return err
		},
		"snapshot": func() error { _, err := m.CreateSnapshot(bg, &apiv1.CreateSnapshotRequest{Volume: name}); return err },
		"resize": func() error {
			_, err := m.ResizeVolume(bg, &apiv1.ResizeVolumeRequest{Name: name, SizeBytes: 96 << 20})
			return err
		},
	}
}

// Goal: rule 12 and 0001 4.1.4: while a device waits for its drive, no call makes
// a second device, ends the session that the device may go on in, or says that
// something was unmounted. When the drive is back, a call finds the old device.
func TestWaitingDeviceIsLeftAlone(t *testing.T) {
	n := newNode(t)
	m := n.manager()
	id := create(t, m, "a").Id
	mount(t, m, "a", "x")
	n.write(t, "a", 1<<20, 7)
	n.kill(m)
	var drive string
	n.change(t, "a", func(r *recordsv1.Volume) {
		drive, r.Groups[0].Members[0].DriveId = r.Groups[0].Members[0].DriveId, "00000000000000000000000000000001"
	})
	file, err := os.ReadFile(n.attachment(id))
	if err != nil {
		t.Fatal(err)
	}
	m = n.manager()
	before, err := n.recs.Volumes.GetByName(bg, "a")
	if err != nil {
		t.Fatal(err)
	}
	for what, call := range everyCall(m, "a") {
		if err := call(); !errors.Is(err, errdefs.ErrUnavailable) {
			t.Errorf("%s: %v", what, err)
		}
		now, err := os.ReadFile(n.attachment(id))
		if err != nil || !bytes.Equal(now, file) {
			t.Fatalf("after %s the attachment file is %s, %v", what, now, err)
		}
	}
	v := n.change(t, "a", func(r *recordsv1.Volume) { r.Groups[0].Members[0].DriveId = drive })
	if v.Record.Epoch.N != before.Record.Epoch.N {
		t.Errorf("waiting used up %d epochs", v.Record.Epoch.N-before.Record.Epoch.N)
	}
	mount(t, m, "a", "y")
	if got := n.read(t, "a", 1<<20); got != 7 {
		t.Errorf("read %d", got)
	}
	for _, who := range []string{"x", "y"} {
		if _, err := m.UnmountVolume(bg, &apiv1.UnmountVolumeRequest{Name: "a", Consumer: who}); err != nil {
			t.Fatal(err)
		}
	}
	n.nothingLeft(t)
}

// Goal: a device that waits can be given up by force, and the volume is free then.
func TestGiveUpByForce(t *testing.T) {
	n := newNode(t)
	m := n.manager()
	create(t, m, "a")
	mount(t, m, "a", "x")
	n.kill(m)
	// A limit that no data path takes: the device cannot be served.
	n.change(t, "a", func(r *recordsv1.Volume) { r.Spec.MaxIops = -1 })
	m = n.manager()
	if _, err := m.DetachVolume(bg, &apiv1.DetachVolumeRequest{Name: "a"}); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("detach: %v", err)
	}
	if _, err := m.DetachVolume(bg, &apiv1.DetachVolumeRequest{Name: "a", Force: true}); err != nil {
		t.Fatal(err)
	}
	n.nothingLeft(t)
	if _, err := m.DeleteVolume(bg, &apiv1.DeleteVolumeRequest{Name: "a"}); err != nil {
		t.Error(err)
	}
}

// Goal: a device whose data path cannot be opened at a restart is neither
// forgotten nor detached: the next attempt serves it.
func TestDataPathFailsAtRestart(t *testing.T) {
	n := newNode(t)
	m := n.manager()
	create(t, m, "a")
	mount(t, m, "a", "x")
	n.write(t, "a", 1<<20, 7)
	n.kill(m)
	n.change(t, "a", func(r *recordsv1.Volume) { r.Spec.MaxIops = -1 })
	m = n.manager()
	v := n.change(t, "a", func(r *recordsv1.Volume) { r.Spec.MaxIops = 0 })
	if v.Record.Primary == nil || len(v.Record.Attachments) != 1 {
		t.Fatalf("the record lost the attachment: %v", v.Record)
	}
	n.kill(m)
	m = n.manager()
	if got := n.read(t, "a", 1<<20); got != 7 {
		t.Errorf("read %d", got)
	}
	if _, err := m.UnmountVolume(bg, &apiv1.UnmountVolumeRequest{Name: "a", Consumer: "x"}); err != nil {
		t.Fatal(err)
	}
	n.nothingLeft(t)
}

// Goal: LiveDeviceLossySet: a device that may not go on is not served at the
// next attempt either, when removing it failed at the first.
func TestDeadDeviceStaysDead(t *testing.T) {
	n := newNode(t)
	m := n.manager()
	create(t, m, "a")
	mount(t, m, "a", "x")
	n.write(t, "a", 1<<20, 7)
	n.kill(m)
	n.change(t, "a", func(r *recordsv1.Volume) { r.Groups[0].Members[0].LossId = "0000000000000001" })
	n.kernel.failCleanup = errors.New("the device does not go")
	m = n.manager()
	if n.try("a", func(blockDevice) error { return nil }) == nil {
		t.Fatal("the dead device is served")
	}
	n.kill(m)
	m = n.manager()
	if n.try("a", func(blockDevice) error { return nil }) == nil {
		t.Error("the dead device is served by the second agent")
	}
	n.nothingLeft(t)
	if v, err := m.GetVolume(bg, &apiv1.GetVolumeRequest{Name: "a"}); err != nil || v.State != apiv1.VolumeState_DETACHED {
		t.Errorf("%v, %v", v, err)
	}
}

// Goal: a device that is served is not recovered a second time because the
// record could not be brought in line with it.
func TestServedIsNotRecoveredAgain(t *testing.T) {
	n := newNode(t)
	m := n.manager()
	id := create(t, m, "a").Id
	mount(t, m, "a", "x")
	n.kill(m)
	n.kv.Inject(memkv.Fault{Kind: memkv.Unreachable, Call: memkv.CallTxn, Skip: 2, Count: 1})
	m = n.manager()
	l := m.attached(id)
	if l == nil {
		t.Fatal("not served")
	}
	if !m.tryRecover(bg, l.file) || m.attached(id) != l {
		t.Error("recovered twice")
	}
	n.write(t, "a", 1<<20, 7)
}

// Goal: an attachment file of another version is left alone, with the device
// and the record that belong to it.
func TestUnreadableAttachmentIsLeftAlone(t *testing.T) {
	n := newNode(t)
	m := n.manager()
	id := create(t, m, "a").Id
	mount(t, m, "a", "x")
	n.write(t, "a", 1<<20, 7)
	n.kill(m)
	file, err := os.ReadFile(n.attachment(id))
	if err != nil {
		t.Fatal(err)
	}
	newer := bytes.Replace(file, []byte(`"version": 1`), []byte(`"version": 2`), 1)
	if err := os.WriteFile(n.attachment(id), newer, 0o600); err != nil {
		t.Fatal(err)
	}
	m = n.manager()
	for what, call := range everyCall(m, "a") {
		if err := call(); !errors.Is(err, errdefs.ErrUnavailable) {
			t.Errorf("%s: %v", what, err)
		}
	}
	n.kill(m)
	if err := os.WriteFile(n.attachment(id), file, 0o600); err != nil {
		t.Fatal(err)
	}
	n.manager() // of the version that understands it
	if got := n.read(t, "a", 1<<20); got != 7 {
		t.Errorf("read %d", got)
	}
}

// Goal: a session that could not be ended when its work was done does not keep
// a volume from being detached and deleted without a restart.
func TestLeftoverSessionCanBeDetached(t *testing.T) {
	n := newNode(t)
	m := n.manager()
	create(t, m, "a")
	// Record of the snapshot, primary, active, ready; then the end of the session.
	n.kv.Inject(memkv.Fault{Kind: memkv.Unreachable, Call: memkv.CallTxn, Skip: 4, Count: 1})
	if _, err := m.CreateSnapshot(bg, &apiv1.CreateSnapshotRequest{Volume: "a", Name: "s"}); err == nil {
		t.Fatal("the fault was not met")
	}
	if _, err := m.DetachVolume(bg, &apiv1.DetachVolumeRequest{Name: "a"}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.DeleteVolume(bg, &apiv1.DeleteVolumeRequest{Name: "a", WithSnapshots: true}); err != nil {
		t.Error(err)
	}
}

// Goal: an agent that has let go of its volumes takes none on, and does not
// claim that what stays attached was detached.
func TestCallsAfterClose(t *testing.T) {
	n := newNode(t)
	m := n.manager()
	create(t, m, "a")
	create(t, m, "b")
	mount(t, m, "a", "x")
	if err := m.Close(bg); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b"} {
		for what, call := range everyCall(m, name) {
			err := call()
			if name == "b" && (what == "detach" || what == "unmount" || what == "unexport") {
				continue // nothing to do, whoever is asked
			}
			if !errors.Is(err, errdefs.ErrUnavailable) {
				t.Errorf("%s %s: %v", what, name, err)
			}
		}
	}
}
