package drivers

import (
	"context"

	"github.com/moraine-storage/moraine/drivers/block"
)

// Kind names a driver.
type Kind string

// The kinds of block attachment.
const (
	KindNBD  Kind = "nbd"  // the kernel's network block device
	KindLoop Kind = "loop" // one FUSE file and a loop device on it
)

// Device is what a driver needs of a volume whose requests it serves itself
// (the loop driver). block.Sync is one. Many goroutines may call it at once.
// A transfer is full or fails; errors are those of drivers/block. Offsets and
// lengths are in bytes and multiples of block.SectorSize; a caller sees to it
// that they lie within Info().Size.
type Device interface {
	Info() block.Info
	ReadAt(ctx context.Context, p []byte, off int64) error
	// WriteAt may be called twice with the same bytes (REPLICATION S8).
	WriteAt(ctx context.Context, p []byte, off int64, f block.Flags) error
	// Flush makes durable all that returned before the call.
	Flush(ctx context.Context) error
	// Zero makes the range read as zeros, exactly.
	Zero(ctx context.Context, off, n int64, f block.Flags) error
}

// Volume is what is attached.
type Volume struct {
	ID   string     // 128 bits, lower-case hex; unique on the node
	Name string     // for messages
	Info block.Info // size and limits at the time of the call

	// Device serves the loop driver; nil if only Connect is offered.
	Device Device
	// Inline: Device never blocks (its medium is memory), so that it may be
	// called by the goroutine that reads the kernel's requests.
	Inline bool
	// Connect gives one end of a connected stream socket, already in the
	// transmission phase of NBD (simple replies, no handshake), to the volume's
	// data path, which owns fd from then on unless it returns an error
	// (nbdserver's Loop.AddFD).
	// It serves the nbd driver; nil if only Device is offered.
	Connect func(fd int) error
}

// Options of Attach and Recover. The zero value is usable but for Persist.
type Options struct {
	// Connections to a kernel nbd, 1 to 16; 0 is the driver's choice.
	Connections int
	// BlockSize is the logical block size of the device in bytes: 512, 1024,
	// 2048 or 4096; 0 is 512.
	BlockSize int
	ReadOnly  bool
	// Persist stores s durably (it survives the death of this process at the
	// least). Never nil. Its error ends the call, and what was made is undone.
	Persist func(ctx context.Context, s State) error
}

// Driver presents volumes to the host. All methods may be called by many
// goroutines, but for one volume by one at a time.
type Driver interface {
	// Attach makes the device. On error nothing is left behind, or the error
	// says what is and Cleanup of the last persisted State undoes it.
	Attach(ctx context.Context, v Volume, o Options) (Attachment, error)
	// Recover goes on serving a device that an earlier process attached. Call
	// it when the volume may be read and written (REPLICATION 4.1.8): requests
	// that the kernel kept are executed from now on, some for the second time.
	// errdefs.ErrNotFound: the device is gone; Cleanup and attach anew.
	Recover(ctx context.Context, v Volume, s State, o Options) (Attachment, error)
	// Cleanup removes whatever of s exists. Without force it refuses
	// (BusyError) while the device is in use; with force the requests that the
	// kernel holds fail with EIO. Nothing there is no error.
	Cleanup(ctx context.Context, s State, force bool) error
	// Probe says whether the driver can work on this host, and why not.
	Probe(ctx context.Context) Support
}

// Attachment is a device on this node, served by this process.
type Attachment interface {
	// State as last persisted; State().Device is the device's path.
	State() State
	// Resize tells the kernel that the volume has grown to size bytes.
	Resize(ctx context.Context, size int64) error
	// Release ends serving and leaves the device: requests taken are answered,
	// new ones wait in the kernel for Recover. After an error it may be called again.
	Release(ctx context.Context) error
	// Detach removes the device. Without force it refuses with BusyError while
	// something uses it. After an error it may be called again.
	Detach(ctx context.Context, force bool) error
	// Done is closed when the device is no longer served by this attachment.
	Done() <-chan struct{}
	// Err is why, after Done: nil after Release and Detach.
	Err() error
}

// Support is what Probe found.
type Support struct {
	Name      string // what was looked for: "nbd", "loop", "mkfs.xfs"
	Available bool
	Reason    string // why, or why not, for a person
	Fix       string // what to do about it; empty if nothing need be done
}
