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
type worker struct {
	mem  []byte
	used int // bytes of the payload area touched since the last trim
}

const (
	workerMem = pageSize + maxWrite + pageSize
	inAt      = pageSize - inHeaderSize - ioInSize
	outAt     = pageSize - outHeaderSize
)

// newWorker maps memory outside the Go heap: untouched pages cost nothing.
func newWorker() (*worker, error) {
	mem, err := unix.Mmap(-1, 0, workerMem, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
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

func (w *worker) touch(n int) { w.used = max(w.used, n) }

// trim gives memory back that large requests touched.
func (w *worker) trim() {
	if w.used > keepBytes {
		_ = unix.Madvise(w.mem[pageSize+keepBytes:], unix.MADV_DONTNEED) // advice
		w.used = 0
	}
}
