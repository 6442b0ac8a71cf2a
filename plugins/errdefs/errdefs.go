// Package errdefs holds the error classes of Moraine: those of
// containerd/errdefs under their usual names, plus the question that is
// orthogonal to every class: may it have happened?
//
// Wrap with %w to add context; the class survives. Translation to gRPC, HTTP
// and NBD happens at the edges only.
package errdefs

import (
	"errors"

	"github.com/containerd/errdefs"
)

// The classes. Test with errors.Is or the IsX functions.
var (
	ErrInvalidArgument    = errdefs.ErrInvalidArgument
	ErrOutOfRange         = errdefs.ErrOutOfRange
	ErrNotFound           = errdefs.ErrNotFound
	ErrAlreadyExists      = errdefs.ErrAlreadyExists
	ErrPermissionDenied   = errdefs.ErrPermissionDenied
	ErrUnauthenticated    = errdefs.ErrUnauthenticated
	ErrFailedPrecondition = errdefs.ErrFailedPrecondition
	ErrAborted            = errdefs.ErrAborted
	ErrResourceExhausted  = errdefs.ErrResourceExhausted
	ErrUnavailable        = errdefs.ErrUnavailable
	ErrUnimplemented      = errdefs.ErrNotImplemented
	ErrDataLoss           = errdefs.ErrDataLoss
	ErrInternal           = errdefs.ErrInternal
)

// ErrIndeterminate marks an operation whose outcome is not known: it may have
// happened, and may still. It is added to a class, never used alone.
var ErrIndeterminate = errors.New("outcome not known")

// Indeterminate says whether the operation behind err may have happened.
func Indeterminate(err error) bool { return errors.Is(err, ErrIndeterminate) }

// IsNotFound and the others say whether err is of that class.
func IsNotFound(err error) bool           { return errors.Is(err, ErrNotFound) }
func IsAlreadyExists(err error) bool      { return errors.Is(err, ErrAlreadyExists) }
func IsInvalidArgument(err error) bool    { return errors.Is(err, ErrInvalidArgument) }
func IsFailedPrecondition(err error) bool { return errors.Is(err, ErrFailedPrecondition) }
func IsUnavailable(err error) bool        { return errors.Is(err, ErrUnavailable) }
