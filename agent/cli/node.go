package cli

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/moraine-storage/moraine/agent/api"
	"github.com/moraine-storage/moraine/agent/api/size"
	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

func (a *app) nodeCommand() *cobra.Command {
	list := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List nodes",
		Example: `  moraine node list`,
		Args:    cobra.NoArgs,
		RunE: a.call(func(ctx context.Context, svc api.Service, _ *cobra.Command, _ []string) error {
			r, err := svc.ListNodes(ctx, &apiv1.ListNodesRequest{})
			if err != nil {
				return err
			}
			return a.emit(messages(r.GetNodes()), func(w io.Writer) {
				var rows [][]string
				for _, n := range r.GetNodes() {
					if a.quiet {
						fmt.Fprintln(w, clean(n.GetName()))
						continue
					}
					rows = append(rows, []string{
						n.GetName(), aliveText(n), dash(n.GetAddress()), n.GetVersion(),
						fmt.Sprint(n.GetDrives()), fmt.Sprint(n.GetVolumes()), dash(labelText(n.GetLabels())),
					})
				}
				if !a.quiet {
					printTable(w, []string{"NAME", "STATE", "ADDRESS", "VERSION", ">DRIVES", ">VOLUMES", "LABELS"}, rows)
				}
			})
		}),
	}
	show := a.named(&cobra.Command{
		Use:     "show NAME...",
		Short:   "Show nodes in detail",
		Example: `  moraine node show node-a`,
		Args:    cobra.MinimumNArgs(1),
		RunE: a.call(func(ctx context.Context, svc api.Service, cmd *cobra.Command, args []string) error {
			return a.each(ctx, cmd, args, func(name string) (proto.Message, func(io.Writer), error) {
				r, err := svc.ListNodes(ctx, &apiv1.ListNodesRequest{Name: name})
				if err == nil && (name == "" || len(r.GetNodes()) == 0) {
					err = fmt.Errorf("node %s: %w", quote(name), errdefs.ErrNotFound)
				}
				if err != nil {
					return nil, nil, err
				}
				n := r.GetNodes()[0]
				return n, func(w io.Writer) {
					printFields(w, []field{
						{"Name", n.GetName()}, {"ID", n.GetId()}, {"State", aliveText(n)}, {"Address", n.GetAddress()},
						{"Version", n.GetVersion()}, {"Started", when(n.GetStartedAt())}, {"Labels", labelText(n.GetLabels())},
						{"Drives", fmt.Sprint(n.GetDrives())}, {"Volumes", fmt.Sprint(n.GetVolumes())},
					})
				}, nil
			})
		}),
	}, a.nodeNames)
	return group("node", "Show nodes, and change who belongs to the cluster", "  moraine node list",
		append([]*cobra.Command{list, show, a.nodeTokenCommand()}, a.nodeChanges()...)...)
}

func aliveText(n *apiv1.Node) string {
	text := "down"
	if n.GetAlive() {
		text = "alive"
	}
	if n.GetDraining() {
		text += ", draining"
	}
	return text
}

func (a *app) poolCommand() *cobra.Command {
	list := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List pools and their space",
		Example: `  moraine pool list`,
		Args:    cobra.NoArgs,
		RunE: a.call(func(ctx context.Context, svc api.Service, _ *cobra.Command, _ []string) error {
			r, err := svc.ListPools(ctx, &apiv1.ListPoolsRequest{})
			if err != nil {
				return err
			}
			return a.emit(messages(r.GetPools()), func(w io.Writer) {
				if a.quiet {
					for _, p := range r.GetPools() {
						fmt.Fprintln(w, clean(p.GetName()))
					}
					return
				}
				poolTable(w, r.GetPools())
			})
		}),
	}
	show := a.named(&cobra.Command{
		Use:     "show NAME...",
		Short:   "Show pools and their drives",
		Example: `  moraine pool show default`,
		Args:    cobra.MinimumNArgs(1),
		RunE: a.call(func(ctx context.Context, svc api.Service, cmd *cobra.Command, args []string) error {
			return a.each(ctx, cmd, args, func(name string) (proto.Message, func(io.Writer), error) {
				return a.showPool(ctx, svc, name)
			})
		}),
	}, a.poolNames)
	return group("pool", "Show pools: all drives of one name", "  moraine pool list", list, show)
}

