// Package sim runs the core of the mirror (drivers/replication) against a
// model of the world, from one seed: contrib/design/0007.
//
// # Model
//
// A world has up to six nodes. Each has a host (power), an agent (killed,
// paused), a clock of its own rate, and perhaps a replica. The replica model
// (replica.go, control.go) keeps for each sector what is kept, what is durable
// and what lies between; dirty bits, stamps and promises likewise; it follows
// 0001 sections 1.2, 2 and 5. Messages (world.go) are delayed, pass one
// another, and wait while their direction of a link is cut. The cluster store
// (cluster.go) compares and swaps, fails, answers late or not at all, and
// executes requests late. node.go drives a core as the product's session does:
// connections that die with what is on them, buffers that are poisoned when
// they are released. Devices and clients (client.go) outlive agents and send
// again.
//
// # Checks
//
// While it runs: I-EPOCH, I-LAST on every record, I-FENCE on every write that
// lands, I-NEED on every acknowledgment, I-LEASE on every read, I-EQ and
// I-DIRTY between events, poisoned buffers. At the end everything heals, the
// volume must come to rest with all members in sync, all copies equal and
// clean, snapshots as they were and each one cut; and the history of every
// sector must be that of a register, with data lost only where every member
// of the set had lost power, and then only what no flush covered (history.go).
//
// # Budget
//
// Faults heal within 1.5 s and strike every 20 to 500 ms, several at a time;
// all replicas may lose power together. Drives never fail for good and the
// cluster store is not restored from a backup, so nothing that was flushed may
// ever be missing.
package sim
