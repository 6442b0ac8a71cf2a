// Package etcdkv is the cluster store on etcd: inside the agent (Start) or
// outside it (Dial). It is the only package that imports etcd.
//
// An embedded store of one listens nowhere unless asked to: the agent's own
// client calls the server in process, so several agents on one machine need no
// ports. One that shall have other members or clients listens over TLS 1.3
// (Listen, note 0008): members show certificates of servers, clients any
// certificate of the cluster. It grows by learners: AddLearner makes room, the
// new member starts with ServerOptions.Join, Promote gives it a vote once it
// has the content. A member whose disk was lost is removed and added anew.
//
// Invariants
//
//  1. A call that may have reached the raft log is never sent twice, and fails
//     as indeterminate unless etcd's answer proves that it did not happen
//     (errors.go lists those answers).
//  2. One process at a time has a data directory open: a lock file is held
//     from before etcd touches the directory until after it let go of it.
//  3. A failure of the store never ends the process: what etcd reports as
//     fatal or panics over in its log (a full or broken disk under it) ends
//     etcd's goroutine only; Server.Failed is then closed and every later call
//     fails as unavailable. Volumes that are attached go on without the store.
//
// Goroutines: etcd's own, ended by Server.Close, which waits for them; one per
// Start that carries etcd's start, ended before a Start that succeeds returns;
// one per Server that waits for etcd's end, ended by Close; one per Close. After a failure etcd may leave goroutines behind.
//
// Format: DIR/lock (empty, locked with flock) and DIR/member, which is etcd's.
package etcdkv
