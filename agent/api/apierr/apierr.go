// Package apierr carries error classes over the API: it turns an error of
// plugins/errdefs into a Connect error and back, so that errors.Is gives the
// same answer in front of the wire and behind it.
//
// Beside the class travels the second fact of every failure, whether it may
// have happened (errdefs.Indeterminate), as a google.rpc.ErrorInfo with reason
// OUTCOME_UNKNOWN. Both the server and the client translate here and nowhere
// else.
package apierr

import (
	"context"
	"errors"
	"strings"

	"connectrpc.com/connect"

	"github.com/moraine-storage/moraine/plugins/errdefs"
	errorsv1 "github.com/moraine-storage/moraine/plugins/proto/errors/v1"
)

// maxMessageLen bounds the text of an error: gRPC sends it in a trailer,
// percent-encoded (three bytes for one), and peers commonly refuse header
// blocks of more than 16 KiB. 4 KiB * 3 leaves room for the detail.
const maxMessageLen = 4 << 10

// classes pairs every error class with its code. The order decides for an
// error of two classes: the one that tells the caller more comes first.
var classes = []struct {
	class error
	code  connect.Code
}{
	{errdefs.ErrDataLoss, connect.CodeDataLoss},
	{errdefs.ErrInvalidArgument, connect.CodeInvalidArgument},
	{errdefs.ErrOutOfRange, connect.CodeOutOfRange},
	{errdefs.ErrNotFound, connect.CodeNotFound},
	{errdefs.ErrAlreadyExists, connect.CodeAlreadyExists},
	{errdefs.ErrUnauthenticated, connect.CodeUnauthenticated},
	{errdefs.ErrPermissionDenied, connect.CodePermissionDenied},
	{errdefs.ErrFailedPrecondition, connect.CodeFailedPrecondition},
	{errdefs.ErrAborted, connect.CodeAborted},
	{errdefs.ErrResourceExhausted, connect.CodeResourceExhausted},
	{errdefs.ErrUnimplemented, connect.CodeUnimplemented},
	{context.DeadlineExceeded, connect.CodeDeadlineExceeded},
	{context.Canceled, connect.CodeCanceled},
	{errdefs.ErrUnavailable, connect.CodeUnavailable},
	{errdefs.ErrInternal, connect.CodeInternal},
}

// Code returns the code of err's class. An error without a class is a fault of
// the program and has the code of an internal error.
func Code(err error) connect.Code {
	for _, c := range classes {
		if errors.Is(err, c.class) {
			return c.code
		}
	}
	var ce *connect.Error
	if errors.As(err, &ce) {
		return ce.Code()
	}
	return connect.CodeInternal
}

// Class returns the error class of a code. Codes that have no class of their
// own (unknown) are internal errors.
func Class(code connect.Code) error {
	for _, c := range classes {
		if c.code == code {
			return c.class
		}
	}
	return errdefs.ErrInternal
}

// ToWire translates an error of the service for the wire. nil stays nil, and
// an error that is a Connect error already is returned as it is. The detail is
// always there: it tells an error that was meant from one of the transport.
func ToWire(err error) error {
	if err == nil {
		return nil
	}
	//nolint:errorlint // a wrapped Connect error has gained context that must travel
	if ce, ok := err.(*connect.Error); ok {
		return ce
	}
	ce := connect.NewError(Code(err), errors.New(clip(err.Error())))
	d, derr := connect.NewErrorDetail(&errorsv1.Detail{Indeterminate: errdefs.Indeterminate(err)})
	if derr == nil { // marshalling one bool cannot fail; without it the class still travels
		ce.AddDetail(d)
	}
	return ce
}

// FromWire is the inverse of ToWire, for what a Connect client returned to a
// call with this context. The
// result keeps the text and satisfies errors.Is for its class; a time-out is
// also of the class unavailable. An error that the transport made is
// indeterminate wherever the request may have reached the peer. Errors that
// are not Connect errors are returned as they are.
func FromWire(ctx context.Context, err error) error {
	var ce *connect.Error
	if !errors.As(err, &ce) {
		return err
	}
	meant, indeterminate := detail(ce)
	code := ce.Code()
	if !meant {
		code, indeterminate = transportCode(code, connect.IsWireError(err))
		if code == connect.CodeCanceled && ctx.Err() == nil {
			code = connect.CodeUnavailable // Connect's code for a broken pipe, which nobody cancelled
		}
	}
	e := &Error{text: ce.Message(), is: []error{Class(code)}}
	if e.text == "" {
		e.text = code.String()
	}
	if code == connect.CodeDeadlineExceeded {
		e.is = append(e.is, errdefs.ErrUnavailable)
	}
	if indeterminate {
		e.is = append(e.is, errdefs.ErrIndeterminate)
	}
	return e
}

// transportCode judges an error that the peer's service did not make: the
// class it has for the caller, and whether the call may have happened. wire
// says that the peer's HTTP server sent it, not that this end made it up.
func transportCode(code connect.Code, wire bool) (connect.Code, bool) {
	switch code {
	case connect.CodeCanceled, connect.CodeDeadlineExceeded, connect.CodeUnavailable:
		return code, true
	case connect.CodeUnknown, connect.CodeInternal:
		if wire {
			return code, true
		}
		return connect.CodeUnavailable, true // the connection broke
	case connect.CodeResourceExhausted:
		if wire {
			return code, false // the request was too large and refused unread
		}
		return connect.CodeInternal, true // the answer was too large: a bug of the peer
	}
	return code, false
}

// detail looks for what ToWire adds.
func detail(ce *connect.Error) (meant, indeterminate bool) {
	for _, d := range ce.Details() {
		m, err := d.Value()
		if err != nil {
			continue // a detail of a newer peer that this one does not know
		}
		if detail, ok := m.(*errorsv1.Detail); ok {
			return true, detail.GetIndeterminate()
		}
	}
	return false, false
}

// Error is an error with a text of its own and a class: what came over the
// wire, whose text says everything already.
type Error struct {
	text string
	is   []error // class first; always non-empty
}

// New returns an error with this text and these classes.
func New(text string, class error, more ...error) *Error {
	return &Error{text: text, is: append([]error{class}, more...)}
}

// Error returns the text alone.
func (e *Error) Error() string { return e.text }

// Unwrap returns the classes.
func (e *Error) Unwrap() []error { return e.is }

// clip makes a text fit for a status: valid UTF-8 and bounded.
func clip(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= maxMessageLen {
		return s
	}
	return strings.ToValidUTF8(s[:maxMessageLen-3], "") + "..."
}
