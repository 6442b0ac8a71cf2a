package host

import (
	"context"
	"fmt"
	"os/exec"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"github.com/hashicorp/go-plugin/runner"
	"google.golang.org/grpc"

	"github.com/moraine-storage/moraine/backends"
	"github.com/moraine-storage/moraine/plugins/backendrpc"
	"github.com/moraine-storage/moraine/plugins/errdefs"
	"github.com/moraine-storage/moraine/plugins/sdk"
)

// process is one running plugin that has passed the checks of invariant 1
// except Configure.
type process struct {
	prog   *program
	client *plugin.Client
	child  atomic.Pointer[child] // nil until go-plugin asked for it
	conn   *sdk.Conn
	info   backends.Info
	since  time.Time

	mu       sync.Mutex
	calls    int           // guarded by mu: in flight
	draining bool          // guarded by mu: no new ones
	idle     chan struct{} // closed when draining and calls is 0
}

// launch starts the plugin and checks who answers. The process is not
// configured yet.
func (h *Host) launch(ctx context.Context, name, pin string) (*process, error) {
	prog, err := h.find(name, pin)
	if err != nil {
		return nil, err
	}
	if prog.file != nil {
		defer prog.file.Close()
	}
	p := &process{prog: prog, since: time.Now(), idle: make(chan struct{})}
	said := &tail{}
	p.client = plugin.NewClient(h.clientConfig(name, p, said))
	if err := h.handshake(ctx, name, p); err != nil {
		p.end(h.t.Stop, false)
		err = fmt.Errorf("start plugin %s (%s): %w", name, prog.path, err)
		if s := said.String(); s != "" {
			err = fmt.Errorf("%w; it said: %s", err, s)
		}
		return nil, err
	}
	return p, nil
}

func (h *Host) clientConfig(name string, p *process, said *tail) *plugin.ClientConfig {
	return &plugin.ClientConfig{
		HandshakeConfig:  sdk.Handshake(),
		Plugins:          plugin.PluginSet{sdk.BackendPlugin: &sdk.GRPC{}},
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC},
		RunnerFunc: func(_ hclog.Logger, cmd *exec.Cmd, _ string) (runner.Runner, error) {
			c := newChild(p.prog, cmd.Env)
			p.child.Store(c)
			return c, nil
		},
		SkipHostEnv:      true,
		AutoMTLS:         true,
		StartTimeout:     h.t.Start,
		Stderr:           said,
		Logger:           quiet{h.log.Named(name)},
		UnixSocketConfig: &plugin.UnixSocketConfig{TempDir: h.sockDir},
		GRPCDialOptions: []grpc.DialOption{
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(backendrpc.MaxMessage), grpc.MaxCallSendMsgSize(backendrpc.MaxMessage)),
			grpc.WithReadBufferSize(8 << 10), grpc.WithWriteBufferSize(8 << 10),
		},
	}
}

// handshake runs what go-plugin does without a context in a goroutine of its
// own; ctx ends the child, and with it the goroutine.
func (h *Host) handshake(ctx context.Context, name string, p *process) error {
	type result struct {
		conn *sdk.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		var r result
		r.conn, r.err = dispense(p.client)
		done <- r
	}()
	var r result
	select {
	case r = <-done:
	case <-ctx.Done():
		// The child may not have been started yet: kill until it is gone.
		for running := true; running; {
			p.kill()
			select {
			case <-done:
				running = false
			case <-time.After(10 * time.Millisecond):
			}
		}
		return ctx.Err()
	}
	if r.err != nil {
		return fmt.Errorf("%w: %s", errdefs.ErrUnavailable, oneLine(r.err.Error(), 512))
	}
	p.conn = r.conn
	ctx, cancel := context.WithTimeout(ctx, h.t.Start)
	defer cancel()
	var err error
	if p.info, err = p.conn.Info(ctx); err != nil {
		return fmt.Errorf("info: %w", err)
	}
	return judge(name, p.info)
}

func dispense(c *plugin.Client) (*sdk.Conn, error) {
	proto, err := c.Client()
	if err != nil {
		return nil, err
	}
	raw, err := proto.Dispense(sdk.BackendPlugin)
	if err != nil {
		return nil, err
	}
	conn, ok := raw.(*sdk.Conn)
	if !ok {
		return nil, fmt.Errorf("plugin dispensed a %T", raw)
	}
	return conn, nil
}

// judge says whether the plugin is what it was started as.
func judge(name string, i backends.Info) error {
	if i.Contract != backends.ContractVersion {
		return fmt.Errorf("%w: it speaks contract version %d, this agent speaks %d", errdefs.ErrFailedPrecondition, i.Contract, backends.ContractVersion)
	}
	if i.Name != name {
		return fmt.Errorf("%w: it says that it is %q, want %q", errdefs.ErrFailedPrecondition, i.Name, name)
	}
	return nil
}

// enter counts a call in; false when the process takes no more.
func (p *process) enter() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.draining {
		return false
	}
	p.calls++
	return true
}

func (p *process) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.calls--; p.calls == 0 && p.draining {
		close(p.idle)
	}
}

// end ends the process and returns when it is gone. With orderly it first lets
// calls in flight finish and asks the plugin to stop, for at most grace each.
func (p *process) end(grace time.Duration, orderly bool) {
	p.mu.Lock()
	if !p.draining {
		p.draining = true
		if p.calls == 0 {
			close(p.idle)
		}
	}
	p.mu.Unlock()
	if orderly {
		select {
		case <-p.idle:
		case <-p.exited():
		case <-time.After(grace):
		}
	} else {
		p.kill()
	}
	// Kill asks over gRPC without a deadline: a plugin that does not answer
	// would hold it for ever, so the child is killed beside it.
	done := make(chan struct{})
	go func() { defer close(done); p.client.Kill() }()
	select {
	case <-done:
	case <-time.After(grace):
		p.kill()
		<-done
	}
}

func (p *process) kill() {
	if c := p.child.Load(); c != nil {
		_ = c.Kill(context.Background()) // only fails when it is gone
	}
}

// exited is closed when the process is gone; nil while there is none.
func (p *process) exited() <-chan struct{} {
	if c := p.child.Load(); c != nil {
		return c.exited
	}
	return nil
}

// quiet lowers go-plugin's own chatter: one line per state change is the
// host's, what the plugin logs keeps its level.
type quiet struct{ hclog.Logger }

// Info hides "plugin process exited".
func (q quiet) Info(msg string, args ...any) { q.Logger.Debug(msg, args...) }

// Error: go-plugin calls an exit by signal an error; the host reports it with
// the reason.
func (q quiet) Error(msg string, args ...any) { q.Logger.Debug(msg, args...) }

// Warn: "failed to exit gracefully" likewise.
func (q quiet) Warn(msg string, args ...any) { q.Logger.Debug(msg, args...) }

// Named is what go-plugin calls for the plugin's own lines, with the file's
// name: those pass as they are.
func (q quiet) Named(string) hclog.Logger { return q.Logger }
