package apiserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/moraine-storage/moraine/agent/api"
	"github.com/moraine-storage/moraine/agent/api/v1/apiv1connect"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// Role is what a caller may do; each includes those before it.
type Role int

// The roles.
const (
	Nobody   Role = iota
	Reader        // sees everything but secrets
	Operator      // does what concerns volumes and snapshots
	Admin         // also nodes, drives and tokens
)

// String returns the role's word.
func (r Role) String() string {
	return [...]string{"nobody", "reader", "operator", "admin"}[r]
}

// readers are the calls that change nothing.
var readers = []string{
	apiv1connect.MoraineGetStatusProcedure, apiv1connect.MoraineRunDoctorProcedure, apiv1connect.MoraineListNodesProcedure,
	apiv1connect.MoraineListPoolsProcedure, apiv1connect.MoraineListDrivesProcedure, apiv1connect.MoraineListPluginsProcedure,
	apiv1connect.MoraineWatchEventsProcedure, apiv1connect.MoraineListOperationsProcedure, apiv1connect.MoraineGetOperationProcedure,
	apiv1connect.MoraineWatchOperationProcedure, apiv1connect.MoraineGetVolumeProcedure, apiv1connect.MoraineListVolumesProcedure,
	apiv1connect.MoraineGetSnapshotProcedure, apiv1connect.MoraineListSnapshotsProcedure, apiv1connect.MoraineDiffSnapshotProcedure,
}

// needs is the least role for a call. What is not known needs the highest.
func needs(procedure string) Role {
	for _, p := range readers {
		if p == procedure {
			return Reader
		}
	}
	if strings.HasPrefix(procedure, "/"+apiv1connect.MoraineName+"/") {
		return Operator
	}
	return Admin
}

// TCPOptions of a server for other machines.
type TCPOptions struct {
	// Address is host:port. Required, as is TLS.
	Address string
	TLS     *tls.Config
	// Authorize tells who calls and what role that gives, from the
	// certificate or the token; an error refuses the call.
	Authorize func(*http.Request) (name string, role Role, err error)
	// Nodes is served beside the service; nil: it is not.
	Nodes api.Nodes
	// Open are handlers by path that do without Authorize, because they check
	// for themselves.
	Open map[string]http.Handler
	// Logger is for refused calls and panics; nil: none.
	Logger hclog.Logger
}

// TCPServer serves one api.Service to other machines.
type TCPServer struct {
	http     *http.Server
	log      hclog.Logger
	stopOnce sync.Once
	stopping chan struct{}
	served   chan struct{}
	serveErr error // set before served is closed
}

// StartTCP listens and serves svc until Close.
func StartTCP(svc api.Service, o TCPOptions) (*TCPServer, error) {
	if o.TLS == nil || o.Authorize == nil {
		return nil, fmt.Errorf("listen on %s: TLS and Authorize are needed: %w", o.Address, errdefs.ErrInvalidArgument)
	}
	s := &TCPServer{log: o.Logger, stopping: make(chan struct{}), served: make(chan struct{})}
	if s.log == nil {
		s.log = hclog.NewNullLogger()
	}
	l, err := net.Listen("tcp", o.Address)
	if err != nil {
		return nil, fmt.Errorf("API for other nodes: %w", err)
	}
	mux := http.NewServeMux()
	for path, h := range o.Open {
		mux.Handle(path, http.MaxBytesHandler(h, maxRequestBytes))
	}
	mux.Handle("/", s.authorize(o.Authorize, newMux(svc, o.Nodes, s.log, s.stopping)))
	s.http = &http.Server{
		Handler: mux, TLSConfig: o.TLS, HTTP2: &http.HTTP2Config{MaxConcurrentStreams: maxStreams},
		ReadHeaderTimeout: readHeaderTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeaderBytes,
		ErrorLog: log.New(s.log.StandardWriter(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug}), "", 0),
	}
	go func() {
		defer close(s.served)
		if err := s.http.ServeTLS(limitTCP(l, maxConns), "", ""); !errors.Is(err, http.ErrServerClosed) {
			s.serveErr = fmt.Errorf("serve %s: %w", o.Address, err)
		}
	}()
	return s, nil
}

// authorize lets a call through if its caller's role is enough.
func (s *TCPServer) authorize(who func(*http.Request) (string, Role, error), next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, role, err := who(r)
		need := needs(r.URL.Path)
		status := http.StatusUnauthorized
		if err == nil && role < need {
			status = http.StatusForbidden
			err = fmt.Errorf("%s has the role %s, this call needs %s: %w", name, role, need, errdefs.ErrPermissionDenied)
		}
		if err != nil {
			s.log.Warn("API call refused", "from", r.RemoteAddr, "caller", name, "call", r.URL.Path, "error", err)
			refuse(w, r, err, status)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// Done is closed when the server has stopped listening; Err then says why.
func (s *TCPServer) Done() <-chan struct{} { return s.served }

// Err is the reason for which serving ended by itself, nil if it was told to.
func (s *TCPServer) Err() error {
	select {
	case <-s.served:
		return s.serveErr
	default:
		return nil
	}
}

// Close ends streams, waits a moment for the calls in flight, and abandons
// those that are left. It may be repeated.
func (s *TCPServer) Close() error {
	s.stopOnce.Do(func() { close(s.stopping) })
	ctx, cancel := context.WithTimeout(context.Background(), tcpDrain)
	defer cancel()
	if err := s.http.Shutdown(ctx); err != nil {
		err = s.http.Close()
		<-s.served
		return ignoreClosed(err)
	}
	<-s.served
	return nil
}

// limitTCP refuses more than max connections at once, as limitConns does.
func limitTCP(l net.Listener, max int) net.Listener {
	return &tcpListener{Listener: l, free: make(chan struct{}, max)}
}

type tcpListener struct {
	net.Listener
	free chan struct{}
}

// Accept returns the next connection that has a place.
func (l *tcpListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.free <- struct{}{}:
			return &tcpConn{Conn: c, free: l.free}, nil
		default:
			_ = c.Close() // it was never used
		}
	}
}

type tcpConn struct {
	net.Conn
	once sync.Once
	free chan struct{}
}

// Close gives the place back, once.
func (c *tcpConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { <-c.free })
	return err
}

// tcpDrain is how long Close waits for calls in flight: other nodes ask again.
const tcpDrain = 2 * time.Second
