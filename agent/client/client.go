// Package client is the Go client of the agent's API: an api.Service and
// api.Nodes that speak to an agent over its unix socket, or over TLS. Errors have the classes that the
// agent gave them (agent/api/apierr). Where the answer was lost they are also
// indeterminate (errdefs.Indeterminate): the call may have happened, and may be
// repeated, since every call may. An agent that was not reached at all gives an
// error of the class unavailable that is not indeterminate.
//
// A Client may be used by several goroutines. Its connections are made when
// needed, and made again after the agent was restarted.
package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/moraine-storage/moraine/agent/api"
	"github.com/moraine-storage/moraine/agent/api/apierr"
	"github.com/moraine-storage/moraine/agent/api/v1/apiv1connect"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// DefaultAddress is where an agent listens unless told otherwise.
const DefaultAddress = "unix:///run/moraine/agent.sock"

const (
	// maxResponseBytes bounds one answer. The largest is a list of volumes
	// without pages: 10,000 volumes of 2 KiB each with their replicas are 20
	// MiB.
	maxResponseBytes = 64 << 20
	// dialTimeout is for a local socket; a full backlog is the one thing that
	// makes it wait.
	dialTimeout = 10 * time.Second
	// idleTimeout closes a connection that is not used.
	idleTimeout = 90 * time.Second
)

// Client is an api.Service far away. Make one with New.
type Client struct {
	address string
	http    *http.Transport
	rpc     apiv1connect.MoraineClient
	nodes   apiv1connect.NodesClient
}

var (
	_ api.Service = (*Client)(nil)
	_ api.Nodes   = (*Client)(nil)
)

// New returns a client of the agent at address: the path of a unix socket or
// a unix:// URI; "" is DefaultAddress. It connects with the first call.
func New(address string) (*Client, error) {
	path, err := SocketPath(address)
	if err != nil {
		return nil, err
	}
	c := &Client{address: "unix://" + path}
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	c.http = &http.Transport{
		Protocols:          &p,
		IdleConnTimeout:    idleTimeout,
		DisableCompression: true, // it stays on this machine
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			d := net.Dialer{Timeout: dialTimeout}
			conn, err := d.DialContext(ctx, "unix", path)
			if err != nil {
				return nil, &dialError{cause: err}
			}
			return conn, nil
		},
	}
	// The host is a placeholder: the dialer goes to the socket whatever it is.
	c.connect(c.http, "http://agent")
	return c, nil
}

// NewTCP returns a client of the agent at https://host:port. t says whom to
// believe; token, if not empty, is sent with each call.
func NewTCP(address string, t *tls.Config, token string) (*Client, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "https" || u.Port() == "" || u.Hostname() == "" || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.User != nil {
		return nil, fmt.Errorf("address %q: want https://host:port: %w", address, errdefs.ErrInvalidArgument)
	}
	c := &Client{address: "https://" + u.Host}
	var p http.Protocols
	p.SetHTTP2(true)
	d := net.Dialer{Timeout: dialTimeout}
	c.http = &http.Transport{
		Protocols: &p, IdleConnTimeout: idleTimeout, TLSClientConfig: t.Clone(), TLSHandshakeTimeout: dialTimeout,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := d.DialContext(ctx, network, addr)
			if err != nil {
				return nil, &dialError{cause: err}
			}
			return conn, nil
		},
	}
	c.connect(bearer{c.http, token}, c.address)
	return c, nil
}

func (c *Client) connect(rt http.RoundTripper, base string) {
	h := &http.Client{Transport: rt}
	opts := []connect.ClientOption{connect.WithReadMaxBytes(maxResponseBytes), connect.WithAcceptCompression("gzip", nil, nil)}
	c.rpc = apiv1connect.NewMoraineClient(h, base, opts...)
	c.nodes = apiv1connect.NewNodesClient(h, base, opts...)
}

// bearer sends a token with each call.
type bearer struct {
	http.RoundTripper
	token string
}

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	if b.token != "" {
		r = r.Clone(r.Context())
		r.Header.Set("Authorization", "Bearer "+b.token)
	}
	return b.RoundTripper.RoundTrip(r)
}

// Address is the agent's address as a URI.
func (c *Client) Address() string { return c.address }

// Close ends the connections that no call uses.
func (c *Client) Close() error {
	c.http.CloseIdleConnections()
	return nil
}

