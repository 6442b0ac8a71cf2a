package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	recordsv1 "github.com/moraine-storage/moraine/agent/cluster/records/v1"
	"github.com/moraine-storage/moraine/agent/operation"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

func (m *Manager) mountPath(name string) string { return filepath.Join(m.o.RunDir, "mounts", name) }

// MountVolume implements api.Attachments.
func (m *Manager) MountVolume(ctx context.Context, r *apiv1.MountVolumeRequest) (*apiv1.MountVolumeResponse, error) {
	who, err := consumerName(r.Consumer)
	if err != nil {
		return nil, err
	}
	if r.Target != "" && (!filepath.IsAbs(r.Target) || filepath.Clean(r.Target) != r.Target || r.Target == "/") {
		return nil, fmt.Errorf("mount volume %q: target %q: %w: an absolute path without . and .., not /", r.Name, r.Target, errdefs.ErrInvalidArgument)
	}
	var out *apiv1.MountVolumeResponse
	err = m.o.Operations.Run(ctx, r.RequestId, "volume.mount", "volume "+r.Name, func(ctx context.Context, op *operation.Op) error {
		v, unlock, err := m.lock(ctx, r.Name)
		if err != nil {
			return err
		}
		defer unlock()
		out, err = m.mountLocked(ctx, v, r, who, op)
		if err != nil {
			return fmt.Errorf("mount volume %q: %w", r.Name, err)
		}
		return nil
	})
	if err == nil && out == nil { // joined another call's work: its result is there
		r.RequestId = ""
		return m.MountVolume(ctx, r)
	}
	return out, err
}

func (m *Manager) mountLocked(ctx context.Context, v volumeRecord, r *apiv1.MountVolumeRequest, who string, op *operation.Op) (*apiv1.MountVolumeResponse, error) {
	if v.Record.GetSpec().GetFs() == "none" {
		return nil, fmt.Errorf("it has no file system (fs=none); attach it as a block device: %w", errdefs.ErrFailedPrecondition)
	}
	const steps = 4
	op.Progress("attaching", 0, steps, "steps")
	fresh := m.attached(v.Record.Id) == nil
	l, v, err := m.attachLocked(ctx, v, kindBlock, r.ReadOnly)
	if err != nil {
		return nil, err
	}
	out, err := m.mountAttached(ctx, l, v, r, who, op)
	if err != nil && fresh {
		// Nobody else uses it: leave things as they were found.
		err = errors.Join(err, l.unmountAll(context.WithoutCancel(ctx), false), l.detach(context.WithoutCancel(ctx), false))
	}
	return out, err
}

func (m *Manager) mountAttached(ctx context.Context, l *live, v volumeRecord, r *apiv1.MountVolumeRequest, who string, op *operation.Op) (*apiv1.MountVolumeResponse, error) {
	if l.file.Mount == "" {
		var err error
		if v, err = l.mount(ctx, v, r, op); err != nil {
			return nil, err
		}
	}
	path := l.file.Mount
	if r.Target != "" {
		if err := l.bind(ctx, who, r.Target, r.ReadOnly); err != nil {
			return nil, err
		}
		path = r.Target
	}
	v, err := m.addConsumer(ctx, l, v, usesMount, who, r.Target)
	if err != nil {
		return nil, err
	}
	op.Progress("mounted", 4, 4, "steps")
	return &apiv1.MountVolumeResponse{Path: path, Volume: m.view(v.Record)}, nil
}

// mount makes or checks the file system, and mounts it.
func (l *live) mount(ctx context.Context, v volumeRecord, r *apiv1.MountVolumeRequest, op *operation.Op) (volumeRecord, error) {
	m, dev := l.m, l.devicePath()
	v, fs, err := l.prepare(ctx, v, op)
	if err != nil {
		return v, err
	}
	op.Progress("mounting", 3, 4, "steps")
	dir := m.mountPath(l.name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return v, err
	}
	// The file says where before anything is mounted there.
	l.file.Mount = dir
	if err := m.files.save(l.file); err != nil {
		l.file.Mount = ""
		return v, err
	}
	options := append(slices.Clone(v.Record.GetSpec().GetMountOptions()), r.MountOptions...)
	if err := m.o.Host.Mount(ctx, dev, dir, fs, l.file.ReadOnly, options); err != nil {
		l.file.Mount = ""
		return v, errors.Join(err, m.files.save(l.file), removeDir(dir))
	}
	if fs == "ext4" && !l.file.ReadOnly {
		// A fresh volume is an empty folder: databases refuse another, and Docker
		// copies an image's files only into an empty one. e2fsck makes it again
		// when it needs it.
		if err := m.o.Host.Empty(ctx, dir); err != nil {
			m.o.Logger.Debug("lost+found stays", "volume", l.name, "error", err)
		}
	}
	m.info("volume.mounted", l.name, "", "path", dir, "fs", fs)
	return v, nil
}

