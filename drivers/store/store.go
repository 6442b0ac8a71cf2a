package store

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/drivers/aio"
	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/vfs"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// Options of Open. The zero value opens for reading and writing.
type Options struct {
	Logger hclog.Logger // nil: silent
	// BootID is the identity of this boot of the host; empty: the kernel's.
	BootID string
	FS     vfs.FS // nil: the real one
	// ExpectCluster and ExpectDrive refuse a drive of another cluster, or
	// another drive.
	ExpectCluster, ExpectDrive *ID
	// OpenCounter is that of the drive's record; it must be larger than the
	// stored one. 0: the stored one plus 1.
	OpenCounter uint64
	Incarnation uint64               // of the cluster store, to remember; 0: keep
	Now         func() time.Duration // CLOCK_BOOTTIME; nil: the real one
	SizeLimit   int64                // bytes; a new limit to remember; 0: keep

	test testOptions
}

// testOptions are for this package's tests alone.
type testOptions struct {
	manual       bool  // no goroutines: flushes run in the caller, background work by runBackground
	journalBound int64 // bytes; 0: journalBound
	unit         int   // bytes; 0: as the medium demands

	// Mutations: each breaks one rule, to prove that the tests see it.
	noDataSync    bool // flush syncs the journal but not the data first
	freeAtOnce    bool // S4: a freed extent is reused before the free is durable
	replayAll     bool // S2: entries not covered by a flush survive a power cut
	noPunch       bool // S3: a fresh extent keeps what was in it
	lazyAppend    bool // S1: map entries stay in the process until a flush
	noDirtySync   bool // dirty bits are not durable before the data
	noPromiseSync bool // the promise is answered before it is durable
	partLock      bool // two part-block writes to one block run at once
}

// Store is one open drive. Its methods may be called by any goroutine.
type Store struct {
	fs       vfs.FS
	dir      string
	opt      Options
	log      hclog.Logger
	now      func() time.Duration
	lock     interface{ Close() error }
	superF   vfs.File
	data     vfs.File
	fd       int
	unit     int64 // bytes: what a write to the data file is rounded to
	memAlign int   // bytes: of buffers in memory
	blocking bool
	opened   time.Duration

	// mu guards everything below it, the state, the journal's end and the
	// extents. Held for one append to the page cache, never for a sync.
	mu       sync.Mutex
	st       *state
	ext      *extents
	j        journal
	sb       superblock
	covered  uint64 // every record up to it is durable, and the data it points to
	ckptNum  uint64
	ckptSize int64
	firstSeg uint64
	jobs     []*job
	pend     pending
	promised int   // extents that writers have been told they can take
	margin   int64 // bytes kept free on the file system
	fsFree   int64 // bytes, as last looked at
	fsAt     int   // extents given out since
	replicas map[uint32]*Replica
	queues   map[*queue]struct{}
	lazyRecs []*record // mutation lazyAppend
	views    int       // open
	closed   bool

	ioGen   atomic.Uint64         // generation of I/O, see pending
	failed  atomic.Pointer[error] // sticky: a flush or the journal failed
	sums    atomic.Int64          // checksum mismatches seen since open
	noPunch atomic.Bool           // the file system cannot punch holes, or no longer

	flushMu  sync.Mutex // one flush at a time; taken before mu
	syncMu   sync.Mutex // one sync of the journal at a time; taken before mu
	superMu  sync.Mutex // one superblock write at a time; taken before mu
	ckptMu   sync.Mutex // one checkpoint at a time; taken before flushMu
	flushers [2]flusher // by waitKind: records; flush and space
	bg       background
}

// Info describes a store.
type Info struct {
	Cluster, Drive ID
	Format         uint32
	OpenCounter    uint64
	Incarnation    uint64
	LossID         uint64
	SizeLimit      int64 // bytes; 0: none
	Capacity       int64 // bytes of data the drive can hold
	Used           int64 // bytes in extents that something names
	Pending        int64 // bytes freed, not yet reusable
	Free           int64 // bytes that new extents can take
	Reserved       int64 // bytes kept for metadata
	Journal        int64 // bytes since the last checkpoint
	MapMemory      int64 // bytes of maps in memory
	ChecksumErrors int64 // since open
	Failed         error // nil, or why nothing more can be made durable
}

