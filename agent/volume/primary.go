package volume

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	recordsv1 "github.com/moraine-storage/moraine/agent/cluster/records/v1"
	"github.com/moraine-storage/moraine/drivers/replication"
	"github.com/moraine-storage/moraine/drivers/store"
	"github.com/moraine-storage/moraine/plugins/errdefs"
	"google.golang.org/protobuf/proto"
)

// primary is this node as the only writer of a volume: one session, from
// becomePrimary to resign.
type primary struct {
	m       *Manager
	v       volumeRecord
	session store.SessionID
	epoch   store.Epoch
	store   *store.Store
	replica *store.Replica
	release func() // of the drive
	// deviceLives says whether a device of an earlier session may go on.
	deviceLives  bool
	deviceReason string
}

// attachOptions of becomePrimary; the zero value is a maintenance attach.
type attachOptions struct {
	// own are the sessions of a device that outlived its mirror.
	own []uint64
	// announce stores the new session with them, durably, before it can
	// become active. May be nil when there is no device.
	announce func(n uint64, session string) error
	// keep is a snapshot in the making that is not to be undone.
	keep string
	// recovering is set by those who settle what an earlier agent left.
	recovering bool
}

// becomePrimary is 0001 section 4.1, steps 1 to 7. On error the record is as
// it was, but for its epoch.
func (m *Manager) becomePrimary(ctx context.Context, v volumeRecord, o attachOptions) (*primary, error) {
	rec := v.Record
	if rec.State != recordsv1.VolumeState_VOLUME_READY {
		return nil, fmt.Errorf("volume %q is %s: %w", rec.Name, stateWord(rec.State), errdefs.ErrFailedPrecondition)
	}
	// Step 1.
	if p := rec.Primary; p != nil && p.NodeId != m.o.NodeID {
		return nil, fmt.Errorf("volume %q is attached on node %s: %w", rec.Name, p.NodeId, errdefs.ErrFailedPrecondition)
	}
	if !o.recovering {
		if err := m.mayServe(rec.Id, rec.Name); err != nil {
			return nil, err
		}
	}
	// Not yet: who waits for a drive would use up epochs.
	if mem := member(rec); mem != nil {
		if err := m.withReplica(mem, func(*store.Replica) error { return nil }); errors.Is(err, errdefs.ErrUnavailable) {
			return nil, fmt.Errorf("volume %q: replica %s: %w", rec.Name, mem.ReplicaId, err)
		}
	}
	before := proto.Clone(rec).(*recordsv1.Volume)
	p := &primary{m: m}
	rand.Read(p.session[:])
	// Step 2.
	v, err := m.update(ctx, v, func(r *recordsv1.Volume) {
		p.epoch = store.Epoch{N: r.GetEpoch().GetN() + 1, Tag: randomTag()}
		r.Epoch = &recordsv1.Epoch{N: p.epoch.N, Tag: p.epoch.Tag}
		r.Primary = &recordsv1.Primary{NodeId: m.o.NodeID, Session: p.session.String()}
		r.Clean = false
	})
	if err != nil {
		return nil, fmt.Errorf("volume %q: become primary: %w", rec.Name, err)
	}
	p.v = v
	if err := p.start(ctx, before, o); err != nil {
		return nil, errors.Join(err, p.rollBack(ctx, before))
	}
	return p, nil
}

func randomTag() uint64 {
	var b [8]byte
	rand.Read(b[:])
	return binary.LittleEndian.Uint64(b[:])
}

