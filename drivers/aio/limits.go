package aio

const (
	// rawEvents is how many descriptors one wait looks at: more than the 16
	// connections that a volume commonly has; the rest comes with the next
	// wait (level-triggered). 64 x 12 bytes.
	rawEvents = 64

	// maxFD bounds the table of watches: 2^20 is the kernel's default
	// ceiling for descriptors of a process (fs.nr_open).
	maxFD = 1 << 20

	// maxWaitMS keeps a coarse wait inside the kernel's int (24 days).
	maxWaitMS = 1<<31 - 1

	// workerCount is the queue depth that the threads engine gives a drive:
	// enough for half of what one SSD reaches at depth 32, few enough that an
	// agent with 100 volumes stays below 1000 threads.
	workerCount = 8

	// sqEntries is how many operations one system call can submit (64 bytes
	// each); a fuller batch is flushed on the way.
	sqEntries = 256

	// maxInFlight bounds what the kernel holds of one ring: four times the
	// depth at which an NVMe drive stops getting faster (256). More waits
	// in the engine.
	maxInFlight = 1024

	// cqEntries: completions of all in flight, as many polls again, and none
	// overflows (if it did, the kernel keeps them: NODROP). 16 bytes each.
	cqEntries = 2 * maxInFlight

	// maxTransfer is the largest single transfer, within the kernel's
	// MAX_RW_COUNT (2^31 - 4096) and page-aligned; the rest is continued.
	maxTransfer = 1 << 30
)