// debugBootID is drivers.DebugBootID: tests of power cuts set it.
const debugBootID = "MORAINE_DEBUG_BOOT_ID"

// bootID returns this boot's identity.
func bootID(s string) (ID, error) {
	if s == "" {
		s = os.Getenv(debugBootID)
	}
	if s == "" {
		b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if err != nil {
			return ID{}, fmt.Errorf("read boot id: %w", err)
		}
		s = string(b)
	}
	var id ID
	b, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(s), "-", ""))
	if err != nil || len(b) != len(id) {
		return ID{}, fmt.Errorf("boot id %q: %w", s, errdefs.ErrInvalidArgument)
	}
	copy(id[:], b)
	if id.IsZero() {
		return ID{}, fmt.Errorf("boot id is zero: %w", errdefs.ErrInvalidArgument)
	}
	return id, nil
}

func boottime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(fmt.Sprintf("store: CLOCK_BOOTTIME: %v", err))
	}
	return time.Duration(ts.Nano())
}

// Open opens the store in dir for reading and writing. It changes nothing when
// it refuses: foreign, newer, corrupt or locked stores stay as they are.
func Open(dir string, o Options) (_ *Store, err error) {
	s := &Store{fs: o.FS, dir: dir, opt: o, log: o.Logger, now: o.Now,
		replicas: map[uint32]*Replica{}, queues: map[*queue]struct{}{}}
	if s.fs == nil {
		s.fs = vfs.OS{}
	}
	if s.log == nil {
		s.log = hclog.NewNullLogger()
	}
	if s.now == nil {
		s.now = boottime
	}
	boot, err := bootID(o.BootID)
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", dir, err)
	}
	if _, err := readSuperblock(s.fs, dir); err != nil { // before a lock file appears in a foreign directory
		return nil, err
	}
	if s.lock, err = s.fs.Lock(path.Join(dir, "lock")); err != nil {
		return nil, lockErr(dir, err)
	}
	defer func() {
		if err != nil {
			s.abandon()
		}
	}()
	m, err := s.fs.Medium(dir)
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", dir, err)
	}
	l, err := load(s.fs, dir, where{boot: boot, diskSeq: m.DiskSeq, replayAll: o.test.replayAll})
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", dir, err)
	}
	s.st, s.sb = l.st, *l.sb
	if err := s.admit(); err != nil {
		return nil, err
	}
	if err := s.takeOver(l, boot, m); err != nil {
		return nil, fmt.Errorf("open store %s: %w", dir, err)
	}
	s.start()
	s.log.Info("store opened", "dir", dir, "drive", s.sb.drive, "opening", s.sb.openCounter, "replicas", len(s.st.byID),
		"same_boot", l.live, "records_dropped", l.dropped, "blocking", s.blocking)
	return s, nil
}

