package suite

import (
	"errors"
	"fmt"

	"github.com/moraine-storage/moraine/contrib/bench/load"
)

// firstWriteGroup compares writes that allocate with overwrites: each 4 KiB
// block of a fresh volume once, in random order, and then the same again. The
// extents are 64 KiB, so one in 16 of these writes allocates; a second figure
// writes once into each extent, so that every write does.
func (s *Suite) firstWriteGroup() error {
	const g = "first-writes"
	every := load.Job{Write: true, Random: true, Block: 4 * kib, Depth: 32, Once: true}
	touch := every
	touch.Stride, touch.Range = 64*kib, 8*gib
	for round := range s.rounds(3) {
		for _, c := range []struct {
			name string
			job  load.Job
		}{{"4k random, every block once", every}, {"4k random, one write per extent", touch}} {
			if err := s.firstWrites(g, c.name, c.job, round); err != nil {
				return err
			}
		}
	}
	for _, name := range []string{"4k random, every block once", "4k random, one write per extent"} {
		first, again := s.median(g, name+", first", byBatch, s.Target), s.median(g, name+", again", byBatch, s.Target)
		s.floor(g, name+": first writes against overwrites", first.IOPS/again.IOPS, 0.6, "×")
	}
	return nil
}

func (s *Suite) firstWrites(g, name string, job load.Job, round int) (err error) {
	dir, err := s.folder(s.dir, fmt.Sprintf("first%d-%d", round, job.Stride))
	if err != nil {
		return err
	}
	srv, err := s.ours(dir, max(volumeSize, job.Range))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, srv.Stop()) }()
	for _, pass := range []string{"first", "again"} {
		before, err := srv.CPU()
		if err != nil {
			return err
		}
		job.Seed++
		ops, elapsed, err := batched(srv, job)
		if err != nil {
			return fmt.Errorf("%s, %s: %w", name, pass, err)
		}
		after, err := srv.CPU()
		if err != nil {
			return err
		}
		s.sample(g, name+", "+pass, byBatch, srv.Name, sampleOf(ops, job.Block, elapsed, after-before))
	}
	return nil
}
