package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/backends"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// begin is the start of every call that changes something.
func (b *Backend) begin(ctx context.Context, call string, id backends.DriveID) (*config, func(), error) {
	c, err := b.config(ctx, call)
	if err != nil {
		return nil, nil, err
	}
	if err := id.Check(); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", call, err)
	}
	unlock, err := b.lock(ctx)
	return c, unlock, err
}

// Create implements backends.Provisioner: it takes a blank medium.
func (b *Backend) Create(ctx context.Context, r backends.CreateRequest) (backends.Drive, error) {
	if err := r.Check(); err != nil {
		return backends.Drive{}, err
	}
	c, unlock, err := b.begin(ctx, "create drive", r.ID)
	if err != nil {
		return backends.Drive{}, err
	}
	defer unlock()
	fail := func(err error) (backends.Drive, error) {
		return backends.Drive{}, fmt.Errorf("create drive %s: %w", r.ID, err)
	}
	all, err := b.drives(ctx, c, true)
	if err != nil {
		return fail(err)
	}
	for _, e := range all {
		if e.drive.ID != r.ID {
			continue
		}
		if e.drive.State == backends.StateRefused {
			return fail(fmt.Errorf("%w: %s", errdefs.ErrFailedPrecondition, e.drive.Reason))
		}
		if e.identity.ID == "" {
			return fail(fmt.Errorf("%w: it exists, but is %s: %s", errdefs.ErrUnavailable, e.drive.State, e.drive.Reason))
		}
		if e.identity.Spec != specOf(r) {
			return fail(fmt.Errorf("%w with another spec", errdefs.ErrAlreadyExists))
		}
		return e.drive, nil
	}
	e, err := choose(all, r)
	if err != nil {
		return fail(err)
	}
	id := identity{ID: r.ID, Created: time.Now().UTC().Truncate(time.Millisecond), Serial: e.serial, Spec: specOf(r)}
	if e.kind == dirMedium {
		err = c.makeDir(e, id)
	} else {
		err = c.makeDevice(ctx, e, id)
	}
	if err != nil {
		return fail(err)
	}
	made, err := b.find(ctx, c, r.ID)
	if err != nil {
		return fail(err)
	}
	return made.drive, nil
}

// choose picks the medium: the one asked for, or the first blank one that fits.
func choose(all []*entry, r backends.CreateRequest) (*entry, error) {
	large := false
	for _, e := range all {
		switch {
		case r.Source != "" && e.drive.Source != r.Source:
			continue
		case r.Source != "" && e.drive.ID != "":
			return nil, fmt.Errorf("%w: %s already is drive %s", errdefs.ErrFailedPrecondition, r.Source, e.drive.ID)
		case r.Source != "" && e.drive.State != backends.StateBlank:
			return nil, fmt.Errorf("%w: %s: %s", errdefs.ErrFailedPrecondition, r.Source, e.drive.Reason)
		case e.drive.State != backends.StateBlank:
			continue
		case r.Class != "" && e.drive.Class != r.Class:
			if r.Source != "" {
				return nil, fmt.Errorf("%w: %s is of class %s", errdefs.ErrFailedPrecondition, r.Source, e.drive.Class)
			}
			continue
		case e.drive.Size < max(r.Size, backends.MinDriveSize):
			large = true
			continue
		}
		return e, nil
	}
	switch {
	case large:
		return nil, fmt.Errorf("%w: no blank medium is large enough", errdefs.ErrResourceExhausted)
	case r.Source != "":
		return nil, fmt.Errorf("source: %w: not among the configured paths", errdefs.ErrNotFound)
	}
	return nil, fmt.Errorf("%w: no blank medium is left", errdefs.ErrResourceExhausted)
}

// makeDir makes an empty directory a drive: the identity is all it takes.
func (c *config) makeDir(e *entry, id identity) error {
	if id.Size = id.Spec.Size; id.Size == 0 {
		id.Size = e.drive.Size
	}
	leftovers, err := filepath.Glob(filepath.Join(escape(e.path), identityName+".tmp-*"))
	if err != nil {
		return err
	}
	for _, l := range leftovers {
		if err := ignoreAbsent(os.Remove(l)); err != nil {
			return err
		}
	}
	err = writeIdentity(e.path, id, true)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%w: somebody else made %s a drive just now", errdefs.ErrAborted, e.path)
	}
	return classed(err)
}

// escape makes a path a pattern that matches only itself.
func escape(path string) string {
	var out []byte
	for _, c := range []byte(path) {
		if c == '*' || c == '?' || c == '[' || c == '\\' {
			out = append(out, '\\')
		}
		out = append(out, c)
	}
	return string(out)
}

