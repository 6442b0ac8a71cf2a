package store

import (
	"context"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// job is one view that nothing names any more, being given up: not before the
// record that made it so is durable. Until then its nodes count, so that
// whoever shares them writes to copies; after a power cut the view is back.
type job struct {
	walk *release
	seq  uint64
}

// background is the goroutine that gives space back, punches holes, sums
// frozen extents and writes checkpoints. kick wakes it; it has a timer only
// while extents wait to be summed, so an idle drive costs nothing.
type background struct {
	wake   chan struct{}
	hurry  atomic.Bool     // do not wait before summing
	ckptAt int64           // unix nanoseconds before which no checkpoint is tried; the goroutine's own
	sumAt  atomic.Int64    // unix nanoseconds before which nothing is summed
	ctx    context.Context // the goroutine's life
	cancel context.CancelFunc
	done   chan struct{}
}

func (b *background) kick() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

func (s *Store) start() {
	s.bg.wake = make(chan struct{}, 1)
	s.bg.ctx, s.bg.cancel = context.WithCancel(context.Background())
	if s.opt.test.manual {
		return
	}
	s.startFlushers()
	s.delaySums(sumDelay)
	s.bg.done = make(chan struct{})
	go s.background()
	s.bg.kick()
}

func (s *Store) background() {
	defer close(s.bg.done)
	for {
		for s.bg.ctx.Err() == nil && s.backgroundStep() {
			// Leave the processor and the disk to clients between steps.
			time.Sleep(50 * time.Microsecond)
		}
		var later <-chan time.Time
		if s.failure() == nil && s.sumsPending() {
			t := time.NewTimer(max(time.Until(time.Unix(0, s.bg.sumAt.Load())), time.Millisecond))
			later = t.C
		}
		select {
		case <-s.bg.ctx.Done():
			return
		case <-s.bg.wake:
		case <-later:
		}
	}
}

// delaySums keeps checksumming away from what clients do now.
func (s *Store) delaySums(d time.Duration) {
	s.bg.sumAt.Store(max(s.bg.sumAt.Load(), time.Now().Add(d).UnixNano()))
}

// sumSome sums a few extents when it is time.
func (s *Store) sumSome() bool {
	if !s.opt.test.manual && !s.bg.hurry.Load() {
		if time.Now().UnixNano() < s.bg.sumAt.Load() {
			return false
		}
		s.delaySums(sumPace)
	}
	return s.sumStep()
}

func (s *Store) stop() {
	s.bg.cancel()
	if s.bg.done != nil {
		<-s.bg.done
	}
	s.stopFlushers()
}

// backgroundStep does a little work and says whether more may be there.
func (s *Store) backgroundStep() bool {
	if s.failure() != nil {
		s.markLossy()
		return false
	}
	if s.uncoveredJobs() {
		if err := s.flush(); err != nil {
			return false
		}
	}
	more := !s.releaseStep(releaseStep)
	more = s.punchStep() || more
	more = s.sumSome() || more
	if s.checkpointDue() && time.Now().UnixNano() >= s.bg.ckptAt {
		if err := s.checkpoint(); err != nil {
			s.log.Warn("checkpoint failed; the journal goes on", "dir", s.dir, "error", err)
			s.bg.ckptAt = time.Now().Add(ckptRetry).UnixNano()
		}
	}
	return more
}

// later queues the release of a view; the state calls it under mu.
func (s *Store) later(root nodeID, counted bool) {
	if root == 0 {
		return
	}
	s.jobs = append(s.jobs, &job{newRelease(root, counted), s.j.seq})
	s.bg.kick()
}

// releaseStep gives up at most n nodes and says whether nothing is left that
// could be given up now.
func (s *Store) releaseStep(n int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.jobs) > 0 && s.jobs[0].seq <= s.covered {
		if !s.st.step(s.jobs[0].walk, n, s.unref) {
			s.releasePending()
			return false
		}
		s.jobs = append(s.jobs[:0], s.jobs[1:]...)
	}
	s.releasePending()
	return true
}

