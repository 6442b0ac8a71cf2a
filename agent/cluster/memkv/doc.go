// Package memkv is the cluster store in memory: the semantics of cluster.KV
// without a disk or a network, with faults to inject. Tests and simulations
// run the control plane on it.
//
// A Store is the data; each Client is one node's access to it and implements
// cluster.KV. A fault hits one client, so that one node may be cut off while
// another works. Snapshot and Restore play the operator who brings back an old
// backup.
//
// Invariants
//
//  1. Every change goes through commitLocked, at one revision, and appends its
//     events to the log in order; watches read the log, they own no queue.
//  2. The log and the versions of each key cover at least the revisions from
//     `compacted` on; older ones answer cluster.ErrCompacted.
//  3. A lease past its end is removed before any call looks at the data.
//
// Goroutines: none of its own. With the real clock a timer per store ends
// leases; with Options.Now the caller's calls (or Expire) do.
package memkv
