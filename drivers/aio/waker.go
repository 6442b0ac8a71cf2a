package aio

import (
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// waker is the eventfd that makes an engine's Wait return.
//
// The flag keeps a burst of Wakes to one system call. The owner clears it with
// a swap after it has emptied the eventfd: whoever found the flag set before
// that swap is ordered before the return of this Wait, so what it published is
// seen by the owner (no lost wake-up).
type waker struct {
	set atomic.Bool
	buf [8]byte // of clear; owner only. A local one would be allocated each time.

	mu sync.Mutex // guards fd against a Wake that races Close: the number may be reused
	fd int        // -1 after close
}

// one is what a wake adds to the counter: any number but zero will do, so the
// byte order does not matter.
var one = [8]byte{1}

func newWaker() (*waker, error) {
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	return &waker{fd: fd}, nil
}

// wake makes the eventfd readable. Any goroutine, also after close.
func (w *waker) wake() {
	if w.set.Swap(true) {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fd < 0 {
		return
	}
	for {
		// EAGAIN would mean a counter near 2^64, which is readable anyway.
		_, err := unix.Write(w.fd, one[:])
		if err != unix.EINTR {
			return
		}
	}
}

// clear empties the eventfd; owner only.
func (w *waker) clear() {
	for {
		_, err := unix.Read(w.fd, w.buf[:])
		if err != unix.EINTR {
			break
		}
	}
	w.set.Swap(false)
}

func (w *waker) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fd >= 0 {
		_ = unix.Close(w.fd) // an eventfd has nothing to lose
		w.fd = -1
	}
}
