package fuse

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/drivers"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// Store keeps descriptors beyond the life of this process. A Keeper is one.
// Keys have 1 to 128 characters, blobs up to 4096 bytes.
type Store interface {
	// Put stores a copy of fd and blob under key, in place of what was there.
	Put(ctx context.Context, key string, fd int, blob []byte) error
	// Get returns a new descriptor, the caller's own, and the blob.
	// errdefs.ErrNotFound: there is none.
	Get(ctx context.Context, key string) (int, []byte, error)
	// Drop forgets key; an absent one is no error.
	Drop(ctx context.Context, key string) error
	// List returns the keys.
	List(ctx context.Context) ([]string, error)
}

// fsType is what mount(8) shows.
const fsType = "fuse.moraine"

// Mount makes the filesystem at dir (an existing directory) and serves it. The
// descriptor is in store under key from before the mount until Unmount.
func Mount(ctx context.Context, dir, key string, store Store, cfg Config) (*Image, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("fuse mount %s: open /dev/fuse: %w", dir, err)
	}
	sess, err := mountFD(ctx, fd, dir, key, store)
	if err != nil {
		unix.Close(fd)
		return nil, errors.Join(fmt.Errorf("fuse mount %s: %w", dir, err), Unmount(context.WithoutCancel(ctx), dir, key, store, true))
	}
	m, err := newImage(fd, sess, cfg)
	if err != nil {
		return nil, errors.Join(err, Unmount(context.WithoutCancel(ctx), dir, key, store, true))
	}
	m.start()
	return m, nil
}

// mountFD is the kernel's part and the handshake.
func mountFD(ctx context.Context, fd int, dir, key string, store Store) (session, error) {
	if err := store.Put(ctx, key, fd, nil); err != nil { // invariant 1
		return session{}, err
	}
	opts := fmt.Sprintf("fd=%d,rootmode=40000,user_id=%d,group_id=%d,default_permissions,max_read=%d", fd, os.Geteuid(), os.Getegid(), maxWrite)
	err := unix.Mount("moraine", dir, fsType, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, opts)
	if err != nil {
		return session{}, fmt.Errorf("mount: %w", err)
	}
	w, err := newWorker()
	if err != nil {
		return session{}, err
	}
	defer w.free()
	n, err := readFirst(fd, w.in())
	if err != nil {
		return session{}, err
	}
	var r request
	decode(w.request(n), &r)
	sess, err := negotiate(w.request(n), w.out())
	if err != nil {
		return session{}, err
	}
	blob, err := sess.marshal()
	if err == nil {
		err = store.Put(ctx, key, fd, blob)
	}
	if err != nil {
		return session{}, err
	}
	b := w.answer(initOutSize)
	putOutHeader(b, len(b), 0, r.unique)
	if _, err := unix.Write(fd, b); err != nil {
		return session{}, fmt.Errorf("answer init: %w", err)
	}
	return sess, nil
}

// readFirst reads the INIT that mount(2) has put in the queue.
func readFirst(fd int, b []byte) (int, error) {
	end := time.Now().Add(initTimeout)
	for {
		n, err := unix.Read(fd, b)
		if err == nil {
			return n, nil
		}
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return 0, fmt.Errorf("read init: %w", err)
		}
		left := time.Until(end)
		if left <= 0 {
			return 0, fmt.Errorf("read init: nothing in %v: %w", initTimeout, errdefs.ErrUnavailable)
		}
		_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left/time.Millisecond)+1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return 0, fmt.Errorf("poll init: %w", err)
		}
	}
}

// Takeover serves a connection that an earlier process mounted; that process
// has ended or released its image. It is called when the device may be used
// (REPLICATION 4.1.8): requests that wait are executed from now on, and those
// that the earlier process left unanswered a second time. Where the kernel
// cannot send those again, it fails with errdefs.ErrUnimplemented, unless
// released says that there are none. errdefs.ErrNotFound: there is no such
// connection any more.
func Takeover(ctx context.Context, key string, store Store, cfg Config, released bool) (*Image, error) {
	fd, blob, err := store.Get(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("fuse take over %s: %w", key, err)
	}
	sess, err := parseSession(blob)
	if err == nil {
		err = alive(fd)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("fuse take over %s: %w", key, err)
	}
	m, err := newImage(fd, sess, cfg)
	if err != nil {
		return nil, err
	}
	if err := m.resend(); err != nil && !released {
		m.abandon()
		return nil, err
	}
	m.start()
	return m, nil
}

// alive looks whether the connection behind fd was unmounted or aborted.
func alive(fd int) error {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	if _, err := unix.Poll(fds, 0); err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("poll: %w", err)
	}
	if fds[0].Revents&(unix.POLLERR|unix.POLLHUP|unix.POLLNVAL) != 0 {
		return fmt.Errorf("the connection is over: %w", errdefs.ErrNotFound)
	}
	return nil
}

// Abort ends the connection of the filesystem at dir: requests that wait fail,
// and so does every later use. What is mounted stays mounted while it is in
// use, so that a loop device on it can still be known by its path.
func Abort(dir string) error {
	ms, err := mountedAt(dir)
	if err != nil || len(ms) == 0 {
		return err
	}
	// MNT_FORCE aborts the connection first, and says EBUSY after.
	if err := unix.Unmount(dir, unix.MNT_FORCE|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("abort %s: %w", dir, err)
	}
	return nil
}

// Unmount removes the filesystem at dir if it is one of ours, and the
// descriptor under key from the store. With force it aborts the connection:
// requests that wait fail, whoever has the file open. It does not need a
// server to be running.
func Unmount(ctx context.Context, dir, key string, store Store, force bool) error {
	ms, err := mountedAt(dir)
	if err != nil {
		return err
	}
	for range ms {
		if force {
			// MNT_FORCE aborts the connection even when it then says EBUSY;
			// the detach takes the name away while someone still has the file.
			_ = unix.Unmount(dir, unix.MNT_FORCE|unix.UMOUNT_NOFOLLOW)
			if err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
				return fmt.Errorf("unmount %s: %w", dir, err)
			}
			continue
		}
		if err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW); errors.Is(err, unix.EBUSY) {
			b := drivers.Users(filepath.Join(dir, FileName))
			return fmt.Errorf("unmount %s: %w", dir, b)
		} else if err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
	}
	return store.Drop(ctx, key)
}

// mountedAt returns the minor device numbers of our filesystems at dir, the
// topmost last. It reads mountinfo: a stat of the path could hang.
func mountedAt(dir string) ([]string, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("fuse mounts: %w", err)
	}
	var out []string
	for _, l := range strings.Split(string(b), "\n") {
		head, tail, ok := strings.Cut(l, " - ")
		f := strings.Fields(head)
		if !ok || len(f) < 5 || drivers.Unescape(f[4]) != dir {
			continue
		}
		if t := strings.Fields(tail); len(t) == 0 || t[0] != fsType {
			return nil, fmt.Errorf("fuse mount %s: another filesystem is mounted there: %w", dir, errdefs.ErrFailedPrecondition)
		}
		_, minor, _ := strings.Cut(f[2], ":")
		out = append(out, minor)
	}
	return out, nil
}

// Mounted says whether one of our filesystems is mounted at dir.
func Mounted(dir string) (bool, error) {
	ms, err := mountedAt(dir)
	return len(ms) > 0, err
}
