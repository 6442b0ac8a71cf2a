package store

import (
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/vfs"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// View reads one state of a replica, which stays as it is while the view is
// open, whatever happens to the replica. Any goroutine; calls are serialised.
// Whole extents that carry a checksum are verified: a mismatch is an error
// (block.ErrIO and errdefs.ErrDataLoss), never wrong bytes.
type View struct {
	t     *trees
	data  vfs.File
	root  nodeID
	size  int64
	snap  ID
	bad   *atomic.Int64 // checksum mismatches; may be nil
	close func()        // gives the root up

	mu     sync.Mutex
	buf    []byte
	free   func()
	closed bool
}

// View opens a snapshot, or (nil) the present contents, which needs the
// replica to be without an open queue.
func (r *Replica) View(snap *ID) (*View, error) { return r.view(snap, false) }

// Now opens the present contents while a queue is open. Only the owner of the
// queue may call it, on its goroutine, with no request in flight: like Freeze,
// it makes what the queue writes from now on go elsewhere, until the view is
// closed.
func (r *Replica) Now() (*View, error) { return r.view(nil, true) }

func (r *Replica) view(snap *ID, owner bool) (*View, error) {
	var id ID
	if snap != nil {
		if snap.IsZero() {
			return nil, fmt.Errorf("view of replica %s: snapshot without id: %w", r.ID(), errdefs.ErrInvalidArgument)
		}
		id = *snap
	}
	s := r.s
	s.mu.Lock()
	defer s.mu.Unlock()
	l := r.rs.layer(id)
	switch {
	case s.closed || r.deleted || l == nil:
		return nil, fmt.Errorf("view of replica %s: snapshot %s: %w", r.ID(), id, errdefs.ErrNotFound)
	case snap == nil && (r.queue != nil && !owner || r.receiving):
		return nil, fmt.Errorf("view of replica %s: in use, take a snapshot: %w", r.ID(), errdefs.ErrFailedPrecondition)
	case owner && r.queue != nil && r.queue.inflight != 0:
		// A write in place that is still under way would show in the view.
		return nil, fmt.Errorf("view of replica %s: %d requests in flight: %w", r.ID(), r.queue.inflight, errdefs.ErrFailedPrecondition)
	}
	v := newView(&s.st.trees, s.data, s.st.share(l.view), l.size, id)
	v.bad = &s.sums
	s.views++
	v.close = func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.views--
		s.st.unreachable(v.root, true)
	}
	return v, nil
}

func newView(t *trees, data vfs.File, root nodeID, size int64, snap ID) *View {
	v := &View{t: t, data: data, root: root, size: size, snap: snap}
	v.buf, v.free = alignedBuf(ExtentSize)
	return v
}

// Size in bytes.
func (v *View) Size() int64 { return v.size }

// Snapshot is the id of what is viewed; zero: the top.
func (v *View) Snapshot() ID { return v.snap }

// ReadAt implements io.ReaderAt.
func (v *View) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at %d: %w", off, block.ErrInvalid)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		return 0, block.ErrClosed
	}
	n := 0
	for n < len(p) && off < v.size {
		in := int(off & (ExtentSize - 1))
		k := min(len(p)-n, ExtentSize-in, int(min(v.size-off, ExtentSize)))
		e := v.t.get(v.root, uint64(off)>>extentShift)
		if e == 0 {
			clear(p[n : n+k])
		} else {
			if err := v.extent(e, uint64(off)>>extentShift); err != nil {
				return n, err
			}
			copy(p[n:n+k], v.buf[in:])
		}
		n += k
		off += int64(k)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// extent reads and verifies one extent into v.buf.
func (v *View) extent(e, lext uint64) error {
	if err := readExtent(v.data, physOf(e), v.buf); err != nil {
		return fmt.Errorf("read extent %d at %d: %w: %w", lext, physOf(e), block.ErrIO, err)
	}
	if e&entrySummed != 0 && checksum(v.buf) != uint32(e>>32) {
		if v.bad != nil {
			v.bad.Add(1)
		}
		return fmt.Errorf("extent %d at %d: wrong checksum: %w: %w", lext, physOf(e), block.ErrIO, errdefs.ErrDataLoss)
	}
	return nil
}

// Extents appends the runs of data and holes of a range, in order.
func (v *View) Extents(dst []block.Extent, off, length int64, limit int) ([]block.Extent, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed || off < 0 || length < 0 || off > v.size || length > v.size-off {
		return dst, fmt.Errorf("extents [%d,+%d): %w", off, length, block.ErrInvalid)
	}
	return extentsOf(v.t, v.root, dst, off, length, limit), nil
}

// Close gives the view up. Idempotent.
func (v *View) Close() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		return nil
	}
	v.closed = true
	v.free()
	if v.close != nil {
		v.close()
	}
	return nil
}

