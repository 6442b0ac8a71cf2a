package aio

import (
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// poller waits for readiness of descriptors and for its waker by epoll,
// level-triggered. It serves the inline and the threads engine.
type poller struct {
	ep      int
	w       *waker
	watches watchTable
	raw     [rawEvents]unix.EpollEvent
	ts      unix.Timespec // here and not on the stack: it would escape
	coarse  bool          // no epoll_pwait2: milliseconds, rounded up
}

// watch is what the owner asked to know of one descriptor.
type watch struct {
	on       bool
	interest uint32
	token    uint64
}

// watchTable maps descriptors to watches: an array, because descriptors are
// small numbers and the lookup is on the way of each event.
type watchTable []watch

func (t *watchTable) get(fd int) *watch {
	if fd < 0 || fd >= len(*t) {
		return nil
	}
	return &(*t)[fd]
}

func (t *watchTable) grow(fd int) *watch {
	for fd >= len(*t) {
		*t = append(*t, watch{})
	}
	return &(*t)[fd]
}

func checkWatch(fd int, interest uint32) error {
	if fd < 0 || fd > maxFD {
		return fmt.Errorf("watch descriptor %d: %w", fd, unix.EBADF)
	}
	if interest&^(Readable|Writable) != 0 {
		return fmt.Errorf("watch descriptor %d: interest %#x: %w", fd, interest, unix.EINVAL)
	}
	return nil
}

func newPoller() (*poller, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create epoll: %w", err)
	}
	w, err := newWaker()
	if err != nil {
		_ = unix.Close(ep)
		return nil, fmt.Errorf("create eventfd: %w", err)
	}
	p := &poller{ep: ep, w: w}
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(w.fd)}
	if err := unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, w.fd, &ev); err != nil {
		p.close()
		return nil, fmt.Errorf("watch eventfd: %w", err)
	}
	return p, nil
}

// pollMask translates interest to the bits of poll(2), which epoll shares.
func pollMask(interest uint32) uint32 {
	m := uint32(unix.EPOLLRDHUP) // HUP and ERR are implied
	if interest&Readable != 0 {
		m |= unix.EPOLLIN
	}
	if interest&Writable != 0 {
		m |= unix.EPOLLOUT
	}
	return m
}

// readyBits translates poll bits to what the owner is told. An error or the
// end of the stream also shows as Readable and Writable, where asked for:
// the next call collects it.
func readyBits(bits, interest uint32) uint32 {
	var r uint32
	if bits&(unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		r = HangUp | Readable | Writable
	}
	if bits&unix.EPOLLRDHUP != 0 {
		r |= HangUp | Readable
	}
	if bits&unix.EPOLLIN != 0 {
		r |= Readable
	}
	if bits&unix.EPOLLOUT != 0 {
		r |= Writable
	}
	return r & (interest | HangUp)
}

func (p *poller) watch(fd int, interest uint32, token uint64) error {
	if err := checkWatch(fd, interest); err != nil {
		return err
	}
	w := p.watches.grow(fd)
	ev := unix.EpollEvent{Events: pollMask(interest), Fd: int32(fd)}
	op := unix.EPOLL_CTL_ADD
	if w.on {
		op = unix.EPOLL_CTL_MOD
		if w.interest == interest {
			w.token = token
			return nil
		}
	}
	if err := unix.EpollCtl(p.ep, op, fd, &ev); err != nil {
		return fmt.Errorf("watch descriptor %d: %w", fd, err)
	}
	*w = watch{on: true, interest: interest, token: token}
	return nil
}

func (p *poller) unwatch(fd int) error {
	w := p.watches.get(fd)
	if w == nil || !w.on {
		return fmt.Errorf("unwatch descriptor %d: %w", fd, unix.ENOENT)
	}
	*w = watch{}
	if err := unix.EpollCtl(p.ep, unix.EPOLL_CTL_DEL, fd, nil); err != nil {
		return fmt.Errorf("unwatch descriptor %d: %w", fd, err)
	}
	return nil
}

// wait blocks until a descriptor is ready, the waker was used, or d has passed.
func (p *poller) wait(events []Event, d time.Duration) (int, error) {
	limit := min(max(len(events), 1), len(p.raw))
	var deadline time.Time
	if d > 0 {
		deadline = time.Now().Add(d)
	}
	for {
		n, errno := p.epoll(limit, d)
		if errno == unix.EINTR {
			if d > 0 {
				d = max(time.Until(deadline), 0)
			}
			continue
		}
		if errno != 0 {
			return 0, fmt.Errorf("wait for events: %w", errno)
		}
		return p.collect(events, n), nil
	}
}

func (p *poller) collect(events []Event, n int) int {
	filled := 0
	for _, ev := range p.raw[:n] {
		if int(ev.Fd) == p.w.fd {
			p.w.clear()
			continue
		}
		w := p.watches.get(int(ev.Fd))
		if w == nil || !w.on {
			continue // closed by the owner without Unwatch; epoll forgets it with the last reference
		}
		if r := readyBits(ev.Events, w.interest); r != 0 && filled < len(events) {
			events[filled] = Event{Token: w.token, Ready: r}
			filled++
		}
	}
	return filled
}

// epoll is one system call. A look (d = 0) cannot block and does not tell the
// scheduler; everything else does.
func (p *poller) epoll(limit int, d time.Duration) (int, unix.Errno) {
	ep, raw, n := uintptr(p.ep), unsafe.Pointer(&p.raw[0]), uintptr(limit)
	if d == 0 {
		r, _, e := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, ep, uintptr(raw), n, 0, 0, 0)
		return int(r), e
	}
	if !p.coarse {
		var ts *unix.Timespec
		if d > 0 {
			p.ts = unix.NsecToTimespec(int64(d))
			ts = &p.ts
		}
		r, _, e := unix.Syscall6(unix.SYS_EPOLL_PWAIT2, ep, uintptr(raw), n, uintptr(unsafe.Pointer(ts)), 0, 0)
		if e != unix.ENOSYS {
			return int(r), e
		}
		p.coarse = true // before Linux 5.11
	}
	ms := -1
	if d > 0 {
		ms = int(min((d+time.Millisecond-1)/time.Millisecond, maxWaitMS))
	}
	r, _, e := unix.Syscall6(unix.SYS_EPOLL_PWAIT, ep, uintptr(raw), n, uintptr(ms), 0, 0)
	return int(r), e
}

func (p *poller) close() {
	p.w.close()
	if p.ep >= 0 {
		_ = unix.Close(p.ep) // holds nothing but registrations
		p.ep = -1
	}
}
