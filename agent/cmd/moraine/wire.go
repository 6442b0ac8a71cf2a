package main

import (
	"context"
	"os"
	"os/signal"
	"runtime/debug"

	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/agent"
	"github.com/moraine-storage/moraine/agent/cli"
	"github.com/moraine-storage/moraine/agent/config"
	"github.com/moraine-storage/moraine/agent/version"
	"github.com/moraine-storage/moraine/backends/builtin"
	"github.com/moraine-storage/moraine/drivers/fuse"
	"github.com/moraine-storage/moraine/plugins/sdk"
)

func runAgent(ctx context.Context, o cli.AgentOptions) error {
	return agent.Run(ctx, agent.Options{
		ConfigPaths: o.ConfigPaths, Dev: o.Dev, DataDir: o.DataDir, RunDir: o.RunDir, Address: o.Address,
		DockerSocket: o.DockerSocket, LogLevel: o.LogLevel, LogFormat: o.LogFormat, Out: os.Stdout,
	})
}

// pluginGCPercent keeps the heap of a plugin small: it has a few kilobytes in
// use and no hurry.
const pluginGCPercent = 20

// servePlugin runs until the agent ends it. Signals end it as they end any
// program; the command line's handling of them is for commands.
func servePlugin(_ context.Context, name string) error {
	b, err := builtin.New(name, version.Version)
	if err != nil {
		return err
	}
	signal.Reset(os.Interrupt, unix.SIGTERM)
	debug.SetGCPercent(pluginGCPercent)
	debug.FreeOSMemory() // what the program's initialisation used
	sdk.Serve(b)
	return nil
}

// runHolder goes on when the command line is told to stop: with it the devices
// of all volumes would go.
func runHolder(_ context.Context, socket string) error { return fuse.HolderMain(socket) }

func checkConfig(paths []string) (*cli.ConfigReport, error) {
	_, ds := config.Load(paths, nil)
	r := &cli.ConfigReport{Files: paths, Errors: []string{}, Warnings: []string{}}
	for _, d := range ds {
		r.Errors = append(r.Errors, d.String())
	}
	return r, nil
}
