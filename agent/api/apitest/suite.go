package apitest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/moraine-storage/moraine/agent/api"
	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// Harness is what Run needs of an implementation.
type Harness struct {
	// New starts a service without volumes whose end is the test's. The cases
	// share it and use names of their own.
	New func(t *testing.T) api.Service
	// NoAttach says why volumes cannot be attached here; "" if they can.
	NoAttach string
	// NoMount says why volumes cannot be mounted here; "" if they can.
	NoMount string
	// Write changes a range of a detached volume; nil: the cases that compare
	// contents check only what holds without.
	Write func(t *testing.T, svc api.Service, volume string, off, length int64)
}

// caseTimeout is for one case, generous: a real mkfs on a busy machine.
const caseTimeout = 3 * time.Minute

// Run is the conformance suite of api.Service.
func Run(t *testing.T, h Harness) {
	svc := h.New(t)
	cases := []struct {
		name string
		fn   func(*suite)
		skip string
	}{
		{"CreateIsIdempotent", (*suite).createIsIdempotent, ""},
		{"Names", (*suite).names, ""},
		{"Sizes", (*suite).sizes, ""},
		{"BadSpecs", (*suite).badSpecs, ""},
		{"Unknown", (*suite).unknown, ""},
		{"ListPages", (*suite).listPages, ""},
		{"Update", (*suite).update, ""},
		{"Delete", (*suite).deletes, ""},
		{"Resize", (*suite).resize, ""},
		{"Snapshots", (*suite).snapshots, ""},
		{"Diff", (*suite).diff, ""},
		{"Clone", (*suite).clone, ""},
		{"Status", (*suite).status, ""},
		{"Events", (*suite).events, ""},
		{"Cancelled", (*suite).cancelled, ""},
		{"Concurrent", (*suite).concurrent, ""},
		{"Attach", (*suite).attach, h.NoAttach},
		{"Export", (*suite).export, ""},
		{"Mount", (*suite).mount, h.NoMount},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if c.skip != "" {
				t.Skip(c.skip)
			}
			ctx, cancel := context.WithTimeout(context.Background(), caseTimeout)
			defer cancel()
			c.fn(&suite{T: t, Service: svc, ctx: ctx, h: h, prefix: strings.ToLower(c.name)})
		})
	}
}

// suite is one case under way.
type suite struct {
	*testing.T
	api.Service
	ctx    context.Context // of the case
	h      Harness
	prefix string
}

// name is a volume name that no other case uses.
func (s *suite) name(suffix string) string { return s.prefix + "-" + suffix }

// create makes a small volume that is deleted at the end of the case.
func (s *suite) create(suffix string) *apiv1.Volume {
	s.Helper()
	name := s.name(suffix)
	s.removeLater(name)
	v, err := s.CreateVolume(s.ctx, &apiv1.CreateVolumeRequest{Name: name, Spec: &apiv1.VolumeSpec{SizeBytes: 64 << 20}})
	if err != nil {
		s.Fatalf("create %s: %v", name, err)
	}
	return v
}

// removeLater deletes a volume at the end of the case, whoever uses it.
func (s *suite) removeLater(name string) {
	s.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), caseTimeout)
		defer cancel()
		_, _ = s.UnmountVolume(ctx, &apiv1.UnmountVolumeRequest{Name: name, Force: true})
		_, _ = s.ExportVolume(ctx, &apiv1.ExportVolumeRequest{Name: name, Stop: true})
		_, _ = s.DetachVolume(ctx, &apiv1.DetachVolumeRequest{Name: name, Force: true})
		if _, err := s.DeleteVolume(ctx, &apiv1.DeleteVolumeRequest{Name: name, WithSnapshots: true}); err != nil {
			s.Errorf("delete %s at the end: %v", name, err)
		}
	})
}

