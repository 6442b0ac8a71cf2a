package etcdkv

import (
	"context"
	"fmt"
	"sync"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/moraine-storage/moraine/agent/cluster"
)

// watcher implements cluster.Watcher over etcd's channel, which keeps what was
// not yet read.
type watcher struct {
	k      *Client
	ctx    context.Context // life of the watch (KV.Watch)
	prefix string
	ch     clientv3.WatchChan

	closeOnce sync.Once
	cancel    context.CancelFunc // ends etcd's watch
	closed    chan struct{}

	err error // why the watch is over, or nil; used by Next only
}

// Watch implements cluster.KV.
func (k *Client) Watch(ctx context.Context, prefix string, from int64) (cluster.Watcher, error) {
	if err := cluster.ValidateWatch(prefix, from); err != nil {
		return nil, err
	}
	if err := k.begin(ctx); err != nil {
		return nil, fmt.Errorf("watch %s: %w", prefix, err)
	}
	// A read first: it says whether the store can be reached, where etcd's
	// Watch would wait, and it is the "now" of a watch from 0.
	now, err := k.revision(ctx)
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", prefix, err)
	}
	if from == 0 {
		from = now + 1
	}
	inner, cancel := context.WithCancel(ctx)
	return &watcher{
		k: k, ctx: ctx, prefix: prefix, cancel: cancel, closed: make(chan struct{}),
		ch: k.c.Watch(clientv3.WithRequireLeader(inner), k.prefix+prefix, clientv3.WithPrefix(), clientv3.WithRev(from)),
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
		select {
		case resp, ok := <-w.ch:
			b, err := w.batch(resp, ok)
			if err != nil {
				w.err = err
			} else if len(b.Events) > 0 {
				return b, nil
			}
		case <-ctx.Done():
		case <-w.ctx.Done():
		case <-w.closed:
		case <-w.k.done:
		case <-w.k.closing:
		case <-w.k.failed:
		}
	}
	w.cancel()
	return cluster.Batch{}, fmt.Errorf("watch %s: %w", w.prefix, w.err)
}

// over says why the watch has ended from this side, or nil.
func (w *watcher) over() error {
	select {
	case <-w.closed:
		return cluster.ErrClosed
	default:
	}
	return w.k.begin(w.ctx)
}

func (w *watcher) batch(resp clientv3.WatchResponse, ok bool) (cluster.Batch, error) {
	if !ok || resp.Canceled || resp.CompactRevision != 0 {
		if err := w.over(); err != nil {
			return cluster.Batch{}, err
		}
		if err := resp.Err(); err != nil {
			return cluster.Batch{}, translate(w.ctx, err, false)
		}
		return cluster.Batch{}, fmt.Errorf("ended by the store: %w", cluster.ErrUnavailable)
	}
	var b cluster.Batch
	for _, ev := range resp.Events {
		out := cluster.Event{Kind: cluster.EventPut, Item: w.k.item(ev.Kv)}
		if ev.Type == mvccpb.Event_DELETE {
			out = cluster.Event{Kind: cluster.EventDelete, Item: cluster.Item{Key: out.Item.Key, ModRevision: ev.Kv.ModRevision}}
		}
		b.Events = append(b.Events, out)
		b.Revision = ev.Kv.ModRevision
	}
	return b, nil
}

// Close implements cluster.Watcher.
func (w *watcher) Close() error {
	w.closeOnce.Do(func() {
		close(w.closed)
		w.cancel()
	})
	return nil
}