// start is steps 3 to 7.
func (p *primary) start(ctx context.Context, before *recordsv1.Volume, o attachOptions) error {
	name := p.v.Record.Name
	announce := func() error {
		if o.announce == nil {
			return nil
		}
		return o.announce(p.epoch.N, p.session.String())
	}
	if !o.recovering {
		if err := announce(); err != nil {
			return err
		}
	}
	answer, err := p.promote(ctx)
	if err != nil {
		return fmt.Errorf("volume %q: %w", name, err)
	}
	d, err := replication.DecideAttach(attachRecord(before, p.epoch), []replication.Answer{answer}, o.own)
	if err != nil {
		return fmt.Errorf("volume %q: %w: %w", name, err, errdefs.ErrUnavailable)
	}
	p.deviceLives, p.deviceReason = d.DeviceLives, d.DeviceReason
	if o.recovering && d.DeviceLives {
		// Only now: a session in which the device may not go on is none of its
		// own. Listed, it would let the device live at the next attempt.
		if err := announce(); err != nil {
			return err
		}
	}
	// Step 5. With one member the set cannot shrink.
	v, err := p.m.update(ctx, p.v, func(r *recordsv1.Volume) {
		r.Active = p.epoch.N
		applyMembers(r, d)
	})
	if err != nil {
		return fmt.Errorf("volume %q: activate: %w", name, err)
	}
	p.v = v
	if err := sleep(ctx, d.Wait); err != nil { // step 6
		return err
	}
	return p.finishSnapshots(ctx, o.keep) // step 7; nothing to reconcile with one member
}

// promote is step 3 for the one member.
func (p *primary) promote(ctx context.Context) (replication.Answer, error) {
	rec := p.v.Record
	mem := member(rec)
	if mem == nil {
		return replication.Answer{}, fmt.Errorf("it has no replica: %w", errdefs.ErrDataLoss)
	}
	s, release, err := p.m.o.Drives.Acquire(mem.DriveId)
	if err != nil {
		return replication.Answer{}, fmt.Errorf("replica %s: %w", mem.ReplicaId, err)
	}
	p.store, p.release = s, release
	id, err := store.ParseID(mem.ReplicaId)
	if err != nil {
		return replication.Answer{}, err
	}
	r, err := s.Replica(id)
	if err != nil {
		return replication.Answer{}, fmt.Errorf("replica %s on drive %s: %w", mem.ReplicaId, mem.DriveId, err)
	}
	p.replica = r
	b, err := proto.Marshal(rec)
	if err != nil {
		return replication.Answer{}, err
	}
	a, err := r.Promote(ctx, store.Promise{Promised: store.Promised{Epoch: p.epoch, Session: p.session}, Record: b})
	if err != nil {
		return replication.Answer{}, fmt.Errorf("promote replica %s: %w", mem.ReplicaId, err)
	}
	return replication.Answer{
		Replica: mem.ReplicaId, OldPromised: a.Old.Epoch.N, LossID: lossWord(a.LossID),
		// A store is opened by one process of one node (S5), and a replica of
		// a one-member set grants leases to nobody else: what it granted was
		// granted to this node.
		Remaining: a.Remaining, OwnGrant: true,
	}, nil
}

// lossWord is a loss ID as records keep it.
func lossWord(id uint64) string { return fmt.Sprintf("%016x", id) }

func attachRecord(before *recordsv1.Volume, e store.Epoch) replication.Record {
	r := replication.Record{Epoch: replication.Epoch{N: e.N, Tag: e.Tag}, Active: before.Active, Clean: before.Clean}
	for _, g := range before.Groups {
		for _, mem := range g.Members {
			r.Members = append(r.Members, replication.Member{Replica: mem.ReplicaId, Role: replication.Role(mem.Role), LossID: mem.LossId})
		}
	}
	return r
}

func applyMembers(r *recordsv1.Volume, d replication.Attach) {
	in := map[string]string{}
	for _, mem := range d.InSync {
		in[mem.Replica] = mem.LossID
	}
	for _, g := range r.Groups {
		for _, mem := range g.Members {
			if loss, ok := in[mem.ReplicaId]; ok {
				mem.Role, mem.LossId = recordsv1.Role_IN_SYNC, loss
			} else if mem.Role == recordsv1.Role_IN_SYNC {
				mem.Role, mem.LossId = recordsv1.Role_OUTDATED, ""
			}
		}
	}
}

