package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// ListAll reads all pages under prefix, all of one revision. It starts over
// when that revision is compacted meanwhile.
func ListAll(ctx context.Context, kv KV, prefix string) (items []Item, revision int64, err error) {
	const attemptsMax = 3 // a compaction every few minutes cannot hit a listing three times
	for attempt := 1; ; attempt++ {
		items, revision, err = listOnce(ctx, kv, prefix)
		if !errors.Is(err, ErrCompacted) || attempt == attemptsMax {
			return items, revision, err
		}
	}
}

func listOnce(ctx context.Context, kv KV, prefix string) ([]Item, int64, error) {
	var items []Item
	req := ListRequest{Prefix: prefix}
	for {
		p, err := kv.List(ctx, req)
		if err != nil {
			return nil, 0, fmt.Errorf("list %s: %w", prefix, err)
		}
		items = append(items, p.Items...)
		if p.Next == "" {
			return items, p.Revision, nil
		}
		req.After, req.Revision = p.Next, p.Revision
	}
}

// KeepLease keeps a lease alive every third of its ttl until ctx ends (then it
// returns the context's error and leaves the lease) or the lease is over (then
// it returns an error of class NotFound). Failures in between are passed to
// report, if not nil, and tried again.
func KeepLease(ctx context.Context, l Lease, report func(error)) error {
	every := l.TTL() / 3
	t := time.NewTimer(every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
		callCtx, cancel := context.WithTimeout(ctx, every)
		err := l.KeepAlive(callCtx)
		cancel()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errdefs.IsNotFound(err):
			return fmt.Errorf("keep lease %x: %w", int64(l.ID()), err)
		case err != nil && report != nil:
			report(err)
		}
		next := every
		if err != nil {
			next = max(every/4, 100*time.Millisecond) // tried again well before the ttl ends
		}
		t.Reset(next)
	}
}
