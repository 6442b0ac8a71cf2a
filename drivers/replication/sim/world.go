package sim

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"time"
)

// event is something that happens at a time; events of one time happen in
// the order in which they were made.
type event struct {
	at  time.Duration
	seq uint64
	fn  func()
}

type eventHeap []event

func (h eventHeap) Len() int { return len(h) }
func (h eventHeap) Less(i, j int) bool {
	return h[i].at < h[j].at || h[i].at == h[j].at && h[i].seq < h[j].seq
}
func (h eventHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *eventHeap) Push(x any)   { *h = append(*h, x.(event)) }
func (h *eventHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = event{}
	*h = old[:len(old)-1]
	return e
}

// world is everything of one run. Nothing in it depends on anything but the
// seed and the options.
type world struct {
	opt   Options
	rnd   *rand.Rand
	now   time.Duration // true time; nodes have clocks of their own
	queue eventHeap
	seq   uint64

	nodes []*node
	cs    *clusterStore
	cut   [maxNodes][maxNodes]bool // messages from i to j do not arrive
	hist  history
	dev   *device // the newest
	devs  []*device
	snaps map[snapID]*snapshotView

	nextVal uint32
	applied [][]uint16 // by value and replica: how many units were written
	res     Result
	halt    bool // no more faults, no more load
	failure string

	hold      time.Duration // deadline of held requests
	confirmed bool
	minInSync int
	slowNet   bool
	// overlap: clients have overlapping writes in flight. Then devices do not
	// outlive agents, for what is sent again must not overlap (S8).
	overlap bool
	trace   []string
}

func (w *world) after(d time.Duration, fn func()) {
	w.seq++
	heap.Push(&w.queue, event{w.now + max(d, 0), w.seq, fn})
}

// run executes events until the time, or until the run has failed.
func (w *world) run(until time.Duration) {
	for len(w.queue) > 0 && w.queue[0].at <= until && w.failure == "" {
		e := heap.Pop(&w.queue).(event)
		w.now = e.at
		e.fn()
	}
	if w.failure == "" {
		w.now = max(w.now, until)
	}
}

// fail ends the run: a rule was broken.
func (w *world) fail(format string, args ...any) {
	if w.failure == "" {
		w.failure = fmt.Sprintf("at %v: ", w.now) + fmt.Sprintf(format, args...)
	}
}

func (w *world) log(format string, args ...any) {
	if w.opt.Trace {
		w.trace = append(w.trace, fmt.Sprintf("%v ", w.now)+fmt.Sprintf(format, args...))
	}
}

// chance is true with probability p.
func (w *world) chance(p float64) bool { return w.rnd.Float64() < p }

// between is uniform in [a, b).
func (w *world) between(a, b time.Duration) time.Duration {
	return a + time.Duration(w.rnd.Int64N(int64(b-a)))
}

// delay of one message: short, and now and then long, so that messages pass
// one another.
func (w *world) delay() time.Duration {
	switch {
	case w.slowNet:
		return w.between(time.Millisecond, 30*time.Millisecond)
	case w.chance(0.02):
		return w.between(5*time.Millisecond, 60*time.Millisecond)
	case w.chance(0.1):
		return w.between(time.Millisecond, 5*time.Millisecond)
	}
	return w.between(30*time.Microsecond, 500*time.Microsecond)
}

// deliver brings a message from a node to another. While the link is cut it
// is sent again, as TCP does, and given up after a while.
func (w *world) deliver(from, to int, fn func()) {
	d := w.delay()
	if from == to {
		d = w.between(time.Microsecond, 20*time.Microsecond)
	}
	w.after(d, func() { w.arrive(from, to, w.now+4*time.Second, fn) })
}

func (w *world) arrive(from, to int, giveUp time.Duration, fn func()) {
	if from != to && w.cut[from][to] {
		if w.now < giveUp {
			w.after(w.between(10*time.Millisecond, 60*time.Millisecond), func() { w.arrive(from, to, giveUp, fn) })
		}
		return
	}
	fn()
}
