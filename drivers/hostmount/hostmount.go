package hostmount

import (
	"context"
	"time"
)

// Filesystem types that can be made.
const (
	Ext4 = "ext4"
	XFS  = "xfs"
)

// Signature is what Probe found on a device.
type Signature struct {
	// Type is blkid's word: "ext4", "xfs", "LVM2_member", "gpt", ...; ""
	// when nothing is known.
	Type  string
	UUID  string
	Label string
	// Blank: no signature, and zeros at the beginning and the end.
	Blank bool
	// Ambiguous: more than one signature.
	Ambiguous bool
}

// FormatOptions of Format.
type FormatOptions struct {
	Type  string // Ext4 or XFS
	Label string // up to 12 characters, the least that both take; may be empty
	// Zeroed: every byte of the device reads as zero (a thin volume never
	// written), so nothing need be zeroed.
	Zeroed bool
	// Force overwrites whatever is there. For a person's word, and for a
	// Format of the caller's own that did not come to its end.
	Force bool
	// Args are further arguments for mkfs, e.g. "-i", "8192".
	Args []string
}

// CheckResult of Check.
type CheckResult struct {
	Repaired bool
	Output   string // what the program said, for a person
}

// MountRequest of Mount.
type MountRequest struct {
	Device   string // path of the block device
	Target   string // directory, made if absent
	Type     string
	Options  []string // see Options in options.go; defaults are the kernel's
	ReadOnly bool
}

// Usage of a mounted filesystem in bytes and inodes.
type Usage struct {
	TotalBytes, UsedBytes, AvailableBytes int64
	Inodes, InodesUsed, InodesFree        int64
}

// Filesystems works on devices.
type Filesystems interface {
	// Probe reads what is on a device. It changes nothing.
	Probe(ctx context.Context, device string) (Signature, error)
	// Format makes a filesystem; errdefs.ErrFailedPrecondition when the device
	// is not blank and Force is not given.
	Format(ctx context.Context, device string, o FormatOptions) error
	// Check makes an unmounted filesystem fit for mounting, as far as that
	// loses nothing; errdefs.ErrDataLoss when a person must decide. An ext4
	// smaller than its device is grown.
	Check(ctx context.Context, device, fsType string, readOnly bool) (CheckResult, error)
	// Grow makes the filesystem mounted at target as large as its device.
	// errdefs.ErrPermissionDenied: not while it is mounted; Check will do it.
	Grow(ctx context.Context, target string) error
	// Trim tells the device of all free space; it returns bytes.
	Trim(ctx context.Context, target string) (int64, error)
	// Usage of the filesystem at target.
	Usage(ctx context.Context, target string) (Usage, error)
}

// Mounts works on the mount table.
type Mounts interface {
	// Mount mounts; nil if the device is mounted at the target already.
	Mount(ctx context.Context, r MountRequest) error
	// Bind makes source appear at target as well; nil if it does already.
	Bind(ctx context.Context, source, target string, readOnly bool) error
	// Unmount removes what is mounted at target; nil if nothing is. In use:
	// *drivers.BusyError, unless lazy, which takes the name away at once and
	// the filesystem when its last user goes.
	Unmount(ctx context.Context, target string, lazy bool) error
	// List returns the mount table of this process.
	List(ctx context.Context) ([]Mountpoint, error)
}

// Host is both. New makes the real one, hostmount/fakehost one for tests.
type Host interface {
	Filesystems
	Mounts
}

// Mountpoint is one line of the mount table.
type Mountpoint struct {
	ID, Parent   int
	Major, Minor uint32
	Root         string // the directory of the filesystem that is seen
	Path         string
	Options      []string // of the mount and of the filesystem
	Type         string
	Source       string
}

// At returns what is mounted at path, bottom first.
func At(ms []Mountpoint, path string) []Mountpoint {
	var out []Mountpoint
	for _, m := range ms {
		if m.Path == path {
			out = append(out, m)
		}
	}
	return out
}

// Deadlines for callers that bring none; generous, because the device below
// may hold I/O for a minute while a replica is away.
const (
	mountTimeout = 3 * time.Minute
	mkfsTimeout  = 10 * time.Minute
	fsckTimeout  = 30 * time.Minute
	growTimeout  = 10 * time.Minute
	trimTimeout  = 30 * time.Minute
	quickTimeout = 30 * time.Second

	// killGrace is how long a killed program may take to go.
	killGrace = 5 * time.Second
	// maxOutput of a program that is kept, in bytes: an error message.
	maxOutput = 16 << 10
	// zeroProbe bytes at either end must be zero in a blank device: all
	// signatures that blkid knows lie within them.
	zeroProbe = 1 << 20
)
