package store

import (
	"context"
	"errors"
	"fmt"
	"path"
	"sync/atomic"

	"github.com/moraine-storage/moraine/drivers/vfs"
)

// CheckOptions say how deep to look.
type CheckOptions struct {
	FS     vfs.FS // nil: the real one
	BootID string // empty: the kernel's
	// Data verifies the checksums of frozen extents: it reads them all.
	Data     bool
	Progress func(done, total int64) // bytes; may be nil
	Context  context.Context         // nil: no end
}

// Report is what Check found. Problems name places and reasons; an empty list
// is a sound store.
type Report struct {
	Drive    ID
	Cluster  ID
	Format   uint32
	Clean    bool // closed properly
	Replicas int
	Layers   int
	Extents  int64 // named by something
	Shared   int64 // named by more than one view's own map
	Verified int64 // extents whose checksum was compared
	Unsummed int64 // extents without a checksum
	Journal  int64 // bytes
	Dropped  int   // journal records that no flush covers, dropped at the next opening
	Notes    []string
	Problems []string
}

// Check verifies a store that no process has open. It never writes. An error
// means that the metadata could not be read as a whole: it names the file, the
// offset and the reason.
func Check(dir string, o CheckOptions) (_ *Report, err error) {
	if o.FS == nil {
		o.FS = vfs.OS{}
	}
	off, err := openOffline(o.FS, dir, o.BootID)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, off.close()) }()
	c := &checker{o: o, l: off.l, data: off.data, rep: &Report{}}
	c.run(dir)
	return c.rep, nil
}

// offline is a store read without an opening; nothing on it changes.
type offline struct {
	l    *loaded
	data vfs.File
	lock interface{ Close() error }
}

func openOffline(fs vfs.FS, dir, bootID_ string) (*offline, error) {
	boot, err := bootID(bootID_)
	if err != nil {
		return nil, err
	}
	if _, err := readSuperblock(fs, dir); err != nil {
		return nil, err
	}
	lock, err := fs.Lock(path.Join(dir, "lock"))
	if err != nil {
		return nil, lockErr(dir, err)
	}
	o := &offline{lock: lock}
	m, err := fs.Medium(dir)
	if err == nil {
		o.l, err = load(fs, dir, where{boot: boot, diskSeq: m.DiskSeq})
	}
	if err == nil {
		o.data, err = fs.Open(path.Join(dir, "data"), vfs.ReadOnly|vfs.Direct)
		if errors.Is(err, vfs.ErrNoDirect) {
			o.data, err = fs.Open(path.Join(dir, "data"), vfs.ReadOnly)
		}
	}
	if err != nil {
		return nil, errors.Join(err, o.close())
	}
	return o, nil
}

func (o *offline) close() error {
	var err error
	if o.data != nil {
		err = o.data.Close()
	}
	if o.l != nil {
		o.l.st.close()
	}
	return errors.Join(err, o.lock.Close())
}

type checker struct {
	o     CheckOptions
	l     *loaded
	data  vfs.File
	rep   *Report
	size  int64    // of the data file
	owner []uint32 // logical extent + 1 that each physical one stands for
}

// problem notes what is wrong; a hundred are enough.
func (c *checker) problem(format string, args ...any) {
	if len(c.rep.Problems) < 100 {
		c.rep.Problems = append(c.rep.Problems, fmt.Sprintf(format, args...))
	}
}

func (c *checker) run(dir string) {
	r, sb, st := c.rep, c.l.sb, c.l.st
	r.Drive, r.Cluster, r.Format, r.Clean = sb.drive, sb.cluster, sb.version, sb.clean
	r.Replicas, r.Journal, r.Dropped = len(st.byID), c.l.bytes, c.l.dropped
	if _, other, _ := readSuperblocks(c.o.FS, dir); other != nil {
		c.problem("one copy of the superblock is damaged: %v", other)
	}
	if sb.clean && c.l.dropped > 0 {
		c.problem("closed properly, but %d journal records are not covered by a flush", c.l.dropped)
	}
	for _, n := range c.l.stale {
		r.Notes = append(r.Notes, "meta/"+n+" no longer counts")
	}
	var err error
	if c.size, err = c.data.Size(); err != nil {
		c.problem("data: %v", err)
		return
	}
	c.owner = make([]uint32, 0, 1024)
	err = st.tally(func(rs *replicaState, l *layerState, base uint64, id nodeID) error {
		c.leaf(rs, l, base, id)
		return nil
	})
	if err != nil {
		c.problem("%v", err)
	}
	for _, rs := range st.byID {
		for _, l := range append([]*layerState{&rs.top}, rs.layers...) {
			r.Layers++
			c.layer(rs, l)
		}
	}
	r.Layers -= len(st.byID) // tops are no layers
	if c.o.Data {
		c.verify()
	}
}

