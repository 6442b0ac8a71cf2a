package nbdserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/nbd"
	"github.com/moraine-storage/moraine/drivers/nbd/internal/rawtls"
	"github.com/moraine-storage/moraine/drivers/nbd/internal/stream"
)

// ServerOptions say how a server negotiates.
type ServerOptions struct {
	Exports Exports
	TLS     nbd.TLSMode
	// TLSConfig has the certificates; needed unless TLS is nbd.TLSOff. For
	// mutual TLS it sets ClientAuth and ClientCAs.
	TLSConfig *tls.Config
	Logger    hclog.Logger // nil: no log
	// HandshakeTimeout bounds a negotiation; default 10 s.
	HandshakeTimeout time.Duration
	// MaxHalfOpen bounds negotiations at once; default 256. At the limit,
	// accepting waits: clients are kept in the listener's backlog.
	MaxHalfOpen int
}

// Server accepts connections, negotiates, and hands them to loops.
type Server struct {
	o      ServerOptions
	log    hclog.Logger
	slots  chan struct{} // one per half-open connection
	closed chan struct{}
	wg     sync.WaitGroup // handshakes and Serve calls

	mu        sync.Mutex
	over      bool                  // guarded by mu
	listeners map[net.Listener]bool // guarded by mu
	half      map[net.Conn]bool     // guarded by mu: in negotiation
}

// NewServer checks the options; Serve starts.
func NewServer(o ServerOptions) (*Server, error) {
	if o.Exports == nil {
		return nil, fmt.Errorf("nbd server: %w: no exports", block.ErrInvalid)
	}
	if o.TLS != nbd.TLSOff && o.TLSConfig == nil {
		return nil, fmt.Errorf("nbd server: %w: TLS without a configuration", block.ErrInvalid)
	}
	if o.TLSConfig != nil {
		o.TLSConfig = o.TLSConfig.Clone()
		o.TLSConfig.DynamicRecordSizingDisabled = true // replies are sent in full records from the first
		o.TLSConfig.MinVersion = max(o.TLSConfig.MinVersion, tls.VersionTLS12)
	}
	if o.HandshakeTimeout <= 0 {
		o.HandshakeTimeout = handshakeTimeout
	}
	if o.MaxHalfOpen <= 0 {
		o.MaxHalfOpen = maxHalfOpen
	}
	s := &Server{o: o, log: o.Logger, slots: make(chan struct{}, o.MaxHalfOpen), closed: make(chan struct{}),
		listeners: map[net.Listener]bool{}, half: map[net.Conn]bool{}}
	if s.log == nil {
		s.log = hclog.NewNullLogger()
	}
	return s, nil
}

// Serve accepts from ln until it fails or Close; then it closes ln. It returns
// nil after Close. Several listeners may be served at once.
func (s *Server) Serve(ln net.Listener) error {
	s.mu.Lock()
	if s.over {
		s.mu.Unlock()
		return errors.Join(fmt.Errorf("nbd server: %w", block.ErrClosed), ln.Close())
	}
	s.listeners[ln] = true
	s.wg.Add(1)
	s.mu.Unlock()
	defer s.wg.Done()
	defer func() {
		s.mu.Lock()
		delete(s.listeners, ln)
		s.mu.Unlock()
		_ = ln.Close() // by Close already, or failed anyway
	}()
	for delay := time.Duration(0); ; {
		select {
		case s.slots <- struct{}{}:
		case <-s.closed:
			return nil
		}
		nc, err := ln.Accept()
		if err == nil {
			delay = 0
			s.begin(nc)
			continue
		}
		<-s.slots
		select {
		case <-s.closed:
			return nil
		default:
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("nbd server: %w", err)
		}
		// Out of descriptors, or a client that went before it was accepted.
		delay = min(max(2*delay, 5*time.Millisecond), time.Second)
		s.log.Warn("accept", "address", ln.Addr().String(), "error", err)
		select {
		case <-time.After(delay):
		case <-s.closed:
			return nil
		}
	}
}

// begin negotiates nc in a goroutine that has a slot.
func (s *Server) begin(nc net.Conn) {
	s.mu.Lock()
	if s.over {
		s.mu.Unlock()
		_ = nc.Close()
		<-s.slots
		return
	}
	s.half[nc] = true
	s.wg.Add(1)
	s.mu.Unlock()
	go func() {
		defer s.wg.Done()
		err := s.handshake(nc)
		s.mu.Lock()
		delete(s.half, nc)
		s.mu.Unlock()
		_ = nc.Close() // the loop has a duplicate
		<-s.slots
		if err != nil && !errors.Is(err, nbd.ErrAborted) && !errors.Is(err, io.EOF) {
			s.log.Info("negotiation failed", "peer", peerName(nc), "error", err)
		}
	}()
}

// handshake negotiates and hands the connection over.
func (s *Server) handshake(nc net.Conn) error {
	deadline := time.Now().Add(s.o.HandshakeTimeout)
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	if err := nc.SetDeadline(deadline); err != nil {
		return err
	}
	cat := &catalog{ctx: ctx, exports: s.o.Exports, peer: Peer{Addr: peerName(nc)}}
	var tr *rawtls.Transport
	h := nbd.ServerHandshake{Catalog: cat, TLS: s.o.TLS}
	h.StartTLS = func() (io.ReadWriter, error) {
		t, err := rawtls.Server(ctx, nc, s.o.TLSConfig)
		if err != nil {
			return nil, err
		}
		state := t.State()
		cat.peer.TLS, tr = &state, t
		return t.Stream(), nil
	}
	neg, err := h.Run(nc)
	e := cat.entered
	if err == nil {
		err = s.handOver(nc, tr, neg, e)
	}
	if err != nil && e != nil && e.Closed != nil {
		e.Closed()
	}
	return err
}

// handOver gives the connection to the export's loop; on error nothing of it
// is the loop's.
func (s *Server) handOver(nc net.Conn, t *rawtls.Transport, neg *nbd.Negotiated, e *Export) error {
	sess := Session{Negotiated: *neg, Contexts: e.Contexts, Peer: peerName(nc), Closed: e.Closed}
	if t == nil {
		return e.Loop.Add(nc, sess)
	}
	fd, err := stream.Dup(nc)
	if err != nil {
		return err
	}
	return e.Loop.addOwned(fd, t, sess)
}

// Close stops listening and ends negotiations; connections that loops have
// stay. It waits for the server's goroutines. Idempotent.
func (s *Server) Close() {
	s.stop(true)
	s.wg.Wait()
}

// Drain stops listening and lets negotiations finish, until ctx ends.
func (s *Server) Drain(ctx context.Context) error {
	s.stop(false)
	done := make(chan struct{})
	go func() { s.wg.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		s.Close()
		<-done
		return fmt.Errorf("nbd server: %w", ctx.Err())
	}
}

func (s *Server) stop(abort bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.over {
		s.over = true
		close(s.closed)
	}
	for ln := range s.listeners {
		_ = ln.Close() // Serve returns
	}
	if abort {
		for nc := range s.half {
			_ = nc.Close() // its negotiation fails
		}
	}
}

func peerName(nc net.Conn) string {
	if a := nc.RemoteAddr(); a != nil {
		return a.String()
	}
	return ""
}
