package store

import (
	"fmt"
	"path"
	"sync"

	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/vfs"
)

// flush is one round of group commit.
//
// Why its order makes S2 hold: a map entry is appended only after the write it
// points to has completed. covers is the last entry appended before the data
// file is synced; so every write that an entry up to covers points to had
// completed before that sync began, and is durable when it ends. Only then is
// the flush record written, which says so. Entries appended meanwhile get a
// higher number and wait for the next round.
func (s *Store) flush() error {
	s.flushMu.Lock()
	defer s.flushMu.Unlock()
	if err := s.failure(); err != nil {
		return ioErr("flush", err)
	}
	s.mu.Lock()
	s.appendLazyLocked()
	covers := s.j.seq
	s.mu.Unlock()

	if !s.opt.test.noDataSync {
		if err := s.data.Sync(); err != nil {
			return s.flushFailed(err)
		}
	}
	s.mu.Lock()
	reached := covers
	if covers > s.covered {
		alone := s.j.seq == covers
		if err := s.j.append(&record{typ: recFlush, covers: covers}); err != nil {
			s.mu.Unlock()
			return s.flushFailed(err)
		}
		if alone {
			reached = s.j.seq // the flush record itself needs no other one
		}
	}
	s.mu.Unlock()
	if err := s.syncJournal(); err != nil {
		return err
	}
	s.mu.Lock()
	s.covered = max(s.covered, reached)
	s.releasePending()
	s.mu.Unlock()
	return nil
}

