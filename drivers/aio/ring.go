package aio

import (
	"fmt"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Constants of include/uapi/linux/io_uring.h, under its names.
const (
	offSQRing = 0
	offSQEs   = 0x10000000

	setupCQSize       = 1 << 3
	setupRDisabled    = 1 << 6
	setupSubmitAll    = 1 << 7
	setupCoopTaskrun  = 1 << 8
	setupTaskrunFlag  = 1 << 9
	setupSingleIssuer = 1 << 12
	setupDeferTaskrun = 1 << 13

	featSingleMmap = 1 << 0
	featNoDrop     = 1 << 1
	featExtArg     = 1 << 8

	enterGetEvents = 1 << 0
	enterExtArg    = 1 << 3

	sqCQOverflow = 1 << 1
	sqTaskrun    = 1 << 2

	registerEnableRings = 12

	opFsync      = 3
	opPollAdd    = 6
	opPollRemove = 7
	opRead       = 22
	opWrite      = 23

	fsyncDatasync = 1 << 0
	sqeAsync      = 1 << 4
)

// sqe is struct io_uring_sqe.
type sqe struct {
	opcode   uint8
	flags    uint8
	ioprio   uint16
	fd       int32
	off      uint64
	addr     uint64
	len      uint32
	opFlags  uint32
	userData uint64
	_        [3]uint64
}

// cqe is struct io_uring_cqe.
type cqe struct {
	userData uint64
	res      int32
	flags    uint32
}

// ringParams is struct io_uring_params.
type ringParams struct {
	sqEntries, cqEntries, flags, sqThreadCPU, sqThreadIdle, features, wqFD uint32
	_                                                                      [3]uint32
	sqOff                                                                  struct {
		head, tail, ringMask, ringEntries, flags, dropped, array, _ uint32
		_                                                           uint64
	}
	cqOff struct {
		head, tail, ringMask, ringEntries, overflow, cqes, flags, _ uint32
		_                                                           uint64
	}
}

// geteventsArg is struct io_uring_getevents_arg.
type geteventsArg struct {
	sigmask   uint64
	sigmaskSz uint32
	minWait   uint32
	ts        uint64
}

// ring is one io_uring, used by one thread.
//
// The kernel writes sqHead and cqTail, we write sqTail and cqHead; each side
// loads the other's with acquire and stores its own with release (sync/atomic
// is stronger). Entries of the submission queue are used in order, so the
// index array is the identity for ever.
type ring struct {
	fd     int
	flags  uint32 // of setup, as accepted
	rings  []byte
	sqeMem []byte

	sqHead, sqTail, sqFlags *uint32
	sqes                    []sqe
	tail                    uint32 // ours; published at enter

	cqHead, cqTail *uint32
	cqes           []cqe

	arg geteventsArg
	ts  unix.Timespec
}

// ringFlagSets are tried in this order. DEFER_TASKRUN (6.1) runs completions
// only where this thread asks for them; COOP_TASKRUN (5.19) spares the
// interrupt; the last works since 5.11.
var ringFlagSets = []uint32{
	setupCQSize | setupSubmitAll | setupSingleIssuer | setupDeferTaskrun | setupTaskrunFlag | setupRDisabled,
	setupCQSize | setupSubmitAll | setupCoopTaskrun | setupTaskrunFlag,
	setupCQSize,
}

func newRing(sets []uint32) (*ring, error) {
	var err error
	for _, flags := range sets {
		var r *ring
		if r, err = setupRing(flags); err == nil {
			return r, nil
		}
	}
	return nil, err
}

func setupRing(flags uint32) (*ring, error) {
	p := &ringParams{flags: flags, cqEntries: cqEntries}
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, sqEntries, uintptr(unsafe.Pointer(p)), 0)
	if errno != 0 {
		return nil, fmt.Errorf("io_uring setup: %w", errno)
	}
	r := &ring{fd: int(fd), flags: flags}
	if need := uint32(featSingleMmap | featNoDrop | featExtArg); p.features&need != need {
		r.close()
		return nil, fmt.Errorf("io_uring: features %#x, need %#x (Linux 5.11): %w", p.features, need, unix.ENOSYS)
	}
	if err := r.mmap(p); err != nil {
		r.close()
		return nil, fmt.Errorf("io_uring map: %w", err)
	}
	return r, nil
}

