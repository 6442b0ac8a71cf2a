package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	"github.com/moraine-storage/moraine/agent/cluster/records"
	recordsv1 "github.com/moraine-storage/moraine/agent/cluster/records/v1"
	"github.com/moraine-storage/moraine/drivers"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// retryEvery is how often a volume whose drive was not there at start is tried
// again, while its device's requests wait in the kernel.
const retryEvery = 3 * time.Second

// Start goes on with what an earlier agent of this node left: half-made
// volumes are finished, devices served again, the dead ones buried. What has
// to wait for a drive is tried again until ctx ends or Close. It returns when all that
// can be served is.
func (m *Manager) Start(ctx context.Context) error {
	files, bad, err := m.files.load()
	if err != nil {
		return fmt.Errorf("read attachments: %w", err)
	}
	hasFile := map[string]bool{}
	for id, err := range bad {
		m.o.Events.Record(apiv1.Severity_ERROR, "attachment.unreadable", "node "+m.o.NodeName, err.Error())
		m.setUnsettled(id, &unsettled{why: err.Error()})
		hasFile[id] = true
	}
	for _, f := range files {
		m.setUnsettled(f.Volume, &unsettled{file: f, why: "the agent is starting"})
		hasFile[f.Volume] = true
	}
	vols, err := m.volumes(ctx)
	if err != nil {
		return fmt.Errorf("read volumes: %w", err)
	}
	var waiting []*attachFile
	for _, f := range files {
		if !m.tryRecover(ctx, f) {
			waiting = append(waiting, f)
		}
	}
	for _, v := range vols {
		if !hasFile[v.Record.Id] {
			m.finish(ctx, v)
		}
	}
	m.retireAll(ctx)
	ctx, stop := context.WithCancel(ctx)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ready, m.stopRetry = true, stop
	if len(waiting) > 0 && !m.closed {
		m.watchers.Go(func() { m.retry(ctx, waiting) })
	}
	return nil
}

// retry tries the waiting ones again.
func (m *Manager) retry(ctx context.Context, waiting []*attachFile) {
	for len(waiting) > 0 {
		if sleep(ctx, retryEvery) != nil {
			return
		}
		var still []*attachFile
		for _, f := range waiting {
			if !m.tryRecover(ctx, f) {
				still = append(still, f)
			}
		}
		waiting = still
	}
}

// tryRecover says whether f is done with: served again, or buried.
func (m *Manager) tryRecover(ctx context.Context, f *attachFile) bool {
	unlock, err := m.locks.lock(ctx, f.Volume)
	if err != nil {
		return false
	}
	defer unlock()
	return m.recoverLocked(ctx, f)
}

// recoverLocked is tryRecover under the volume's lock.
func (m *Manager) recoverLocked(ctx context.Context, f *attachFile) bool {
	m.mu.Lock()
	closed, u := m.closed, m.unsettled[f.Volume]
	m.mu.Unlock()
	switch {
	case closed:
		return false
	case u == nil || u.file != f:
		return true // settled by a call of the API meanwhile
	}
	err := m.recover(ctx, f)
	served := m.attached(f.Volume) != nil
	if err == nil || served {
		m.setUnsettled(f.Volume, nil)
	} else {
		m.setUnsettled(f.Volume, &unsettled{file: f, why: err.Error()})
	}
	switch {
	case err == nil:
		return true
	case errors.Is(err, errdefs.ErrUnavailable) && !served:
		if err.Error() != u.why { // once, not at each attempt
			m.event(apiv1.Severity_WARNING, "volume.waiting", f.Name, err.Error())
		}
		return false
	}
	m.event(apiv1.Severity_ERROR, "volume.recover-failed", f.Name, err.Error())
	return true // unless served, it stays unsettled until a call or the next start settles it
}

