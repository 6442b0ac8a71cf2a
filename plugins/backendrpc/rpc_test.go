package backendrpc

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/moraine-storage/moraine/backends"
	"github.com/moraine-storage/moraine/plugins/errdefs"
	pb "github.com/moraine-storage/moraine/plugins/proto/backend/v1"
	"github.com/moraine-storage/moraine/plugins/schema"
)

// TestEnums: conversion relies on equal numbers in Go and on the wire.
func TestEnums(t *testing.T) {
	states := map[backends.State]pb.DriveState{
		backends.StateReady: pb.DriveState_DRIVE_STATE_READY, backends.StateBlank: pb.DriveState_DRIVE_STATE_BLANK,
		backends.StateRefused: pb.DriveState_DRIVE_STATE_REFUSED, backends.StateGone: pb.DriveState_DRIVE_STATE_GONE,
		backends.StateFailed: pb.DriveState_DRIVE_STATE_FAILED,
	}
	for g, w := range states {
		if int(g) != int(w) {
			t.Errorf("%s is %d and %d", g, g, w)
		}
	}
	kinds := map[backends.Kind]pb.AttachmentKind{
		backends.KindDir: pb.AttachmentKind_ATTACHMENT_KIND_DIR, backends.KindBlockdev: pb.AttachmentKind_ATTACHMENT_KIND_BLOCKDEV,
		backends.KindFile: pb.AttachmentKind_ATTACHMENT_KIND_FILE,
	}
	for g, w := range kinds {
		if int(g) != int(w) {
			t.Errorf("%s is %d and %d", g, g, w)
		}
	}
	if len(states) != len(pb.DriveState_name)-1 || len(kinds) != len(pb.AttachmentKind_name)-1 {
		t.Error("a value of the wire is not listed here")
	}
}

const sampleID = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"

