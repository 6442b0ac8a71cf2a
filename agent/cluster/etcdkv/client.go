package etcdkv

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/hashicorp/go-hclog"

	"github.com/moraine-storage/moraine/agent/cluster"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// ClientOptions of a connection to an etcd outside this process.
type ClientOptions struct {
	// Endpoints: "https://10.0.0.1:2379", "unix:///run/etcd.sock"; one is enough.
	Endpoints []string

	// TLS for https endpoints; nil for the system's authorities and no
	// certificate of our own.
	TLS *tls.Config

	// Username and Password, when the store asks for them.
	Username, Password string

	// Prefix is put before every key, so that several clusters, or other
	// programs, may share the store. Empty or ending in a slash.
	Prefix string

	// Logger is where the client's messages go; nil is nowhere.
	Logger hclog.Logger
}

// Client implements cluster.KV over an etcd client.
type Client struct {
	c      *clientv3.Client
	prefix string

	// closing and failed end with the server in this process; nil if dialled.
	closing, failed <-chan struct{}
	forget          func() // of the server in this process; nil if dialled

	releaseOnce sync.Once
	releaseErr  error

	mu     sync.Mutex
	closed bool
	done   chan struct{} // closed by Close
}

var _ cluster.KV = (*Client)(nil)

// Dial connects to an external store and checks that it answers.
func Dial(ctx context.Context, opts ClientOptions) (*Client, error) {
	log := opts.Logger
	if log == nil {
		log = hclog.NewNullLogger()
	}
	lg, st := newZap(log)
	st.serving.Store(true)
	c, err := clientv3.New(clientv3.Config{
		Endpoints:            opts.Endpoints,
		TLS:                  opts.TLS,
		Username:             opts.Username,
		Password:             opts.Password,
		DialTimeout:          dialTimeout,
		DialKeepAliveTime:    keepAliveTime,
		DialKeepAliveTimeout: keepAliveTimeout,
		MaxCallSendMsgSize:   requestBytesMax,
		Logger:               lg.WithOptions(zap.IncreaseLevel(zap.WarnLevel)),
	})
	if err != nil {
		return nil, fmt.Errorf("dial cluster store %q: %w", opts.Endpoints, translate(ctx, err, false))
	}
	k := &Client{c: c, prefix: opts.Prefix, done: make(chan struct{})}
	callCtx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	if _, err := k.revision(callCtx); err != nil {
		k.Close()
		if ctx.Err() == nil {
			err = fmt.Errorf("%w: %w", cluster.ErrUnavailable, err)
		}
		return nil, fmt.Errorf("dial cluster store %q: %w", opts.Endpoints, err)
	}
	return k, nil
}

// begin refuses a call that must not be sent.
func (k *Client) begin(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := k.open(); err != nil {
		return err
	}
	select {
	case <-k.closing:
		return fmt.Errorf("stopped: %w", cluster.ErrUnavailable)
	case <-k.failed:
		return fmt.Errorf("failed: %w", cluster.ErrUnavailable)
	default:
		return nil
	}
}

func (k *Client) open() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return cluster.ErrClosed
	}
	return nil
}

// fail gives the error of a call that was sent its class.
func (k *Client) fail(ctx context.Context, err error, mayHaveHappened bool) error {
	if k.open() != nil && !mayHaveHappened {
		return cluster.ErrClosed
	}
	return translate(ctx, err, mayHaveHappened)
}

// Get implements cluster.KV.
func (k *Client) Get(ctx context.Context, key string) (cluster.Item, error) {
	if err := cluster.ValidateKey(key); err != nil {
		return cluster.Item{}, fmt.Errorf("get: %w", err)
	}
	if err := k.begin(ctx); err != nil {
		return cluster.Item{}, fmt.Errorf("get %s: %w", key, err)
	}
	resp, err := k.c.Get(ctx, k.prefix+key)
	if err != nil {
		return cluster.Item{}, fmt.Errorf("get %s: %w", key, k.fail(ctx, err, false))
	}
	if len(resp.Kvs) == 0 {
		return cluster.Item{}, fmt.Errorf("get %s: %w", key, errdefs.ErrNotFound)
	}
	return k.item(resp.Kvs[0]), nil
}

// item copies, because the server in this process may hand out its own memory.
func (k *Client) item(kv *mvccpb.KeyValue) cluster.Item {
	return cluster.Item{
		Key:            string(kv.Key[len(k.prefix):]),
		Value:          append([]byte(nil), kv.Value...),
		CreateRevision: kv.CreateRevision,
		ModRevision:    kv.ModRevision,
		Lease:          cluster.LeaseID(kv.Lease),
	}
}

// List implements cluster.KV.
func (k *Client) List(ctx context.Context, req cluster.ListRequest) (cluster.Page, error) {
	if err := req.Validate(); err != nil {
		return cluster.Page{}, err
	}
	if err := k.begin(ctx); err != nil {
		return cluster.Page{}, fmt.Errorf("list %s: %w", req.Prefix, err)
	}
	from := k.prefix + req.Prefix
	if req.After != "" {
		from = k.prefix + req.After + "\x00"
	}
	resp, err := k.c.Get(ctx, from,
		clientv3.WithRange(clientv3.GetPrefixRangeEnd(k.prefix+req.Prefix)),
		clientv3.WithSort(clientv3.SortByKey, clientv3.SortAscend),
		clientv3.WithLimit(int64(req.Limit)),
		clientv3.WithRev(req.Revision))
	if err != nil {
		return cluster.Page{}, fmt.Errorf("list %s: %w", req.Prefix, k.fail(ctx, err, false))
	}
	p := cluster.Page{Revision: req.Revision}
	if p.Revision == 0 {
		p.Revision = resp.Header.Revision
	}
	for _, kv := range resp.Kvs {
		p.Items = append(p.Items, k.item(kv))
	}
	if resp.More && len(p.Items) > 0 {
		p.Next = p.Items[len(p.Items)-1].Key
	}
	return p, nil
}

