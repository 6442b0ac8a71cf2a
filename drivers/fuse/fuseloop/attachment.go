package fuseloop

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/moraine-storage/moraine/drivers"
	"github.com/moraine-storage/moraine/drivers/fuse"
	"github.com/moraine-storage/moraine/drivers/hostmount"
	"github.com/moraine-storage/moraine/drivers/loopdev"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// attachment implements drivers.Attachment.
type attachment struct {
	d       *Driver
	name    string // of the volume, for messages
	persist func(context.Context, drivers.State) error
	image   *fuse.Image // nil until mounted; set once

	ops   sync.Mutex // one Resize, Release or Detach at a time
	ended bool       // released or detached; guarded by ops

	mu    sync.Mutex // guards what follows; taken inside ops
	state drivers.State
	quiet bool // serving ends because we wanted it to
	err   error

	done chan struct{}
}

// make is Attach after the intent was persisted.
func (a *attachment) make(ctx context.Context, v drivers.Volume) error {
	s := &a.state
	if err := os.Mkdir(s.Loop.MountPath, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	m, err := fuse.Mount(ctx, s.Loop.MountPath, s.Loop.HolderKey, a.d.cfg.Store, a.d.imageConfig(v, s))
	if err != nil {
		return err
	}
	a.image = m
	n, err := loopdev.Attach(ctx, loopdev.Config{
		File: imagePath(s), BlockSize: s.BlockSize, ReadOnly: s.ReadOnly, DirectIO: true,
		Chosen: func(n int) error {
			s.Step, s.Loop.Number = drivers.StepServing, n
			return a.persist(ctx, s.Clone())
		},
	})
	if err != nil {
		return err
	}
	size, err := loopdev.Size(n)
	if err != nil {
		return err
	}
	if size != s.Size {
		return fmt.Errorf("%s has %d bytes and not %d: %w", loopdev.Path(n), size, s.Size, errdefs.ErrInternal)
	}
	// One queue below is enough; a scheduler only adds a hop. Refused is no harm.
	_ = hostmount.SetScheduler(ctx, filepath.Base(loopdev.Path(n)), "none")
	s.Step, s.Device = drivers.StepReady, loopdev.Path(n)
	return a.persist(ctx, s.Clone())
}

// watch reports the end of serving.
func (a *attachment) watch() {
	<-a.image.Done()
	a.mu.Lock()
	if !a.quiet {
		a.err = a.image.Err()
		if a.err == nil {
			a.err = fmt.Errorf("volume %s: %s was unmounted by someone: %w", a.name, a.state.Loop.MountPath, errdefs.ErrUnavailable)
		}
	}
	a.mu.Unlock()
	a.image.Close()
	close(a.done)
}

// closeImage frees the image of an attachment that never came to be watched.
func (a *attachment) closeImage() {
	if a.image != nil {
		a.image.Close()
	}
}

// State implements drivers.Attachment.
func (a *attachment) State() drivers.State {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.state.Clone()
}

func (a *attachment) update(ctx context.Context, f func(*drivers.State)) error {
	a.mu.Lock()
	s := a.state.Clone()
	a.mu.Unlock()
	f(&s)
	if err := a.persist(ctx, s.Clone()); err != nil {
		return fmt.Errorf("persist: %w", err)
	}
	a.mu.Lock()
	a.state = s
	a.mu.Unlock()
	return nil
}

func (a *attachment) setQuiet(q bool) {
	a.mu.Lock()
	a.quiet = q
	a.mu.Unlock()
}

// Resize implements drivers.Attachment.
func (a *attachment) Resize(ctx context.Context, size int64) error {
	a.ops.Lock()
	defer a.ops.Unlock()
	s := a.State()
	fail := func(err error) error { return fmt.Errorf("resize volume %s: %w", a.name, err) }
	if a.ended {
		return fail(fmt.Errorf("not attached any more: %w", errdefs.ErrFailedPrecondition))
	}
	if size < s.Size || size%int64(s.BlockSize) != 0 {
		return fail(fmt.Errorf("from %d to %d bytes: only growing by blocks of %d: %w", s.Size, size, s.BlockSize, errdefs.ErrInvalidArgument))
	}
	a.image.SetSize(size)
	if err := loopdev.SetCapacity(ctx, s.Loop.Number, imagePath(&s)); err != nil {
		return fail(err)
	}
	got, err := loopdev.Size(s.Loop.Number)
	if err != nil {
		return fail(err)
	}
	if got != size {
		return fail(fmt.Errorf("%s has %d bytes and not %d: %w", s.Device, got, size, errdefs.ErrInternal))
	}
	if err := a.update(ctx, func(s *drivers.State) { s.Size = size }); err != nil {
		return fail(err)
	}
	return nil
}

// Release implements drivers.Attachment.
func (a *attachment) Release(ctx context.Context) error {
	a.ops.Lock()
	defer a.ops.Unlock()
	if a.ended {
		return nil
	}
	a.setQuiet(true)
	if err := a.image.Release(ctx); err != nil {
		return fmt.Errorf("release volume %s: %w", a.name, err)
	}
	<-a.done
	a.ended = true
	if a.image.Err() != nil {
		return nil // it broke before; Recover must not count on answers
	}
	if err := a.update(ctx, func(s *drivers.State) { s.Loop.Released = true }); err != nil {
		return fmt.Errorf("release volume %s: %w", a.name, err)
	}
	return nil
}

// Detach implements drivers.Attachment.
func (a *attachment) Detach(ctx context.Context, force bool) error {
	a.ops.Lock()
	defer a.ops.Unlock()
	if a.ended {
		return nil
	}
	a.setQuiet(true)
	if err := a.d.Cleanup(ctx, a.State(), force); err != nil {
		a.setQuiet(false)
		return fmt.Errorf("detach volume %s: %w", a.name, err)
	}
	// The connection ends with the last reference to the filesystem. Another
	// mount namespace may have a copy of the mount: serve it no longer.
	if err := a.image.Release(ctx); err != nil {
		return fmt.Errorf("detach volume %s: %w", a.name, err)
	}
	<-a.done
	a.ended = true
	return nil
}

// Done implements drivers.Attachment.
func (a *attachment) Done() <-chan struct{} { return a.done }

// Err implements drivers.Attachment.
func (a *attachment) Err() error {
	select {
	case <-a.done:
	default:
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.err
}