func TestDriveRoundTrip(t *testing.T) {
	want := backends.Drive{ID: sampleID, Source: "/dev/x", Serial: "S", Size: 1 << 40, MaxSize: 2 << 40, Class: "ssd",
		State: backends.StateFailed, Reason: "EIO", Node: "node-a", Created: time.Unix(1700000000, 5).UTC()}
	got, err := fromDrive(toDrive(want, backends.MaxText), false)
	if err != nil || !cmp.Equal(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestOutOfTime: a backend whose call ended with its context does not know what
// it did, whatever class it names; one that says no in time does.
func TestOutOfTime(t *testing.T) {
	late, cancel := context.WithCancel(t.Context())
	cancel()
	for name, test := range map[string]struct {
		ctx  context.Context
		want bool
	}{"in time": {t.Context(), false}, "late": {late, true}} {
		_, err := run(test.ctx, func(context.Context) (*pb.Drive, error) {
			return nil, fmt.Errorf("create: %w", errdefs.ErrUnavailable)
		})
		if got := errdefs.FromGRPC(err); !errdefs.IsUnavailable(got) || errdefs.Indeterminate(got) != test.want {
			t.Errorf("%s: %v, indeterminate: %v", name, got, errdefs.Indeterminate(got))
		}
	}
}

// TestBrokenAnswers: what a plugin may say wrongly is an error, and it is its fault.
func TestBrokenAnswers(t *testing.T) {
	ready := pb.DriveState_DRIVE_STATE_READY
	for name, d := range map[string]*pb.Drive{
		"nil": nil, "no id": {State: ready}, "bad id": {Id: "x", State: ready}, "no state": {Id: sampleID},
		"blank with id": {Id: sampleID, State: pb.DriveState_DRIVE_STATE_BLANK}, "state 77": {Id: sampleID, State: 77},
		"size": {Id: sampleID, State: ready, Size: -1}, "node": {Id: sampleID, State: ready, Node: "a/b"},
		"gone without id": {State: pb.DriveState_DRIVE_STATE_GONE},
	} {
		if _, err := fromDrive(d, true); !errors.Is(err, errdefs.ErrInternal) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, a := range map[string]*pb.AttachResponse{
		"nil": nil, "relative": {Path: "a", Kind: 1, Size: 1}, "kind": {Path: "/a", Kind: 9, Size: 1}, "size": {Path: "/a", Kind: 1},
	} {
		if _, err := fromAttachment(a); !errors.Is(err, errdefs.ErrInternal) {
			t.Errorf("attachment %s: %v", name, err)
		}
	}
	if _, err := fromHealth(&pb.HealthResponse{State: pb.DriveState_DRIVE_STATE_BLANK}); err == nil {
		t.Error("blank is no health")
	}
	if !fromTime(&timestamppb.Timestamp{Nanos: -1}).IsZero() {
		t.Error("impossible time")
	}
}

// TestSchemaRoundTrip: every type, with default and bounds.
func TestSchemaRoundTrip(t *testing.T) {
	want := schema.Schema{Attributes: []schema.Attribute{
		{Name: "s", Type: schema.String, Default: "a", Allowed: []string{"a", "b"}, Doc: "d"},
		{Name: "n", Type: schema.Number, Default: int64(5), Min: schema.Bound(1), Max: schema.Bound(9)},
		{Name: "f", Type: schema.Number, Default: 2.5},
		{Name: "b", Type: schema.Bool, Default: false},
		{Name: "z", Type: schema.Size, Default: int64(1 << 50)},
		{Name: "d", Type: schema.Duration, Default: 90 * time.Second},
		{Name: "l", Type: schema.List, Default: []string{"x"}, Required: false},
		{Name: "m", Type: schema.Map, Default: map[string]string{"k": "v"}},
		{Name: "r", Type: schema.String, Required: true, Sensitive: true},
	}}
	w, err := toSchema(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := fromSchema(w)
	if err != nil || !cmp.Equal(got, want) {
		t.Errorf("%v\n%s", err, cmp.Diff(want, got))
	}
}

// FuzzConfigure: whatever a peer sends as configuration is checked or refused,
// and what is accepted survives the way back.
func FuzzConfigure(f *testing.F) {
	sch := schema.Schema{Attributes: []schema.Attribute{
		{Name: "paths", Type: schema.List}, {Name: "size", Type: schema.Size}, {Name: "tags", Type: schema.Map},
		{Name: "n", Type: schema.Number}, {Name: "wait", Type: schema.Duration}, {Name: "on", Type: schema.Bool}, {Name: "s", Type: schema.String},
	}}
	for _, m := range []map[string]any{
		{"paths": []string{"/a", "/b"}, "size": int64(1 << 30), "tags": map[string]string{"a": "b"}, "n": 1.5, "wait": "5s", "on": true, "s": "x"},
		{"nope": "x"}, {"size": "-1"}, {"wait": time.Second}, {},
	} {
		w, err := toMap(m)
		if err != nil {
			f.Fatal(err)
		}
		p, err := proto.Marshal(w)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		w := &pb.MapValue{}
		if proto.Unmarshal(p, w) != nil {
			return
		}
		free, err := fromMap(w, 1)
		if err != nil {
			return
		}
		checked, err := sch.Check(free)
		if err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Fatalf("class of %v", err)
			}
			return
		}
		var out struct {
			Paths []string          `config:"paths"`
			Size  int64             `config:"size"`
			Tags  map[string]string `config:"tags"`
			N     any               `config:"n"`
			Wait  time.Duration     `config:"wait"`
			On    bool              `config:"on"`
			S     string            `config:"s"`
		}
		if err := schema.Decode(checked, &out); err != nil {
			t.Fatalf("checked, but does not decode: %v from %v", err, checked)
		}
		back, err := toMap(schema.Plain(checked))
		if err != nil {
			t.Fatal(err)
		}
		again, err := fromMap(back, 1)
		if err != nil {
			t.Fatal(err)
		}
		rechecked, err := sch.Check(again)
		if err != nil || !cmp.Equal(rechecked, checked) {
			t.Fatalf("%v became %v, %v", checked, rechecked, err)
		}
	})
}

// FuzzSchema: a schema from a plugin is valid or refused.
func FuzzSchema(f *testing.F) {
	w, err := toSchema(schema.Schema{Attributes: []schema.Attribute{{Name: "a", Type: schema.Size, Default: int64(1), Min: schema.Bound(0)}}})
	if err != nil {
		f.Fatal(err)
	}
	p, err := proto.Marshal(w)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(p)
	f.Fuzz(func(t *testing.T, p []byte) {
		w := &pb.Schema{}
		if proto.Unmarshal(p, w) != nil {
			return
		}
		s, err := fromSchema(w)
		if err != nil {
			return
		}
		if err := s.Validate(); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Check(nil); err != nil && !errdefs.IsInvalidArgument(err) {
			t.Fatal(err)
		}
	})
}

// FuzzDrive: an answer about a drive never panics, and what passes is possible.
func FuzzDrive(f *testing.F) {
	p, err := proto.Marshal(toDrive(backends.Drive{ID: sampleID, State: backends.StateReady, Size: 1 << 30}, 100))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(p, true)
	f.Fuzz(func(t *testing.T, p []byte, candidate bool) {
		w := &pb.Drive{}
		if proto.Unmarshal(p, w) != nil {
			return
		}
		d, err := fromDrive(w, candidate)
		if err != nil {
			return
		}
		if (d.ID == "" && !candidate) || d.Size < 0 || len(d.Reason) > backends.MaxText || d.State.String() == "unknown" {
			t.Fatalf("%+v", d)
		}
	})
}
