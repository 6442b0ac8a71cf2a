package backendrpc

import (
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/moraine-storage/moraine/backends"
	"github.com/moraine-storage/moraine/plugins/errdefs"
	pb "github.com/moraine-storage/moraine/plugins/proto/backend/v1"
)

// The enumerations of Go and wire have the same numbers (a test compares them).

func toDrive(d backends.Drive, maxText int) *pb.Drive {
	out := &pb.Drive{
		Id: string(d.ID), Source: clean(d.Source, maxText), Serial: clean(d.Serial, maxText), Size: d.Size, MaxSize: d.MaxSize,
		Class: clean(d.Class, 64), State: pb.DriveState(d.State), Reason: clean(d.Reason, maxText), Node: string(d.Node),
	}
	if !d.Created.IsZero() {
		out.Created = timestamppb.New(d.Created)
	}
	return out
}

func toDrives(in []backends.Drive, maxText int) []*pb.Drive {
	out := make([]*pb.Drive, len(in))
	for i, d := range in {
		out[i] = toDrive(d, maxText)
	}
	return out
}

func broken(format string, a ...any) error {
	return fmt.Errorf("plugin broke the contract: %s: %w", fmt.Sprintf(format, a...), errdefs.ErrInternal)
}

// fromDrive checks what a plugin says of a drive. candidate tells whether an
// entry without ID is allowed here.
func fromDrive(in *pb.Drive, candidate bool) (backends.Drive, error) {
	d := backends.Drive{
		ID: backends.DriveID(in.GetId()), Source: clean(in.GetSource(), backends.MaxText), Serial: clean(in.GetSerial(), backends.MaxText),
		Size: in.GetSize(), MaxSize: in.GetMaxSize(), Class: clean(in.GetClass(), 64), State: backends.State(in.GetState()),
		Reason: clean(in.GetReason(), backends.MaxText), Node: backends.NodeID(in.GetNode()),
	}
	isDrive := d.ID != "" || !candidate
	if isDrive {
		if err := d.ID.Check(); err != nil {
			return backends.Drive{}, broken("drive with id %.64q", in.GetId())
		}
	}
	if d.State < backends.StateReady || d.State > backends.StateFailed {
		return backends.Drive{}, broken("drive %.64q in state %d", in.GetId(), in.GetState())
	}
	if isDrive == (d.State == backends.StateBlank) && d.State != backends.StateRefused {
		return backends.Drive{}, broken("drive %.64q in state %s", in.GetId(), d.State)
	}
	if d.Size < 0 || d.MaxSize < 0 || d.Size > backends.MaxDriveSize {
		return backends.Drive{}, broken("drive %.64q of size %d", in.GetId(), in.GetSize())
	}
	if d.Node != "" && d.Node.Check() != nil {
		return backends.Drive{}, broken("drive %.64q on node %.64q", in.GetId(), in.GetNode())
	}
	d.Created = fromTime(in.GetCreated())
	return d, nil
}

func fromDrives(in []*pb.Drive, most int, candidates bool) ([]backends.Drive, error) {
	if len(in) > most {
		return nil, broken("%d drives in one answer, more than %d", len(in), most)
	}
	out := make([]backends.Drive, 0, len(in))
	for _, w := range in {
		d, err := fromDrive(w, candidates)
		if err != nil {
			return nil, err
		}
		out = append(out, d)
	}
	return out, nil
}

func fromAttachment(in *pb.AttachResponse) (backends.Attachment, error) {
	a := backends.Attachment{Path: in.GetPath(), Kind: backends.Kind(in.GetKind()), Size: in.GetSize(), Serial: clean(in.GetSerial(), backends.MaxText)}
	switch {
	case a.Kind < backends.KindDir || a.Kind > backends.KindFile:
		return backends.Attachment{}, broken("attachment of kind %d", in.GetKind())
	case !strings.HasPrefix(a.Path, "/") || len(a.Path) > backends.MaxText || strings.ContainsRune(a.Path, 0):
		return backends.Attachment{}, broken("attachment at path %.64q", a.Path)
	case a.Size <= 0 || a.Size > backends.MaxDriveSize:
		return backends.Attachment{}, broken("attachment of size %d", a.Size)
	}
	return a, nil
}

func fromHealth(in *pb.HealthResponse) (backends.Health, error) {
	h := backends.Health{State: backends.State(in.GetState()), Reason: clean(in.GetReason(), backends.MaxText), Checked: fromTime(in.GetChecked())}
	if h.State < backends.StateReady || h.State > backends.StateFailed || h.State == backends.StateBlank {
		return backends.Health{}, broken("health %d", in.GetState())
	}
	return h, nil
}

func fromTime(t *timestamppb.Timestamp) time.Time {
	if t == nil || t.CheckValid() != nil {
		return time.Time{}
	}
	return t.AsTime()
}

// clean makes a text fit for a message and a terminal: valid UTF-8, no control
// characters, bounded.
func clean(s string, most int) string {
	cut := len(s) > most
	if cut { // first: a plugin may hand us any length
		s = s[:most-len("...")]
	}
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if cut {
		s += "..."
	}
	return s
}
