package store

import (
	"errors"
	"fmt"

	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/vfs"
)

// pending holds references to extents that were given up, but still count, for
// one of two reasons.
//
// The record that gave them up is not durable (S4): after a power cut the old
// map names the extent again. Were it reused, or written in place by the one
// other volume that still names it (a clone), the old map would show foreign
// bytes.
//
// Or I/O that began before may still be under way: a read would return, a
// write would change, another volume's bytes. For this, I/O has generations. A
// request belongs to the generation that was current when it began; the
// generation moves on from g to g+1 only when no request of g-1 is left. What
// was given up in g is safe in g+2.
type pending struct {
	runs []unrefRun // in order
	n    int        // extents
}

type unrefRun struct {
	seq   uint64 // record that must be durable
	gen   uint64 // I/O generation
	first uint32
	n     uint32
}

// unref is called by the state, under mu, when a leaf no longer names p.
func (s *Store) unref(p uint32) {
	if s.opt.test.freeAtOnce {
		s.dropRef(p)
		return
	}
	g := s.ioGen.Load()
	q := &s.pend
	q.n++
	if k := len(q.runs) - 1; k >= 0 {
		r := &q.runs[k]
		if r.seq == s.j.seq && r.gen == g && r.first+r.n == p {
			r.n++
			return
		}
	}
	q.runs = append(q.runs, unrefRun{seq: s.j.seq, gen: g, first: p, n: 1})
}

// dropRef takes one reference off, and frees the extent with the last.
func (s *Store) dropRef(p uint32) {
	if s.ext.dec(p) == 0 {
		s.ext.nUsed--
		s.ext.setSuspect(p)
	}
}

// giveBack returns an extent that no map entry ever named.
func (s *Store) giveBackLocked(p uint32) {
	s.ext.nUsed--
	s.ext.setSuspect(p)
}

// releasePending makes reusable what has become so. It needs mu.
func (s *Store) releasePending() {
	for range 2 {
		next := s.ioGen.Load() + 1
		idle := true
		for q := range s.queues {
			idle = idle && q.running[next&1].Load() == 0
		}
		if !idle {
			break
		}
		s.ioGen.Store(next)
	}
	gen := s.ioGen.Load()
	i := 0
	for ; i < len(s.pend.runs); i++ {
		r := s.pend.runs[i]
		if r.seq > s.covered || r.gen+2 > gen {
			break
		}
		for k := range r.n {
			s.dropRef(r.first + k)
		}
		s.pend.n -= int(r.n)
	}
	if i > 0 {
		s.pend.runs = append(s.pend.runs[:0], s.pend.runs[i:]...)
		s.bg.kick()
	}
}

// spaceLocked says whether n more extents can be given out now. ErrNoSpace is
// final; errWaitSpace means that a flush will free some.
func (s *Store) spaceLocked(n int) error {
	have := int(s.ext.limit) - int(s.ext.hwm)
	if have < 0 {
		have = 0
	}
	have += s.ext.nClean + s.ext.nSuspect - s.promised
	if have < n || int(s.ext.limit) < s.ext.nUsed+s.promised+n {
		if s.pend.n > 0 || len(s.jobs) > 0 {
			return errWaitSpace
		}
		return fmt.Errorf("drive %s: %w", s.sb.drive, block.ErrNoSpace)
	}
	s.fsAt += n
	if s.fsAt > 256 || s.fsFree-int64(s.fsAt)<<extentShift < s.margin {
		// 256 extents = 16 MiB between two looks: less than any margin.
		if m, err := s.fs.Medium(s.dir); err == nil {
			s.fsFree, s.fsAt = m.Free, n
		}
	}
	if s.fsFree-int64(s.fsAt)<<extentShift < s.margin {
		if s.pend.n > 0 || len(s.jobs) > 0 || s.ext.nSuspect > 0 && !s.noPunch.Load() {
			return errWaitSpace
		}
		return fmt.Errorf("file system of drive %s: %w", s.sb.drive, block.ErrNoSpace)
	}
	return s.reserveLocked(4096 + int64(n)*16)
}

var errWaitSpace = errors.New("space is being freed")

func (s *Store) freeBytesLocked() int64 {
	n := int64(s.ext.limit) - int64(s.ext.nUsed) - int64(s.pend.n)
	free := max(n, 0) << extentShift
	if m, err := s.fs.Medium(s.dir); err == nil {
		free = min(free, max(m.Free-s.margin, 0))
	}
	return free
}

// punch makes extents read as zeros before a part of one is written (S3).
func (s *Store) punch(p uint32, n int) error {
	if s.opt.test.noPunch {
		return nil
	}
	if !s.noPunch.Load() {
		err := s.data.Punch(int64(p)<<extentShift, int64(n)<<extentShift)
		if !errors.Is(err, vfs.ErrNoPunch) {
			return err
		}
		s.noPunch.Store(true)
	}
	zero, free := alignedBuf(ExtentSize)
	defer free()
	for i := range int64(n) {
		if _, err := s.data.WriteAt(zero, (int64(p)+i)<<extentShift); err != nil {
			return err
		}
	}
	return nil
}

// makeRoom is what a writer that got errWaitSpace waits for: a flush and the
// background work that frees extents.
func (s *Store) makeRoom() error {
	if err := s.flush(); err != nil { // covers what the releases wait for
		return err
	}
	for !s.releaseStep(1 << 20) {
	}
	if err := s.flush(); err != nil { // and what they gave up
		return err
	}
	for s.punchStep() {
	}
	s.mu.Lock()
	s.fsAt = 1 << 20 // look again
	s.mu.Unlock()
	return nil
}
