// Package membership makes a node part of a cluster and keeps it there: it
// bootstraps or joins, opens the cluster store the way that suits the node, says
// who else there is, and grows and shrinks the store with the cluster.
//
// Life of a node (Open):
//
//	no identity, nobody to join   bootstrap: a store of one, its cluster's record, an authority
//	no identity, join and token   Join: certificate, the node's record, where the others are
//	identity                      open the own member of the store, if there is one; dial the others
//
// A node with no address of its own (Options.Bind empty) is a cluster of one and
// listens nowhere. All others dial the store over TLS, the members' own agents
// too, so that a node loses nothing when its member does.
//
// The store: plan decides from the nodes and the members how many members there
// should be (1 of less than three servers, 3 of less than five, 5) and which
// step comes next; the agent whose member leads carries it out. That a node
// shall be a member is a record (StoreMember); the node itself makes room, starts
// as a learner, and is promoted by the leader.
//
// Invariants
//
//  1. A node that has an identity never makes a new store.
//  2. A node's record is made in the transaction that uses its token up, and
//     only if its name and identity are free.
//  3. A member is removed from the store only when its node was removed, when
//     there are more than needed, when another is there in its place, or by its
//     own node when its disk was lost.
//  4. Two voters are only a passing state: learners get their votes together.
//
// Goroutines: one per Node (run: owner Open, ended by Close; wakes by a timer),
// which does all of this; it is the only one that starts and closes the member.
//
// Format: DATA_DIR/node-id (32 digits), DATA_DIR/identity (package identity),
// DATA_DIR/etcd (package etcdkv), DATA_DIR/contacts.json (contacts below).
package membership
