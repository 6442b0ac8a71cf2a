package apitest

import (
	"strings"

	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// get returns a volume that must be there.
func (s *suite) get(name string) *apiv1.Volume {
	s.Helper()
	v, err := s.GetVolume(s.ctx, &apiv1.GetVolumeRequest{Name: name})
	if err != nil {
		s.Fatalf("get %s: %v", name, err)
	}
	return v
}

// users counts the consumers of a volume.
func (s *suite) users(name string) int {
	s.Helper()
	n := 0
	for _, a := range s.get(name).Attachments {
		n += len(a.Consumers)
	}
	return n
}

func (s *suite) attach() {
	v := s.create("a")
	var device string
	for i, consumer := range []string{"one", "one", "two"} {
		r, err := s.AttachVolume(s.ctx, &apiv1.AttachVolumeRequest{Name: v.Name, Consumer: consumer})
		if !s.ok("attach for "+consumer, err) {
			return
		}
		if i > 0 && r.Device != device || r.Device == "" {
			s.Errorf("attach for %s gives %q, before it was %q", consumer, r.Device, device)
		}
		device = r.Device
	}
	if n := s.users(v.Name); n != 2 {
		s.Errorf("%d consumers, want 2", n)
	}
	if g := s.get(v.Name); g.State != apiv1.VolumeState_ATTACHED || len(g.Attachments) != 1 || g.Attachments[0].Kind != "block" {
		s.Errorf("attached it is %v with %v", g.State, g.Attachments)
	}
	_, err := s.AttachVolume(s.ctx, &apiv1.AttachVolumeRequest{Name: v.Name, Consumer: "three", ReadOnly: true})
	s.want("attach with other access", err, errdefs.ErrFailedPrecondition)
	s.refusedInUse(v.Name)
	_, err = s.ExportVolume(s.ctx, &apiv1.ExportVolumeRequest{Name: v.Name})
	s.want("export while attached", err, errdefs.ErrFailedPrecondition)
	_, err = s.CreateSnapshot(s.ctx, &apiv1.CreateSnapshotRequest{Volume: v.Name, Name: "live"})
	s.ok("snapshot while attached", err)
	if r, err := s.ResizeVolume(s.ctx, &apiv1.ResizeVolumeRequest{Name: v.Name, SizeBytes: 96 << 20}); s.ok("grow while attached", err) && r.Spec.SizeBytes != 96<<20 {
		s.Errorf("size is %d after growing", r.Spec.SizeBytes)
	}
	_, err = s.RestoreSnapshot(s.ctx, &apiv1.RestoreSnapshotRequest{Name: v.Name + "@live"})
	s.want("restore while attached", err, errdefs.ErrFailedPrecondition)
	for i, consumer := range []string{"one", "one", "two", "two"} {
		r, err := s.DetachVolume(s.ctx, &apiv1.DetachVolumeRequest{Name: v.Name, Consumer: consumer})
		if !s.ok("detach for "+consumer, err) {
			return
		}
		attached := len(r.GetVolume().GetAttachments()) > 0
		if attached != (i < 2) {
			s.Errorf("after detach %d attached is %v", i, attached)
		}
	}
	if _, err := s.AttachVolume(s.ctx, &apiv1.AttachVolumeRequest{Name: v.Name, Consumer: "reader", ReadOnly: true}); s.ok("attach read-only", err) {
		if g := s.get(v.Name); len(g.Attachments) != 1 || !g.Attachments[0].ReadOnly {
			s.Errorf("attached read-only: %v", g.Attachments)
		}
	}
	r, err := s.DetachVolume(s.ctx, &apiv1.DetachVolumeRequest{Name: v.Name, Consumer: "stranger", Force: true})
	if s.ok("detach with force", err) && len(r.GetVolume().GetAttachments()) != 0 {
		s.Error("still attached after force")
	}
}

// refusedInUse checks what may not happen to a volume in use.
func (s *suite) refusedInUse(name string) {
	s.Helper()
	_, err := s.DeleteVolume(s.ctx, &apiv1.DeleteVolumeRequest{Name: name})
	s.want("delete in use", err, errdefs.ErrFailedPrecondition)
	_, err = s.DeleteVolume(s.ctx, &apiv1.DeleteVolumeRequest{Name: name, WithSnapshots: true})
	s.want("delete in use, with snapshots", err, errdefs.ErrFailedPrecondition)
	s.get(name)
}

func (s *suite) export() {
	v := s.create("a")
	var uri string
	for range 2 {
		r, err := s.ExportVolume(s.ctx, &apiv1.ExportVolumeRequest{Name: v.Name})
		if !s.ok("export", err) {
			return
		}
		if uri != "" && r.Uri != uri || !strings.HasPrefix(r.Uri, "nbd+unix:///"+v.Name+"?socket=/") {
			s.Errorf("export gives %q, before it was %q", r.Uri, uri)
		}
		uri = r.Uri
	}
	if g := s.get(v.Name); len(g.Attachments) != 1 || g.Attachments[0].Kind != "socket" || g.Attachments[0].Uri != uri {
		s.Errorf("exported it is attached as %v", g.Attachments)
	}
	s.refusedInUse(v.Name)
	_, err := s.AttachVolume(s.ctx, &apiv1.AttachVolumeRequest{Name: v.Name})
	s.want("attach while exported", err, errdefs.ErrFailedPrecondition)
	for range 2 {
		_, err := s.ExportVolume(s.ctx, &apiv1.ExportVolumeRequest{Name: v.Name, Stop: true})
		s.ok("end the export", err)
	}
	if g := s.get(v.Name); len(g.Attachments) != 0 || g.State != apiv1.VolumeState_DETACHED {
		s.Errorf("after the export: %v %v", g.State, g.Attachments)
	}
}

func (s *suite) mount() {
	v := s.create("a")
	var path string
	for i, consumer := range []string{"one", "one", "two"} {
		r, err := s.MountVolume(s.ctx, &apiv1.MountVolumeRequest{Name: v.Name, Consumer: consumer, RequestId: "mount-" + consumer})
		if !s.ok("mount for "+consumer, err) {
			return
		}
		if i > 0 && r.Path != path || r.Path == "" {
			s.Errorf("mount for %s gives %q, before it was %q", consumer, r.Path, path)
		}
		path = r.Path
	}
	if n := s.users(v.Name); n != 2 {
		s.Errorf("%d consumers, want 2", n)
	}
	if g := s.get(v.Name); !g.Formatted || len(g.Attachments) != 1 || g.Attachments[0].Path != path || g.Usage.GetFilesystemSizeBytes() == 0 {
		s.Errorf("mounted it is %v", g)
	}
	op, err := s.GetOperation(s.ctx, &apiv1.GetOperationRequest{Id: "mount-one"})
	if s.ok("operation of the mount", err) && op.State != apiv1.OperationState_SUCCEEDED {
		s.Errorf("the operation is %v", op)
	}
	s.refusedInUse(v.Name)
	_, err = s.DetachVolume(s.ctx, &apiv1.DetachVolumeRequest{Name: v.Name, Consumer: "one"})
	s.want("detach while mounted", err, errdefs.ErrFailedPrecondition)
	for i, consumer := range []string{"one", "one", "two", "two"} {
		r, err := s.UnmountVolume(s.ctx, &apiv1.UnmountVolumeRequest{Name: v.Name, Consumer: consumer})
		if !s.ok("unmount for "+consumer, err) {
			return
		}
		attached := len(r.GetVolume().GetAttachments()) > 0
		if attached != (i < 2) {
			s.Errorf("after unmount %d attached is %v", i, attached)
		}
	}
	_, err = s.MountVolume(s.ctx, &apiv1.MountVolumeRequest{Name: v.Name, Target: "relative/path"})
	s.want("mount on a relative path", err, errdefs.ErrInvalidArgument)
	s.mountWithoutFilesystem()
	s.mountOfAttached(v.Name)
}

func (s *suite) mountWithoutFilesystem() {
	name := s.name("raw")
	s.removeLater(name)
	_, err := s.CreateVolume(s.ctx, &apiv1.CreateVolumeRequest{Name: name, Spec: &apiv1.VolumeSpec{SizeBytes: 64 << 20, Fs: "none"}})
	s.ok("create with fs none", err)
	_, err = s.MountVolume(s.ctx, &apiv1.MountVolumeRequest{Name: name})
	s.want("mount without a filesystem", err, errdefs.ErrFailedPrecondition, errdefs.ErrInvalidArgument)
}

// mountOfAttached: a mount of an attached volume leaves it attached at its end.
func (s *suite) mountOfAttached(name string) {
	if _, err := s.AttachVolume(s.ctx, &apiv1.AttachVolumeRequest{Name: name, Consumer: "holder"}); !s.ok("attach", err) {
		return
	}
	_, err := s.MountVolume(s.ctx, &apiv1.MountVolumeRequest{Name: name, Consumer: "reader"})
	s.ok("mount of an attached volume", err)
	r, err := s.UnmountVolume(s.ctx, &apiv1.UnmountVolumeRequest{Name: name, Consumer: "reader"})
	if s.ok("unmount", err) && len(r.GetVolume().GetAttachments()) != 1 {
		s.Error("unmounting detached what somebody else had attached")
	}
	_, err = s.DetachVolume(s.ctx, &apiv1.DetachVolumeRequest{Name: name, Consumer: "holder"})
	s.ok("detach", err)
	if g := s.get(name); len(g.Attachments) != 0 {
		s.Errorf("at the end: %v", g.Attachments)
	}
}
