// Package rawtls runs crypto/tls over a raw, non-blocking descriptor inside an
// event loop.
//
// crypto/tls wants a net.Conn. During the handshake that is the real one; from
// Attach on it is the descriptor: a read that would block returns a temporary
// error, which tls.Conn survives with its half record kept
// (tls.Conn.readRecordOrCCS tests for Temporary), and writes are gathered
// until Push. No goroutines; one owner at a time.
package rawtls

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// readAhead bytes are asked for by one read(2): four records.
	readAhead = 64 << 10
	// Gather is how much plaintext one Write is best given: four records, sent
	// by one write(2).
	Gather = 64 << 10
)

// socket is the net.Conn below a tls.Conn.
type socket struct {
	net.Conn
	fd   int // -1 during the handshake
	in   []byte
	r, w int // in[r:w] is received and not decrypted
	out  []byte
	done int // bytes of out that the socket has taken
}

// wouldBlock is a net.Error that crypto/tls takes as "later": it keeps a half
// received record and does not fail the connection (tls.Conn.readRecordOrCCS
// tests for Temporary, deprecated but promised for this).
type wouldBlock struct{}

func (wouldBlock) Error() string   { return "no data yet" }
func (wouldBlock) Timeout() bool   { return true }
func (wouldBlock) Temporary() bool { return true }

var errWouldBlock net.Error = wouldBlock{}

func (s *socket) Read(p []byte) (int, error) {
	if s.fd < 0 {
		return s.Conn.Read(p)
	}
	if s.r == s.w {
		n, err := unix.Read(s.fd, s.in)
		for err == unix.EINTR {
			n, err = unix.Read(s.fd, s.in)
		}
		switch {
		case err == unix.EAGAIN:
			return 0, errWouldBlock
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		}
		s.r, s.w = 0, n
	}
	n := copy(p, s.in[s.r:s.w])
	s.r += n
	return n, nil
}

func (s *socket) Write(p []byte) (int, error) {
	if s.fd < 0 {
		return s.Conn.Write(p)
	}
	s.out = append(s.out, p...)
	return len(p), nil
}

// SetWriteDeadline is called by crypto/tls when it sends alerts.
func (s *socket) SetWriteDeadline(t time.Time) error {
	if s.fd < 0 {
		return s.Conn.SetWriteDeadline(t)
	}
	return nil
}

// Close is never what ends the descriptor of a loop: the loop does.
func (s *socket) Close() error {
	if s.fd < 0 {
		return s.Conn.Close()
	}
	return nil
}

// Transport is the TLS layer of one connection.
type Transport struct {
	conn *tls.Conn
	sock *socket
}

// Server negotiates TLS as the server of nc, whose deadlines apply.
func Server(ctx context.Context, nc net.Conn, config *tls.Config) (*Transport, error) {
	s := &socket{Conn: nc, fd: -1}
	t := &Transport{sock: s, conn: tls.Server(s, config)}
	return t, t.conn.HandshakeContext(ctx)
}

// Client negotiates TLS as the client of nc, whose deadlines apply.
func Client(ctx context.Context, nc net.Conn, config *tls.Config) (*Transport, error) {
	s := &socket{Conn: nc, fd: -1}
	t := &Transport{sock: s, conn: tls.Client(s, config)}
	return t, t.conn.HandshakeContext(ctx)
}

// Stream is what to talk through between handshake and Attach.
func (t *Transport) Stream() io.ReadWriter { return t.conn }

// State describes the connection.
func (t *Transport) State() tls.ConnectionState { return t.conn.ConnectionState() }

// Attach turns over to fd, a non-blocking duplicate of the connection. What
// the handshake has read ahead is kept: Read before waiting for an event.
func (t *Transport) Attach(fd int) {
	t.sock.fd = fd
	t.sock.in = make([]byte, readAhead)
}

// Read decrypts what is here into p. drained tells that the socket was empty;
// otherwise there may be more inside, which no event will tell of. It returns
// EAGAIN when there is nothing, and 0 bytes with no error at the end.
func (t *Transport) Read(p []byte) (n int, drained bool, err error) {
	for n < len(p) {
		m, err := t.conn.Read(p[n:])
		n += m
		switch {
		case err == nil:
		case errors.Is(err, errWouldBlock):
			if n == 0 {
				return 0, true, unix.EAGAIN
			}
			return n, true, nil
		case n > 0:
			return n, false, nil // the error comes again with the next read
		case err == io.EOF:
			return 0, true, nil
		default:
			return 0, true, err
		}
	}
	return n, false, nil
}

// Write encrypts p; Push sends it. Writing while Idle is false lets the
// backlog grow.
func (t *Transport) Write(p []byte) error {
	_, err := t.conn.Write(p)
	return err
}

// Push sends what was encrypted; EAGAIN when some is left.
func (t *Transport) Push() error {
	s := t.sock
	for s.done < len(s.out) {
		n, err := unix.Write(s.fd, s.out[s.done:])
		switch err {
		case nil:
			s.done += n
		case unix.EINTR:
		default:
			return err
		}
	}
	s.out, s.done = s.out[:0], 0
	return nil
}

// Idle says that nothing is left to send.
func (t *Transport) Idle() bool { return len(t.sock.out) == 0 }

// Farewell sends close_notify as far as the socket takes it.
func (t *Transport) Farewell() {
	if t.conn.CloseWrite() == nil {
		_ = t.Push() // the peer may be gone; it has all that was owed
	}
}
