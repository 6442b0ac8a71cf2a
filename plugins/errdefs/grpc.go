package errdefs

import (
	"context"
	"errors"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	errorsv1 "github.com/moraine-storage/moraine/plugins/proto/errors/v1"
)

// maxMessage bounds an error's text on the wire. gRPC carries it in a header,
// percent-encoded (up to three times as long) and peers commonly cap headers
// at 16 KiB: 4 KiB * 3 leaves room for the detail.
const maxMessage = 4 << 10

// classes pairs each class with its gRPC code. ToGRPC takes the first row that
// matches, so that an error of two classes has one answer; the context errors
// come first because a time-out is usually wrapped in a class as well.
var classes = []struct {
	err  error
	code codes.Code
}{
	{context.DeadlineExceeded, codes.DeadlineExceeded},
	{context.Canceled, codes.Canceled},
	{ErrInvalidArgument, codes.InvalidArgument},
	{ErrOutOfRange, codes.OutOfRange},
	{ErrNotFound, codes.NotFound},
	{ErrAlreadyExists, codes.AlreadyExists},
	{ErrPermissionDenied, codes.PermissionDenied},
	{ErrUnauthenticated, codes.Unauthenticated},
	{ErrFailedPrecondition, codes.FailedPrecondition},
	{ErrAborted, codes.Aborted},
	{ErrResourceExhausted, codes.ResourceExhausted},
	{ErrUnavailable, codes.Unavailable},
	{ErrUnimplemented, codes.Unimplemented},
	{ErrDataLoss, codes.DataLoss},
	{ErrInternal, codes.Internal},
}

// Code returns the gRPC code of err's class: OK for nil, Unknown for an error
// without a class (which is a bug of whoever made it, but not ours to hide).
func Code(err error) codes.Code {
	if err == nil {
		return codes.OK
	}
	for _, c := range classes {
		if errors.Is(err, c.err) {
			return c.code
		}
	}
	if s, ok := status.FromError(err); ok {
		return s.Code()
	}
	return codes.Unknown
}

// HasClass says whether err, or what it wraps, is of any class.
func HasClass(err error) bool { return err != nil && Code(err) != codes.Unknown }

// ToGRPC translates err at the edge of a server: its class becomes the code,
// its text the message, and whether it may have happened a detail. FromGRPC is
// the inverse. nil stays nil.
func ToGRPC(err error) error {
	if err == nil {
		return nil
	}
	s := status.New(Code(err), trim(err.Error()))
	with, derr := s.WithDetails(&errorsv1.Detail{Indeterminate: Indeterminate(err)})
	if derr != nil { // only an OK code or a broken message could: keep the class
		return s.Err()
	}
	return with.Err()
}

// FromGRPC translates the error of a gRPC call back: errors.Is works with the
// class, with context.Canceled and context.DeadlineExceeded (which then also
// is ErrUnavailable), and with ErrIndeterminate.
//
// An error that the transport made (it has no detail) is indeterminate wherever
// the request may have reached the peer; a reply too large for us is a peer's
// bug, not a full disk. An error that is no gRPC status is returned as it is.
func FromGRPC(err error) error {
	if err == nil {
		return nil
	}
	s, ok := status.FromError(err)
	if !ok || s.Code() == codes.OK {
		return err
	}
	meant, indeterminate := detail(s)
	code := s.Code()
	if !meant {
		switch code {
		case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Unknown, codes.Internal:
			indeterminate = true
		case codes.ResourceExhausted:
			code, indeterminate = codes.Internal, true
		}
	}
	r := &remote{msg: trim(s.Message())}
	for _, c := range classes {
		if c.code == code {
			r.is = append(r.is, c.err)
		}
	}
	if code == codes.DeadlineExceeded {
		r.is = append(r.is, ErrUnavailable)
	}
	if len(r.is) == 0 {
		r.is = append(r.is, ErrInternal)
	}
	if indeterminate {
		r.is = append(r.is, ErrIndeterminate)
	}
	if r.msg == "" {
		r.msg = r.is[0].Error()
	}
	return r
}

func detail(s *status.Status) (meant, indeterminate bool) {
	for _, d := range s.Details() {
		if d, ok := d.(*errorsv1.Detail); ok {
			return true, d.GetIndeterminate()
		}
	}
	return false, false
}

// remote is an error that came over the wire: the text as the peer wrote it,
// the classes as values of this process.
type remote struct {
	msg string
	is  []error // never empty
}

func (r *remote) Error() string   { return r.msg }
func (r *remote) Unwrap() []error { return r.is }

// trim makes a text fit for a status: valid UTF-8 (protobuf refuses other
// strings, and the class would be lost with it) and bounded.
func trim(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= maxMessage {
		return s
	}
	return strings.ToValidUTF8(s[:maxMessage-3], "") + "..."
}
