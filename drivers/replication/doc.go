// Package replication is the mirror of an attached volume as a pure state
// machine: what happens goes in, what is to be done comes out. It has no I/O,
// no goroutine, no clock and no map whose order could matter, so that the
// simulator (package sim) can run it through any schedule from one seed. The
// algorithm is contrib/design/0001; comments cite its sections.
//
// # Events and effects
//
// A Core is made for one session: New(Config), then Attach. Every method that
// takes now is an event; now is CLOCK_BOOTTIME of this node. After an event,
// or a batch of them, the driver takes Effects and does them in order; it may
// call further events while it does (not from within an event).
//
//	event                  meaning
//	Attach                 begin 4.1: Opened or Over follows
//	Submit(op)             a client's operation; also allowed before Opened, it is held
//	Done(op, member, err)  a Send has ended; exactly one for each Send
//	Lost(member)           the connections to a member broke
//	Answer(ctl, reply)     a Control has ended; exactly one for each Ask
//	Stored, RecordRead     the cluster store has answered; exactly one each
//	Tick                   time passes; at least every TickEvery
//	ClockJumped            the clocks cannot be trusted: all leases are void
//	Snapshot, DropSnapshot, Resize, Detach   jobs; Finished follows with their number
//
//	effect      the driver
//	Send        sends op to a member as Do: read, write, zero, trim or flush
//	Complete    answers the client; Final: the op is its own again
//	Release     gets the op of an earlier Complete back (Final)
//	Close       closes the session's connections to a member, answers Done for what was on them
//	Ask         sends a Control (0001 section 2), answers within Control.Timeout
//	Store       compare-and-swap of the record; ReadRecord reads it, linearizably
//	Announce    writes the session into the attachment file, or fails the old device
//	Opened      opens the device and lets replays in
//	Over        tears down; the core answers everything with an error from now on
//	Finished    ends a job
//
// # Who owns what
//
// Members are slots 0..15 of this session; Replica gives the id. An Op comes
// from NewOp and is the core's from Submit to an effect with Final; then the
// driver calls FreeOp, not before it has seen the effect. Payload hangs on
// Op.Owner and is the driver's: a write's bytes must stay as they are until
// Final, for members that have left may still be sending them. Ops that the
// core makes itself (Internal) have no client: when a copy is first sent as a
// read the driver gives it a buffer (Op.Len bytes, at most Config.CopyChunk),
// keeps it in Owner, sets Op.Hole before Done if the source says that all of
// it is a hole or zeros, and sends the same buffer when the op is sent as a
// write. Op.Off and Op.Len may change between such Sends. A read is on the way
// to one member at a time.
//
// The connections of a member belong to the PROMOTE that opened its gate:
// they are made after its Answer without error, carry session and Control.Gate,
// and a replica refuses what carries an older gate. ErrLost is what the driver
// answers when it cannot know; block.ErrFenced is a refusal; block.ErrNoSpace
// and block.ErrIO come from the medium.
//
// # Invariants
//
//  1. need = serving ∪ in_sync of the record ∪ in_sync of changes whose outcome
//     is not known ∪ the member that joins; serving is the in_sync of the last
//     record that all of it have promised (ADVANCE).
//  2. A write is acknowledged when wait ∩ need is empty; its lock is freed when
//     wait is, and wait loses a member only by its completion or its leaving Z.
//  3. failed ⊆ need: members that are not sent to, until the record lets them go.
//  4. A change whose outcome is not known counts in need until the record's
//     revision has moved: a later change is made for that if nothing else is.
//  5. A region is clean here only if all of Z outside todo have its stamp.
//  6. Frozen layers are clean on all of in_sync: a snapshot flushes and cleans
//     first.
//
// # Files
//
//	core.go    the state; need and Z; failure of members; the end
//	io.go      client operations: locks, sends, acknowledgment, reads, leases
//	tick.go    leases, deadlines, hold and resume
//	change.go  the record: proposals, unknown outcomes, ADVANCE
//	start.go   attach (4.1); attach.go decides
//	copy.go    reconcile, copies of a resync, read repair
//	clean.go   CLEAN batches (3.4)
//	resync.go  resync, layers, join (4.4)
//	work.go    snapshot, resize, detach (4.5)
//
// Force and a cluster store that went back (4.6) are not decided here yet: a
// store that is known to be older ends an attach with ErrStoreWentBack, and a
// serving mirror makes no change in it. Volumes with more than one stripe
// group are not known here either: a Core serves one group.
// drivers/replication/session is to drive a Core; until then it serves volumes
// with one member without it.
package replication
