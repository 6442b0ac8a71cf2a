package nbdserver

import (
	"context"
	"fmt"

	"github.com/moraine-storage/moraine/drivers/block"
)

// Leftovers describes what a loop without connections should not have.
func (l *Loop) Leftovers(ctx context.Context) (s string, err error) {
	err = l.Do(ctx, func(block.Queue) {
		if l.nconns > 0 {
			s = fmt.Sprintf("%d connections", l.nconns)
			return
		}
		if l.load != 0 || l.inflight != 0 || l.receiving != 0 || l.locks.Len() != 0 || len(l.ready)+len(l.later)+len(l.marked) != 0 {
			s = fmt.Sprintf("load %d, in flight %d, receiving %d, locks %d, ready %d, later %d, marked %d",
				l.load, l.inflight, l.receiving, l.locks.Len(), len(l.ready), len(l.later), len(l.marked))
		}
	})
	return s, err
}
