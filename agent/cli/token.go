package cli

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/moraine-storage/moraine/agent/api"
	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// nodesAction is an action on the members of the cluster.
type nodesAction func(ctx context.Context, svc api.Nodes, cmd *cobra.Command, args []string) error

// callNodes makes the RunE of a command that needs api.Nodes.
func (a *app) callNodes(fn nodesAction) func(*cobra.Command, []string) error {
	return a.call(func(ctx context.Context, svc api.Service, cmd *cobra.Command, args []string) error {
		nodes, ok := svc.(api.Nodes)
		if !ok {
			return fmt.Errorf("this connection has no calls for nodes and tokens: %w", errdefs.ErrUnimplemented)
		}
		return fn(ctx, nodes, cmd, args)
	})
}

// tokenCommands are the tokens of one kind: join or user.
func (a *app) tokenCommands(path, kind, what string, extra func(*cobra.Command, *apiv1.CreateTokenRequest)) []*cobra.Command {
	req := &apiv1.CreateTokenRequest{Kind: kind}
	var ttl time.Duration
	create := &cobra.Command{
		Use:     "create",
		Short:   "Make a token " + what + ", and print it: it cannot be shown again",
		Example: "  moraine " + path + " create",
		Args:    cobra.NoArgs,
		RunE: a.callNodes(func(ctx context.Context, svc api.Nodes, cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("ttl") {
				req.Ttl = durationpb.New(ttl)
			}
			r, err := svc.CreateToken(ctx, req)
			if err != nil {
				return err
			}
			return a.emit(r, func(w io.Writer) { fmt.Fprintln(w, clean(r.GetSecret())) })
		}),
	}
	create.Flags().DurationVar(&ttl, "ttl", 0, "how long it can be used (default: "+map[string]string{"join": "1h, at most 168h", "user": "until it is revoked"}[kind]+")")
	create.Flags().StringVar(&req.Description, "description", "", "what it is for, shown in the list")
	if extra != nil {
		extra(create, req)
	}
	list := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List tokens " + what + ", without their secrets",
		Example: "  moraine " + path + " list",
		Args:    cobra.NoArgs,
		RunE: a.callNodes(func(ctx context.Context, svc api.Nodes, _ *cobra.Command, _ []string) error {
			r, err := svc.ListTokens(ctx, &apiv1.ListTokensRequest{Kind: kind})
			if err != nil {
				return err
			}
			return a.emit(messages(r.GetTokens()), func(w io.Writer) { a.tokenTable(w, kind, r.GetTokens()) })
		}),
	}
	revoke := &cobra.Command{
		Use:     "revoke ID...",
		Aliases: []string{"delete", "rm"},
		Short:   "Make tokens useless",
		Long:    "Make tokens useless. The first digits of a token's ID are enough. What was\ndone with it stays done: a node that has joined stays a node.",
		Example: "  moraine " + path + " revoke 3f9a81c2",
		Args:    cobra.MinimumNArgs(1),
		RunE: a.callNodes(func(ctx context.Context, svc api.Nodes, cmd *cobra.Command, args []string) error {
			return a.each(ctx, cmd, args, func(id string) (proto.Message, func(io.Writer), error) {
				r, err := svc.RevokeToken(ctx, &apiv1.RevokeTokenRequest{Id: id})
				return r, func(io.Writer) {}, err
			})
		}),
	}
	return []*cobra.Command{create, list, revoke}
}

func (a *app) tokenTable(w io.Writer, kind string, tokens []*apiv1.Token) {
	var rows [][]string
	for _, t := range tokens {
		if a.quiet {
			fmt.Fprintln(w, clean(t.GetId()))
			continue
		}
		expires := dash(when(t.GetExpiresAt()))
		if kind == "join" {
			rows = append(rows, []string{t.GetId(), when(t.GetCreatedAt()), expires, dash(t.GetUsedBy()), dash(t.GetDescription())})
			continue
		}
		rows = append(rows, []string{t.GetId(), t.GetRole(), when(t.GetCreatedAt()), expires, dash(t.GetDescription())})
	}
	if a.quiet {
		return
	}
	heads := []string{"ID", "ROLE", "CREATED", "EXPIRES", "DESCRIPTION"}
	if kind == "join" {
		heads = []string{"ID", "CREATED", "EXPIRES", "USED BY", "DESCRIPTION"}
	}
	printTable(w, heads, rows)
}

