// Command moraine is the agent and its command line in one binary.
package main

import (
	"os"

	"github.com/moraine-storage/moraine/agent/cli"
)

func main() {
	os.Exit(cli.Main(os.Args[1:], cli.Deps{}))
}
