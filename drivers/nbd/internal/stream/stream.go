// Package stream prepares descriptors of stream sockets for an event loop.
package stream

import (
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// bufferBytes is asked for on unix sockets, whose default (208 KiB) makes a
// reply of 1 MiB take five turns; the system may allow less. TCP sizes its
// buffers itself, and stops to when told a size.
const bufferBytes = 1 << 20

// Prepare makes fd non-blocking and tunes it. fd must be a stream socket.
func Prepare(fd int) error {
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return os.NewSyscallError("getsockopt", err)
	}
	if kind != unix.SOCK_STREAM {
		return fmt.Errorf("socket of type %d: %w", kind, unix.EPROTOTYPE)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	// All of this is welcome and none of it needed: errors change nothing.
	if domain, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN); domain == unix.AF_UNIX {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, bufferBytes)
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, bufferBytes)
	} else {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	}
	return nil
}

// Dup duplicates the descriptor of a connection, which can then be closed.
func Dup(nc net.Conn) (int, error) {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return -1, fmt.Errorf("connection %T has no descriptor: %w", nc, unix.EOPNOTSUPP)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return -1, fmt.Errorf("connection: %w", err)
	}
	fd, dupErr := -1, error(nil)
	if err := raw.Control(func(p uintptr) { fd, dupErr = unix.FcntlInt(p, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return -1, fmt.Errorf("connection: %w", err)
	}
	if dupErr != nil {
		return -1, os.NewSyscallError("fcntl", dupErr)
	}
	return fd, nil
}
