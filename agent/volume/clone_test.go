package volume

import (
	"fmt"
	"testing"

	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	"github.com/moraine-storage/moraine/agent/cluster/memkv"
	recordsv1 "github.com/moraine-storage/moraine/agent/cluster/records/v1"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

func clone(m *Manager, source, name string) error {
	_, err := m.CloneVolume(bg, &apiv1.CloneVolumeRequest{Source: source, Name: name})
	return err
}

func unmount(m *Manager, name string) error {
	_, err := m.UnmountVolume(bg, &apiv1.UnmountVolumeRequest{Name: name, Consumer: "x"})
	return err
}

func remove(m *Manager, name string) error {
	_, err := m.DeleteVolume(bg, &apiv1.DeleteVolumeRequest{Name: name})
	return err
}

// snapshots counts those in the record of a volume, and on its replica.
func (n *node) snapshots(t *testing.T, m *Manager, name string) (recorded, frozen int) {
	t.Helper()
	v, err := n.recs.Volumes.GetByName(bg, name)
	if err != nil {
		t.Fatal(err)
	}
	info, err := m.replicaInfo(member(v.Record))
	if err != nil {
		t.Fatal(err)
	}
	return len(v.Record.Snapshots), len(info.Layers)
}

// Goal: a clone of a volume as it is now has what is in it now, leaves no
// snapshot, and outlives its source, which can be deleted at once; in use or not,
// and also when the name of the snapshot is taken by one that somebody made.
func TestCloneOfNow(t *testing.T) {
	n := newNode(t)
	m := n.manager()
	for round := range 3 {
		create(t, m, "a")
		mount(t, m, "a", "x")
		n.write(t, "a", 1<<20, byte(round+1))
		theirs := 0
		if round == 1 {
			theirs = 1
			if _, err := m.CreateSnapshot(bg, &apiv1.CreateSnapshotRequest{Volume: "a", Name: "clone-c"}); err != nil {
				t.Fatal(err)
			}
		}
		if round == 2 {
			if err := unmount(m, "a"); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 { // repeated, it is the same
			if err := clone(m, "a", "c"); err != nil {
				t.Fatal(err)
			}
		}
		if r, f := n.snapshots(t, m, "a"); r != theirs || f != theirs {
			t.Errorf("round %d: %d snapshots in the record, %d on the drive", round, r, f)
		}
		if round < 2 {
			n.write(t, "a", 1<<20, 99)
			if err := unmount(m, "a"); err != nil {
				t.Fatal(err)
			}
		}
		if theirs > 0 {
			if err := remove(m, "a"); !errdefs.IsFailedPrecondition(err) {
				t.Errorf("a volume with a snapshot was deleted: %v", err)
			}
			if _, err := m.DeleteSnapshot(bg, &apiv1.DeleteSnapshotRequest{Name: "a@clone-c"}); err != nil {
				t.Fatal(err)
			}
		}
		if err := remove(m, "a"); err != nil {
			t.Fatalf("round %d: the source is not free: %v", round, err)
		}
		mount(t, m, "c", "x")
		if got := n.read(t, "c", 1<<20); got != byte(round+1) {
			t.Errorf("clone %d reads %d", round+1, got)
		}
		if err := unmount(m, "c"); err != nil {
			t.Fatal(err)
		}
		if err := remove(m, "c"); err != nil {
			t.Fatal(err)
		}
	}
	n.noReplicas(t, m, "at the end")
}

// Goal: an agent that dies at any step of a clone of now leaves no snapshot and
// no volume that was not promised; repeated, the clone is made; its bytes are
// the source's, which can be deleted, and all space comes back. Method: from the
// k-th transaction on the cluster store is away (nothing can be put in order
// then), and the agent is killed; or only that one fails, or loses its answer.
func TestCloneOfNowCut(t *testing.T) {
	for _, attached := range []bool{true, false} {
		for _, fault := range []memkv.Fault{
			{Kind: memkv.Unreachable},
			{Kind: memkv.Unreachable, Count: 1},
			{Kind: memkv.RequestLost, Count: 1},
			{Kind: memkv.AnswerLost, Count: 1},
		} {
			t.Run(fmt.Sprintf("%v-%d-attached-%v", fault.Kind, fault.Count, attached), func(t *testing.T) {
				t.Parallel()
				for k := range 16 { // detached, a clone is of 13 transactions
					fault.Skip, fault.Call = k, memkv.CallTxn
					cloneCut(t, fault, attached)
				}
			})
		}
	}
}

func cloneCut(t *testing.T, fault memkv.Fault, attached bool) {
	t.Helper()
	n := newNode(t)
	m := n.manager()
	create(t, m, "a")
	mount(t, m, "a", "x")
	n.write(t, "a", 1<<20, 5)
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%v: %s: %v", fault, what, err)
		}
	}
	if !attached {
		must("unmount", unmount(m, "a"))
	}
	n.kv.Inject(fault)
	err := clone(m, "a", "c")
	v, gerr := n.recs.Volumes.GetByName(bg, "c")
	if err == nil && (gerr != nil || v.Record.State != recordsv1.VolumeState_VOLUME_READY) {
		t.Fatalf("%v: promised, but: %v, %v", fault, v.Record, gerr)
	}
	t.Logf("%v: %v", fault, err)
	n.kill(m)
	n.kv.Clear()
	m = n.manager()
	if r, f := n.snapshots(t, m, "a"); r != 0 || f != 0 {
		t.Errorf("%v: after the restart %d snapshots in the record, %d on the drive", fault, r, f)
	}
	v, gerr = n.recs.Volumes.GetByName(bg, "c")
	if gerr == nil && v.Record.State != recordsv1.VolumeState_VOLUME_READY || gerr != nil && (err == nil || !errdefs.IsNotFound(gerr)) {
		t.Errorf("%v: the clone answered %v; after the restart: %v, %v", fault, err, v.Record, gerr)
	}
	must("again", clone(m, "a", "c"))
	if attached {
		n.write(t, "a", 1<<20, 6)
		must("unmount", unmount(m, "a"))
	}
	must("delete the source", remove(m, "a"))
	mount(t, m, "c", "x")
	if got := n.read(t, "c", 1<<20); got != 5 {
		t.Errorf("%v: the clone reads %d", fault, got)
	}
	must("unmount the clone", unmount(m, "c"))
	must("delete the clone", remove(m, "c"))
	n.noReplicas(t, m, fault.String())
	must("close", m.Close(bg))
}
