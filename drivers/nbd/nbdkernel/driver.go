package nbdkernel

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/drivers"
	"github.com/moraine-storage/moraine/drivers/hostmount"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// Transmission flags of the NBD protocol, as the kernel takes them.
const (
	flagHasFlags   = 1 << 0
	flagReadOnly   = 1 << 1
	flagFlush      = 1 << 2
	flagFUA        = 1 << 3
	flagTrim       = 1 << 5
	flagWriteZeros = 1 << 6
	flagMultiConn  = 1 << 8
)

// Config of the driver; zero values are the defaults of limits.go.
type Config struct {
	// Connections where Options leave it open.
	Connections int
	// RequestTimeout with several connections; whole seconds, above the
	// longest time the volume's data path may hold a request.
	RequestTimeout time.Duration
	// DeadConnTimeout: whole seconds.
	DeadConnTimeout time.Duration
	// ReconnectTimeout is how long Recover waits for the kernel to notice that
	// the old sockets have ended.
	ReconnectTimeout time.Duration
}

// Driver implements drivers.Driver.
type Driver struct {
	cfg Config
}

// New returns a driver.
func New(cfg Config) *Driver {
	if cfg.Connections == 0 {
		cfg.Connections = 1
	}
	if cfg.RequestTimeout == 0 {
		cfg.RequestTimeout = requestTimeout
	}
	if cfg.DeadConnTimeout == 0 {
		cfg.DeadConnTimeout = deadConnTimeout
	}
	if cfg.ReconnectTimeout == 0 {
		cfg.ReconnectTimeout = reconnectTimeout
	}
	return &Driver{cfg: cfg}
}

// Identifier is the kernel's name for a volume's device.
func Identifier(volumeID string) string { return "moraine/" + volumeID }

// Attach implements drivers.Driver.
func (d *Driver) Attach(ctx context.Context, v drivers.Volume, o drivers.Options) (drivers.Attachment, error) {
	if err := drivers.CheckAttach(v, o); err != nil {
		return nil, err
	}
	fail := func(err error) (drivers.Attachment, error) {
		return nil, fmt.Errorf("attach volume %s: %w", v.Name, err)
	}
	if v.Connect == nil {
		return fail(fmt.Errorf("the nbd driver needs its data path: %w", errdefs.ErrInvalidArgument))
	}
	id := Identifier(v.ID)
	if ns := find(id); len(ns) > 0 {
		return fail(fmt.Errorf("%s is this volume already: %w", Path(ns[0]), errdefs.ErrFailedPrecondition))
	}
	s := drivers.NewState(drivers.KindNBD, v, o)
	n := o.Connections
	if n == 0 {
		n = d.cfg.Connections
	}
	s.NBD = &drivers.NBDState{Index: -1, Identifier: id, Connections: min(n, maxConnections), ServerFlags: serverFlags(&s, v.Info.Trim)}
	a := &attachment{d: d, v: v, persist: o.Persist, state: s, done: make(chan struct{}), stop: make(chan struct{})}
	if err := a.make(ctx, v); err != nil {
		undo := d.Cleanup(context.WithoutCancel(ctx), a.state, true)
		return fail(errors.Join(err, undo))
	}
	a.start()
	return a, nil
}

func serverFlags(s *drivers.State, trim bool) uint64 {
	f := uint64(flagHasFlags | flagFlush | flagFUA | flagMultiConn)
	if s.ReadOnly {
		return f | flagReadOnly
	}
	if trim {
		f |= flagTrim
	}
	return f | flagWriteZeros
}

// make is the body of Attach.
func (a *attachment) make(ctx context.Context, v drivers.Volume) error {
	s := &a.state
	for index := -1; ; {
		if index = free(index); index > maxIndex {
			return fmt.Errorf("all %d nbd devices are in use: %w", maxIndex+1, errdefs.ErrResourceExhausted)
		}
		s.NBD.Index = index
		if err := a.persist(ctx, s.Clone()); err != nil { // invariant 1
			return fmt.Errorf("persist: %w", err)
		}
		err := a.d.connect(s, v)
		if errors.Is(err, errdefs.ErrAlreadyExists) {
			continue // another process was faster
		}
		if err != nil {
			return err
		}
		break
	}
	// From here on the index is enough to know the device by, for kernels that
	// keep no identifier.
	s.Step = drivers.StepServing
	if err := a.persist(ctx, s.Clone()); err != nil {
		return fmt.Errorf("persist: %w", err)
	}
	if err := waitReady(ctx, s.NBD.Index, s.Size); err != nil {
		return err
	}
	tune(s.NBD.Index, s.NBD.Connections)
	s.Step, s.Device = drivers.StepReady, Path(s.NBD.Index)
	if err := a.persist(ctx, s.Clone()); err != nil {
		return fmt.Errorf("persist: %w", err)
	}
	return nil
}

