// Package cluster holds the contract of the cluster store: a small, strongly
// consistent key-value store with transactions, watches and leases, from which
// every other part of the control plane takes its state.
//
// The contract is KV (kv.go). Implementations: etcdkv (etcd inside the agent,
// or outside it) and memkv (in memory, with faults to inject). The suite in
// kvtest says what both must do. Typed records live above it, in records.
//
// Invariants
//
//  1. Reads are linearizable: Get and the first page of a List see every
//     transaction that was answered before they were called.
//  2. A transaction takes effect entirely or not at all, at one revision.
//  3. The revision grows by one at each transaction that changes something; it
//     never goes back, unless a person restores the store from a backup (then
//     the incarnation in the Cluster record changes, REPLICATION.md 4.6).
//  4. A watch delivers every change of its prefix from its first revision on,
//     in order of revision, once, and never half a transaction; or it ends
//     with an error.
//  5. A call whose outcome is not known says so (errdefs.ErrIndeterminate) and
//     is never repeated by an implementation: only the caller can tell, by
//     reading, whether it took effect.
//
// Goroutines: the contract needs none. KeepLease runs in its caller's.
package cluster
