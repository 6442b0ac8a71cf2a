package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	recordsv1 "github.com/moraine-storage/moraine/agent/cluster/records/v1"
	"github.com/moraine-storage/moraine/drivers"
	"github.com/moraine-storage/moraine/plugins/errdefs"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Consumers of an attachment are kept in the record with what they use.
const (
	usesDevice = "attach"
	usesMount  = "mount"
)

// cliConsumer stands for callers who do not say who they are.
const cliConsumer = "cli"

func consumerName(s string) (string, error) {
	if s == "" {
		return cliConsumer, nil
	}
	if len(s) > consumerBytesMax {
		return "", fmt.Errorf("consumer of %d bytes: %w: at most %d", len(s), errdefs.ErrInvalidArgument, consumerBytesMax)
	}
	return s, nil
}

// AttachVolume implements api.Attachments.
func (m *Manager) AttachVolume(ctx context.Context, r *apiv1.AttachVolumeRequest) (*apiv1.AttachVolumeResponse, error) {
	who, err := consumerName(r.Consumer)
	if err != nil {
		return nil, err
	}
	v, unlock, err := m.lock(ctx, r.Name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	l, v, err := m.attachLocked(ctx, v, kindBlock, r.ReadOnly)
	if err != nil {
		return nil, err
	}
	if v, err = m.handOut(ctx, l, v); err != nil {
		return nil, err
	}
	if v, err = m.addConsumer(ctx, l, v, usesDevice, who, ""); err != nil {
		return nil, err
	}
	return &apiv1.AttachVolumeResponse{Device: l.device.State().Device, Volume: m.view(v.Record)}, nil
}

// attachLocked attaches the volume here, or returns the attachment that there is.
func (m *Manager) attachLocked(ctx context.Context, v volumeRecord, kind string, readOnly bool) (*live, volumeRecord, error) {
	rec := v.Record
	if l := m.attached(rec.Id); l != nil {
		switch {
		case l.file.Kind != kind:
			return nil, v, fmt.Errorf("volume %q is attached as %s; end that first: %w", rec.Name, describe(l.file), errdefs.ErrFailedPrecondition)
		case l.file.ReadOnly != readOnly:
			return nil, v, fmt.Errorf("volume %q is attached %s; detach it first: %w", rec.Name, access(l.file.ReadOnly), errdefs.ErrFailedPrecondition)
		case l.closing:
			return nil, v, fmt.Errorf("volume %q is half detached; detach it again: %w", rec.Name, errdefs.ErrFailedPrecondition)
		case l.failure() != "":
			return nil, v, fmt.Errorf("the device of volume %q has failed (%s); unmount and detach it first: %w", rec.Name, l.failure(), errdefs.ErrFailedPrecondition)
		}
		return l, v, nil
	}
	if err := m.mayServe(rec.Id, rec.Name); err != nil {
		return nil, v, err
	}
	l := &live{m: m, id: rec.Id, name: rec.Name, file: &attachFile{
		Version: attachVersion, Volume: rec.Id, Name: rec.Name, Kind: kind, ReadOnly: readOnly, BootID: drivers.BootID(), Since: time.Now(),
	}}
	dkind := drivers.Kind("")
	if kind == kindBlock {
		d, k, err := m.chooseDriver(ctx)
		if err != nil {
			return nil, v, err
		}
		l.driver, dkind = d, k
	}
	if err := l.attach(ctx, v, dkind); err != nil {
		return nil, v, err
	}
	if err := m.goLive(ctx, l); err != nil {
		return nil, v, err
	}
	m.info("volume.attached", rec.Name, "", "kind", kind, "device", l.devicePath())
	return l, l.p.v, nil
}

func (l *live) devicePath() string {
	if l.device == nil {
		return ""
	}
	return l.device.State().Device
}

func describe(f *attachFile) string {
	if f.Kind == kindSocket {
		return "an NBD socket (`moraine volume export`)"
	}
	return "a block device"
}

func access(readOnly bool) string {
	if readOnly {
		return "read-only"
	}
	return "for writing"
}

// chooseDriver takes the first driver that works on this host.
func (m *Manager) chooseDriver(ctx context.Context) (drivers.Driver, drivers.Kind, error) {
	var why []string
	for _, d := range m.o.Drivers {
		s := d.Probe(ctx)
		if s.Available {
			return d, drivers.Kind(s.Name), nil
		}
		why = append(why, s.Name+": "+s.Reason)
	}
	return nil, "", fmt.Errorf("this host can make no block devices (%s); see `moraine doctor`: %w", strings.Join(why, "; "), errdefs.ErrFailedPrecondition)
}

// attach is the whole way from a detached volume to a device. On error
// nothing is left, or the attachment file is, and it is unsettled.
func (l *live) attach(ctx context.Context, v volumeRecord, dkind drivers.Kind) error {
	p, err := l.m.becomePrimary(ctx, v, attachOptions{announce: l.announce})
	if err != nil {
		return errors.Join(err, l.m.files.remove(l.id))
	}
	l.p = p
	if err := l.openPath(dkind); err != nil {
		return errors.Join(err, l.undo(ctx))
	}
	if l.driver != nil {
		l.device, err = l.driver.Attach(ctx, l.target(), drivers.Options{ReadOnly: l.file.ReadOnly, Persist: l.persist})
		if err != nil {
			return errors.Join(fmt.Errorf("volume %q: make device: %w", l.name, err), l.undo(ctx))
		}
	}
	nv, err := l.m.update(ctx, p.v, func(r *recordsv1.Volume) { l.recordAttachment(r) })
	if err != nil {
		return errors.Join(fmt.Errorf("volume %q: record attachment: %w", l.name, err), l.undo(ctx))
	}
	p.v = nv
	return nil
}

// announce stores the session in the attachment file (invariant 3).
func (l *live) announce(n uint64, session string) error {
	l.file.Sessions = append(l.file.Sessions, sessionLine{N: n, Session: session})
	return l.m.files.save(l.file)
}

// recordAttachment puts this node's attachment into the record.
func (l *live) recordAttachment(r *recordsv1.Volume) {
	a := attachmentOf(r, l.m.o.NodeID)
	if a == nil {
		a = &recordsv1.Attachment{NodeId: l.m.o.NodeID, Since: timestamppb.New(l.file.Since)}
		r.Attachments = append(r.Attachments, a)
	}
	a.Kind, a.Access = recordsv1.AttachmentKind_BLOCK, recordsv1.Access_READ_WRITE
	if l.file.ReadOnly {
		a.Access = recordsv1.Access_READ_ONLY
	}
	if l.file.Kind == kindSocket {
		a.Kind, a.Path = recordsv1.AttachmentKind_SOCKET, l.m.SocketPath()
		return
	}
	a.Device, a.Driver, a.Path = l.devicePath(), string(l.device.State().Kind), l.file.Mount
}

// attachmentOf is a node's attachment in the record, or nil.
func attachmentOf(r *recordsv1.Volume, node string) *recordsv1.Attachment {
	for _, a := range r.Attachments {
		if a.NodeId == node {
			return a
		}
	}
	return nil
}

// undo takes back a half-made attachment. The caller has an error to report.
func (l *live) undo(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleWait)
	defer cancel()
	defer l.p.release()
	defer func() {
		if err != nil {
			l.m.setUnsettled(l.id, &unsettled{file: l.file, why: err.Error()})
		}
	}()
	var errs []error
	if l.device != nil {
		errs = append(errs, l.device.Detach(ctx, true))
	}
	if err := errors.Join(append(errs, l.closePath())...); err != nil {
		return err // the attachment file stays for the next start
	}
	if err := l.p.store.Flush(ctx); err != nil {
		return err
	}
	if err := l.p.resign(ctx, l.dropAttachment); err != nil {
		return err
	}
	return l.m.files.remove(l.id)
}

