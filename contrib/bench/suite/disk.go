package suite

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/moraine-storage/moraine/contrib/bench/target"
)

// raw is the name of fio on a plain file, without any server.
const raw = "raw file"

// diskGroup compares a volume on a disk, which the store uses by O_DIRECT,
// with fio on a file of the same file system (libaio, O_DIRECT).
func (s *Suite) diskGroup() (err error) {
	const g = "disk"
	dir, err := s.folder(s.disk, g)
	if err != nil {
		return err
	}
	file := filepath.Join(s.disk, "raw") // beside what the server's end removes
	if err := target.RawFile(file, volumeSize, true); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(file)) }()
	srv, err := s.ours(dir, volumeSize)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, srv.Stop()) }()
	if err := fill(srv, volumeSize); err != nil {
		return err
	}
	for round := range s.rounds(3) {
		for _, w := range workloads {
			for i := range 3 {
				if err := s.diskSample(g, []string{raw, byBatch, byFio}[(i+round)%3], srv, file, w); err != nil {
					return err
				}
			}
		}
	}
	for _, w := range workloads {
		if w.depth != 32 {
			continue
		}
		us, them := s.median(g, w.name, byBatch, srv.Name), s.median(g, w.name, byFio, raw)
		if w.write {
			s.floor(g, w.name+": against raw fio", us.IOPS/them.IOPS, 0.85, "×")
		} else {
			s.ceiling(g, w.name+": agent CPU per I/O", us.CPU, 12, "µs")
		}
	}
	return nil
}

func (s *Suite) diskSample(g, client string, srv *target.Server, file string, w workload) error {
	if client != raw {
		sample, err := measure(srv, client, w, s.seconds(2))
		if err == nil {
			s.sample(g, w.name, client, srv.Name, sample)
		}
		return err
	}
	ops, elapsed, err := fioFile(file, w, s.seconds(2))
	if err != nil {
		return fmt.Errorf("%s on a file: %w", w.name, err)
	}
	s.sample(g, w.name, byFio, raw, sampleOf(ops, w.block, elapsed, 0))
	return nil
}
