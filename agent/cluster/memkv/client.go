package memkv

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/moraine-storage/moraine/agent/cluster"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// Client is one node's access to a Store; it implements cluster.KV.
type Client struct {
	s *Store

	mu     sync.Mutex
	closed bool
	faults []*Fault
	done   chan struct{} // closed by Close
}

var _ cluster.KV = (*Client)(nil)

// Client returns a new client of the store.
func (s *Store) Client() *Client { return &Client{s: s, done: make(chan struct{})} }

// begin applies faults. err is what the call returns without being carried
// out; after what it returns although it was.
func (c *Client) begin(ctx context.Context, call Call, key string) (after, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, cluster.ErrClosed
	}
	switch c.faultLocked(call, key) {
	case Unreachable:
		return nil, cluster.ErrUnavailable
	case RequestLost:
		return nil, lost(call)
	case AnswerLost:
		return lost(call), nil
	}
	return nil, nil
}

// Get implements cluster.KV.
func (c *Client) Get(ctx context.Context, key string) (cluster.Item, error) {
	if err := cluster.ValidateKey(key); err != nil {
		return cluster.Item{}, fmt.Errorf("get: %w", err)
	}
	after, err := c.begin(ctx, CallGet, key)
	if err == nil {
		err = after
	}
	if err != nil {
		return cluster.Item{}, fmt.Errorf("get %s: %w", key, err)
	}
	s := c.s
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expireLocked()
	it := s.currentLocked(key)
	if !it.Exists() {
		return cluster.Item{}, fmt.Errorf("get %s: %w", key, errdefs.ErrNotFound)
	}
	return it, nil
}

// List implements cluster.KV.
func (c *Client) List(ctx context.Context, req cluster.ListRequest) (cluster.Page, error) {
	if err := req.Validate(); err != nil {
		return cluster.Page{}, err
	}
	after, err := c.begin(ctx, CallList, req.Prefix)
	if err == nil {
		err = after
	}
	if err != nil {
		return cluster.Page{}, fmt.Errorf("list %s: %w", req.Prefix, err)
	}
	s := c.s
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expireLocked()
	rev := req.Revision
	switch {
	case rev == 0:
		rev = s.rev
	case rev < s.compacted:
		return cluster.Page{}, fmt.Errorf("list %s at %d: %w", req.Prefix, rev, cluster.ErrCompacted)
	case rev > s.rev:
		return cluster.Page{}, fmt.Errorf("list %s at %d: the store is at %d: %w", req.Prefix, rev, s.rev, errdefs.ErrOutOfRange)
	}
	p := cluster.Page{Revision: rev}
	var more bool
	p.Items, more = s.listLocked(req.Prefix, req.After, rev, req.Limit)
	if more {
		p.Next = p.Items[len(p.Items)-1].Key
	}
	return p, nil
}

// Txn implements cluster.KV.
func (c *Client) Txn(ctx context.Context, txn cluster.Txn) (cluster.TxnResult, error) {
	if err := txn.Validate(); err != nil {
		return cluster.TxnResult{}, err
	}
	after, err := c.begin(ctx, CallTxn, txnKey(txn))
	if err != nil {
		return cluster.TxnResult{}, fmt.Errorf("txn %s: %w", txnKey(txn), err)
	}
	res, err := c.s.txn(txn)
	if err == nil && after != nil {
		return cluster.TxnResult{}, fmt.Errorf("txn %s: %w", txnKey(txn), after)
	}
	return res, err
}

// txnKey is the key that names a transaction in errors and faults.
func txnKey(t cluster.Txn) string {
	if len(t.Then) > 0 {
		return t.Then[0].Key
	}
	return t.If[0].Key
}

func (s *Store) txn(txn cluster.Txn) (cluster.TxnResult, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expireLocked()
	res := cluster.TxnResult{OK: true}
	for _, cond := range txn.If {
		it := s.currentLocked(cond.Key)
		res.OK = res.OK && cond.Holds(it)
		res.Current = append(res.Current, it)
	}
	if res.OK {
		res.Current = nil
		for _, op := range txn.Then {
			if op.Lease != 0 && s.leases[op.Lease] == nil {
				return cluster.TxnResult{}, fmt.Errorf("txn %s: lease %x is over: %w", op.Key, int64(op.Lease), errdefs.ErrNotFound)
			}
		}
		s.commitLocked(txn.Then)
	}
	res.Revision = s.rev
	return res, nil
}

// Grant implements cluster.KV.
func (c *Client) Grant(ctx context.Context, ttl time.Duration) (cluster.Lease, error) {
	if err := cluster.ValidateTTL(ttl); err != nil {
		return nil, err
	}
	after, err := c.begin(ctx, CallGrant, "")
	if err != nil {
		return nil, fmt.Errorf("grant lease: %w", err)
	}
	ttl = (ttl + time.Second - 1).Truncate(time.Second) // as etcd: whole seconds
	s := c.s
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expireLocked()
	s.lastLease++
	id := s.lastLease
	s.leases[id] = &lease{ttl: ttl, end: s.now().Add(ttl), keys: make(map[string]bool)}
	s.armLocked()
	if after != nil {
		return nil, fmt.Errorf("grant lease: %w", after)
	}
	return &clientLease{c: c, id: id, ttl: ttl}, nil
}

// Close implements cluster.KV. The store and its other clients live on.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.closed = true
		close(c.done)
	}
	return nil
}
