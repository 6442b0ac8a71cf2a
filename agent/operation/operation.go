// Package operation tracks long work: what runs, how far it is, how it ended.
//
// An operation belongs to the call that started it; callers who give a request
// ID can watch it under that ID while the call runs, and a repeated call with
// the same ID joins the work instead of starting it twice.
package operation

import (
	"context"
	"fmt"
	"sort"
	"sync"
	"time"

	"github.com/google/uuid"
	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	"github.com/moraine-storage/moraine/plugins/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// keptFinished bounds the finished operations that can still be asked for;
// one is about 300 bytes.
const keptFinished = 512

// Table holds the operations of this agent.
type Table struct {
	mu   sync.Mutex
	ops  map[string]*Op
	done []string // finished, oldest first
}

// Op is one operation. Its methods may be called by any goroutine.
type Op struct {
	table   *Table
	pb      *apiv1.Operation // guarded by table.mu
	changed chan struct{}    // closed and replaced at each change; guarded by table.mu
	err     error            // of the work, once it has ended; guarded by table.mu
}

// NewTable returns an empty table.
func NewTable() *Table { return &Table{ops: map[string]*Op{}} }

// Run runs work as an operation and returns its error. With a request ID that
// is known it does not run work again: it waits for the first and returns how
// that ended.
func (t *Table) Run(ctx context.Context, requestID, kind, object string, work func(ctx context.Context, op *Op) error) error {
	op, first := t.start(requestID, kind, object)
	if !first {
		return op.wait(ctx, kind, object)
	}
	err := work(ctx, op)
	op.finish(err)
	return err
}

func (t *Table) start(id, kind, object string) (op *Op, first bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if id == "" {
		id = uuid.NewString()
	} else if op := t.ops[id]; op != nil {
		return op, false
	}
	op = &Op{table: t, changed: make(chan struct{}), pb: &apiv1.Operation{
		Id: id, Kind: kind, Object: object, State: apiv1.OperationState_RUNNING,
		CreatedAt: timestamppb.New(time.Now()),
	}}
	t.ops[id] = op
	return op, true
}

func (op *Op) wait(ctx context.Context, kind, object string) error {
	if op.pb.Kind != kind || op.pb.Object != object {
		return fmt.Errorf("request %s was used for %s of %s: %w", op.pb.Id, op.pb.Kind, op.pb.Object, errdefs.ErrAlreadyExists)
	}
	pb, err := op.follow(ctx, func(*apiv1.Operation) error { return nil })
	if err != nil {
		return err
	}
	if pb.State == apiv1.OperationState_SUCCEEDED {
		return nil
	}
	op.table.mu.Lock()
	defer op.table.mu.Unlock()
	return op.err // as the first caller got it, class and all
}

// Progress tells the step and how far it is; total 0 means not known.
func (op *Op) Progress(step string, done, total int64, unit string) {
	op.update(func(pb *apiv1.Operation) { pb.Step, pb.Done, pb.Total, pb.Unit = step, done, total, unit })
}

func (op *Op) update(f func(*apiv1.Operation)) {
	op.table.mu.Lock()
	defer op.table.mu.Unlock()
	f(op.pb)
	close(op.changed)
	op.changed = make(chan struct{})
}

func (op *Op) finish(err error) {
	op.update(func(pb *apiv1.Operation) {
		pb.FinishedAt = timestamppb.New(time.Now())
		pb.State = apiv1.OperationState_SUCCEEDED
		if err != nil {
			pb.State, pb.Error, op.err = apiv1.OperationState_OPERATION_FAILED, err.Error(), err
		}
	})
	t := op.table
	t.mu.Lock()
	defer t.mu.Unlock()
	t.done = append(t.done, op.pb.Id)
	for len(t.done) > keptFinished {
		delete(t.ops, t.done[0])
		t.done = t.done[1:]
	}
}

func (op *Op) follow(ctx context.Context, send func(*apiv1.Operation) error) (*apiv1.Operation, error) {
	for {
		op.table.mu.Lock()
		pb := proto.Clone(op.pb).(*apiv1.Operation)
		changed := op.changed
		op.table.mu.Unlock()
		if err := send(pb); err != nil {
			return nil, err
		}
		if pb.State != apiv1.OperationState_RUNNING {
			return pb, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-changed:
		}
	}
}

func (t *Table) find(id string) (*Op, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	op := t.ops[id]
	if op == nil {
		return nil, fmt.Errorf("operation %q: %w", id, errdefs.ErrNotFound)
	}
	return op, nil
}

// Get returns one operation.
func (t *Table) Get(id string) (*apiv1.Operation, error) {
	op, err := t.find(id)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return proto.Clone(op.pb).(*apiv1.Operation), nil
}

// Watch calls send with the operation now and at each change until it is done.
func (t *Table) Watch(ctx context.Context, id string, send func(*apiv1.Operation) error) error {
	op, err := t.find(id)
	if err != nil {
		return err
	}
	_, err = op.follow(ctx, send)
	return err
}

// List returns the running operations, or all that are kept, oldest first.
func (t *Table) List(all bool) []*apiv1.Operation {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []*apiv1.Operation
	for _, op := range t.ops {
		if all || op.pb.State == apiv1.OperationState_RUNNING {
			out = append(out, proto.Clone(op.pb).(*apiv1.Operation))
		}
	}
	sort.Slice(out, func(i, j int) bool {
		a, b := out[i].CreatedAt.AsTime(), out[j].CreatedAt.AsTime()
		if a.Equal(b) {
			return out[i].Id < out[j].Id
		}
		return a.Before(b)
	})
	return out
}
