// Package nbdserver serves volumes over NBD.
//
// A Server accepts connections and negotiates; a Loop moves the data of one
// volume. In the way of the data the loop stands between the client (kernel
// nbd, a mirror, qemu, libnbd) and a block.Queue:
//
//	socket ─ read ≤ 256 KiB ─ conn.go parse ─ dispatch.go validate, lock, look ─ block.Queue
//	socket ─ one writev per ~8 replies ─ reply.go ──────────────── complete ─────────┘
//
// # Invariants
//
//  1. Everything of a loop (engine, queue, connections, buffers, locks) is
//     touched by its goroutine alone; others post functions to it (Do).
//  2. A request starts only when it is here whole, its range lock is granted,
//     and a look at its connection after that found it open (REPLICATION S7:
//     no ghost requests). A client that has gone away gets nothing executed.
//  3. Requests of all connections of a loop that overlap, one of them not a
//     read, take effect in the order in which they arrived whole.
//  4. The loop never blocks on a client: sockets do not block, output that is
//     not taken is kept within limits, and a client that does not read is not
//     read from. It sleeps in Engine.Wait only.
//  5. In steady state nothing is allocated, and no lock is taken, per request.
//     Payload lives in anonymous mappings outside the Go heap.
//  6. What parses gets an errno; a stream that cannot be followed closes its
//     own connection and nothing else.
//  7. A buffer goes back to the pool when the queue has returned its request
//     and the socket has taken its bytes; never before, also not when the
//     connection is gone.
//
// # Goroutines
//
//	loop        one per Loop, locked to its thread; owner Start/Close; woken by
//	            the engine: sockets, completions, Wake
//	accept      one per Serve call (the caller's own); ends with the listener
//	handshake   one per half-open connection, at most MaxHalfOpen; ends by
//	            deadline, hand-over to a loop, or Close
//
// # Buffers
//
// Small requests arrive in slabs of 256 KiB, many per read(2); a WRITE below
// BulkSize is executed out of its slab. A WRITE from BulkSize up is received
// into a page-aligned buffer of its own, and the header behind it into the
// slab, so that a stream of large writes is never copied. A READ fills a
// page-aligned buffer, with its reply header in the bytes before it: one
// piece of one writev.
//
// # TLS
//
// crypto/tls runs over the raw socket inside the loop: its net.Conn answers a
// read that would block with a temporary error, which tls.Conn survives with
// its half record kept; what it writes is gathered to one write(2).
// Certificates only: crypto/tls has no external PSK.
package nbdserver
