package suite

import (
	"errors"
	"fmt"
	"strings"

	"github.com/moraine-storage/moraine/contrib/bench/target"
)

// attached is a block device of the host with a server behind it.
type attached struct {
	name   string
	device string
	pids   []int // whose processor time counts
}

// attachGroup compares a volume as a block device of the host with nbdfuse
// over nbdkit, and a loop device, on tmpfs.
func (s *Suite) attachGroup() (err error) {
	if s.Target != "moraine" {
		return fmt.Errorf("needs the agent, not target %s", s.Target)
	}
	dir, err := s.folder(s.dir, "attach")
	if err != nil {
		return err
	}
	kit, err := target.Nbdkit(dir, volumeSize)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, kit.Stop()) }()
	loop, err := target.NbdfuseLoop(kit, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, loop.Stop()) }()
	agent, device, err := s.attachOurs(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, agent.Detach("bench"), agent.Stop()) }()
	path := "kernel nbd"
	if strings.Contains(device, "loop") {
		path = "FUSE + loop"
	}
	s.logf("the volume is attached by %s: %s", path, device)
	return s.compareDevices([]attached{
		{"nbdfuse + loop", loop.Device, []int{loop.PID(), kit.PID}},
		{"moraine", device, []int{agent.PID()}},
	}, path)
}

func (s *Suite) attachOurs(dir string) (*target.Agent, string, error) {
	agentDir, err := s.folder(dir, "agent")
	if err != nil {
		return nil, "", err
	}
	agent, err := target.StartAgent(s.Binary, agentDir)
	if err != nil {
		return nil, "", err
	}
	var device string
	if err = agent.Create("bench", volumeSize); err == nil {
		device, err = agent.Attach("bench")
	}
	if err == nil {
		_, _, err = fioFile(device, workload{"fill", true, false, mib, 4}, 0)
	}
	if err != nil {
		return nil, "", errors.Join(err, agent.Stop())
	}
	return agent, device, nil
}

func (s *Suite) compareDevices(devices []attached, path string) error {
	const g = "attach"
	for round := range s.rounds(3) {
		for _, w := range workloads {
			for i := range devices {
				if err := s.deviceSample(g, devices[(i+round)%len(devices)], w); err != nil {
					return err
				}
			}
		}
	}
	for _, w := range workloads {
		if w.depth == 32 {
			ratio := s.median(g, w.name, byFio, "moraine").IOPS / s.median(g, w.name, byFio, devices[0].name).IOPS
			s.floor(g, fmt.Sprintf("%s, %s: against nbdfuse + loop", w.name, path), ratio, 1.5, "×")
		}
	}
	return nil
}

func (s *Suite) deviceSample(g string, d attached, w workload) error {
	before, err := target.CPU(d.pids...)
	if err != nil {
		return err
	}
	ops, elapsed, err := fioFile(d.device, w, s.seconds(2))
	if err != nil {
		return fmt.Errorf("%s on %s: %w", w.name, d.name, err)
	}
	after, err := target.CPU(d.pids...)
	if err != nil {
		return err
	}
	s.sample(g, w.name, byFio, d.name, sampleOf(ops, w.block, elapsed, after-before))
	return nil
}