func (l *live) dropAttachment(r *recordsv1.Volume) {
	r.Attachments = slices.DeleteFunc(r.Attachments, func(a *recordsv1.Attachment) bool { return a.NodeId == l.m.o.NodeID })
}

// addConsumer counts a user; the same one again counts once.
func (m *Manager) addConsumer(ctx context.Context, l *live, v volumeRecord, uses, who, target string) (volumeRecord, error) {
	a := attachmentOf(v.Record, m.o.NodeID)
	if a == nil {
		return v, fmt.Errorf("volume %q: its record has no attachment here: %w", v.Record.Name, errdefs.ErrInternal)
	}
	path := l.file.Mount
	for _, c := range a.Consumers {
		if c.FrontEnd == uses && c.Id == who && c.Target == target && a.Path == path {
			return v, nil
		}
	}
	if len(a.Consumers) >= consumersMax {
		return v, fmt.Errorf("volume %q has %d consumers: %w", v.Record.Name, consumersMax, errdefs.ErrResourceExhausted)
	}
	nv, err := m.update(ctx, v, func(r *recordsv1.Volume) {
		a := attachmentOf(r, m.o.NodeID)
		a.Consumers = slices.DeleteFunc(a.Consumers, func(c *recordsv1.Consumer) bool {
			return c.FrontEnd == uses && c.Id == who && c.Target == target
		})
		a.Consumers = append(a.Consumers, &recordsv1.Consumer{Id: who, FrontEnd: uses, Since: timestamppb.Now(), Target: target})
		if l.file.Kind == kindBlock {
			a.Path = path
		}
	})
	if err != nil {
		return v, fmt.Errorf("volume %q: count consumer: %w", v.Record.Name, err)
	}
	l.p.v = nv
	return nv, nil
}

