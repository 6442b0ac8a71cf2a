package cli

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/moraine-storage/moraine/agent/api"
	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show how the agent and its pools are",
		Long: `Show how the agent and its pools are. The exit code is 6 if the agent is not ready;
with --wait the command waits until it is.`,
		Example: `  moraine status
  moraine status --wait --timeout 30s`,
		Args: cobra.NoArgs,
		RunE: a.call(func(ctx context.Context, svc api.Service, _ *cobra.Command, _ []string) error {
			s, err := svc.GetStatus(ctx, &apiv1.GetStatusRequest{})
			for a.wait && (err == nil && !s.GetReady() || errdefs.IsUnavailable(err)) && ctx.Err() == nil {
				if serr := sleep(ctx, waitStep); serr != nil {
					break
				}
				s, err = svc.GetStatus(ctx, &apiv1.GetStatusRequest{})
			}
			if err != nil {
				return err
			}
			if err := a.emit(s, func(w io.Writer) { a.showStatus(w, s) }); err != nil {
				return err
			}
			if !s.GetReady() {
				return fmt.Errorf("the agent is not ready yet: %w", errors.Join(errdefs.ErrUnavailable, ctx.Err()))
			}
			return nil
		}),
	}
}

func (a *app) showStatus(w io.Writer, s *apiv1.Status) {
	state := "ready"
	if !s.GetReady() {
		state = "not ready"
	}
	if a.quiet {
		fmt.Fprintln(w, state)
		return
	}
	printFields(w, append([]field{
		{"Node", s.GetNode()}, {"State", state}, {"Version", s.GetVersion() + " (commit " + s.GetCommit() + ")"},
		{"Started", when(s.GetStartedAt())}, {"Cluster", s.GetClusterId()}, {"Data", s.GetDataDir()},
		{"Volumes", fmt.Sprintf("%d, %d attached", s.GetVolumes(), s.GetAttached())},
	}, conditionFields(s.GetConditions())...))
	if len(s.GetPools()) > 0 {
		fmt.Fprintln(w)
		poolTable(w, s.GetPools())
	}
}

func (a *app) doctorCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Check what the node can do, and say how to mend the rest",
		Long: `Check what Moraine needs of the node: kernel modules, devices, programs, space. It
says what is missing, what follows from it, and how to mend it. The exit code is 4
if something that is needed is missing, and 0 if all that is missing has a
substitute.`,
		Example: `  moraine doctor`,
		Args:    cobra.NoArgs,
		RunE: a.call(func(ctx context.Context, svc api.Service, _ *cobra.Command, _ []string) error {
			r, err := svc.RunDoctor(ctx, &apiv1.RunDoctorRequest{})
			if err != nil {
				return err
			}
			failed := 0
			for _, c := range r.GetChecks() {
				if !c.GetOk() && c.GetSeverity() != apiv1.Severity_INFO && c.GetSeverity() != apiv1.Severity_WARNING {
					failed++
				}
			}
			if err := a.emit(r, func(w io.Writer) { a.showDoctor(w, r) }); err != nil {
				return err
			}
			if failed > 0 {
				return withHint(fmt.Errorf("%s failed: %w", plural(failed, "check", "checks"), errdefs.ErrFailedPrecondition),
					"the lines that begin with 'fix' say what to do")
			}
			return nil
		}),
	}
}

func (a *app) showDoctor(w io.Writer, r *apiv1.DoctorReport) {
	var rows [][]string
	for _, c := range r.GetChecks() {
		word := "ok"
		if !c.GetOk() {
			word = severityText(c.GetSeverity())
			if word == "ok" {
				word = "error"
			}
		} else if a.quiet {
			continue
		}
		rows = append(rows, []string{word, c.GetName(), c.GetDetail()})
		if !c.GetOk() && c.GetFix() != "" {
			rows = append(rows, []string{"", "  fix", c.GetFix()})
		}
	}
	printTable(w, nil, rows)
}
