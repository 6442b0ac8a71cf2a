package session

import (
	"fmt"
	"time"

	"github.com/moraine-storage/moraine/drivers/block"
)

// Limits bound what a volume may do per second; 0 means no limit.
type Limits struct {
	IOPS      int64 // operations per second
	Bandwidth int64 // bytes per second
}

// burst is how much of a second may be used at once after idling.
const burst = 100 * time.Millisecond

func (l Limits) validate() error {
	if l.IOPS < 0 || l.Bandwidth < 0 {
		return fmt.Errorf("limits %d operations, %d bytes per second: %w (0 means no limit)", l.IOPS, l.Bandwidth, block.ErrInvalid)
	}
	return nil
}

// limiter delays reads, writes and zeroing so that a volume stays within its
// limits. It keeps two virtual clocks (as the generic cell rate algorithm
// does): the time at which all admitted operations, or bytes, are paid for. A
// request is due when both are at most burst ahead of now. Flush and trim
// cost nothing: delaying them would only hold others up.
type limiter struct {
	limits   Limits
	opsPaid  time.Time
	dataPaid time.Time
	queue    []*block.Request // waiting, in order of arrival
	timer    *time.Timer
}

func newLimiter(l Limits, wake func()) *limiter {
	if l.IOPS == 0 && l.Bandwidth == 0 {
		return nil
	}
	lim := &limiter{limits: l, timer: time.AfterFunc(time.Hour, wake)}
	lim.timer.Stop()
	return lim
}

// admit says whether r may go now; if not, it is kept until due.
func (l *limiter) admit(r *block.Request, now time.Time) bool {
	if r.Op == block.OpFlush || r.Op == block.OpTrim || r.Op == block.OpCache {
		return true
	}
	if len(l.queue) == 0 && l.wait(now) <= 0 {
		l.charge(r, now)
		return true
	}
	l.queue = append(l.queue, r)
	l.arm(now)
	return false
}

// due appends the kept requests that may go now.
func (l *limiter) due(dst []*block.Request, now time.Time) []*block.Request {
	n := 0
	for n < len(l.queue) && l.wait(now) <= 0 {
		l.charge(l.queue[n], now)
		dst = append(dst, l.queue[n])
		n++
	}
	if n > 0 {
		l.queue = l.queue[:copy(l.queue, l.queue[n:])]
		l.arm(now)
	}
	return dst
}

// wait is how long until the next request is due.
func (l *limiter) wait(now time.Time) time.Duration {
	paid := l.opsPaid
	if l.dataPaid.After(paid) {
		paid = l.dataPaid
	}
	if !paid.After(now) {
		return 0 // also: never used, where Sub would saturate
	}
	return paid.Sub(now) - burst
}

func (l *limiter) charge(r *block.Request, now time.Time) {
	if l.limits.IOPS > 0 {
		l.opsPaid = later(l.opsPaid, now).Add(time.Duration(int64(time.Second) / l.limits.IOPS))
	}
	if l.limits.Bandwidth > 0 {
		cost := float64(r.Len) / float64(l.limits.Bandwidth) * float64(time.Second)
		l.dataPaid = later(l.dataPaid, now).Add(time.Duration(cost))
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func (l *limiter) arm(now time.Time) {
	if len(l.queue) > 0 {
		l.timer.Reset(max(l.wait(now), time.Millisecond))
	}
}

func (l *limiter) waiting() int { return len(l.queue) }

// stop ends the timer and returns what still waits.
func (l *limiter) stop() []*block.Request {
	l.timer.Stop()
	q := l.queue
	l.queue = nil
	return q
}
