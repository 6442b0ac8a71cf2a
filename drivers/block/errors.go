package block

import (
	"errors"
	"syscall"
)

// Errors of the data path. They keep their class through wrapping; Errno maps
// them to what a kernel or an NBD peer understands.
var (
	ErrIO          = errors.New("input/output error")                  // EIO: the medium failed
	ErrNoSpace     = errors.New("no space left in the pool")           // ENOSPC: nothing was changed
	ErrInvalid     = errors.New("invalid request")                     // EINVAL: bad length, bad alignment, past the end (reads)
	ErrReadOnly    = errors.New("device is read-only")                 // EPERM
	ErrFenced      = errors.New("fenced: another primary took over")   // ESHUTDOWN: this session is over
	ErrClosed      = errors.New("device is shutting down")             // ESHUTDOWN
	ErrTimeout     = errors.New("no in-sync replica answered in time") // EIO after the hold deadline
	ErrUnsupported = errors.New("operation not supported")             // ENOTSUP
	ErrNoMemory    = errors.New("out of buffers")                      // ENOMEM
)

// Errno translates err to the number that goes over the wire.
func Errno(err error) syscall.Errno {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, ErrNoSpace), errors.Is(err, syscall.ENOSPC):
		return syscall.ENOSPC
	case errors.Is(err, ErrInvalid):
		return syscall.EINVAL
	case errors.Is(err, ErrReadOnly):
		return syscall.EPERM
	case errors.Is(err, ErrFenced), errors.Is(err, ErrClosed):
		return syscall.ESHUTDOWN
	case errors.Is(err, ErrUnsupported):
		return syscall.ENOTSUP
	case errors.Is(err, ErrNoMemory):
		return syscall.ENOMEM
	}
	return syscall.EIO
}

// FromErrno is the inverse of Errno for what a peer or the kernel returned.
func FromErrno(e syscall.Errno) error {
	switch e {
	case 0:
		return nil
	case syscall.ENOSPC, syscall.EDQUOT:
		return ErrNoSpace
	case syscall.EINVAL:
		return ErrInvalid
	case syscall.EPERM, syscall.EROFS:
		return ErrReadOnly
	case syscall.ESHUTDOWN:
		return ErrClosed
	case syscall.ENOTSUP:
		return ErrUnsupported
	case syscall.ENOMEM:
		return ErrNoMemory
	}
	return errors.Join(ErrIO, e)
}
