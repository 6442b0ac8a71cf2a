package inproc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/moraine-storage/moraine/drivers/aio"
	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/store"
)

// StoreDir is the store's folder in Options.Dir.
const StoreDir = "store"

// openStore serves a replica of one in a new store: what the agent serves but
// for the mirror.
func openStore(o Options) (*medium, error) { return newStore(o, "") }

// openStoreThreads does the same by the engine of kernels without io_uring.
func openStoreThreads(o Options) (*medium, error) { return newStore(o, aio.Threads) }

func newStore(o Options, mode aio.Mode) (*medium, error) {
	dir := filepath.Join(o.Dir, StoreDir)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	if err := store.Format(dir, store.FormatOptions{ClusterID: store.NewID()}); err != nil {
		return nil, err
	}
	s, err := store.Open(dir, store.Options{})
	if err != nil {
		return nil, err
	}
	r, session, err := promoted(s, o.Size)
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if mode == "" {
		mode = s.Mode()
	}
	return &medium{
		mode:     mode,
		open:     func(e aio.Engine) (block.Queue, error) { return r.OpenQueue(e, session) },
		snapshot: func() error { return snapshot(r) },
		close:    s.Close,
	}, nil
}

// promoted makes a replica and gives it to a session.
func promoted(s *store.Store, size int64) (*store.Replica, store.SessionID, error) {
	session := store.SessionID(store.NewID())
	r, err := s.CreateReplica(store.ReplicaSpec{ID: store.NewID(), VolumeID: store.NewID(), Size: size, Untracked: true})
	if err != nil {
		return nil, session, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	p := store.Promise{Promised: store.Promised{Epoch: store.Epoch{N: 1, Tag: 1}, Session: session}}
	if _, err := r.Promote(ctx, p); err != nil {
		return nil, session, fmt.Errorf("promote: %w", err)
	}
	return r, session, nil
}

// snapshot freezes the replica and drops the snapshot before it: two at most
// are there.
func snapshot(r *store.Replica) error {
	layers := r.Info().Layers
	if err := r.Freeze(store.NewID()); err != nil {
		return err
	}
	for _, l := range layers {
		if err := r.Drop(l.Snapshot); err != nil {
			return err
		}
	}
	return nil
}
