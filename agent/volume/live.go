package volume

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	"github.com/moraine-storage/moraine/drivers"
	"github.com/moraine-storage/moraine/drivers/aio"
	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/nbd"
	"github.com/moraine-storage/moraine/drivers/nbd/nbdserver"
	"github.com/moraine-storage/moraine/drivers/replication/session"
)

// live is a volume attached on this node. Its fields are guarded by the
// volume's lock, but for those of the data path, which are set once.
type live struct {
	m    *Manager
	id   string
	name string
	p    *primary
	file *attachFile

	mirror *session.Mirror
	loop   *nbdserver.Loop // data path of kernel nbd and of sockets; or nil
	sync   *block.Sync     // data path of the loop driver; or nil

	driver drivers.Driver     // of device; nil for a socket
	device drivers.Attachment // or nil

	// closing: the device is gone, detach has to be finished.
	closing bool
	// deviceErr is why the device no longer works; nil while it does.
	deviceErr atomic.Pointer[error]
}

// failure says why the device no longer works; "" while it does.
func (l *live) failure() string {
	if err := l.deviceErr.Load(); err != nil {
		return (*err).Error()
	}
	return ""
}

// openPath starts the data path: one engine, the store's queue, the mirror.
func (l *live) openPath(kind drivers.Kind) error {
	s := l.p.store
	newEngine := func() (aio.Engine, error) { return aio.New(s.Mode()) }
	newQueue := func(e aio.Engine) (block.Queue, error) {
		q, err := l.p.replica.OpenQueue(e, l.p.session)
		if err != nil {
			return nil, err
		}
		spec := l.p.v.Record.Spec
		l.mirror, err = session.New(session.Options{
			Engine: e, Member: q, Limits: session.Limits{IOPS: spec.GetMaxIops(), Bandwidth: spec.GetMaxBandwidth()}, Failed: l.sawError(),
		})
		if err != nil {
			return nil, errors.Join(err, q.Close())
		}
		return l.mirror, nil
	}
	var err error
	if kind == drivers.KindLoop {
		l.sync, err = block.NewSync(newEngine, newQueue)
	} else if l.loop, err = newLoop(l.m, l.name, newEngine, newQueue); err == nil {
		err = l.loop.Start()
	}
	if err != nil {
		return fmt.Errorf("volume %q: start data path: %w", l.name, err)
	}
	return nil
}

func newLoop(m *Manager, name string, e func() (aio.Engine, error), q func(aio.Engine) (block.Queue, error)) (*nbdserver.Loop, error) {
	return nbdserver.NewLoop(nbdserver.LoopOptions{Name: name, NewEngine: e, NewQueue: q, Logger: m.o.Logger.Named("nbd")})
}

// sawError reports I/O errors of the replica as events: the first, then at
// most one a minute, and has its drive looked at. It is called on the data path.
func (l *live) sawError() func(block.Op, error) {
	var last time.Time
	var driveID string
	if mem := member(l.p.v.Record); mem != nil {
		driveID = mem.DriveId
	}
	return func(op block.Op, err error) {
		if driveID != "" {
			var medium error
			if errors.Is(err, block.ErrIO) {
				medium = err
			}
			l.m.o.Drives.Suspect(driveID, medium)
		}
		if now := time.Now(); now.Sub(last) > time.Minute {
			last = now
			name := l.name
			go l.m.event(apiv1.Severity_ERROR, "volume.io-error", name, err.Error(), "operation", op.String())
		}
	}
}

// quiesce holds new requests, waits until those running have ended, runs
// change as the owner of the queue, then commit, and lets requests go on.
func (l *live) quiesce(ctx context.Context, change, commit func() error) error {
	if l.sync != nil {
		var err error
		derr := l.sync.Do(ctx, func(block.Queue) {
			if err = change(); err == nil {
				err = commit()
			}
		})
		return errors.Join(derr, err)
	}
	if err := l.loop.Hold(ctx); err != nil {
		return fmt.Errorf("volume %q: hold requests: %w", l.name, err)
	}
	defer l.loop.Resume()
	var err error
	if derr := l.loop.Do(context.WithoutCancel(ctx), func(block.Queue) { err = change() }); derr != nil {
		return derr
	}
	if err != nil {
		return err
	}
	return commit()
}

// info is the device as clients see it.
func (l *live) info() block.Info {
	if l.sync != nil {
		return l.sync.Info()
	}
	return l.loop.Info()
}

// target is what a driver is given.
func (l *live) target() drivers.Volume {
	v := drivers.Volume{ID: l.id, Name: l.name, Info: l.info()}
	if l.sync != nil {
		v.Device = l.sync
		// A request that a limit holds back would block the one who serves it.
		spec := l.p.v.Record.GetSpec()
		v.Inline = l.p.store.Mode() == aio.Inline && spec.GetMaxIops() == 0 && spec.GetMaxBandwidth() == 0
		return v
	}
	v.Connect = func(fd int) error {
		info := l.loop.Info()
		return l.loop.AddFD(fd, nbdserver.Session{Peer: "kernel", Negotiated: nbd.Negotiated{
			Name: l.name, Size: uint64(info.Size), Flags: nbdserver.TransmissionFlags(info, l.file.ReadOnly),
		}})
	}
	return v
}

// closePath ends the data path; what is in flight is waited for.
func (l *live) closePath() error {
	switch {
	case l.sync != nil:
		return l.sync.Close()
	case l.loop != nil:
		l.loop.Close()
	}
	return nil
}

// persist is drivers.Options.Persist.
func (l *live) persist(_ context.Context, s drivers.State) error {
	l.file.Driver = &s
	return l.m.files.save(l.file)
}

// watch reports a device that ends by itself.
func (l *live) watch() {
	device := l.device
	l.m.watchers.Go(func() {
		<-device.Done()
		if err := device.Err(); err != nil {
			l.deviceErr.Store(&err)
			l.m.event(apiv1.Severity_ERROR, "volume.device-failed", l.name, err.Error(), "device", device.State().Device)
		}
	})
}

// release stops serving and leaves device, mounts and record as they are, for
// the next agent.
func (l *live) release(ctx context.Context) error {
	var errs []error
	if l.device != nil {
		errs = append(errs, l.device.Release(ctx))
	}
	if l.loop != nil {
		errs = append(errs, l.loop.Drain(ctx)) // replies too: the kernel would ask again
	}
	errs = append(errs, l.closePath(), l.p.store.Flush(ctx))
	l.p.release()
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("volume %q: release: %w", l.name, err)
	}
	return nil
}
