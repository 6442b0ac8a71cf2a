package cluster

import (
	"fmt"
	"strings"
	"time"

	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// Txn is a transaction: if all conditions hold, all changes are made.
type Txn struct {
	If   []Cond
	Then []Op // no key twice; may be empty (a consistent read of the If keys)
}

// TxnResult is the answer to a Txn that was carried out.
type TxnResult struct {
	// OK says whether all conditions held and so the changes were made.
	OK bool

	// Revision of the store right after the transaction. When OK and
	// something was put, it is the ModRevision of each key that was put.
	Revision int64

	// Current holds, when not OK, the items of the keys in If, in the same
	// order, as they were compared. Absent ones have only the Key.
	Current []Item
}

// CondKind is the kind of a condition.
type CondKind int

// The kinds of conditions.
const (
	CondAbsent CondKind = iota + 1
	CondExists
	CondAtRevision
)

// Cond is a condition on one key. Make it with Absent, Exists or AtRevision.
type Cond struct {
	Key      string
	Kind     CondKind
	Revision int64 // for CondAtRevision, > 0
}

// Absent holds when there is nothing at key.
func Absent(key string) Cond { return Cond{Key: key, Kind: CondAbsent} }

// Exists holds when there is something at key.
func Exists(key string) Cond { return Cond{Key: key, Kind: CondExists} }

// AtRevision holds when the last change of key was at revision; 0 is Absent.
func AtRevision(key string, revision int64) Cond {
	if revision == 0 {
		return Absent(key)
	}
	return Cond{Key: key, Kind: CondAtRevision, Revision: revision}
}

// Holds evaluates the condition on the item at its key (zero when absent).
func (c Cond) Holds(it Item) bool {
	switch c.Kind {
	case CondAbsent:
		return !it.Exists()
	case CondExists:
		return it.Exists()
	default:
		return it.ModRevision == c.Revision
	}
}

// OpKind is the kind of a change.
type OpKind int

// The kinds of changes.
const (
	OpPut OpKind = iota + 1
	OpDelete
)

// Op is one change. Make it with Put, PutLeased or Delete.
type Op struct {
	Kind  OpKind
	Key   string
	Value []byte
	Lease LeaseID
}

// Put sets the value of key, bound to no lease (also if it was before).
func Put(key string, value []byte) Op { return Op{Kind: OpPut, Key: key, Value: value} }

// PutLeased sets the value of key and binds it to the lease, whose end deletes
// the key. The transaction fails with errdefs.ErrNotFound, and changes
// nothing, if the lease is over.
func PutLeased(key string, value []byte, lease LeaseID) Op {
	return Op{Kind: OpPut, Key: key, Value: value, Lease: lease}
}

// Delete removes key; nothing happens if it is absent.
func Delete(key string) Op { return Op{Kind: OpDelete, Key: key} }

// Validate checks the transaction against limits.go; implementations call it
// first. The error is of class InvalidArgument.
func (t Txn) Validate() error {
	if len(t.If) == 0 && len(t.Then) == 0 {
		return invalid("txn", "neither a condition nor a change")
	}
	if len(t.If) > MaxTxnOps || len(t.Then) > MaxTxnOps {
		return invalid("txn", "%d conditions and %d changes, at most %d of each", len(t.If), len(t.Then), MaxTxnOps)
	}
	sum := 0
	for _, c := range t.If {
		if err := validateKey(c.Key); err != nil {
			return err
		}
		sum += len(c.Key)
		switch {
		case c.Kind < CondAbsent || c.Kind > CondAtRevision:
			return invalid("txn", "condition on %q of unknown kind %d", c.Key, c.Kind)
		case c.Kind == CondAtRevision && c.Revision <= 0:
			return invalid("txn", "condition on %q at revision %d", c.Key, c.Revision)
		}
	}
	seen := make(map[string]bool, len(t.Then))
	for _, op := range t.Then {
		if err := validateKey(op.Key); err != nil {
			return err
		}
		sum += len(op.Key) + len(op.Value)
		switch {
		case seen[op.Key]:
			return invalid("txn", "key %q is changed twice", op.Key)
		case op.Kind != OpPut && op.Kind != OpDelete:
			return invalid("txn", "change of %q of unknown kind %d", op.Key, op.Kind)
		case len(op.Value) > MaxValueBytes:
			return invalid("txn", "value of %q has %d bytes, at most %d", op.Key, len(op.Value), MaxValueBytes)
		}
		seen[op.Key] = true
	}
	if sum > MaxTxnBytes {
		return invalid("txn", "%d bytes in all, at most %d", sum, MaxTxnBytes)
	}
	return nil
}

// Writes says whether the transaction could change anything.
func (t Txn) Writes() bool { return len(t.Then) > 0 }

// ValidateKey checks the key of a Get.
func ValidateKey(key string) error { return validateKey(key) }

// Validate checks the request and puts the limit in range.
func (r *ListRequest) Validate() error {
	if r.Prefix == "" || len(r.Prefix) > MaxKeyBytes {
		return invalid("list", "prefix of %d bytes, want 1 to %d", len(r.Prefix), MaxKeyBytes)
	}
	if r.After != "" && !strings.HasPrefix(r.After, r.Prefix) {
		return invalid("list", "page after %q is not under %q", r.After, r.Prefix)
	}
	if r.Revision < 0 || r.Limit < 0 {
		return invalid("list", "negative revision or limit")
	}
	if r.Limit == 0 || r.Limit > MaxListItems {
		r.Limit = MaxListItems
	}
	return nil
}

// ValidateWatch checks the arguments of a Watch.
func ValidateWatch(prefix string, from int64) error {
	if prefix == "" || len(prefix) > MaxKeyBytes {
		return invalid("watch", "prefix of %d bytes, want 1 to %d", len(prefix), MaxKeyBytes)
	}
	if from < 0 {
		return invalid("watch", "revision %d", from)
	}
	return nil
}

// ValidateTTL checks the argument of a Grant.
func ValidateTTL(ttl time.Duration) error {
	if ttl < MinLeaseTTL || ttl > MaxLeaseTTL {
		return invalid("grant lease", "ttl %v, want %v to %v", ttl, MinLeaseTTL, MaxLeaseTTL)
	}
	return nil
}

func validateKey(key string) error {
	if key == "" || len(key) > MaxKeyBytes {
		return invalid("key", "%d bytes, want 1 to %d", len(key), MaxKeyBytes)
	}
	return nil
}

func invalid(op, format string, args ...any) error {
	return fmt.Errorf("%s: %s: %w", op, fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument)
}
