package fuse

import "time"

const (
	// maxWrite is the payload of one request in bytes: what the kernel allows
	// (256 pages) unless fs.fuse.max_pages_limit says otherwise.
	maxWrite = 1 << 20

	// maxWorkers bounds the requests of one image in progress, and with it the
	// memory: 64 × 1 MiB of buffers at most, under load only.
	// A loop device has at most 128 requests in flight; beyond 64 a drive that
	// blocks gains nothing.
	maxWorkers = 64

	// maxIdleWorkers stay when the load goes: one that reads, one to take over.
	maxIdleWorkers = 2

	// maxBackground is how many asynchronous requests (those of a loop device
	// with direct I/O are) the kernel sends before it queues: the depth of a
	// loop device's queue.
	maxBackground = 128

	// inlineBytes: a device that cannot block serves smaller requests on the
	// reading goroutine; larger ones are worth a second processor for the copy.
	inlineBytes = 64 << 10

	// keepBytes of a worker's buffer stay resident when it has been idle for
	// trimAfter; 10 idle volumes then keep 10 × 128 KiB, and as much for the
	// second worker where there is one.
	keepBytes = 128 << 10
	trimAfter = 5 * time.Second

	// initTimeout bounds the handshake after mount(2), which is local.
	initTimeout = 10 * time.Second

	// Holder: an entry is a volume. 4096 volumes per node, 1 descriptor each.
	maxEntries = 4096
	maxKey     = 128
	maxBlob    = 4096
	// maxMessage is one packet: header, key, blob; see holderwire.go.
	maxMessage = headerSize + maxKey + maxBlob
	// holderTimeout bounds one call to the holder, which does no I/O.
	holderTimeout = 10 * time.Second
	// maxHolderClients: the agent has one connection, a second during upgrade.
	maxHolderClients = 16
)
