package nbdkernel

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/moraine-storage/moraine/drivers"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// attachment implements drivers.Attachment.
type attachment struct {
	d       *Driver
	v       drivers.Volume
	persist func(context.Context, drivers.State) error

	ops      sync.Mutex // one Resize, Release or Detach at a time
	ended    bool       // guarded by ops
	stop     chan struct{}
	links    *listener // or nil; set once by start
	watchers sync.WaitGroup

	mu    sync.Mutex // guards what follows; taken inside ops
	state drivers.State
	err   error

	doneOnce sync.Once
	done     chan struct{}
}

// start begins to watch the device.
func (a *attachment) start() {
	if links, err := listen(); err == nil {
		a.links = links
		a.watchers.Go(a.heal)
	}
	a.watchers.Go(a.watch)
}

// heal replaces a socket that the kernel has given up while we live: after a
// request time-out, or a stream that the data path could not follow.
func (a *attachment) heal() {
	s := a.State()
	for {
		index, err := a.links.next()
		if err != nil {
			return // closed by end
		}
		if index != s.NBD.Index {
			continue
		}
		// One message may stand for several sockets. An offer that is not taken
		// says that all live; one that the data path refuses, that it ends.
		for range s.NBD.Connections {
			if taken, err := a.d.offer(&s, a.v); err != nil || !taken {
				break
			}
		}
	}
}

// watch looks whether the kernel has given the device up: someone disconnected
// it, or nobody served it for DeadConnTimeout.
func (a *attachment) watch() {
	s := a.State()
	t := time.NewTicker(watchEvery)
	defer t.Stop()
	for {
		select {
		case <-a.stop:
			return
		case <-t.C:
		}
		if err := owned(&s); err != nil {
			a.finish(fmt.Errorf("volume %s: %w: %w", a.v.Name, err, errdefs.ErrUnavailable))
			return
		}
	}
}

func (a *attachment) finish(err error) {
	a.doneOnce.Do(func() {
		a.mu.Lock()
		a.err = err
		a.mu.Unlock()
		close(a.done)
	})
}

// end stops watching after an orderly end; ops is held.
func (a *attachment) end() {
	a.ended = true
	close(a.stop)
	if a.links != nil {
		a.links.close()
	}
	a.watchers.Wait()
	a.finish(nil)
}

// State implements drivers.Attachment.
func (a *attachment) State() drivers.State {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.state.Clone()
}

// Resize implements drivers.Attachment.
func (a *attachment) Resize(ctx context.Context, size int64) error {
	a.ops.Lock()
	defer a.ops.Unlock()
	s := a.State()
	fail := func(err error) error { return fmt.Errorf("resize volume %s: %w", a.v.Name, err) }
	if a.ended {
		return fail(fmt.Errorf("not attached any more: %w", errdefs.ErrFailedPrecondition))
	}
	if size < s.Size || size%int64(s.BlockSize) != 0 {
		return fail(fmt.Errorf("from %d to %d bytes: only growing by blocks of %d: %w", s.Size, size, s.BlockSize, errdefs.ErrInvalidArgument))
	}
	r := &request{index: s.NBD.Index, identifier: s.NBD.Identifier, size: size, blockSize: s.BlockSize}
	if err := reconfigure(r); err != nil {
		return fail(err)
	}
	if err := waitReady(ctx, s.NBD.Index, size); err != nil {
		return fail(err)
	}
	s.Size = size
	if err := a.persist(ctx, s.Clone()); err != nil {
		return fail(fmt.Errorf("persist: %w", err))
	}
	a.mu.Lock()
	a.state = s
	a.mu.Unlock()
	return nil
}

// Release implements drivers.Attachment. After it the data path answers what
// it has taken and closes its sockets all together (Loop.Drain); in the other
// order the sockets would be offered anew.
func (a *attachment) Release(context.Context) error {
	a.ops.Lock()
	defer a.ops.Unlock()
	if !a.ended {
		a.end()
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
	if err := a.d.Cleanup(ctx, a.State(), force); err != nil {
		return fmt.Errorf("detach volume %s: %w", a.v.Name, err)
	}
	a.end()
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
