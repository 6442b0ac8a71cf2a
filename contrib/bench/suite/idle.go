package suite

import (
	"errors"
	"fmt"
	"time"

	"github.com/moraine-storage/moraine/contrib/bench/target"
)

// idleVolumes are attached while the agent is measured at rest.
const idleVolumes = 10

// idleGroup measures how soon an agent is ready, and what it costs at rest
// with embedded etcd and attached volumes.
func (s *Suite) idleGroup() (err error) {
	const g = "idle"
	if s.Target != "moraine" {
		return fmt.Errorf("needs the agent, not target %s", s.Target)
	}
	dir, err := s.folder(s.disk, g)
	if err != nil {
		return err
	}
	var ready []time.Duration
	var agent *target.Agent
	for range s.rounds(3) + 1 { // the first is that of a fresh node
		if agent != nil {
			if err := agent.Stop(); err != nil {
				return err
			}
		}
		if agent, err = target.StartAgent(s.Binary, dir); err != nil {
			return err
		}
		ready = append(ready, agent.Ready)
	}
	defer func() { err = errors.Join(err, agent.Stop()) }()
	s.logf("ready after %v (fresh), %v (again)", ready[0], ready[1:])
	s.ceiling(g, "ready after start, fresh node", ready[0].Seconds(), 3, "s")
	s.ceiling(g, "ready after start, again (median)", medianTime(ready[1:]).Seconds(), 3, "s")
	for i := range idleVolumes {
		name := fmt.Sprintf("idle%d", i)
		if err := agent.Create(name, gib); err != nil {
			return err
		}
		if _, err := agent.Attach(name); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, agent.Detach(name)) }()
	}
	return s.atRest(g, agent)
}

func (s *Suite) atRest(g string, agent *target.Agent) error {
	time.Sleep(5 * time.Second) // what attaching has started
	pids, err := agent.Tree()
	if err != nil {
		return err
	}
	span := time.Duration(s.seconds(60)) * time.Second
	before, err := target.CPU(pids...)
	if err != nil {
		return err
	}
	time.Sleep(span)
	after, err := target.CPU(pids...)
	if err != nil {
		return fmt.Errorf("a process of the agent has ended: %w", err)
	}
	pss, err := target.PSS(pids...)
	if err != nil {
		return err
	}
	note := fmt.Sprintf("%d processes, %d attached volumes, over %v", len(pids), idleVolumes, span)
	s.check(Check{Group: g, Name: "memory (PSS) of agent, plugins and holder", Value: float64(pss) / mib, Bound: 150, AtMost: true, Unit: "MiB", Note: note})
	s.check(Check{Group: g, Name: "CPU of agent, plugins and holder", Value: 100 * float64(after-before) / float64(span), Bound: 1, AtMost: true, Unit: "% of a core", Note: note})
	return nil
}
