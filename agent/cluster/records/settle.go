package records

import (
	"context"
	"fmt"

	recordsv1 "github.com/moraine-storage/moraine/agent/cluster/records/v1"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// Outcome is what became of a change whose answer was lost.
type Outcome int

// The outcomes.
const (
	// Made: the change is in the record.
	Made Outcome = iota + 1
	// NotMade: it is not, and can no longer be made.
	NotMade
	// Overtaken: another (or an earlier Settle) has changed the record since; whether this change was
	// made before cannot be told, and it can no longer be made. NotFound from
	// Settle, for a record that was deleted, means the same.
	Overtaken
)

// Settle finds out what became of an Update that failed as indeterminate.
// revision is the one at which the volume was read before the change, attempt
// the Attempt in the record as it was sent. The result is the record as it is
// now. If the change was not made yet, Settle writes the record as it is with a
// new attempt: a late arrival of the change then finds another revision. It
// may itself fail as indeterminate or unavailable: call it again.
func (s *Store) Settle(ctx context.Context, id ID, revision int64, attempt string) (Outcome, Versioned[*recordsv1.Volume], error) {
	for {
		now, err := s.Volumes.Get(ctx, id)
		if err != nil {
			return 0, now, fmt.Errorf("settle: %w", err)
		}
		switch {
		case now.Record.Attempt == attempt:
			return Made, now, nil
		case now.Revision != revision:
			return Overtaken, now, nil
		}
		fenced, err := s.Volumes.Update(ctx, now)
		switch {
		case err == nil:
			return NotMade, fenced, nil
		case errdefs.Indeterminate(err), !isAborted(err):
			return 0, now, fmt.Errorf("settle: %w", err)
		}
		// Lost to the change itself, or to another: read again.
	}
}
