package store

import (
	"testing"
	"time"
)

// Goal: the crash-replay test sees what it is there to see. Method: each
// mutation breaks one rule; within the cuts that the ordinary test makes, it
// must be caught. The cases carry the names of REPLICATION's schedules, level C:
// TestCrashReplay runs them unbroken.
func TestCrashMutations(t *testing.T) {
	cases := []struct {
		name string
		opt  testOptions
	}{
		{"SigkillKeepsAcks: map entries stay in the process (S1)", testOptions{lazyAppend: true}},
		{"MapBeforeData: journal synced without the data (S2)", testOptions{noDataSync: true}},
		{"MapBeforeData: uncovered entries survive a power cut (S2)", testOptions{replayAll: true}},
		{"FreshExtentLeak: fresh extents keep old bytes (S3)", testOptions{noPunch: true}},
		{"FreedReused: freed extents reused at once (S4)", testOptions{freeAtOnce: true}},
		{"PartBlockWrites: without a block lock (S5)", testOptions{partLock: true, unit: 4096}},
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
