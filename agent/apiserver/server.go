package apiserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/hashicorp/go-hclog"

	"github.com/moraine-storage/moraine/agent/api"
	"github.com/moraine-storage/moraine/agent/api/apierr"
	"github.com/moraine-storage/moraine/agent/api/v1/apiv1connect"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// Options of a server.
type Options struct {
	// Socket is the absolute path of the unix socket. Required.
	Socket string
	// Logger is for refused peers, panics, and (debug) each call; nil: none.
	Logger hclog.Logger
	// Nodes is served beside the service; nil: it is not.
	Nodes api.Nodes
	// Allow says whether a user may call; nil: root and the agent's own user.
	Allow func(uid uint32) bool
}

// Server serves one api.Service on one unix socket.
type Server struct {
	log   hclog.Logger
	allow func(uid uint32) bool
	http  *http.Server
	sock  *socket

	mu       sync.Mutex
	stopped  bool          // guarded by mu; by the first Drain or Close
	calls    int           // guarded by mu; in flight
	stopping chan struct{} // closed when stopped is set
	idle     chan struct{} // closed when stopped is set and no call is left

	conns    sync.WaitGroup // connections whose goroutines have not ended
	served   chan struct{}  // closed when the accept loop has ended
	serveErr error          // set before served is closed
}

// Start makes the socket and serves svc on it until Drain or Close.
func Start(svc api.Service, o Options) (*Server, error) {
	s := &Server{log: o.Logger, allow: o.Allow, stopping: make(chan struct{}), idle: make(chan struct{}), served: make(chan struct{})}
	if s.log == nil {
		s.log = hclog.NewNullLogger()
	}
	if s.allow == nil {
		self := uint32(os.Geteuid())
		s.allow = func(uid uint32) bool { return uid == 0 || uid == self }
	}
	sock, err := listen(o.Socket)
	if err != nil {
		return nil, err
	}
	s.sock = sock
	s.http = s.httpServer(svc, o.Nodes)
	go func() {
		defer close(s.served)
		err := s.http.Serve(limitConns(sock, maxConns))
		if !errors.Is(err, http.ErrServerClosed) {
			s.serveErr = fmt.Errorf("serve %q: %w", o.Socket, err)
			s.log.Error("API server ended", "socket", o.Socket, "error", err)
		}
	}()
	return s, nil
}

// httpServer puts the layers together: connection, peer check, calls.
func (s *Server) httpServer(svc api.Service, nodes api.Nodes) *http.Server {
	mux := newMux(svc, nodes, s.log, s.stopping)
	var p http.Protocols
	p.SetHTTP1(true)
	p.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler:           s.checkPeer(s.countCalls(mux)),
		Protocols:         &p,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: maxStreams},
		ReadHeaderTimeout: readHeaderTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ConnContext:       withPeer,
		ConnState:         s.countConn,
		ErrorLog:          log.New(s.log.StandardWriter(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug}), "", 0),
	}
}

// newMux carries the services, over whatever connection.
func newMux(svc api.Service, nodes api.Nodes, log hclog.Logger, stopping <-chan struct{}) *http.ServeMux {
	mux := http.NewServeMux()
	opts := []connect.HandlerOption{
		connect.WithInterceptors(edge{log: log}),
		connect.WithCodec(strictJSON{"json"}),
		connect.WithCodec(strictJSON{"json; charset=utf-8"}),
		connect.WithReadMaxBytes(maxRequestBytes),
	}
	mux.Handle(apiv1connect.NewMoraineHandler(handler{Service: svc, stopping: stopping}, opts...))
	if nodes != nil {
		mux.Handle(apiv1connect.NewNodesHandler(nodes, opts...))
	}
	return mux
}

// countConn keeps conns.
func (s *Server) countConn(_ net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		s.conns.Add(1)
	case http.StateClosed, http.StateHijacked:
		s.conns.Done()
	}
}

type peerKey struct{}

// peer is who is at the other end of a connection, or why that is not known.
type peer struct {
	uid uint32
	err error
}

// withPeer asks once per connection.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	p := peer{err: errors.New("not a unix socket")}
	if lc, ok := c.(*limitedConn); ok {
		p.uid, p.err = peerUID(lc.UnixConn)
	}
	return context.WithValue(ctx, peerKey{}, p)
}

// checkPeer refuses calls of other users.
func (s *Server) checkPeer(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p, ok := r.Context().Value(peerKey{}).(peer)
		if ok && p.err == nil && s.allow(p.uid) {
			next.ServeHTTP(w, r)
			return
		}
		s.log.Warn("API call refused", "uid", p.uid, "call", r.URL.Path, "error", p.err)
		refuse(w, r, fmt.Errorf("user %d may not use this socket, only root may: %w", p.uid, errdefs.ErrPermissionDenied), http.StatusForbidden)
	})
}

