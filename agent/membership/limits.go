package membership

import "time"

const (
	// interval is how often a node looks whether something changed: the store's
	// members, its own certificate, the plan. A growing store needs a few.
	interval = 2 * time.Second

	// callTimeout bounds one call to the store or to another node in that loop.
	callTimeout = 10 * time.Second

	// contactTimeout bounds the question to one node at start whether this one
	// still belongs.
	contactTimeout = 3 * time.Second

	// memberPatience bounds the start of a learner; it is tried again.
	memberPatience = time.Minute

	// deadAfter is how long a node must have been silent before another takes
	// its place in the store: longer than a reboot.
	deadAfter = 5 * time.Minute

	// maxMessageBytes bounds a request of the service: 32 addresses, 64 labels
	// of 512 bytes, a certificate request.
	maxMessageBytes = 64 << 10

	// maxResponseBytes bounds an answer: contacts of 1000 nodes and two
	// certificates.
	maxResponseBytes = 256 << 10

	// contactsMax bounds what is told, and kept, of where others are.
	contactsMax = 64

	// contactsBytesMax bounds the file of contacts.
	contactsBytesMax = 64 << 10

	// labelsMax and labelBytesMax are those of agent/config.
	labelsMax     = 64
	labelBytesMax = 256
)
