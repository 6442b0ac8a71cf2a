package cluster_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moraine-storage/moraine/agent/cluster"
	"github.com/moraine-storage/moraine/agent/cluster/memkv"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// TestKeepLease: a lease lives through an outage that is shorter than its ttl,
// because failures are tried again soon, and its end is told after a longer one.
func TestKeepLease(t *testing.T) {
	for _, c := range []struct {
		name   string
		kind   memkv.FaultKind
		outage time.Duration
		lives  bool
	}{
		{"short", memkv.Unreachable, 3 * time.Second, true},
		{"short, unknown", memkv.RequestLost, 3 * time.Second, true},
		{"answers lost", memkv.AnswerLost, time.Minute, true},
		{"long", memkv.Unreachable, 7 * time.Second, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				kv := memkv.New(memkv.Options{}).Client()
				defer kv.Close()
				l, err := kv.Grant(context.Background(), 6*time.Second)
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(context.Background())
				failures := 0
				done := make(chan error, 1)
				go func() { done <- cluster.KeepLease(ctx, l, func(error) { failures++ }) }()
				time.Sleep(time.Minute)
				kv.Inject(memkv.Fault{Kind: c.kind, Call: memkv.CallKeepAlive})
				time.Sleep(c.outage)
				kv.Clear()
				time.Sleep(time.Minute)
				cancel()
				err = <-done
				if lived := errors.Is(err, context.Canceled); lived != c.lives || !lived && !errdefs.IsNotFound(err) {
					t.Errorf("ended with %v", err)
				}
				if failures == 0 {
					t.Error("no failure was reported")
				}
				if err := l.KeepAlive(context.Background()); (err == nil) != c.lives {
					t.Errorf("lease: %v", err)
				}
			})
		})
	}
}
