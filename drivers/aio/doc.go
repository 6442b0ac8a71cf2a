// Package aio runs file I/O and readiness of sockets for one owner thread.
//
// An Engine is the event loop of a volume's data path: the goroutine that owns
// it (locked to its thread) submits file operations, waits for their
// completion and for readiness of sockets in one system call, and runs the
// completions itself. Three implementations pass one suite (aiotest):
//
//   - inline: operations run inside Submit; for media that cannot block (tmpfs)
//     or for one request at a time. Waiting is epoll.
//   - uring: one io_uring per engine (SINGLE_ISSUER, DEFER_TASKRUN where the
//     kernel has them; Linux 5.11 at the least); operations of a round are
//     submitted by the same system call that waits. Sockets are watched by
//     poll requests on the same ring.
//   - threads: a small pool of workers; for kernels where io_uring is missing
//     or forbidden.
//
// # Invariants
//
//  1. Done is called once per Op, on the owner's goroutine, never while another
//     Done of the same engine is running: a completion may submit, and what it
//     submits completes after it has returned.
//  2. A transfer is whole or failed: short ones are continued, a read past the
//     end of the file is filled with zeros.
//  3. An fdatasync is never repeated after an error: the kernel reports a lost
//     page once, and a second call would call it written.
//  4. No Wake is lost: one that came before Wait makes that Wait return, and
//     what the waker wrote before is seen after. Wait may also return with
//     nothing to report.
//  5. Nothing is allocated per Op, Wait or Wake.
//  6. After Unwatch the engine holds no reference to the descriptor; closing
//     it reaches the peer at once.
//  7. An engine whose ring fails in a way that cannot pass by itself panics:
//     operations in flight would be lost without anyone being told.
//
// # Threads
//
// An inline or threads engine may be handed from goroutine to goroutine, one
// owner at a time. A uring engine is bound to the thread of its first Submit,
// Watch or Wait and locks the goroutine to it until Close, which the owner
// calls itself.
//
// # Goroutines
//
//	worker   threads engine, 8 per engine; owner New/Close; woken by Submit
//
// The uring engine starts none; the kernel's own workers take what cannot be
// done without blocking (fdatasync, buffered files on a disk).
package aio
