package aio

import (
	"fmt"

	"golang.org/x/sys/unix"
)

const genMask = 1<<24 - 1

func pollData(fd int, gen uint32) uint64 {
	return ofPoll | uint64(gen&genMask)<<32 | uint64(uint32(fd))
}

func (e *uring) pollOf(fd int) *pollState {
	if fd < 0 || fd >= len(e.watches) {
		return nil
	}
	return &e.watches[fd]
}

// Watch implements Engine.
func (e *uring) Watch(fd int, interest uint32, token uint64) error {
	if e.closed {
		return ErrClosed
	}
	if err := checkWatch(fd, interest); err != nil {
		return err
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
		return fmt.Errorf("watch descriptor %d: %w", fd, err)
	}
	e.bind()
	for fd >= len(e.watches) {
		e.watches = append(e.watches, pollState{})
	}
	p := &e.watches[fd]
	if p.on && p.interest == interest {
		p.token = token
		return nil
	}
	if p.armed {
		e.cancelPoll(fd, p)
	}
	p.watch = watch{on: true, interest: interest, token: token}
	p.bits = 0 // what is ready by the new interest comes with the new poll
	e.needArm(fd, p)
	return nil
}

// Unwatch implements Engine. It waits until the kernel has let go of the
// descriptor: a poll holds a reference, and the owner's close would not reach
// the peer.
func (e *uring) Unwatch(fd int) error {
	if e.closed {
		return ErrClosed
	}
	p := e.pollOf(fd)
	if p == nil || !p.on {
		return fmt.Errorf("unwatch descriptor %d: %w", fd, unix.ENOENT)
	}
	p.watch, p.bits = watch{}, 0
	if p.armed {
		e.awaited = pollData(fd, p.gen)
		e.cancelPoll(fd, p)
	}
	// An earlier poll may be cancelled and not submitted yet: flush always.
	e.enter(false, 0)
	e.collect()
	for e.awaited != 0 {
		e.enter(true, -1)
		e.collect()
	}
	return nil
}

// cancelPoll makes the armed poll stale and queues its removal.
func (e *uring) cancelPoll(fd int, p *pollState) {
	s := e.sqe() // may collect: the poll may have ended by now, which is harmless
	s.opcode = opPollRemove
	s.fd = -1
	s.addr = pollData(fd, p.gen)
	s.userData = ofNothing
	p.gen++
	p.armed = false
}

func (e *uring) needArm(fd int, p *pollState) {
	if !p.inArm {
		p.inArm = true
		e.arm = append(e.arm, fd)
	}
}

// armPolls queues a poll for each watch that has none.
func (e *uring) armPolls() {
	for i := 0; i < len(e.arm); i++ { // sqe may collect, and so append
		fd := e.arm[i]
		p := &e.watches[fd]
		p.inArm = false
		if !p.on || p.armed || p.bits != 0 {
			continue // gone, there already, or about to be reported
		}
		p.armed = true
		s := e.sqe()
		s.opcode = opPollAdd
		s.fd = int32(fd)
		s.opFlags = pollMask(p.interest)
		s.userData = pollData(fd, p.gen)
	}
	e.arm = e.arm[:0]
	if !e.wakerArmed {
		e.wakerArmed = true
		s := e.sqe()
		s.opcode = opPollAdd
		s.fd = int32(e.w.fd)
		s.opFlags = unix.POLLIN
		s.userData = ofWaker
	}
}

func (e *uring) pollDone(c cqe) {
	if c.userData == e.awaited {
		e.awaited = 0
	}
	fd := int(uint32(c.userData))
	p := e.pollOf(fd)
	if p == nil || !p.on || !p.armed || pollData(fd, p.gen) != c.userData {
		return
	}
	p.armed = false
	p.gen++
	bits := uint32(c.res)
	if c.res < 0 {
		bits = unix.POLLERR // the owner closed it without Unwatch
	}
	p.bits = readyBits(bits, p.interest)
	if p.bits == 0 {
		e.needArm(fd, p)
		return
	}
	if !p.inReady {
		p.inReady = true
		e.ready = append(e.ready, fd)
	}
}

// report fills events with what is ready, oldest first; what does not fit
// stays. What was reported is armed again by the next Wait.
func (e *uring) report(events []Event) int {
	n, used := 0, 0
	for ; used < len(e.ready) && n < len(events); used++ {
		fd := e.ready[used]
		p := &e.watches[fd]
		p.inReady = false
		if !p.on || p.bits == 0 {
			continue
		}
		events[n] = Event{Token: p.token, Ready: p.bits}
		n++
		p.bits = 0
		e.needArm(fd, p)
	}
	e.ready = e.ready[:copy(e.ready, e.ready[used:])]
	return n
}
