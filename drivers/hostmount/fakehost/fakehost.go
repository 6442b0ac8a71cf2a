// Package fakehost is a hostmount.Host in memory: devices are made with
// AddDevice, mounts exist in its own table only. It passes the suite of
// hostmounttest and can be told to fail.
package fakehost

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"sync"

	"github.com/moraine-storage/moraine/drivers"
	"github.com/moraine-storage/moraine/drivers/hostmount"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// device is a block device that exists in the fake only.
type device struct {
	minor   uint32
	size    int64
	sig     hostmount.Signature
	fsSize  int64
	formats int
}

// Host implements hostmount.Host.
type Host struct {
	mu      sync.Mutex
	devices map[string]*device
	mounts  []hostmount.Mountpoint
	users   map[string][]string // by mount path
	nextID  int
	fail    map[string]error // by method
}

var _ hostmount.Host = (*Host)(nil)

// New returns a host without devices.
func New() *Host {
	return &Host{devices: map[string]*device{}, users: map[string][]string{}, fail: map[string]error{}}
}

// AddDevice makes a blank device, or grows the one of that path.
func (h *Host) AddDevice(path string, size int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if d, ok := h.devices[path]; ok {
		d.size = size
		return
	}
	h.devices[path] = &device{minor: uint32(len(h.devices) + 1), size: size, sig: hostmount.Signature{Blank: true}}
}

// RemoveDevice takes a device away.
func (h *Host) RemoveDevice(path string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.devices, path)
}

// SetSignature says what Probe finds on a device.
func (h *Host) SetSignature(path string, s hostmount.Signature) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.devices[path].sig = s
}

// Formats counts how often a device was formatted.
func (h *Host) Formats(path string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	if d, ok := h.devices[path]; ok {
		return d.formats
	}
	return 0
}

// Use makes a mount busy: process is named in the error of Unmount. The
// function returned ends it.
func (h *Host) Use(path, process string) (release func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.users[path] = append(h.users[path], process)
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		for i, p := range h.users[path] {
			if p == process {
				h.users[path] = append(h.users[path][:i], h.users[path][i+1:]...)
				return
			}
		}
	}
}

// Fail makes each later call of a method ("Mount", "Check", ...) fail with
// err; nil ends it.
func (h *Host) Fail(method string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fail[method] = err
}

// enter begins a call.
func (h *Host) enter(ctx context.Context, method string) (func(), error) {
	h.mu.Lock()
	err := ctx.Err()
	if err == nil {
		err = h.fail[method]
	}
	return h.mu.Unlock, err
}

func (h *Host) device(path string) (*device, error) {
	d, ok := h.devices[path]
	if !ok {
		return nil, fmt.Errorf("%s: no such device: %w", path, errdefs.ErrNotFound)
	}
	return d, nil
}

// Probe implements hostmount.Filesystems.
func (h *Host) Probe(ctx context.Context, path string) (hostmount.Signature, error) {
	leave, err := h.enter(ctx, "Probe")
	defer leave()
	if err != nil {
		return hostmount.Signature{}, err
	}
	d, err := h.device(path)
	if err != nil {
		return hostmount.Signature{}, err
	}
	return d.sig, nil
}

// Format implements hostmount.Filesystems.
func (h *Host) Format(ctx context.Context, path string, o hostmount.FormatOptions) error {
	leave, err := h.enter(ctx, "Format")
	defer leave()
	if err == nil {
		err = o.Validate()
	}
	if err != nil {
		return err
	}
	d, err := h.device(path)
	if err != nil {
		return err
	}
	if !d.sig.Blank && !o.Force {
		return fmt.Errorf("format %s: not blank: %w", path, errdefs.ErrFailedPrecondition)
	}
	for _, m := range h.mounts {
		if m.Minor == d.minor {
			return fmt.Errorf("format %s: mounted at %s: %w", path, m.Path, errdefs.ErrFailedPrecondition)
		}
	}
	d.sig = hostmount.Signature{Type: o.Type, Label: o.Label, UUID: fmt.Sprintf("00000000-0000-4000-8000-%012d", d.minor)}
	d.fsSize = d.size
	d.formats++
	return nil
}

// Check implements hostmount.Filesystems.
func (h *Host) Check(ctx context.Context, path, fsType string, readOnly bool) (hostmount.CheckResult, error) {
	leave, err := h.enter(ctx, "Check")
	defer leave()
	if err != nil {
		return hostmount.CheckResult{}, err
	}
	d, err := h.device(path)
	if err != nil {
		return hostmount.CheckResult{}, err
	}
	if fsType != hostmount.Ext4 && fsType != hostmount.XFS {
		return hostmount.CheckResult{}, fmt.Errorf("check %s: filesystem %q: %w", path, fsType, errdefs.ErrInvalidArgument)
	}
	if fsType == hostmount.Ext4 && !readOnly {
		d.fsSize = d.size
	}
	return hostmount.CheckResult{}, nil
}

// at returns the device that is mounted on top at target.
func (h *Host) at(target string) (*device, error) {
	ms := hostmount.At(h.mounts, target)
	if len(ms) == 0 {
		return nil, fmt.Errorf("%s: nothing is mounted there: %w", target, errdefs.ErrNotFound)
	}
	return h.device(ms[len(ms)-1].Source)
}

