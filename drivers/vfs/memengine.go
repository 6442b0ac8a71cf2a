package vfs

import (
	"errors"
	"io"
	"math/rand/v2"
	"syscall"
	"time"

	"github.com/moraine-storage/moraine/drivers/aio"
)

// MemEngine is an aio.Engine over the files of a Mem. Without a random source
// it is inline: Submit has ended the operations on return. With one it holds
// operations back and ends them later in any order, as a disk does.
type MemEngine struct {
	m    *Mem
	r    *rand.Rand // nil: inline
	held []*aio.Op
	n    int
	wake chan struct{}
}

// NewMemEngine returns an engine; r may be nil.
func NewMemEngine(m *Mem, r *rand.Rand) *MemEngine {
	return &MemEngine{m: m, r: r, wake: make(chan struct{}, 1)}
}

// Submit implements aio.Engine.
func (e *MemEngine) Submit(ops ...*aio.Op) {
	for _, op := range ops {
		if e.r != nil {
			e.held = append(e.held, op)
			continue
		}
		e.run(op)
	}
}

func (e *MemEngine) run(op *aio.Op) {
	e.m.mu.Lock()
	f := e.m.fds[op.FD]
	e.m.mu.Unlock()
	op.Err = 0
	var err error
	switch {
	case f == nil:
		err = syscall.EBADF
	case op.Kind == aio.Read:
		var k int
		k, err = f.ReadAt(op.Buf, op.Off)
		if errors.Is(err, io.EOF) {
			clear(op.Buf[k:])
			err = nil
		}
	case op.Kind == aio.Write:
		_, err = f.WriteAt(op.Buf, op.Off)
	case op.Kind == aio.Datasync:
		err = f.Sync()
	default:
		err = syscall.EINVAL
	}
	if err != nil {
		op.Err = syscall.EIO
		var no syscall.Errno
		if errors.As(err, &no) {
			op.Err = no
		}
	}
	e.n++
	op.Done.Complete(op)
}

// Poll implements aio.Engine: it ends a random part of what is held back.
func (e *MemEngine) Poll() int {
	start := e.n
	for k := len(e.held); k > 0 && len(e.held) > 0; k-- {
		if e.r.IntN(3) == 0 {
			continue
		}
		i := e.r.IntN(len(e.held))
		op := e.held[i]
		e.held = append(e.held[:i], e.held[i+1:]...)
		e.run(op)
	}
	return e.n - start
}

// Watch implements aio.Engine; a Mem has no sockets.
func (e *MemEngine) Watch(int, uint32, uint64) error { return syscall.ENOTSUP }

// Unwatch implements aio.Engine.
func (e *MemEngine) Unwatch(int) error { return syscall.ENOTSUP }

// Wait implements aio.Engine.
func (e *MemEngine) Wait(_ []aio.Event, d time.Duration) (int, error) {
	if len(e.held) > 0 {
		for e.Poll() == 0 {
		}
		return 0, nil
	}
	var after <-chan time.Time
	if d >= 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		after = t.C
	}
	select {
	case <-e.wake:
	case <-after:
	}
	return 0, nil
}

// Wake implements aio.Engine.
func (e *MemEngine) Wake() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// InFlight implements aio.Engine.
func (e *MemEngine) InFlight() int { return len(e.held) }

// Blocking implements aio.Engine.
func (e *MemEngine) Blocking() bool { return e.r != nil }

// Close implements aio.Engine.
func (e *MemEngine) Close() error {
	for len(e.held) > 0 {
		e.Poll()
	}
	return nil
}