// want checks the class of an error, and that its text says something.
func (s *suite) want(what string, err error, classes ...error) {
	s.Helper()
	if err == nil {
		s.Errorf("%s: no error, want one of %v", what, classes)
		return
	}
	if errdefs.Indeterminate(err) {
		s.Errorf("%s: %v: it is marked as perhaps done", what, err)
	}
	if strings.Contains(err.Error(), "\n") || len(err.Error()) < 8 {
		s.Errorf("%s: text %q: one line that says what was wrong is wanted", what, err)
	}
	for _, c := range classes {
		if errors.Is(err, c) {
			return
		}
	}
	s.Errorf("%s: %v, want one of %v", what, err, classes)
}

// ok checks that there is no error.
func (s *suite) ok(what string, err error) bool {
	s.Helper()
	if err != nil {
		s.Errorf("%s: %v", what, err)
	}
	return err == nil
}

func (s *suite) createIsIdempotent() {
	v := s.create("a")
	again, err := s.CreateVolume(s.ctx, &apiv1.CreateVolumeRequest{Name: v.Name, Spec: &apiv1.VolumeSpec{SizeBytes: 64 << 20}})
	if s.ok("create again", err) && again.Id != v.Id {
		s.Errorf("create again made %s, there was %s", again.Id, v.Id)
	}
	_, err = s.CreateVolume(s.ctx, &apiv1.CreateVolumeRequest{Name: v.Name, Spec: &apiv1.VolumeSpec{SizeBytes: 128 << 20}})
	s.want("create with another size", err, errdefs.ErrAlreadyExists)
	_, err = s.CreateVolume(s.ctx, &apiv1.CreateVolumeRequest{Name: v.Name, Spec: &apiv1.VolumeSpec{SizeBytes: 64 << 20, Fs: "none"}})
	s.want("create with another fs", err, errdefs.ErrAlreadyExists)
	if got, err := s.GetVolume(s.ctx, &apiv1.GetVolumeRequest{Name: v.Name}); s.ok("get", err) {
		if got.Id != v.Id || got.Spec.SizeBytes != 64<<20 || got.Name != v.Name {
			s.Errorf("get: id %s size %d, want %s %d", got.Id, got.Spec.SizeBytes, v.Id, 64<<20)
		}
	}
	if got, err := s.GetVolume(s.ctx, &apiv1.GetVolumeRequest{Name: v.Id}); s.ok("get by id", err) && got.Name != v.Name {
		s.Errorf("get by id gives %s", got.Name)
	}
	if len(v.Id) != 32 || strings.Trim(v.Id, "0123456789abcdef") != "" {
		s.Errorf("id %q is not 32 hex digits", v.Id)
	}
	if v.State != apiv1.VolumeState_DETACHED || len(v.Replicas) == 0 || !v.CreatedAt.IsValid() {
		s.Errorf("a new volume is %v with %d replicas, created %v", v.State, len(v.Replicas), v.CreatedAt)
	}
}

func (s *suite) names() {
	for _, bad := range []string{
		"", "-a", "a-", ".a", "a.", "_a", "a b", "a/b", "a@b", "../x", "ä", "a\x00b", "a\nb",
		strings.Repeat("x", 129), strings.Repeat("x", 100000),
	} {
		_, err := s.CreateVolume(s.ctx, &apiv1.CreateVolumeRequest{Name: bad, Spec: &apiv1.VolumeSpec{SizeBytes: 64 << 20}})
		s.want(fmt.Sprintf("create %.20q (%d bytes)", bad, len(bad)), err, errdefs.ErrInvalidArgument)
	}
	for _, good := range []string{"x", "X9", "a.b_c-d", strings.Repeat("n", 128)} {
		s.removeLater(good)
		_, err := s.CreateVolume(s.ctx, &apiv1.CreateVolumeRequest{Name: good, Spec: &apiv1.VolumeSpec{SizeBytes: 64 << 20}})
		s.ok("create "+good, err)
	}
	v := s.create("v")
	for _, bad := range []string{"-a", "a b", "a@b", "a/b", strings.Repeat("x", 129)} {
		_, err := s.CreateSnapshot(s.ctx, &apiv1.CreateSnapshotRequest{Volume: v.Name, Name: bad})
		s.want(fmt.Sprintf("snapshot %.20q", bad), err, errdefs.ErrInvalidArgument)
	}
}

