package nbdclient

import "time"

const (
	receiveSize = 256 << 10 // one read(2): what a unix socket holds by default
	// bulkSize is the payload from which a READ is received into its own
	// buffer: below, a copy is cheaper than one more piece of the readv.
	bulkSize = 16 << 10
	// headSize is how much is read behind a bulk payload: one reply's header
	// and an offset, so that the next payload can be received in place too.
	headSize = 40
	maxIOV   = 128 // pieces of one writev: 64 writes
	// arenaSize is how many bytes of request headers are kept together: 128
	// extended ones, a deep batch.
	arenaSize = 4096

	dialTimeout = 10 * time.Second // connect and negotiate, when the context sets no earlier end
)
