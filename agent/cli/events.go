package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"sigs.k8s.io/yaml"

	"github.com/moraine-storage/moraine/agent/api"
	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

func (a *app) eventsCommand() *cobra.Command {
	var r apiv1.WatchEventsRequest
	c := &cobra.Command{
		Use:   "events",
		Short: "Show what happened, and what happens",
		Long: `Show the events that the agent has kept; with --follow also those to come, until
it is interrupted, over restarts of the agent. With --follow JSON is one object
per line and YAML one document per event. The cursor of the last event seen,
given as --after, continues from there.`,
		Example: `  moraine events
  moraine events -f
  moraine events --object "volume pg" --after 1204 -o json`,
		Args: cobra.NoArgs,
	}
	c.Flags().BoolVarP(&r.Follow, "follow", "f", false, "go on with new events")
	c.Flags().Uint64Var(&r.After, "after", 0, "only events after this cursor")
	c.Flags().StringVar(&r.Object, "object", "", `only events of this object, for example "volume pg"`)
	c.RunE = a.call(func(ctx context.Context, svc api.Service, cmd *cobra.Command, _ []string) error {
		if r.Follow {
			return a.followEvents(ctx, svc, &r)
		}
		var all []*apiv1.Event
		err := svc.WatchEvents(ctx, &r, func(e *apiv1.Event) error {
			all = append(all, e)
			return nil
		})
		if err != nil {
			return err
		}
		return a.emit(messages(all), func(w io.Writer) {
			for _, e := range all {
				fmt.Fprintln(w, eventLine(e))
			}
		})
	})
	return c
}

// followEvents prints events as they come. When the agent goes away after it
// has answered once, it is waited for: it will go on from the last cursor.
func (a *app) followEvents(ctx context.Context, svc api.Service, r *apiv1.WatchEventsRequest) error {
	var printErr error
	r = proto.CloneOf(r)
	answered := a.wait
	for {
		err := svc.WatchEvents(ctx, r, func(e *apiv1.Event) error {
			r.After, answered = e.GetCursor(), true
			printErr = a.printEvent(e)
			return printErr
		})
		switch {
		case printErr != nil:
			return printErr
		case ctx.Err() != nil:
			return err
		case err == nil: // an agent that stops may end the stream so
		case errdefs.IsUnavailable(err) && (answered || errdefs.Indeterminate(err)):
			if !a.quiet {
				fmt.Fprintln(a.Stderr, "moraine: the agent does not answer, waiting for it")
			}
			answered = true
		default:
			return err
		}
		if err := a.waitForAgent(ctx, svc); err != nil {
			return err
		}
		if err := sleep(ctx, waitStep); err != nil {
			return err
		}
	}
}

// printEvent prints one event of an endless list.
func (a *app) printEvent(e *apiv1.Event) error {
	if a.people() {
		_, err := fmt.Fprintln(a.Stdout, eventLine(e))
		return err
	}
	raw, err := messageJSON(e)
	if err != nil {
		return fmt.Errorf("print as json: %w", err)
	}
	var b bytes.Buffer
	if a.output == formYAML {
		doc, err := yaml.JSONToYAML(raw)
		if err != nil {
			return fmt.Errorf("print as yaml: %w", err)
		}
		b.WriteString("---\n")
		b.Write(doc)
	} else {
		if err := json.Compact(&b, raw); err != nil {
			return fmt.Errorf("print as json: %w", err)
		}
		b.WriteByte('\n')
	}
	_, err = a.Stdout.Write(b.Bytes())
	return err
}

// eventLine is an event for people.
func eventLine(e *apiv1.Event) string {
	sev := ""
	if e.GetSeverity() > apiv1.Severity_INFO {
		sev = severityText(e.GetSeverity()) + ": "
	}
	parts := []string{when(e.GetAt()), fmt.Sprintf("%-18s", e.GetType()), e.GetObject()}
	for _, p := range []string{sev + e.GetMessage(), labelText(e.GetFields())} {
		if p != "" {
			parts = append(parts, p)
		}
	}
	line := strings.Join(parts, "  ")
	return clean(line)
}
