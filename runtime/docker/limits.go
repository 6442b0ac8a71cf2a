package docker

import "time"

const (
	// maxBody is the largest request read, in bytes. A Create has a name of at
	// most 255 bytes and options; 64 labels of 512 bytes are 32 KiB.
	maxBody = 256 << 10
	// maxOptions of a Create: every option once, and 64 labels.
	maxOptions = 128
	// maxID of a Mount in bytes. Docker's have 64; the consumer "docker:ID#NNNN"
	// must fit in the 256 bytes that a record gives a consumer.
	maxID = 200
	// maxUses of one volume under one ID: docker cp commands at one time.
	maxUses = 256

	// maxSocketPath is what struct sockaddr_un holds, without the final zero.
	maxSocketPath = 107

	// retryWindow after Start. Docker repeats a call for 30 s, with pauses of up
	// to 16 s, when the connection breaks.
	retryWindow = 45 * time.Second
	// bindGrace is how long an engine may take from the answer of a Mount until
	// the container's own mount exists, generously.
	bindGrace = 10 * time.Second
	// undoTimeout for dropping the consumer of a caller that has gone.
	undoTimeout = time.Minute
	// headerTimeout for a client that connects and says nothing.
	headerTimeout = 10 * time.Second

	// Ranges of counts. The agent has the last word; these keep nonsense out.
	maxReplicas  = 16
	maxStripes   = 64
	maxIOPS      = 1_000_000_000
	maxListItems = 32 // words of mkfs-options and mount-options
)
