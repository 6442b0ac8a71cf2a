package cluster

import (
	"errors"
	"fmt"

	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// ErrUnavailable: the store cannot be reached now, or has no leader. Unless
// errdefs.Indeterminate(err), the call did not happen.
var ErrUnavailable = fmt.Errorf("cluster store: %w", errdefs.ErrUnavailable)

// ErrIndeterminate: the change was sent and its outcome is not known; it may
// take effect even later. Class Unavailable.
var ErrIndeterminate = fmt.Errorf("cluster store: %w: %w", errdefs.ErrUnavailable, errdefs.ErrIndeterminate)

// ErrCompacted: the revision asked for is older than what the store remembers.
var ErrCompacted = fmt.Errorf("cluster store: revision is compacted: %w", errdefs.ErrOutOfRange)

// ErrClosed: the client was closed.
var ErrClosed = errors.New("cluster store: closed")
