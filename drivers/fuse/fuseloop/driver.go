// Package fuseloop is the driver for kernels without nbd: the volume is the
// one file of a FUSE filesystem (drivers/fuse), and a loop device with direct
// I/O (drivers/loopdev) makes a block device of it.
//
// The FUSE descriptor is kept by the holder, so that the device survives the
// agent. Order of making: intent persisted, descriptor held, mounted, loop
// number persisted, bound, ready persisted. Order of removal: the reverse; each
// step looks whether there is anything to remove, so that Cleanup serves any
// State.
package fuseloop

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/drivers"
	"github.com/moraine-storage/moraine/drivers/fuse"
	"github.com/moraine-storage/moraine/drivers/loopdev"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// Config of the driver.
type Config struct {
	// Dir holds one mount point per volume; made with mode 0700.
	Dir string
	// Store keeps the descriptors; a *fuse.Keeper.
	Store fuse.Store
	// HolderSock is noted in each State, for people.
	HolderSock string
}

// Driver implements drivers.Driver.
type Driver struct {
	cfg Config
}

// New makes the directory and a driver.
func New(cfg Config) (*Driver, error) {
	if cfg.Store == nil || !filepath.IsAbs(cfg.Dir) {
		return nil, fmt.Errorf("loop driver: store and an absolute directory are needed, not %q: %w", cfg.Dir, errdefs.ErrInvalidArgument)
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("loop driver: %w", err)
	}
	// The kernel tells backing files by their real path.
	real, err := filepath.EvalSymlinks(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("loop driver: %w", err)
	}
	cfg.Dir = real
	return &Driver{cfg: cfg}, nil
}

func imagePath(s *drivers.State) string { return filepath.Join(s.Loop.MountPath, fuse.FileName) }

// Attach implements drivers.Driver.
func (d *Driver) Attach(ctx context.Context, v drivers.Volume, o drivers.Options) (drivers.Attachment, error) {
	if err := drivers.CheckAttach(v, o); err != nil {
		return nil, err
	}
	if v.Device == nil {
		return nil, fmt.Errorf("attach volume %s: the loop driver needs its device: %w", v.Name, errdefs.ErrInvalidArgument)
	}
	s := drivers.NewState(drivers.KindLoop, v, o)
	s.Loop = &drivers.LoopState{MountPath: filepath.Join(d.cfg.Dir, v.ID), HolderSock: d.cfg.HolderSock, HolderKey: v.ID, Number: -1}
	if err := d.removeStale(ctx, &s); err != nil {
		return nil, fmt.Errorf("attach volume %s: %w", v.Name, err)
	}
	if err := o.Persist(ctx, s.Clone()); err != nil {
		return nil, fmt.Errorf("attach volume %s: persist: %w", v.Name, err)
	}
	a := &attachment{d: d, name: v.Name, persist: o.Persist, state: s, done: make(chan struct{})}
	if err := a.make(ctx, v); err != nil {
		undo := d.Cleanup(context.WithoutCancel(ctx), a.state, true)
		a.closeImage()
		return nil, errors.Join(fmt.Errorf("attach volume %s: %w", v.Name, err), undo)
	}
	go a.watch()
	return a, nil
}

// removeStale takes away what an attach left that did not come to its end:
// a filesystem without a loop device is nobody's.
func (d *Driver) removeStale(ctx context.Context, s *drivers.State) error {
	there, err := fuse.Mounted(s.Loop.MountPath)
	if err != nil || !there {
		return err
	}
	if ns, err := loopdev.Find(imagePath(s)); err != nil || len(ns) > 0 {
		return errors.Join(err, fmt.Errorf("loop devices %v are bound to %s already: %w", ns, imagePath(s), errdefs.ErrFailedPrecondition))
	}
	return fuse.Unmount(ctx, s.Loop.MountPath, s.Loop.HolderKey, d.cfg.Store, true)
}

