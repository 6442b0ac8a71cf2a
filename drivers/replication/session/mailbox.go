package session

import (
	"sync"
	"sync/atomic"
)

// mailbox carries what other goroutines have to tell to the owner.
type mailbox struct {
	some   atomic.Bool
	mu     sync.Mutex
	queue  []func()
	spare  []func() // owner's
	closed bool
}

// post has fn run on the owner's goroutine. Any goroutine, the owner's too.
// After Close it does nothing.
func (g *Group) post(fn func()) {
	m := &g.mail
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return
	}
	m.queue = append(m.queue, fn)
	m.mu.Unlock()
	m.some.Store(true)
	g.o.Engine.Wake()
}

// readMail runs what was posted; false: nothing was.
func (g *Group) readMail() bool {
	m := &g.mail
	if !m.some.Load() {
		return false
	}
	m.some.Store(false)
	m.mu.Lock()
	mail := m.queue
	m.queue = m.spare[:0]
	m.mu.Unlock()
	for i, fn := range mail {
		mail[i] = nil
		if !g.dead {
			fn()
		}
	}
	m.spare = mail[:0]
	return len(mail) > 0
}

// close drops what is there and all that comes.
func (m *mailbox) close() {
	m.mu.Lock()
	m.closed = true
	m.queue = nil
	m.mu.Unlock()
}
