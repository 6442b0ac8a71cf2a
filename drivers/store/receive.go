package store

import (
	"errors"
	"fmt"
	"io"

	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// Receive makes a replica out of a stream. A full stream makes a new one, with
// the specification given (Size 0: the stream's). A stream with a base needs
// the replica spec.ID to hold that snapshot and to be detached: its top goes
// back to the base first, then takes the changes. Durable on return; the
// caller freezes the result under the snapshot's id if it wants it.
//
// A stream that is cut short, damaged or newer is refused; then a new replica
// is deleted again, an old one stands at its base.
func (s *Store) Receive(in io.Reader, spec ReplicaSpec) (*Replica, *StreamHeader, error) {
	sr, err := NewStreamReader(in)
	if err != nil {
		return nil, nil, fmt.Errorf("receive replica %s: %w", spec.ID, err)
	}
	r, err := s.receiveInto(sr, spec)
	if err != nil {
		return nil, nil, fmt.Errorf("receive replica %s: %w", spec.ID, err)
	}
	err = r.takeFrames(sr)
	r.endReceive()
	if err == nil {
		err = s.flush()
	}
	if err == nil {
		return r, &sr.Header, nil
	}
	if sr.Header.Base == nil {
		err = errors.Join(err, s.Delete(spec.ID, true))
	} else {
		err = errors.Join(err, r.Restore(*sr.Header.Base))
	}
	return nil, nil, fmt.Errorf("receive replica %s: %w", spec.ID, err)
}

// receiveInto prepares the replica and bars it for others.
func (s *Store) receiveInto(sr *StreamReader, spec ReplicaSpec) (*Replica, error) {
	if spec.Size == 0 {
		spec.Size = sr.Header.Size
	}
	if spec.Size < sr.Header.Size {
		return nil, fmt.Errorf("stream of %d bytes into %d: %w", sr.Header.Size, spec.Size, errdefs.ErrOutOfRange)
	}
	if sr.Header.Base == nil {
		if _, err := s.Replica(spec.ID); err == nil {
			return nil, errdefs.ErrAlreadyExists
		}
		r, err := s.CreateReplica(spec)
		if err != nil {
			return nil, err
		}
		return r, r.beginReceive()
	}
	r, err := s.Replica(spec.ID)
	if err != nil {
		return nil, err
	}
	if err := r.Restore(*sr.Header.Base); err != nil {
		return nil, err
	}
	if err := r.Grow(max(spec.Size, r.Info().Size)); err != nil {
		return nil, err
	}
	return r, r.beginReceive()
}

func (r *Replica) beginReceive() error {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	if r.queue != nil || r.receiving || r.deleted {
		return fmt.Errorf("in use: %w", errdefs.ErrFailedPrecondition)
	}
	r.receiving = true
	return nil
}

func (r *Replica) endReceive() {
	r.s.mu.Lock()
	r.receiving = false
	r.s.mu.Unlock()
}

// takeFrames applies a stream. Map entries are appended after their data was
// written, as in a queue; a tracked replica marks regions dirty first.
func (r *Replica) takeFrames(sr *StreamReader) error {
	buf, free := alignedBuf(ExtentSize)
	defer free()
	marked := int64(-1)
	for {
		f, err := sr.frame()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if !r.rs.spec.Untracked {
			var gs []uint32
			for g := max(f.off>>regionShift, marked+1); g <= (f.off+f.extents<<extentShift-1)>>regionShift; g++ {
				gs = append(gs, uint32(g))
				marked = g
			}
			if len(gs) > 0 {
				if err := r.MarkDirty(gs...); err != nil {
					return err
				}
			}
		}
		if f.typ == frameHole {
			err = r.putHole(f)
		} else {
			copy(buf, f.payload)
			err = r.putExtent(uint32(f.off>>extentShift), buf)
		}
		if err != nil {
			return err
		}
	}
}

func (r *Replica) putHole(f *frame) error {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	return r.s.logLocked(&record{typ: recUnmap, handle: r.rs.handle, first: uint64(f.off) >> extentShift, n: uint64(f.extents)})
}

// putExtent writes a whole extent to a new place and maps it.
func (r *Replica) putExtent(lext uint32, buf []byte) error {
	s := r.s
	var phys uint32
	for try := 0; ; try++ {
		s.mu.Lock()
		err := s.spaceLocked(1)
		ok := false
		if err == nil {
			phys, _, ok = s.ext.take(true)
		}
		s.mu.Unlock()
		if ok {
			break
		}
		if err == nil || try == maxSpaceTries {
			err = fmt.Errorf("drive %s: %w", s.sb.drive, block.ErrNoSpace)
		}
		if !errors.Is(err, errWaitSpace) {
			return err
		}
		if err := s.makeRoom(); err != nil {
			return err
		}
	}
	if _, err := s.data.WriteAt(buf, int64(phys)<<extentShift); err != nil {
		s.mu.Lock()
		s.giveBackLocked(phys)
		s.mu.Unlock()
		return fmt.Errorf("write extent %d: %w: %w", lext, block.ErrIO, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.logLocked(&record{typ: recMap, maps: []mapEntry{{r.rs.handle, lext, uint32(entryOf(phys))}}}); err != nil {
		s.giveBackLocked(phys)
		return err
	}
	return nil
}
