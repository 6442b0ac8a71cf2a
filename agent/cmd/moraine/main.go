// Command moraine is the agent, its command line, and the small processes that
// the agent starts, in one binary.
package main

import (
	"os"

	"github.com/moraine-storage/moraine/agent/cli"
	"github.com/moraine-storage/moraine/agent/cli/offline"
)

func main() {
	os.Exit(cli.Main(os.Args[1:], cli.Deps{
		RunAgent:    runAgent,
		ServePlugin: servePlugin,
		RunHolder:   runHolder,
		CheckConfig: checkConfig,
		Drives:      offline.Drives{},
	}))
}
