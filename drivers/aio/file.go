package aio

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// run does the whole operation with blocking system calls and returns its
// error. The calls tell the scheduler (Syscall, not RawSyscall): even a memory
// file may wait for reclaim.
func (op *Op) run() unix.Errno {
	if op.Kind == Datasync {
		return datasync(op.FD)
	}
	if op.Kind != Read && op.Kind != Write {
		return unix.EINVAL
	}
	for op.prog < len(op.Buf) {
		n, errno := op.transfer()
		if errno == unix.EINTR {
			continue
		}
		if end, errno := op.advance(n, errno); end {
			return errno
		}
	}
	return 0
}

func (op *Op) transfer() (int, unix.Errno) {
	trap := uintptr(unix.SYS_PREAD64)
	if op.Kind == Write {
		trap = unix.SYS_PWRITE64
	}
	b := op.Buf[op.prog:]
	n, _, errno := unix.Syscall6(trap, uintptr(op.FD), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)),
		uintptr(op.Off+int64(op.prog)), 0, 0)
	return int(n), errno
}

// advance takes the result of one transfer into account. It returns true with
// the final error when the operation has ended, false when the rest must be
// transferred.
func (op *Op) advance(n int, errno unix.Errno) (bool, unix.Errno) {
	switch {
	case errno == unix.EINVAL && op.Kind == Read && op.prog > 0 && pastEnd(op.FD, op.Off+int64(op.prog)):
		// An O_DIRECT read that ends at an unaligned end of file cannot be
		// continued there; there is nothing left to read anyway.
		clear(op.Buf[op.prog:])
		op.prog = len(op.Buf)
		return true, 0
	case errno != 0:
		return true, errno
	case n > 0:
		op.prog += n
		return op.prog >= len(op.Buf), 0
	case op.Kind == Read:
		clear(op.Buf[op.prog:])
		op.prog = len(op.Buf)
		return true, 0
	}
	return true, unix.EIO // a write that accepts nothing and does not say why
}

func pastEnd(fd int, off int64) bool {
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && off >= st.Size
}

// datasync is never repeated, not even when it was interrupted: the kernel
// reports a page that it could not write once, and an interruption may have
// taken the place of that report (invariant 3).
func datasync(fd int) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_FDATASYNC, uintptr(fd), 0, 0)
	return errno
}

// fifo is a queue of operations linked through Op.next.
type fifo struct{ head, tail *Op }

func (q *fifo) push(op *Op) {
	op.next = nil
	if q.tail == nil {
		q.head = op
	} else {
		q.tail.next = op
	}
	q.tail = op
}

func (q *fifo) pop() *Op {
	op := q.head
	if op == nil {
		return nil
	}
	q.head = op.next
	if q.head == nil {
		q.tail = nil
	}
	op.next = nil
	return op
}

func (q *fifo) empty() bool { return q.head == nil }

// take moves everything of q to the caller.
func (q *fifo) take() fifo {
	all := *q
	*q = fifo{}
	return all
}