// SocketPath reads an address as New takes it and returns the absolute path of
// the socket.
func SocketPath(address string) (string, error) {
	if address == "" {
		address = DefaultAddress
	}
	path := address
	if scheme, _, ok := strings.Cut(address, ":"); ok && !strings.Contains(scheme, "/") {
		u, err := url.Parse(address)
		if err != nil {
			return "", fmt.Errorf("address %q: not a URI: %w", address, errdefs.ErrInvalidArgument)
		}
		if u.Scheme != "unix" {
			return "", fmt.Errorf("address %q: %s is not supported, name a unix socket (unix:///run/moraine/agent.sock): %w",
				address, u.Scheme, errdefs.ErrInvalidArgument)
		}
		if u.Host != "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
			return "", fmt.Errorf("address %q: a unix socket has three slashes and a path (unix:///run/moraine/agent.sock): %w",
				address, errdefs.ErrInvalidArgument)
		}
		path = u.Path
		if u.Opaque != "" {
			path = u.Opaque
		}
	}
	if path == "" {
		return "", fmt.Errorf("address %q: no path: %w", address, errdefs.ErrInvalidArgument)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("address %q: %w", address, err)
	}
	return abs, nil
}

// dialError marks a failure to reach the agent: nothing was sent.
type dialError struct{ cause error }

func (e *dialError) Error() string { return e.cause.Error() }
func (e *dialError) Unwrap() error { return e.cause }

// IsNotReached says whether err is that the agent could not be reached at all.
func IsNotReached(err error) bool {
	var d *dialError
	return errors.As(err, &d)
}

// fail gives an error of the transport its class, and a text that names the
// agent if the agent did not write it. call is for people: "create volume pg".
func (c *Client) fail(ctx context.Context, call string, err error) error {
	var d *dialError
	if errors.As(err, &d) {
		if cerr := ctx.Err(); cerr != nil {
			return fmt.Errorf("%s: agent at %s: %w", call, c.address, cerr)
		}
		return fmt.Errorf("%s: agent at %s: %w", call, c.address, notReached{d})
	}
	if cerr := overdue(ctx, err); cerr != nil {
		return apierr.New(fmt.Sprintf("%s: agent at %s: %v", call, c.address, cerr), cerr, errdefs.ErrUnavailable, errdefs.ErrIndeterminate)
	}
	if !connect.IsWireError(err) {
		return fmt.Errorf("%s: agent at %s: %w", call, c.address, apierr.FromWire(ctx, err))
	}
	return apierr.FromWire(ctx, err)
}

// overdue says whether err is that the caller's time has passed. The agent
// knows the deadline too, and either side may notice it first: the answer is
// the same.
func overdue(ctx context.Context, err error) error {
	if _, limited := ctx.Deadline(); limited && connect.CodeOf(err) == connect.CodeDeadlineExceeded {
		return context.DeadlineExceeded
	}
	return nil
}

// notReached is a dial error with its class.
type notReached struct{ *dialError }

func (e notReached) Unwrap() []error { return []error{e.dialError, errdefs.ErrUnavailable} }

// unary makes one call.
func unary[Req, Resp any](ctx context.Context, c *Client, call, object string, fn func(context.Context, *Req) (*Resp, error), r *Req) (*Resp, error) {
	resp, err := fn(ctx, r)
	if err != nil {
		return nil, c.fail(ctx, callText(call, object), err)
	}
	return resp, nil
}

// stream makes one call with many answers.
func stream[Req, Resp any](ctx context.Context, c *Client, call, object string,
	fn func(context.Context, *Req) (*connect.ServerStreamForClient[Resp], error), r *Req, send func(*Resp) error,
) error {
	// Closing a stream reads the rest of it; cancelling first gives it up.
	ctx, cancel := context.WithCancel(ctx)
	s, err := fn(ctx, r)
	if err != nil {
		cancel()
		return c.fail(ctx, callText(call, object), err)
	}
	var sendErr error
	for sendErr == nil && s.Receive() {
		sendErr = send(s.Msg())
	}
	err = s.Err()
	if err != nil {
		err = c.fail(ctx, callText(call, object), err)
	}
	cancel()
	_ = s.Close() // everything wanted was received
	if sendErr != nil {
		return sendErr
	}
	return err
}

// callText names a call for people.
func callText(call, object string) string {
	if object == "" {
		return call
	}
	return fmt.Sprintf("%s %q", call, object)
}