// Recover implements drivers.Driver.
func (d *Driver) Recover(ctx context.Context, v drivers.Volume, s drivers.State, o drivers.Options) (drivers.Attachment, error) {
	if err := errors.Join(drivers.CheckAttach(v, o), s.Recoverable()); err != nil {
		return nil, err
	}
	fail := func(err error) (drivers.Attachment, error) {
		return nil, fmt.Errorf("recover volume %s: %w", v.Name, err)
	}
	if s.Kind != drivers.KindLoop || s.Volume != v.ID || v.Device == nil {
		return fail(fmt.Errorf("state of kind %s, volume %s: %w", s.Kind, s.Volume, errdefs.ErrInvalidArgument))
	}
	s = s.Clone()
	if loopdev.Backing(s.Loop.Number) != imagePath(&s) {
		return fail(fmt.Errorf("%s is not bound to %s: %w", s.Device, imagePath(&s), errdefs.ErrNotFound))
	}
	if v.Info.Size < s.Size {
		return fail(fmt.Errorf("%s has %d bytes, the volume %d: %w", s.Device, s.Size, v.Info.Size, errdefs.ErrFailedPrecondition))
	}
	released := s.Loop.Released
	s.Loop.Released = false
	if err := o.Persist(ctx, s.Clone()); err != nil {
		return fail(fmt.Errorf("persist: %w", err))
	}
	// Where the kernel cannot send again what a dead process had read, those
	// requests would hang: better to say so, unless there are none.
	m, err := fuse.Takeover(ctx, s.Loop.HolderKey, d.cfg.Store, d.imageConfig(v, &s), released)
	if err != nil {
		return fail(err)
	}
	a := &attachment{d: d, name: v.Name, persist: o.Persist, state: s, image: m, done: make(chan struct{})}
	if v.Info.Size > s.Size {
		if err := a.Resize(ctx, v.Info.Size); err != nil {
			_ = m.Release(ctx)
			a.closeImage()
			return fail(err)
		}
	}
	go a.watch()
	return a, nil
}

func (d *Driver) imageConfig(v drivers.Volume, s *drivers.State) fuse.Config {
	return fuse.Config{Device: v.Device, ReadOnly: s.ReadOnly, Inline: v.Inline}
}

// Cleanup implements drivers.Driver.
func (d *Driver) Cleanup(ctx context.Context, s drivers.State, force bool) error {
	if err := s.Validate(); err != nil {
		return err
	}
	if s.Kind != drivers.KindLoop {
		return fmt.Errorf("cleanup volume %s: kind %s: %w", s.Volume, s.Kind, errdefs.ErrInvalidArgument)
	}
	// Devices are found by their file and not by the number: a number is only
	// an intent until the device is bound.
	ns, err := loopdev.Find(imagePath(&s))
	if err != nil {
		return err
	}
	if force {
		// First, so that no close of a device waits for a server that is gone.
		// Not unmounted yet: a loop device would then lose the path it is known by.
		if err := fuse.Abort(s.Loop.MountPath); err != nil {
			return fmt.Errorf("cleanup volume %s: %w", s.Volume, err)
		}
	}
	for _, n := range ns {
		if err := loopdev.Detach(ctx, n, imagePath(&s), force); err != nil {
			return fmt.Errorf("cleanup volume %s: %w", s.Volume, err)
		}
	}
	if err := fuse.Unmount(ctx, s.Loop.MountPath, s.Loop.HolderKey, d.cfg.Store, force); err != nil {
		return fmt.Errorf("cleanup volume %s: %w", s.Volume, err)
	}
	if err := unix.Rmdir(s.Loop.MountPath); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("cleanup volume %s: remove %s: %w", s.Volume, s.Loop.MountPath, err)
	}
	return nil
}

// Probe implements drivers.Driver.
func (d *Driver) Probe(ctx context.Context) drivers.Support { return Probe(ctx) }

// Probe says whether FUSE and loop devices are there.
func Probe(context.Context) drivers.Support {
	s := drivers.Support{Name: string(drivers.KindLoop)}
	for _, p := range []drivers.Support{fuse.Probe(), loopdev.Probe()} {
		if !p.Available {
			s.Reason, s.Fix = p.Reason, p.Fix
			return s
		}
		s.Reason = strings.TrimPrefix(s.Reason+"; "+p.Reason, "; ")
		s.Fix = p.Fix
	}
	s.Available = true
	return s
}