// revision reads the store's revision, linearizably.
func (k *Client) revision(ctx context.Context) (int64, error) {
	resp, err := k.c.Get(ctx, k.prefix+"\x00", clientv3.WithKeysOnly())
	if err != nil {
		return 0, k.fail(ctx, err, false)
	}
	return resp.Header.Revision, nil
}

// Txn implements cluster.KV.
func (k *Client) Txn(ctx context.Context, txn cluster.Txn) (cluster.TxnResult, error) {
	if err := txn.Validate(); err != nil {
		return cluster.TxnResult{}, err
	}
	if err := k.begin(ctx); err != nil {
		return cluster.TxnResult{}, fmt.Errorf("txn: %w", err)
	}
	cmps, gets := k.conditions(txn.If)
	resp, err := k.c.Txn(ctx).If(cmps...).Then(k.changes(txn.Then)...).Else(gets...).Commit()
	if err != nil {
		return cluster.TxnResult{}, fmt.Errorf("txn: %w", k.fail(ctx, err, txn.Writes()))
	}
	res := cluster.TxnResult{OK: resp.Succeeded, Revision: resp.Header.Revision}
	if res.OK {
		return res, nil
	}
	for i, c := range txn.If {
		it := cluster.Item{Key: c.Key}
		if kvs := resp.Responses[i].GetResponseRange().GetKvs(); len(kvs) > 0 {
			it = k.item(kvs[0])
		}
		res.Current = append(res.Current, it)
	}
	return res, nil
}

func (k *Client) conditions(conds []cluster.Cond) (cmps []clientv3.Cmp, gets []clientv3.Op) {
	for _, c := range conds {
		key := k.prefix + c.Key
		switch c.Kind {
		case cluster.CondAbsent:
			cmps = append(cmps, clientv3.Compare(clientv3.ModRevision(key), "=", 0))
		case cluster.CondExists:
			cmps = append(cmps, clientv3.Compare(clientv3.ModRevision(key), ">", 0))
		default:
			cmps = append(cmps, clientv3.Compare(clientv3.ModRevision(key), "=", c.Revision))
		}
		gets = append(gets, clientv3.OpGet(key))
	}
	return cmps, gets
}

func (k *Client) changes(ops []cluster.Op) []clientv3.Op {
	var out []clientv3.Op
	for _, op := range ops {
		key := k.prefix + op.Key
		if op.Kind == cluster.OpDelete {
			out = append(out, clientv3.OpDelete(key))
			continue
		}
		out = append(out, clientv3.OpPut(key, string(op.Value), clientv3.WithLease(clientv3.LeaseID(op.Lease))))
	}
	return out
}

// Grant implements cluster.KV.
func (k *Client) Grant(ctx context.Context, ttl time.Duration) (cluster.Lease, error) {
	if err := cluster.ValidateTTL(ttl); err != nil {
		return nil, err
	}
	if err := k.begin(ctx); err != nil {
		return nil, fmt.Errorf("grant lease: %w", err)
	}
	seconds := int64((ttl + time.Second - 1) / time.Second)
	resp, err := k.c.Grant(ctx, seconds)
	if err != nil {
		return nil, fmt.Errorf("grant lease: %w", k.fail(ctx, err, true))
	}
	return &lease{k: k, id: resp.ID, ttl: time.Duration(resp.TTL) * time.Second}, nil
}

// Compact forgets history before rev. The store does so by itself; this is for
// tests and tools.
func (k *Client) Compact(ctx context.Context, rev int64) error {
	if _, err := k.c.Compact(ctx, rev, clientv3.WithCompactPhysical()); err != nil {
		return fmt.Errorf("compact to %d: %w", rev, k.fail(ctx, err, true))
	}
	return nil
}

// Close implements cluster.KV.
func (k *Client) Close() error {
	k.mu.Lock()
	if k.closed {
		k.mu.Unlock()
		return nil
	}
	k.closed = true
	close(k.done)
	k.mu.Unlock()
	if k.forget != nil {
		k.forget()
	}
	if err := k.release(); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("close cluster store client: %w", err)
	}
	return nil
}

// release ends what runs for the client, once.
func (k *Client) release() error {
	k.releaseOnce.Do(func() { k.releaseErr = k.c.Close() })
	return k.releaseErr
}

// lease implements cluster.Lease.
type lease struct {
	k   *Client
	id  clientv3.LeaseID
	ttl time.Duration
}

func (l *lease) ID() cluster.LeaseID { return cluster.LeaseID(l.id) }
func (l *lease) TTL() time.Duration  { return l.ttl }

func (l *lease) KeepAlive(ctx context.Context) error {
	err := l.k.begin(ctx)
	if err == nil {
		if _, err = l.k.c.KeepAliveOnce(ctx, l.id); err != nil {
			err = l.k.fail(ctx, err, true)
		}
	}
	if err != nil {
		return fmt.Errorf("keep lease %x: %w", int64(l.id), err)
	}
	return nil
}

func (l *lease) Revoke(ctx context.Context) error {
	err := l.k.begin(ctx)
	if err == nil {
		if _, err = l.k.c.Revoke(ctx, l.id); err != nil {
			err = l.k.fail(ctx, err, true)
		}
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("revoke lease %x: %w", int64(l.id), err)
	}
	return nil
}
