// Package block is the contract of the data path.
//
// A Queue is how requests reach a volume: many are submitted at once, many
// completions are reaped at once, and one goroutine (its owner) does both.
// A goroutine or a channel hop per request costs more than the whole request
// on a fast medium, so nothing here needs one. Device is the synchronous view
// for tools, tests and paths that are slow anyway; Sync makes one of a Queue.
//
// The way of a request: drivers/nbd/nbdserver (or drivers/fuse) fills a
// Request and submits it to the mirror (drivers/replication/session), which
// submits it to the stores (drivers/store) of the replicas.
//
// # The owner's turn
//
// After each Submit and each Wait of the engine the owner calls Reap until it
// returns fewer requests than it was given room for. A request may end inside
// Submit; then no event announces it.
//
// # Invariants
//
//  1. A request that Validate refuses changes nothing and ends with the error
//     that Validate gave.
//  2. A request ends once. Its Owner, Tag and, of a write, the bytes of its
//     buffer are as they were.
//  3. TRIM frees what CutInwards leaves of its range, and that reads as zeros;
//     the rest of the range keeps its bytes.
//  4. What a flush covers is what ended before it was submitted; FUA covers
//     the request itself.
//
// Implementations prove this by blocktest. memblock is a Queue in memory that
// can crash, faultblock wraps one and misbehaves by rule, rangelock orders
// requests that overlap, buffer has memory for payloads.
//
// # Goroutines
//
//	owner of a Sync   one per Sync whose engine may block; owner NewSync/Close;
//	                  woken by the engine. With an inline engine there is none:
//	                  a caller owns the queue while its request goes on.
package block
