package replication

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func members(loss ...string) []Member {
	var out []Member
	for i, l := range loss {
		out = append(out, Member{Replica: string(rune('A' + i)), Role: InSync, LossID: l})
	}
	return out
}

// Goal: each clause of 0001 section 4.1 steps 3 to 6 decides as written.
func TestDecideAttach(t *testing.T) {
	rec := func(clean bool, loss ...string) Record {
		return Record{Epoch: Epoch{N: 9}, Active: 7, Clean: clean, Members: members(loss...)}
	}
	tests := []struct {
		name    string
		rec     Record
		answers []Answer
		own     []uint64
		want    Attach
		err     error
	}{
		{"all intact, device of ours", rec(false, "x", "y"),
			[]Answer{{Replica: "A", OldPromised: 7, LossID: "x"}, {Replica: "B", OldPromised: 7, LossID: "y"}}, []uint64{5, 7},
			Attach{InSync: members("x", "y"), DeviceLives: true}, nil},
		{"device of ours, another served since", rec(false, "x"),
			[]Answer{{Replica: "A", OldPromised: 7, LossID: "x"}}, []uint64{5, 6},
			Attach{InSync: members("x"), DeviceReason: "another primary has served the volume since (active epoch 7)"}, nil},
		{"one lost power: it leaves, the device lives", rec(false, "x", "y"),
			[]Answer{{Replica: "A", OldPromised: 7, LossID: "x"}, {Replica: "B", OldPromised: 7, LossID: "new"}}, []uint64{7},
			Attach{InSync: members("x"), Outdated: []string{"B"}, Shrunk: true, DeviceLives: true}, nil},
		{"all lost power: all stay, the device dies", rec(false, "x", "y"),
			[]Answer{{Replica: "A", OldPromised: 7, LossID: "n1"}, {Replica: "B", OldPromised: 7, LossID: "n2"}}, []uint64{7},
			Attach{InSync: members("n1", "n2"), Lossy: true, DeviceReason: "every replica lost power or its drive since the device was opened: writes that it was told are done may be gone"}, nil},
		{"clean: loss ids do not matter", rec(true, "x"),
			[]Answer{{Replica: "A", OldPromised: 7, LossID: "n"}}, nil,
			Attach{InSync: members("n"), DeviceLives: false, DeviceReason: "another primary has served the volume since (active epoch 7)"}, nil},
		{"came back older by promise", rec(false, "x", "y"),
			[]Answer{{Replica: "A", OldPromised: 6, LossID: "x"}, {Replica: "B", OldPromised: 8, LossID: "y"}}, nil,
			Attach{InSync: []Member{{Replica: "B", Role: InSync, LossID: "y"}}, Outdated: []string{"A"}, Shrunk: true, DeviceReason: "another primary has served the volume since (active epoch 7)"}, nil},
		{"came back older by stamp", rec(false, "x"), []Answer{{Replica: "A", OldPromised: 7, LossID: "x", NewerStamp: true}}, nil, Attach{}, ErrCameBackOlder},
		{"the only one older", rec(false, "x"), []Answer{{Replica: "A", OldPromised: 3, LossID: "x"}}, nil, Attach{}, ErrCameBackOlder},
		{"nobody answers", rec(false, "x"), nil, nil, Attach{}, ErrNoInSync},
		{"only outdated answer", Record{Active: 1, Members: []Member{{Replica: "A", Role: InSync, LossID: "x"}, {Replica: "B", Role: Outdated}}},
			[]Answer{{Replica: "B", OldPromised: 5}}, nil, Attach{}, ErrNoInSync},
		{"leases are waited for, own grants not", rec(false, "x", "y"),
			[]Answer{{Replica: "A", OldPromised: 7, LossID: "x", Remaining: time.Second}, {Replica: "B", OldPromised: 7, LossID: "y", Remaining: time.Minute, OwnGrant: true}}, []uint64{7},
			Attach{InSync: members("x", "y"), DeviceLives: true, Wait: 1010 * time.Millisecond}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := DecideAttach(tt.rec, tt.answers, tt.own)
			if !errors.Is(err, tt.err) || (err == nil) != (tt.err == nil) {
				t.Fatalf("error %v, want %v", err, tt.err)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}