// syncJournal makes every record appended so far durable.
func (s *Store) syncJournal() error {
	s.syncMu.Lock()
	defer s.syncMu.Unlock()
	s.mu.Lock()
	upto := s.j.seq
	done := upto == s.j.synced && len(s.j.old) == 0 // after a rotation the new header is not durable
	files := append([]vfs.File(nil), s.j.old...)
	cur := s.j.f
	s.mu.Unlock()
	if done {
		return nil
	}
	for _, f := range append(files, cur) { // older first: what is durable is a prefix
		if err := f.Sync(); err != nil {
			return s.flushFailed(err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.j.synced = upto
	for _, f := range files {
		_ = f.Close() // synced; nothing is written to it any more
	}
	s.j.old = s.j.old[len(files):]
	return nil
}

// syncRecords makes the records appended so far durable, but not the data. It
// does not wait for a flush under way.
func (s *Store) syncRecords() error {
	if err := s.failure(); err != nil {
		return ioErr("sync journal", err)
	}
	return s.syncJournal()
}

// flushFailed ends the store's life: a failed sync is never tried again, for
// the kernel may have dropped what it could not write (REPLICATION 3.3).
func (s *Store) flushFailed(err error) error {
	s.fail(err)
	s.markLossy()
	return ioErr("flush", err)
}

func ioErr(op string, err error) error { return fmt.Errorf("%s: %w: %w", op, block.ErrIO, err) }

// log appends a record, applies it, and makes it durable: the way of all
// control operations.
func (s *Store) logDurable(make func() (*record, error)) error {
	s.mu.Lock()
	r, err := make()
	if err == nil && r != nil {
		err = s.logLocked(r)
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	return s.flush()
}

// logLocked appends a record and applies it.
func (s *Store) logLocked(r *record) error {
	if s.closed {
		return fmt.Errorf("%s: store is closed: %w", r.typ, block.ErrClosed)
	}
	if err := s.failure(); err != nil {
		return ioErr(r.typ.String(), err)
	}
	if err := s.reserveLocked(4096 + r.sizeBound()); err != nil {
		return err
	}
	s.appendLazyLocked()
	if err := s.j.append(r); err != nil {
		s.fail(err)
		return ioErr(r.typ.String(), err)
	}
	if err := s.st.apply(r); err != nil {
		// The record contradicts the state it was made from: a bug. Replay
		// would refuse it, so nothing more may follow.
		panic(fmt.Sprintf("store: %s does not apply: %v", r.typ, err))
	}
	return nil
}

// reserveLocked makes sure that the journal takes n more bytes.
func (s *Store) reserveLocked(n int64) error {
	if err := s.j.reserve(n); err != nil {
		return fmt.Errorf("journal of %s: %w: %w", s.dir, block.ErrNoSpace, err)
	}
	return nil
}

// appendLazyLocked serves the mutation lazyAppend.
func (s *Store) appendLazyLocked() {
	for _, r := range s.lazyRecs {
		if err := s.j.append(r); err != nil {
			s.fail(err)
		}
	}
	s.lazyRecs = nil
}

// flusher runs flushes for queues on media that block: one goroutine for
// records alone, which writes wait for before they start, one for all else. A
// queue asks and is woken when a round that began afterwards has ended.
type flusher struct {
	mu      sync.Mutex
	cond    *sync.Cond
	waiting []flushWaiter
	stop    bool
	done    chan struct{}
}

// flushWaiter is told the result from the flusher's goroutine.
type flushWaiter struct {
	q    *queue
	kind waitKind
}

type waitKind uint8

const (
	waitRecords waitKind = iota // the journal is enough
	waitFlush                   // data and journal
	waitSpace                   // flush, and free what can be freed
	waitKinds
)

func (s *Store) startFlushers() {
	for i := range s.flushers {
		s.startFlusher(&s.flushers[i])
	}
}

func (s *Store) startFlusher(f *flusher) {
	f.cond = sync.NewCond(&f.mu)
	f.done = make(chan struct{})
	go func() {
		defer close(f.done)
		for {
			f.mu.Lock()
			for len(f.waiting) == 0 && !f.stop {
				f.cond.Wait()
			}
			batch := f.waiting
			f.waiting = nil
			stop := f.stop
			f.mu.Unlock()
			if len(batch) == 0 && stop {
				return
			}
			s.flushBatch(batch)
		}
	}()
}

// flushBatch does each kind of work once.
func (s *Store) flushBatch(batch []flushWaiter) {
	for kind := range waitKinds {
		var err error
		asked := false
		for _, w := range batch {
			if w.kind != kind {
				continue
			}
			if !asked {
				err = s.doWait(kind)
				asked = true
			}
			w.q.waited(kind, err)
		}
	}
}

func (s *Store) doWait(kind waitKind) error {
	switch kind {
	case waitRecords:
		return s.syncRecords()
	case waitFlush:
		return s.flush()
	}
	return s.makeRoom()
}

func (s *Store) askFlush(w flushWaiter) {
	f := &s.flushers[min(w.kind, waitFlush)]
	f.mu.Lock()
	f.waiting = append(f.waiting, w)
	f.cond.Signal()
	f.mu.Unlock()
}

func (s *Store) stopFlushers() {
	for i := range s.flushers {
		f := &s.flushers[i]
		if f.done == nil {
			continue
		}
		f.mu.Lock()
		f.stop = true
		f.cond.Signal()
		f.mu.Unlock()
		<-f.done
	}
}

// rotate goes on in a new segment, made ready before, and captures the state
// after the last record of the old one. It needs the store's mutex.
func (s *Store) rotateLocked(f vfs.File) (*image, error) {
	h := s.j.head
	h.kind, h.num, h.first, h.cover = segRotate, h.num+1, s.j.seq+1, 0
	if _, err := f.WriteAt(h.encode(), 0); err != nil {
		return nil, err
	}
	s.j.old = append(s.j.old, s.j.f)
	s.j.f, s.j.head, s.j.off, s.j.alloc = f, h, segHeaderSize, 0
	im := s.st.capture()
	im.num, im.seq, im.nextSeg, im.drive = s.ckptNum+1, s.j.seq, h.num, h.drive
	s.st.pin()
	return im, nil
}

// prepareSegment creates the next segment's file, durably in its directory.
func (s *Store) prepareSegment() (vfs.File, error) {
	s.mu.Lock()
	num := s.j.head.num + 1
	s.mu.Unlock()
	name := path.Join(s.dir, "meta", segName(num))
	f, err := s.fs.Open(name, vfs.Create)
	if err != nil {
		return nil, err
	}
	if err = f.Truncate(0); err == nil {
		if err = f.Allocate(0, journalStep); err == nil {
			if err = f.Sync(); err == nil {
				err = s.fs.SyncDir(path.Dir(name))
			}
		}
	}
	if err != nil {
		_ = f.Close()
		_ = s.fs.Remove(name) // blank segments at the end are ignored
		return nil, err
	}
	return f, nil
}
