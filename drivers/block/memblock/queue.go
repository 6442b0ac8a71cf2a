package memblock

import (
	"fmt"
	"math/rand/v2"

	"github.com/moraine-storage/moraine/drivers/block"
)

// Queue is one owner's access to a Disk.
type Queue struct {
	d        *Disk
	wake     func() // or nil
	rand     *rand.Rand
	accepted []*block.Request // async: submitted, not executed
	ended    []*block.Request
	closed   bool
}

var (
	_ block.Queue    = (*Queue)(nil)
	_ block.Extenter = (*Queue)(nil)
)

// OpenQueue gives access to the disk. wake (or nil) is the Wake of the owner's
// engine: an asynchronous disk calls it while requests are not ended, so that
// Wait returns and the owner reaps.
func (d *Disk) OpenQueue(wake func()) *Queue {
	return &Queue{d: d, wake: wake, rand: rand.New(rand.NewPCG(d.o.Seed, 1))}
}

// Submit implements block.Queue.
func (q *Queue) Submit(reqs []*block.Request) {
	info := q.Info()
	for _, r := range reqs {
		if q.closed {
			r.Err = block.ErrClosed
		} else {
			r.Err = block.Validate(r, info)
		}
		switch {
		case r.Err != nil:
			q.ended = append(q.ended, r)
		case q.d.o.Async:
			q.accepted = append(q.accepted, r)
		default:
			q.execute(r)
			q.ended = append(q.ended, r)
		}
	}
	q.poke()
}

func (q *Queue) poke() {
	if q.wake != nil && len(q.accepted) > 0 {
		q.wake()
	}
}

func (q *Queue) execute(r *block.Request) {
	if q.d.o.ReadOnly && r.Op != block.OpRead {
		return // flush and cache hints only: Validate refused the rest
	}
	switch r.Op {
	case block.OpRead:
		q.d.read(r.Buf, r.Off)
	case block.OpWrite:
		q.d.write(r.Buf, r.Off, r.Len, false)
	case block.OpZero:
		q.d.write(nil, r.Off, r.Len, r.Flags&block.NoHole != 0)
	case block.OpTrim:
		if off, n := block.CutInwards(r.Off, r.Len, Grain, q.Info().Size); n > 0 {
			q.d.write(nil, off, n, false)
		}
	case block.OpFlush:
		q.d.sync(0, -1)
	}
	if r.Flags&block.FUA != 0 && (r.Op == block.OpWrite || r.Op == block.OpZero || r.Op == block.OpTrim) {
		q.d.sync(r.Off, r.Len)
	}
}

// Reap implements block.Queue. Asynchronous: each accepted request is executed
// with even odds, in random order, and at least one is.
func (q *Queue) Reap(done []*block.Request) int {
	for turns := len(q.accepted); turns > 0; turns-- {
		if len(q.ended) > 0 && q.rand.IntN(2) == 0 {
			continue
		}
		i, last := q.rand.IntN(len(q.accepted)), len(q.accepted)-1
		r := q.accepted[i]
		q.accepted[i] = q.accepted[last]
		q.accepted = q.accepted[:last]
		q.execute(r)
		q.ended = append(q.ended, r)
	}
	n := copy(done, q.ended)
	q.ended = q.ended[:copy(q.ended, q.ended[n:])]
	q.poke()
	return n
}

// InFlight implements block.Queue.
func (q *Queue) InFlight() int { return len(q.accepted) + len(q.ended) }

// Info implements block.Queue.
func (q *Queue) Info() block.Info {
	q.d.mu.RLock()
	defer q.d.mu.RUnlock()
	return block.Info{
		Size: q.d.size, BlockSize: 4096, Grain: Grain, MaxLen: MaxLen,
		ReadOnly: q.d.o.ReadOnly, Trim: true, Zero: true,
	}
}

// Extents implements block.Extenter.
func (q *Queue) Extents(dst []block.Extent, off, length int64, limit int) ([]block.Extent, error) {
	if size := q.Info().Size; off < 0 || length < 0 || off > size || length > size-off {
		return dst, fmt.Errorf("extents of %d bytes at %d: %w", length, off, block.ErrInvalid)
	}
	return q.d.extents(dst, off, length, limit), nil
}

// Close implements block.Queue. The disk keeps its contents.
func (q *Queue) Close() error {
	q.closed = true
	return nil
}
