package etcdkv

import "time"

const (
	// quotaBytes is the largest size of the store's file: etcd's own advice
	// for a default. 10,000 volumes of 4 KiB, changed 100 times each between
	// two compactions, are 4 GiB at the very worst; in practice a change is
	// seconds apart at the least, and history is one hour.
	quotaBytes = 2 << 30

	// compactionRetention is how long old revisions stay: the longest that a
	// watch may lag behind, or a listing take.
	compactionRetention = "1h"

	// requestBytesMax is what etcd accepts as one request: MaxTxnBytes
	// (1.5 MiB) of keys and values, twice the 128 keys (the losing branch reads
	// them), and framing.
	requestBytesMax = 2 << 20

	// tick and election are etcd's heartbeat and election time-outs. With one
	// member the tick is only a timer: 10 wake-ups a second.
	tick     = 100 * time.Millisecond
	election = time.Second

	// snapshotEntries and catchUpEntries bound the log kept in memory: at 2 KiB
	// an entry 5000 + 1000 of them are 12 MiB.
	snapshotEntries = 5000
	catchUpEntries  = 1000

	// defragMiB: a file that is larger than needed by this much is rewritten at
	// start, so that it shrinks again after a burst.
	defragMiB = 128

	// startTimeout is how long Start waits for the store to elect itself and
	// answer. Replaying the log of a busy store on a slow disk takes seconds.
	startTimeout = 60 * time.Second

	// learnersMax lets a store of one grow to five at once: the learners are
	// promoted together when all have caught up.
	learnersMax = 4

	// closeFailedTimeout is how long Close waits for a store that has failed.
	closeFailedTimeout = 5 * time.Second

	// dialTimeout is how long a connection to an external store may take.
	dialTimeout = 5 * time.Second

	// keepAliveTime and keepAliveTimeout find a dead connection to an external
	// store within 15 s (10 s is the least that etcd servers accept).
	keepAliveTime    = 10 * time.Second
	keepAliveTimeout = 5 * time.Second
)