// timeouts adds them to a request.
func (d *Driver) timeouts(r *request, connections int) {
	r.setTimeout = true
	if connections > 1 {
		r.timeout = d.cfg.RequestTimeout
	}
	r.deadConn = d.cfg.DeadConnTimeout
}

// connect makes the socket pairs and gives the kernel its ends.
func (d *Driver) connect(s *drivers.State, v drivers.Volume) error {
	r := &request{index: s.NBD.Index, size: s.Size, blockSize: s.BlockSize, serverFlags: s.NBD.ServerFlags, identifier: s.NBD.Identifier}
	d.timeouts(r, s.NBD.Connections)
	defer func() {
		for _, fd := range r.sockets {
			unix.Close(fd)
		}
	}()
	for range s.NBD.Connections {
		kernel, err := socketPair(v)
		if err != nil {
			return err
		}
		r.sockets = append(r.sockets, kernel)
	}
	return connect(r)
}

// socketPair gives one end to the volume and returns the other. When the
// kernel does not take that, its closing ends the volume's.
func socketPair(v drivers.Volume) (int, error) {
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("socket pair: %w", err)
	}
	if err := v.Connect(p[1]); err != nil {
		unix.Close(p[0])
		unix.Close(p[1])
		return -1, fmt.Errorf("data path: %w", err)
	}
	return p[0], nil
}

// Recover implements drivers.Driver.
func (d *Driver) Recover(ctx context.Context, v drivers.Volume, s drivers.State, o drivers.Options) (drivers.Attachment, error) {
	if err := errors.Join(drivers.CheckAttach(v, o), s.Recoverable()); err != nil {
		return nil, err
	}
	fail := func(err error) (drivers.Attachment, error) {
		return nil, fmt.Errorf("recover volume %s: %w", v.Name, err)
	}
	if s.Kind != drivers.KindNBD || s.Volume != v.ID || v.Connect == nil {
		return fail(fmt.Errorf("state of kind %s, volume %s: %w", s.Kind, s.Volume, errdefs.ErrInvalidArgument))
	}
	s = s.Clone()
	if err := owned(&s); err != nil {
		return fail(err)
	}
	if v.Info.Size < s.Size {
		return fail(fmt.Errorf("%s has %d bytes, the volume %d: %w", s.Device, s.Size, v.Info.Size, errdefs.ErrFailedPrecondition))
	}
	a := &attachment{d: d, v: v, persist: o.Persist, state: s, done: make(chan struct{}), stop: make(chan struct{})}
	for range s.NBD.Connections {
		if err := d.reconnect(ctx, &s, v); err != nil {
			return fail(err)
		}
	}
	tune(s.NBD.Index, s.NBD.Connections)
	if v.Info.Size > s.Size {
		if err := a.Resize(ctx, v.Info.Size); err != nil {
			return fail(err)
		}
	}
	a.start()
	return a, nil
}

// owned says whether the device of s is there and is the volume's.
func owned(s *drivers.State) error {
	if !connected(s.NBD.Index) {
		return fmt.Errorf("%s is not connected: %w", Path(s.NBD.Index), errdefs.ErrNotFound)
	}
	// An empty answer is a kernel without identifiers: the index must do.
	if id := identifier(s.NBD.Index); id != "" && id != s.NBD.Identifier {
		return fmt.Errorf("%s is %q and not %q: %w", Path(s.NBD.Index), id, s.NBD.Identifier, errdefs.ErrNotFound)
	}
	return nil
}

