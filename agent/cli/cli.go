package cli

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/moraine-storage/moraine/agent/api"
	"github.com/moraine-storage/moraine/agent/version"
)

// AgentOptions are the flags of `moraine agent`. Empty fields were not given.
type AgentOptions struct {
	ConfigPaths  []string // files and directories of HCL, in order
	Dev          bool     // no file needed: one directory-backed pool
	DataDir      string
	RunDir       string
	Address      string // path of the API socket
	DockerSocket string
	LogLevel     string // trace, debug, info, warn, error
	LogFormat    string // text, json
}

// Deps are the parts of the program that the command line starts but does not
// contain. A nil function makes its command fail with a clear error; nil
// streams are those of the process.
type Deps struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Getenv         func(string) string
	// IsTerminal says whether a stream is one; nil asks the kernel.
	IsTerminal func(stream any) bool

	// RunAgent runs the agent until ctx ends.
	RunAgent func(ctx context.Context, o AgentOptions) error
	// ServePlugin runs a built-in backend plugin until its host ends it.
	ServePlugin func(ctx context.Context, name string) error
	// RunHolder runs the process that keeps devices over an agent's restart.
	RunHolder func(ctx context.Context, socket string) error
	// CheckConfig reads a configuration as the agent would.
	CheckConfig func(paths []string) (*ConfigReport, error)
	// Drives looks into drives without an agent; nil: not built in.
	Drives DriveTool
	// Dial makes a client; nil: agent/client.
	Dial func(address string) (Connection, error)
}

// Connection is a service with an end.
type Connection interface {
	api.Service
	io.Closer
}

// ConfigReport is what is to say about a configuration.
type ConfigReport struct {
	Files    []string `json:"files"`
	Errors   []string `json:"errors"`   // with file, line and a suggestion
	Warnings []string `json:"warnings"` // likewise
}

// Main runs one command line, without the program's name, and returns the exit
// code.
func Main(args []string, d Deps) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	// A second signal ends the process as signals do.
	defer context.AfterFunc(ctx, stop)()
	return Run(ctx, args, d)
}

// Run is Main with a context in place of signals.
func Run(ctx context.Context, args []string, d Deps) int {
	a := newApp(d)
	root := a.rootCommand()
	root.SetArgs(normaliseArgs(root, args))
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	code := exitCode(err)
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		code = exitInterrupted
	}
	a.report(cmd, err)
	return code
}

// app is one run of the program.
type app struct {
	Deps

	// Flags of every command.
	address string
	output  string
	quiet   bool
	wait    bool
	timeout time.Duration
}

func newApp(d Deps) *app {
	if d.Stdin == nil {
		d.Stdin = os.Stdin
	}
	if d.Stdout == nil {
		d.Stdout = os.Stdout
	}
	if d.Stderr == nil {
		d.Stderr = os.Stderr
	}
	if d.Getenv == nil {
		d.Getenv = os.Getenv
	}
	if d.IsTerminal == nil {
		d.IsTerminal = isTerminal
	}
	if d.Dial == nil {
		d.Dial = func(address string) (Connection, error) { return dialAgent(address, d.Getenv) }
	}
	return &app{Deps: d}
}

