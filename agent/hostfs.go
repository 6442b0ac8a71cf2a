package agent

import (
	"context"
	"fmt"

	"github.com/hashicorp/go-hclog"
	"github.com/moraine-storage/moraine/agent/config"
	"github.com/moraine-storage/moraine/agent/volume"
	"github.com/moraine-storage/moraine/drivers"
	"github.com/moraine-storage/moraine/drivers/hostmount"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// hostFS fits drivers/hostmount to what agent/volume needs.
func hostFS(hclog.Logger) volume.Host { return hostFilesystems{hostmount.New()} }

type hostFilesystems struct{ h hostmount.Host }

func (f hostFilesystems) Detect(ctx context.Context, device string) (string, error) {
	s, err := f.h.Probe(ctx, device)
	switch {
	case err != nil:
		return "", err
	case s.Blank:
		return "", nil
	case s.Type == hostmount.Ext4 || s.Type == hostmount.XFS:
		return s.Type, nil
	case s.Type == "":
		return "", fmt.Errorf("%s: data without a known file system is on it; it is left alone: %w", device, errdefs.ErrFailedPrecondition)
	}
	return "", fmt.Errorf("%s: %s is on it; it is left alone: %w", device, s.Type, errdefs.ErrFailedPrecondition)
}

func (f hostFilesystems) Make(ctx context.Context, device, fs string, options []string, again bool) error {
	// A volume is thin and this one blank: what was never written reads as zeros.
	return f.h.Format(ctx, device, hostmount.FormatOptions{Type: fs, Zeroed: !again, Force: again, Args: options})
}

func (f hostFilesystems) Check(ctx context.Context, device, fs string) error {
	_, err := f.h.Check(ctx, device, fs, false)
	return err
}

func (f hostFilesystems) Mount(ctx context.Context, device, dir, fs string, readOnly bool, options []string) error {
	return f.h.Mount(ctx, hostmount.MountRequest{Device: device, Target: dir, Type: fs, Options: options, ReadOnly: readOnly})
}

func (f hostFilesystems) Bind(ctx context.Context, from, to string, readOnly bool) error {
	return f.h.Bind(ctx, from, to, readOnly)
}

func (f hostFilesystems) Unmount(ctx context.Context, dir string, force bool) error {
	return f.h.Unmount(ctx, dir, force)
}

func (f hostFilesystems) Mounted(dir string) (string, error) {
	ms, err := f.h.List(context.Background())
	if err != nil {
		return "", err
	}
	at := hostmount.At(ms, dir)
	if len(at) == 0 {
		return "", nil
	}
	return at[len(at)-1].Source, nil
}

func (f hostFilesystems) Grow(ctx context.Context, _, dir string) error { return f.h.Grow(ctx, dir) }

func (f hostFilesystems) Usage(dir string) (volume.Usage, error) {
	u, err := f.h.Usage(context.Background(), dir)
	return volume.Usage{Size: u.TotalBytes, Used: u.UsedBytes}, err
}

// Sync waits in a child process: the agent serves the device, and could not be
// killed within a system call that waits for it.
func (hostFilesystems) Sync(ctx context.Context, dir string) error {
	return hostmount.Sync(ctx, dir)
}

// Empty is a child's work for the same reason.
func (hostFilesystems) Empty(ctx context.Context, dir string) error {
	return hostmount.RemoveLostFound(ctx, dir)
}

// hostChecks are the doctor's lines about this host.
func hostChecks(ctx context.Context) []drivers.Support {
	return append(hostmount.Probe(), protected...)
}

// CheckConfig reads a configuration as Run would, for `moraine config validate`.
func CheckConfig(paths []string) error {
	_, ds := config.Load(paths, nil)
	return ds.Err()
}
