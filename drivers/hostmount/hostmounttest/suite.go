// Package hostmounttest is the conformance suite of hostmount.Host. The real
// host passes it as root over loop devices, the fake one anywhere.
package hostmounttest

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moraine-storage/moraine/drivers"
	"github.com/moraine-storage/moraine/drivers/hostmount"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// Device is a block device of the test.
type Device struct {
	Path string
	// Grow makes it larger.
	Grow func(size int64)
	// Scribble writes bytes without a signature at its beginning.
	Scribble func()
	// Sign puts a signature of another owner (a partition table, LVM) on it.
	Sign func()
}

// Env is what an implementation brings to the suite.
type Env struct {
	Host      hostmount.Host
	Dir       string // an empty directory
	NewDevice func(t *testing.T, size int64) Device
	// NoOnlineGrow is why a mounted ext4 cannot be grown here; empty: it can.
	NoOnlineGrow string
	// Hold keeps a file below path open until release is called.
	Hold func(t *testing.T, path string) (release func())
}

const size = 320 << 20 // mkfs.xfs refuses less than 300 MiB

// Run plays the suite.
func Run(t *testing.T, newEnv func(t *testing.T) Env) {
	for name, f := range map[string]func(*testing.T, Env){
		"LifeOfExt4":   func(t *testing.T, e Env) { life(t, e, hostmount.Ext4) },
		"LifeOfXFS":    func(t *testing.T, e Env) { life(t, e, hostmount.XFS) },
		"NeverFormats": neverFormats,
		"Busy":         busy,
		"Binds":        binds,
		"Refuses":      refuses,
		"Clones":       clones,
	} {
		t.Run(name, func(t *testing.T) { f(t, newEnv(t)) })
	}
}

var ctx = context.Background()

// life: blank, formatted, checked, mounted, grown, trimmed, unmounted; each
// step twice where the contract says that it may be repeated.
func life(t *testing.T, e Env, fs string) {
	d := e.NewDevice(t, size)
	target := filepath.Join(e.Dir, "a mount point")
	s, err := e.Host.Probe(ctx, d.Path)
	must(t, err)
	if !s.Blank || s.Type != "" {
		t.Errorf("a new device is %+v", s)
	}
	must(t, e.Host.Format(ctx, d.Path, hostmount.FormatOptions{Type: fs, Label: "vol", Zeroed: true}))
	s, err = e.Host.Probe(ctx, d.Path)
	must(t, err)
	if s.Blank || s.Type != fs || s.Label != "vol" || s.UUID == "" {
		t.Errorf("after format it is %+v", s)
	}
	r, err := e.Host.Check(ctx, d.Path, fs, false)
	must(t, err)
	if r.Repaired {
		t.Errorf("a new filesystem was repaired: %s", r.Output)
	}
	req := hostmount.MountRequest{Device: d.Path, Target: target, Type: fs, Options: []string{"noatime,discard"}}
	must(t, e.Host.Mount(ctx, req))
	must(t, e.Host.Mount(ctx, req))
	ms, err := e.Host.List(ctx)
	must(t, err)
	if at := hostmount.At(ms, target); len(at) != 1 || at[0].Type != fs || !contains(at[0].Options, "noatime") {
		t.Errorf("mounted are %+v", at)
	}
	before, err := e.Host.Usage(ctx, target)
	must(t, err)
	if before.TotalBytes < size/2 || before.AvailableBytes > before.TotalBytes || before.UsedBytes < 0 {
		t.Errorf("usage %+v", before)
	}
	d.Grow(2 * size)
	if fs == hostmount.Ext4 && e.NoOnlineGrow != "" {
		t.Log("grown at the next mount: ", e.NoOnlineGrow)
		class(t, "grow while mounted", e.Host.Grow(ctx, target), errdefs.ErrPermissionDenied)
		must(t, e.Host.Unmount(ctx, target, false))
		_, err := e.Host.Check(ctx, d.Path, fs, false)
		must(t, err)
		must(t, e.Host.Mount(ctx, req))
	} else {
		must(t, e.Host.Grow(ctx, target))
		must(t, e.Host.Grow(ctx, target))
	}
	after, err := e.Host.Usage(ctx, target)
	must(t, err)
	if after.TotalBytes < before.TotalBytes+size*9/10 {
		t.Errorf("grown from %d to %d bytes", before.TotalBytes, after.TotalBytes)
	}
	if _, err := e.Host.Trim(ctx, target); err != nil {
		t.Errorf("trim: %v", err)
	}
	must(t, e.Host.Unmount(ctx, target, false))
	must(t, e.Host.Unmount(ctx, target, false))
	must(t, e.Host.Unmount(ctx, target, true))
	class(t, "usage of nothing", second(e.Host.Usage(ctx, target)), errdefs.ErrNotFound)
	class(t, "grow of nothing", e.Host.Grow(ctx, target), errdefs.ErrNotFound)
	class(t, "trim of nothing", second(e.Host.Trim(ctx, target)), errdefs.ErrNotFound)
	req.ReadOnly = true
	must(t, e.Host.Mount(ctx, req))
	ms, err = e.Host.List(ctx)
	must(t, err)
	if at := hostmount.At(ms, target); len(at) != 1 || !contains(at[0].Options, "ro") {
		t.Errorf("read-only: %+v", at)
	}
	must(t, e.Host.Unmount(ctx, target, false))
}

