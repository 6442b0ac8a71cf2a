package nbdclient

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/drivers/aio"
	"github.com/moraine-storage/moraine/drivers/nbd"
	"github.com/moraine-storage/moraine/drivers/nbd/internal/rawtls"
	"github.com/moraine-storage/moraine/drivers/nbd/internal/stream"
)

// Options of a connection.
type Options struct {
	Export string // "" is the server's default
	// TLS, when not nil, demands STARTTLS. ServerName is taken from the address
	// when it is empty and the server is to be verified.
	TLS *tls.Config
	// Contexts to ask for, for Device.Status.
	Contexts []string
	// Grain is Info.Grain of the Client in bytes: NBD does not tell what unit a
	// server trims by, but the owner may know (a replica's extent). 0: the
	// preferred block size.
	Grain int64
	// NoStructured and NoExtended withhold those options.
	NoStructured, NoExtended bool
}

// Session is a negotiated connection: nothing was sent in its transmission
// phase yet. It becomes a Client, or is closed.
type Session struct {
	neg   nbd.Negotiated
	grain int64
	tls   *rawtls.Transport // or nil

	mu sync.Mutex
	fd int // guarded by mu; -1 when taken over or closed
}

// Dial connects ("unix" or "tcp") and negotiates until ctx ends, at most 10 s.
func Dial(ctx context.Context, network, addr string, o Options) (*Session, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var d net.Dialer
	nc, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, fmt.Errorf("nbd %s: %w", addr, err)
	}
	if o.TLS != nil && o.TLS.ServerName == "" && !o.TLS.InsecureSkipVerify {
		o.TLS = o.TLS.Clone()
		if host, _, err := net.SplitHostPort(addr); err == nil && network != "unix" {
			o.TLS.ServerName = host
		} else {
			o.TLS.ServerName = "localhost"
		}
	}
	s, err := Negotiate(ctx, nc, o)
	if err != nil {
		return nil, fmt.Errorf("nbd %s: %w", addr, err)
	}
	return s, nil
}

// Negotiate speaks the handshake over a fresh connection, which it owns.
func Negotiate(ctx context.Context, nc net.Conn, o Options) (*Session, error) {
	defer nc.Close() // the session has a duplicate
	s := &Session{fd: -1, grain: o.Grain}
	h := nbd.ClientHandshake{Export: o.Export, Contexts: o.Contexts, NoStructured: o.NoStructured, NoExtended: o.NoExtended}
	err := handshake(ctx, nc, func() error {
		if o.TLS != nil {
			h.StartTLS = s.startTLS(ctx, nc, o.TLS)
		}
		neg, err := h.Run(nc)
		if err == nil {
			s.neg = *neg
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if s.fd, err = stream.Dup(nc); err != nil {
		return nil, err
	}
	return s, nil
}

// List asks a server what it exports.
func List(ctx context.Context, network, addr string, config *tls.Config) (list []nbd.ExportEntry, err error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var d net.Dialer
	nc, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, fmt.Errorf("nbd %s: %w", addr, err)
	}
	defer nc.Close()
	var s Session
	h := nbd.ClientHandshake{}
	err = handshake(ctx, nc, func() error {
		if config != nil {
			h.StartTLS = s.startTLS(ctx, nc, config)
		}
		list, err = h.List(nc)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("nbd %s: %w", addr, err)
	}
	return list, nil
}

// handshake runs f with nc's deadlines bound to ctx.
func handshake(ctx context.Context, nc net.Conn, f func() error) error {
	if d, ok := ctx.Deadline(); ok {
		if err := nc.SetDeadline(d); err != nil {
			return err
		}
	}
	stop := context.AfterFunc(ctx, func() { _ = nc.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	err := f()
	if err != nil && ctx.Err() != nil {
		return errors.Join(ctx.Err(), err)
	}
	return err
}

func (s *Session) startTLS(ctx context.Context, nc net.Conn, config *tls.Config) func() (io.ReadWriter, error) {
	return func() (io.ReadWriter, error) {
		c := config.Clone()
		c.DynamicRecordSizingDisabled = true
		c.MinVersion = max(c.MinVersion, tls.VersionTLS12)
		t, err := rawtls.Client(ctx, nc, c)
		if err != nil {
			return nil, err
		}
		s.tls = t
		return t.Stream(), nil
	}
}

// Negotiated is what both sides agreed on.
func (s *Session) Negotiated() nbd.Negotiated { return s.neg }

// Queue makes a Client of the session, owned by the owner of e, which from now
// on owns the connection too. token marks the connection's events: hand those
// to Client.Ready. On error the session is closed.
func (s *Session) Queue(e aio.Engine, token uint64) (*Client, error) {
	fd := s.take()
	if fd < 0 {
		return nil, fmt.Errorf("nbd session: %w", net.ErrClosed)
	}
	c, err := newClient(fd, s.tls, s.neg, e, token)
	if err != nil {
		_ = unix.Close(fd) // nothing was sent
		return nil, err
	}
	if s.grain > 0 {
		c.info.Grain = s.grain
	}
	return c, nil
}

// TakeFD hands the raw descriptor over, to the kernel for example. It fails
// for TLS, which a descriptor alone cannot carry on.
func (s *Session) TakeFD() (int, error) {
	if s.tls != nil {
		return -1, fmt.Errorf("nbd session: TLS cannot be handed over: %w", unix.EOPNOTSUPP)
	}
	fd := s.take()
	if fd < 0 {
		return -1, fmt.Errorf("nbd session: %w", net.ErrClosed)
	}
	return fd, nil
}

func (s *Session) take() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	fd := s.fd
	s.fd = -1
	return fd
}

// Close ends a session that was not used. Idempotent.
func (s *Session) Close() {
	if fd := s.take(); fd >= 0 {
		_ = unix.Close(fd) // the server sees the end of the stream
	}
}
