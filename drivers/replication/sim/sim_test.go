package sim

import (
	"fmt"
	"os"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// envSeeds is a number of seeds from the environment.
func envSeeds(t *testing.T, name string, def int) int {
	v := os.Getenv(name)
	if v == "" {
		return def
	}
	n, err := strconv.Atoi(v)
	if err != nil || n <= 0 {
		t.Fatalf("%s=%q: want a number of seeds", name, v)
	}
	return n
}

// sum adds up what the runs counted.
type sum struct {
	mu           sync.Mutex
	runs, ops    int
	errors       int
	time         time.Duration
	faults       map[string]int
	steps        map[string]int64
	minOps, minF int
}

func (s *sum) add(r *Result) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.faults == nil {
		s.faults, s.steps, s.minOps, s.minF = map[string]int{}, map[string]int64{}, 1<<30, 1<<30
	}
	s.runs++
	s.ops += r.Ops
	s.errors += r.Errors
	s.time += r.Time
	s.minOps, s.minF = min(s.minOps, r.Ops), min(s.minF, r.FaultCount())
	for k, n := range r.Faults {
		s.faults[k] += n
	}
	v := reflect.ValueOf(r.Steps)
	for i := range v.NumField() {
		s.steps[v.Type().Field(i).Name] += v.Field(i).Int()
	}
}

func (s *sum) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d seeds, %d operations (%d with an error), %v simulated; at least %d operations and %d faults each\n", s.runs, s.ops, s.errors, s.time.Round(time.Second), s.minOps, s.minF)
	print := func(title string, keys []string, count func(string) int64) {
		slices.Sort(keys)
		fmt.Fprintf(&b, "%s:", title)
		for _, k := range keys {
			fmt.Fprintf(&b, " %s %d;", k, count(k))
		}
		b.WriteString("\n")
	}
	var faults, steps []string
	for k := range s.faults {
		faults = append(faults, k)
	}
	for k := range s.steps {
		steps = append(steps, k)
	}
	print("faults", faults, func(k string) int64 { return int64(s.faults[k]) })
	print("steps", steps, func(k string) int64 { return s.steps[k] })
	return b.String()
}

// runSeeds runs seeds on all processors and reports the first failures.
func runSeeds(t *testing.T, n int, options func(seed uint64) Options) *sum {
	t.Helper()
	var s sum
	var next atomic.Uint64
	var wg sync.WaitGroup
	var failed atomic.Int32
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for {
				seed := next.Add(1)
				if seed > uint64(n) || failed.Load() >= 10 {
					return
				}
				o := options(seed)
				o.Seed = seed
				r := Run(o)
				if r.Failure != "" {
					failed.Add(1)
					o.Trace = true
					again := Run(o)
					tail := again.Trace[max(0, len(again.Trace)-60):]
					t.Errorf("seed %d: %s\n%s", seed, r.Failure, strings.Join(tail, "\n"))
					continue
				}
				s.add(&r)
			}
		})
	}
	wg.Wait()
	return &s
}

// Goal: under every mixture of faults all rules hold, everything comes to rest
// and all copies are equal. MORAINE_SIM_SEEDS=5000 for the long run.
func TestSeeds(t *testing.T) {
	n := envSeeds(t, "MORAINE_SIM_SEEDS", 40)
	s := runSeeds(t, n, func(uint64) Options { return Options{} })
	t.Log(s)
	if t.Failed() {
		return
	}
	if s.minOps < 2000 || s.minF < 20 {
		t.Errorf("a run had %d operations and %d faults, want 2000 and 20", s.minOps, s.minF)
	}
	if n < 500 {
		return // rare things may be missing
	}
	for k, c := range s.steps {
		if c == 0 {
			t.Errorf("step %s was never taken", k)
		}
	}
}

// Goal: a run depends on its seed and on nothing else.
func TestDeterministic(t *testing.T) {
	for seed := range uint64(3) {
		a := Run(Options{Seed: 1000 + seed, Trace: true})
		b := Run(Options{Seed: 1000 + seed, Trace: true})
		if !reflect.DeepEqual(a, b) {
			for i := range min(len(a.Trace), len(b.Trace)) {
				if a.Trace[i] != b.Trace[i] {
					t.Fatalf("seed %d: line %d: %s / %s", seed, i, a.Trace[i], b.Trace[i])
				}
			}
			t.Fatalf("seed %d: two runs differ in their counts", seed)
		}
	}
}
