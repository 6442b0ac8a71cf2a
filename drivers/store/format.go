package store

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"time"

	"github.com/moraine-storage/moraine/drivers/vfs"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// FormatOptions say what a new drive is.
type FormatOptions struct {
	ClusterID   ID
	DriveID     ID    // zero: drawn at random
	SizeLimit   int64 // bytes of data the drive may hold; 0: what the file system has
	Incarnation uint64
	FS          vfs.FS // nil: the real one
}

// validate checks a specification.
func (p *ReplicaSpec) validate() error {
	switch {
	case p.ID.IsZero():
		return fmt.Errorf("replica without id: %w", errdefs.ErrInvalidArgument)
	case p.Size <= 0 || p.Size%ExtentSize != 0 || p.Size > MaxReplicaSize:
		return fmt.Errorf("replica %s: size %d: want a multiple of %d up to %d: %w", p.ID, p.Size, ExtentSize, MaxReplicaSize, errdefs.ErrOutOfRange)
	case p.Grain <= 0 || p.Grain%ExtentSize != 0 || p.Grain > 1<<30:
		return fmt.Errorf("replica %s: grain %d: want a multiple of %d up to 1 GiB: %w", p.ID, p.Grain, ExtentSize, errdefs.ErrOutOfRange)
	}
	return nil
}

// Format makes a store in an empty directory. One that holds a store is
// refused with AlreadyExists, one that holds anything else with
// FailedPrecondition; lost+found is nothing.
func Format(dir string, o FormatOptions) error {
	if o.FS == nil {
		o.FS = vfs.OS{}
	}
	if o.SizeLimit < 0 || o.SizeLimit > maxExtents*ExtentSize {
		return fmt.Errorf("format %s: size limit %d: %w", dir, o.SizeLimit, errdefs.ErrOutOfRange)
	}
	if o.DriveID.IsZero() {
		o.DriveID = NewID()
	}
	if err := o.FS.Mkdir(dir); err != nil {
		return fmt.Errorf("format %s: %w", dir, err)
	}
	lock, err := o.FS.Lock(path.Join(dir, "lock"))
	if err != nil {
		return lockErr(dir, err)
	}
	err = formatLocked(dir, o)
	return errors.Join(err, lock.Close())
}

func formatLocked(dir string, o FormatOptions) error {
	names, err := o.FS.List(dir)
	if err != nil {
		return fmt.Errorf("format %s: %w", dir, err)
	}
	if slices.Contains(names, "superblock") {
		return fmt.Errorf("format %s: holds a Moraine store: %w", dir, errdefs.ErrAlreadyExists)
	}
	for _, n := range names {
		// data, meta and superblock.tmp are what a crash in Format leaves.
		if n != "lost+found" && n != "lock" && n != "data" && n != "meta" && n != "superblock.tmp" {
			return fmt.Errorf("format %s: holds %q: %w", dir, n, errdefs.ErrFailedPrecondition)
		}
	}
	if slices.Contains(names, "data") {
		if err := checkBlankData(o.FS, dir); err != nil {
			return err
		}
	}
	meta := path.Join(dir, "meta")
	if err := o.FS.Mkdir(meta); err != nil {
		return fmt.Errorf("format %s: %w", dir, err)
	}
	if err := formatMeta(o.FS, meta, o.DriveID); err != nil {
		return fmt.Errorf("format %s: %w", dir, err)
	}
	return formatSuper(dir, o)
}

// checkBlankData refuses a file named data that is not left from a Format.
func checkBlankData(fsys vfs.FS, dir string) (err error) {
	f, err := fsys.Open(path.Join(dir, "data"), vfs.ReadOnly)
	if err != nil {
		return fmt.Errorf("format %s: %w", dir, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	size, err := f.Size()
	if err != nil {
		return fmt.Errorf("format %s: %w", dir, err)
	}
	if size != 0 {
		return fmt.Errorf("format %s: holds %q of %d bytes: %w", dir, "data", size, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// formatMeta writes an empty checkpoint and the first segment.
func formatMeta(fsys vfs.FS, meta string, drive ID) error {
	names, err := fsys.List(meta)
	if err != nil {
		return err
	}
	for _, n := range names {
		if _, ok := parseNum(n, "journal-"); !ok && n != ckptName(1) && path.Ext(n) != ".tmp" {
			return fmt.Errorf("meta holds %q: %w", n, errdefs.ErrFailedPrecondition)
		}
		if err := fsys.Remove(path.Join(meta, n)); err != nil {
			return err
		}
	}
	st := newState()
	defer st.close()
	im := st.capture()
	im.num, im.seq, im.nextSeg, im.drive = 1, 0, 1, drive
	if _, err := im.write(fsys, meta, 1); err != nil {
		return err
	}
	j := journal{fs: fsys, dir: meta, head: segHeader{kind: segOpen, num: 1, first: 1, drive: drive}}
	if err := j.begin(nil); err != nil {
		return err
	}
	return j.f.Close()
}

// formatSuper creates data and, last, the superblock: a directory is a store
// from then on.
func formatSuper(dir string, o FormatOptions) error {
	data, err := o.FS.Open(path.Join(dir, "data"), vfs.Create)
	if err != nil {
		return fmt.Errorf("format %s: %w", dir, err)
	}
	if err := data.Close(); err != nil {
		return fmt.Errorf("format %s: %w", dir, err)
	}
	name := path.Join(dir, "superblock")
	f, err := o.FS.Open(name+".tmp", vfs.Create)
	if err != nil {
		return fmt.Errorf("format %s: %w", dir, err)
	}
	sb := superblock{version: superVersion, cluster: o.ClusterID, drive: o.DriveID, incarnation: o.Incarnation,
		sizeLimit: o.SizeLimit, segment: 1, clean: true, lossID: newLossID(), created: time.Now().Unix()}
	if err := errors.Join(sb.write(f), f.Close()); err != nil {
		return fmt.Errorf("format %s: %w", dir, err)
	}
	if err := o.FS.Rename(name+".tmp", name); err != nil {
		return fmt.Errorf("format %s: %w", dir, err)
	}
	if err := o.FS.SyncDir(dir); err != nil {
		return fmt.Errorf("format %s: %w", dir, err)
	}
	return o.FS.SyncDir(path.Dir(dir)) // the directory itself may be new
}

func newLossID() uint64 {
	id := NewID()
	return le.Uint64(id[:])
}

func lockErr(dir string, err error) error {
	if errors.Is(err, vfs.ErrLocked) {
		return fmt.Errorf("open store %s: another process has it open: %w: %w", dir, err, errdefs.ErrFailedPrecondition)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("open store %s: %w: %w", dir, err, errdefs.ErrNotFound)
	}
	return fmt.Errorf("open store %s: %w", dir, err)
}
