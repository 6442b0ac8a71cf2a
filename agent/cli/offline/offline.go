// Package offline looks into drives without an agent: the cli.DriveTool over
// drivers/store. It is not part of package cli so that only the program links
// the store, and nothing in the command line can reach a drive by itself.
// Nothing here writes to a drive.
package offline

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/agent/cli"
	"github.com/moraine-storage/moraine/drivers/store"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// Drives is a cli.DriveTool.
type Drives struct{}

var _ cli.DriveTool = Drives{}

// storeDir finds the store of a drive: the agent puts it into a directory
// "store" of the drive, which is what people know; the store's own directory
// will do as well. Without one the error names the directory that was typed
// rather than files that nobody has heard of.
func storeDir(dir string) (string, error) {
	st, err := os.Stat(dir)
	if err != nil {
		return "", err
	}
	if !st.IsDir() {
		return "", fmt.Errorf("%s is not a directory: %w", dir, errdefs.ErrInvalidArgument)
	}
	for _, d := range []string{filepath.Join(dir, "store"), dir} {
		_, err := os.Stat(filepath.Join(d, "superblock"))
		if err == nil {
			return d, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	return "", fmt.Errorf("%s holds no store: %w", dir, errdefs.ErrNotFound)
}

// Check implements cli.DriveTool. Metadata that cannot be read as a whole is a
// problem of the store, not a failure to look.
func (Drives) Check(ctx context.Context, dir string, data bool, p cli.Progress) (*cli.DriveReport, error) {
	dir, err := storeDir(dir)
	if err != nil {
		return nil, err
	}
	rep, err := store.Check(dir, store.CheckOptions{Data: data, Progress: p, Context: ctx})
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, errdefs.ErrDataLoss):
		return &cli.DriveReport{Dir: dir, Problems: []string{err.Error()}, Notes: []string{}, CheckedAt: time.Now().UTC()}, nil
	case err != nil:
		return nil, err
	}
	out := &cli.DriveReport{
		Dir: dir, DriveID: rep.Drive.String(), ClusterID: rep.Cluster.String(), Format: strconv.FormatUint(uint64(rep.Format), 10),
		Replicas: rep.Replicas, Allocated: rep.Extents * store.ExtentSize, Data: data,
		Problems: append([]string{}, rep.Problems...), Notes: append([]string{}, rep.Notes...), CheckedAt: time.Now().UTC(),
	}
	if !rep.Clean {
		out.Notes = append(out.Notes, "not closed properly; the agent will recover it when it opens it")
	}
	if rep.Dropped > 0 {
		out.Notes = append(out.Notes, fmt.Sprintf("%d journal records are not covered by a flush and will be dropped", rep.Dropped))
	}
	if data {
		out.Notes = append(out.Notes, fmt.Sprintf("%d extents verified, %d have no checksum", rep.Verified, rep.Unsummed))
	}
	return out, nil
}

// Replicas implements cli.DriveTool.
func (Drives) Replicas(_ context.Context, dir string) ([]cli.DriveReplica, error) {
	dir, err := storeDir(dir)
	if err != nil {
		return nil, err
	}
	infos, err := store.Contents(dir, nil)
	if err != nil {
		return nil, err
	}
	out := make([]cli.DriveReplica, 0, len(infos))
	for _, i := range infos {
		r := cli.DriveReplica{
			ID: i.ID.String(), VolumeID: i.VolumeID.String(), Size: i.Size, Allocated: i.Mapped,
			Snapshots: make([]cli.DriveSnapshot, 0, len(i.Layers)),
		}
		for _, l := range i.Layers {
			r.Snapshots = append(r.Snapshots, cli.DriveSnapshot{ID: l.Snapshot.String(), Size: l.Size, Created: l.Frozen.UTC()})
		}
		out = append(out, r)
	}
	return out, nil
}

// Export implements cli.DriveTool. The image appears under its name when it is
// whole and on the disk; after a failure there is nothing.
func (Drives) Export(ctx context.Context, o cli.ExportOptions, p cli.Progress) (err error) {
	dir, err := storeDir(o.Dir)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(o.To); err == nil {
		return fmt.Errorf("%s: %w", o.To, fs.ErrExist)
	}
	id, err := store.ParseID(o.Replica)
	if err != nil {
		return err
	}
	opts := store.ExportOptions{Progress: func(done, total int64) error {
		p(done, total)
		return ctx.Err()
	}}
	if o.Snapshot != "" {
		snap, err := store.ParseID(o.Snapshot)
		if err != nil {
			return err
		}
		opts.Snapshot = &snap
	}
	tmp := o.To + ".part"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = store.ExportRaw(dir, id, f, opts)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = appear(tmp, o.To)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return nil
}

// appear gives a file its name unless that is taken. Where the file system
// cannot do the two in one step, a file made in between would be replaced.
func appear(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	switch {
	case err == nil:
		return nil
	case !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS):
		return &fs.PathError{Op: "rename to", Path: to, Err: err}
	}
	if _, err := os.Lstat(to); err == nil {
		return &fs.PathError{Op: "rename to", Path: to, Err: fs.ErrExist}
	}
	return os.Rename(from, to)
}