func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// rootCommand is the tree of all commands.
func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "moraine",
		Short: "Replicated volumes for containers",
		Long: `Moraine gives containers storage that outlives the container and the node.

An agent on every node pools raw capacity and serves volumes: thin, replicated
block devices with snapshots. This program is the agent and its command line.`,
		Example: `  moraine agent -dev                       start an agent that needs no configuration
  moraine volume create pg --size 10GiB    make a volume
  moraine volume mount pg /srv/pg          use it on this node
  moraine status                           see how things are`,
		Version:           version.Version,
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
		Args:              cobra.ArbitraryArgs, // showHelp refuses them better
		RunE:              showHelp,
	}
	root.SetIn(a.Stdin)
	root.SetOut(a.Stdout)
	root.SetErr(a.Stderr)
	root.SetVersionTemplate(version.String() + "\n")
	root.SetFlagErrorFunc(flagError)
	f := root.PersistentFlags()
	f.StringVar(&a.address, "address", "", "socket of the agent, or https://host:port with a token in $MORAINE_TOKEN (default $MORAINE_ADDRESS or unix:///run/moraine/agent.sock)")
	f.StringVarP(&a.output, "output", "o", "table", "form of the answer: table, json or yaml")
	f.BoolVarP(&a.quiet, "quiet", "q", false, "print names only")
	f.BoolVar(&a.wait, "wait", false, "wait for an agent that does not answer yet, as long as --timeout allows")
	f.DurationVar(&a.timeout, "timeout", 0, "give up after this time, for example 30s (default: never)")
	complete(root, "output", "table", "json", "yaml")
	root.AddGroup(&cobra.Group{ID: "use", Title: "Volumes:"}, &cobra.Group{ID: "see", Title: "The node:"}, &cobra.Group{ID: "run", Title: "The program:"})
	for _, g := range []struct {
		id   string
		cmds []*cobra.Command
	}{
		{"use", []*cobra.Command{a.volumeCommand(), a.snapshotCommand()}},
		{"see", []*cobra.Command{
			a.statusCommand(), a.doctorCommand(), a.eventsCommand(), a.operationCommand(),
			a.nodeCommand(), a.poolCommand(), a.driveCommand(), a.replicaCommand(), a.pluginCommand(), a.tokenCommand(),
		}},
		{"run", []*cobra.Command{a.agentCommand(), a.configCommand(), a.completionCommand(), a.versionCommand(), a.holderCommand()}},
	} {
		for _, c := range g.cmds {
			c.GroupID = g.id
			root.AddCommand(c)
		}
	}
	root.SetHelpCommandGroupID("run")
	root.AddCommand(exitCodesTopic())
	eachCommand(root, prepare)
	return root
}

// prepare makes a command answer a wrong number of arguments, or a wrong one,
// as a usage error.
func prepare(c *cobra.Command) {
	args := c.Args
	if args == nil {
		return
	}
	c.Args = func(cmd *cobra.Command, s []string) error {
		err := args(cmd, s)
		switch {
		case err == nil:
			return nil
		case len(s) == 0:
			return usagef(cmd, "an argument is missing: %s", cmd.UseLine())
		case strings.HasPrefix(err.Error(), "accepts"), strings.HasPrefix(err.Error(), "unknown command"):
			return usagef(cmd, "too many or too few arguments: %s", cmd.UseLine())
		}
		return usage(cmd, err)
	}
}

// numberError is how pflag reports a number that is none.
var numberError = regexp.MustCompile(`strconv\.Parse\w+: parsing .*: (invalid syntax|value out of range)$`)

// flagError is a usage error in plain words.
func flagError(cmd *cobra.Command, err error) error {
	text := numberError.ReplaceAllStringFunc(err.Error(), func(s string) string {
		if strings.HasSuffix(s, "range") {
			return "the number is too large"
		}
		return "a whole number, not negative, is needed"
	})
	if text != err.Error() {
		err = errors.New(text)
	}
	return usage(cmd, err)
}

// eachCommand calls fn for c and everything below it.
func eachCommand(c *cobra.Command, fn func(*cobra.Command)) {
	fn(c)
	for _, sub := range c.Commands() {
		eachCommand(sub, fn)
	}
}

// group makes a command that only has sub-commands.
func group(use, short, example string, subs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Example: example, Args: cobra.ArbitraryArgs, RunE: showHelp}
	c.AddCommand(subs...)
	return c
}

// showHelp is what a command without an action of its own does.
func showHelp(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	err := errors.New("unknown command " + quote(args[0]))
	if s := cmd.SuggestionsFor(args[0]); len(s) > 0 {
		err = errors.New(err.Error() + ", did you mean " + quote(s[0]) + "?")
	}
	return usage(cmd, err)
}
