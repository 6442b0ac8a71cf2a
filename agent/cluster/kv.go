package cluster

import (
	"context"
	"time"
)

// KV is the cluster store. Its life: open one (etcdkv, memkv), use it from any
// number of goroutines, Close it. One worked example, the compare-and-swap on
// which everything typed rests:
//
//	it, err := kv.Get(ctx, "volume/17")             // it.ModRevision is 41
//	res, err := kv.Txn(ctx, Txn{
//		If:   []Cond{AtRevision("volume/17", it.ModRevision)},
//		Then: []Op{Put("volume/17", next)},
//	})
//	// err != nil:  errdefs.Indeterminate(err) tells whether it may have happened
//	// res.OK:      done; res.Revision is now the record's ModRevision
//	// !res.OK:     somebody was faster; res.Current[0] is what is there now
//
// Errors, for all calls: ErrUnavailable when the store cannot be reached (the
// call did not happen unless the error is also indeterminate), the context's
// own error when that ended first, errdefs.ErrInvalidArgument for a request
// that breaks limits.go, ErrClosed after Close. Byte slices passed in are not
// kept and not changed; slices handed out belong to the caller.
type KV interface {
	// Get returns the item at key, linearizably; errdefs.ErrNotFound when
	// there is none.
	Get(ctx context.Context, key string) (Item, error)

	// List returns the items whose key starts with req.Prefix, in order of
	// key, a page at a time. All pages of one listing show the same revision.
	// ErrCompacted when that revision is gone: start over.
	// errdefs.ErrOutOfRange when it is not there yet.
	List(ctx context.Context, req ListRequest) (Page, error)

	// Txn checks the conditions and, if all hold, makes the changes, at once.
	// Conditions that do not hold are no error (TxnResult.OK is false). It is
	// the only call that changes keys, so the only one besides those of leases
	// that can be indeterminate.
	Txn(ctx context.Context, txn Txn) (TxnResult, error)

	// Watch follows all changes under prefix, from revision `from` on
	// (inclusive); 0 means: all changes after those that a Get made now would
	// see. It returns when the watch is set, without waiting for a change.
	// ctx bounds the life of the watch, not only this call. ErrCompacted, here
	// or from Next, when `from` is older than what the store remembers: list
	// again and watch from the page's Revision + 1. While the store cannot be
	// reached a watch may end with ErrUnavailable, or wait and go on later:
	// silence is no sign that nothing changes.
	Watch(ctx context.Context, prefix string, from int64) (Watcher, error)

	// Grant makes a lease that ends, and deletes all keys bound to it, when it
	// was not kept alive for ttl. The ttl runs on the store's clock and may be
	// rounded up (to seconds, and to the implementation's minimum). A restart
	// of the store gives every lease its full ttl again.
	Grant(ctx context.Context, ttl time.Duration) (Lease, error)

	// Close ends all watches with ErrClosed and releases what the client
	// holds. It leaves leases alone: they end by their ttl. Idempotent.
	Close() error
}

// Lease is one granted lease. Its methods may be used by any goroutine.
type Lease interface {
	// ID names the lease in Put operations; never 0.
	ID() LeaseID

	// TTL is what was granted, at least what was asked for.
	TTL() time.Duration

	// KeepAlive starts the ttl anew. errdefs.ErrNotFound when the lease is
	// over, which is final: its keys are gone or about to go. On any other
	// error the lease may still live. KeepLease calls this in a loop.
	KeepAlive(ctx context.Context) error

	// Revoke ends the lease now and deletes its keys. A lease that is over
	// already is no error.
	Revoke(ctx context.Context) error
}

// Watcher delivers the changes of one watch. One goroutine calls Next; any may
// call Close.
type Watcher interface {
	// Next waits for changes and returns those of one or more whole revisions,
	// oldest first; never an empty batch. ctx bounds this call only: after its
	// end the watch is unharmed and no event is lost. Any other error ends the
	// watch for good: ErrCompacted (see KV.Watch), ErrUnavailable (watch again
	// from the last Batch.Revision + 1), ErrClosed, or the watch's own
	// context's error.
	Next(ctx context.Context) (Batch, error)

	// Close ends the watch. Idempotent.
	Close() error
}

// LeaseID names a lease; 0 is none.
type LeaseID int64

// Item is a key with its value.
type Item struct {
	Key   string
	Value []byte

	// CreateRevision is that of the transaction that made the key,
	// ModRevision that of the last one that put it; both 0 when absent.
	CreateRevision int64
	ModRevision    int64

	// Lease is the lease the key is bound to, or 0.
	Lease LeaseID
}

// Exists says whether the item is there; false for the absent ones in
// TxnResult.Current.
func (it Item) Exists() bool { return it.ModRevision != 0 }

// ListRequest asks for one page.
type ListRequest struct {
	// Prefix of the keys; must not be empty.
	Prefix string

	// After is the key to go on behind: empty for the first page, then
	// Page.Next of the page before.
	After string

	// Revision is 0 for the first page, then Page.Revision of the first one.
	Revision int64

	// Limit is the largest number of items wanted; 0, or more than
	// MaxListItems, means MaxListItems.
	Limit int
}

// Page is one answer of List.
type Page struct {
	Items []Item

	// Revision is that of the store as listed: watch from Revision + 1 to
	// miss nothing.
	Revision int64

	// Next goes into ListRequest.After; empty on the last page.
	Next string
}

// EventKind says what happened to a key.
type EventKind int

// The kinds of events.
const (
	EventPut EventKind = iota + 1
	EventDelete
)

// String returns "put" or "delete".
func (k EventKind) String() string {
	switch k {
	case EventPut:
		return "put"
	case EventDelete:
		return "delete"
	}
	return "unknown"
}

// Event is one change. For a delete only Key and ModRevision (that of the
// deleting transaction) of the item are set.
type Event struct {
	Kind EventKind
	Item Item
}

// Batch is what Next returns.
type Batch struct {
	Events []Event

	// Revision is that of the last event: everything of the watch's prefix up
	// to it was delivered.
	Revision int64
}
