package nbdserver

import (
	"context"
	"fmt"
	"net"

	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/nbd"
	"github.com/moraine-storage/moraine/drivers/nbd/internal/rawtls"
	"github.com/moraine-storage/moraine/drivers/nbd/internal/stream"
)

// Session is what a connection brings along from its negotiation.
type Session struct {
	Negotiated nbd.Negotiated
	Contexts   Contexts // for the contexts beside base:allocation; may be nil
	Peer       string   // for logs
	// Closed is called once, when the connection has ended and nothing of it
	// is in flight any more. It runs on the loop's goroutine: it must not
	// block nor call the loop. May be nil.
	Closed func()
}

// TransmissionFlags are those of an export that a Loop serves over a device.
// CAN_MULTI_CONN holds: all connections go through one queue, so a flush on one
// covers writes that were answered on another.
func TransmissionFlags(info block.Info, readOnly bool) uint16 {
	f := nbd.FlagHasFlags | nbd.FlagSendFlush | nbd.FlagSendFUA | nbd.FlagSendDF | nbd.FlagSendCache | nbd.FlagCanMultiConn
	if readOnly || info.ReadOnly {
		return f | nbd.FlagReadOnly
	}
	f |= nbd.FlagSendZeroes | nbd.FlagSendFastZero
	if info.Trim {
		f |= nbd.FlagSendTrim
	}
	return f
}

// Do runs f on the loop's goroutine with its queue and waits for it. f must
// not block for long: the volume stands still. When ctx ends first, f may
// still run. Never call it from the loop's goroutine.
func (l *Loop) Do(ctx context.Context, f func(q block.Queue)) error {
	return l.call(ctx, func() { f(l.queue) })
}

// Hold stops taking requests and waits until none is in flight; clients wait.
// Holds nest: each Hold that returned nil needs one Resume.
func (l *Loop) Hold(ctx context.Context) error {
	w := &waiter{cond: func() bool { return l.inflight == l.receiving }, ch: make(chan struct{})}
	if err := l.call(ctx, func() { l.holds++; l.waits = append(l.waits, w) }); err != nil {
		return err
	}
	if err := l.await(ctx, w); err != nil {
		l.Resume()
		return err
	}
	return nil
}

// Resume ends a Hold. It does not wait.
func (l *Loop) Resume() {
	// A loop that has ended has nothing to resume.
	_, _ = l.post(func() { l.holds--; l.throttled = true })
}

func (l *Loop) await(ctx context.Context, w *waiter) error {
	select {
	case <-w.ch:
		if l.isOver() {
			return fmt.Errorf("loop %s: %w", l.opts.Name, block.ErrClosed)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("loop %s: %w", l.opts.Name, ctx.Err())
	}
}

func (l *Loop) isOver() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.over
}

// Drain finishes the requests that were received, sends their replies, then
// closes the loop. When ctx ends first, it closes without and says so.
func (l *Loop) Drain(ctx context.Context) error {
	w := &waiter{cond: l.quiet, ch: make(chan struct{})}
	err := l.call(ctx, func() { l.holds++; l.waits = append(l.waits, w) })
	if err == nil {
		err = l.await(ctx, w)
	}
	if l.isOver() {
		err = nil // closed by someone else meanwhile: drained is drained
	}
	l.Close()
	return err
}

// quiet says that all is answered and sent.
func (l *Loop) quiet() bool {
	if l.inflight > l.receiving {
		return false
	}
	for _, c := range l.conns {
		if c != nil && !(c.out.empty() && (c.tls == nil || c.tls.Idle())) {
			return false
		}
	}
	return true
}

// Close closes all connections, waits for what the queue has in flight, and
// closes queue and engine. Idempotent; also for a loop that never started.
func (l *Loop) Close() {
	if !l.started.Load() {
		return
	}
	// An error says that the loop has ended or is about to.
	_, _ = l.post(func() { l.stopping = true })
	<-l.done
}

// Done is closed when the loop has ended, for whatever reason.
func (l *Loop) Done() <-chan struct{} { return l.done }

// Add takes a plain stream connection over, after its negotiation: nothing may
// be buffered above it. On error the connection is still the caller's.
func (l *Loop) Add(nc net.Conn, s Session) error {
	fd, err := stream.Dup(nc)
	if err != nil {
		return err
	}
	if err := l.addOwned(fd, nil, s); err != nil {
		return err
	}
	_ = nc.Close() // the duplicate lives on
	return nil
}

