package store

import (
	"errors"
	"path"
	"slices"
	"sync/atomic"

	"github.com/moraine-storage/moraine/drivers/vfs"
)

// A checkpoint is the whole state after one record of the journal:
//
//	header (512 B) | meta: u32 length, u32 CRC, bytes | nodes in blocks of 256 pages, each block followed by its CRC
//
// Nodes are numbered from 1: leaves, then mids, then roots; inner nodes and
// meta name them by number. See contrib/design/0002-store-format.md.
const (
	ckptHeaderSize = 512
	ckptVersion    = 1
	ckptBlock      = 256 // nodes: 1 MiB
	maxCkptMeta    = 1 << 30
)

var ckptMagic = [8]byte{'M', 'O', 'R', 'C', 'K', 'P', 'T', '1'}

type ckptInfo struct {
	num        uint64
	seq        uint64 // last record it includes
	nextSeg    uint64 // segment where the records after it begin
	nextHandle uint32
	drive      ID
	nodes      [3]uint32 // leaves, mids, roots
	size       int64     // bytes of the file; not stored
}

func (h *ckptInfo) encode() []byte {
	b := make([]byte, 0, ckptHeaderSize)
	b = append(b, ckptMagic[:]...)
	b = le.AppendUint32(b, ckptVersion)
	b = le.AppendUint32(b, h.nextHandle)
	b = le.AppendUint64(b, h.num)
	b = le.AppendUint64(b, h.seq)
	b = le.AppendUint64(b, h.nextSeg)
	b = append(b, h.drive[:]...)
	for _, n := range h.nodes {
		b = le.AppendUint32(b, n)
	}
	b = append(b, make([]byte, ckptHeaderSize-4-len(b))...)
	return le.AppendUint32(b, checksum(b))
}

func decodeCkptHeader(file string, b []byte) (*ckptInfo, error) {
	if len(b) < ckptHeaderSize {
		return nil, corrupt(file, 0, "checkpoint cut short at %d bytes", len(b))
	}
	b = b[:ckptHeaderSize]
	if [8]byte(b[:8]) != ckptMagic {
		return nil, corrupt(file, 0, "no checkpoint")
	}
	if le.Uint32(b[ckptHeaderSize-4:]) != checksum(b[:ckptHeaderSize-4]) {
		return nil, corrupt(file, 0, "checkpoint header checksum")
	}
	if v := le.Uint32(b[8:]); v > ckptVersion {
		return nil, tooNew(file, v, ckptVersion)
	}
	d := reader{b: b[12:]}
	h := &ckptInfo{nextHandle: d.u32(), num: d.u64(), seq: d.u64(), nextSeg: d.u64(), drive: d.id()}
	for i := range h.nodes {
		h.nodes[i] = d.u32()
	}
	return h, nil
}

// image is a state at one moment, kept still by trees.pin while it is written.
type image struct {
	ckptInfo
	ar       *arena
	epochs   []Epoch
	replicas []*replicaState // copies
}

// capture copies what is not kept still by the pin. It needs the store's mutex.
func (s *state) capture() *image {
	im := &image{ar: s.ar, epochs: slices.Clone(s.epochs)}
	im.nextHandle = s.nextHandle
	for _, rs := range s.byHandle {
		c := *rs
		c.top.dirty = slices.Clone(rs.top.dirty)
		c.layers = nil
		for _, l := range rs.layers {
			lc := *l
			lc.dirty = slices.Clone(l.dirty)
			c.layers = append(c.layers, &lc)
		}
		im.replicas = append(im.replicas, &c)
	}
	slices.SortFunc(im.replicas, func(a, b *replicaState) int { return int(int64(a.handle) - int64(b.handle)) })
	return im
}

// numbering gives each reachable node its number in the file.
type numbering struct {
	of    []uint32 // by nodeID
	nodes [3][]nodeID
}

func (im *image) number(most nodeID) *numbering {
	n := &numbering{of: make([]uint32, most)}
	add := func(id nodeID, level int) bool {
		if id == 0 || n.of[id] != 0 {
			return false
		}
		n.of[id] = 1
		n.nodes[level] = append(n.nodes[level], id)
		return true
	}
	for _, rs := range im.replicas {
		for _, l := range append([]*layerState{&rs.top}, rs.layers...) {
			for _, root := range []nodeID{l.view, l.stamps} {
				if !add(root, levelRoot) {
					continue
				}
				for _, mid := range im.ar.inner(root) {
					if !add(mid, levelMid) {
						continue
					}
					for _, lf := range im.ar.inner(mid) {
						add(lf, levelLeaf)
					}
				}
			}
		}
	}
	next := uint32(1)
	for level := range n.nodes {
		im.nodes[level] = uint32(len(n.nodes[level]))
		for _, id := range n.nodes[level] {
			n.of[id] = next
			next++
		}
	}
	return n
}