// neverFormats: rule 10.
func neverFormats(t *testing.T, e Env) {
	o := hostmount.FormatOptions{Type: hostmount.Ext4}
	scribbled := e.NewDevice(t, size)
	scribbled.Scribble()
	s, err := e.Host.Probe(ctx, scribbled.Path)
	must(t, err)
	if s.Blank {
		t.Error("a device with data is blank")
	}
	class(t, "format over data", e.Host.Format(ctx, scribbled.Path, o), errdefs.ErrFailedPrecondition)
	signed := e.NewDevice(t, size)
	signed.Sign()
	s, err = e.Host.Probe(ctx, signed.Path)
	must(t, err)
	if s.Blank || s.Type == "" {
		t.Errorf("a signed device is %+v", s)
	}
	class(t, "format over a signature", e.Host.Format(ctx, signed.Path, o), errdefs.ErrFailedPrecondition)
	o.Force = true
	must(t, e.Host.Format(ctx, scribbled.Path, o))
	must(t, e.Host.Format(ctx, signed.Path, o))
	for _, fs := range []string{hostmount.XFS, hostmount.Ext4} {
		class(t, "format over ext4", e.Host.Format(ctx, signed.Path, hostmount.FormatOptions{Type: fs}), errdefs.ErrFailedPrecondition)
	}
	must(t, e.Host.Format(ctx, signed.Path, hostmount.FormatOptions{Type: hostmount.XFS, Force: true}))
	target := filepath.Join(e.Dir, "m")
	must(t, e.Host.Mount(ctx, hostmount.MountRequest{Device: signed.Path, Target: target, Type: hostmount.XFS}))
	class(t, "format while mounted", e.Host.Format(ctx, signed.Path, o), errdefs.ErrFailedPrecondition)
	must(t, e.Host.Unmount(ctx, target, false))
}

func busy(t *testing.T, e Env) {
	d := e.NewDevice(t, size)
	target := filepath.Join(e.Dir, "m")
	must(t, e.Host.Format(ctx, d.Path, hostmount.FormatOptions{Type: hostmount.Ext4}))
	must(t, e.Host.Mount(ctx, hostmount.MountRequest{Device: d.Path, Target: target, Type: hostmount.Ext4}))
	release := e.Hold(t, target)
	err := e.Host.Unmount(ctx, target, false)
	var b *drivers.BusyError
	if !errors.As(err, &b) || len(b.Processes) == 0 {
		t.Errorf("unmount in use: %v", err)
	}
	class(t, "unmount in use", err, errdefs.ErrFailedPrecondition)
	must(t, e.Host.Unmount(ctx, target, true))
	release()
	ms, err := e.Host.List(ctx)
	must(t, err)
	if at := hostmount.At(ms, target); len(at) != 0 {
		t.Errorf("still mounted: %+v", at)
	}
}

func binds(t *testing.T, e Env) {
	d, other := e.NewDevice(t, size), e.NewDevice(t, size)
	a, b := filepath.Join(e.Dir, "a"), filepath.Join(e.Dir, "b")
	for _, dev := range []Device{d, other} {
		must(t, e.Host.Format(ctx, dev.Path, hostmount.FormatOptions{Type: hostmount.Ext4}))
	}
	must(t, e.Host.Mount(ctx, hostmount.MountRequest{Device: d.Path, Target: a, Type: hostmount.Ext4}))
	class(t, "mount over another", e.Host.Mount(ctx, hostmount.MountRequest{Device: other.Path, Target: a, Type: hostmount.Ext4}), errdefs.ErrAlreadyExists)
	must(t, e.Host.Bind(ctx, a, b, true))
	must(t, e.Host.Bind(ctx, a, b, true))
	ms, err := e.Host.List(ctx)
	must(t, err)
	if at := hostmount.At(ms, b); len(at) != 1 || !contains(at[0].Options, "ro") {
		t.Errorf("bound are %+v", at)
	}
	c := filepath.Join(e.Dir, "c")
	must(t, e.Host.Mount(ctx, hostmount.MountRequest{Device: other.Path, Target: c, Type: hostmount.Ext4}))
	class(t, "bind over another", e.Host.Bind(ctx, a, c, false), errdefs.ErrAlreadyExists)
	class(t, "bind of nothing", e.Host.Bind(ctx, filepath.Join(e.Dir, "none"), b, false), errdefs.ErrNotFound)
	must(t, e.Host.Unmount(ctx, a, false)) // the bind stays
	if u, err := e.Host.Usage(ctx, b); err != nil || u.TotalBytes == 0 {
		t.Errorf("usage at the bind: %+v, %v", u, err)
	}
	must(t, e.Host.Unmount(ctx, b, false))
	must(t, e.Host.Unmount(ctx, c, false))
}