// reconnect offers the kernel one new socket until it takes it. The kernel
// answers success also when it has no dead socket to replace; but then it drops
// the new one, and the volume's end reads as closed.
func (d *Driver) reconnect(ctx context.Context, s *drivers.State, v drivers.Volume) error {
	for end := time.Now().Add(d.cfg.ReconnectTimeout); ; {
		taken, err := d.offer(s, v)
		if err != nil || taken {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s takes no new connection: its old ones are alive: %w", Path(s.NBD.Index), errdefs.ErrFailedPrecondition)
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

// offer makes one pair. The volume gets its end only when the kernel has taken
// the other: a data path that saw a connection come and go would wait for its
// requests.
func (d *Driver) offer(s *drivers.State, v drivers.Volume) (bool, error) {
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false, fmt.Errorf("socket pair: %w", err)
	}
	r := &request{index: s.NBD.Index, identifier: s.NBD.Identifier, sockets: p[:1]}
	d.timeouts(r, s.NBD.Connections)
	err = reconfigure(r)
	unix.Close(p[0])
	if err != nil {
		unix.Close(p[1])
		return false, err
	}
	fds := []unix.PollFd{{Fd: int32(p[1]), Events: unix.POLLRDHUP}}
	if _, err := unix.Poll(fds, 0); err != nil && !errors.Is(err, unix.EINTR) {
		unix.Close(p[1])
		return false, fmt.Errorf("poll: %w", err)
	}
	if fds[0].Revents&(unix.POLLHUP|unix.POLLRDHUP|unix.POLLERR) != 0 {
		unix.Close(p[1])
		return false, nil
	}
	if err := v.Connect(p[1]); err != nil {
		unix.Close(p[1])
		return false, fmt.Errorf("data path: %w", err)
	}
	return true, nil
}

// Cleanup implements drivers.Driver. Without force the device must be served,
// or its last close may have nobody to flush to.
func (d *Driver) Cleanup(ctx context.Context, s drivers.State, force bool) error {
	if err := s.Validate(); err != nil {
		return err
	}
	if s.Kind != drivers.KindNBD {
		return fmt.Errorf("cleanup volume %s: kind %s: %w", s.Volume, s.Kind, errdefs.ErrInvalidArgument)
	}
	for _, n := range d.devices(&s) {
		if err := remove(ctx, n, &s, force); err != nil {
			return fmt.Errorf("cleanup volume %s: %w", s.Volume, err)
		}
	}
	return nil
}

// devices of a state: by identifier, or where the kernel has none, by index.
func (d *Driver) devices(s *drivers.State) []int {
	ns := find(s.NBD.Identifier)
	if len(ns) == 0 && s.Step != drivers.StepIntent && s.BootID == drivers.BootID() && s.NBD.Index >= 0 && owned(s) == nil {
		ns = []int{s.NBD.Index}
	}
	return ns
}

// remove disconnects one device.
func remove(ctx context.Context, n int, s *drivers.State, force bool) error {
	if force {
		// Its users' requests fail; no close must wait for a server.
		if err := disconnect(n); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
		return waitGone(ctx, n, s, true)
	}
	fd, err := drivers.OpenExclusive(ctx, Path(n), false)
	if err != nil {
		return err
	}
	// By a child: an agent killed in an fsync of its own device could not end,
	// and the next one not start.
	if err := hostmount.SyncDevice(ctx, Path(n)); err != nil {
		unix.Close(fd)
		return err
	}
	err = disconnect(n)
	unix.Close(fd)
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return waitGone(ctx, n, s, false)
}

// waitGone waits until the last user has closed the device. By force, users
// that do not are left to find out.
func waitGone(ctx context.Context, n int, s *drivers.State, force bool) error {
	timeout := goneTimeout
	if force {
		timeout = 2 * time.Second
	}
	for end := time.Now().Add(timeout); connected(n) && owned(&drivers.State{NBD: &drivers.NBDState{Index: n, Identifier: s.NBD.Identifier}}) == nil; {
		if time.Now().After(end) {
			if force {
				return nil
			}
			return fmt.Errorf("disconnected, but %w", drivers.Users(Path(n)))
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Probe implements drivers.Driver.
func (d *Driver) Probe(ctx context.Context) drivers.Support { return Probe(ctx) }
