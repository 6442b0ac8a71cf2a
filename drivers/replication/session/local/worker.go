package local

import "sync"

// worker runs functions one by one on a goroutine of its own.
type worker struct {
	mu    sync.Mutex
	cond  *sync.Cond
	queue []func()
	over  bool
	ended chan struct{}
}

func (w *worker) start() {
	w.cond = sync.NewCond(&w.mu)
	w.ended = make(chan struct{})
	go w.run()
}

func (w *worker) run() {
	defer close(w.ended)
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		for len(w.queue) == 0 && !w.over {
			w.cond.Wait()
		}
		if w.over {
			return
		}
		fn := w.queue[0]
		w.queue = append(w.queue[:0], w.queue[1:]...)
		w.mu.Unlock()
		fn()
		w.mu.Lock()
	}
}

// do has fn run; after stop it is dropped.
func (w *worker) do(fn func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.over {
		w.queue = append(w.queue, fn)
		w.cond.Signal()
	}
}

// stop waits for what runs and drops the rest.
func (w *worker) stop() {
	w.mu.Lock()
	w.over = true
	w.queue = nil
	w.cond.Signal()
	w.mu.Unlock()
	<-w.ended
}
