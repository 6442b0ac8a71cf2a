package apitest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

func (s *suite) listPages() {
	want := map[string]bool{}
	for i := range 5 {
		want[s.create(fmt.Sprint(i)).Name] = true
	}
	labelled := s.name("labelled")
	s.removeLater(labelled)
	_, err := s.CreateVolume(s.ctx, &apiv1.CreateVolumeRequest{Name: labelled, Spec: &apiv1.VolumeSpec{
		SizeBytes: 64 << 20, Labels: map[string]string{"app": "db", "suite": s.prefix},
	}})
	s.ok("create with labels", err)
	want[labelled] = true
	seen := map[string]bool{}
	token := ""
	for pages := 0; ; pages++ {
		if pages > 1000 {
			s.Fatal("pages do not end")
		}
		r, err := s.ListVolumes(s.ctx, &apiv1.ListVolumesRequest{PageSize: 2, PageToken: token})
		if !s.ok("list a page", err) {
			return
		}
		if len(r.Volumes) > 2 {
			s.Errorf("a page of 2 has %d", len(r.Volumes))
		}
		for _, v := range r.Volumes {
			if seen[v.Name] {
				s.Errorf("%s is on two pages", v.Name)
			}
			seen[v.Name] = true
		}
		if token = r.NextPageToken; token == "" {
			break
		}
	}
	for n := range want {
		if !seen[n] {
			s.Errorf("%s is on no page", n)
		}
	}
	r, err := s.ListVolumes(s.ctx, &apiv1.ListVolumesRequest{Labels: map[string]string{"suite": s.prefix}})
	if s.ok("list by label", err) && (len(r.Volumes) != 1 || r.Volumes[0].Name != labelled) {
		s.Errorf("list by label gives %d volumes", len(r.Volumes))
	}
	_, err = s.ListVolumes(s.ctx, &apiv1.ListVolumesRequest{PageSize: -1})
	s.want("list pages of -1", err, errdefs.ErrInvalidArgument, errdefs.ErrOutOfRange)
}

func (s *suite) update() {
	v := s.create("a")
	iops, bad := int64(500), int64(-1)
	u, err := s.UpdateVolume(s.ctx, &apiv1.UpdateVolumeRequest{
		Name: v.Name, MaxIops: &iops, SetLabels: map[string]string{"a": "1", "b": "2"},
	})
	if s.ok("update", err) && (u.Spec.MaxIops != 500 || u.Spec.Labels["b"] != "2") {
		s.Errorf("after the update: %v", u.Spec)
	}
	u, err = s.UpdateVolume(s.ctx, &apiv1.UpdateVolumeRequest{Name: v.Name, RemoveLabels: []string{"a", "never-was"}})
	if s.ok("remove a label", err) {
		if _, there := u.Spec.Labels["a"]; there || u.Spec.MaxIops != 500 || u.Spec.Labels["b"] != "2" {
			s.Errorf("after removing a label: %v", u.Spec)
		}
	}
	_, err = s.UpdateVolume(s.ctx, &apiv1.UpdateVolumeRequest{Name: v.Name, MaxIops: &bad})
	s.want("update with negative iops", err, errdefs.ErrInvalidArgument, errdefs.ErrOutOfRange)
}

func (s *suite) resize() {
	v := s.create("a")
	r, err := s.ResizeVolume(s.ctx, &apiv1.ResizeVolumeRequest{Name: v.Name, SizeBytes: 128 << 20})
	if s.ok("grow", err) && r.Spec.SizeBytes != 128<<20 {
		s.Errorf("size is %d after growing to %d", r.Spec.SizeBytes, 128<<20)
	}
	r, err = s.ResizeVolume(s.ctx, &apiv1.ResizeVolumeRequest{Name: v.Name, SizeBytes: 128 << 20})
	if s.ok("grow to the same size", err) && r.Spec.SizeBytes != 128<<20 {
		s.Errorf("size is %d", r.Spec.SizeBytes)
	}
	_, err = s.ResizeVolume(s.ctx, &apiv1.ResizeVolumeRequest{Name: v.Name, SizeBytes: 64 << 20})
	s.want("shrink", err, errdefs.ErrOutOfRange)
	for _, bad := range []int64{-1, 1 << 60} {
		_, err = s.ResizeVolume(s.ctx, &apiv1.ResizeVolumeRequest{Name: v.Name, SizeBytes: bad})
		s.want(fmt.Sprintf("resize to %d", bad), err, errdefs.ErrOutOfRange, errdefs.ErrInvalidArgument)
	}
	if g, err := s.GetVolume(s.ctx, &apiv1.GetVolumeRequest{Name: v.Name}); s.ok("get", err) && g.Spec.SizeBytes != 128<<20 {
		s.Errorf("size is %d after refused calls", g.Spec.SizeBytes)
	}
}