// tokenCommand is about tokens of people and programs.
func (a *app) tokenCommand() *cobra.Command {
	subs := a.tokenCommands("token", "user", "for a person or a program", func(c *cobra.Command, r *apiv1.CreateTokenRequest) {
		c.Flags().StringVar(&r.Role, "role", "reader", "what its holder may do: reader, operator (volumes and snapshots) or admin")
		c.Example = "  moraine token create --role operator --description ci\n  MORAINE_TOKEN=moraine-user... moraine --address https://10.0.0.1:7420 volume list"
	})
	return group("token", "Tokens by which people and programs call the API from elsewhere", "  moraine token create --role reader", subs...)
}

// nodeTokenCommand is about tokens with which nodes join.
func (a *app) nodeTokenCommand() *cobra.Command {
	subs := a.tokenCommands("node token", "join", "with which one node may join, once", nil)
	return group("token", "Tokens with which nodes join the cluster", "  moraine node token create --ttl 10m", subs...)
}

// nodeChanges are the commands that change nodes.
func (a *app) nodeChanges() []*cobra.Command {
	var force, yes bool
	drain := a.setDraining("drain", true, "Mark nodes so that nothing new is placed on them",
		"Mark nodes so that nothing new is placed on them. In this release a volume\n"+
			"lives on the node where it was made: nothing is moved away, and volumes made\n"+
			"on the node itself still get their place there.")
	undrain := a.setDraining("undrain", false, "Take the mark of drain back", "")
	remove := a.named(&cobra.Command{
		Use:   "remove NAME...",
		Short: "Take nodes out of the cluster for ever",
		Long: "Take nodes out of the cluster for ever. Stop the node's agent first. Refused\n" +
			"while its agent runs, or volumes have replicas there or are attached there;\n" +
			"--force gives those up and says what they were. A node that was removed and\n" +
			"comes back is refused; empty its data directory and let it join again with a\n" +
			"new token.",
		Example: "  moraine node remove node-c",
		Args:    cobra.MinimumNArgs(1),
		RunE: a.callNodes(func(ctx context.Context, svc api.Nodes, cmd *cobra.Command, args []string) error {
			if force {
				if err := a.ask(cmd, yes, "Remove %d node(s) with all that is on them?", len(args)); err != nil {
					return err
				}
			}
			return a.each(ctx, cmd, args, func(name string) (proto.Message, func(io.Writer), error) {
				r, err := svc.RemoveNode(ctx, &apiv1.RemoveNodeRequest{Name: name, Force: force})
				return r, func(w io.Writer) {
					if r.GetGivenUp() != "" {
						fmt.Fprintf(w, "given up with %s: %s\n", clean(name), clean(r.GetGivenUp()))
					}
				}, err
			})
		}),
	}, a.nodeNames)
	remove.Flags().BoolVar(&force, "force", false, "give up what is on the nodes: DATA IS LOST if there is no copy elsewhere")
	remove.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return []*cobra.Command{drain, undrain, remove}
}

func (a *app) setDraining(verb string, draining bool, short, long string) *cobra.Command {
	return a.named(&cobra.Command{
		Use: verb + " NAME...", Short: short, Long: long,
		Example: "  moraine node " + verb + " node-c",
		Args:    cobra.MinimumNArgs(1),
		RunE: a.callNodes(func(ctx context.Context, svc api.Nodes, cmd *cobra.Command, args []string) error {
			return a.each(ctx, cmd, args, func(name string) (proto.Message, func(io.Writer), error) {
				r, err := svc.UpdateNode(ctx, &apiv1.UpdateNodeRequest{Name: name, Draining: draining})
				return r, func(io.Writer) {}, err
			})
		}),
	}, a.nodeNames)
}
