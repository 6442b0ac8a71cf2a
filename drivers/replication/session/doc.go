// Package session is the mirror: it carries the requests of one attached
// volume to its replicas (contrib/design/0001 section 3).
//
// Two queues do that, each owned by the volume's loop. A Mirror serves a
// volume of one replica and adds nothing to a request but the checks that hold
// for every volume: limits of rate, and the flush rule. A Group serves a
// volume of several: it drives a replication.Core, which decides everything,
// and does what the core asks for, in its order. A Mirror may stand before a
// Group for its limits.
//
// # A request in a Group
//
// Submit copies what a write carries and hands the operation to the core;
// the core's Sends are collected per member and submitted as one batch. Reap
// collects what members have ended, tells the core, and does what follows,
// until nothing more can be done without the engine. Answers of control
// messages and of the record store, and functions that other goroutines post,
// are read there too. Nothing is allocated per request.
//
// # Invariants
//
//  1. Mirror: after a failed flush of the last member every later flush fails,
//     until the volume is attached anew (0001 section 3.3): the medium may
//     have dropped what it could not write, and a retry that succeeds proves
//     nothing. A Group's core has the same rule.
//  2. Mirror: an error of the member is the client's, as it is; it is never
//     retried and the member never leaves the set.
//  3. Group: a write's bytes lie in memory that only the Group writes, from
//     Submit until the core says Final: the client is answered earlier when a
//     member that left, or one that is caught up, still sends them.
//  4. Group: a read fills the client's own memory, so a read that was given up
//     while a member may still write there is answered when it cannot any
//     more.
//  5. Group: a Send ends when its member cannot touch the buffer: over a
//     connection that is when the connection is closed, on a medium when the
//     operation has ended. A queue that was closed with operations in flight is
//     reaped until they have.
//  6. Group: the clock is read after the data of a read was taken from its
//     member and before the core looks at leases, so a lease that holds then
//     held when the data was current (I-LEASE).
//  7. Group: an event is never told to the core while an effect is carried
//     out by the Group itself; callbacks of the caller may call in.
//  8. Group: a session that could not be announced never serves; the record
//     is not changed after that.
//
// # Goroutines
//
// None. Timers wake the engine: of a Mirror when a limited request is due, of
// a Group every Core.TickEvery. Members have goroutines of their own (see
// package local).
//
// # Files
//
//	mirror.go   Mirror; limits.go its limits of rate
//	member.go   what a Group needs: Member, Connection, Records, the clock
//	group.go    Group: the queue, the owner's turn, jobs, the end
//	call.go     operations and their memory
//	link.go     queues to members
//	effect.go   what the core asks for; messages; ticks
//	mailbox.go  what other goroutines have to say
package session
