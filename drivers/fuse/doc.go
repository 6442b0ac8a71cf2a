// Package fuse serves a volume as a FUSE filesystem with one file, "image", of
// the volume's size, which a loop device turns into a block device where the
// kernel has no nbd; and it keeps FUSE descriptors alive beyond the process
// that serves them (the holder).
//
// Way of one write: loop device → kernel FUSE → /dev/fuse → Image worker
// (image.go) → handler (ops.go) → drivers.Device (the mirror over its stores) →
// reply. The package speaks the protocol itself, with the numbers of go-fuse:
// an image has one file and a dozen operations, and three things it needs are
// not to be had from a general server: to begin in the middle of a connection
// that another process opened, to stop without losing a request it has read,
// and to serve a medium that cannot block without a goroutine per request
// (contrib/design/0005-agent-restart.md).
//
// # Invariants
//
//  1. The descriptor of a connection is in the holder before the connection is
//     mounted, and leaves it only when the connection is unmounted: a
//     connection whose last descriptor closes is aborted by the kernel.
//  2. A request that was read is answered before Release returns. What a dead
//     process had read and not answered is sent again on NOTIFY_RESEND, which
//     Takeover asks for before its first read, and nobody else.
//  3. Every request may be executed twice (REPLICATION S8).
//  4. FLUSH is never sent by the kernel (FOPEN_NOFLUSH, and ENOSYS where that
//     is not known): a process that closes the file in fork+exec while no
//     server runs would otherwise hang beyond the reach of SIGKILL.
//  5. Memory that the kernel copies to and from is resident before (worker.go):
//     SIGKILL during a page fault inside the copy fails the request with EIO.
//  6. Nothing is cached: attributes and entries have no lifetime in the kernel,
//     data pass by the page cache (FOPEN_DIRECT_IO). The loop device above has
//     the cache.
//
// # Goroutines
//
//	worker (image.go)   1 to maxWorkers per image; owner: Image; woken by
//	                    /dev/fuse or the stop eventfd; one of them, the leader,
//	                    reads; owns its request buffer
//	conn (holder.go)    one per client of the holder process; owner: RunHolder
//	watch (keeper.go)   one per Keeper; owner: Keeper; woken by the end of the
//	                    connection to the holder: starts another and refills it
//
// # Formats
//
// The holder's messages: holderwire.go. The blob kept with each descriptor is
// the JSON of session (init.go).
package fuse
