package store

import (
	"errors"
	"fmt"
	"io"
	"path"
	"slices"

	"github.com/moraine-storage/moraine/drivers/vfs"
)

// loaded is a drive's metadata as read back, and where it came from.
type loaded struct {
	st       *state
	sb       *superblock
	ckpt     uint64    // number of the checkpoint it started from
	ckptSize int64     // bytes
	segs     []uint64  // segments from the checkpoint on, in order
	seq      uint64    // last sequence number seen, applied or not
	applied  uint64    // last sequence number that counts
	dropped  int       // records beyond the last covering flush, dropped (S2)
	relog    []*record // dirty marks beyond it: they count (I-DIRTY)
	live     bool      // same boot and device: nothing was lost
	bytes    int64     // of journal
	stale    []string  // files that no longer count
}

// where tells load which life of the host it is in.
type where struct {
	boot    ID
	diskSeq uint64
	// replayAll breaks rule S2; only mutation tests set it.
	replayAll bool
}

// load reads superblock, checkpoint and journal. It changes nothing on disk.
func load(fs vfs.FS, dir string, w where) (*loaded, error) {
	sb, err := readSuperblock(fs, dir)
	if err != nil {
		return nil, err
	}
	l := &loaded{sb: sb}
	meta := path.Join(dir, "meta")
	names, err := fs.List(meta)
	if err != nil {
		return nil, fmt.Errorf("load store %s: %w", dir, err)
	}
	var segs []uint64
	haveCkpt := false
	var older []string
	for _, n := range names {
		if num, ok := parseNum(n, "checkpoint-"); ok {
			if haveCkpt {
				older = append(older, ckptName(l.ckpt))
			}
			l.ckpt, haveCkpt = num, true // List sorts
		} else if num, ok := parseNum(n, "journal-"); ok {
			segs = append(segs, num)
		} else {
			l.stale = append(l.stale, n) // *.tmp of a crash
		}
	}
	if !haveCkpt {
		return nil, corrupt(meta, 0, "no checkpoint")
	}
	l.stale = append(l.stale, older...)
	st, info, err := readCheckpoint(fs, path.Join(meta, ckptName(l.ckpt)), sb.drive)
	if err != nil {
		return nil, err
	}
	l.st, l.ckptSize = st, info.size
	l.seq, l.applied = info.seq, info.seq
	for _, num := range segs {
		if num < info.nextSeg {
			l.stale = append(l.stale, segName(num))
		} else {
			l.segs = append(l.segs, num)
		}
	}
	if err := l.replay(fs, meta, info, w); err != nil {
		l.st.close()
		return nil, err
	}
	return l, nil
}

// segment is one journal file in memory while it is replayed.
type segment struct {
	name string
	head *segHeader
	data []byte
}

func (l *loaded) readSegments(fs vfs.FS, meta string, next uint64) ([]segment, error) {
	var out []segment
	for i, num := range l.segs {
		name := path.Join(meta, segName(num))
		if num != next+uint64(i) {
			return nil, corrupt(path.Join(meta, segName(next+uint64(i))), 0, "segment is missing")
		}
		data, err := readAll(fs, name)
		if err != nil {
			return nil, err
		}
		l.bytes += int64(len(data))
		h, err := decodeSegHeader(name, data)
		if errors.Is(err, errNoHeader) && i == len(l.segs)-1 && i > 0 {
			// Made ready for a rotation that a crash prevented.
			l.stale = append(l.stale, segName(num))
			l.segs = l.segs[:i]
			break
		}
		if errors.Is(err, errNoHeader) {
			return nil, corrupt(name, 0, "segment header is blank")
		}
		if err != nil {
			return nil, err
		}
		if h.num != num || h.drive != l.sb.drive {
			return nil, corrupt(name, 16, "segment %d of drive %s", h.num, h.drive)
		}
		out = append(out, segment{name, h, data})
	}
	if len(out) == 0 {
		return nil, corrupt(path.Join(meta, segName(next)), 0, "segment is missing")
	}
	if last := out[len(out)-1].head.num; last < l.sb.segment {
		return nil, corrupt(path.Join(meta, segName(l.sb.segment)), 0, "segment is missing: the last is %d", last)
	}
	return out, nil
}

// replay applies the journal. Segments between two openings form a group; all
// groups but the last are sealed by the opening that follows.
func (l *loaded) replay(fs vfs.FS, meta string, info *ckptInfo, w where) error {
	segs, err := l.readSegments(fs, meta, info.nextSeg)
	if err != nil {
		return err
	}
	for len(segs) > 0 {
		n := 1
		for n < len(segs) && segs[n].head.kind != segOpen {
			n++
		}
		group := segs[:n]
		segs = segs[n:]
		if len(segs) > 0 {
			err = l.replaySealed(group, segs[0].head.cover)
			l.seq = max(l.seq, segs[0].head.first-1)
		} else {
			err = l.replayLast(group, w)
		}
		if err != nil {
			return err
		}
	}
	if l.seq < l.sb.seq {
		return corrupt(path.Join(meta, segName(l.segs[len(l.segs)-1])), 0, "journal ends with record %d; record %d was durable", l.seq, l.sb.seq)
	}
	return nil
}