// recover goes on with one attachment.
func (m *Manager) recover(ctx context.Context, f *attachFile) error {
	v, err := m.o.Records.Volumes.Get(ctx, records.ID(f.Volume))
	if errdefs.IsNotFound(err) {
		return m.buryDevice(ctx, f, "the volume was deleted")
	}
	if err != nil {
		return err
	}
	switch p := v.Record.Primary; {
	case p == nil:
		return m.buryDevice(ctx, f, "the volume was detached")
	case p.NodeId != m.o.NodeID:
		return m.buryDevice(ctx, f, "the volume is attached on node "+p.NodeId)
	}
	if f.Kind == kindBlock {
		if why := gone(f); why != "" {
			return m.abandon(ctx, f, v, why)
		}
	}
	l := &live{m: m, id: f.Volume, name: f.Name, file: f}
	// What is older than the active one will never be active again.
	own := f.ownSessions()
	f.Sessions = slices.DeleteFunc(f.Sessions, func(s sessionLine) bool { return s.N < v.Record.Active })
	l.p, err = m.becomePrimary(ctx, v, attachOptions{own: own, announce: l.announce, recovering: true})
	if err != nil {
		return err
	}
	if f.Kind == kindBlock && !l.p.deviceLives {
		return l.abandonServed(ctx, l.p.deviceReason)
	}
	return l.resume(ctx)
}

// gone says why the device cannot be there any more; "" if it can.
func gone(f *attachFile) string {
	switch {
	case f.BootID != drivers.BootID():
		return "the host was booted since"
	case f.Driver == nil:
		return "the agent ended before it had made the device"
	}
	if err := f.Driver.Recoverable(); err != nil {
		return err.Error()
	}
	return ""
}

// resume serves the device again.
func (l *live) resume(ctx context.Context) error {
	m, dkind := l.m, drivers.Kind("")
	if l.file.Kind == kindBlock {
		dkind = l.file.Driver.Kind
		if l.driver = m.driver(ctx, dkind); l.driver == nil {
			l.p.release()
			return fmt.Errorf("driver %q is not in this agent: %w", dkind, errdefs.ErrUnavailable)
		}
	}
	if err := l.openPath(dkind); err != nil {
		// The device is there, and waits for the next attempt.
		cerr := l.closePath()
		l.p.release()
		return errors.Join(err, cerr)
	}
	if l.driver != nil {
		var err error
		l.device, err = l.driver.Recover(ctx, l.target(), *l.file.Driver, drivers.Options{ReadOnly: l.file.ReadOnly, Persist: l.persist})
		if errdefs.IsNotFound(err) {
			return l.abandonServed(ctx, "its device is gone: "+err.Error())
		}
		if err != nil {
			cerr := l.closePath()
			l.p.release()
			return errors.Join(fmt.Errorf("device: %w", err), cerr)
		}
	}
	if err := m.goLive(ctx, l); err != nil {
		return err
	}
	m.info("volume.recovered", l.name, "", "device", l.devicePath())
	return l.afterResume(ctx)
}

// afterResume ends an attachment that nobody was ever told of, and brings the
// record in line with what is mounted.
func (l *live) afterResume(ctx context.Context) error {
	a := attachmentOf(l.p.v.Record, l.m.o.NodeID)
	if l.file.Kind == kindBlock && (a == nil || len(a.Consumers) == 0) {
		if err := l.unmountAll(ctx, false); err != nil {
			return err
		}
		return l.detach(ctx, false)
	}
	if l.file.Mount != "" {
		dev, err := l.m.o.Host.Mounted(l.file.Mount)
		if err == nil && dev == "" {
			l.file.Mount, l.file.Targets = "", nil
			if err := l.m.files.save(l.file); err != nil {
				return err
			}
		}
	}
	nv, err := l.m.update(ctx, l.p.v, l.recordAttachment)
	if err == nil {
		l.p.v = nv
	}
	return err
}

// driver finds a driver by kind, nil if there is none.
func (m *Manager) driver(ctx context.Context, kind drivers.Kind) drivers.Driver {
	for _, d := range m.o.Drivers {
		if drivers.Kind(d.Probe(ctx).Name) == kind {
			return d
		}
	}
	return nil
}

// buryDevice removes what is left of a device whose volume is no longer this
// node's: nothing of it may ever be served (0001, 4.1.4).
func (m *Manager) buryDevice(ctx context.Context, f *attachFile, why string) error {
	if err := m.removeDevice(ctx, f); err != nil {
		return err
	}
	m.event(apiv1.Severity_WARNING, "volume.device-removed", f.Name, why)
	return m.files.remove(f.Volume)
}

