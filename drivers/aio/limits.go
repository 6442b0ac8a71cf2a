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
)
