package nbdserver

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

const (
	tlsReadAhead = 64 << 10 // four records per read(2)
	tlsGather    = 64 << 10 // plaintext per tls.Conn.Write: four records per write(2)
)

// tlsSocket is the net.Conn below a tls.Conn. During the handshake it passes
// calls on; from attach on it is the raw descriptor, owned by a loop: reads
// that would block return errWouldBlock, writes are kept in out until push.
type tlsSocket struct {
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

func (s *tlsSocket) Read(p []byte) (int, error) {
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

func (s *tlsSocket) Write(p []byte) (int, error) {
	if s.fd < 0 {
		return s.Conn.Write(p)
	}
	s.out = append(s.out, p...)
	return len(p), nil
}

// SetWriteDeadline is called by crypto/tls when it sends alerts.
func (s *tlsSocket) SetWriteDeadline(t time.Time) error {
	if s.fd < 0 {
		return s.Conn.SetWriteDeadline(t)
	}
	return nil
}

// Close is never what ends the descriptor of a loop: the loop does.
func (s *tlsSocket) Close() error {
	if s.fd < 0 {
		return s.Conn.Close()
	}
	return nil
}

// tlsTransport is the TLS layer of a conn.
type tlsTransport struct {
	conn *tls.Conn
	sock *tlsSocket
}

// attach turns the socket over to a loop.
func (t *tlsTransport) attach(fd int) {
	t.sock.fd = fd
	t.sock.in = make([]byte, tlsReadAhead)
}

// read decrypts what is here into p. drained tells that the socket was empty;
// otherwise there may be more inside, which no event will tell of.
func (t *tlsTransport) read(p []byte) (n int, drained bool, err error) {
	for n < len(p) {
		m, err := t.conn.Read(p[n:])
		n += m
		if err == nil {
			continue
		}
		if errors.Is(err, errWouldBlock) {
			if n == 0 {
				return 0, true, unix.EAGAIN
			}
			return n, true, nil
		}
		if n > 0 {
			return n, false, nil // the error comes again with the next read
		}
		if err == io.EOF {
			return 0, true, nil
		}
		return 0, true, err
	}
	return n, false, nil
}

// push writes encrypted bytes; EAGAIN when some are left.
func (t *tlsTransport) push() error {
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

func (t *tlsTransport) idle() bool { return len(t.sock.out) == 0 }

// farewell sends close_notify as far as the socket takes it.
func (t *tlsTransport) farewell() {
	if t.conn.CloseWrite() == nil {
		_ = t.push() // the client may be gone; it has all its replies
	}
}