// classed gives an error of the operating system a class.
func classed(err error) error {
	switch {
	case err == nil || errdefs.HasClass(err):
		return err
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("%w: %w", errdefs.ErrResourceExhausted, err)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		return fmt.Errorf("%w: %w", errdefs.ErrPermissionDenied, err)
	case errors.Is(err, unix.EIO):
		return fmt.Errorf("%w: %w", errdefs.ErrDataLoss, err)
	}
	return fmt.Errorf("%w: %w", errdefs.ErrUnavailable, err)
}

// Attach implements backends.Attacher.
func (b *Backend) Attach(ctx context.Context, id backends.DriveID, node backends.NodeID) (backends.Attachment, error) {
	c, unlock, err := b.begin(ctx, "attach drive", id)
	if err != nil {
		return backends.Attachment{}, err
	}
	defer unlock()
	fail := func(err error) (backends.Attachment, error) {
		return backends.Attachment{}, fmt.Errorf("attach drive %s: %w", id, err)
	}
	if err := node.Check(); err != nil {
		return fail(err)
	}
	e, err := b.find(ctx, c, id)
	switch {
	case err != nil:
		return backends.Attachment{}, fmt.Errorf("attach: %w", err)
	case node != c.node:
		return fail(fmt.Errorf("%w: it is part of node %s", errdefs.ErrFailedPrecondition, c.node))
	case e.drive.State == backends.StateRefused:
		return fail(fmt.Errorf("%w: %s", errdefs.ErrFailedPrecondition, e.drive.Reason))
	case e.drive.State == backends.StateGone:
		return fail(fmt.Errorf("%w: %s", errdefs.ErrUnavailable, e.drive.Reason))
	case e.drive.State == backends.StateFailed && (e.kind == dirMedium || e.point != ""):
		return fail(fmt.Errorf("%w: %s", errdefs.ErrUnavailable, e.drive.Reason))
	}
	a := backends.Attachment{Path: e.path, Kind: backends.KindDir, Size: e.identity.Size, Serial: e.serial}
	if e.kind == dirMedium {
		err = c.mark(e)
	} else {
		a.Path = c.marker(id)
		a.Size, err = b.mount(ctx, c, e, a.Path)
	}
	if err != nil {
		return fail(err)
	}
	return a, nil
}

// mark notes in the run directory that a directory is attached.
func (c *config) mark(e *entry) error {
	link := c.marker(e.drive.ID)
	if err := os.MkdirAll(filepath.Dir(link), 0o700); err != nil {
		return classed(err)
	}
	if target, err := os.Readlink(link); err == nil && target == e.path {
		return nil
	}
	if err := ignoreAbsent(os.Remove(link)); err != nil { // of a path that is configured no more
		return classed(err)
	}
	return classed(os.Symlink(e.path, link))
}

// mount mounts a device or file drive at point and returns its size.
func (b *Backend) mount(ctx context.Context, c *config, e *entry, point string) (size int64, err error) {
	if e.point != "" {
		return e.identity.Size, nil
	}
	release, err := c.exclusive(ctx)
	if err != nil {
		return 0, err
	}
	defer release()
	all, err := mounts()
	if err != nil {
		return 0, err
	}
	if _, ok := at(all, point); ok {
		// The mount of a device that disappeared and came back under another
		// number: nothing can be written through it any more.
		if err := unmount(point); err != nil {
			return 0, fmt.Errorf("a mount of the device before it disappeared is still there: %w", err)
		}
	}
	node, done, err := nodeOf(e.medium)
	if err != nil {
		return 0, err
	}
	defer done() // the mount holds it from now on
	if err := mountDrive(node, point); err != nil {
		return 0, errors.Join(err, ignoreAbsent(os.Remove(point)))
	}
	got, err := readIdentity(point)
	if err == nil && got.ID != e.drive.ID {
		err = fmt.Errorf("%w: its identity file says drive %s", errdefs.ErrFailedPrecondition, got.ID)
	}
	if err != nil {
		return 0, errors.Join(classed(err), unmount(point))
	}
	b.remember(got)
	return got.Size, nil
}

// Detach implements backends.Attacher.
func (b *Backend) Detach(ctx context.Context, id backends.DriveID, node backends.NodeID) error {
	c, unlock, err := b.begin(ctx, "detach drive", id)
	if err != nil {
		return err
	}
	defer unlock()
	if err := node.Check(); err != nil {
		return fmt.Errorf("detach drive %s: %w", id, err)
	}
	if node != c.node {
		return nil // a drive of this node is attached nowhere else
	}
	point := c.marker(id)
	fi, err := os.Lstat(point)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err == nil && fi.Mode()&fs.ModeSymlink != 0:
		err = classed(ignoreAbsent(os.Remove(point)))
	default: // also when Lstat failed: the file system there may be dead
		err = unmount(point)
	}
	if err != nil {
		return fmt.Errorf("detach drive %s: %w", id, err)
	}
	return nil
}
