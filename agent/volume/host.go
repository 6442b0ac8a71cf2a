package volume

import "context"

// Host is what this package needs of the host's file systems. Errors have a
// class of plugins/errdefs; one that names who keeps a mount busy is of class
// FailedPrecondition.
type Host interface {
	FilesystemMaker
	Mounter
	// Sync writes out what the file system mounted at dir has in memory.
	Sync(ctx context.Context, dir string) error
	// Empty removes the empty folder that mkfs left in the file system mounted at
	// dir; any other thing it leaves alone.
	Empty(ctx context.Context, dir string) error
	// Grow grows the file system on device, mounted at dir, to its device.
	Grow(ctx context.Context, device, dir string) error
	// Usage of the file system mounted at dir.
	Usage(dir string) (Usage, error)
}

// FilesystemMaker makes and checks file systems.
type FilesystemMaker interface {
	// Detect returns the file system on device; "" when it is blank, and an
	// error when something else is on it (rule 10).
	Detect(ctx context.Context, device string) (fs string, err error)
	// Make makes a file system on a blank device; again says that what is on
	// it is the rest of a Make that did not come to its end.
	Make(ctx context.Context, device, fs string, options []string, again bool) error
	// Check repairs what can be repaired without loss; an error means that a
	// person has to look.
	Check(ctx context.Context, device, fs string) error
}

// Mounter mounts.
type Mounter interface {
	Mount(ctx context.Context, device, dir, fs string, readOnly bool, options []string) error
	// Bind makes what is at from appear at to, which is made if need be.
	Bind(ctx context.Context, from, to string, readOnly bool) error
	// Unmount is no error when nothing is mounted. force detaches lazily.
	Unmount(ctx context.Context, dir string, force bool) error
	// Mounted returns the device mounted at dir, "" if none.
	Mounted(dir string) (device string, err error)
}

// Usage is how full a file system is, in bytes.
type Usage struct{ Size, Used int64 }
