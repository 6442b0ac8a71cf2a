package apiserver

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// socket is a listening unix socket and the lock that says whose it is.
type socket struct {
	*net.UnixListener
	path string
	self os.FileInfo // of the socket as it was made
	lock *os.File
	once sync.Once
	err  error // of the close
}

// listen makes the socket at path with mode 0600. A socket left behind by an
// agent that is gone is replaced; one that answers is an error of the class
// failed precondition, and so is anything else at that path.
func listen(path string) (*socket, error) {
	if path == "" || !filepath.IsAbs(path) {
		return nil, fmt.Errorf("listen on %q: an absolute path is needed: %w", path, errdefs.ErrInvalidArgument)
	}
	tmp := path + ".new"
	if len(tmp) > maxSocketPathLen {
		return nil, fmt.Errorf("listen on %q: the path has %d bytes, a socket's can have %d: %w",
			path, len(path), maxSocketPathLen-len(".new"), errdefs.ErrInvalidArgument)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("listen on %q: %w", path, err)
	}
	lock, err := lockFile(path + ".lock")
	if err != nil {
		return nil, fmt.Errorf("listen on %q: %w", path, err)
	}
	l, self, err := bind(path, tmp)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %q: %w", path, err), lock.Close())
	}
	return &socket{UnixListener: l, path: path, self: self, lock: lock}, nil
}

// bind makes the socket under another name, restricts it, and gives it its
// name by a rename: there is no moment at which somebody else may connect.
func bind(path, tmp string) (*net.UnixListener, os.FileInfo, error) {
	if err := checkStale(path); err != nil {
		return nil, nil, err
	}
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return nil, nil, err
	}
	l.SetUnlinkOnClose(false) // it would remove the name it was made with
	var self os.FileInfo
	err = os.Chmod(tmp, 0o600)
	if err == nil {
		self, err = os.Lstat(tmp)
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return nil, nil, errors.Join(err, l.Close(), os.Remove(tmp))
	}
	return l, self, nil
}

// lockFile takes the lock of a socket. It is held as long as the socket.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = fmt.Errorf("another agent holds %s: %w", path, errdefs.ErrFailedPrecondition)
		}
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// checkStale looks at what is at path: nothing and a socket on which nobody
// listens are fine (the rename replaces it).
func checkStale(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("there is a file that is no socket: %w", errdefs.ErrFailedPrecondition)
	}
	c, err := net.DialTimeout("unix", path, probeTimeout)
	switch {
	case err == nil:
		_ = c.Close() // nothing was sent over it
		return fmt.Errorf("another process answers there: %w", errdefs.ErrFailedPrecondition)
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return nil
	}
	return fmt.Errorf("whether another process listens there is not known: %w", err)
}

// Close removes the socket, then gives up the lock. It may be repeated.
func (s *socket) Close() error {
	s.once.Do(func() {
		s.err = errors.Join(s.remove(), s.UnixListener.Close(), s.lock.Close())
	})
	return s.err
}

// remove takes the socket's name away if it is still this socket's: if its
// directory was removed, lock and all, another agent may listen there by now.
func (s *socket) remove() error {
	st, err := os.Lstat(s.path)
	if err == nil && os.SameFile(st, s.self) {
		err = os.Remove(s.path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// peerUID asks the kernel who is at the other end.
func peerUID(c *net.UnixConn) (uint32, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var cerr error
	err = raw.Control(func(fd uintptr) {
		cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err = errors.Join(err, cerr); err != nil {
		return 0, err
	}
	return cred.Uid, nil
}
