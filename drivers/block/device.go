package block

import "context"

// Device is the synchronous view of a block device, for tools, tests and
// paths that are slow anyway. Any goroutine may call any method at any time.
//
// Offsets and lengths are bytes and multiples of SectorSize, of any size up to
// the device's. A call transfers all or returns an error; a failed write left
// each sector old or new, and may have happened. Calls whose ranges overlap are
// not ordered against each other unless one returned before the other began.
// Buffers are not kept after return and a write never changes its buffer. The
// context is looked at before the request is started and gives its deadline;
// a request that was started is waited for.
type Device interface {
	ReadAt(ctx context.Context, p []byte, off int64) error
	WriteAt(ctx context.Context, p []byte, off int64, f Flags) error
	// Flush makes durable each write, trim and zero that returned before.
	Flush(ctx context.Context) error
	// Trim forgets the whole grains inside the range; they read as zeros.
	Trim(ctx context.Context, off, n int64, f Flags) error
	// Zero makes the range read as zeros.
	Zero(ctx context.Context, off, n int64, f Flags) error
	Info() Info
	// Close waits for calls in flight; later calls fail with ErrClosed.
	// Idempotent.
	Close() error
}