func poolTable(w io.Writer, pools []*apiv1.Pool) {
	var rows [][]string
	for _, p := range pools {
		rows = append(rows, []string{
			p.GetName(), fmt.Sprint(p.GetDrives()), size.Format(p.GetCapacityBytes()), size.Format(p.GetUsedBytes()),
			size.Format(p.GetFreeBytes()), size.Format(p.GetProvisionedBytes()), fmt.Sprint(p.GetReplicas()), healthText(p.GetConditions()),
		})
	}
	printTable(w, []string{"NAME", ">DRIVES", ">CAPACITY", ">USED", ">FREE", ">PROMISED", ">REPLICAS", "HEALTH"}, rows)
}

func (a *app) showPool(ctx context.Context, svc api.Service, name string) (proto.Message, func(io.Writer), error) {
	r, err := svc.ListPools(ctx, &apiv1.ListPoolsRequest{Name: name})
	if err == nil && (name == "" || len(r.GetPools()) == 0) {
		err = fmt.Errorf("pool %s: %w", quote(name), errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, nil, err
	}
	p := r.GetPools()[0]
	var drives []*apiv1.Drive
	if a.people() {
		d, err := svc.ListDrives(ctx, &apiv1.ListDrivesRequest{Pool: name})
		if err != nil {
			return nil, nil, err
		}
		drives = d.GetDrives()
	}
	return p, func(w io.Writer) {
		printFields(w, append([]field{
			{"Name", p.GetName()}, {"Capacity", size.Format(p.GetCapacityBytes())}, {"Used", size.Format(p.GetUsedBytes())},
			{"Free", size.Format(p.GetFreeBytes())}, {"Promised", size.Format(p.GetProvisionedBytes()) + " to " + plural(p.GetReplicas(), "replica", "replicas")},
		}, conditionFields(p.GetConditions())...))
		fmt.Fprintln(w)
		driveTable(w, drives)
	}, nil
}

// healthText is the worst condition in a word.
func healthText(conditions []*apiv1.Condition) string {
	worst := apiv1.Severity_SEVERITY_UNSPECIFIED
	for _, c := range conditions {
		worst = max(worst, c.GetSeverity())
	}
	return severityText(worst)
}

func severityText(s apiv1.Severity) string {
	switch s {
	case apiv1.Severity_ERROR:
		return "error"
	case apiv1.Severity_WARNING:
		return "warning"
	case apiv1.Severity_INFO:
		return "info"
	}
	return "ok"
}

// conditionFields are what a person should know, with the remedy.
func conditionFields(conditions []*apiv1.Condition) []field {
	var out []field
	for _, c := range conditions {
		name := severityText(c.GetSeverity())
		out = append(out, field{strings.ToUpper(name[:1]) + name[1:], c.GetMessage()})
		if c.GetFix() != "" {
			out = append(out, field{"  fix", c.GetFix()})
		}
	}
	return out
}

func (a *app) pluginCommand() *cobra.Command {
	list := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List plugins and how they fare",
		Example: `  moraine plugin list`,
		Args:    cobra.NoArgs,
		RunE: a.call(func(ctx context.Context, svc api.Service, _ *cobra.Command, _ []string) error {
			r, err := svc.ListPlugins(ctx, &apiv1.ListPluginsRequest{})
			if err != nil {
				return err
			}
			return a.emit(messages(r.GetPlugins()), func(w io.Writer) {
				var rows [][]string
				for _, p := range r.GetPlugins() {
					if a.quiet {
						fmt.Fprintln(w, clean(p.GetName()))
						continue
					}
					origin := p.GetPath()
					if p.GetBuiltin() {
						origin = "built in"
					}
					rows = append(rows, []string{
						p.GetName(), p.GetKind(), p.GetState(), p.GetVersion(), fmt.Sprint(p.GetPid()),
						fmt.Sprint(p.GetRestarts()), dash(origin), dash(p.GetLastError()),
					})
				}
				if !a.quiet {
					printTable(w, []string{"NAME", "KIND", "STATE", "VERSION", ">PID", ">RESTARTS", "FROM", "LAST ERROR"}, rows)
				}
			})
		}),
	}
	serve := &cobra.Command{
		Use:     "serve NAME",
		Short:   "Run a built-in plugin (started by the agent)",
		Example: `  moraine plugin serve local`,
		Hidden:  true,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if a.ServePlugin == nil {
				return notBuiltIn("plugin serve")
			}
			return a.ServePlugin(cmd.Context(), args[0])
		},
	}
	return group("plugin", "Show plugins", "  moraine plugin list", list, serve)
}

// notBuiltIn is the error of a command whose part this program lacks.
func notBuiltIn(what string) error {
	return fmt.Errorf("%s: this program was built without it: %w", what, errdefs.ErrUnimplemented)
}
