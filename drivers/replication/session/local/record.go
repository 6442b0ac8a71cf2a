package local

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"

	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/replication"
)

// recordVersion is that of the form in which a replica keeps the record.
const recordVersion = 1

// A record as a replica keeps it beside its promise: JSON, for it is small,
// written once per change of the set, and read by people after a disaster.
type recordForm struct {
	Version   int            `json:"version"`
	Epoch     uint64         `json:"epoch"`
	Tag       uint64         `json:"tag"`
	Active    uint64         `json:"active"`
	Clean     bool           `json:"clean"`
	Members   []memberForm   `json:"members"`
	Node      string         `json:"node,omitempty"`
	Session   string         `json:"session,omitempty"` // 32 hexadecimal digits; empty: nobody
	Attempt   uint64         `json:"attempt"`
	Size      int64          `json:"size"`
	Snapshots []snapshotForm `json:"snapshots,omitempty"`
}

type memberForm struct {
	Replica string           `json:"replica"`
	Role    replication.Role `json:"role"`
	LossID  string           `json:"loss_id,omitempty"`
}

type snapshotForm struct {
	ID    string                    `json:"id"`
	State replication.SnapshotState `json:"state"`
}

// EncodeRecord gives the form of a record that a replica keeps.
func EncodeRecord(r *replication.Record) ([]byte, error) {
	if r == nil {
		return nil, fmt.Errorf("encode record: none given: %w", block.ErrInvalid)
	}
	f := recordForm{Version: recordVersion, Epoch: r.Epoch.N, Tag: r.Epoch.Tag, Active: r.Active, Clean: r.Clean,
		Node: r.Primary.Node, Attempt: r.Attempt, Size: r.Size}
	if s := r.Primary.Session; s != (replication.Session{}) {
		f.Session = hex.EncodeToString(s[:])
	}
	for _, m := range r.Members {
		f.Members = append(f.Members, memberForm(m))
	}
	for _, s := range r.Snapshots {
		f.Snapshots = append(f.Snapshots, snapshotForm{hex.EncodeToString(s.ID[:]), s.State})
	}
	return json.Marshal(&f)
}

// DecodeRecord reads what EncodeRecord wrote; anything else is an error.
func DecodeRecord(b []byte) (*replication.Record, error) {
	var f recordForm
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil {
		return nil, fmt.Errorf("decode record: %w: %w", block.ErrInvalid, err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("decode record: more than one: %w", block.ErrInvalid)
	}
	if f.Version != recordVersion || f.Size < 0 || len(f.Members) > replication.MaxMembers {
		return nil, fmt.Errorf("decode record: version %d, %d bytes, %d members: %w", f.Version, f.Size, len(f.Members), block.ErrInvalid)
	}
	r := &replication.Record{Epoch: replication.Epoch{N: f.Epoch, Tag: f.Tag}, Active: f.Active, Clean: f.Clean,
		Primary: replication.Primary{Node: f.Node}, Attempt: f.Attempt, Size: f.Size}
	if f.Session != "" {
		if err := parse16(r.Primary.Session[:], f.Session); err != nil {
			return nil, err
		}
	}
	for _, m := range f.Members {
		if m.Role < replication.InSync || m.Role > replication.Leaving || m.Replica == "" {
			return nil, fmt.Errorf("decode record: member %q with role %d: %w", m.Replica, m.Role, block.ErrInvalid)
		}
		r.Members = append(r.Members, replication.Member(m))
	}
	for _, s := range f.Snapshots {
		x := replication.Snapshot{State: s.State}
		if s.State < replication.Creating || s.State > replication.Deleting {
			return nil, fmt.Errorf("decode record: snapshot %q with state %d: %w", s.ID, s.State, block.ErrInvalid)
		}
		if err := parse16(x.ID[:], s.ID); err != nil {
			return nil, err
		}
		r.Snapshots = append(r.Snapshots, x)
	}
	return r, nil
}

func parse16(dst []byte, s string) error {
	if b, err := hex.DecodeString(s); err == nil && len(b) == len(dst) {
		copy(dst, b)
		return nil
	}
	return fmt.Errorf("decode record: id %q: want 32 hexadecimal digits: %w", s, block.ErrInvalid)
}