// found is one record in place.
type found struct {
	seg     *segment
	off     int64
	h       recHeader
	payload []byte
}

// scan calls fn for each sound record of a group in order. It returns where
// the first unsound one would be.
func scan(group []segment, fn func(found) error) (at found, err error) {
	next := group[0].head.first
	for i := range group {
		s := &group[i]
		if s.head.first != next {
			return found{seg: &group[max(i-1, 0)], off: at.off, h: recHeader{seq: next}}, nil
		}
		off := int64(segHeaderSize)
		for {
			h, payload, size, ok := decodeRecHeader(s.data[min(off, int64(len(s.data))):], s.head.num)
			at = found{s, off, h, payload}
			if !ok || h.seq != next {
				at.h.seq = next
				break
			}
			if err := fn(at); err != nil {
				return at, err
			}
			next++
			off += int64(size)
		}
	}
	return at, nil
}

func (l *loaded) applyFound(f found) error {
	r, err := decodeRecord(f.h.typ, f.payload)
	if err == nil {
		err = l.st.apply(r)
	}
	if err != nil {
		return corrupt(f.seg.name, f.off, "record %d: %v", f.h.seq, err)
	}
	l.applied = f.h.seq
	return nil
}

func (l *loaded) replaySealed(group []segment, cover uint64) error {
	end, err := scan(group, func(f found) error {
		l.seq = max(l.seq, f.h.seq)
		if f.h.seq > cover || f.h.seq <= l.applied {
			return nil
		}
		return l.applyFound(f)
	})
	if err != nil {
		return err
	}
	if end.h.seq <= cover {
		return corrupt(end.seg.name, end.off, "record %d is damaged; records up to %d were durable", end.h.seq, cover)
	}
	return nil
}

// replayLast applies what counts of the group that was being written. In the
// same life of host and device nothing can be missing but a record that was
// being written when the process died. Otherwise what no flush covers is
// dropped: its data may not have reached the medium (S2).
func (l *loaded) replayLast(group []segment, w where) error {
	h := group[0].head
	l.live = h.boot == w.boot && h.diskSeq == w.diskSeq && !h.boot.IsZero()
	cover := h.cover
	var recs []found
	end, err := scan(group, func(f found) error {
		recs = append(recs, f)
		if f.h.typ == recFlush {
			r, err := decodeRecord(f.h.typ, f.payload)
			if err != nil || r.covers >= f.h.seq {
				return corrupt(f.seg.name, f.off, "record %d: flush", f.h.seq)
			}
			cover = max(cover, r.covers)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := l.checkEnd(group, end); err != nil {
		return err
	}
	for _, f := range recs {
		l.seq = max(l.seq, f.h.seq)
		if f.h.seq <= l.applied {
			continue // the checkpoint has it
		}
		if l.live || f.h.seq <= cover || w.replayAll {
			if err := l.applyFound(f); err != nil {
				return err
			}
			continue
		}
		l.dropped++
		if f.h.typ == recDirty {
			if r, err := decodeRecord(f.h.typ, f.payload); err == nil && l.st.apply(r) == nil {
				l.relog = append(l.relog, r)
			}
		}
	}
	return nil
}

// checkEnd tells a torn end from damage: nothing sound may follow it that was
// written when the torn record was already durable; and in the same life of
// the host, nothing at all.
func (l *loaded) checkEnd(group []segment, end found) error {
	past := false
	for i := range group {
		s := &group[i]
		off := int64(segHeaderSize)
		if s == end.seg {
			past, off = true, end.off
		}
		if !past {
			continue
		}
		for ; off+recHeaderSize <= int64(len(s.data)); off += 8 {
			if le.Uint64(s.data[off:]) == 0 {
				continue
			}
			h, _, _, ok := decodeRecHeader(s.data[off:], s.head.num)
			if ok && h.seq > end.h.seq && (l.live || h.synced >= end.h.seq) {
				return corrupt(end.seg.name, end.off, "record %d is damaged; record %d follows it", end.h.seq, h.seq)
			}
		}
	}
	return nil
}

func readAll(fs vfs.FS, name string) (data []byte, err error) {
	f, err := fs.Open(name, vfs.ReadOnly)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	data = make([]byte, size)
	n, err := f.ReadAt(data, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return slices.Clip(data[:n]), nil
}

func (s *state) close() { _ = s.ar.close() }
