package replication

import (
	"testing"
	"time"

	"github.com/moraine-storage/moraine/drivers/block"
)

// loop is a volume at work: 32 operations in flight, each round ends one and
// starts another.
type loop struct {
	c    *Core
	now  time.Duration
	kind block.Op
	sent []Effect // not answered yet
	n    uint64
}

func newLoop(tb testing.TB, kind block.Op) *loop {
	r := newRig(tb, Config{CleanIdle: time.Hour}, 3).attach()
	return &loop{c: r.c, now: r.now, kind: kind}
}

func (l *loop) round() {
	l.n++
	o := l.c.NewOp()
	o.Kind, o.Off, o.Len = l.kind, int64(l.n*2654435761%2048)*4096, 4096
	l.c.Submit(l.now, o)
	for {
		fx := l.c.Effects()
		if len(fx) == 0 {
			// The oldest sends are answered while more than 32 operations are
			// under way.
			if len(l.sent) <= 32*3 {
				return
			}
			k := len(l.sent) - 32*3
			for _, e := range l.sent[:k] {
				l.c.Done(l.now, e.Op, e.Member, nil)
			}
			l.sent = l.sent[:copy(l.sent, l.sent[k:])]
			continue
		}
		for i := range fx {
			e := &fx[i]
			switch e.Kind {
			case Send:
				l.sent = append(l.sent, *e)
			case Complete, Release:
				if e.Final {
					l.c.FreeOp(e.Op)
				}
			}
		}
	}
}

// BenchmarkWrite3 is the core's whole cost of a write on three members: lock,
// region, three sends and completions, acknowledgment.
func BenchmarkWrite3(b *testing.B) {
	l := newLoop(b, block.OpWrite)
	b.ReportAllocs()
	for b.Loop() {
		l.round()
	}
}

// BenchmarkRead is the same of a read: lock, one send, lease check.
func BenchmarkRead(b *testing.B) {
	l := newLoop(b, block.OpRead)
	b.ReportAllocs()
	for b.Loop() {
		l.round()
	}
}

// Goal: the data path allocates nothing once it has run for a while.
func TestNoAllocations(t *testing.T) {
	for _, kind := range []block.Op{block.OpWrite, block.OpRead, block.OpFlush} {
		l := newLoop(t, kind)
		for range 5000 {
			l.round()
		}
		if n := testing.AllocsPerRun(1000, l.round); n != 0 {
			t.Errorf("%v: %v allocations for each operation", kind, n)
		}
	}
}
