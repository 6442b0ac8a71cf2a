package cluster

import "time"

// Limits of the store. They hold for each implementation, so that what works
// against one works against the other.
const (
	// MaxKeyBytes bounds a key: a fixed prefix (< 64 bytes) and a name of at
	// most 128 bytes, with room to spare.
	MaxKeyBytes = 512

	// MaxValueBytes bounds one value. The largest record is a volume: 1024
	// snapshots of about 200 bytes (the name is 128 of them) and 64 groups of
	// 8 members of 80 bytes make 250 KiB; four times that is the limit.
	MaxValueBytes = 1 << 20

	// MaxTxnBytes bounds all keys and values of one transaction: one record of
	// the largest size and half of that again for the small ones beside it.
	MaxTxnBytes = 3 << 19

	// MaxTxnOps bounds the conditions, and also the changes, of a transaction.
	// A group snapshot changes one record per volume: 64 volumes and their
	// name keys. It is etcd's own default.
	MaxTxnOps = 128

	// MaxListItems is the largest page of List, and what a Limit of 0 means:
	// 512 records of the usual 1 KiB are half a MiB.
	MaxListItems = 512

	// MinLeaseTTL and MaxLeaseTTL bound a lease. An implementation may grant
	// more than was asked (Lease.TTL says what it granted), never less.
	MinLeaseTTL = time.Second
	MaxLeaseTTL = 24 * time.Hour
)