// member is the only member of a one-replica volume, or nil.
func member(r *recordsv1.Volume) *recordsv1.Member {
	if len(r.Groups) != 1 || len(r.Groups[0].Members) != 1 {
		return nil
	}
	return r.Groups[0].Members[0]
}

// finishSnapshots undoes snapshots that a dead session left half made, and
// finishes the deletion of others.
func (p *primary) finishSnapshots(ctx context.Context, keep string) error {
	for _, s := range p.v.Record.Snapshots {
		if s.Id == keep {
			continue
		}
		id, err := store.ParseID(s.Id)
		if err != nil {
			return err
		}
		switch s.State {
		case recordsv1.SnapshotState_SNAPSHOT_CREATING:
			err = p.replica.Thaw(id)
		case recordsv1.SnapshotState_SNAPSHOT_DELETING:
			err = p.replica.Drop(id)
		default:
			continue
		}
		if err != nil {
			return fmt.Errorf("volume %q: finish snapshot %q: %w", p.v.Record.Name, s.Name, err)
		}
		if err := p.forgetSnapshot(ctx, s.Id); err != nil {
			return err
		}
	}
	return nil
}

func (p *primary) forgetSnapshot(ctx context.Context, id string) error {
	v, err := p.m.update(ctx, p.v, func(r *recordsv1.Volume) {
		kept := r.Snapshots[:0:0]
		for _, s := range r.Snapshots {
			if s.Id != id {
				kept = append(kept, s)
			}
		}
		r.Snapshots = kept
	})
	if err != nil {
		return err
	}
	p.v = v
	return nil
}

// rollBack gives up a session that never served.
func (p *primary) rollBack(ctx context.Context, before *recordsv1.Volume) error {
	if p.release != nil {
		p.release()
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleWait)
	defer cancel()
	_, err := p.m.update(ctx, p.v, func(r *recordsv1.Volume) {
		// The device of an earlier session may still be there: then this node
		// stays the primary in name, as it was before.
		r.Primary = before.Primary
		// Clean holds: nothing was written under this session.
		r.Clean = before.Clean && r.Active == before.Active
	})
	if err != nil {
		return fmt.Errorf("volume %q: give up being primary: %w", p.v.Record.Name, err)
	}
	return nil
}

// resign ends the session of a volume whose data path has been drained and
// flushed (0001, 4.5 detach). On error the session goes on in name, and the
// drive is still held: the caller tries again, or releases it and leaves the
// record to the next one who becomes primary.
func (p *primary) resign(ctx context.Context, change func(*recordsv1.Volume)) error {
	v, err := p.m.update(ctx, p.v, func(r *recordsv1.Volume) {
		r.Primary = nil
		r.Clean = true
		r.Epoch = &recordsv1.Epoch{N: r.Epoch.N + 1, Tag: randomTag()}
		if change != nil {
			change(r)
		}
	})
	if err != nil {
		return fmt.Errorf("volume %q: detach: %w", p.v.Record.Name, err)
	}
	p.v = v
	p.release()
	return nil
}

// maintain attaches a detached volume without a device, runs fn as its
// primary, and detaches it again (0001, 1.4).
func (m *Manager) maintain(ctx context.Context, v volumeRecord, keep string, fn func(p *primary) error) (volumeRecord, error) {
	p, err := m.becomePrimary(ctx, v, attachOptions{keep: keep})
	if err != nil {
		return v, err
	}
	defer p.release()
	// The session is ended whatever becomes of the caller.
	dctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleWait)
	defer cancel()
	err = fn(p)
	if ferr := p.store.Flush(dctx); ferr != nil {
		return p.v, errors.Join(err, ferr)
	}
	err = errors.Join(err, p.resign(dctx, nil))
	return p.v, err
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