// refuse answers with an error in the protocol that the peer speaks; status is
// for plain HTTP.
func refuse(w http.ResponseWriter, r *http.Request, err error, status int) {
	ew := connect.NewErrorWriter()
	if !ew.IsSupported(r) {
		http.Error(w, err.Error(), status)
		return
	}
	// The peer may be gone already; there is nobody to tell.
	_ = ew.Write(w, r, apierr.ToWire(err))
}

// Done is closed when the server has stopped listening; Err then says why.
func (s *Server) Done() <-chan struct{} { return s.served }

// Err is the reason for which serving ended by itself, nil if it was told to.
// Valid after Done.
func (s *Server) Err() error {
	select {
	case <-s.served:
		return s.serveErr
	default:
		return nil
	}
}

// Drain stops accepting, ends streams, waits for the calls in flight until ctx
// ends, and closes. It may be repeated, and called after Close.
//
// http.Server.Shutdown alone may wait for ever: it tells HTTP/2 connections to
// go away once, and one that was accepted a moment before and has no call yet
// is not among them, but counts as active. So once no call is left, connections
// have drainGrace to send their last answers and go.
func (s *Server) Drain(ctx context.Context) error {
	s.stop()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	waited := make(chan struct{})
	go func() {
		defer close(waited)
		select {
		case <-s.idle:
		case <-ctx.Done():
			return
		}
		t := time.NewTimer(drainGrace)
		defer t.Stop()
		select {
		case <-t.C:
			cancel(errNoCallsLeft)
		case <-ctx.Done():
		}
	}()
	err := s.http.Shutdown(ctx)
	if err != nil && errors.Is(context.Cause(ctx), errNoCallsLeft) {
		err = nil
	}
	if err != nil {
		err = fmt.Errorf("drain API server: %w", err)
	}
	cancel(nil)
	<-waited
	return errors.Join(err, s.Close())
}

// errNoCallsLeft ends a Shutdown that waits for connections without calls.
var errNoCallsLeft = errors.New("no calls left")

// stop marks the server as stopping, once.
func (s *Server) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return
	}
	s.stopped = true
	close(s.stopping)
	if s.calls == 0 {
		close(s.idle)
	}
}

// countCalls keeps calls, and closes idle at the end of the last one after
// stopping. What comes later, on connections that were there, is refused.
func (s *Server) countCalls(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		refused := s.stopped
		if !refused {
			s.calls++
		}
		s.mu.Unlock()
		if refused {
			refuse(w, r, fmt.Errorf("the agent is stopping: %w", errdefs.ErrUnavailable), http.StatusServiceUnavailable)
			return
		}
		defer func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.calls--
			if s.stopped && s.calls == 0 {
				close(s.idle)
			}
		}()
		next.ServeHTTP(w, r)
	})
}

// Close abandons the calls in flight: their contexts end. It may be repeated.
func (s *Server) Close() error {
	s.stop()
	err := s.http.Close()
	<-s.served
	cerr := s.sock.Close()
	s.waitConns()
	return errors.Join(ignoreClosed(err), ignoreClosed(cerr))
}

// waitConns waits for the goroutines of connections, but not for ever: a call
// that does not heed its context is abandoned.
func (s *Server) waitConns() {
	ended := make(chan struct{})
	go func() {
		s.conns.Wait()
		close(ended)
	}()
	t := time.NewTimer(abandonAfter)
	defer t.Stop()
	select {
	case <-ended:
	case <-t.C:
		s.log.Warn("calls still run after the API server was closed")
	}
}

// ignoreClosed drops the error of closing what is closed.
func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// limitedListener refuses more than max connections at once: the newest is
// closed, since those that are served have work in flight.
type limitedListener struct {
	*socket
	free chan struct{}
}

func limitConns(s *socket, max int) net.Listener {
	return &limitedListener{socket: s, free: make(chan struct{}, max)}
}

// Accept returns the next connection that has a place.
func (l *limitedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		select {
		case l.free <- struct{}{}:
			return &limitedConn{UnixConn: c, free: l.free}, nil
		default:
			_ = c.Close() // it was never used
		}
	}
}

// limitedConn gives its place back once.
type limitedConn struct {
	*net.UnixConn
	once sync.Once
	free chan struct{}
}

func (c *limitedConn) Close() error {
	err := c.UnixConn.Close()
	c.once.Do(func() { <-c.free })
	return err
}

var _ io.Closer = (*Server)(nil)
