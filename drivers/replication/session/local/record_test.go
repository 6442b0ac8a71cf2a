package local

import (
	"errors"
	"reflect"
	"testing"

	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/replication"
)

func sampleRecord() *replication.Record {
	return &replication.Record{Epoch: replication.Epoch{N: 1<<64 - 1, Tag: 1<<63 + 1}, Active: 7, Clean: true, Attempt: 1 << 60, Size: 1 << 40,
		Members:   []replication.Member{{Replica: "a", Role: replication.InSync, LossID: "f"}, {Replica: "b", Role: replication.Leaving}},
		Primary:   replication.Primary{Node: "n", Session: replication.Session{1, 15: 2}},
		Snapshots: []replication.Snapshot{{ID: replication.SnapshotID{3}, State: replication.Deleting}}}
}

// Goal: what a replica keeps of a record is the record, with numbers of 64 bits.
func TestRecordForm(t *testing.T) {
	for _, want := range []*replication.Record{sampleRecord(), {}} {
		b, err := EncodeRecord(want)
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodeRecord(b)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v\ngot  %+v\nwant %+v", b, err, got, want)
		}
	}
	if _, err := EncodeRecord(nil); !errors.Is(err, block.ErrInvalid) {
		t.Errorf("no record: %v", err)
	}
	for _, bad := range []string{``, `{}`, `[]`, `{"version":2}`, `{"version":1} {}`, `{"version":1,"size":-1}`, `{"version":1,"session":"00"}`,
		`{"version":1,"members":[{"replica":"a","role":9}]}`, `{"version":1,"members":[{"replica":"","role":1}]}`,
		`{"version":1,"snapshots":[{"id":"zz","state":1}]}`, `{"version":1,"unknown":1}`} {
		if _, err := DecodeRecord([]byte(bad)); !errors.Is(err, block.ErrInvalid) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

// FuzzRecord: no input panics, and what is read is written the same.
func FuzzRecord(f *testing.F) {
	b, err := EncodeRecord(sampleRecord())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"version":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := DecodeRecord(b)
		if err != nil {
			return
		}
		again, err := EncodeRecord(r)
		if err != nil {
			t.Fatal(err)
		}
		r2, err := DecodeRecord(again)
		if err != nil || !reflect.DeepEqual(r, r2) {
			t.Fatalf("%v: %+v, then %+v", err, r, r2)
		}
	})
}
