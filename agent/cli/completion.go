package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/moraine-storage/moraine/agent/api"
	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
)

// completeTimeout bounds what a press of the tabulator key may take.
const completeTimeout = 2 * time.Second

// names lists what a word may be, by asking the agent.
type names func(ctx context.Context, svc api.Service) ([]string, error)

// named gives a command the completion of its arguments; those that take one
// of these names take it first, further ones only if the command takes many.
func (a *app) named(c *cobra.Command, list names) *cobra.Command {
	offer := a.offer(list)
	many := c.Args != nil && c.Args(c, make([]string, 100)) == nil
	c.ValidArgsFunction = func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 && !many {
			if c.Name() == "mount" || c.Name() == "unmount" {
				return nil, cobra.ShellCompDirectiveFilterDirs
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return offer(cmd, args, word)
	}
	return c
}

// completeFlag gives a flag the completion of its value.
func (a *app) completeFlag(c *cobra.Command, flag string, list names) {
	// It fails only for a flag that is not defined, which every test would show.
	if err := c.RegisterFlagCompletionFunc(flag, a.offer(list)); err != nil {
		panic(err)
	}
}

// offer asks the agent. An agent that does not answer offers nothing: there is
// no place for an error in the middle of a line.
func (a *app) offer(list names) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(cmd.Context(), completeTimeout)
		defer cancel()
		svc, err := a.Dial(a.agentAddress())
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer svc.Close()
		all, err := list(ctx, svc)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var out []string
		for _, n := range all {
			if !contains(args, n) {
				out = append(out, clean(n))
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}

func contains(list []string, s string) bool {
	for _, have := range list {
		if have == s {
			return true
		}
	}
	return false
}

func (a *app) volumeNames(ctx context.Context, svc api.Service) ([]string, error) {
	volumes, err := allVolumes(ctx, svc, nil)
	var out []string
	for _, v := range volumes {
		out = append(out, v.GetName())
	}
	return out, err
}

func (a *app) snapshotNames(ctx context.Context, svc api.Service) ([]string, error) {
	r, err := svc.ListSnapshots(ctx, &apiv1.ListSnapshotsRequest{})
	var out []string
	for _, s := range r.GetSnapshots() {
		out = append(out, s.GetVolume()+"@"+s.GetName())
	}
	return out, err
}

func (a *app) volumeAndSnapshotNames(ctx context.Context, svc api.Service) ([]string, error) {
	v, err := a.volumeNames(ctx, svc)
	if err != nil {
		return nil, err
	}
	s, err := a.snapshotNames(ctx, svc)
	return append(v, s...), err
}

func (a *app) poolNames(ctx context.Context, svc api.Service) ([]string, error) {
	r, err := svc.ListPools(ctx, &apiv1.ListPoolsRequest{})
	var out []string
	for _, p := range r.GetPools() {
		out = append(out, p.GetName())
	}
	return out, err
}

func (a *app) driveIDs(ctx context.Context, svc api.Service) ([]string, error) {
	r, err := svc.ListDrives(ctx, &apiv1.ListDrivesRequest{})
	var out []string
	for _, d := range r.GetDrives() {
		out = append(out, d.GetId())
	}
	return out, err
}

func (a *app) nodeNames(ctx context.Context, svc api.Service) ([]string, error) {
	r, err := svc.ListNodes(ctx, &apiv1.ListNodesRequest{})
	var out []string
	for _, n := range r.GetNodes() {
		out = append(out, n.GetName())
	}
	return out, err
}

func (a *app) operationIDs(ctx context.Context, svc api.Service) ([]string, error) {
	r, err := svc.ListOperations(ctx, &apiv1.ListOperationsRequest{All: true})
	var out []string
	for _, o := range r.GetOperations() {
		out = append(out, o.GetId())
	}
	return out, err
}

func (a *app) completionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "completion bash|zsh|fish",
		Short: "Print the completion script of a shell",
		Long: `Print a script that makes a shell complete commands, flags, and the names of
volumes, snapshots, pools, drives and nodes (these by asking the agent).`,
		Example: `  . <(moraine completion bash)                                          this shell only
  moraine completion bash > /etc/bash_completion.d/moraine
  moraine completion zsh > "${fpath[1]}/_moraine"
  moraine completion fish > ~/.config/fish/completions/moraine.fish`,
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{"bash", "zsh", "fish"},
		RunE: func(cmd *cobra.Command, args []string) error {
			switch root := cmd.Root(); args[0] {
			case "bash":
				return root.GenBashCompletionV2(a.Stdout, true)
			case "zsh":
				return root.GenZshCompletion(a.Stdout)
			default:
				return root.GenFishCompletion(a.Stdout, true)
			}
		},
	}
}
