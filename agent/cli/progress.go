package cli

import (
	"context"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"

	"github.com/moraine-storage/moraine/agent/api"
	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

const (
	// progressAfter is how long work may take before it is worth a bar.
	progressAfter = 500 * time.Millisecond
	// progressStep bounds how often the bar is drawn.
	progressStep = 100 * time.Millisecond
)

// Progress is told how far work has come: done of total units, total 0 if that
// is not known. It may be called from several goroutines, and often.
type Progress func(done, total int64)

// bar draws progress on standard error if that is a terminal. A nil bar does
// nothing.
type bar struct {
	mu    sync.Mutex
	b     *progressbar.ProgressBar // guarded by mu; nil until it is worth drawing
	make  func(total int64) *progressbar.ProgressBar
	start time.Time
	total int64
	ended bool
}

// newBar returns nil where nobody looks.
func (a *app) newBar(what, unit string) *bar {
	if a.quiet || !a.IsTerminal(a.Stderr) {
		return nil
	}
	return &bar{start: time.Now(), make: func(total int64) *progressbar.ProgressBar {
		if total <= 0 {
			total = -1 // a spinner
		}
		opts := []progressbar.Option{
			progressbar.OptionSetWriter(a.Stderr), progressbar.OptionSetDescription(what),
			progressbar.OptionThrottle(progressStep), progressbar.OptionClearOnFinish(),
			progressbar.OptionSetWidth(30), progressbar.OptionSetPredictTime(unit == "bytes"),
			progressbar.OptionSetSpinnerChangeInterval(0), // otherwise a goroutine that outlives the bar
		}
		if unit == "bytes" {
			opts = append(opts, progressbar.OptionShowBytes(true), progressbar.OptionUseIECUnits(true))
		} else {
			opts = append(opts, progressbar.OptionShowCount())
		}
		return progressbar.NewOptions64(total, opts...)
	}}
}

// update is a Progress.
func (b *bar) update(done, total int64) {
	b.show("", done, total)
}

// show draws, with another text in front if there is one.
func (b *bar) show(text string, done, total int64) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended || b.b == nil && time.Since(b.start) < progressAfter {
		return
	}
	if b.b == nil {
		b.b, b.total = b.make(total), total
	}
	if total > 0 && total != b.total {
		b.total = total
		b.b.ChangeMax64(total)
	}
	if text != "" {
		b.b.Describe(clean(text))
	}
	// At the maximum the library ends the line; finish does that. Its errors
	// are those of writing to the terminal: then there is no bar.
	if total > 0 && done >= total {
		done = total - 1
	}
	_ = b.b.Set64(max(done, 0))
}

// finish takes the bar away. It may be repeated.
func (b *bar) finish() {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.b != nil && !b.ended {
		_ = b.b.Clear() // only a terminal that is gone fails
	}
	b.ended = true
}

// followOperation shows how the operation with this id comes along, from when
// it appears. The function that it returns takes the bar away and waits.
func (a *app) followOperation(ctx context.Context, svc api.Service, id string) (done func()) {
	b := a.newBar("", "steps")
	if b == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			err := svc.WatchOperation(ctx, &apiv1.GetOperationRequest{Id: id}, func(op *apiv1.Operation) error {
				b.show(op.GetStep(), op.GetDone(), op.GetTotal())
				return nil
			})
			// Not there yet: the call that makes it is on its way. Any other
			// end, good or bad, is the call's to tell.
			if !errdefs.IsNotFound(err) || sleep(ctx, waitStep) != nil {
				return
			}
		}
	}()
	return func() {
		cancel()
		<-ended
		b.finish()
	}
}