// diff calls fn for each run of extents that differ from base (nil: nothing),
// in order, neighbours of one kind merged. Subtrees that both share are not
// looked at, so the work follows the number of changes.
func (v *View) diff(base *View, fn func(off, length int64, hole bool) error) error {
	d := &differ{t: v.t, fn: fn}
	var b nodeID
	if base != nil {
		b = base.root
	}
	d.node(b, v.root, levelRoot, 0)
	if base != nil && base.size > v.size && d.err == nil {
		d.err = fmt.Errorf("base is larger: %d > %d: %w", base.size, v.size, errdefs.ErrInvalidArgument)
	}
	d.flush()
	return d.err
}

type differ struct {
	t        *trees
	fn       func(off, length int64, hole bool) error
	off, len int64 // run not reported yet
	hole     bool
	nodes    int // looked at
	err      error
}

func (d *differ) flush() {
	if d.len > 0 && d.err == nil {
		d.err = d.fn(d.off, d.len, d.hole)
	}
	d.len = 0
}

func (d *differ) add(lext uint64, hole bool) {
	off := int64(lext) << extentShift
	if d.len == 0 || d.hole != hole || d.off+d.len != off {
		d.flush()
		d.off, d.hole = off, hole
	}
	d.len += ExtentSize
}

func (d *differ) node(a, b nodeID, level int, base uint64) {
	if a == b || d.err != nil {
		return
	}
	d.nodes++
	if level == levelLeaf {
		var none leaf
		la, lb := &none, &none
		if a != 0 {
			la = d.t.ar.leaf(a)
		}
		if b != 0 {
			lb = d.t.ar.leaf(b)
		}
		for i := range la {
			ea, eb := atomic.LoadUint64(&la[i])&entryPhys, atomic.LoadUint64(&lb[i])&entryPhys
			if ea != eb {
				d.add(base+uint64(i), eb == 0)
			}
		}
		return
	}
	shift := leafShift
	if level == levelRoot {
		shift += innerShift
	}
	var none inner
	ia, ib := &none, &none
	if a != 0 {
		ia = d.t.ar.inner(a)
	}
	if b != 0 {
		ib = d.t.ar.inner(b)
	}
	for i := range ia {
		d.node(ia[i], ib[i], level-1, base+uint64(i)<<shift)
	}
}

// Diff calls fn for each range in which snapshot to (nil: the present
// contents) differs from snapshot from (nil: an empty volume); hole says that
// it became a hole. Granularity is an extent.
func (r *Replica) Diff(from, to *ID, fn func(off, length int64, hole bool) error) error {
	v, err := r.View(to)
	if err != nil {
		return err
	}
	defer func() { _ = v.Close() }() // never fails
	return r.DiffView(from, v, fn)
}

// DiffView is Diff to a view of this replica.
func (r *Replica) DiffView(from *ID, to *View, fn func(off, length int64, hole bool) error) error {
	var base *View
	if from != nil {
		var err error
		if base, err = r.View(from); err != nil {
			return err
		}
		defer func() { _ = base.Close() }() // never fails
	}
	return to.diff(base, fn)
}