func refuses(t *testing.T, e Env) {
	d := e.NewDevice(t, size)
	target := filepath.Join(e.Dir, "m")
	for _, o := range []hostmount.FormatOptions{
		{}, {Type: "btrfs"}, {Type: hostmount.Ext4, Label: "thirteen char"}, {Type: hostmount.XFS, Label: "a b"},
		{Type: hostmount.Ext4, Args: []string{"/dev/sda"}}, {Type: hostmount.Ext4, Args: []string{"-F"}},
	} {
		class(t, "format", e.Host.Format(ctx, d.Path, o), errdefs.ErrInvalidArgument)
	}
	class(t, "format of nothing", e.Host.Format(ctx, "/dev/no-such-device", hostmount.FormatOptions{Type: hostmount.Ext4}), errdefs.ErrNotFound)
	class(t, "probe of nothing", second(e.Host.Probe(ctx, "/dev/no-such-device")), errdefs.ErrNotFound)
	class(t, "check of nothing", second(e.Host.Check(ctx, "/dev/no-such-device", hostmount.Ext4, false)), errdefs.ErrNotFound)
	class(t, "check as btrfs", second(e.Host.Check(ctx, d.Path, "btrfs", false)), errdefs.ErrInvalidArgument)
	for _, r := range []hostmount.MountRequest{
		{Device: d.Path, Target: target, Type: "btrfs"}, {Device: d.Path, Target: "relative", Type: hostmount.Ext4}, {Device: d.Path, Target: "/", Type: hostmount.Ext4},
		{Device: d.Path, Target: target, Type: hostmount.Ext4, Options: []string{"nobarrier"}}, {Device: d.Path, Target: target, Type: hostmount.Ext4, Options: []string{"commit=x"}},
	} {
		class(t, "mount", e.Host.Mount(ctx, r), errdefs.ErrInvalidArgument)
	}
	class(t, "mount of nothing", e.Host.Mount(ctx, hostmount.MountRequest{Device: "/dev/no-such-device", Target: target, Type: hostmount.Ext4}), errdefs.ErrNotFound)
	if err := e.Host.Mount(ctx, hostmount.MountRequest{Device: d.Path, Target: target, Type: hostmount.Ext4}); err == nil {
		t.Error("a blank device was mounted")
	}
	done, cancel := context.WithCancel(ctx)
	cancel()
	if err := e.Host.Mount(done, hostmount.MountRequest{Device: d.Path, Target: target, Type: hostmount.Ext4}); err == nil {
		t.Error("mounted under a cancelled context")
	}
}

// clones: two devices with one UUID may be mounted beside each other.
func clones(t *testing.T, e Env) {
	for _, fs := range []string{hostmount.Ext4, hostmount.XFS} {
		var targets []string
		for i := range 2 {
			d := e.NewDevice(t, size)
			uuid := []string{"-U", "2f1c8b5e-6f8e-4bb0-9d8a-0b6a6c2e5a01"}
			if fs == hostmount.XFS {
				uuid = []string{"-m", "uuid=2f1c8b5e-6f8e-4bb0-9d8a-0b6a6c2e5a01"}
			}
			must(t, e.Host.Format(ctx, d.Path, hostmount.FormatOptions{Type: fs, Args: uuid}))
			targets = append(targets, filepath.Join(e.Dir, fs+strings.Repeat("x", i)))
			must(t, e.Host.Mount(ctx, hostmount.MountRequest{Device: d.Path, Target: targets[i], Type: fs}))
		}
		for _, target := range targets {
			must(t, e.Host.Unmount(ctx, target, false))
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func class(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want class %v", what, err, want)
	}
}

func second[T any](_ T, err error) error { return err }

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}
