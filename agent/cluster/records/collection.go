package records

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/moraine-storage/moraine/agent/cluster"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// FormatVersion is the version of the record format that this agent reads and
// writes.
const FormatVersion = 1

// ErrNewerFormat: the record was written by a newer agent in a way that this
// one would misread. Upgrade this agent.
var ErrNewerFormat = fmt.Errorf("written by a newer version of moraine: %w", errdefs.ErrFailedPrecondition)

// ErrDamaged: the value is no record.
var ErrDamaged = fmt.Errorf("damaged record: %w", errdefs.ErrDataLoss)

// message is what all records have.
type message interface {
	proto.Message
	GetId() string
	GetOldestReader() uint32
}

// Versioned is a record as read at a revision. Change Record and pass the
// value to Update or Delete.
type Versioned[M message] struct {
	Record   M
	Revision int64 // of the record; never 0

	// Lease is the lease that the record is bound to, or 0.
	Lease cluster.LeaseID

	name string // of the record as read; it must not change
}

// Event is a change of one record. For a delete Record is nil.
type Event[M message] struct {
	Kind     cluster.EventKind
	ID       ID
	Record   M
	Revision int64
}

// Collection is all records of one type. Use those in Store.
type Collection[M message] struct {
	kv    cluster.KV
	kind  string // "volume": the word in errors and the key's prefix
	empty func() M

	// name returns the unique name of a record; nil if the type has none.
	name func(M) string
	// stamp prepares a record for writing, or is nil.
	stamp func(M)
	// setOldest sets oldest_reader.
	setOldest func(M, uint32)
}

func (c *Collection[M]) key(id ID) string           { return c.kind + "/" + string(id) }
func (c *Collection[M]) nameKey(name string) string { return c.kind + "-name/" + name }

// decode reads one item; object names it in errors.
func (c *Collection[M]) decode(it cluster.Item) (Versioned[M], error) {
	m := c.empty()
	if err := proto.Unmarshal(it.Value, m); err != nil {
		return Versioned[M]{}, fmt.Errorf("record %s: %w: %v", it.Key, ErrDamaged, err)
	}
	if m.GetOldestReader() == 0 || it.Key != c.key(ID(m.GetId())) {
		return Versioned[M]{}, fmt.Errorf("record %s: %w: it is not for this key", it.Key, ErrDamaged)
	}
	if m.GetOldestReader() > FormatVersion {
		return Versioned[M]{}, fmt.Errorf("record %s: needs format %d, this agent has %d: %w", it.Key, m.GetOldestReader(), FormatVersion, ErrNewerFormat)
	}
	v := Versioned[M]{Record: m, Revision: it.ModRevision, Lease: it.Lease}
	if c.name != nil {
		v.name = c.name(m)
	}
	return v, nil
}

// encode prepares and marshals a record.
func (c *Collection[M]) encode(m M) ([]byte, error) {
	if _, err := ParseID(m.GetId()); err != nil {
		return nil, fmt.Errorf("%s: %w", c.kind, err)
	}
	if m.GetOldestReader() == 0 {
		c.setOldest(m, FormatVersion)
	}
	if c.stamp != nil {
		c.stamp(m)
	}
	b, err := proto.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w: %v", c.kind, m.GetId(), errdefs.ErrInvalidArgument, err)
	}
	if len(b) > cluster.MaxValueBytes {
		return nil, fmt.Errorf("%s %s: record of %d bytes, at most %d: %w", c.kind, m.GetId(), len(b), cluster.MaxValueBytes, errdefs.ErrResourceExhausted)
	}
	return b, nil
}

// Get reads one record; NotFound when there is none.
func (c *Collection[M]) Get(ctx context.Context, id ID) (Versioned[M], error) {
	if _, err := ParseID(string(id)); err != nil {
		return Versioned[M]{}, fmt.Errorf("%s: %w", c.kind, err)
	}
	it, err := c.kv.Get(ctx, c.key(id))
	switch {
	case errdefs.IsNotFound(err):
		return Versioned[M]{}, fmt.Errorf("%s %s: %w", c.kind, id, errdefs.ErrNotFound)
	case err != nil:
		return Versioned[M]{}, fmt.Errorf("read %s %s: %w", c.kind, id, err)
	}
	return c.decode(it)
}

