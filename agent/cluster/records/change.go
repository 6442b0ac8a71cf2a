package records

import (
	"context"
	"errors"
	"fmt"

	"github.com/moraine-storage/moraine/agent/cluster"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// Change is one record's part of a transaction: made by Creating, Updating and
// Deleting of a collection, carried out by Store.Commit.
type Change struct {
	err    error // why it cannot be, or nil
	object string
	checks []check
	ops    []cluster.Op
}

// check is a condition and what it means when it does not hold.
type check struct {
	cond cluster.Cond
	lost func(now cluster.Item) error
}

// Creating is Create as part of a transaction.
func (c *Collection[M]) Creating(m M) Change {
	b, err := c.encode(m)
	if err != nil {
		return Change{err: err}
	}
	ch := Change{object: c.kind + " " + m.GetId()}
	key := c.key(ID(m.GetId()))
	exists := func(cluster.Item) error { return errdefs.ErrAlreadyExists }
	ch.checks = append(ch.checks, check{cluster.Absent(key), exists})
	ch.ops = append(ch.ops, cluster.Put(key, b))
	if c.name != nil {
		name := c.name(m)
		if err := validateName(c.kind, name); err != nil {
			return Change{err: err}
		}
		ch.object = fmt.Sprintf("%s %q", c.kind, name)
		ch.checks = append(ch.checks, check{cluster.Absent(c.nameKey(name)), exists})
		ch.ops = append(ch.ops, cluster.Put(c.nameKey(name), []byte(m.GetId())))
	}
	return ch
}

// Updating is Update as part of a transaction.
func (c *Collection[M]) Updating(v Versioned[M]) Change {
	b, err := c.encode(v.Record)
	if err != nil {
		return Change{err: err}
	}
	if c.name != nil && c.name(v.Record) != v.name {
		return Change{err: fmt.Errorf("%s %q: its name cannot change to %q: %w", c.kind, v.name, c.name(v.Record), errdefs.ErrInvalidArgument)}
	}
	ch := c.atRevision(v)
	ch.ops = []cluster.Op{cluster.PutLeased(c.key(ID(v.Record.GetId())), b, v.Lease)}
	return ch
}

// Deleting is Delete as part of a transaction.
func (c *Collection[M]) Deleting(v Versioned[M]) Change {
	ch := c.atRevision(v)
	ch.ops = []cluster.Op{cluster.Delete(c.key(ID(v.Record.GetId())))}
	if c.name != nil {
		ch.ops = append(ch.ops, cluster.Delete(c.nameKey(v.name)))
	}
	return ch
}

// Unchanged changes nothing, but fails the transaction if the record is not as
// it was read.
func (c *Collection[M]) Unchanged(v Versioned[M]) Change { return c.atRevision(v) }

func (c *Collection[M]) atRevision(v Versioned[M]) Change {
	object := c.kind + " " + v.Record.GetId()
	if v.name != "" {
		object = fmt.Sprintf("%s %q", c.kind, v.name)
	}
	if v.Revision <= 0 {
		return Change{err: fmt.Errorf("%s: not read from the store: %w", object, errdefs.ErrInvalidArgument)}
	}
	lost := func(now cluster.Item) error {
		if !now.Exists() {
			return errdefs.ErrNotFound
		}
		return fmt.Errorf("changed by another (revision %d, now %d): %w", v.Revision, now.ModRevision, errdefs.ErrAborted)
	}
	return Change{object: object, checks: []check{{cluster.AtRevision(c.key(ID(v.Record.GetId())), v.Revision), lost}}}
}

// Commit carries out all changes or none, at the revision it returns. The error
// is that of the first change that could not be made.
func (s *Store) Commit(ctx context.Context, changes ...Change) (int64, error) {
	return commit(ctx, s.kv, changes...)
}

func commit(ctx context.Context, kv cluster.KV, changes ...Change) (int64, error) {
	var txn cluster.Txn
	for _, ch := range changes {
		if ch.err != nil {
			return 0, ch.err
		}
		for _, k := range ch.checks {
			txn.If = append(txn.If, k.cond)
		}
		txn.Then = append(txn.Then, ch.ops...)
	}
	object := "nothing"
	if len(changes) > 0 {
		object = changes[0].object
	}
	res, err := kv.Txn(ctx, txn)
	if err != nil {
		return 0, fmt.Errorf("write %s: %w", object, err)
	}
	if res.OK {
		return res.Revision, nil
	}
	i := 0
	for _, ch := range changes {
		for _, k := range ch.checks {
			if now := res.Current[i]; !k.cond.Holds(now) {
				return 0, fmt.Errorf("write %s: %w", ch.object, k.lost(now))
			}
			i++
		}
	}
	return 0, fmt.Errorf("write %s: refused for no condition: %w", object, errdefs.ErrInternal)
}

func isAborted(err error) bool { return errors.Is(err, errdefs.ErrAborted) }
