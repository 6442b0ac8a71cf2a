package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/backends"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// makeDevice formats a file or device and makes it a drive. Cut off anywhere, it leaves
// a medium that the next scan takes for blank.
func (c *config) makeDevice(ctx context.Context, e *entry, id identity) error {
	args := []string{"-q", "-K", "-L", labelNew, "-m", "uuid=" + string(id.ID)}
	if e.fresh {
		args = append(args, "-f") // else mkfs's own check for signatures is a second guard
	}
	if _, _, err := command(ctx, "mkfs.xfs", append(args, e.path)...); err != nil {
		return err
	}
	return c.withMount(ctx, e.source, mountDrive, func(point string) error {
		free, err := c.free(point)
		if err != nil {
			return classed(err)
		}
		if id.Size = id.Spec.Size; id.Size == 0 {
			id.Size = c.cut(free)
		}
		if id.Size > free || id.Size < backends.MinDriveSize {
			return fmt.Errorf("%w: %d bytes are free after formatting", errdefs.ErrResourceExhausted, free)
		}
		if err := writeIdentity(point, id, true); err != nil {
			return classed(err)
		}
		return classed(setLabel(point, labelDrive))
	})
}

// setLabel renames the mounted XFS; the kernel writes the super block at once.
func setLabel(point, label string) error {
	const fsIocSetFSLabel = 0x41009432 // _IOW(0x94, 50, char[256])
	d, err := os.Open(point)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil { // the identity first
		return err
	}
	var p [256]byte
	copy(p[:len(p)-1], label)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, d.Fd(), fsIocSetFSLabel, uintptr(unsafe.Pointer(&p))); errno != 0 {
		return fmt.Errorf("set label: %w", errno)
	}
	return unix.Syncfs(int(d.Fd()))
}

// Delete implements backends.Provisioner.
func (b *Backend) Delete(ctx context.Context, id backends.DriveID) error {
	c, unlock, err := b.begin(ctx, "delete drive", id)
	if err != nil {
		return err
	}
	defer unlock()
	e, err := b.find(ctx, c, id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	switch {
	case e.drive.Node != "":
		err = fmt.Errorf("%w: attached", errdefs.ErrFailedPrecondition)
	case e.drive.State == backends.StateGone:
		err = fmt.Errorf("%w: %s", errdefs.ErrUnavailable, e.drive.Reason)
	case e.drive.State == backends.StateRefused:
		err = fmt.Errorf("%w: %s", errdefs.ErrFailedPrecondition, e.drive.Reason)
	case e.kind == dirMedium:
		err = deleteDir(ctx, e.path)
	default:
		err = deleteDevice(e)
	}
	if err != nil {
		return fmt.Errorf("delete drive %s: %w", id, err)
	}
	b.forget(id)
	return nil
}

// deleteDir empties a directory drive, its identity last: cut off, it still is
// a drive, and Delete can be repeated.
func deleteDir(ctx context.Context, dir string) error {
	all, err := mounts()
	if err != nil {
		return err
	}
	if p := mountBelow(all, dir); p != "" {
		return fmt.Errorf("%w: something is mounted inside, at %s", errdefs.ErrFailedPrecondition, p)
	}
	names, err := os.ReadDir(dir)
	if err != nil {
		return classed(err)
	}
	for _, n := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		if n.Name() == identityName || n.Name() == "lost+found" {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, n.Name())); err != nil {
			return classed(err)
		}
	}
	if err := syncDir(dir); err != nil {
		return classed(err)
	}
	if err := ignoreAbsent(os.Remove(filepath.Join(dir, identityName))); err != nil {
		return classed(err)
	}
	return classed(syncDir(dir))
}

// deleteDevice wipes the beginning and the end, where all signatures are, and
// leaves the mark that the rest may be overwritten. The first sector goes
// first: from then on it is no drive.
func deleteDevice(e *entry) error {
	all, err := mounts()
	if err != nil {
		return err
	}
	use, err := e.inUse(all)
	if err != nil {
		return classed(err)
	}
	if use != "" {
		return fmt.Errorf("%w: %s", errdefs.ErrFailedPrecondition, use)
	}
	flags := os.O_WRONLY
	if e.kind == blockMedium {
		flags |= unix.O_EXCL
	}
	f, err := os.OpenFile(e.path, flags, 0)
	if err != nil {
		return classed(err)
	}
	if e.kind == fileMedium { // give the space back; where that is not possible the wipe below is enough
		_ = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, e.size)
	}
	head := make([]byte, zeroEdge)
	copy(head, releasedMagic)
	_, err = f.WriteAt(head, 0)
	if err == nil {
		_, err = f.WriteAt(make([]byte, zeroEdge), e.size-zeroEdge)
	}
	return classed(errors.Join(err, f.Sync(), f.Close()))
}

// Expand implements backends.Expander: it raises the limit of a drive, after
// growing its file system to what the device has become.
func (b *Backend) Expand(ctx context.Context, id backends.DriveID, size int64) (backends.Drive, error) {
	c, unlock, err := b.begin(ctx, "expand drive", id)
	if err != nil {
		return backends.Drive{}, err
	}
	defer unlock()
	fail := func(err error) (backends.Drive, error) {
		return backends.Drive{}, fmt.Errorf("expand drive %s: %w", id, err)
	}
	if err := backends.CheckSize(size); err != nil {
		return fail(err)
	}
	e, err := b.find(ctx, c, id)
	if err != nil {
		return backends.Drive{}, fmt.Errorf("expand: %w", err)
	}
	if e.drive.State != backends.StateReady {
		return fail(fmt.Errorf("%w: drive is %s: %s", errdefs.ErrFailedPrecondition, e.drive.State, e.drive.Reason))
	}
	if size <= e.identity.Size {
		return e.drive, nil
	}
	grow := func(dir string) error { return b.grow(ctx, c, e, dir, size) }
	switch {
	case e.kind == dirMedium:
		err = grow(e.path)
	case e.point != "":
		err = grow(e.point)
	default:
		err = c.withMount(ctx, e.source, mountDrive, grow)
	}
	if err != nil {
		return fail(err)
	}
	e, err = b.find(ctx, c, id)
	if err != nil {
		return fail(err)
	}
	return e.drive, nil
}

// grow raises the size of the drive in dir.
func (b *Backend) grow(ctx context.Context, c *config, e *entry, dir string, size int64) error {
	if e.kind != dirMedium {
		if _, _, err := command(ctx, "xfs_growfs", "-d", dir); err != nil {
			return err
		}
	}
	free, err := c.free(dir)
	if err != nil {
		return classed(err)
	}
	most := c.cut(used(dir) + free)
	if size > most {
		return fmt.Errorf("%w: at most %d bytes", errdefs.ErrResourceExhausted, most)
	}
	id := e.identity
	id.Size = size
	if err := writeIdentity(dir, id, false); err != nil {
		return classed(err)
	}
	b.remember(id)
	return nil
}
