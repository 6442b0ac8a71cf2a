package apitest

import (
	"context"
	"fmt"
	"path/filepath"

	"google.golang.org/protobuf/types/known/timestamppb"

	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

const (
	kindBlock  = "block"
	kindSocket = "socket"
)

// attachment is the one attachment of v, or nil.
func (v *volume) attachment() *apiv1.Attachment {
	if len(v.msg.Attachments) == 0 {
		return nil
	}
	return v.msg.Attachments[0]
}

// attachLocked makes the attachment of this kind or returns the one there is.
func (f *Fake) attachLocked(v *volume, kind string, readOnly bool) (*apiv1.Attachment, error) {
	if a := v.attachment(); a != nil {
		if a.Kind != kind {
			return nil, fmt.Errorf("it is attached with kind %s already: %w", a.Kind, errdefs.ErrFailedPrecondition)
		}
		if a.ReadOnly != readOnly {
			return nil, fmt.Errorf("it is attached already, and not with the same access: %w", errdefs.ErrFailedPrecondition)
		}
		return a, nil
	}
	a := &apiv1.Attachment{
		Node: f.node, Kind: kind, Driver: v.msg.Spec.Driver, ReadOnly: readOnly,
		Since: timestamppb.New(f.now()), State: "ready",
	}
	if kind == kindSocket {
		a.Uri = "nbd+unix:///" + v.msg.Name + "?socket=" + filepath.Join(f.runDir, "exports", v.msg.Id+".sock")
	} else {
		a.Device = fmt.Sprintf("/dev/nbd%d", f.nextDev)
		f.nextDev++
	}
	v.msg.Attachments = []*apiv1.Attachment{a}
	v.msg.State = apiv1.VolumeState_ATTACHED
	v.msg.Epoch++
	f.eventLocked("volume.attached", "volume "+v.msg.Name, "attached", map[string]string{"kind": kind})
	return a, nil
}

// detachLocked removes the attachment.
func (f *Fake) detachLocked(v *volume) {
	v.msg.Attachments = nil
	v.msg.State = apiv1.VolumeState_DETACHED
	v.byMount = false
	clear(v.attached)
	clear(v.mounted)
	f.eventLocked("volume.detached", "volume "+v.msg.Name, "detached", nil)
}

// AttachVolume implements api.Service.
func (f *Fake) AttachVolume(ctx context.Context, r *apiv1.AttachVolumeRequest) (*apiv1.AttachVolumeResponse, error) {
	if err := f.enter(ctx, "AttachVolume", r); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	v, err := f.findLocked(r.GetName())
	if err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	a, err := f.attachLocked(v, kindBlock, r.GetReadOnly())
	if err != nil {
		return nil, fmt.Errorf("attach volume %q: %w", r.GetName(), err)
	}
	v.attached[r.GetConsumer()] = true
	v.byMount = false
	return &apiv1.AttachVolumeResponse{Device: a.Device, Volume: f.viewLocked(v)}, nil
}

// DetachVolume implements api.Service.
func (f *Fake) DetachVolume(ctx context.Context, r *apiv1.DetachVolumeRequest) (*apiv1.DetachVolumeResponse, error) {
	if err := f.enter(ctx, "DetachVolume", r); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	v, err := f.findLocked(r.GetName())
	if errdefs.IsNotFound(err) {
		return &apiv1.DetachVolumeResponse{}, nil
	}
	a := v.attachment()
	switch {
	case a == nil:
	case r.GetForce():
		f.detachLocked(v)
	case a.Kind == kindSocket:
		return nil, fmt.Errorf("detach volume %q: it is exported, end the export: %w", r.GetName(), errdefs.ErrFailedPrecondition)
	case a.Path != "" && (len(v.attached) == 0 || len(v.attached) == 1 && v.attached[r.GetConsumer()]):
		return nil, fmt.Errorf("detach volume %q: mounted on %s for %v: %w", r.GetName(), a.Path, v.consumers(), errdefs.ErrFailedPrecondition)
	default:
		delete(v.attached, r.GetConsumer())
		if len(v.attached) == 0 && a.Path == "" {
			f.detachLocked(v)
		}
	}
	return &apiv1.DetachVolumeResponse{Volume: f.viewLocked(v)}, nil
}

// MountVolume implements api.Service.
func (f *Fake) MountVolume(ctx context.Context, r *apiv1.MountVolumeRequest) (*apiv1.MountVolumeResponse, error) {
	if err := f.enter(ctx, "MountVolume", r); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	v, err := f.findLocked(r.GetName())
	if err != nil {
		return nil, fmt.Errorf("mount: %w", err)
	}
	op := f.operationLocked(r.GetRequestId(), "volume.mount", "volume "+v.msg.Name)
	path, err := f.mountLocked(v, r)
	f.finishLocked(op, err)
	if err != nil {
		return nil, fmt.Errorf("mount volume %q: %w", r.GetName(), err)
	}
	return &apiv1.MountVolumeResponse{Path: path, Volume: f.viewLocked(v)}, nil
}

func (f *Fake) mountLocked(v *volume, r *apiv1.MountVolumeRequest) (string, error) {
	if v.msg.Spec.Fs == "none" {
		return "", fmt.Errorf("it has no filesystem (fs none): attach it: %w", errdefs.ErrFailedPrecondition)
	}
	if t := r.GetTarget(); t != "" && !filepath.IsAbs(t) {
		return "", fmt.Errorf("target %q: an absolute path is needed: %w", t, errdefs.ErrInvalidArgument)
	}
	byMount := v.attachment() == nil
	a, err := f.attachLocked(v, kindBlock, r.GetReadOnly())
	if err != nil {
		return "", err
	}
	if byMount {
		v.byMount = true
	}
	v.msg.Formatted = true
	if a.Path == "" {
		a.Path = filepath.Join(f.runDir, "mounts", v.msg.Name)
		f.eventLocked("volume.mounted", "volume "+v.msg.Name, "mounted", map[string]string{"path": a.Path})
	}
	v.mounted[r.GetConsumer()] = r.GetTarget()
	if r.GetTarget() != "" {
		return r.GetTarget(), nil
	}
	return a.Path, nil
}

// UnmountVolume implements api.Service.
func (f *Fake) UnmountVolume(ctx context.Context, r *apiv1.UnmountVolumeRequest) (*apiv1.UnmountVolumeResponse, error) {
	if err := f.enter(ctx, "UnmountVolume", r); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	v, err := f.findLocked(r.GetName())
	if errdefs.IsNotFound(err) {
		return &apiv1.UnmountVolumeResponse{}, nil
	}
	delete(v.mounted, r.GetConsumer())
	if r.GetForce() {
		clear(v.mounted)
	}
	if a := v.attachment(); a != nil && a.Path != "" && len(v.mounted) == 0 {
		a.Path = ""
		f.eventLocked("volume.unmounted", "volume "+v.msg.Name, "unmounted", nil)
		if v.byMount {
			f.detachLocked(v)
		}
	}
	return &apiv1.UnmountVolumeResponse{Volume: f.viewLocked(v)}, nil
}

// ExportVolume implements api.Service. The export of a snapshot is not an
// attachment.
func (f *Fake) ExportVolume(ctx context.Context, r *apiv1.ExportVolumeRequest) (*apiv1.ExportVolumeResponse, error) {
	if err := f.enter(ctx, "ExportVolume", r); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	if v, s, err := f.findShotLocked(r.GetName()); err == nil {
		if r.GetStop() {
			return &apiv1.ExportVolumeResponse{Volume: f.viewLocked(v)}, nil
		}
		uri := "nbd+unix:///" + r.GetName() + "?socket=" + filepath.Join(f.runDir, "exports", s.msg.Id+".sock")
		return &apiv1.ExportVolumeResponse{Uri: uri, Volume: f.viewLocked(v)}, nil
	} else if !errdefs.IsInvalidArgument(err) {
		return nil, fmt.Errorf("export: %w", err)
	}
	v, err := f.findLocked(r.GetName())
	if err != nil {
		return nil, fmt.Errorf("export: %w", err)
	}
	if r.GetStop() {
		if a := v.attachment(); a != nil && a.Kind == kindSocket {
			f.detachLocked(v)
		}
		return &apiv1.ExportVolumeResponse{Volume: f.viewLocked(v)}, nil
	}
	a, err := f.attachLocked(v, kindSocket, r.GetReadOnly())
	if err != nil {
		return nil, fmt.Errorf("export volume %q: %w", r.GetName(), err)
	}
	return &apiv1.ExportVolumeResponse{Uri: a.Uri, Volume: f.viewLocked(v)}, nil
}
