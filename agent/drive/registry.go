package drive

import "context"

// Record is the cluster store's knowledge of a drive.
type Record struct {
	ID          string // 32 hex digits
	Node        string // ID of the node that opened it last
	Pool        string
	Backend     string // kind, for example "local"
	Source      string // where the medium was when last seen, for people
	Serial      string // of the medium; "" if it has none
	Size        int64  // bytes
	OpenCounter uint64 // of the last claim; grows for ever
	Open        bool   // claimed and not given back
	Formatted   bool   // a store was made on it
	Revision    int64  // of this record in the cluster store; 0: not there
}

// Registry keeps drive records. PutDrive is a compare-and-swap on r.Revision
// (0: must not exist) and returns the record with its new revision;
// errdefs.ErrAborted when somebody was faster.
type Registry interface {
	GetDrive(ctx context.Context, id string) (Record, error) // errdefs.ErrNotFound
	ListDrives(ctx context.Context) ([]Record, error)
	PutDrive(ctx context.Context, r Record) (Record, error)
}