func (s *suite) sizes() {
	for _, bad := range []int64{-1, 1 << 60, 1<<63 - 1} {
		_, err := s.CreateVolume(s.ctx, &apiv1.CreateVolumeRequest{Name: s.name("bad"), Spec: &apiv1.VolumeSpec{SizeBytes: bad}})
		s.want(fmt.Sprintf("create with size %d", bad), err, errdefs.ErrOutOfRange, errdefs.ErrInvalidArgument)
	}
	_, err := s.GetVolume(s.ctx, &apiv1.GetVolumeRequest{Name: s.name("bad")})
	s.want("get what was refused", err, errdefs.ErrNotFound)
	s.removeLater(s.name("odd"))
	v, err := s.CreateVolume(s.ctx, &apiv1.CreateVolumeRequest{Name: s.name("odd"), Spec: &apiv1.VolumeSpec{SizeBytes: 64<<20 + 1}})
	if s.ok("create with an odd size", err) && v.Spec.SizeBytes != 64<<20+extentBytes {
		s.Errorf("size %d is not rounded up to an extent: %d", 64<<20+1, v.Spec.SizeBytes)
	}
	s.removeLater(s.name("default"))
	if v, err = s.CreateVolume(s.ctx, &apiv1.CreateVolumeRequest{Name: s.name("default")}); s.ok("create without a spec", err) {
		if v.Spec.SizeBytes <= 0 || v.Spec.Fs == "" || v.Spec.Replicas == 0 || v.Spec.Driver == "" {
			s.Errorf("defaults are not filled in: %v", v.Spec)
		}
	}
}

func (s *suite) badSpecs() {
	for what, spec := range map[string]*apiv1.VolumeSpec{
		"fs ntfs":            {Fs: "ntfs"},
		"driver tape":        {Driver: "tape"},
		"negative iops":      {MaxIops: -1},
		"negative bandwidth": {MaxBandwidth: -5},
		"snapshot text":      {FromSnapshot: "nothing-of-the-kind"},
	} {
		spec.SizeBytes = 64 << 20
		_, err := s.CreateVolume(s.ctx, &apiv1.CreateVolumeRequest{Name: s.name("x"), Spec: spec})
		s.want("create with "+what, err, errdefs.ErrInvalidArgument, errdefs.ErrOutOfRange)
	}
	for what, spec := range map[string]*apiv1.VolumeSpec{
		"unknown pool":     {Pool: "no-such-pool"},
		"unknown snapshot": {FromSnapshot: "no-such-volume@snap"},
		"too many copies":  {Replicas: 9000},
	} {
		spec.SizeBytes = 64 << 20
		_, err := s.CreateVolume(s.ctx, &apiv1.CreateVolumeRequest{Name: s.name("x"), Spec: spec})
		s.want("create with "+what, err, errdefs.ErrNotFound, errdefs.ErrInvalidArgument,
			errdefs.ErrOutOfRange, errdefs.ErrResourceExhausted, errdefs.ErrFailedPrecondition)
	}
	_, err := s.GetVolume(s.ctx, &apiv1.GetVolumeRequest{Name: s.name("x")})
	s.want("get what was refused", err, errdefs.ErrNotFound)
}

