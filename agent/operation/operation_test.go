package operation

import (
	"context"
	"errors"
	"fmt"
	"testing"

	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// Goal: a repeated request ID joins the running work, and a watcher sees progress and the end.
func TestJoinAndWatch(t *testing.T) {
	ctx := context.Background()
	tab := NewTable()
	started, release := make(chan struct{}), make(chan struct{})
	runs := 0
	errs := make(chan error, 2)
	go func() {
		errs <- tab.Run(ctx, "r1", "volume.mount", "volume a", func(ctx context.Context, op *Op) error {
			runs++
			op.Progress("making filesystem", 1, 2, "steps")
			close(started)
			<-release
			return nil
		})
	}()
	<-started
	go func() {
		errs <- tab.Run(ctx, "r1", "volume.mount", "volume a", func(context.Context, *Op) error { runs++; return nil })
	}()
	if ops := tab.List(false); len(ops) != 1 || ops[0].Step != "making filesystem" {
		t.Errorf("list: %v", ops)
	}
	var last *apiv1.Operation
	watched := make(chan error)
	first := make(chan struct{}, 16)
	go func() {
		watched <- tab.Watch(ctx, "r1", func(o *apiv1.Operation) error { last = o; first <- struct{}{}; return nil })
	}()
	<-first
	close(release)
	if err := <-watched; err != nil || last.State != apiv1.OperationState_SUCCEEDED {
		t.Errorf("watch: %v %v", err, last)
	}
	for range 2 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if runs != 1 {
		t.Errorf("work ran %d times", runs)
	}
}

// Goal: failures are kept and told, IDs are not mixed up, the table is bounded.
func TestFailureAndBounds(t *testing.T) {
	ctx := context.Background()
	tab := NewTable()
	boom := errors.New("boom")
	fail := func(context.Context, *Op) error { return boom }
	if err := tab.Run(ctx, "id", "k", "o", fail); err != boom {
		t.Errorf("got %v", err)
	}
	if err := tab.Run(ctx, "id", "k", "other", fail); !errdefs.IsAlreadyExists(err) {
		t.Errorf("other object under one ID: %v", err)
	}
	if op, err := tab.Get("id"); err != nil || op.Error != "boom" || op.FinishedAt == nil {
		t.Errorf("get: %v %v", op, err)
	}
	for i := range keptFinished + 5 {
		_ = tab.Run(ctx, fmt.Sprint(i), "k", "o", func(context.Context, *Op) error { return nil })
	}
	if n := len(tab.List(true)); n != keptFinished {
		t.Errorf("%d finished operations kept", n)
	}
	if _, err := tab.Get("id"); !errdefs.IsNotFound(err) {
		t.Errorf("oldest still there: %v", err)
	}
}

// Goal: who repeats a request gets the error of the first, with its class.
func TestReplayedErrorKeepsItsClass(t *testing.T) {
	tab := NewTable()
	for range 2 {
		err := tab.Run(context.Background(), "r", "volume.resize", "volume a", func(context.Context, *Op) error {
			return fmt.Errorf("no such volume: %w", errdefs.ErrNotFound)
		})
		if !errdefs.IsNotFound(err) {
			t.Errorf("error %v", err)
		}
	}
}
