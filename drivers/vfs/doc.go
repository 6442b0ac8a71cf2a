// Package vfs is the seam between the replica store and a file system.
//
// The store (drivers/store) does all its metadata I/O, and in tests its data
// I/O too, through FS and File. OS is the real thing. Mem is a disk in memory
// that remembers what was synced and what was not, so that a test can ask for
// the disk as it may look after a power cut (Mem.PowerCut) or after the death
// of the process alone (Mem.Kill), and can inject faults.
//
// Invariants
//
//  1. A File's Sync (fdatasync) makes every WriteAt, Punch, Allocate and
//     Truncate that returned before it durable; nothing else does.
//  2. SyncDir makes creations, renames and removals in that directory durable;
//     nothing else does (a real file system may do it earlier).
//  3. Mem tears unsynced writes at 512 bytes, never finer (REPLICATION F1).
//
// Goroutines: none.
package vfs

import (
	"io"
)

// Flags of FS.Open.
type Flags uint8

// Flags of FS.Open.
const (
	Create    Flags = 1 << iota // create when absent
	Exclusive                   // with Create: fail when present
	ReadOnly                    // open for reading only
	Direct                      // bypass the page cache; ErrNoDirect when impossible
)

// Medium describes what a directory lies on.
type Medium struct {
	Total   int64  // bytes of the file system
	Free    int64  // bytes free for this process
	Memory  bool   // the medium cannot block (tmpfs, ramfs)
	DiskSeq uint64 // the kernel's sequence number of the block device below; 0: none known
}

// FS is a file system. Names are slash-separated paths; errors are those of
// package os (fs.ErrNotExist, ...) or a syscall.Errno below a wrapper.
type FS interface {
	Open(name string, f Flags) (File, error)
	// Mkdir creates a directory; one that exists is no error.
	Mkdir(name string) error
	Remove(name string) error
	Rename(from, to string) error
	// List returns the names in a directory, sorted.
	List(dir string) ([]string, error)
	SyncDir(dir string) error
	// Lock takes the one exclusive lock of a file, creating it. It fails with
	// ErrLocked at once when another holder lives. The lock ends with Close or
	// with the process.
	Lock(name string) (io.Closer, error)
	Medium(dir string) (Medium, error)
}

// File is one open file. Full transfer or error: ReadAt returns io.EOF only
// when bytes are missing at the end.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	// Sync makes the contents and the size durable.
	Sync() error
	// Punch makes the range a hole that reads as zeros; the size stays.
	// ErrNoPunch where the file system has no holes.
	Punch(off, length int64) error
	// Allocate reserves space for the range; the size stays.
	Allocate(off, length int64) error
	Truncate(size int64) error
	Size() (int64, error)
	// Fd is the descriptor for an aio.Engine that fits this FS.
	Fd() int
}
