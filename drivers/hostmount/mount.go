package hostmount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/drivers"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

func (host) List(context.Context) ([]Mountpoint, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("mount table: %w", err)
	}
	return ParseMountInfo(b)
}

// ParseMountInfo decodes /proc/PID/mountinfo (proc(5)).
func ParseMountInfo(b []byte) ([]Mountpoint, error) {
	var out []Mountpoint
	for i, l := range strings.Split(string(b), "\n") {
		if l == "" {
			continue
		}
		m, err := parseLine(l)
		if err != nil {
			return nil, fmt.Errorf("mount table: line %d %q: %w", i+1, l, err)
		}
		out = append(out, m)
	}
	return out, nil
}

// parseLine: ID parent major:minor root path options [tags...] - type source options.
func parseLine(l string) (Mountpoint, error) {
	head, tail, ok := strings.Cut(l, " - ")
	f, g := strings.Fields(head), strings.Split(tail, " ")
	if !ok || len(f) < 6 || len(g) < 3 {
		return Mountpoint{}, fmt.Errorf("too few fields: %w", errdefs.ErrInvalidArgument)
	}
	id, e1 := strconv.Atoi(f[0])
	parent, e2 := strconv.Atoi(f[1])
	maj, min, _ := strings.Cut(f[2], ":")
	major, e3 := strconv.ParseUint(maj, 10, 32)
	minor, e4 := strconv.ParseUint(min, 10, 32)
	if err := errors.Join(e1, e2, e3, e4); err != nil {
		return Mountpoint{}, fmt.Errorf("%v: %w", err, errdefs.ErrInvalidArgument)
	}
	return Mountpoint{
		ID: id, Parent: parent, Major: uint32(major), Minor: uint32(minor),
		Root: drivers.Unescape(f[3]), Path: drivers.Unescape(f[4]),
		Options: append(strings.Split(f[5], ","), strings.Split(g[2], ",")...),
		Type:    g[0], Source: drivers.Unescape(g[1]),
	}, nil
}

// mountedDevice returns where a block device is mounted, by its number.
func mountedDevice(device string) ([]string, error) {
	var st unix.Stat_t
	if err := unix.Stat(device, &st); err != nil {
		return nil, err
	}
	ms, err := host{}.List(context.Background())
	var out []string
	for _, m := range ms {
		if unix.Mkdev(m.Major, m.Minor) == uint64(st.Rdev) {
			out = append(out, m.Path)
		}
	}
	return out, err
}

