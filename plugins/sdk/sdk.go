// Package sdk makes a program a Moraine backend plugin:
//
//	func main() { sdk.Serve(mybackend.New()) }
//
// The program is an executable named moraine-backend-NAME in the agent's
// plugin_dir, NAME being what Info answers. The agent starts it, speaks gRPC
// with it over a unix socket (mutual TLS with one-time certificates), restarts
// it when it dies and ends it when it stops itself. The program must not print
// to standard output before Serve; what it writes to standard error, or logs
// with Logger, appears in the agent's log.
//
// contrib/examples/backend-ramdisk is a complete plugin; package backends is
// the contract; plugins/plugintest runs the conformance suite over the real
// connection.
package sdk

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/moraine-storage/moraine/backends"
	"github.com/moraine-storage/moraine/plugins/backendrpc"
)

// ProtocolVersion is the version of the way agent and plugin find each other
// (go-plugin's handshake); the contract has its own (backends.ContractVersion).
const ProtocolVersion = 1

// BackendPlugin is the name under which a plugin serves its backend.
const BackendPlugin = "backend"

// LifelineEnv names the environment variable with the number of a file
// descriptor that reads end-of-file when the agent is gone, however it ended.
const LifelineEnv = "MORAINE_PLUGIN_LIFELINE_FD"

// Handshake is what both sides must agree on. The cookie is no secret: it only
// keeps a person who runs the program by hand from waiting for output.
func Handshake() plugin.HandshakeConfig {
	return plugin.HandshakeConfig{
		ProtocolVersion:  ProtocolVersion,
		MagicCookieKey:   "MORAINE_PLUGIN_COOKIE",
		MagicCookieValue: "moraine-backend-plugin",
	}
}

// Serve serves b until the agent ends the plugin, then returns. It exits the
// process with status 1 when the process was not started by an agent.
func Serve(b backends.Backend) {
	ServeConfig(b, nil)
}

// ServeConfig is Serve for tests: change, when not nil, may alter go-plugin's
// configuration (another cookie, another version) before it is used.
func ServeConfig(b backends.Backend, change func(*plugin.ServeConfig)) {
	watchLifeline()
	c := &plugin.ServeConfig{
		HandshakeConfig: Handshake(),
		Plugins:         plugin.PluginSet{BackendPlugin: &GRPC{Backend: b, Contract: backends.ContractVersion}},
		GRPCServer:      Server,
		Logger:          Logger("plugin"),
	}
	if change != nil {
		change(c)
	}
	plugin.Serve(c)
}

// Server is the gRPC server of a plugin: like the default, with the contract's
// limits.
func Server(opts []grpc.ServerOption) *grpc.Server {
	return grpc.NewServer(append(opts,
		grpc.MaxRecvMsgSize(backendrpc.MaxMessage),
		grpc.MaxSendMsgSize(backendrpc.MaxMessage),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.ReadBufferSize(8<<10), grpc.WriteBufferSize(8<<10), // few small messages: memory matters more
	)...)
}

// maxStreams bounds calls in flight at the plugin: the agent's own bound
// (plugins/host) and the streams that go-plugin keeps open.
const maxStreams = 128

// Logger returns a logger whose lines the agent takes over with their levels.
func Logger(name string) hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{Name: name, Level: hclog.Info, Output: os.Stderr, JSONFormat: true})
}

// GRPC joins go-plugin and the backend's gRPC service. The plugin's side sets
// Backend and Contract; the agent's side leaves them empty and gets a *Conn
// from Dispense.
type GRPC struct {
	plugin.NetRPCUnsupportedPlugin
	Backend  backends.Backend
	Contract int // what Info reports
}

// Conn is what Dispense returns in the agent.
type Conn struct {
	*backendrpc.Client
	GRPC *grpc.ClientConn
}

// GRPCServer implements plugin.GRPCPlugin in the plugin.
func (g *GRPC) GRPCServer(_ *plugin.GRPCBroker, s *grpc.Server) error {
	if g.Backend == nil {
		return fmt.Errorf("serve plugin: no backend given")
	}
	backendrpc.Register(s, g.Backend, g.Contract)
	return nil
}

// GRPCClient implements plugin.GRPCPlugin in the agent.
func (g *GRPC) GRPCClient(_ context.Context, _ *plugin.GRPCBroker, c *grpc.ClientConn) (any, error) {
	return &Conn{Client: backendrpc.NewClient(c), GRPC: c}, nil
}

// watchLifeline ends the process when the agent is gone. Without it, plugins
// of a killed agent would stay behind and two generations could act on one
// medium. Drives stay attached: that is in the kernel, not in this process.
func watchLifeline() {
	fd, err := strconv.Atoi(os.Getenv(LifelineEnv))
	if err != nil || fd < 3 {
		return // started by hand or by another host
	}
	unix.CloseOnExec(fd) // mkfs and the like need not hold it
	f := os.NewFile(uintptr(fd), "lifeline")
	if f == nil {
		return
	}
	go func() {
		_, _ = io.Copy(io.Discard, f)
		os.Exit(0)
	}()
}
