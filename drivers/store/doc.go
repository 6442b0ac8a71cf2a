// Package store keeps the replicas of one drive.
//
// A drive is a directory: superblock (identity of drive and opening), lock,
// data (one file of 64 KiB extents, direct I/O) and meta/ (journal segments
// and checkpoints). The format is in contrib/design/0002-store-format.md.
//
// In the way of a write the store is last: the mirror submits a block.Request
// to a queue (queue.go); an overwrite of an extent that the top view owns goes
// to the engine at once (piece.go); a first write allocates (alloc.go), and
// its map entry is appended to the journal in the next Reap; a flush is a
// round of group commit over all replicas (flush.go).
//
// # Model
//
// A replica has a top view and frozen layers, each with a view: a tree of
// three levels from logical to physical extents (tree.go). Nodes are shared
// between views and counted, so freezing and cloning copy nothing. The extents
// of a "layer" in the words of the rules are those in which its view differs
// from the one below. Dirty bits and stamps per region hang on layers
// (regions.go).
//
// # Invariants
//
//  1. An extent may be written in place only when every node on its path has
//     one reference, one leaf alone names it, and it carries no checksum: then
//     no snapshot, clone or reader can see the write.
//  2. Every change of the state is a journal record first: append, then apply.
//     Replay applies the same records to the checkpoint (state.go).
//  3. A map entry is appended after its data was written and before the write
//     is answered (S1). An entry counts after a power cut only if a flush
//     record covers it, and that is written only after a sync of the data file
//     that began later than the entry was appended (S2; flush.go).
//  4. A part of an extent is written only where the rest reads as zeros: fresh
//     extents lie past the end the data file had at open, or were punched (S3).
//  5. A reference to an extent, or to a view, that was given up counts until the
//     record that gave it up is covered, and for extents until all I/O that
//     began before has ended: so a freed extent is not reused, and a shared one
//     not written in place, while a power cut could bring the old map back (S4;
//     space.go, background.go).
//  6. A checkpoint gets its name only after a flush covers all it includes.
//  7. An extent with a checksum is immutable.
//  8. After a failed sync nothing is made durable until the store is opened
//     again, and the loss id changes.
//
// # Goroutines
//
//	name        owner  woken by                    does
//	queue owner caller the caller's loop           everything in queue, piece, alloc, ranges
//	2 flushers  Store  askFlush                    journal syncs; flush rounds; tell queues by Engine.Wake
//	background  Store  kick: frees, freezes, size  releases views, punches, sums, checkpoints
//
// On media that cannot block (memory) flushes run in the queue's owner.
// Lock order: ckptMu, flushMu, syncMu, superMu, mu. The state, the trees and the
// extents are guarded by mu; a queue's owner reads its own view without it,
// for only that owner changes it.
package store
