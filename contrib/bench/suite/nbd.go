package suite

import (
	"fmt"

	"github.com/moraine-storage/moraine/contrib/bench/load"
	"github.com/moraine-storage/moraine/contrib/bench/target"
)

// volumeSize is what NBD workloads run over: far beyond any cache of a
// processor, small enough to be filled in a second.
const volumeSize = gib

// nbdGroup compares NBD servers on tmpfs, over unix sockets.
func (s *Suite) nbdGroup() (err error) {
	ours := s.Target
	var servers []*target.Server
	defer func() { err = stopAll(err, servers) }()
	for _, start := range []func(dir string) (*target.Server, error){
		func(dir string) (*target.Server, error) { return target.Nbdkit(dir, volumeSize) },
		func(dir string) (*target.Server, error) { return target.QemuNBD(dir, volumeSize) },
		func(dir string) (*target.Server, error) { return s.ours(dir, volumeSize) },
	} {
		dir, err := s.folder(s.dir, fmt.Sprintf("nbd%d", len(servers)))
		if err != nil {
			return err
		}
		srv, err := start(dir)
		if err != nil {
			return err
		}
		servers = append(servers, srv)
	}
	if err := fill(servers[2], volumeSize); err != nil {
		return err
	}
	if err := s.compare("nbd", servers, []string{byBatch, byFio}); err != nil {
		return err
	}
	s.nbdChecks(ours)
	return nil
}

// ours starts the Moraine side of a comparison.
func (s *Suite) ours(dir string, size int64) (*target.Server, error) {
	if s.Target == "moraine" {
		return target.Volume(s.Binary, dir, size)
	}
	return target.InProcess(s.Target, dir, size, s.Profile)
}

// fill writes the first size bytes once, so that what follows overwrites.
func fill(srv *target.Server, size int64) error {
	_, _, err := batched(srv, load.Job{Write: true, Block: mib, Depth: 4, Range: size, Once: true})
	if err != nil {
		return fmt.Errorf("fill %s: %w", srv.Name, err)
	}
	return nil
}

// compare measures each workload by each client on each server, in rounds
// that begin with another server each.
func (s *Suite) compare(group string, servers []*target.Server, clients []string) error {
	for round := range s.rounds(5) {
		for _, w := range workloads {
			for _, client := range clients {
				for i := range servers {
					srv := servers[(i+round)%len(servers)]
					seconds := 1
					if client == byFio {
						seconds = s.seconds(2)
					}
					sample, err := measure(srv, client, w, seconds)
					if err != nil {
						return err
					}
					s.sample(group, w.name, client, srv.Name, sample)
				}
			}
		}
	}
	return nil
}

func (s *Suite) nbdChecks(ours string) {
	const g = "nbd"
	for _, w := range workloads {
		for _, client := range []string{byBatch, byFio} {
			us := s.median(g, w.name, client, ours)
			ratio := us.IOPS / s.median(g, w.name, client, "nbdkit").IOPS
			name := fmt.Sprintf("%s, %s: against nbdkit", w.name, client)
			floor := 1.0
			if client == byBatch && w.depth == 32 {
				floor = 1.4
			}
			s.floor(g, name, ratio, floor, "×")
			if w.depth == 1 {
				s.stretch(g, name+" (stretch)", ratio, 1.4, "×")
			}
			s.floor(g, fmt.Sprintf("%s, %s: against qemu-nbd", w.name, client), us.IOPS/s.median(g, w.name, client, "qemu-nbd").IOPS, 1, "×")
			if client == byBatch && w.depth == 32 {
				s.ceiling(g, w.name+": agent CPU per I/O", us.CPU, 5, "µs")
			}
		}
	}
}