func (s *suite) unknown() {
	n := s.name("none")
	calls := map[string]func() error{
		"get":    func() error { _, e := s.GetVolume(s.ctx, &apiv1.GetVolumeRequest{Name: n}); return e },
		"update": func() error { _, e := s.UpdateVolume(s.ctx, &apiv1.UpdateVolumeRequest{Name: n}); return e },
		"attach": func() error { _, e := s.AttachVolume(s.ctx, &apiv1.AttachVolumeRequest{Name: n}); return e },
		"mount":  func() error { _, e := s.MountVolume(s.ctx, &apiv1.MountVolumeRequest{Name: n}); return e },
		"export": func() error { _, e := s.ExportVolume(s.ctx, &apiv1.ExportVolumeRequest{Name: n}); return e },
		"resize": func() error {
			_, e := s.ResizeVolume(s.ctx, &apiv1.ResizeVolumeRequest{Name: n, SizeBytes: 1 << 30})
			return e
		},
		"clone": func() error {
			_, e := s.CloneVolume(s.ctx, &apiv1.CloneVolumeRequest{Source: n, Name: s.name("copy")})
			return e
		},
		"snapshot": func() error {
			_, e := s.CreateSnapshot(s.ctx, &apiv1.CreateSnapshotRequest{Volume: n, Name: "s"})
			return e
		},
		"list snapshots": func() error {
			_, e := s.ListSnapshots(s.ctx, &apiv1.ListSnapshotsRequest{Volume: n})
			return e
		},
		"get snapshot": func() error { _, e := s.GetSnapshot(s.ctx, &apiv1.GetSnapshotRequest{Name: n + "@s"}); return e },
		"restore": func() error {
			_, e := s.RestoreSnapshot(s.ctx, &apiv1.RestoreSnapshotRequest{Name: n + "@s"})
			return e
		},
		"diff": func() error {
			return s.DiffSnapshot(s.ctx, &apiv1.DiffSnapshotRequest{To: n + "@s"}, func(*apiv1.DiffExtents) error { return nil })
		},
		"operation": func() error { _, e := s.GetOperation(s.ctx, &apiv1.GetOperationRequest{Id: n}); return e },
		"watch operation": func() error {
			return s.WatchOperation(s.ctx, &apiv1.GetOperationRequest{Id: n}, func(*apiv1.Operation) error { return nil })
		},
		"pool": func() error { _, e := s.ListPools(s.ctx, &apiv1.ListPoolsRequest{Name: n}); return e },
		"node": func() error { _, e := s.ListNodes(s.ctx, &apiv1.ListNodesRequest{Name: n}); return e },
	}
	for what, call := range calls {
		s.want(what+" of nothing", call(), errdefs.ErrNotFound)
	}
	if r, err := s.DeleteVolume(s.ctx, &apiv1.DeleteVolumeRequest{Name: n}); s.ok("delete of nothing", err) && r.Existed {
		s.Error("delete of nothing says that it existed")
	}
	if r, err := s.DeleteSnapshot(s.ctx, &apiv1.DeleteSnapshotRequest{Name: n + "@s"}); s.ok("delete of no snapshot", err) && r.Existed {
		s.Error("delete of no snapshot says that it existed")
	}
	_, err := s.DetachVolume(s.ctx, &apiv1.DetachVolumeRequest{Name: n})
	s.ok("detach of nothing", err)
	_, err = s.UnmountVolume(s.ctx, &apiv1.UnmountVolumeRequest{Name: n})
	s.ok("unmount of nothing", err)
}

func (s *suite) deletes() {
	v := s.create("a")
	_, err := s.CreateSnapshot(s.ctx, &apiv1.CreateSnapshotRequest{Volume: v.Name, Name: "s1"})
	s.ok("snapshot", err)
	_, err = s.DeleteVolume(s.ctx, &apiv1.DeleteVolumeRequest{Name: v.Name})
	s.want("delete with snapshots", err, errdefs.ErrFailedPrecondition)
	r, err := s.DeleteVolume(s.ctx, &apiv1.DeleteVolumeRequest{Name: v.Name, WithSnapshots: true})
	if s.ok("delete with its snapshots", err) && !r.Existed {
		s.Error("delete says that it did not exist")
	}
	_, err = s.GetVolume(s.ctx, &apiv1.GetVolumeRequest{Name: v.Name})
	s.want("get what was deleted", err, errdefs.ErrNotFound)
	r, err = s.DeleteVolume(s.ctx, &apiv1.DeleteVolumeRequest{Name: v.Name})
	if s.ok("delete again", err) && r.Existed {
		s.Error("delete again says that it existed")
	}
	again := s.create("a")
	if again.Id == v.Id {
		s.Error("an identity was used again")
	}
}
