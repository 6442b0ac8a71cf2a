// Package suite is what `make bench` measures: workloads, interleaved rounds,
// medians, ratios between targets of one run, and the floors that they must
// reach.
package suite

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/moraine-storage/moraine/contrib/bench/target"
)

// Config of a run.
type Config struct {
	Binary  string // of moraine
	Memory  string // a directory on tmpfs
	Disk    string // a directory on a disk
	Target  string // "moraine", or a kind of package inproc
	Match   *regexp.Regexp
	Quick   bool   // one short round: to see that everything runs
	Profile string // folder for processor profiles of in-process targets, or ""
	Log     io.Writer
}

// Suite is one run.
type Suite struct {
	Config
	dir     string // of this run, under Memory
	warmed  bool
	load    string // average before the run
	disk    string // of this run, under Disk
	Figures []*Figure
	Checks  []Check
	Skipped []string // groups that could not run, and why
}

// groups in the order in which they run.
var groups = []struct {
	name   string
	memory bool // uses much of tmpfs
	run    func(*Suite) error
}{
	{"nbd", true, (*Suite).nbdGroup},
	{"disk", false, (*Suite).diskGroup},
	{"first-writes", true, (*Suite).firstWriteGroup},
	{"snapshot", true, (*Suite).snapshotGroup},
	{"open", false, (*Suite).openGroup},
	{"attach", true, (*Suite).attachGroup},
	{"idle", false, (*Suite).idleGroup},
}

// Groups are the names that Match chooses from.
func Groups() []string {
	var names []string
	for _, g := range groups {
		names = append(names, g.name)
	}
	return names
}

// Run measures everything that Match chooses. A group that fails is reported
// and does not keep the others from running.
func Run(c Config) (*Suite, error) {
	s := &Suite{Config: c, load: loadAverage()}
	if !slices.ContainsFunc(Groups(), c.Match.MatchString) {
		return nil, fmt.Errorf("no group matches %q; there are %v", c.Match, Groups())
	}
	var err error
	if s.dir, err = os.MkdirTemp(c.Memory, "moraine-bench-"); err != nil {
		return nil, err
	}
	defer s.remove(s.dir)
	if s.disk, err = os.MkdirTemp(c.Disk, "moraine-bench-"); err != nil {
		return nil, err
	}
	defer s.remove(s.disk)
	var errs []error
	for _, g := range groups {
		if !c.Match.MatchString(g.name) {
			continue
		}
		if g.memory {
			if err := s.warm(); err != nil {
				return nil, err
			}
		}
		start := time.Now()
		s.logf("== %s", g.name)
		if err := g.run(s); err != nil {
			s.logf("%s: FAILED: %v", g.name, err)
			s.Skipped = append(s.Skipped, fmt.Sprintf("%s: %v", g.name, err))
			errs = append(errs, fmt.Errorf("%s: %w", g.name, err))
		}
		s.logf("== %s took %v", g.name, time.Since(start).Round(time.Second))
	}
	return s, errors.Join(errs...)
}

// remove removes a folder of the run, unless something is still mounted in it:
// a removal would reach into it, or hang on a device that nobody serves.
func (s *Suite) remove(dir string) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err == nil && strings.Contains(string(mounts), " "+dir+"/") {
		err = errors.New("something is mounted below it")
	}
	if err == nil {
		err = os.RemoveAll(dir)
	}
	if err != nil {
		s.logf("%s is left behind: %v", dir, err)
	}
}

func (s *Suite) logf(format string, args ...any) { fmt.Fprintf(s.Log, format+"\n", args...) }

// rounds is how often a group measures each of its workloads: n, or once.
func (s *Suite) rounds(n int) int {
	if s.Quick {
		return 1
	}
	return n
}

// seconds of one measurement: n, or one.
func (s *Suite) seconds(n int) int {
	if s.Quick {
		return 1
	}
	return n
}

// folder makes a folder for one target on a medium.
func (s *Suite) folder(base, name string) (string, error) {
	d := filepath.Join(base, name)
	return d, os.MkdirAll(d, 0o700)
}

func (s *Suite) figure(group, workload, client, target string) *Figure {
	for _, f := range s.Figures {
		if f.Group == group && f.Workload == workload && f.Client == client && f.Target == target {
			return f
		}
	}
	f := &Figure{Group: group, Workload: workload, Client: client, Target: target}
	s.Figures = append(s.Figures, f)
	return f
}

// sample adds a measurement to its figure.
func (s *Suite) sample(group, workload, client, target string, v Sample) {
	s.figure(group, workload, client, target).add(v)
	if v.MS > 0 {
		s.logf("%-50s %-8s %-10s %9.2f ms", workload, client, target, v.MS)
		return
	}
	s.logf("%-50s %-8s %-16s %9.0f/s %7.0f MiB/s %7.2f µs", workload, client, target, v.IOPS, v.MiBps, v.CPU)
}

// median of a figure that must be there.
func (s *Suite) median(group, workload, client, target string) Sample {
	return s.figure(group, workload, client, target).Median
}

func (s *Suite) floor(group, name string, value, bound float64, unit string) {
	s.check(Check{Group: group, Name: name, Value: value, Bound: bound, Unit: unit})
}

func (s *Suite) ceiling(group, name string, value, bound float64, unit string) {
	s.check(Check{Group: group, Name: name, Value: value, Bound: bound, Unit: unit, AtMost: true})
}

func (s *Suite) stretch(group, name string, value, bound float64, unit string) {
	s.check(Check{Group: group, Name: name, Value: value, Bound: bound, Unit: unit, Stretch: true})
}

func (s *Suite) check(c Check) {
	c.Pass = c.Value >= c.Bound
	if c.AtMost {
		c.Pass = c.Value <= c.Bound
	}
	s.Checks = append(s.Checks, c)
	s.logf("%-16s %-70s %12s  %s", c.verdict(), c.Name, number(c.Value, c.Unit), c.bound())
}

// stopAll ends servers and joins their errors to err.
func stopAll(err error, servers []*target.Server) error {
	for _, srv := range servers {
		err = errors.Join(err, srv.Stop())
	}
	return err
}