// uncoveredJobs says whether a release waits for a flush.
func (s *Store) uncoveredJobs() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.jobs) > 0 && s.jobs[0].seq > s.covered
}

// punchStep makes one run of suspect extents clean.
func (s *Store) punchStep() bool {
	if s.noPunch.Load() {
		return false
	}
	s.mu.Lock()
	p, n := s.ext.suspectRun(1024)
	s.mu.Unlock()
	if n == 0 {
		return false
	}
	var err error
	if !s.opt.test.noPunch {
		err = s.data.Punch(int64(p)<<extentShift, int64(n)<<extentShift)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range uint32(n) {
		if err == nil {
			s.ext.setClean(p + i)
		} else {
			s.ext.setSuspect(p + i)
		}
	}
	if err != nil {
		// From now on extents are made to read as zeros when they are given out.
		s.noPunch.Store(true)
		s.log.Warn("no holes can be punched; freed space stays with the store", "dir", s.dir, "error", err)
		return false
	}
	return true
}

// WaitIdle returns when no background work is left.
func (s *Store) WaitIdle(ctx context.Context) error {
	s.bg.hurry.Store(true)
	defer s.bg.hurry.Store(false)
	for {
		if err := s.failure(); err != nil {
			return ioErr("wait idle", err)
		}
		if err := s.flush(); err != nil {
			return err
		}
		s.bg.kick()
		s.mu.Lock()
		busy := len(s.jobs) > 0 || s.ext.nSuspect > 0 && !s.noPunch.Load() || s.pend.n > 0
		if busy {
			s.releasePending()
		}
		s.mu.Unlock()
		if !busy && !s.sumsPending() {
			return nil
		}
		if s.opt.test.manual {
			s.runBackground()
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// runBackground does what the goroutine would, here and now.
func (s *Store) runBackground() {
	for s.backgroundStep() {
	}
}

func (s *Store) checkpointDue() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	bound := int64(journalBound)
	if s.opt.test.journalBound != 0 {
		bound = s.opt.test.journalBound
	}
	if s.closed || s.j.off+int64(s.j.head.num-s.firstSeg)*segHeaderSize < max(bound, s.ckptSize/2) {
		// Many short segments (openings without work between) are bounded too.
		return !s.closed && s.j.head.num-s.firstSeg > 64
	}
	return true
}

// checkpoint stores the present state and drops the journal before it.
//
// S2 holds because the checkpoint gets its name only after a flush that covers
// every record it includes: it never makes an entry durable before its data.
func (s *Store) checkpoint() error {
	s.ckptMu.Lock()
	defer s.ckptMu.Unlock()
	f, err := s.prepareSegment()
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.appendLazyLocked()
	im, err := s.rotateLocked(f)
	most := s.st.ar.next
	s.mu.Unlock()
	if err != nil {
		_ = f.Close()
		return err
	}
	defer func() {
		s.mu.Lock()
		s.st.unpin()
		s.mu.Unlock()
	}()
	if err := s.flush(); err != nil {
		return err
	}
	meta := s.j.dir
	size, err := im.write(s.fs, meta, most)
	if err != nil {
		return err
	}
	s.mu.Lock()
	oldCkpt, first := s.ckptNum, s.firstSeg
	s.ckptNum, s.ckptSize, s.firstSeg = im.num, size, im.nextSeg
	s.mu.Unlock()
	// What follows only saves space: opening removes it too.
	if err := s.fs.Remove(s.metaPath(ckptName(oldCkpt))); err != nil {
		return err
	}
	for n := first; n < im.nextSeg; n++ {
		if err := s.fs.Remove(s.metaPath(segName(n))); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) metaPath(name string) string { return s.j.dir + "/" + name }

// alignedBuf returns page-aligned memory outside the Go heap.
func alignedBuf(n int) ([]byte, func()) {
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		panic("store: no memory for a buffer: " + err.Error())
	}
	return b, func() { _ = unix.Munmap(b) }
}
