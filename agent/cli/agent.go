package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"github.com/moraine-storage/moraine/agent/client"
	"github.com/moraine-storage/moraine/agent/version"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// defaultConfig is read by the agent if neither -config nor -dev is given.
const defaultConfig = "/etc/moraine/agent.hcl"

func (a *app) agentCommand() *cobra.Command {
	var o AgentOptions
	c := &cobra.Command{
		Use:   "agent",
		Short: "Run the agent",
		Long: `Run the agent of this node until it gets SIGINT or SIGTERM; attached volumes stay
attached, and the next agent goes on with them. SIGHUP reads the configuration
again. Without -config the agent reads ` + defaultConfig + `.

With -dev no configuration is needed: the agent has one pool in a directory and
serves Docker. Flags take one or two dashes.`,
		Example: `  moraine agent -dev
  moraine agent -dev -data-dir /srv/moraine
  moraine agent -config /etc/moraine/agent.hcl -config /etc/moraine/conf.d`,
		Args: cobra.NoArgs,
	}
	f := c.Flags()
	f.StringArrayVar(&o.ConfigPaths, "config", nil, "configuration: a file, or a directory of *.hcl; may be repeated (default "+defaultConfig+")")
	f.BoolVar(&o.Dev, "dev", false, "run without a configuration")
	f.StringVar(&o.DataDir, "data-dir", "", "directory of the agent's state (default /var/lib/moraine)")
	f.StringVar(&o.RunDir, "run-dir", "", "directory of sockets and mounts (default /run/moraine)")
	f.StringVar(&o.DockerSocket, "docker-socket", "", "socket of the Docker volume plugin (default /run/docker/plugins/moraine.sock)")
	f.StringVar(&o.LogLevel, "log-level", "", "trace, debug, info, warn or error (default info)")
	f.StringVar(&o.LogFormat, "log-format", "", "text or json (default text)")
	levels, formats := []string{"trace", "debug", "info", "warn", "error"}, []string{"text", "json"}
	complete(c, "log-level", levels...)
	complete(c, "log-format", formats...)
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		if o.Dev && len(o.ConfigPaths) > 0 {
			return usagef(cmd, "-dev and -config do not go together")
		}
		if o.LogLevel != "" && !slices.Contains(levels, o.LogLevel) {
			return usagef(cmd, "log level %s: trace, debug, info, warn or error", quote(o.LogLevel))
		}
		if o.LogFormat != "" && !slices.Contains(formats, o.LogFormat) {
			return usagef(cmd, "log format %s: text or json", quote(o.LogFormat))
		}
		if a.RunAgent == nil {
			return notBuiltIn("agent")
		}
		if !o.Dev && len(o.ConfigPaths) == 0 {
			o.ConfigPaths = []string{defaultConfig}
		}
		if addr := a.agentAddress(); addr != "" {
			path, err := client.SocketPath(addr)
			if err != nil {
				return usage(cmd, err)
			}
			o.Address = path
		}
		err := a.RunAgent(cmd.Context(), o)
		if cmd.Context().Err() != nil && errors.Is(err, context.Canceled) {
			return nil // it was told to stop, and did
		}
		return err
	}
	return c
}

func (a *app) holderCommand() *cobra.Command {
	var socket string
	c := &cobra.Command{
		Use:     "holder",
		Short:   "Keep devices while the agent restarts (started by the agent)",
		Example: `  moraine holder -socket /run/moraine/holder.sock`,
		Hidden:  true,
		Args:    cobra.NoArgs,
	}
	c.Flags().StringVar(&socket, "socket", "", "unix socket to serve")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		if socket == "" {
			return usagef(cmd, "-socket PATH is needed")
		}
		if a.RunHolder == nil {
			return notBuiltIn("holder")
		}
		return a.RunHolder(cmd.Context(), socket)
	}
	return c
}

func (a *app) configCommand() *cobra.Command {
	validate := &cobra.Command{
		Use:   "validate [FILE|DIR]...",
		Short: "Check a configuration, and report all that is wrong",
		Long: `Check a configuration as the agent would read it: files and directories of *.hcl in
order, by default ` + defaultConfig + `. Each error has file and line, and what would be
right. The exit code is 2 if there is one.`,
		Example: `  moraine config validate
  moraine config validate agent.hcl conf.d`,
		RunE: a.local(func(_ context.Context, cmd *cobra.Command, args []string) error {
			if a.CheckConfig == nil {
				return notBuiltIn("config validate")
			}
			if len(args) == 0 {
				args = []string{defaultConfig}
			}
			r, err := a.CheckConfig(args)
			if err != nil {
				return err
			}
			if err := a.emit(r, func(w io.Writer) { a.showConfig(w, r) }); err != nil {
				return err
			}
			for _, e := range r.Errors {
				if a.people() {
					fmt.Fprintln(a.Stderr, e)
				}
			}
			if n := len(r.Errors); n > 0 {
				return withHint(fmt.Errorf("the configuration has %s: %w", plural(n, "error", "errors"), errdefs.ErrInvalidArgument),
					"agent.hcl.example shows every key")
			}
			return nil
		}),
	}
	return group("config", "Check the configuration", "  moraine config validate", validate)
}

func (a *app) showConfig(w io.Writer, r *ConfigReport) {
	for _, s := range r.Warnings {
		fmt.Fprintln(w, "warning:", s)
	}
	if len(r.Errors) == 0 && !a.quiet {
		fmt.Fprintf(w, "the configuration is valid (%s)\n", joinWords(r.Files))
	}
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version of this program",
		Example: "  moraine version\n  moraine version -o json",
		Args:    cobra.NoArgs,
		RunE: a.local(func(context.Context, *cobra.Command, []string) error {
			v := map[string]string{"version": version.Version, "commit": version.Commit}
			return a.emit(v, func(w io.Writer) {
				if a.quiet {
					fmt.Fprintln(w, version.Version)
					return
				}
				fmt.Fprintln(w, version.String())
			})
		}),
	}
}
