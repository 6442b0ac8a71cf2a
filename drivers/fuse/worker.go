package fuse

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// pageSize is the alignment of payloads: what O_DIRECT wants of memory.
const pageSize = 4096

// worker owns the memory of one request in progress. Headers end where a page
// begins, so that the payload of a WRITE and of the answer to a READ are
// aligned, and each message is one piece:
//
//	mem  |......[in header][write in]|payload up to 1 MiB........|
//	     |...............[out header]|answer.....................|
//
// The answer overwrites the request: a handler is done with one before it
// writes the other.
//
// All of it is resident before the kernel copies to or from it: a process that
// is killed while the kernel would have to fault a page in fails the copy, and
// with it the request, with EIO (fuse_dev_do_read and _do_write end a request
// whose copy failed). A resident page is copied to the end.
type worker struct {
	mem     []byte
	trimmed bool // part of mem is not resident
}

const (
	workerMem = pageSize + maxWrite + pageSize
	inAt      = pageSize - inHeaderSize - ioInSize
	outAt     = pageSize - outHeaderSize
)

// newWorker maps memory outside the Go heap.
func newWorker() (*worker, error) {
	mem, err := unix.Mmap(-1, 0, workerMem, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("fuse worker: mmap %d bytes: %w", workerMem, err)
	}
	return &worker{mem: mem}, nil
}

func (w *worker) free() { _ = unix.Munmap(w.mem) }

// in is where a request is read to: room for the largest.
func (w *worker) in() []byte { return w.mem[inAt:] }

// request is the n bytes that were read.
func (w *worker) request(n int) []byte { return w.mem[inAt : inAt+n] }

// out is where a handler puts the body of the answer.
func (w *worker) out() []byte { return w.mem[pageSize : pageSize+maxWrite] }

// answer is header and body of n bytes.
func (w *worker) answer(n int) []byte { return w.mem[outAt : pageSize+n] }

// trim gives most of the memory back while there is nothing to do.
func (w *worker) trim() {
	_ = unix.Madvise(w.mem[pageSize+keepBytes:], unix.MADV_DONTNEED) // advice
	w.trimmed = true
}

// populate makes all of the memory resident again.
func (w *worker) populate() {
	if !w.trimmed {
		return
	}
	for i := pageSize + keepBytes; i < len(w.mem); i += pageSize {
		w.mem[i] = 0
	}
	w.trimmed = false
}