// GetByName reads the record of that name; NotFound when there is none, or the
// type has no names.
func (c *Collection[M]) GetByName(ctx context.Context, name string) (Versioned[M], error) {
	missing := fmt.Errorf("%s %q: %w", c.kind, name, errdefs.ErrNotFound)
	if c.name == nil || validateName(c.kind, name) != nil {
		return Versioned[M]{}, missing
	}
	// A record deleted, and its name used anew, between the two reads: look again.
	const attemptsMax = 4
	for range attemptsMax {
		it, err := c.kv.Get(ctx, c.nameKey(name))
		switch {
		case errdefs.IsNotFound(err):
			return Versioned[M]{}, missing
		case err != nil:
			return Versioned[M]{}, fmt.Errorf("look up %s %q: %w", c.kind, name, err)
		}
		v, err := c.Get(ctx, ID(it.Value))
		if !errdefs.IsNotFound(err) {
			return v, err
		}
	}
	return Versioned[M]{}, missing
}

// List reads all records, in order of identity, and the revision of the store
// at which they were read: Watch from the one after it. Records that cannot be
// read are left out and reported in the error, beside what could be read.
func (c *Collection[M]) List(ctx context.Context) ([]Versioned[M], int64, error) {
	items, rev, err := cluster.ListAll(ctx, c.kv, c.kind+"/")
	if err != nil {
		return nil, 0, err
	}
	var errs []error
	out := make([]Versioned[M], 0, len(items))
	for _, it := range items {
		v, err := c.decode(it)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		out = append(out, v)
	}
	return out, rev, errors.Join(errs...)
}

// Watch follows the changes of all records from revision `from` on; the rules
// of cluster.KV hold. Events of records that cannot be read are passed to bad,
// which must not be nil.
func (c *Collection[M]) Watch(ctx context.Context, from int64, bad func(error)) (*Watcher[M], error) {
	w, err := c.kv.Watch(ctx, c.kind+"/", from)
	if err != nil {
		return nil, err
	}
	return &Watcher[M]{c: c, w: w, bad: bad}, nil
}

// Watcher is a watch of one type. The rules of cluster.Watcher hold.
type Watcher[M message] struct {
	c   *Collection[M]
	w   cluster.Watcher
	bad func(error)
}

// Next returns the next changes and the revision up to which all were
// delivered.
func (w *Watcher[M]) Next(ctx context.Context) ([]Event[M], int64, error) {
	for {
		b, err := w.w.Next(ctx)
		if err != nil {
			return nil, 0, err
		}
		var out []Event[M]
		for _, ev := range b.Events {
			e := Event[M]{Kind: ev.Kind, ID: ID(strings.TrimPrefix(ev.Item.Key, w.c.kind+"/")), Revision: ev.Item.ModRevision}
			if ev.Kind == cluster.EventPut {
				v, err := w.c.decode(ev.Item)
				if err != nil {
					w.bad(err)
					continue
				}
				e.Record = v.Record
			}
			out = append(out, e)
		}
		if len(out) > 0 {
			return out, b.Revision, nil
		}
	}
}

// Close ends the watch.
func (w *Watcher[M]) Close() error { return w.w.Close() }

// Create writes a new record; AlreadyExists when its identity or its name is
// taken.
func (c *Collection[M]) Create(ctx context.Context, m M) (Versioned[M], error) {
	ch := c.Creating(m)
	rev, err := commit(ctx, c.kv, ch)
	if err != nil {
		return Versioned[M]{}, err
	}
	return c.written(m, rev, 0), nil
}

// Update writes v.Record if nobody has changed the record since v was read:
// else Aborted, or NotFound when it was deleted. The result is v at its new
// revision; v itself must not be written again.
func (c *Collection[M]) Update(ctx context.Context, v Versioned[M]) (Versioned[M], error) {
	rev, err := commit(ctx, c.kv, c.Updating(v))
	if err != nil {
		return Versioned[M]{}, err
	}
	return c.written(v.Record, rev, v.Lease), nil
}

// Delete removes the record under the same condition.
func (c *Collection[M]) Delete(ctx context.Context, v Versioned[M]) error {
	_, err := commit(ctx, c.kv, c.Deleting(v))
	return err
}

func (c *Collection[M]) written(m M, rev int64, lease cluster.LeaseID) Versioned[M] {
	v := Versioned[M]{Record: m, Revision: rev, Lease: lease}
	if c.name != nil {
		v.name = c.name(m)
	}
	return v
}
