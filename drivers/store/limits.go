package store

import "time"

// Sizes of the format and bounds of the memory it takes.
const (
	// ExtentSize is the unit of allocation in bytes. 1 TiB = 16.7 million
	// extents = 128 MiB of map in memory.
	ExtentSize  = 64 << 10
	extentShift = 16

	// RegionSize is the unit of dirty bits and stamps in bytes.
	RegionSize  = 1 << 20
	regionShift = 20

	// nodeSize: a node of a view is one page: a leaf has 512 entries of 8 B
	// (32 MiB of volume), an inner node 1024 children of 4 B.
	nodeSize     = 4096
	leafShift    = 9
	leafEntries  = 1 << leafShift
	innerShift   = 10
	innerEntries = 1 << innerShift

	// MaxReplicaSize = 1024 x 1024 x 512 extents = 32 TiB in three levels.
	// Larger volumes are striped.
	MaxReplicaSize = int64(innerEntries) * innerEntries * leafEntries * ExtentSize

	// maxExtents of one drive: an entry has 31 bits for physical extent + 1.
	// 2^31 - 2 extents = 128 TiB.
	maxExtents = 1<<31 - 2

	maxReplicas  = 1 << 16   // per drive
	maxLayers    = 4096      // frozen layers of one replica
	maxRecord    = 256 << 10 // bytes of a volume record (REPLICATION 1)
	maxEpochs    = 1 << 20   // names in the epochs table; 16 B each
	maxRequest   = 32 << 20  // bytes, as NBD's largest payload
	maxPayload   = 1 << 20   // bytes of one journal record
	maxMapBatch  = 32 << 10  // map entries of one record: x 12 B < maxPayload
	journalStep  = 1 << 20   // bytes preallocated ahead of the journal's end
	journalBound = 64 << 20  // bytes of journal that ask for a checkpoint: replays in ~0.5 s

	// spaceMargin bounds: what is kept free on the file system for metadata:
	// a checkpoint (8 B per 64 KiB = 1/8192 of the data, twice) and a journal.
	minMargin = 8 << 20
	maxMargin = 256 << 20

	// bounceMax: bytes of bounce buffers of one queue (32 in-flight copies of
	// whole extents fill 2 MiB; a misaligned 32 MiB request goes by turns).
	bounceMax = 16 << 20

	// releaseStep: nodes released per hold of the store's mutex: 64 leaves =
	// 32,768 counts, about 0.1 ms.
	releaseStep = 64
	// sumStep: extents checksummed per background step (4 MiB).
	sumStep = 64
	// sumDelay: checksums of frozen extents begin this long after a freeze.
	// Then copies on write are over for what is written often, and snapshots
	// made for a backup may be gone.
	sumDelay = 30 * time.Second
	// ckptRetry: time between tries of a checkpoint that fails.
	ckptRetry = 30 * time.Second
	// sumPace: one step each: 64 MiB/s, a tenth of a slow SSD.
	sumPace = 62 * time.Millisecond
)
