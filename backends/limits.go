package backends

// Limits of the contract. A page of MaxPage drives, each with texts of MaxText
// bytes (source, reason) and some hundred bytes beside them, stays below 4 MiB
// (256 * 2 * 4 KiB = 2 MiB), the largest message that the agent accepts.
const (
	DefaultPage = 100
	MaxPage     = 256
	MaxText     = 4 << 10
	MaxName     = 32 // of a backend

	// MaxDiscover bounds Discover's answer: one message. A node has tens of
	// drives; 1024 entries of 4 KiB would be the 4 MiB, so texts are cut to
	// 1 KiB there.
	MaxDiscover     = 1024
	MaxDiscoverText = 1 << 10

	// MinDriveSize is the smallest drive: a store needs room for its
	// journal segments and checkpoints beside the data.
	MinDriveSize = 64 << 20
	// MaxDriveSize is what 63 bits of bytes allow with room for sums.
	MaxDriveSize = 1 << 60
)
