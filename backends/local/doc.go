// Package local offers the media of this node as drives: directories, regular
// files, and whole block devices.
//
// # Media
//
// A directory is used as it is. It is taken only when it is empty; from then on
// it holds the identity file beside the agent's store files, and the drive's
// size is what was free at that moment, less a reserve.
//
// A block device is formatted with XFS and mounted below the run directory. A
// regular file is the same behind a loop device with direct I/O. The XFS UUID is
// the drive's ID, so a device is recognised by its first sector, under whatever
// name it appears; the label says how far its making came:
//
//	moraine-new  mkfs ran, the identity was not complete: the medium is blank
//	moraine-drv  a complete drive
//
// The label is switched after the identity file is durable: a crash at any
// point leaves a blank medium or a drive.
//
// # What is never touched (rule 10)
//
// A medium is blank only when nothing claims it (mounted, swap, member of RAID,
// LVM, multipath: it cannot be opened exclusively), blkid and the package's own list find no
// signature, and its beginning, its end and samples between them are zeros
// or the mark that Delete leaves. Anything else is refused, unless the very
// path is listed in force_format; what is in use is refused even then. A partition
// that only a pattern matches is refused: an unused one may belong to firmware. A
// directory that is not empty is always refused.
//
// # Identity file
//
// .moraine-drive at the root of a drive: one header line, then JSON.
//
//	MORAINE-DRIVE <format> <length of JSON> <CRC-32C of JSON, 8 hex digits>\n
//	{"id": ..., "created": ..., "serial": ..., "size": ..., "spec": {...}}
//
// Format is 1; a reader refuses others. Unknown JSON fields are kept out of use
// but do not disturb. The file is written to a temporary name, synced, renamed;
// then the directory is synced.
//
// # Invariants
//
//  1. Nothing but Create, Delete and Expand writes to a medium; Attach mounts.
//  2. Two media with one ID: both are refused, naming both, unless one is attached
//     already; then the others are.
//  3. Attached is what the kernel and the run directory say (a mount or a symbolic link
//     at RUN/drives/ID), not what a process remembers.
//  4. The store's files are not read; Delete removes them unread.
//
// The package starts no goroutine.
package local
