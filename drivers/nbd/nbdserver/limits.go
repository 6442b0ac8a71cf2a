package nbdserver

import (
	"time"

	"github.com/moraine-storage/moraine/drivers/nbd"
)

const (
	slabSize = 256 << 10 // one read(2): what a unix socket holds by default (208 KiB), and fits the L2 cache
	// minRoom is the least room that a read is given: below it the slab is
	// changed. 8 requests of 4 KiB.
	minRoom = 32 << 10
	// bulkSize: payloads from here up are received into and sent from a buffer
	// of their own. Below, one copy (64 KiB: 6 µs) is cheaper than a system call more.
	bulkSize = 64 << 10

	// flushEvery replies are gathered before they are sent while more requests
	// wait: the client works on them meanwhile (PEERS 6: 8 is best at depth 32).
	flushEvery = 8
	// flushBytes of payload are sent at once.
	flushBytes = 256 << 10
	// maxIOV pieces go to one writev: 8 replies of 4 pieces, with room.
	maxIOV = 64

	// reapBatch completions are taken at once.
	reapBatch = 64
	// maxEvents sockets are looked at per wait; the rest is ready next time.
	maxEvents = 32

	// spinFor is how long a loop looks for the next request before it sleeps,
	// right after one: waking costs more (PEERS 6: 1.4–1.8x at depth 1). A
	// client on a halted processor of a virtual machine takes 40 µs to come
	// back; with 20 µs the loop slept just before that.
	spinFor = 60 * time.Microsecond
	// spinLost is when a spin that yields counts as a loss, whatever it found:
	// a client's turn takes a few microseconds, a busy thread's 1000 and more.
	spinLost = 200 * time.Microsecond
	// spinCredit bounds how many spins in vain are made before they are given
	// up for a while, spinProbe how many sleeps later it is tried again.
	spinCredit = 8
	spinProbe  = 64
	// spinBackoff sleeps more after a loss: at 30 µs each and 3 ms lost, that
	// is below a tenth.
	spinBackoff = 1024

	// trimAfter idle, buffers are given back to the system: 10 idle volumes
	// then hold nothing but descriptors and stacks.
	trimAfter = 5 * time.Second
	// poolKeep bytes of large buffers are kept for reuse: 8 × 1 MiB and some.
	poolKeep = 16 << 20

	// holeExtents is how many extents of a large read are looked at for holes:
	// more pieces than that are sent as data.
	holeExtents = 16

	handshakeTimeout = 10 * time.Second // a round trip or two per option; TLS included
	maxHalfOpen      = 256              // 256 × (goroutine 8 KiB + TLS 40 KiB) = 12 MiB
	maxServerList    = nbd.MaxOptionReplies
)

// Limits bound what one loop holds. Zero fields take the default.
type Limits struct {
	// Conns is how many connections a loop serves (default 64: kernel nbd takes
	// 4–8, a mirror 1–4, and what else looks on).
	Conns int
	// ConnRequests is how many requests of one connection are in flight
	// (default 256: kernel nbd has 128 per queue).
	ConnRequests int
	// ConnBytes bounds payload in flight plus unsent output of one connection
	// (default 66 MiB: two of the largest requests, and their headers).
	ConnBytes int64
	// LoopBytes bounds the same of the loop (default 256 MiB). A connection
	// with nothing in flight may always have one request: so the worst is
	// LoopBytes + Conns × 32 MiB, if every client asks for the largest at once.
	LoopBytes int64
}

func (l *Limits) setDefaults() {
	if l.Conns <= 0 {
		l.Conns = 64
	}
	if l.ConnRequests <= 0 {
		l.ConnRequests = 256
	}
	if l.ConnBytes <= 0 {
		l.ConnBytes = 66 << 20
	}
	if l.LoopBytes <= 0 {
		l.LoopBytes = 256 << 20
	}
}
