package volume

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	"github.com/moraine-storage/moraine/agent/cluster/memkv"
	"github.com/moraine-storage/moraine/agent/drive"
	"github.com/moraine-storage/moraine/backends"
	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// Goal: a snapshot taken before the first mount is blank: a volume restored to
// it, and a clone of it, get a file system at the next mount.
func TestBlankSnapshot(t *testing.T) {
	n := newNode(t)
	m := n.manager()
	create(t, m, "a")
	if _, err := m.CreateSnapshot(bg, &apiv1.CreateSnapshotRequest{Volume: "a", Name: "blank"}); err != nil {
		t.Fatal(err)
	}
	mount(t, m, "a", "x")
	n.write(t, "a", 1<<20, 7)
	if _, err := m.CreateSnapshot(bg, &apiv1.CreateSnapshotRequest{Volume: "a", Name: "full"}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.UnmountVolume(bg, &apiv1.UnmountVolumeRequest{Name: "a", Consumer: "x"}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.CloneVolume(bg, &apiv1.CloneVolumeRequest{Source: "a@blank", Name: "c"}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.RestoreSnapshot(bg, &apiv1.RestoreSnapshotRequest{Name: "a@blank"}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "c"} {
		mount(t, m, name, "x")
		if got := n.read(t, name, 1<<20); got != 0 {
			t.Errorf("%s reads %d", name, got)
		}
		if _, err := m.UnmountVolume(bg, &apiv1.UnmountVolumeRequest{Name: name, Consumer: "x"}); err != nil {
			t.Fatal(err)
		}
	}
	made := n.kernel.mkfs
	if _, err := m.RestoreSnapshot(bg, &apiv1.RestoreSnapshotRequest{Name: "a@full"}); err != nil {
		t.Fatal(err)
	}
	mount(t, m, "a", "x")
	if got := n.read(t, "a", 1<<20); got != 7 || n.kernel.mkfs != made {
		t.Errorf("restored to the full snapshot it reads %d, %d file systems more were made", got, n.kernel.mkfs-made)
	}
}

// Goal: an export goes on when somebody unmounts what was never mounted.
func TestUnmountLeavesExport(t *testing.T) {
	n := newNode(t)
	m := n.manager()
	create(t, m, "a")
	if _, err := m.ExportVolume(bg, &apiv1.ExportVolumeRequest{Name: "a"}); err != nil {
		t.Fatal(err)
	}
	for _, force := range []bool{false, true} {
		if _, err := m.UnmountVolume(bg, &apiv1.UnmountVolumeRequest{Name: "a", Consumer: "x", Force: force}); err != nil {
			t.Fatal(err)
		}
	}
	if len(m.sockets()) != 1 {
		t.Error("the export has ended")
	}
	if _, err := m.ExportVolume(bg, &apiv1.ExportVolumeRequest{Name: "a", Stop: true}); err != nil {
		t.Fatal(err)
	}
}

// Goal: deleting a volume while it is being created leaves no replica without
// a record.
func TestDeleteWhileCreating(t *testing.T) {
	n := newNode(t)
	m := n.manager()
	for range 30 {
		var over atomic.Bool
		done := make(chan struct{})
		go func() {
			defer close(done)
			for !over.Load() {
				_, _ = m.DeleteVolume(bg, &apiv1.DeleteVolumeRequest{Name: "a"})
			}
		}()
		_, _ = m.CreateVolume(bg, &apiv1.CreateVolumeRequest{Name: "a", Spec: &apiv1.VolumeSpec{SizeBytes: 64 << 20}})
		over.Store(true)
		<-done
		if _, err := m.DeleteVolume(bg, &apiv1.DeleteVolumeRequest{Name: "a"}); err != nil {
			t.Fatal(err)
		}
	}
	n.noReplicas(t, m, "after all were deleted")
}

// Goal: a request ID used again for another size does not claim that the volume
// has it.
func TestResizeReplay(t *testing.T) {
	n := newNode(t)
	m := n.manager()
	create(t, m, "a")
	resize := func(size int64) error {
		_, err := m.ResizeVolume(bg, &apiv1.ResizeVolumeRequest{Name: "a", SizeBytes: size, RequestId: "r"})
		return err
	}
	for range 2 {
		if err := resize(96 << 20); err != nil {
			t.Fatal(err)
		}
	}
	if err := resize(128 << 20); !errdefs.IsAlreadyExists(err) {
		t.Errorf("another size: %v", err)
	}
}

// Goal: a snapshot that could neither be finished nor be taken back, because the
// cluster store was away, bars nothing on the volume that is still attached.
func TestHalfMadeSnapshot(t *testing.T) {
	n := newNode(t)
	m := n.manager()
	create(t, m, "a")
	mount(t, m, "a", "x")
	for round, next := range []func() error{
		func() error {
			_, err := m.CreateSnapshot(bg, &apiv1.CreateSnapshotRequest{Volume: "a", Name: "s"})
			return err
		},
		func() error { _, err := m.DeleteSnapshot(bg, &apiv1.DeleteSnapshotRequest{Name: "a@s"}); return err },
	} {
		if _, err := m.DeleteSnapshot(bg, &apiv1.DeleteSnapshotRequest{Name: "a@s"}); err != nil {
			t.Fatal(err)
		}
		n.write(t, "a", 1<<20, byte(round+1))
		// Recorded as creating; then neither ready nor gone.
		n.kv.Inject(memkv.Fault{Kind: memkv.Unreachable, Call: memkv.CallTxn, Skip: 1, Count: 2})
		if _, err := m.CreateSnapshot(bg, &apiv1.CreateSnapshotRequest{Volume: "a", Name: "s"}); err == nil {
			t.Fatal("the fault was not met")
		}
		n.write(t, "a", 2<<20, byte(round+7))
		if err := next(); err != nil {
			t.Errorf("call %d: %v", round, err)
		}
		if a, b := n.read(t, "a", 1<<20), n.read(t, "a", 2<<20); a != byte(round+1) || b != byte(round+7) {
			t.Errorf("call %d: read %d and %d", round, a, b)
		}
		v, err := n.recs.Volumes.GetByName(bg, "a")
		if err != nil || len(v.Record.Snapshots) != 1-round {
			t.Errorf("call %d: snapshots %v, %v", round, v.Record.Snapshots, err)
		}
	}
}

// Goal: rule 10: mkfs runs over nothing but blankness and its own remains.
func TestFormatsOnlyWhatIsBlank(t *testing.T) {
	n := newNode(t)
	m := n.manager()
	create(t, m, "raw")
	if _, err := m.AttachVolume(bg, &apiv1.AttachVolumeRequest{Name: "raw"}); err != nil {
		t.Fatal(err)
	}
	n.write(t, "raw", 32<<20, 9) // no signature, both ends zero
	if _, err := m.DetachVolume(bg, &apiv1.DetachVolumeRequest{Name: "raw"}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.MountVolume(bg, &apiv1.MountVolumeRequest{Name: "raw"}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("mount of a volume with raw data: %v", err)
	}
	if n.kernel.mkfs != 0 {
		t.Fatal("it was formatted")
	}
	// mkfs is cut off: the next mount makes it again, unless it was handed out.
	for _, handed := range []bool{false, true} {
		name := fmt.Sprintf("cut-%v", handed)
		create(t, m, name)
		n.kernel.failFS = errdefs.ErrInternal
		if _, err := m.MountVolume(bg, &apiv1.MountVolumeRequest{Name: name}); err == nil {
			t.Fatal("mkfs did not fail")
		}
		if handed {
			if _, err := m.AttachVolume(bg, &apiv1.AttachVolumeRequest{Name: name}); err != nil {
				t.Fatal(err)
			}
			n.write(t, name, 32<<20, 9)
			if _, err := m.DetachVolume(bg, &apiv1.DetachVolumeRequest{Name: name}); err != nil {
				t.Fatal(err)
			}
		}
		_, err := m.MountVolume(bg, &apiv1.MountVolumeRequest{Name: name})
		if handed != (err != nil) {
			t.Errorf("handed out %v: mount: %v", handed, err)
		}
	}
}

// Goal: I/O that fails has the drive looked at now, not at the next tick (which
// never comes here), at each failure and not only at those that make an event.
func TestFailedIOLooksAtDrive(t *testing.T) {
	n := newNode(t)
	n.drives.Start()
	m := n.manager()
	v := create(t, m, "a")
	mount(t, m, "a", "x")
	failed := m.attached(v.Id).sawError()
	for _, why := range []string{"it clicks", "it clicks louder"} {
		n.media.Break(n.drive, backends.StateFailed, why)
		failed(block.OpWrite, block.ErrIO)
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			d := n.drives.List()[0]
			if d.State == drive.Failed && d.Reason == why {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("%s: the drive is %s: %s", why, d.State, d.Reason)
			}
		}
	}
}
