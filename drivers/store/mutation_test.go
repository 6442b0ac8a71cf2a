package store

import (
	"testing"
	"time"
)

// Goal: the crash-replay test sees what it is there to see. Method: each
// mutation breaks one rule; within the cuts that the ordinary test makes, it
// must be caught.
func TestCrashMutations(t *testing.T) {
	cases := []struct {
		name string
		opt  testOptions
	}{
		{"S1 map entries stay in the process", testOptions{lazyAppend: true}},
		{"S2 journal synced before the data", testOptions{noDataSync: true}},
		{"S2 uncovered entries survive a power cut", testOptions{replayAll: true}},
		{"S3 fresh extents keep old bytes", testOptions{noPunch: true}},
		{"S4 freed extents reused at once", testOptions{freeAtOnce: true}},
		{"B6 part-block writes without a lock", testOptions{partLock: true, unit: 4096}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			n, err := crashSeeds(t, 1, 300, c.opt, time.Time{})
			if err == nil {
				t.Fatalf("not caught in %d cuts", n)
			}
			t.Logf("caught after %d cuts: %.200s", n, err)
		})
	}
}