func (s *suite) snapshots() {
	v := s.create("a")
	a, err := s.CreateSnapshot(s.ctx, &apiv1.CreateSnapshotRequest{Volume: v.Name, Name: "one", Labels: map[string]string{"k": "v"}})
	if !s.ok("create", err) {
		return
	}
	if a.Volume != v.Name || a.Name != "one" || a.SizeBytes != v.Spec.SizeBytes || a.Labels["k"] != "v" || len(a.Id) != 32 {
		s.Errorf("the new snapshot is %v", a)
	}
	again, err := s.CreateSnapshot(s.ctx, &apiv1.CreateSnapshotRequest{Volume: v.Name, Name: "one", Labels: map[string]string{"k": "v"}})
	if s.ok("create again", err) && again.Id != a.Id {
		s.Errorf("create again made %s, there was %s", again.Id, a.Id)
	}
	auto, err := s.CreateSnapshot(s.ctx, &apiv1.CreateSnapshotRequest{Volume: v.Name})
	if s.ok("create without a name", err) && (auto.Name == "" || auto.Id == a.Id) {
		s.Errorf("the snapshot without a name is %v", auto)
	}
	l, err := s.ListSnapshots(s.ctx, &apiv1.ListSnapshotsRequest{Volume: v.Name})
	if s.ok("list", err) && (len(l.Snapshots) != 2 || l.Snapshots[0].Name != "one") {
		s.Errorf("list gives %v, want one and %s", l.Snapshots, auto.GetName())
	}
	if g, err := s.GetSnapshot(s.ctx, &apiv1.GetSnapshotRequest{Name: v.Name + "@one"}); s.ok("get", err) && g.Id != a.Id {
		s.Errorf("get gives %s", g.Id)
	}
	if g, err := s.GetVolume(s.ctx, &apiv1.GetVolumeRequest{Name: v.Name}); s.ok("get volume", err) && g.Snapshots != 2 {
		s.Errorf("the volume says %d snapshots", g.Snapshots)
	}
	for _, bad := range []string{"", "@", v.Name, v.Name + "@", "@one"} {
		_, err := s.GetSnapshot(s.ctx, &apiv1.GetSnapshotRequest{Name: bad})
		s.want(fmt.Sprintf("get %q", bad), err, errdefs.ErrInvalidArgument)
	}
	_, err = s.RestoreSnapshot(s.ctx, &apiv1.RestoreSnapshotRequest{Name: v.Name + "@one"})
	s.ok("restore", err)
	for _, existed := range []bool{true, false} {
		r, err := s.DeleteSnapshot(s.ctx, &apiv1.DeleteSnapshotRequest{Name: v.Name + "@one"})
		if s.ok("delete", err) && r.Existed != existed {
			s.Errorf("delete says existed %v, want %v", r.Existed, existed)
		}
	}
	_, err = s.GetSnapshot(s.ctx, &apiv1.GetSnapshotRequest{Name: v.Name + "@one"})
	s.want("get what was deleted", err, errdefs.ErrNotFound)
}

// extents collects a diff.
func (s *suite) extents(from, to string) []*apiv1.DiffExtents_Extent {
	s.Helper()
	var all []*apiv1.DiffExtents_Extent
	err := s.DiffSnapshot(s.ctx, &apiv1.DiffSnapshotRequest{From: from, To: to}, func(d *apiv1.DiffExtents) error {
		all = append(all, d.Extents...)
		return nil
	})
	s.ok(fmt.Sprintf("diff %q %q", from, to), err)
	end := int64(0)
	for _, e := range all {
		if e.Offset < end || e.Length <= 0 {
			s.Errorf("diff %q %q: extent %d+%d after %d", from, to, e.Offset, e.Length, end)
		}
		end = e.Offset + e.Length
	}
	return all
}

