// Command moraine is the agent and its command line in one binary.
package main

import (
	"context"
	"os"

	"github.com/moraine-storage/moraine/agent"
	"github.com/moraine-storage/moraine/agent/cli"
	"github.com/moraine-storage/moraine/agent/version"
	"github.com/moraine-storage/moraine/backends/builtin"
	"github.com/moraine-storage/moraine/drivers/fuse"
	"github.com/moraine-storage/moraine/plugins/sdk"
)

func main() {
	os.Exit(cli.Main(os.Args[1:], cli.Deps{
		RunAgent: runAgent,
		ServePlugin: func(_ context.Context, name string) error {
			b, err := builtin.New(name, version.Version)
			if err != nil {
				return err
			}
			sdk.Serve(b)
			return nil
		},
		RunHolder: func(_ context.Context, socket string) error { return fuse.HolderMain(socket) },
	}))
}

func runAgent(ctx context.Context, o cli.AgentOptions) error {
	return agent.Run(ctx, agent.Options{
		ConfigPaths: o.ConfigPaths, Dev: o.Dev, DataDir: o.DataDir, RunDir: o.RunDir, Address: o.Address,
		DockerSocket: o.DockerSocket, LogLevel: o.LogLevel, LogFormat: o.LogFormat, Out: os.Stdout,
	})
}
