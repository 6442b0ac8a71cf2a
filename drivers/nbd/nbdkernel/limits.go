package nbdkernel

import "time"

const (
	// maxConnections: the data path of a volume is one thread; more than a
	// handful of sockets is only more to poll.
	maxConnections = 16

	// requestTimeout of a device with several connections: above the mirror's
	// hold of 60 s (REPLICATION S7).
	requestTimeout = 90 * time.Second
	// stuckEvery: how often a device with one connection looks whether a
	// request's socket was replaced; the pause after a kill is up to twice this.
	stuckEvery = 2 * time.Second
	// deadConnTimeout is how long I/O waits for an agent to come back.
	deadConnTimeout = 10 * time.Minute

	// readyTimeout bounds the wait for the kernel and /dev after CONNECT.
	readyTimeout = 20 * time.Second
	// reconnectTimeout bounds how long Recover offers its sockets: the kernel
	// takes one when it has seen the end of an old one.
	reconnectTimeout = 30 * time.Second
	// goneTimeout bounds the wait for a device to end after DISCONNECT.
	goneTimeout = 20 * time.Second
	retryEvery  = 20 * time.Millisecond
	watchEvery  = 5 * time.Second

	// maxIndex of a device: minor numbers have 20 bits, 5 for partitions.
	maxIndex = 1<<15 - 1
)
