package suite

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/moraine-storage/moraine/contrib/bench/load"
	"github.com/moraine-storage/moraine/contrib/bench/target"
)

// hot is the range that is written while snapshots are taken. A snapshot makes
// each of its extents be copied once, so it bounds the space that 20 snapshots
// need, whatever the volume's size.
const hot = 256 * mib

// snapshotGroup measures how long writes stall while a snapshot is taken, with
// little and with much allocated, and what writing costs after one.
func (s *Suite) snapshotGroup() error {
	const g = "snapshot"
	small, err := s.stalls(g, gib, true)
	if err != nil {
		return err
	}
	s.ceiling(g, "write stall, 1 GiB allocated (median)", ms(small), 20, "ms")
	large := int64(10 * gib)
	if s.Quick {
		large = 2 * gib
	}
	big, err := s.stalls(g, large, false)
	if err != nil {
		return err
	}
	s.ceiling(g, fmt.Sprintf("write stall, %d GiB allocated (median)", large/gib), ms(big), 20, "ms")
	s.ceiling(g, fmt.Sprintf("write stall, %d GiB against 1 GiB", large/gib), float64(big)/float64(small), 1.5, "×")
	return nil
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// stalls makes a volume of size bytes, writes all of it, and takes snapshots
// under load; it returns the median of the longest time that a write took
// around each. After is whether the throughput after a snapshot is measured too.
func (s *Suite) stalls(g string, size int64, after bool) (_ time.Duration, err error) {
	dir, err := s.folder(s.dir, fmt.Sprintf("snap%d", size/gib))
	if err != nil {
		return 0, err
	}
	srv, err := s.ours(dir, size)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, srv.Stop()) }()
	if err := fill(srv, size); err != nil {
		return 0, err
	}
	if after {
		if err := s.afterSnapshot(g, srv); err != nil {
			return 0, err
		}
	}
	l := startLoad(srv, load.Job{Write: true, Random: true, Block: 4 * kib, Depth: 32, Range: hot, Time: time.Hour})
	defer func() { err = errors.Join(err, l.end()) }()
	n := 20
	if s.Quick {
		n = 4
	}
	var worst, calm []time.Duration
	time.Sleep(500 * time.Millisecond)
	for i := range n {
		calm = append(calm, l.worst(150*time.Millisecond, nil))
		var serr error
		worst = append(worst, l.worst(150*time.Millisecond, func() { serr = srv.Snapshot(fmt.Sprintf("s%d", i)) }))
		if serr == nil && srv.Drop != nil {
			serr = srv.Drop(fmt.Sprintf("s%d", i))
		}
		if serr != nil {
			return 0, fmt.Errorf("snapshot %d: %w", i, serr)
		}
	}
	for i := range worst {
		s.sample(g, fmt.Sprintf("longest write, %d GiB allocated, with a snapshot", size/gib), byBatch, srv.Name, Sample{MS: ms(worst[i])})
		s.sample(g, fmt.Sprintf("longest write, %d GiB allocated, without one", size/gib), byBatch, srv.Name, Sample{MS: ms(calm[i])})
	}
	return medianTime(worst), nil
}

// afterSnapshot compares overwrites before a snapshot with those of the
// 30 s after it.
func (s *Suite) afterSnapshot(g string, srv *target.Server) error {
	w := workload{"4k random write, depth 32", true, true, 4 * kib, 32}
	before, err := measure(srv, byBatch, w, s.seconds(5))
	if err != nil {
		return err
	}
	s.sample(g, w.name+", before a snapshot", byBatch, srv.Name, before)
	if err := srv.Snapshot("first"); err != nil {
		return err
	}
	after, err := measure(srv, byBatch, w, s.seconds(30))
	if err != nil {
		return err
	}
	s.sample(g, w.name+", in the 30 s after", byBatch, srv.Name, after)
	s.floor(g, w.name+": 30 s after a snapshot against before", after.IOPS/before.IOPS, 0.5, "×")
	return nil
}

// background is load that goes on while something else is done.
type background struct {
	stop chan struct{}
	done chan error

	mu      sync.Mutex
	longest time.Duration
	sent    time.Time // of the newest completed request
	ended   bool
}

func startLoad(srv *target.Server, j load.Job) *background {
	b := &background{stop: make(chan struct{}), done: make(chan error, 1)}
	j.Stop = b.stop
	j.Watch = func(sent, done time.Time) {
		b.mu.Lock()
		b.longest = max(b.longest, done.Sub(sent))
		b.sent = sent
		b.mu.Unlock()
	}
	go func() {
		_, _, err := batched(srv, j)
		b.mu.Lock()
		b.ended = true
		b.mu.Unlock()
		b.done <- err
	}()
	return b
}

// worst is the longest time a request took that was in flight from now until
// d after f has returned.
func (b *background) worst(d time.Duration, f func()) time.Duration {
	b.mu.Lock()
	b.longest = 0
	b.mu.Unlock()
	if f != nil {
		f()
	}
	time.Sleep(d)
	// What was sent before this moment must have come back to count.
	for now := time.Now(); ; time.Sleep(time.Millisecond) {
		b.mu.Lock()
		longest, caughtUp := b.longest, b.sent.After(now) || b.ended
		b.mu.Unlock()
		if caughtUp || time.Since(now) > 30*time.Second {
			return longest
		}
	}
}

func (b *background) end() error {
	close(b.stop)
	return <-b.done
}