// Grow implements hostmount.Filesystems.
func (h *Host) Grow(ctx context.Context, target string) error {
	leave, err := h.enter(ctx, "Grow")
	defer leave()
	if err != nil {
		return err
	}
	d, err := h.at(target)
	if err != nil {
		return err
	}
	d.fsSize = d.size
	return nil
}

// Trim implements hostmount.Filesystems.
func (h *Host) Trim(ctx context.Context, target string) (int64, error) {
	leave, err := h.enter(ctx, "Trim")
	defer leave()
	if err != nil {
		return 0, err
	}
	d, err := h.at(target)
	if err != nil {
		return 0, err
	}
	return d.fsSize, nil
}

// Usage implements hostmount.Filesystems.
func (h *Host) Usage(ctx context.Context, target string) (hostmount.Usage, error) {
	leave, err := h.enter(ctx, "Usage")
	defer leave()
	if err != nil {
		return hostmount.Usage{}, err
	}
	d, err := h.at(target)
	if err != nil {
		return hostmount.Usage{}, err
	}
	return hostmount.Usage{TotalBytes: d.fsSize, AvailableBytes: d.fsSize, Inodes: 1024, InodesFree: 1024}, nil
}

// Mount implements hostmount.Mounts.
func (h *Host) Mount(ctx context.Context, r hostmount.MountRequest) error {
	leave, err := h.enter(ctx, "Mount")
	defer leave()
	if err != nil {
		return err
	}
	d, err := h.device(r.Device)
	if err != nil {
		return err
	}
	if _, _, err := hostmount.ParseOptions(r.Type, r.Options); err != nil {
		return err
	}
	if !filepath.IsAbs(r.Target) || r.Target == "/" {
		return fmt.Errorf("mount at %q: %w", r.Target, errdefs.ErrInvalidArgument)
	}
	if at := hostmount.At(h.mounts, r.Target); len(at) > 0 {
		if at[len(at)-1].Source == r.Device {
			return nil
		}
		return fmt.Errorf("mount %s at %s: %w", r.Device, r.Target, errdefs.ErrAlreadyExists)
	}
	if d.sig.Type != r.Type {
		return fmt.Errorf("mount %s: no %s on it: %w", r.Device, r.Type, errdefs.ErrFailedPrecondition)
	}
	h.add(hostmount.Mountpoint{Major: 7, Minor: d.minor, Root: "/", Path: r.Target, Options: options(r.ReadOnly, r.Options), Type: r.Type, Source: r.Device})
	return nil
}

func options(readOnly bool, more []string) []string {
	out := []string{"rw"}
	if readOnly {
		out[0] = "ro"
	}
	return append(out, strings.Split(strings.Join(more, ","), ",")...)
}

func (h *Host) add(m hostmount.Mountpoint) {
	h.nextID++
	m.ID, m.Parent = h.nextID, 1
	h.mounts = append(h.mounts, m)
}

// Bind implements hostmount.Mounts. The source is a mounted path or below one.
func (h *Host) Bind(ctx context.Context, source, target string, readOnly bool) error {
	leave, err := h.enter(ctx, "Bind")
	defer leave()
	if err != nil {
		return err
	}
	var from *hostmount.Mountpoint
	for i, m := range h.mounts {
		if (source == m.Path || strings.HasPrefix(source, m.Path+"/")) && (from == nil || len(m.Path) >= len(from.Path)) {
			from = &h.mounts[i]
		}
	}
	if from == nil {
		return fmt.Errorf("bind %s: no such source: %w", source, errdefs.ErrNotFound)
	}
	m := *from
	m.Root, m.Path = filepath.Join(m.Root, strings.TrimPrefix(source, m.Path)), target
	if at := hostmount.At(h.mounts, target); len(at) > 0 {
		if o := at[len(at)-1]; o.Source == m.Source && o.Root == m.Root {
			return nil
		}
		return fmt.Errorf("bind %s at %s: %w", source, target, errdefs.ErrAlreadyExists)
	}
	m.Options = options(readOnly, nil)
	h.add(m)
	return nil
}

// Unmount implements hostmount.Mounts.
func (h *Host) Unmount(ctx context.Context, target string, lazy bool) error {
	leave, err := h.enter(ctx, "Unmount")
	defer leave()
	if err != nil {
		return err
	}
	if u := h.users[target]; len(u) > 0 && !lazy && len(hostmount.At(h.mounts, target)) > 0 {
		return fmt.Errorf("unmount %s: %w", target, &drivers.BusyError{Device: target, Processes: append([]string(nil), u...)})
	}
	kept := h.mounts[:0]
	for _, m := range h.mounts {
		if m.Path != target {
			kept = append(kept, m)
		}
	}
	h.mounts = kept
	return nil
}

// List implements hostmount.Mounts.
func (h *Host) List(ctx context.Context) ([]hostmount.Mountpoint, error) {
	leave, err := h.enter(ctx, "List")
	defer leave()
	return append([]hostmount.Mountpoint(nil), h.mounts...), err
}
