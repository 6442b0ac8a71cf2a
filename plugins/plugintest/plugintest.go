// Package plugintest runs the conformance suite of backends over the real
// plugin connection: go-plugin, mutual TLS where there is a process, gRPC over a
// unix socket, with every translation in between.
//
// A plugin's test needs two lines:
//
//	func TestInProcess(t *testing.T) { plugintest.InProcess(t, fixture) }
//	func TestChild(t *testing.T)     { plugintest.Child(t, "ramdisk", pathOfExecutable, fixture) }
package plugintest

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"github.com/hashicorp/go-plugin/runner"
	"go.uber.org/goleak"

	"github.com/moraine-storage/moraine/backends"
	"github.com/moraine-storage/moraine/backends/backendtest"
	"github.com/moraine-storage/moraine/plugins/host"
	"github.com/moraine-storage/moraine/plugins/sdk"
)

// InProcess runs the suite on fresh's backends through a go-plugin pair within
// this process.
func InProcess(t *testing.T, fresh func(t *testing.T) backendtest.Fixture) {
	backendtest.Run(t, func(t *testing.T) backendtest.Fixture {
		fx := fresh(t)
		restart := fx.Restart
		fx.Backend = Wrap(t, fx.Backend)
		fx.Restart = func(t *testing.T) backends.Backend { return Wrap(t, restart(t)) }
		return fx
	})
}

// Child runs the suite on processes. argv is the command of the plugin called
// name; fresh gives everything of a fixture except Backend and Restart, which
// are a process and another process over the same media.
func Child(t *testing.T, name string, argv []string, fresh func(t *testing.T) backendtest.Fixture) {
	backendtest.Run(t, func(t *testing.T) backendtest.Fixture {
		h, err := host.New(host.Options{
			RunDir:  t.TempDir(),
			Node:    "node-a",
			Builtin: func(n string) ([]string, bool) { return argv, n == name },
			Logger:  Logger(t),
		})
		if err != nil {
			t.Fatal(err)
		}
		var end func()
		start := func(t *testing.T) backends.Backend {
			t.Helper()
			if end != nil {
				end()
			}
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			b, stop, err := h.Open(ctx, name, "")
			if err != nil {
				t.Fatal(err)
			}
			end = stop
			return b
		}
		t.Cleanup(func() {
			if end != nil {
				end()
			}
			if err := h.Close(); err != nil {
				t.Error(err)
			}
		})
		fx := fresh(t)
		fx.Backend, fx.Restart = start(t), start
		return fx
	})
}

// VerifyMain runs the tests of a package and fails when goroutines are left.
// Servers within the process (InProcess, Wrap) leave two each, which is
// go-plugin's: in its test mode nobody closes the pipes that stand for the
// plugin's standard output and error.
func VerifyMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/hashicorp/go-plugin.copyChan"))
}

// Self is the command that runs this test binary as a plugin: its TestMain
// must serve when os.Args[1:] are args.
func Self(args ...string) []string {
	exe, err := os.Executable()
	if err != nil {
		panic(err) // the tests of a binary that cannot be found cannot go on
	}
	// Programs built with -race sleep a second at exit to print races found by
	// others; a suite ends hundreds of processes.
	return append([]string{"/usr/bin/env", "GORACE=atexit_sleep_ms=0", exe}, args...)
}

// Wrap serves b by go-plugin within this process and returns the client's end.
// Both end with the test.
func Wrap(t *testing.T, b backends.Backend) backends.Full {
	t.Helper()
	return WrapContract(t, b, backends.ContractVersion)
}

// WrapContract is Wrap with a plugin that claims another contract version.
func WrapContract(t *testing.T, b backends.Backend, contract int) backends.Full {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan *plugin.ReattachConfig, 1), make(chan struct{})
	go plugin.Serve(&plugin.ServeConfig{
		HandshakeConfig: sdk.Handshake(),
		Plugins:         plugin.PluginSet{sdk.BackendPlugin: &sdk.GRPC{Backend: b, Contract: contract}},
		GRPCServer:      sdk.Server,
		Logger:          hclog.NewNullLogger(),
		Test:            &plugin.ServeTestConfig{Context: ctx, ReattachConfigCh: ready, CloseCh: done},
	})
	var at *plugin.ReattachConfig
	select {
	case at = <-ready:
	case <-done:
		cancel()
		t.Fatal("the plugin server did not start")
	}
	at.ReattachFunc = func() (runner.AttachedRunner, error) { return inProcess{done}, nil }
	c := plugin.NewClient(&plugin.ClientConfig{
		HandshakeConfig:  sdk.Handshake(),
		Plugins:          plugin.PluginSet{sdk.BackendPlugin: &sdk.GRPC{}},
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC},
		Reattach:         at,
		Logger:           hclog.NewNullLogger(),
	})
	proto, err := c.Client()
	t.Cleanup(func() {
		if proto != nil {
			_ = proto.Close() // asks the server to end
			select {
			case <-done: // cancel as well would make go-plugin stop twice at once, a data race of its own
			case <-time.After(30 * time.Second):
				t.Error("the plugin server did not end")
			}
		}
		cancel()
		<-done
	})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := proto.Dispense(sdk.BackendPlugin)
	if err != nil {
		t.Fatal(err)
	}
	conn := raw.(*sdk.Conn)
	info, err := conn.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return backends.Full{Backend: conn, Provisioner: conn, Expander: conn, Fencer: conn, HealthReporter: conn, Capabilities: info.Capabilities}
}

// inProcess is the "process" of a server in this one: it is over when Serve
// returned.
type inProcess struct{ done <-chan struct{} }

func (p inProcess) Wait(context.Context) error { <-p.done; return nil }
func (inProcess) Kill(context.Context) error   { return nil }
func (inProcess) ID() string                   { return "in-process" }

func (inProcess) PluginToHost(network, addr string) (string, string, error) {
	return network, addr, nil
}

func (inProcess) HostToPlugin(network, addr string) (string, string, error) {
	return network, addr, nil
}

// Logger writes to the test's log, and to nowhere once the test is over.
func Logger(t *testing.T) hclog.Logger {
	w := &logWriter{t: t, open: make(chan struct{})}
	t.Cleanup(func() { close(w.open) })
	return hclog.New(&hclog.LoggerOptions{Output: w, Level: hclog.Debug, DisableTime: true})
}

type logWriter struct {
	t    *testing.T
	open chan struct{} // closed when the test is over
}

func (w *logWriter) Write(p []byte) (int, error) {
	select {
	case <-w.open:
	default:
		w.t.Logf("%s", p)
	}
	return len(p), nil
}