// leaf checks one map page: each extent stands for one place only.
func (c *checker) leaf(rs *replicaState, l *layerState, base uint64, id nodeID) {
	for i, e := range c.l.st.ar.leaf(id) {
		if e == 0 {
			continue
		}
		lext := base + uint64(i)
		if e&entryPhys == 0 || e&entryPhys > maxExtents || e&entrySummed == 0 && e>>32 != 0 {
			c.problem("replica %s snapshot %s: entry %#x at extent %d", rs.spec.ID, l.snap, e, lext)
			continue
		}
		p := physOf(e)
		if int64(p)<<extentShift >= c.size {
			c.problem("replica %s: extent %d lies at %d, past the end of the data file", rs.spec.ID, lext, p)
			continue
		}
		if int(p) >= len(c.owner) {
			c.owner = append(c.owner, make([]uint32, int(p)+1-len(c.owner))...)
		}
		switch c.owner[p] {
		case 0:
			c.owner[p] = uint32(lext) + 1
			c.rep.Extents++
		case uint32(lext) + 1:
			c.rep.Shared++
		default:
			c.problem("replica %s: extent %d lies at %d, which also holds extent %d", rs.spec.ID, lext, p, c.owner[p]-1)
		}
	}
}

// layer checks what a layer says of its map.
func (c *checker) layer(rs *replicaState, l *layerState) {
	n := int64(0)
	err := c.l.st.walk(l.view, 0, uint64(MaxReplicaSize)>>extentShift, func(base uint64, id nodeID) error {
		for i, e := range c.l.st.ar.leaf(id) {
			if e == 0 {
				continue
			}
			n++
			if int64(base+uint64(i))<<extentShift >= l.size {
				c.problem("replica %s snapshot %s: extent %d is past the end", rs.spec.ID, l.snap, base+uint64(i))
			}
		}
		return nil
	})
	if err != nil {
		c.problem("%v", err)
	}
	if n != l.mapped {
		c.problem("replica %s snapshot %s: %d extents mapped, %d recorded", rs.spec.ID, l.snap, n, l.mapped)
	}
	err = c.l.st.walk(l.stamps, 0, uint64(MaxReplicaSize)>>regionShift, func(base uint64, id nodeID) error {
		for i, e := range c.l.st.ar.leaf(id) {
			if e>>32 >= uint64(len(c.l.st.epochs)) {
				c.problem("replica %s snapshot %s: stamp of region %d names epoch %d of %d", rs.spec.ID, l.snap, base+uint64(i), e>>32, len(c.l.st.epochs))
			}
		}
		return nil
	})
	if err != nil {
		c.problem("%v", err)
	}
}

// verify compares every checksum once.
func (c *checker) verify() {
	buf, free := alignedBuf(ExtentSize)
	defer free()
	seen := make([]uint64, len(c.owner)/64+1)
	err := c.l.st.tally(func(rs *replicaState, l *layerState, base uint64, id nodeID) error {
		lf := c.l.st.ar.leaf(id)
		for i := range lf {
			e := atomic.LoadUint64(&lf[i])
			if e == 0 || physOf(e) >= uint32(len(c.owner)) {
				continue
			}
			if e&entrySummed == 0 {
				c.rep.Unsummed++
				continue
			}
			p := physOf(e)
			if seen[p/64]&(1<<(p%64)) != 0 {
				continue
			}
			seen[p/64] |= 1 << (p % 64)
			if c.o.Context != nil && c.o.Context.Err() != nil {
				return c.o.Context.Err()
			}
			if err := readExtent(c.data, p, buf); err != nil {
				c.problem("replica %s: extent %d at %d: %v", rs.spec.ID, base+uint64(i), p, err)
				continue
			}
			c.rep.Verified++
			if checksum(buf) != uint32(e>>32) {
				c.problem("replica %s snapshot %s: extent %d at %d: wrong checksum", rs.spec.ID, l.snap, base+uint64(i), p)
			}
			if c.o.Progress != nil {
				c.o.Progress(c.rep.Verified<<extentShift, c.rep.Extents<<extentShift)
			}
		}
		return nil
	})
	if err != nil {
		c.problem("not finished: %v", err)
	}
}