// admit checks that this is the drive that was meant.
func (s *Store) admit() error {
	o := &s.opt
	switch {
	case o.ExpectCluster != nil && *o.ExpectCluster != s.sb.cluster:
		return fmt.Errorf("open store %s: belongs to cluster %s, not %s: %w", s.dir, s.sb.cluster, *o.ExpectCluster, errdefs.ErrFailedPrecondition)
	case o.ExpectDrive != nil && *o.ExpectDrive != s.sb.drive:
		return fmt.Errorf("open store %s: is drive %s, not %s: %w", s.dir, s.sb.drive, *o.ExpectDrive, errdefs.ErrFailedPrecondition)
	case o.OpenCounter != 0 && o.OpenCounter <= s.sb.openCounter:
		return fmt.Errorf("open store %s: opening %d, but it was opened %d times: %w", s.dir, o.OpenCounter, s.sb.openCounter, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// takeOver makes what was loaded the durable state and begins a new segment.
// The order matters: the data that kept entries point to, then the old
// segments, then the superblock, then the segment that seals them.
func (s *Store) takeOver(l *loaded, boot ID, m vfs.Medium) error {
	if err := s.openData(m); err != nil {
		return err
	}
	limit := s.opt.SizeLimit
	if limit == 0 {
		limit = s.sb.sizeLimit
	}
	x, err := s.st.count(s.extentLimit(limit, m))
	if err != nil {
		return corrupt(path.Join(s.dir, "meta"), 0, "%v", err)
	}
	// Data comes before the entry that points to it, so the file reaches into the
	// last extent. A shorter one lost data, which Truncate would make zeros of.
	size, err := s.data.Size()
	if err != nil {
		return err
	}
	if x.hwm > 0 && size <= int64(x.hwm-1)<<extentShift {
		return corrupt(path.Join(s.dir, "data"), size, "the file ends before extent %d", x.hwm-1)
	}
	s.ext, s.st.ext = x, x
	s.st.unref = s.unref
	s.st.unreachable = s.later
	// Past the high-water mark may lie what a write left whose map entry does
	// not count; a fresh extent must read as zeros (S3).
	if err := s.data.Truncate(int64(x.hwm) << extentShift); err != nil && !s.opt.test.noPunch {
		return err
	}
	if l.live {
		if err := s.data.Sync(); err != nil {
			return fmt.Errorf("sync data: %w", err)
		}
		if err := s.syncSegments(l.segs); err != nil {
			return err
		}
	}
	sb := &s.sb
	if sb.boot != boot || sb.diskSeq != m.DiskSeq || sb.lossy {
		sb.lossID = newLossID()
	}
	sb.boot, sb.diskSeq, sb.lossy, sb.clean = boot, m.DiskSeq, false, false
	sb.openCounter = max(sb.openCounter+1, s.opt.OpenCounter)
	sb.sizeLimit = limit
	if s.opt.Incarnation != 0 {
		sb.incarnation = s.opt.Incarnation
	}
	sb.segment, sb.seq = l.segs[len(l.segs)-1], l.applied
	if s.superF, err = s.fs.Open(path.Join(s.dir, "superblock"), 0); err != nil {
		return err
	}
	if err := sb.write(s.superF); err != nil {
		return err
	}
	s.j = journal{fs: s.fs, dir: path.Join(s.dir, "meta"), seq: l.seq, head: segHeader{kind: segOpen, num: sb.segment + 1,
		first: l.seq + 1, cover: l.applied, drive: sb.drive, boot: boot, diskSeq: m.DiskSeq}}
	for _, n := range l.stale {
		if err := s.fs.Remove(path.Join(s.dir, "meta", n)); err != nil {
			return err
		}
	}
	if err := s.j.begin(l.relog); err != nil {
		return err
	}
	s.covered = s.j.seq
	s.ckptNum, s.ckptSize, s.firstSeg = l.ckpt, l.ckptSize, l.segs[0]
	s.opened = s.now()
	for _, rs := range s.st.byHandle {
		s.adopt(rs)
	}
	return nil
}

func (s *Store) openData(m vfs.Medium) error {
	name := path.Join(s.dir, "data")
	f, err := s.fs.Open(name, vfs.Direct)
	s.memAlign, s.unit = 4096, 4096
	if errors.Is(err, vfs.ErrNoDirect) {
		s.log.Warn("drive without direct I/O: the page cache is used", "dir", s.dir)
		f, err = s.fs.Open(name, 0)
	}
	if err != nil {
		return err
	}
	s.data, s.fd, s.blocking = f, f.Fd(), !m.Memory
	if m.Memory { // memory has no blocks: sectors are written as they come
		s.memAlign, s.unit = 1, block.SectorSize
	}
	if s.opt.test.unit != 0 {
		s.unit = int64(s.opt.test.unit)
	}
	s.margin = min(max(m.Total/64, minMargin), maxMargin)
	s.fsFree = m.Free
	return nil
}

// extentLimit is how many extents the drive may hold.
func (s *Store) extentLimit(limit int64, m vfs.Medium) uint32 {
	if limit == 0 || limit > m.Total {
		limit = m.Total
	}
	return uint32(min(limit>>extentShift, maxExtents))
}

func (s *Store) syncSegments(segs []uint64) error {
	for _, num := range segs {
		f, err := s.fs.Open(path.Join(s.dir, "meta", segName(num)), 0)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// abandon frees what an Open that failed, or a Close, leaves.
func (s *Store) abandon() {
	for _, f := range append([]vfs.File{s.data, s.superF, s.j.f}, s.j.old...) {
		if f != nil {
			_ = f.Close() // all that matters was synced, or has failed
		}
	}
	if s.ext != nil {
		_ = s.ext.close()
	}
	if s.st != nil {
		s.st.close()
	}
	if s.lock != nil {
		_ = s.lock.Close()
	}
}

// Blocking says whether I/O on this drive may take long: false for memory,
// where an inline engine is right.
func (s *Store) Blocking() bool { return s.blocking }

// Mode is the aio.Mode that fits the medium.
func (s *Store) Mode() aio.Mode {
	if s.blocking {
		return aio.Auto
	}
	return aio.Inline
}

// Info describes the store as it is now.
func (s *Store) Info() Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := Info{
		Cluster: s.sb.cluster, Drive: s.sb.drive, Format: s.sb.version, OpenCounter: s.sb.openCounter,
		Incarnation: s.sb.incarnation, LossID: s.sb.lossID, SizeLimit: s.sb.sizeLimit,
		Pending: int64(s.pend.n) << extentShift,
		Used:    int64(s.ext.nUsed) << extentShift, Reserved: s.margin, Journal: s.j.off,
		ChecksumErrors: s.sums.Load(), Failed: s.failure(),
	}
	if !s.closed {
		i.MapMemory = int64(s.st.ar.live) * nodeSize
		i.Free = s.freeBytesLocked()
		i.Capacity = min(int64(s.ext.limit)<<extentShift, i.Used+i.Pending+i.Free)
	}
	return i
}

// SetSizeLimit changes how much data the drive may hold, durably; 0: what the
// file system has now, which may have grown. A limit below what is used stops
// first writes only.
func (s *Store) SetSizeLimit(limit int64) error {
	if limit < 0 || limit > maxExtents*ExtentSize {
		return fmt.Errorf("drive %s: size limit %d: %w", s.sb.drive, limit, errdefs.ErrOutOfRange)
	}
	m, err := s.fs.Medium(s.dir)
	if err != nil {
		return fmt.Errorf("drive %s: %w", s.sb.drive, err)
	}
	s.superMu.Lock()
	defer s.superMu.Unlock()
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return block.ErrClosed
	}
	sb := s.sb
	sb.sizeLimit = limit
	s.mu.Unlock()
	if err := sb.write(s.superF); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sb.sizeLimit, s.sb.gen = limit, sb.gen
	s.ext.limit = s.extentLimit(limit, m)
	s.margin = min(max(m.Total/64, minMargin), maxMargin)
	s.fsFree, s.fsAt = m.Free, 0
	return nil
}

// failure returns the sticky error, or nil.
func (s *Store) failure() error {
	if e := s.failed.Load(); e != nil {
		return *e
	}
	return nil
}

// fail makes err sticky: nothing can be made durable any more. The loss id
// changes, now if that can be written, else because lossy or the boot id say
// so at the next opening.
func (s *Store) fail(err error) {
	if !s.failed.CompareAndSwap(nil, &err) {
		return
	}
	s.log.Error("store failed: writes that allocate and flushes end with errors until it is opened again", "dir", s.dir, "error", err)
	s.bg.kick()
}

// markLossy stores, as well as it can, that acknowledged writes may be lost.
func (s *Store) markLossy() {
	s.superMu.Lock()
	defer s.superMu.Unlock()
	s.mu.Lock()
	if s.sb.lossy {
		s.mu.Unlock()
		return
	}
	s.sb.lossy = true
	s.sb.lossID = newLossID()
	sb := s.sb
	s.sb.gen++
	s.mu.Unlock()
	if err := sb.write(s.superF); err != nil {
		s.log.Error("loss could not be recorded", "dir", s.dir, "error", err)
	}
}

// Close ends background work, makes everything durable and frees the drive.
// Queues and views must be closed before.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	if q, v := len(s.queues), s.views; q+v > 0 {
		s.mu.Unlock()
		return fmt.Errorf("close store %s: %d queues and %d views are open: %w", s.dir, q, v, errdefs.ErrFailedPrecondition)
	}
	s.closed = true
	s.mu.Unlock()
	s.stop()
	err := s.flush()
	if err == nil {
		s.superMu.Lock()
		s.sb.clean, s.sb.seq, s.sb.segment = true, s.j.synced, s.j.head.num
		err = s.sb.write(s.superF)
		s.superMu.Unlock()
	}
	s.abandon()
	return err
}

// Flush makes every operation completed before it durable, for all replicas.
func (s *Store) Flush(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.flush()
}
