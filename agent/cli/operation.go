package cli

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/moraine-storage/moraine/agent/api"
	"github.com/moraine-storage/moraine/agent/api/size"
	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
)

func (a *app) operationCommand() *cobra.Command {
	c := group("operation", "Show long work of the agent", "  moraine operation list --all", a.operationList(), a.operationShow())
	c.Aliases = []string{"op", "operations"}
	return c
}

func (a *app) operationList() *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List operations under way",
		Example: `  moraine operation list
  moraine operation list --all`,
		Args: cobra.NoArgs,
		RunE: a.call(func(ctx context.Context, svc api.Service, _ *cobra.Command, _ []string) error {
			r, err := svc.ListOperations(ctx, &apiv1.ListOperationsRequest{All: all})
			if err != nil {
				return err
			}
			return a.emit(messages(r.GetOperations()), func(w io.Writer) {
				if a.quiet {
					for _, o := range r.GetOperations() {
						fmt.Fprintln(w, clean(o.GetId()))
					}
					return
				}
				var rows [][]string
				for _, o := range r.GetOperations() {
					rows = append(rows, []string{
						o.GetId(), o.GetKind(), o.GetObject(), operationState(o), dash(progressText(o)), when(o.GetCreatedAt()),
					})
				}
				printTable(w, []string{"ID", "KIND", "OBJECT", "STATE", "PROGRESS", "STARTED"}, rows)
			})
		}),
	}
	c.Flags().BoolVar(&all, "all", false, "finished ones too")
	return c
}

func (a *app) operationShow() *cobra.Command {
	return a.named(&cobra.Command{
		Use:   "show ID",
		Short: "Show an operation; with --wait, when it has ended",
		Long: `Show an operation. With --wait show how it comes along and return when it has
ended; the exit code is then 1 if it failed.`,
		Example: `  moraine operation show 3f9a0c11d5c84fd8a1b66b6b2f0f7d10 --wait`,
		Args:    cobra.ExactArgs(1),
		RunE: a.call(func(ctx context.Context, svc api.Service, _ *cobra.Command, args []string) error {
			op, err := svc.GetOperation(ctx, &apiv1.GetOperationRequest{Id: args[0]})
			if err != nil {
				return err
			}
			if a.wait {
				b := a.newBar(op.GetKind(), op.GetUnit())
				err = svc.WatchOperation(ctx, &apiv1.GetOperationRequest{Id: args[0]}, func(o *apiv1.Operation) error {
					op = o
					b.show(o.GetStep(), o.GetDone(), o.GetTotal())
					return nil
				})
				b.finish()
				if err != nil {
					return err
				}
			}
			if err := a.emit(op, func(w io.Writer) { showOperation(w, op) }); err != nil {
				return err
			}
			if a.wait && op.GetState() == apiv1.OperationState_OPERATION_FAILED {
				return fmt.Errorf("operation %s failed: %s", quote(op.GetId()), op.GetError())
			}
			return nil
		}),
	}, a.operationIDs)
}

func showOperation(w io.Writer, o *apiv1.Operation) {
	printFields(w, []field{
		{"ID", o.GetId()}, {"Kind", o.GetKind()}, {"Object", o.GetObject()}, {"State", operationState(o)},
		{"Step", o.GetStep()}, {"Progress", progressText(o)}, {"Started", when(o.GetCreatedAt())},
		{"Ended", when(o.GetFinishedAt())}, {"Error", o.GetError()},
	})
}

func operationState(o *apiv1.Operation) string {
	switch o.GetState() {
	case apiv1.OperationState_RUNNING:
		return "running"
	case apiv1.OperationState_SUCCEEDED:
		return "succeeded"
	case apiv1.OperationState_OPERATION_FAILED:
		return "failed"
	}
	return "unknown"
}

func progressText(o *apiv1.Operation) string {
	n := func(v int64) string {
		if o.GetUnit() == "bytes" {
			return size.Format(v)
		}
		return fmt.Sprint(v)
	}
	unit := ""
	if o.GetUnit() != "bytes" && o.GetUnit() != "" {
		unit = " " + o.GetUnit()
	}
	switch {
	case o.GetState() == apiv1.OperationState_SUCCEEDED:
		return "" // all of it, whatever steps were left out
	case o.GetTotal() > 0:
		return fmt.Sprintf("%s of %s%s (%d%%)", n(o.GetDone()), n(o.GetTotal()), unit, percent(o.GetDone(), o.GetTotal()))
	case o.GetDone() > 0:
		return n(o.GetDone()) + unit
	}
	return ""
}

// percent rounds down and does not overflow.
func percent(done, total int64) int64 {
	if done < 0 || total <= 0 {
		return 0
	}
	return int64(float64(min(done, total)) / float64(total) * 100)
}
