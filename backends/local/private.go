package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// peekDir is where media are mounted for a moment.
func (c *config) peekDir() string { return filepath.Join(c.runDir, "peek") }

// peek reads the identity of a device or file that is not mounted, without
// writing a byte to it.
func (c *config) peek(ctx context.Context, s source) (id identity, err error) {
	err = c.withMount(ctx, s, mountToRead, func(point string) error {
		id, err = readIdentity(point)
		return err
	})
	return id, err
}

// withMount mounts a medium at a private place for the duration of f.
func (c *config) withMount(ctx context.Context, s source, mount func(dev, point string) error, f func(point string) error) error {
	release, err := c.exclusive(ctx)
	if err != nil {
		return err
	}
	defer release()
	m, err := c.look(s, nil) // without its loop devices: it gets one of its own
	if err != nil {
		return classed(err)
	}
	node, done, err := nodeOf(m)
	if err != nil {
		return err
	}
	defer done()
	point, err := os.MkdirTemp(c.peekDir(), "m")
	if err != nil {
		return classed(err)
	}
	if err := mount(node, point); err != nil {
		return errors.Join(err, os.Remove(point))
	}
	err = f(point)
	return errors.Join(err, unmount(point))
}

// nodeOf returns a block device with the data of m; done lets it go. A file
// gets a loop device of its own, whatever others there are: one of those may
// be about to vanish.
func nodeOf(m medium) (node string, done func(), err error) {
	if m.kind == blockMedium {
		return m.path, func() {}, nil
	}
	dev, err := loopAttach(m.path)
	if err != nil {
		return "", nil, err
	}
	return dev.Name(), func() { dev.Close() }, nil
}

// exclusive makes the caller the only one, in this process and among processes
// that share the run directory, who mounts media. Mounts below peekDir that it
// finds are those of a process that was killed: it takes them away.
func (c *config) exclusive(ctx context.Context) (release func(), err error) {
	if err := os.MkdirAll(c.peekDir(), 0o700); err != nil {
		return nil, classed(err)
	}
	f, err := os.OpenFile(filepath.Join(c.peekDir(), "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, classed(err)
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock: %w: %w", errdefs.ErrUnavailable, err), f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), f.Close())
		case <-time.After(5 * time.Millisecond):
		}
	}
	all, err := mounts()
	for _, m := range all {
		if m.point != c.peekDir() && within(m.point, c.peekDir()) {
			err = errors.Join(err, unmount(m.point))
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() { f.Close() }, nil
}
