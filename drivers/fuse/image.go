package fuse

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/drivers"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// ErrAborted is why serving ended when the connection was aborted, not unmounted.
var ErrAborted = fmt.Errorf("fuse connection aborted: %w", errdefs.ErrUnavailable)

// FileName is the one file of the filesystem.
const FileName = "image"

// Config of an image.
type Config struct {
	Device drivers.Device
	// ReadOnly makes the kernel's writes fail with EPERM.
	ReadOnly bool
	// Inline: Device never blocks (its medium is memory), so small requests
	// are served by the reading goroutine.
	Inline bool
}

// Image serves one FUSE connection. Workers take turns as the leader, who
// reads one request and passes the lead on before serving it; the others serve
// or wait for the lead. A device that cannot block is served by the leader.
type Image struct {
	cfg  Config
	fd   int // /dev/fuse, non-blocking; owned
	sess session
	born uint64 // seconds: the times of the file

	stopFD   int // eventfd, readable once stopping
	stopping atomic.Bool
	stopMu   sync.Mutex // guards closed, and the descriptors against use after Close
	closed   bool
	size     atomic.Int64

	lead    sync.Mutex // held by the worker that reads
	waiting atomic.Int32
	workers atomic.Int32
	wg      sync.WaitGroup

	spareMu sync.Mutex
	spare   []*worker // memory without a goroutine; guarded by spareMu

	done    chan struct{}
	errOnce sync.Once
	err     error // set before done is closed

	stats Stats
}

// Stats counts what an image has served.
type Stats struct {
	Reads, Writes, Flushes, Zeroes, Errors, Resent atomic.Uint64
}

// newImage owns fd from now on, also on error.
func newImage(fd int, sess session, cfg Config) (*Image, error) {
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("fuse image: eventfd: %w", err)
	}
	m := &Image{cfg: cfg, fd: fd, sess: sess, born: uint64(time.Now().Unix()), stopFD: stop, done: make(chan struct{})}
	m.size.Store(cfg.Device.Info().Size)
	return m, nil
}

// start begins to serve.
func (m *Image) start() {
	m.spawn()
	go func() {
		m.wg.Wait()
		close(m.done)
	}()
}

// resend asks the kernel to send again what an earlier process had read and
// not answered. It comes before the first read of this process: the kernel
// would send again what this one is executing as well, and a first copy that
// ends after the second was answered could undo a later write.
func (m *Image) resend() error {
	if !m.sess.canResend() {
		return fmt.Errorf("fuse resend: this kernel cannot send requests again (Linux 6.9 and later can): %w", errdefs.ErrUnimplemented)
	}
	var b [outHeaderSize]byte
	le.PutUint32(b[:], outHeaderSize)
	le.PutUint32(b[4:], notifyResend)
	if _, err := unix.Write(m.fd, b[:]); err != nil {
		return fmt.Errorf("fuse resend: %w", err)
	}
	return nil
}

// SetSize changes the size that the file is said to have.
func (m *Image) SetSize(n int64) { m.size.Store(n) }

// Stats are counters, readable at any time.
func (m *Image) Stats() *Stats { return &m.stats }

// Done is closed when serving has ended; Err then says why: nil after
// Release or an unmount.
func (m *Image) Done() <-chan struct{} { return m.done }

// Err is valid after Done.
func (m *Image) Err() error {
	select {
	case <-m.done:
		return m.err
	default:
		return nil
	}
}

// Release ends serving: no request is read any more, and those that were read
// are answered (invariant 2). The connection lives on in the holder. It can be
// called again when ctx ended it early.
func (m *Image) Release(ctx context.Context) error {
	m.stop()
	select {
	case <-m.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("fuse release: requests still in progress: %w", ctx.Err())
	}
}

// Close frees the descriptors of an image that has ended (Done). Idempotent.
func (m *Image) Close() {
	<-m.done
	m.stopMu.Lock()
	defer m.stopMu.Unlock()
	if m.closed {
		return
	}
	m.closed = true
	m.freeSpare()
	unix.Close(m.fd)
	unix.Close(m.stopFD)
}

// abandon frees an image that never started.
func (m *Image) abandon() {
	close(m.done)
	m.Close()
}

func (m *Image) spawn() {
	m.workers.Add(1)
	m.wg.Go(func() {
		defer m.workers.Add(-1)
		w, err := m.buffer()
		if err != nil {
			if m.workers.Load() == 1 { // others go on without this one
				m.fail(err)
			}
			return
		}
		m.work(w)
		m.recycle(w)
	})
}

// buffer takes the memory of a worker that has left, or makes some: making it
// resident costs more than a request does.
func (m *Image) buffer() (*worker, error) {
	m.spareMu.Lock()
	defer m.spareMu.Unlock()
	if n := len(m.spare); n > 0 {
		w := m.spare[n-1]
		m.spare = m.spare[:n-1]
		return w, nil
	}
	return newWorker()
}

func (m *Image) recycle(w *worker) {
	m.spareMu.Lock()
	defer m.spareMu.Unlock()
	m.spare = append(m.spare, w) // at most maxWorkers exist
}