func (s *suite) diff() {
	v := s.create("a")
	snap := func(n string) string {
		_, err := s.CreateSnapshot(s.ctx, &apiv1.CreateSnapshotRequest{Volume: v.Name, Name: n})
		s.ok("snapshot "+n, err)
		return v.Name + "@" + n
	}
	one := snap("one")
	if d := s.extents(one, one); len(d) != 0 {
		s.Errorf("a snapshot differs from itself: %v", d)
	}
	if s.h.Write != nil {
		s.h.Write(s.T, s.Service, v.Name, 1<<20, extentBytes)
		for off := int64(4 << 20); off < 5<<20; off += 2 * extentBytes {
			s.h.Write(s.T, s.Service, v.Name, off, extentBytes)
		}
	}
	two := snap("two")
	if s.h.Write != nil {
		d := s.extents(one, two)
		if len(d) != 9 || d[0].Offset != 1<<20 || d[0].Length != extentBytes || d[0].Hole {
			s.Errorf("diff after nine writes: %v", d)
		}
		if full := s.extents("", two); len(full) != 9 {
			s.Errorf("everything allocated: %v", full)
		}
		if now := s.extents(two, v.Name); len(now) != 0 {
			s.Errorf("the volume differs from its newest snapshot: %v", now)
		}
		stop := errors.New("enough")
		err := s.DiffSnapshot(s.ctx, &apiv1.DiffSnapshotRequest{To: two}, func(*apiv1.DiffExtents) error { return stop })
		if !errors.Is(err, stop) {
			s.Errorf("diff whose receiver gives up returns %v", err)
		}
	}
	nothing := func(*apiv1.DiffExtents) error { return nil }
	s.want("diff from a missing snapshot", s.DiffSnapshot(s.ctx, &apiv1.DiffSnapshotRequest{From: v.Name + "@no", To: two}, nothing), errdefs.ErrNotFound)
	s.want("diff from a volume", s.DiffSnapshot(s.ctx, &apiv1.DiffSnapshotRequest{From: v.Name, To: two}, nothing), errdefs.ErrInvalidArgument)
	s.want("diff to nothing", s.DiffSnapshot(s.ctx, &apiv1.DiffSnapshotRequest{From: one}, nothing), errdefs.ErrInvalidArgument, errdefs.ErrNotFound)
}

func (s *suite) clone() {
	v := s.create("a")
	if s.h.Write != nil {
		s.h.Write(s.T, s.Service, v.Name, 0, 2*extentBytes)
	}
	_, err := s.CreateSnapshot(s.ctx, &apiv1.CreateSnapshotRequest{Volume: v.Name, Name: "s"})
	s.ok("snapshot", err)
	for _, src := range []string{v.Name + "@s", v.Name} {
		name := s.name(fmt.Sprintf("copy%d", len(src)))
		s.removeLater(name)
		c, err := s.CloneVolume(s.ctx, &apiv1.CloneVolumeRequest{Source: src, Name: name})
		if !s.ok("clone "+src, err) {
			continue
		}
		if c.Id == v.Id || c.Spec.SizeBytes != v.Spec.SizeBytes || c.Spec.FromSnapshot == "" {
			s.Errorf("clone of %s: %v", src, c)
		}
		again, err := s.CloneVolume(s.ctx, &apiv1.CloneVolumeRequest{Source: src, Name: name})
		if s.ok("clone again", err) && again.Id != c.Id {
			s.Errorf("clone again made %s, there was %s", again.Id, c.Id)
		}
		if s.h.Write != nil {
			_, err = s.CreateSnapshot(s.ctx, &apiv1.CreateSnapshotRequest{Volume: name, Name: "x"})
			s.ok("snapshot of the clone", err)
			if d := s.extents("", name+"@x"); len(d) != 1 || d[0].Length != 2*extentBytes {
				s.Errorf("the clone holds %v", d)
			}
		}
	}
	_, err = s.CloneVolume(s.ctx, &apiv1.CloneVolumeRequest{Source: v.Name + "@s", Name: v.Name})
	s.want("clone onto itself", err, errdefs.ErrAlreadyExists)
	_, err = s.CloneVolume(s.ctx, &apiv1.CloneVolumeRequest{Source: v.Name + "@s", Name: s.name("small"), Spec: &apiv1.VolumeSpec{SizeBytes: 1 << 20}})
	s.want("clone into less", err, errdefs.ErrOutOfRange, errdefs.ErrInvalidArgument)
	_, err = s.CloneVolume(s.ctx, &apiv1.CloneVolumeRequest{Source: v.Name + "@no", Name: s.name("copy")})
	s.want("clone of a missing snapshot", err, errdefs.ErrNotFound)
	_, err = s.CloneVolume(s.ctx, &apiv1.CloneVolumeRequest{Source: v.Name + "@s", Name: "-bad-"})
	s.want("clone with a bad name", err, errdefs.ErrInvalidArgument)
	s.cloneWithoutFilesystem()
}

// cloneWithoutFilesystem: what a copy holds is what its source held.
func (s *suite) cloneWithoutFilesystem() {
	src, dst := s.name("raw"), s.name("rawcopy")
	s.removeLater(src)
	s.removeLater(dst)
	_, err := s.CreateVolume(s.ctx, &apiv1.CreateVolumeRequest{Name: src, Spec: &apiv1.VolumeSpec{SizeBytes: 64 << 20, Fs: "none"}})
	s.ok("create with fs none", err)
	c, err := s.CloneVolume(s.ctx, &apiv1.CloneVolumeRequest{Source: src, Name: dst})
	if s.ok("clone", err) && c.Spec.Fs != "none" {
		s.Errorf("the copy of a volume without a filesystem has %s", c.Spec.Fs)
	}
}

