package memkv

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"

	"github.com/moraine-storage/moraine/agent/cluster"
)

// watcher is a cursor into the store's log.
type watcher struct {
	c          *Client
	ctx        context.Context // life of the watch (KV.Watch)
	prefix     string
	generation int

	closeOnce sync.Once
	closed    chan struct{}

	next int64 // the first revision not yet delivered; used by Next only
	err  error // why the watch is over, or nil; used by Next only
}

// Watch implements cluster.KV.
func (c *Client) Watch(ctx context.Context, prefix string, from int64) (cluster.Watcher, error) {
	if err := cluster.ValidateWatch(prefix, from); err != nil {
		return nil, err
	}
	after, err := c.begin(ctx, CallWatch, prefix)
	if err == nil {
		err = after
	}
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", prefix, err)
	}
	s := c.s
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expireLocked()
	if from == 0 {
		from = s.rev + 1
	}
	return &watcher{
		c: c, ctx: ctx, prefix: prefix, generation: s.generation,
		closed: make(chan struct{}), next: from,
	}, nil
}

// Next implements cluster.Watcher.
func (w *watcher) Next(ctx context.Context) (cluster.Batch, error) {
	for w.err == nil {
		if err := ctx.Err(); err != nil {
			return cluster.Batch{}, err
		}
		if w.err = w.over(); w.err != nil {
			break
		}
		b, changed, err := w.poll()
		if err != nil {
			w.err = err
			break
		}
		if len(b.Events) > 0 {
			return b, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
		case <-w.ctx.Done():
		case <-w.closed:
		case <-w.c.done:
		}
	}
	return cluster.Batch{}, fmt.Errorf("watch %s: %w", w.prefix, w.err)
}

// over says why the watch has ended from this side, or nil.
func (w *watcher) over() error {
	select {
	case <-w.closed:
		return cluster.ErrClosed
	default:
	}
	_, err := w.c.begin(w.ctx, CallWatch, w.prefix)
	return err
}

// poll returns what the log holds for the watch, and the channel to wait on.
func (w *watcher) poll() (cluster.Batch, <-chan struct{}, error) {
	s := w.c.s
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expireLocked()
	if w.generation != s.generation {
		return cluster.Batch{}, nil, fmt.Errorf("the store was restored: %w", cluster.ErrUnavailable)
	}
	if w.next < s.compacted {
		return cluster.Batch{}, nil, cluster.ErrCompacted
	}
	var b cluster.Batch
	for _, e := range s.log[s.logIndexLocked(w.next):] {
		if strings.HasPrefix(e.Item.Key, w.prefix) {
			e.Item.Value = bytes.Clone(e.Item.Value)
			b.Events = append(b.Events, e)
			b.Revision = e.Item.ModRevision
		}
	}
	w.next = max(w.next, s.rev+1)
	return b, s.changed, nil
}

// Close implements cluster.Watcher.
func (w *watcher) Close() error {
	w.closeOnce.Do(func() { close(w.closed) })
	return nil
}