// consumers lists who uses the attachment and for what.
func consumersOf(a *recordsv1.Attachment, uses string) []string {
	var out []string
	for _, c := range a.GetConsumers() {
		if uses == "" || c.FrontEnd == uses {
			out = append(out, c.Id)
		}
	}
	return out
}

// DetachVolume implements api.Attachments.
func (m *Manager) DetachVolume(ctx context.Context, r *apiv1.DetachVolumeRequest) (*apiv1.DetachVolumeResponse, error) {
	who, err := consumerName(r.Consumer)
	if err != nil {
		return nil, err
	}
	v, unlock, err := m.lock(ctx, r.Name)
	if errdefs.IsNotFound(err) {
		return &apiv1.DetachVolumeResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	defer unlock()
	l := m.attached(v.Record.Id)
	a := attachmentOf(v.Record, m.o.NodeID)
	if l == nil || a == nil {
		if v.Record.Primary != nil && v.Record.Primary.NodeId != m.o.NodeID {
			return nil, fmt.Errorf("volume %q is attached on node %s, not here: %w", r.Name, v.Record.Primary.NodeId, errdefs.ErrFailedPrecondition)
		}
		if l == nil {
			if v, err = m.detachUnserved(ctx, v, r.Force); err != nil {
				return nil, err
			}
		}
		return &apiv1.DetachVolumeResponse{Volume: m.view(v.Record)}, nil
	}
	l.p.v = v
	left := slices.DeleteFunc(slices.Clone(a.Consumers), func(c *recordsv1.Consumer) bool { return c.FrontEnd == usesDevice && c.Id == who })
	switch {
	case len(left) > 0 && !r.Force && len(left) == len(a.Consumers):
		if who != cliConsumer && len(consumersOf(a, usesMount)) == 0 {
			return &apiv1.DetachVolumeResponse{Volume: m.view(v.Record)}, nil // said again: others go on
		}
		return nil, inUse(v.Record, left)
	case len(left) > 0 && !r.Force: // others go on
		nv, err := m.update(ctx, v, func(rec *recordsv1.Volume) { attachmentOf(rec, m.o.NodeID).Consumers = left })
		if err != nil {
			return nil, fmt.Errorf("detach volume %q: %w", r.Name, err)
		}
		l.p.v = nv
		return &apiv1.DetachVolumeResponse{Volume: m.view(nv.Record)}, nil
	}
	if l.file.Mount != "" {
		if err := l.unmountAll(ctx, r.Force); err != nil {
			return nil, err
		}
	}
	if err := l.detach(ctx, r.Force); err != nil {
		return nil, err
	}
	return &apiv1.DetachVolumeResponse{Volume: m.view(l.p.v.Record)}, nil
}

func inUse(r *recordsv1.Volume, users []*recordsv1.Consumer) error {
	var names []string
	for _, c := range users {
		names = append(names, c.Id+" ("+c.FrontEnd+")")
	}
	return fmt.Errorf("volume %q is in use by %s: %w", r.Name, strings.Join(names, ", "), errdefs.ErrFailedPrecondition)
}

// detach ends the attachment: hold, drain, flush, record, device (0001, 4.5).
// The device goes before the record says detached: the kernel's last writes
// must still find their mirror, and a busy device refuses while nothing is lost.
func (l *live) detach(ctx context.Context, force bool) error {
	if l.device != nil {
		if err := l.device.Detach(ctx, force); err != nil {
			return fmt.Errorf("volume %q: detach: %w", l.name, err)
		}
		l.device = nil
	}
	l.closing = true
	// From here on the device is gone: finish whatever becomes of the caller.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleWait)
	defer cancel()
	if err := l.closePath(); err != nil {
		return fmt.Errorf("volume %q: detach: %w", l.name, err)
	}
	flushed := l.p.store.Flush(ctx)
	if flushed != nil {
		l.m.event(apiv1.Severity_ERROR, "volume.flush-failed", l.name, "detached although its last writes could not be made durable: "+flushed.Error())
	}
	err := l.p.resign(ctx, func(r *recordsv1.Volume) {
		r.Clean = flushed == nil
		l.dropAttachment(r)
	})
	if err != nil {
		return err
	}
	l.m.dropLive(l.id)
	l.m.info("volume.detached", l.name, "")
	return l.m.files.remove(l.id)
}
