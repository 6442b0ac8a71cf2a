package buffer

const (
	minBits = 12
	maxBits = 25
	classes = maxBits - minBits + 1

	// MinSize is a page, which is also what the strictest drive asks of
	// direct I/O.
	MinSize = 1 << minBits
	// MaxSize is the largest NBD payload: 32 MiB.
	MaxSize = 1 << maxBits

	// slabSize is mapped at once for sizes up to it: 64 buffers of a page, so
	// that mappings stay few (the kernel allows 65530 per process).
	slabSize = 256 << 10

	// keepLarge free buffers of each size above slabSize are kept, enough to
	// overlap receiving one with writing another; the rest is unmapped.
	// 2 x (0.5+1+...+32 MiB) = 127 MiB at worst, until Idle.
	keepLarge = 2
)