func (s *suite) status() {
	s.create("a")
	st, err := s.GetStatus(s.ctx, &apiv1.GetStatusRequest{})
	if s.ok("status", err) && (st.Node == "" || st.Volumes == 0 || !st.Ready || len(st.Pools) == 0) {
		s.Errorf("status is %v", st)
	}
	if d, err := s.RunDoctor(s.ctx, &apiv1.RunDoctorRequest{}); s.ok("doctor", err) {
		for _, c := range d.Checks {
			if c.Name == "" || c.Detail == "" || !c.Ok && c.Fix == "" {
				s.Errorf("a check without name, detail or remedy: %v", c)
			}
		}
	}
	if n, err := s.ListNodes(s.ctx, &apiv1.ListNodesRequest{}); s.ok("nodes", err) && len(n.Nodes) == 0 {
		s.Error("no nodes")
	}
	if n, err := s.ListNodes(s.ctx, &apiv1.ListNodesRequest{Name: st.GetNode()}); s.ok("this node", err) && len(n.Nodes) != 1 {
		s.Errorf("%d nodes are called %s", len(n.Nodes), st.GetNode())
	}
	if p, err := s.ListPools(s.ctx, &apiv1.ListPoolsRequest{}); s.ok("pools", err) && (len(p.Pools) == 0 || p.Pools[0].CapacityBytes <= 0) {
		s.Errorf("pools: %v", p)
	}
	if d, err := s.ListDrives(s.ctx, &apiv1.ListDrivesRequest{}); s.ok("drives", err) && (len(d.Drives) == 0 || len(d.Drives[0].Id) != 32) {
		s.Errorf("drives: %v", d)
	}
	_, err = s.ListPlugins(s.ctx, &apiv1.ListPluginsRequest{})
	s.ok("plugins", err)
	_, err = s.ListOperations(s.ctx, &apiv1.ListOperationsRequest{All: true})
	s.ok("operations", err)
}

func (s *suite) events() {
	v := s.create("a")
	var last uint64
	var kept []string
	err := s.WatchEvents(s.ctx, &apiv1.WatchEventsRequest{}, func(e *apiv1.Event) error {
		if e.Cursor <= last {
			s.Errorf("cursor %d after %d", e.Cursor, last)
		}
		last = e.Cursor
		if e.Object == "volume "+v.Name {
			kept = append(kept, e.Type)
		}
		return nil
	})
	if s.ok("kept events", err) && !slices.Contains(kept, "volume.created") {
		s.Errorf("no volume.created of %s among %v", v.Name, kept)
	}
	// Followed from here, only the new one comes; the receiver ends it.
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	stop := errors.New("seen")
	done := make(chan error, 1)
	go func() {
		done <- s.WatchEvents(ctx, &apiv1.WatchEventsRequest{After: last, Follow: true}, func(e *apiv1.Event) error {
			if e.Cursor <= last {
				return fmt.Errorf("cursor %d, asked for those after %d", e.Cursor, last)
			}
			if e.Type == "volume.resized" {
				return stop
			}
			return nil
		})
	}()
	_, err = s.ResizeVolume(s.ctx, &apiv1.ResizeVolumeRequest{Name: v.Name, SizeBytes: 128 << 20})
	s.ok("resize", err)
	if err := <-done; !errors.Is(err, stop) {
		s.Errorf("following ended with %v", err)
	}
}

func (s *suite) cancelled() {
	v := s.create("a")
	ctx, cancel := context.WithCancel(s.ctx)
	cancel()
	if _, err := s.GetVolume(ctx, &apiv1.GetVolumeRequest{Name: v.Name}); !errors.Is(err, context.Canceled) {
		s.Errorf("a cancelled call returns %v", err)
	}
	ctx, cancel = context.WithCancel(s.ctx)
	done := make(chan error, 1)
	go func() {
		done <- s.WatchEvents(ctx, &apiv1.WatchEventsRequest{Follow: true}, func(*apiv1.Event) error {
			cancel()
			return nil
		})
	}()
	if err := <-done; !errors.Is(err, context.Canceled) {
		s.Errorf("a cancelled watch returns %v", err)
	}
}

// concurrent creates and deletes one name from many sides: each call succeeds
// or says that another was at work, and one identity wins at a time.
func (s *suite) concurrent() {
	name := s.name("x")
	s.removeLater(name)
	var mu sync.Mutex
	ids := map[string]bool{}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			v, err := s.CreateVolume(s.ctx, &apiv1.CreateVolumeRequest{Name: name, Spec: &apiv1.VolumeSpec{SizeBytes: 64 << 20}})
			if errors.Is(err, errdefs.ErrAborted) {
				return
			}
			if !s.ok("create", err) {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			ids[v.Id] = true
		})
	}
	wg.Wait()
	if len(ids) != 1 {
		s.Errorf("eight equal calls made %d volumes", len(ids))
	}
}