// addOwned is addSocket of a duplicate: closed when it cannot be added.
func (l *Loop) addOwned(fd int, t *rawtls.Transport, s Session) error {
	err := l.addSocket(fd, t, s)
	if err != nil {
		_ = unix.Close(fd) // nobody has used it
	}
	return err
}

// AddFD takes a connected stream socket over, in the transmission phase, for
// example our end of a pair whose other end the kernel has. The descriptor
// belongs to the loop unless an error is returned.
func (l *Loop) AddFD(fd int, s Session) error { return l.addSocket(fd, nil, s) }

func (l *Loop) addSocket(fd int, t *rawtls.Transport, s Session) error {
	if err := stream.Prepare(fd); err != nil {
		return fmt.Errorf("loop %s: %w", l.opts.Name, err)
	}
	var err error
	if e := l.call(context.Background(), func() { err = l.adopt(fd, t, s) }); e != nil {
		return e
	}
	return err
}

// adopt is addSocket on the loop's goroutine.
func (l *Loop) adopt(fd int, t *rawtls.Transport, s Session) error {
	if l.stopping {
		return fmt.Errorf("loop %s: %w", l.opts.Name, block.ErrClosed)
	}
	if l.nconns >= l.limits.Conns {
		return fmt.Errorf("loop %s: %w: %d connections", l.opts.Name, block.ErrNoMemory, l.nconns)
	}
	slot := 0
	for slot < len(l.conns) && l.conns[slot] != nil {
		slot++
	}
	if slot == len(l.conns) {
		l.conns = append(l.conns, nil)
	}
	l.generation++
	c := &conn{l: l, fd: fd, slot: slot, tls: t, neg: s.Negotiated, session: s, open: true,
		token: TokenLoop | uint64(l.generation&0x7fffffff)<<32 | uint64(slot), hdr: nbd.RequestSize}
	if c.neg.Extended {
		c.neg.Structured, c.hdr = true, nbd.ExtRequestSize
	}
	c.interest = c.wants()
	if err := l.engine.Watch(fd, c.interest, c.token); err != nil {
		return fmt.Errorf("loop %s: %w", l.opts.Name, err)
	}
	c.watched = true
	if t != nil {
		t.Attach(fd)
		if l.tlsScratch == nil {
			l.tlsScratch = make([]byte, rawtls.Gather)
		}
		c.buffered = true // the handshake may have read ahead
	}
	l.conns[slot] = c
	l.nconns++
	l.stats.Connections++
	l.active = true
	l.log.Debug("connected", "volume", l.opts.Name, "export", s.Negotiated.Name, "peer", s.Peer)
	return nil
}

// closeConn ends a connection at once. What it has in flight goes on; the
// replies are thrown away.
func (l *Loop) closeConn(c *conn, why error) {
	if !c.open {
		return
	}
	c.open = false
	if c.tls != nil && why == nil {
		c.tls.Farewell()
	}
	if c.watched {
		c.watched = false
		if err := l.engine.Unwatch(c.fd); err != nil {
			l.log.Error("unwatch", "volume", l.opts.Name, "error", err)
		}
	}
	_ = unix.Close(c.fd) // a socket: nothing is written back
	c.fd = -1
	l.conns[c.slot] = nil
	l.nconns--
	l.load -= c.out.bytes
	c.out.drop(&l.pool)
	if b := c.bulk; b != nil {
		c.bulk = nil
		l.receiving--
		l.finish(b)
	}
	if s := c.slab; s != nil {
		c.slab = nil
		if s.refs > 0 {
			s.left = true
			l.load += slabSize
		} else {
			l.pool.putSlab(s)
		}
	}
	if gone(why) {
		l.log.Debug("disconnected", "volume", l.opts.Name, "peer", c.session.Peer)
	} else {
		l.stats.Broken++
		l.log.Warn("connection closed", "volume", l.opts.Name, "peer", c.session.Peer, "error", why)
	}
	l.active = true
	l.ended(c)
}

// ended tells the owner of the session when a closed connection has nothing in flight.
func (l *Loop) ended(c *conn) {
	if c.open || c.inflight > 0 || c.ended {
		return
	}
	c.ended = true
	if c.session.Closed != nil {
		c.session.Closed()
	}
}

// Info is the queue's: its size may grow. Any goroutine, once started.
func (l *Loop) Info() block.Info { return l.queue.Info() }

// Conns is the number of open connections.
func (l *Loop) Conns(ctx context.Context) (n int, err error) {
	err = l.call(ctx, func() { n = l.nconns })
	return n, err
}