// prepare makes sure that there is a sound file system on the device. A volume
// is formatted once, when nothing was ever written to it; whatever else is
// found on it is left alone (rule 10).
func (l *live) prepare(ctx context.Context, v volumeRecord, op *operation.Op) (volumeRecord, string, error) {
	if v.Record.Formatting && !l.file.ReadOnly {
		return l.makeFS(ctx, v, op, true)
	}
	m, dev, want := l.m, l.devicePath(), v.Record.GetSpec().GetFs()
	found, err := m.o.Host.Detect(ctx, dev)
	if err != nil {
		return v, "", err
	}
	switch {
	case found == "" && v.Record.Formatted:
		return v, "", fmt.Errorf("its %s file system is gone: the device reads as blank; it is not made anew: %w", want, errdefs.ErrDataLoss)
	case found == "" && l.file.ReadOnly:
		return v, "", fmt.Errorf("it is blank and attached read-only; mount it for writing once: %w", errdefs.ErrFailedPrecondition)
	case found == "" && l.p.replica.Info().Mapped > 0:
		return v, "", fmt.Errorf("it has data, but no file system that is known; it is not formatted: %w", errdefs.ErrFailedPrecondition)
	case found == "":
		return l.makeFS(ctx, v, op, false)
	case found != want && v.Record.Formatted:
		return v, "", fmt.Errorf("it was formatted as %s, but %s is on it: %w", want, found, errdefs.ErrDataLoss)
	case !l.file.ReadOnly:
		op.Progress("checking "+found+" file system", 2, 4, "steps")
		if err := m.o.Host.Check(ctx, dev, found); err != nil {
			return v, "", err
		}
	}
	if v.Record.Formatted {
		return v, found, nil
	}
	v, err = l.formatted(ctx, v, found) // somebody else has made it
	return v, found, err
}

// makeFS makes the volume's file system. The record says before that it is
// being made, and after that it is there: what a crash leaves in between is
// made again, and nothing else ever is.
func (l *live) makeFS(ctx context.Context, v volumeRecord, op *operation.Op, again bool) (volumeRecord, string, error) {
	want := v.Record.GetSpec().GetFs()
	op.Progress("making "+want+" file system", 1, 4, "steps")
	if !again {
		nv, err := l.m.update(ctx, v, func(rec *recordsv1.Volume) { rec.Formatting = true })
		if err != nil {
			return v, "", err
		}
		v = nv
		l.p.v = v
	}
	if err := l.m.o.Host.Make(ctx, l.devicePath(), want, v.Record.GetSpec().GetMkfsOptions(), again); err != nil {
		return v, "", err
	}
	v, err := l.formatted(ctx, v, want)
	return v, want, err
}

func (l *live) formatted(ctx context.Context, v volumeRecord, fs string) (volumeRecord, error) {
	nv, err := l.m.update(ctx, v, func(rec *recordsv1.Volume) {
		rec.Formatted, rec.Formatting = true, false
		rec.Spec.Fs = fs
	})
	if err != nil {
		return v, err
	}
	l.p.v = nv
	return nv, nil
}

// handOut says in the record that what is on the volume may be somebody's data
// from now on: a file system that was half made is not made again over it.
func (m *Manager) handOut(ctx context.Context, l *live, v volumeRecord) (volumeRecord, error) {
	if !v.Record.Formatting {
		return v, nil
	}
	nv, err := m.update(ctx, v, func(rec *recordsv1.Volume) { rec.Formatting = false })
	if err != nil {
		return v, err
	}
	l.p.v = nv
	return nv, nil
}

// bind mounts the file system at a consumer's own path too.
func (l *live) bind(ctx context.Context, who, target string, readOnly bool) error {
	for c, t := range l.file.Targets {
		if t == target && c != who {
			return fmt.Errorf("target %s is used by %s: %w", target, c, errdefs.ErrAlreadyExists)
		}
	}
	if t := l.file.Targets[who]; t != "" && t != target {
		return fmt.Errorf("consumer %s has it at %s already: %w", who, t, errdefs.ErrAlreadyExists)
	}
	if l.file.Targets == nil {
		l.file.Targets = map[string]string{}
	}
	l.file.Targets[who] = target
	if err := l.m.files.save(l.file); err != nil {
		return err
	}
	if err := l.m.o.Host.Bind(ctx, l.file.Mount, target, readOnly); err != nil {
		delete(l.file.Targets, who)
		return errors.Join(err, l.m.files.save(l.file))
	}
	return nil
}

