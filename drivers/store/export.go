package store

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/vfs"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// ImageWriter is where an image goes: an *os.File, for example.
type ImageWriter interface {
	WriteAt(p []byte, off int64) (int, error)
	Truncate(size int64) error
}

// ExportOptions say how to read the drive.
type ExportOptions struct {
	FS       vfs.FS // nil: the real one
	BootID   string // empty: the kernel's
	Snapshot *ID    // nil: the present contents
	// Progress is told the bytes written and to write; may be nil. An error
	// ends the export.
	Progress func(done, total int64) error
}

// ExportRaw writes a replica as a sparse raw image, from a drive that no
// process has open, closed cleanly or not. The drive is not changed.
func ExportRaw(dir string, replica ID, w ImageWriter, o ExportOptions) (err error) {
	if o.FS == nil {
		o.FS = vfs.OS{}
	}
	off, err := openOffline(o.FS, dir, o.BootID)
	if err != nil {
		return fmt.Errorf("export replica %s: %w", replica, err)
	}
	defer func() { err = errors.Join(err, off.close()) }()
	rs := off.l.st.byID[replica]
	if rs == nil {
		return fmt.Errorf("export replica %s: %w", replica, errdefs.ErrNotFound)
	}
	l := &rs.top
	if o.Snapshot != nil {
		if l = rs.layer(*o.Snapshot); l == nil || o.Snapshot.IsZero() {
			return fmt.Errorf("export replica %s: snapshot %s: %w", replica, *o.Snapshot, errdefs.ErrNotFound)
		}
	}
	v := newView(&off.l.st.trees, off.data, l.view, l.size, l.snap)
	defer func() { err = errors.Join(err, v.Close()) }()
	if err := WriteImage(w, v, o.Progress); err != nil {
		return fmt.Errorf("export replica %s: %w", replica, err)
	}
	return nil
}

// WriteImage writes a view as a sparse raw image: w is truncated to nothing
// and then to the size, and only data is written.
func WriteImage(w ImageWriter, v *View, progress func(done, total int64) error) error {
	if err := w.Truncate(0); err != nil {
		return err
	}
	if err := w.Truncate(v.Size()); err != nil {
		return err
	}
	ext, err := v.Extents(nil, 0, v.Size(), 0)
	if err != nil {
		return err
	}
	ext = slices.DeleteFunc(ext, func(e block.Extent) bool { return e.Hole })
	var done, total int64
	for _, e := range ext {
		total += e.Len
	}
	buf := make([]byte, 16*ExtentSize)
	for _, e := range ext {
		for at := e.Off; at < e.Off+e.Len; {
			b := buf[:min(int64(len(buf)), e.Off+e.Len-at)]
			if _, err := v.ReadAt(b, at); err != nil {
				return err
			}
			if _, err := w.WriteAt(b, at); err != nil {
				return err
			}
			at += int64(len(b))
			done += int64(len(b))
			if progress != nil {
				if err := progress(done, total); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// Contents lists the replicas of a drive that no process has open. Nothing is
// changed.
func Contents(dir string, fs vfs.FS) (_ []ReplicaInfo, err error) {
	if fs == nil {
		fs = vfs.OS{}
	}
	off, err := openOffline(fs, dir, "")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, off.close()) }()
	var out []ReplicaInfo
	for _, rs := range off.l.st.byID {
		i := ReplicaInfo{ReplicaSpec: rs.spec, Mapped: rs.top.mapped << extentShift, Dirty: rs.top.countDirty(),
			Promised: rs.prom, Record: bytes.Clone(rs.record), LossID: off.l.sb.lossID}
		for _, l := range rs.layers {
			i.Layers = append(i.Layers, LayerInfo{Snapshot: l.snap, Size: l.size, Frozen: time.Unix(0, l.when), Mapped: l.mapped << extentShift, Dirty: l.countDirty()})
		}
		out = append(out, i)
	}
	slices.SortFunc(out, func(a, b ReplicaInfo) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	return out, nil
}

// Synthesize formats a store that holds one replica with every one of bytes
// mapped, without writing data: what opening a large drive costs can be
// measured on a small one. For tests and benchmarks; the replica reads zeros.
func Synthesize(dir string, drive ID, bytes_ int64) (ID, error) {
	if bytes_ <= 0 || bytes_%ExtentSize != 0 || bytes_ > MaxReplicaSize {
		return ID{}, fmt.Errorf("synthesize %d bytes: %w", bytes_, errdefs.ErrInvalidArgument)
	}
	if err := Format(dir, FormatOptions{DriveID: drive}); err != nil {
		return ID{}, err
	}
	id := NewID()
	fs := vfs.OS{}
	st := newState()
	defer st.close()
	spec := ReplicaSpec{ID: id, VolumeID: id, Size: bytes_, Grain: ExtentSize, Untracked: true}
	if err := st.apply(&record{typ: recCreate, handle: 1, spec: spec}); err != nil {
		return ID{}, err
	}
	for i := range uint64(bytes_) >> extentShift {
		st.mapOne(st.byID[id], i, entryOf(uint32(i)))
	}
	im := st.capture()
	im.num, im.seq, im.nextSeg, im.drive = 2, 0, 1, drive
	if _, err := im.write(fs, dir+"/meta", st.ar.next); err != nil {
		return ID{}, err
	}
	data, err := fs.Open(dir+"/data", 0)
	if err != nil {
		return ID{}, err
	}
	return id, errors.Join(data.Truncate(bytes_), data.Close())
}
