package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/docker/go-plugins-helpers/sdk"
	"github.com/docker/go-plugins-helpers/volume"

	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// handler routes the calls. The helper library's own routes give a driver
// neither the caller's context nor a bound on what is read, and cannot be shut
// down, so only its messages and its encoding are used.
func (p *Plugin) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /Plugin.Activate", func(w http.ResponseWriter, _ *http.Request) {
		p.uses.activated()
		sdk.EncodeResponse(w, map[string]any{"Implements": []string{"VolumeDriver"}}, false)
	})
	route(p, mux, "Create", silent(p.create))
	route(p, mux, "Remove", silent(p.remove))
	route(p, mux, "Mount", p.mount)
	route(p, mux, "Unmount", silent(p.unmount))
	route(p, mux, "Path", p.path)
	route(p, mux, "Get", p.get)
	route(p, mux, "List", p.list)
	route(p, mux, "Capabilities", p.capabilities)
	return mux
}

// silent is a call whose answer says only that it worked.
func silent[Req any](f func(context.Context, *Req) error) func(context.Context, *Req) (*struct{}, error) {
	return func(ctx context.Context, r *Req) (*struct{}, error) { return &struct{}{}, f(ctx, r) }
}

func route[Req, Resp any](p *Plugin, mux *http.ServeMux, call string, f func(context.Context, *Req) (*Resp, error)) {
	mux.HandleFunc("POST /VolumeDriver."+call, func(w http.ResponseWriter, r *http.Request) {
		req := new(Req)
		resp, err := (*Resp)(nil), decode(w, r, req)
		if err == nil {
			resp, err = guard(p, call, func() (*Resp, error) { return f(r.Context(), req) })
		}
		if err != nil {
			p.log.Debug("docker call failed", "call", call, "error", err)
			sdk.EncodeResponse(w, volume.NewErrorResponse(err.Error()), true)
			return
		}
		sdk.EncodeResponse(w, resp, false)
	})
}

// decode reads one JSON value; Docker sends no body, or null, with calls that
// have no arguments.
func decode(w http.ResponseWriter, r *http.Request, req any) error {
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	err := dec.Decode(req)
	if err == nil || errors.Is(err, io.EOF) {
		return nil
	}
	var large *http.MaxBytesError
	if errors.As(err, &large) {
		return fmt.Errorf("request of more than %d bytes: %w", maxBody, errdefs.ErrInvalidArgument)
	}
	return fmt.Errorf("request is no JSON of this call: %w", errdefs.ErrInvalidArgument)
}

// guard turns a panic of a call into its error: the data path runs in this
// process and must not end for a mistake in a front end (rule 11).
func guard[Resp any](p *Plugin, call string, f func() (*Resp, error)) (resp *Resp, err error) {
	defer func() {
		if x := recover(); x != nil {
			p.log.Error("docker call panicked", "call", call, "panic", x, "stack", string(debug.Stack()))
			resp, err = nil, fmt.Errorf("%s: internal error, see the agent's log: %w", call, errdefs.ErrInternal)
		}
	}()
	return f()
}

// Start opens the socket and serves until Close.
func (p *Plugin) Start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.listener != nil {
		return fmt.Errorf("docker plugin on %s: started or closed before: %w", p.socket, errdefs.ErrFailedPrecondition)
	}
	l, err := listen(p.socket)
	if err != nil {
		return fmt.Errorf("docker plugin: %w", err)
	}
	p.listener = l
	p.server = &http.Server{Handler: p.handler(), ReadHeaderTimeout: headerTimeout,
		ErrorLog: p.log.StandardLogger(nil)}
	p.done = make(chan struct{})
	go func() {
		defer close(p.done)
		if err := p.server.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
			p.log.Error("docker plugin stopped serving", "socket", p.socket, "error", err)
		}
	}()
	p.log.Info("docker plugin ready", "socket", p.socket)
	return nil
}

// Socket is the path that is served.
func (p *Plugin) Socket() string { return p.socket }

// Close takes no more calls, waits for those that run until ctx ends, and
// removes the socket. What is mounted stays mounted. Idempotent.
func (p *Plugin) Close(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.listener == nil {
		p.closed = true
		return nil
	}
	p.closed = true
	err := p.server.Shutdown(ctx)
	if err != nil {
		err = fmt.Errorf("docker plugin: calls still ran: %w", errors.Join(err, p.server.Close()))
	}
	<-p.done
	return err
}

// listen makes the socket for root alone, with one rename: nobody ever sees it
// with other permissions. A socket that nobody serves is replaced; one that is
// served, or any other file, is refused.
func listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if err := checkFree(path); err != nil {
		return nil, err
	}
	tmp := fmt.Sprintf("%s.%d", path, os.Getpid())
	if len(tmp) > maxSocketPath {
		return nil, fmt.Errorf("%s: a path of %d bytes, at most %d: %w", path, len(path), maxSocketPath-len(tmp)+len(path), errdefs.ErrInvalidArgument)
	}
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	if err = os.Chmod(tmp, 0o600); err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return nil, errors.Join(err, l.Close(), os.Remove(tmp))
	}
	st, err := os.Lstat(path)
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return &socket{Listener: l, path: path, made: st}, nil
}

func checkFree(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("%s is there and is no socket: %w", path, errdefs.ErrFailedPrecondition)
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		return errors.Join(c.Close(), fmt.Errorf("%s is served by another process: %w", path, errdefs.ErrFailedPrecondition))
	}
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return fmt.Errorf("%s: %w", path, err)
}

// socket removes its file when it is closed, if the file is still its own.
type socket struct {
	net.Listener
	path string
	made os.FileInfo
}

func (s *socket) Close() error {
	err := s.Listener.Close()
	if st, serr := os.Lstat(s.path); serr == nil && os.SameFile(st, s.made) {
		err = errors.Join(err, os.Remove(s.path))
	}
	return err
}