func (im *image) meta(n *numbering) []byte {
	b := le.AppendUint32(nil, uint32(len(im.epochs)))
	for _, e := range im.epochs {
		b = le.AppendUint64(b, e.N)
		b = le.AppendUint64(b, e.Tag)
	}
	b = le.AppendUint32(b, uint32(len(im.replicas)))
	for _, rs := range im.replicas {
		b = le.AppendUint32(b, rs.handle)
		b = append(b, rs.spec.ID[:]...)
		b = append(b, rs.spec.VolumeID[:]...)
		b = le.AppendUint64(b, uint64(rs.spec.Size))
		b = le.AppendUint64(b, uint64(rs.spec.Grain))
		b = append(b, bool8(rs.spec.Untracked))
		b = rs.prom.encode(b)
		b = appendBytes(b, rs.record)
		b = le.AppendUint32(b, uint32(len(rs.layers)))
		for _, l := range append([]*layerState{&rs.top}, rs.layers...) {
			b = append(b, l.snap[:]...)
			b = le.AppendUint64(b, uint64(l.when))
			b = le.AppendUint64(b, uint64(l.size))
			b = le.AppendUint32(b, n.of[l.view])
			b = le.AppendUint32(b, n.of[l.stamps])
			b = le.AppendUint64(b, uint64(l.mapped))
			b = le.AppendUint32(b, uint32(len(l.dirty)))
			for i := range l.dirty {
				b = le.AppendUint64(b, atomic.LoadUint64(&l.dirty[i]))
			}
		}
	}
	return b
}

// write stores the image under its number, durably, and returns its size.
func (im *image) write(fs vfs.FS, dir string, most nodeID) (size int64, err error) {
	name := path.Join(dir, ckptName(im.num))
	f, err := fs.Open(name+".tmp", vfs.Create)
	if err != nil {
		return 0, err
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			_ = fs.Remove(name + ".tmp") // best effort: open removes it too
		}
	}()
	if err := f.Truncate(0); err != nil {
		return 0, err
	}
	n := im.number(most)
	w := &ckptWriter{f: f}
	w.add(im.encode())
	m := im.meta(n)
	w.add(le.AppendUint32(le.AppendUint32(nil, uint32(len(m))), checksum(m)))
	w.add(m)
	w.nodes(im.ar, n)
	w.flush()
	if w.err != nil {
		return 0, w.err
	}
	if err := f.Sync(); err != nil {
		return 0, err
	}
	if err := fs.Rename(name+".tmp", name); err != nil {
		return 0, err
	}
	return w.off, fs.SyncDir(dir)
}

type ckptWriter struct {
	f   vfs.File
	buf []byte
	off int64
	err error
}

func (w *ckptWriter) add(b []byte) {
	w.buf = append(w.buf, b...)
	if len(w.buf) >= 1<<20 {
		w.flush()
	}
}

func (w *ckptWriter) flush() {
	if w.err == nil && len(w.buf) > 0 {
		_, w.err = w.f.WriteAt(w.buf, w.off)
		w.off += int64(len(w.buf))
	}
	w.buf = w.buf[:0]
}

func (w *ckptWriter) nodes(ar *arena, n *numbering) {
	block := make([]byte, 0, ckptBlock*nodeSize)
	end := func() {
		if len(block) > 0 {
			w.add(block)
			w.add(le.AppendUint32(nil, checksum(block)))
			block = block[:0]
		}
	}
	for level, ids := range n.nodes {
		for _, id := range ids {
			if level == levelLeaf {
				lf := ar.leaf(id)
				for i := range lf {
					block = le.AppendUint64(block, atomic.LoadUint64(&lf[i]))
				}
			} else {
				for _, ch := range ar.inner(id) {
					block = le.AppendUint32(block, n.of[ch])
				}
			}
			if len(block) == cap(block) {
				end()
			}
		}
	}
	end()
}