func (r *ring) mmap(p *ringParams) error {
	size := max(p.sqOff.array+p.sqEntries*4, p.cqOff.cqes+p.cqEntries*uint32(unsafe.Sizeof(cqe{})))
	const prot, flags = unix.PROT_READ | unix.PROT_WRITE, unix.MAP_SHARED | unix.MAP_POPULATE
	var err error
	if r.rings, err = unix.Mmap(r.fd, offSQRing, int(size), prot, flags); err != nil {
		return err
	}
	if r.sqeMem, err = unix.Mmap(r.fd, offSQEs, int(p.sqEntries)*int(unsafe.Sizeof(sqe{})), prot, flags); err != nil {
		return err
	}
	word := func(off uint32) *uint32 { return (*uint32)(unsafe.Pointer(&r.rings[off])) }
	r.sqHead, r.sqTail, r.sqFlags = word(p.sqOff.head), word(p.sqOff.tail), word(p.sqOff.flags)
	r.cqHead, r.cqTail = word(p.cqOff.head), word(p.cqOff.tail)
	r.sqes = unsafe.Slice((*sqe)(unsafe.Pointer(&r.sqeMem[0])), p.sqEntries)
	r.cqes = unsafe.Slice((*cqe)(unsafe.Pointer(&r.rings[p.cqOff.cqes])), p.cqEntries)
	array := unsafe.Slice(word(p.sqOff.array), p.sqEntries)
	for i := range array {
		array[i] = uint32(i)
	}
	return nil
}

// bind makes the calling thread the ring's issuer.
func (r *ring) bind() error {
	if r.flags&setupRDisabled == 0 {
		return nil
	}
	_, _, errno := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(r.fd), registerEnableRings, 0, 0, 0, 0)
	if errno != 0 {
		return fmt.Errorf("io_uring enable: %w", errno)
	}
	return nil
}

// next returns a cleared submission entry, or nil when the queue is full.
func (r *ring) next() *sqe {
	if r.pending() == uint32(len(r.sqes)) {
		return nil
	}
	s := &r.sqes[r.tail&uint32(len(r.sqes)-1)]
	r.tail++
	*s = sqe{}
	return s
}

// pending is how many entries the kernel has not taken.
func (r *ring) pending() uint32 { return r.tail - atomic.LoadUint32(r.sqHead) }

// needsEnter says whether completions may be hidden behind a system call.
func (r *ring) needsEnter() bool {
	return atomic.LoadUint32(r.sqFlags)&(sqTaskrun|sqCQOverflow) != 0
}

// enter submits what is pending and, with wait, blocks until a completion is
// there or d has passed (d < 0: no limit).
func (r *ring) enter(wait bool, d time.Duration) unix.Errno {
	atomic.StoreUint32(r.sqTail, r.tail)
	var minComplete, arg, argSize uintptr
	flags := uintptr(enterGetEvents)
	if wait {
		minComplete = 1
		if d >= 0 {
			r.ts = unix.NsecToTimespec(int64(d))
			r.arg = geteventsArg{ts: uint64(uintptr(unsafe.Pointer(&r.ts)))}
			arg, argSize = uintptr(unsafe.Pointer(&r.arg)), unsafe.Sizeof(r.arg)
			flags |= enterExtArg
		}
	}
	_, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(r.pending()),
		minComplete, flags, arg, argSize)
	return errno
}

// completion takes the oldest completion, if there is one.
func (r *ring) completion() (cqe, bool) {
	head := *r.cqHead // only we write it
	if head == atomic.LoadUint32(r.cqTail) {
		return cqe{}, false
	}
	c := r.cqes[head&uint32(len(r.cqes)-1)]
	atomic.StoreUint32(r.cqHead, head+1)
	return c, true
}

func (r *ring) close() {
	// Unmapping and closing have nothing to lose: nothing is in flight.
	if r.sqeMem != nil {
		_ = unix.Munmap(r.sqeMem)
	}
	if r.rings != nil {
		_ = unix.Munmap(r.rings)
	}
	_ = unix.Close(r.fd)
}