// freeSpare gives the memory of workers that have left back.
func (m *Image) freeSpare() {
	m.spareMu.Lock()
	defer m.spareMu.Unlock()
	for _, w := range m.spare {
		w.free()
	}
	m.spare = nil
}

// fail ends serving with the first error.
func (m *Image) fail(err error) {
	m.errOnce.Do(func() { m.err = err })
	m.stop()
}

// stop makes the leader return.
func (m *Image) stop() {
	m.stopMu.Lock()
	defer m.stopMu.Unlock()
	if m.stopping.Swap(true) || m.closed {
		return
	}
	one := [8]byte{0: 1, 7: 1}          // not zero in either byte order
	_, _ = unix.Write(m.stopFD, one[:]) // fails only when the counter is full, which wakes as well
}

// work is the life of a worker.
func (m *Image) work(w *worker) {
	for {
		if m.waiting.Add(1) > maxIdleWorkers {
			m.waiting.Add(-1)
			return
		}
		m.lead.Lock()
		n, err := m.receive(w)
		m.waiting.Add(-1)
		if n == 0 {
			m.lead.Unlock()
			if err != nil {
				m.fail(err)
			}
			return
		}
		if m.cfg.Inline && n < inlineBytes && !largeRead(w.request(n)) {
			m.serve(w, n)
			m.lead.Unlock()
			continue
		}
		m.lead.Unlock()
		// Someone must go on reading. The count may be stale by the time it is
		// used; a worker too many leaves by itself.
		if m.waiting.Load() == 0 && m.workers.Load() < maxWorkers {
			m.spawn()
		}
		m.serve(w, n)
	}
}

func largeRead(b []byte) bool {
	return len(b) >= inHeaderSize+ioInSize && le.Uint32(b[4:]) == opRead && le.Uint32(b[inHeaderSize+16:]) >= inlineBytes
}

// receive reads one request; the caller holds the lead. n is 0 when serving is
// over; err is then nil unless something broke.
func (m *Image) receive(w *worker) (n int, err error) {
	for {
		if m.stopping.Load() {
			return 0, nil
		}
		w.populate()
		n, err := unix.Read(m.fd, w.in())
		switch {
		case err == nil && n >= inHeaderSize:
			return n, nil
		case err == nil:
			return 0, fmt.Errorf("fuse image: the kernel sent %d bytes: %w", n, errdefs.ErrInternal)
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENOENT):
			// ENOENT: the request was interrupted while it was being read.
		case errors.Is(err, unix.EAGAIN):
			if err := m.wait(w); err != nil {
				return 0, err
			}
		case errors.Is(err, unix.ENODEV):
			return 0, nil // unmounted
		case errors.Is(err, unix.ECONNABORTED):
			return 0, ErrAborted
		default:
			return 0, fmt.Errorf("fuse image: read: %w", err)
		}
	}
}

// wait sleeps until the kernel has a request or serving is to stop; most of
// the worker's memory goes back when that takes a while.
func (m *Image) wait(w *worker) error {
	for {
		ms := -1
		if !w.trimmed {
			ms = int(trimAfter / time.Millisecond)
		}
		fds := [2]unix.PollFd{{Fd: int32(m.fd), Events: unix.POLLIN}, {Fd: int32(m.stopFD), Events: unix.POLLIN}}
		n, err := unix.Poll(fds[:], ms)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("fuse image: poll: %w", err)
		}
		if n > 0 {
			return nil
		}
		if err == nil {
			w.trim()
			m.freeSpare()
		}
	}
}

// serve executes one request of n bytes and answers it.
func (m *Image) serve(w *worker, n int) {
	var r request
	b := w.request(n)
	errno, ok := decode(b, &r)
	if !ok {
		// A kernel that sends half a header is not one to go on with.
		m.fail(fmt.Errorf("fuse image: bad message of %d bytes: %w", n, errdefs.ErrInternal))
		return
	}
	if r.silent() {
		return
	}
	length := 0
	if errno == 0 {
		length, errno = m.handle(w, &r)
	}
	if errno != 0 {
		length = 0
		if errno != syscall.ENOSYS {
			m.stats.Errors.Add(1)
		}
	}
	m.reply(w, r.unique, length, errno)
}

// reply sends the header and the length bytes of w.out().
func (m *Image) reply(w *worker, unique uint64, length int, errno syscall.Errno) {
	b := w.answer(length)
	putOutHeader(b, len(b), errno, unique)
	for {
		_, err := unix.Write(m.fd, b)
		switch {
		case err == nil, errors.Is(err, unix.ENOENT):
			return // ENOENT: the caller was interrupted or the connection is going
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			continue
		case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ECONNABORTED), errors.Is(err, unix.EPERM):
			return // unmounted: the next read says so
		default:
			// The request would hang for ever. Say so loudly: the connection
			// is useless now.
			m.fail(fmt.Errorf("fuse image: answer of %d bytes: %w", len(b), err))
			return
		}
	}
}
