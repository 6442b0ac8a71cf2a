package volume

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"

	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	recordsv1 "github.com/moraine-storage/moraine/agent/cluster/records/v1"
	"github.com/moraine-storage/moraine/drivers/aio"
	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/nbd"
	"github.com/moraine-storage/moraine/drivers/nbd/nbdserver"
	"github.com/moraine-storage/moraine/drivers/store"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// snapExportsMax bounds the snapshots served at once: each has a thread and an
// engine of its own.
const snapExportsMax = 64

// snapExport is a snapshot served read-only.
type snapExport struct {
	name    string // VOLUME@SNAPSHOT
	loop    *nbdserver.Loop
	release func() // of the drive
}

// SocketPath is where the node serves volumes to NBD clients.
func (m *Manager) SocketPath() string { return filepath.Join(m.o.RunDir, "nbd.sock") }

// exportURI is the NBD URI of an export, as libnbd and qemu read it.
func (m *Manager) exportURI(name string) string {
	socket := strings.NewReplacer("&", "%26", "+", "%2B", ";", "%3B").Replace((&url.URL{Path: m.SocketPath()}).EscapedPath())
	return "nbd+unix:///" + url.PathEscape(name) + "?socket=" + socket
}

// ExportVolume implements api.Attachments.
func (m *Manager) ExportVolume(ctx context.Context, r *apiv1.ExportVolumeRequest) (*apiv1.ExportVolumeResponse, error) {
	if strings.Contains(r.Name, "@") {
		return m.exportSnapshot(ctx, r)
	}
	v, unlock, err := m.lock(ctx, r.Name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if r.Stop {
		return m.stopExport(ctx, v)
	}
	l, v, err := m.attachLocked(ctx, v, kindSocket, r.ReadOnly)
	if err == nil {
		v, err = m.handOut(ctx, l, v)
	}
	if err != nil {
		return nil, fmt.Errorf("export volume %q: %w", r.Name, err)
	}
	return &apiv1.ExportVolumeResponse{Uri: m.exportURI(v.Record.Name), Volume: m.view(v.Record)}, nil
}

func (m *Manager) stopExport(ctx context.Context, v volumeRecord) (*apiv1.ExportVolumeResponse, error) {
	l := m.attached(v.Record.Id)
	if l != nil && l.file.Kind != kindSocket {
		return nil, fmt.Errorf("volume %q is attached as %s, not exported: %w", l.name, describe(l.file), errdefs.ErrFailedPrecondition)
	}
	if l != nil {
		l.p.v = v
		if err := l.detach(ctx, true); err != nil {
			return nil, err
		}
		v = l.p.v
	} else if err := m.mayServe(v.Record.Id, v.Record.Name); err != nil {
		return nil, err
	}
	return &apiv1.ExportVolumeResponse{Volume: m.view(v.Record)}, nil
}

func (m *Manager) exportSnapshot(ctx context.Context, r *apiv1.ExportVolumeRequest) (*apiv1.ExportVolumeResponse, error) {
	v, s, unlock, err := m.lockSnapshot(ctx, r.Name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if r.Stop {
		m.dropSnapExport(s.Id)
		return &apiv1.ExportVolumeResponse{Volume: m.view(v.Record)}, nil
	}
	e, err := m.openSnapExport(v.Record, s)
	if err != nil {
		return nil, fmt.Errorf("export snapshot %q: %w", r.Name, err)
	}
	return &apiv1.ExportVolumeResponse{Uri: m.exportURI(e.name), Volume: m.view(v.Record)}, nil
}

// openSnapExport serves a snapshot, or returns the loop that does. Called
// with the volume's lock.
func (m *Manager) openSnapExport(rec *recordsv1.Volume, s *recordsv1.Snapshot) (*snapExport, error) {
	m.mu.Lock()
	e, n, closed := m.exports[s.Id], len(m.exports), m.closed
	m.mu.Unlock()
	switch {
	case e != nil:
		return e, nil
	case closed:
		return nil, fmt.Errorf("the agent is stopping: %w", errdefs.ErrUnavailable)
	case n >= snapExportsMax:
		return nil, fmt.Errorf("%d snapshots are exported already; stop some with `moraine volume export --stop`: %w", n, errdefs.ErrResourceExhausted)
	case s.State != recordsv1.SnapshotState_SNAPSHOT_READY:
		return nil, fmt.Errorf("the snapshot is %s: %w", snapshotWord(s.State), errdefs.ErrFailedPrecondition)
	}
	mem := member(rec)
	if mem == nil {
		return nil, fmt.Errorf("it has no replica: %w", errdefs.ErrDataLoss)
	}
	st, release, err := m.o.Drives.Acquire(mem.DriveId)
	if err != nil {
		return nil, err
	}
	e = &snapExport{name: rec.Name + "@" + s.Name, release: release}
	if e.loop, err = m.snapLoop(st, mem.ReplicaId, s.Id, e.name); err != nil {
		release()
		return nil, err
	}
	m.mu.Lock()
	m.exports[s.Id] = e
	m.mu.Unlock()
	return e, nil
}

func (m *Manager) snapLoop(st *store.Store, replica, snap, name string) (*nbdserver.Loop, error) {
	rid, err := store.ParseID(replica)
	if err != nil {
		return nil, err
	}
	sid, err := store.ParseID(snap)
	if err != nil {
		return nil, err
	}
	r, err := st.Replica(rid)
	if err != nil {
		return nil, err
	}
	loop, err := newLoop(m, name,
		func() (aio.Engine, error) { return aio.New(st.Mode()) },
		func(e aio.Engine) (block.Queue, error) { return r.OpenSnapshot(e, sid) })
	if err != nil {
		return nil, err
	}
	return loop, loop.Start()
}

// dropSnapExport ends serving a snapshot.
func (m *Manager) dropSnapExport(id string) {
	m.mu.Lock()
	e := m.exports[id]
	delete(m.exports, id)
	m.mu.Unlock()
	if e != nil {
		e.loop.Close()
		e.release()
	}
}

func (m *Manager) closeSnapExports() {
	m.mu.Lock()
	ids := make([]string, 0, len(m.exports))
	for id := range m.exports {
		ids = append(ids, id)
	}
	m.mu.Unlock()
	for _, id := range ids {
		m.dropSnapExport(id)
	}
}

// Exports serves volumes that are attached with kind socket, and snapshots, to
// an nbdserver.Server.
type Exports struct{ m *Manager }

// Exports returns the catalogue of the node's NBD socket.
func (m *Manager) Exports() Exports { return Exports{m} }

var _ nbdserver.Exports = Exports{}

// Lookup implements nbdserver.Exports. A snapshot is opened when it is asked
// for; a volume must have been exported.
func (x Exports) Lookup(ctx context.Context, name string, p nbdserver.Peer) (*nbdserver.Export, error) {
	if strings.Contains(name, "@") {
		v, s, unlock, err := x.m.lockSnapshot(ctx, name)
		if err != nil {
			return nil, err
		}
		defer unlock()
		e, err := x.m.openSnapExport(v.Record, s)
		if err != nil {
			return nil, err
		}
		return &nbdserver.Export{Name: e.name, Description: "snapshot", Loop: e.loop, ReadOnly: true}, nil
	}
	for _, l := range x.m.sockets() {
		if l.name == name || l.id == name {
			return &nbdserver.Export{Name: l.name, Description: "volume", Loop: l.loop, ReadOnly: l.file.ReadOnly}, nil
		}
	}
	if _, err := x.m.find(ctx, name); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("volume %q is not exported; `moraine volume export %s` does that: %w", name, name, errdefs.ErrFailedPrecondition)
}

// List implements nbdserver.Exports.
func (x Exports) List(context.Context, nbdserver.Peer) ([]nbd.ExportEntry, error) {
	var out []nbd.ExportEntry
	for _, l := range x.m.sockets() {
		out = append(out, nbd.ExportEntry{Name: l.name, Description: "volume"})
	}
	x.m.mu.Lock()
	defer x.m.mu.Unlock()
	for _, e := range x.m.exports {
		out = append(out, nbd.ExportEntry{Name: e.name, Description: "snapshot"})
	}
	slices.SortFunc(out, func(a, b nbd.ExportEntry) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// sockets lists what is attached with kind socket.
func (m *Manager) sockets() []*live {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []*live
	for _, l := range m.live {
		if l.file.Kind == kindSocket && l.loop != nil {
			out = append(out, l)
		}
	}
	return out
}

// DiffSnapshot implements api.Snapshots.
func (m *Manager) DiffSnapshot(ctx context.Context, r *apiv1.DiffSnapshotRequest, send func(*apiv1.DiffExtents) error) error {
	const batchMax = 1024
	rep, from, to, release, err := m.diffOf(ctx, r)
	if err != nil {
		return fmt.Errorf("diff from %q to %q: %w", r.From, r.To, err)
	}
	defer release()
	batch := &apiv1.DiffExtents{}
	flush := func() error {
		if len(batch.Extents) == 0 {
			return nil
		}
		err := errors.Join(send(batch), ctx.Err())
		batch = &apiv1.DiffExtents{}
		return err
	}
	view, err := m.viewOf(ctx, r.To, rep, to)
	if err != nil {
		return fmt.Errorf("diff from %q to %q: %w", r.From, r.To, err)
	}
	defer func() { _ = view.Close() }() // never fails
	err = rep.DiffView(from, view, func(off, length int64, hole bool) error {
		if n := len(batch.Extents); n > 0 {
			if last := batch.Extents[n-1]; last.Offset+last.Length == off && last.Hole == hole {
				last.Length += length
				return nil
			}
		}
		if len(batch.Extents) == batchMax {
			if err := flush(); err != nil {
				return err
			}
		}
		batch.Extents = append(batch.Extents, &apiv1.DiffExtents_Extent{Offset: off, Length: length, Hole: hole})
		return nil
	})
	if err != nil {
		return err
	}
	return flush()
}

// viewOf opens a state of a replica: a snapshot, or (snap nil) the volume as it
// is now, for which an attached volume stands still for a moment.
func (m *Manager) viewOf(ctx context.Context, name string, rep *store.Replica, snap *store.ID) (*store.View, error) {
	if snap != nil {
		return rep.View(snap)
	}
	v, unlock, err := m.lock(ctx, name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	l := m.attached(v.Record.Id)
	if l == nil || l.closing {
		return rep.View(nil)
	}
	var view *store.View
	err = l.quiesce(ctx, func() (err error) { view, err = rep.Now(); return err }, func() error { return nil })
	return view, err
}

// diffOf resolves a diff request to two states of one replica.
func (m *Manager) diffOf(ctx context.Context, r *apiv1.DiffSnapshotRequest) (rep *store.Replica, from, to *store.ID, release func(), err error) {
	toVolume, _, _ := strings.Cut(r.To, "@")
	v, err := m.find(ctx, toVolume)
	if err != nil {
		return nil, nil, nil, nil, err
	}
	if to, err = m.stateOf(ctx, v.Record, r.To); err != nil {
		return nil, nil, nil, nil, err
	}
	if r.From != "" {
		if !strings.Contains(r.From, "@") {
			return nil, nil, nil, nil, fmt.Errorf("%q: %w: a diff starts from a snapshot", r.From, errdefs.ErrInvalidArgument)
		}
		if from, err = m.stateOf(ctx, v.Record, r.From); err != nil {
			return nil, nil, nil, nil, err
		}
	}
	mem := member(v.Record)
	if mem == nil {
		return nil, nil, nil, nil, fmt.Errorf("volume %q has no replica: %w", v.Record.Name, errdefs.ErrDataLoss)
	}
	s, release, err := m.o.Drives.Acquire(mem.DriveId)
	if err != nil {
		return nil, nil, nil, nil, err
	}
	id, err := store.ParseID(mem.ReplicaId)
	if err == nil {
		rep, err = s.Replica(id)
	}
	if err != nil {
		release()
		return nil, nil, nil, nil, err
	}
	return rep, from, to, release, nil
}

// stateOf is the snapshot's ID, or nil for the volume as it is now.
func (m *Manager) stateOf(ctx context.Context, rec *recordsv1.Volume, name string) (*store.ID, error) {
	if !strings.Contains(name, "@") {
		return nil, nil
	}
	v, s, err := m.findSnapshot(ctx, name)
	if err != nil {
		return nil, err
	}
	if v.Record.Id != rec.Id {
		return nil, fmt.Errorf("%q is of another volume than %q: %w", name, rec.Name, errdefs.ErrInvalidArgument)
	}
	id, err := store.ParseID(s.Id)
	return &id, err
}