// realTarget makes the directory and returns its path without symbolic links,
// which is how the mount table knows it.
func realTarget(target string, file bool) (string, error) {
	if !filepath.IsAbs(target) || filepath.Clean(target) == "/" {
		return "", fmt.Errorf("target %q is not an absolute path below /: %w", target, errdefs.ErrInvalidArgument)
	}
	dir := target
	if file {
		dir = filepath.Dir(target)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	if file {
		f, err := os.OpenFile(target, os.O_CREATE|os.O_RDONLY, 0o600)
		if err != nil {
			return "", err
		}
		f.Close()
	}
	return filepath.EvalSymlinks(target)
}

func (h host) Mount(ctx context.Context, r MountRequest) error {
	fail := func(err error) error { return fmt.Errorf("mount %s at %s: %w", r.Device, r.Target, err) }
	if err := checkDevice(r.Device); err != nil {
		return fail(err)
	}
	flags, data, err := ParseOptions(r.Type, r.Options)
	if err != nil {
		return fail(err)
	}
	if r.ReadOnly {
		flags |= unix.MS_RDONLY
	}
	if r.Type == XFS && !strings.Contains(","+data+",", ",nouuid,") {
		// A clone or a snapshot has the UUID of its origin.
		data = strings.TrimPrefix(data+",nouuid", ",")
	}
	target, err := realTarget(r.Target, false)
	if err != nil {
		return fail(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(r.Device, &st); err != nil {
		return fail(err)
	}
	ms, err := h.List(ctx)
	if err != nil {
		return fail(err)
	}
	if at := At(ms, target); len(at) > 0 {
		if m := at[len(at)-1]; unix.Mkdev(m.Major, m.Minor) == uint64(st.Rdev) && m.Root == "/" {
			return nil
		}
		return fail(fmt.Errorf("%s is mounted there: %w", at[len(at)-1].Source, errdefs.ErrAlreadyExists))
	}
	_, err = child(ctx, mountTimeout, childMount, r.Device, target, r.Type, strconv.FormatUint(uint64(flags), 10), data)
	if err != nil {
		return fail(h.explain(ctx, r, err))
	}
	return nil
}

// explain adds what the filesystem's own program says when mount(2) failed.
func (host) explain(ctx context.Context, r MountRequest, err error) error {
	if errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("the kernel has no %s: %w: %w", r.Type, err, errdefs.ErrUnimplemented)
	}
	if r.Type != XFS || errdefs.Indeterminate(err) {
		return err
	}
	out, code, rerr := run(ctx, fsckTimeout, "xfs_repair", "-n", r.Device)
	if rerr != nil || code == 0 {
		return errors.Join(err, rerr)
	}
	return fmt.Errorf("%w: xfs_repair -n finds damage: %s: %w", err, out, errdefs.ErrDataLoss)
}

func (h host) Bind(ctx context.Context, source, target string, readOnly bool) error {
	fail := func(err error) error { return fmt.Errorf("bind %s at %s: %w", source, target, err) }
	source, err := filepath.EvalSymlinks(source)
	if errors.Is(err, os.ErrNotExist) {
		return fail(fmt.Errorf("no such source: %w", errdefs.ErrNotFound))
	} else if err != nil {
		return fail(err)
	}
	var src, dst unix.Stat_t
	if err := unix.Stat(source, &src); err != nil {
		return fail(err)
	}
	file := src.Mode&unix.S_IFMT != unix.S_IFDIR
	real, err := realTarget(target, file)
	if err != nil {
		return fail(err)
	}
	ms, err := h.List(ctx)
	if err != nil {
		return fail(err)
	}
	if at := At(ms, real); len(at) > 0 {
		if err := unix.Stat(real, &dst); err != nil {
			return fail(err)
		}
		if dst.Dev == src.Dev && dst.Ino == src.Ino {
			return nil
		}
		return fail(fmt.Errorf("%s is mounted there: %w", at[len(at)-1].Source, errdefs.ErrAlreadyExists))
	}
	err = within(ctx, mountTimeout, "mount", func() error {
		if err := unix.Mount(source, real, "", unix.MS_BIND, ""); err != nil || !readOnly {
			return err
		}
		// The kernel takes read-only for a bind in a second call only.
		if err := unix.Mount("", real, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			return errors.Join(err, unix.Unmount(real, unix.UMOUNT_NOFOLLOW))
		}
		return nil
	})
	if err != nil {
		return fail(err)
	}
	return nil
}

func (h host) Unmount(ctx context.Context, target string, lazy bool) error {
	fail := func(err error) error { return fmt.Errorf("unmount %s: %w", target, err) }
	// A dead mount point cannot be looked up; its parent can.
	real := target
	if dir, err := filepath.EvalSymlinks(filepath.Dir(target)); err == nil {
		real = filepath.Join(dir, filepath.Base(target))
	}
	for {
		ms, err := h.List(ctx)
		if err != nil {
			return fail(err)
		}
		at := At(ms, real)
		if len(at) == 0 {
			return nil
		}
		flags := unix.UMOUNT_NOFOLLOW
		if lazy {
			flags |= unix.MNT_DETACH
		}
		_, err = child(ctx, mountTimeout, childUmount, real, strconv.Itoa(flags))
		switch {
		case errors.Is(err, unix.EBUSY):
			return fail(usersOf(real, at[len(at)-1], ms))
		case errors.Is(err, unix.EINVAL): // gone meanwhile
		case err != nil:
			return fail(err)
		}
	}
}

// usersOf names who keeps a mount busy: processes with a file, a directory or
// a root below it, and mounts on top of it.
func usersOf(path string, m Mountpoint, ms []Mountpoint) *drivers.BusyError {
	e := &drivers.BusyError{Device: m.Source}
	for _, o := range ms {
		if o.Parent == m.ID {
			e.Mounts = append(e.Mounts, o.Path)
		}
	}
	e.Processes = drivers.ProcessesBelow(path)
	return e
}

// Probe says which programs of this package's are installed.
func Probe() []drivers.Support {
	var out []drivers.Support
	for _, p := range []struct{ name, pkg string }{
		{"blkid", "util-linux"}, {"mkfs.ext4", "e2fsprogs"}, {"e2fsck", "e2fsprogs"}, {"resize2fs", "e2fsprogs"},
		{"mkfs.xfs", "xfsprogs"}, {"xfs_repair", "xfsprogs"}, {"xfs_growfs", "xfsprogs"},
	} {
		out = append(out, drivers.LookProgram(p.name, p.pkg))
	}
	return out
}
