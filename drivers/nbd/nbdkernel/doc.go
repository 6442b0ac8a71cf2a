// Package nbdkernel attaches volumes to the kernel's network block device:
// /dev/nbdN by netlink, over unix socket pairs whose other ends the volume's
// data path serves (drivers/nbd/nbdserver, Loop.AddFD).
//
// # One connection or several
//
// What the kernel does with a request that a dead server had taken differs:
//
//	1 connection,  no request time-out: asked every stuckEvery, the kernel
//	               sends it again as soon as the socket is a new one, and never
//	               while the socket is the same. No ghost (REPLICATION S7).
//	n connections: it is sent again when it is older than the request time-out,
//	               on another socket even if the first still lives. The
//	               time-out must exceed the longest hold, and a killed agent
//	               costs its requests in progress that long.
//
// One connection is the default: the data path of a volume is one thread, and a
// pause of seconds after a kill is worth more than the second socket.
//
// # Invariants
//
//  1. The index is persisted before CONNECT, and CONNECT carries the volume's
//     identifier, so that a device is never taken for another's.
//  2. Sockets of a device end together (S7): the data path closes all or none.
//  3. A device is disconnected only by Detach and Cleanup.
//
// # Formats
//
// Attributes of linux/nbd-netlink.h: netlink.go. The agent's name for a device
// is the string "moraine/" + volume ID (NBD_ATTR_BACKEND_IDENTIFIER, Linux 5.14).
//
// # Goroutines
//
//	watch  one per attachment; owner: attachment; a timer; looks whether the
//	       kernel still has the device
//	heal   the same; woken by NBD_CMD_LINK_DEAD; replaces dead sockets
package nbdkernel