// removeDevice unmounts and removes the device by force; requests that the
// kernel holds fail.
func (m *Manager) removeDevice(ctx context.Context, f *attachFile) error {
	if f.BootID != drivers.BootID() {
		return nil // nothing of it can be left but the state of the driver
	}
	// The device first: writing back to one that nobody serves would hang.
	var errs []error
	if f.Driver != nil {
		if d := m.driver(ctx, f.Driver.Kind); d != nil {
			errs = append(errs, d.Cleanup(ctx, *f.Driver, true))
		} else {
			errs = append(errs, fmt.Errorf("driver %q is not in this agent: %w", f.Driver.Kind, errdefs.ErrUnavailable))
		}
	}
	for _, t := range f.Targets {
		errs = append(errs, m.o.Host.Unmount(ctx, t, true))
	}
	if f.Mount != "" {
		errs = append(errs, m.o.Host.Unmount(ctx, f.Mount, true), removeDir(f.Mount))
	}
	return errors.Join(errs...)
}

// abandon ends an attachment of this node whose device is not there any more.
func (m *Manager) abandon(ctx context.Context, f *attachFile, v volumeRecord, why string) error {
	if err := m.removeDevice(ctx, f); err != nil {
		return err
	}
	p, err := m.becomePrimary(ctx, v, attachOptions{recovering: true})
	if err != nil {
		return err
	}
	l := &live{m: m, id: f.Volume, name: f.Name, file: f, p: p}
	return l.bury(ctx, why)
}

// abandonServed is abandon for a volume that this session serves already.
func (l *live) abandonServed(ctx context.Context, why string) error {
	if err := errors.Join(l.m.removeDevice(ctx, l.file), l.closePath()); err != nil {
		l.p.release()
		return err
	}
	return l.bury(ctx, why)
}

func (l *live) bury(ctx context.Context, why string) error {
	defer l.p.release()
	if err := l.p.store.Flush(ctx); err != nil {
		return err
	}
	if err := l.p.resign(ctx, l.dropAttachment); err != nil {
		return err
	}
	l.m.event(apiv1.Severity_WARNING, "volume.device-removed", l.name, why)
	return l.m.files.remove(l.id)
}

// finish goes on with a volume that has no attachment file here: a create, a
// detach or a snapshot that a crash cut off.
func (m *Manager) finish(ctx context.Context, v volumeRecord) {
	unlock, err := m.locks.lock(ctx, v.Record.Id)
	if err != nil {
		return
	}
	defer unlock()
	rec := v.Record
	switch {
	case rec.State == recordsv1.VolumeState_VOLUME_CREATING:
		_, err = m.finishOrBury(ctx, v)
	case rec.Primary != nil && rec.Primary.NodeId == m.o.NodeID:
		_, err = m.endSession(ctx, v)
	case rec.Primary == nil && slices.ContainsFunc(rec.Snapshots, halfMade):
		_, err = m.maintain(ctx, v, "", func(*primary) error { return nil }) // who becomes primary finishes them
	}
	if err != nil && !errors.Is(err, errOriginGone) {
		m.event(apiv1.Severity_ERROR, "volume.recover-failed", rec.Name, err.Error())
	}
}

func halfMade(s *recordsv1.Snapshot) bool {
	return s.State != recordsv1.SnapshotState_SNAPSHOT_READY
}

// endSession detaches a volume of which this node is the primary in name only,
// without a device.
func (m *Manager) endSession(ctx context.Context, v volumeRecord) (volumeRecord, error) {
	p, err := m.becomePrimary(ctx, v, attachOptions{})
	if err != nil {
		return v, err
	}
	defer p.release()
	if err := p.store.Flush(ctx); err != nil {
		return p.v, err
	}
	l := &live{m: m, id: v.Record.Id, name: v.Record.Name, p: p}
	err = p.resign(ctx, l.dropAttachment)
	return p.v, err
}

// retireAll deletes the replicas of this node that have a tombstone.
func (m *Manager) retireAll(ctx context.Context) {
	stones, _, err := m.o.Records.Tombstones.List(ctx)
	if err != nil {
		m.o.Logger.Error("read tombstones", "error", err)
	}
	for _, t := range stones {
		m.retire(ctx, t.Record.Id, t.Record.DriveId)
	}
}