// UnmountVolume implements api.Attachments.
func (m *Manager) UnmountVolume(ctx context.Context, r *apiv1.UnmountVolumeRequest) (*apiv1.UnmountVolumeResponse, error) {
	who, err := consumerName(r.Consumer)
	if err != nil {
		return nil, err
	}
	v, unlock, err := m.lock(ctx, r.Name)
	if errdefs.IsNotFound(err) {
		return &apiv1.UnmountVolumeResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	defer unlock()
	l := m.attached(v.Record.Id)
	a := attachmentOf(v.Record, m.o.NodeID)
	if l == nil {
		// Not unmounted, if what an earlier agent left may still be mounted.
		if err := m.mayServe(v.Record.Id, v.Record.Name); err != nil {
			return nil, err
		}
	}
	if l == nil || a == nil || l.file.Kind != kindBlock {
		return &apiv1.UnmountVolumeResponse{Volume: m.view(v.Record)}, nil
	}
	l.p.v = v
	if v, err = m.unmountLocked(ctx, l, v, a, who, r); err != nil {
		return nil, fmt.Errorf("unmount volume %q: %w", r.Name, err)
	}
	return &apiv1.UnmountVolumeResponse{Volume: m.view(v.Record)}, nil
}

func (m *Manager) unmountLocked(ctx context.Context, l *live, v volumeRecord, a *recordsv1.Attachment, who string, r *apiv1.UnmountVolumeRequest) (volumeRecord, error) {
	mine := func(c *recordsv1.Consumer) bool {
		return c.FrontEnd == usesMount && (c.Id == who && (r.Target == "" || c.Target == r.Target) || r.Force)
	}
	left := slices.DeleteFunc(slices.Clone(a.Consumers), mine)
	mounts := slices.IndexFunc(left, func(c *recordsv1.Consumer) bool { return c.FrontEnd == usesMount }) >= 0
	if len(left) == len(a.Consumers) && mounts { // not a consumer, and others are
		if who == cliConsumer {
			return v, inUse(v.Record, left)
		}
		return v, nil // said again
	}
	if mounts {
		if err := l.unbind(ctx, who, r.Force); err != nil {
			return v, err
		}
	} else if err := l.unmountAll(ctx, r.Force); err != nil {
		return v, err
	}
	nv, err := m.update(ctx, v, func(rec *recordsv1.Volume) {
		a := attachmentOf(rec, m.o.NodeID)
		a.Consumers = slices.DeleteFunc(a.Consumers, mine)
		a.Path = l.file.Mount
	})
	if err != nil {
		return v, err
	}
	l.p.v = nv
	if len(left) > 0 {
		return nv, nil
	}
	if err := l.detach(ctx, r.Force); err != nil {
		return nv, err
	}
	return l.p.v, nil
}

func (l *live) unbind(ctx context.Context, who string, force bool) error {
	target := l.file.Targets[who]
	if target == "" {
		return nil
	}
	if err := l.m.o.Host.Unmount(ctx, target, force); err != nil {
		return err
	}
	delete(l.file.Targets, who)
	return l.m.files.save(l.file)
}

// unmountAll ends all bind mounts and the mount itself.
func (l *live) unmountAll(ctx context.Context, force bool) error {
	if l.file.Mount == "" {
		// A mount that an earlier agent had begun may have come to its end after
		// it was looked for: the child that makes it outlives the agent.
		dir := l.m.mountPath(l.name)
		dev, err := l.m.o.Host.Mounted(dir)
		if err != nil || dev == "" || dev != l.devicePath() {
			return err
		}
		l.file.Mount = dir
	}
	for who := range l.file.Targets {
		if err := l.unbind(ctx, who, force); err != nil {
			return err
		}
	}
	if err := l.m.o.Host.Unmount(ctx, l.file.Mount, force); err != nil {
		return err
	}
	dir := l.file.Mount
	l.file.Mount = ""
	l.m.info("volume.unmounted", l.name, "", "path", dir)
	return errors.Join(l.m.files.save(l.file), removeDir(dir))
}

// removeDir removes an empty mount point; one that is gone is no error.
func removeDir(dir string) error {
	if err := os.Remove(dir); err != nil && !os.IsNotExist(err) && !strings.Contains(err.Error(), "not empty") {
		return err
	}
	return nil
}
