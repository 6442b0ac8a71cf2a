package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/moraine-storage/moraine/agent/api"
	"github.com/moraine-storage/moraine/agent/api/size"
	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

func (a *app) snapshotCommand() *cobra.Command {
	c := group("snapshot", "Freeze, compare and restore states of volumes",
		"  moraine snapshot create pg@before-upgrade\n  moraine snapshot list pg",
		a.snapshotCreate(), a.snapshotList(), a.snapshotShow(), a.snapshotDiff(), a.snapshotRestore(), a.snapshotDelete())
	c.Aliases = []string{"snap", "snapshots"}
	return c
}

func (a *app) snapshotCreate() *cobra.Command {
	labels := labelFlag{}
	c := &cobra.Command{
		Use:   "create VOLUME[@NAME]",
		Short: "Freeze the state of a volume; print its name",
		Long: `Freeze the state of a volume under a name, or one made from the time. It takes no
time and no space until the volume is written, and may be done while it is used:
the state is that of a machine that lost power at that moment.`,
		Example: `  moraine snapshot create pg@before-upgrade
  moraine snapshot create pg --label by=cron`,
		Args: cobra.ExactArgs(1),
	}
	c.Flags().VarP(labels, "label", "l", "label KEY=VALUE; may be repeated")
	c.RunE = a.call(func(ctx context.Context, svc api.Service, cmd *cobra.Command, args []string) error {
		vol, name, at := strings.Cut(args[0], "@")
		if vol == "" || at && name == "" {
			return usagef(cmd, "snapshot %s: VOLUME or VOLUME@NAME is needed", quote(args[0]))
		}
		s, err := svc.CreateSnapshot(ctx, &apiv1.CreateSnapshotRequest{Volume: vol, Name: name, Labels: labels})
		if err != nil {
			return err
		}
		return a.emit(s, func(w io.Writer) { fmt.Fprintln(w, clean(s.GetVolume()+"@"+s.GetName())) })
	})
	return a.named(c, a.volumeNames)
}

func (a *app) snapshotList() *cobra.Command {
	return a.named(&cobra.Command{
		Use:     "list [VOLUME]",
		Aliases: []string{"ls"},
		Short:   "List snapshots, of all volumes or of one",
		Example: `  moraine snapshot list
  moraine snapshot list pg -q`,
		Args: cobra.MaximumNArgs(1),
		RunE: a.call(func(ctx context.Context, svc api.Service, _ *cobra.Command, args []string) error {
			r, err := svc.ListSnapshots(ctx, &apiv1.ListSnapshotsRequest{Volume: strings.Join(args, "")})
			if err != nil {
				return err
			}
			return a.emit(messages(r.GetSnapshots()), func(w io.Writer) {
				if a.quiet {
					for _, s := range r.GetSnapshots() {
						fmt.Fprintln(w, clean(s.GetVolume()+"@"+s.GetName()))
					}
					return
				}
				var rows [][]string
				for _, s := range r.GetSnapshots() {
					rows = append(rows, []string{
						s.GetVolume() + "@" + s.GetName(), s.GetState(), size.Format(s.GetSizeBytes()),
						size.Format(s.GetAllocatedBytes()), size.Format(s.GetExclusiveBytes()), dash(when(s.GetCreatedAt())),
					})
				}
				printTable(w, []string{"NAME", "STATE", ">SIZE", ">REFERS", ">FREES", "CREATED"}, rows)
			})
		}),
	}, a.volumeNames)
}

func (a *app) snapshotShow() *cobra.Command {
	return a.named(&cobra.Command{
		Use:     "show VOLUME@NAME...",
		Short:   "Show snapshots in detail",
		Example: `  moraine snapshot show pg@before-upgrade`,
		Args:    cobra.MinimumNArgs(1),
		RunE: a.call(func(ctx context.Context, svc api.Service, cmd *cobra.Command, args []string) error {
			first := true
			return a.each(ctx, cmd, args, func(name string) (proto.Message, func(io.Writer), error) {
				s, err := svc.GetSnapshot(ctx, &apiv1.GetSnapshotRequest{Name: name})
				return s, func(w io.Writer) {
					if !first {
						fmt.Fprintln(w)
					}
					first = false
					printFields(w, []field{
						{"Name", s.GetVolume() + "@" + s.GetName()}, {"ID", s.GetId()}, {"State", s.GetState()},
						{"Size of the volume", size.Format(s.GetSizeBytes())},
						{"Refers to", size.Format(s.GetAllocatedBytes())},
						{"Frees if deleted", size.Format(s.GetExclusiveBytes())},
						{"Labels", labelText(s.GetLabels())}, {"Created", when(s.GetCreatedAt())},
					})
				}, err
			})
		}),
	}, a.snapshotNames)
}

func (a *app) snapshotRestore() *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use:   "restore VOLUME@NAME",
		Short: "Put a volume back to a snapshot",
		Long: `Put a volume back to the state of a snapshot. What was written since is lost, if
no other snapshot has it. The volume must be detached. On a terminal it asks.`,
		Example: `  moraine snapshot restore pg@before-upgrade`,
		Args:    cobra.ExactArgs(1),
	}
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	c.RunE = a.call(func(ctx context.Context, svc api.Service, cmd *cobra.Command, args []string) error {
		if err := a.ask(cmd, yes, "Put the volume back to %s and lose what was written since?", quote(args[0])); err != nil {
			return err
		}
		v, err := svc.RestoreSnapshot(ctx, &apiv1.RestoreSnapshotRequest{Name: args[0], RequestId: requestID()})
		if err != nil {
			return err
		}
		return a.emitVolume(v)
	})
	return a.named(c, a.snapshotNames)
}

func (a *app) snapshotDelete() *cobra.Command {
	var yes, ifExists bool
	c := &cobra.Command{
		Use:     "delete VOLUME@NAME...",
		Aliases: []string{"rm"},
		Short:   "Remove snapshots",
		Example: `  moraine snapshot delete pg@before-upgrade --yes`,
		Args:    cobra.MinimumNArgs(1),
	}
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	c.Flags().BoolVar(&ifExists, "if-exists", false, "a snapshot that does not exist is no error")
	c.RunE = a.call(func(ctx context.Context, svc api.Service, cmd *cobra.Command, args []string) error {
		if err := a.ask(cmd, yes, "Remove %s for ever?", joinWords(quoteAll(args))); err != nil {
			return err
		}
		return a.each(ctx, cmd, args, func(name string) (proto.Message, func(io.Writer), error) {
			r, err := svc.DeleteSnapshot(ctx, &apiv1.DeleteSnapshotRequest{Name: name})
			if err == nil && !r.GetExisted() && !ifExists {
				err = fmt.Errorf("delete snapshot %s: %w", quote(name), errdefs.ErrNotFound)
			}
			return r, a.said(r.GetExisted(), "snapshot %s deleted", name), err
		})
	})
	return a.named(c, a.snapshotNames)
}

func (a *app) snapshotDiff() *cobra.Command {
	var full bool
	var file string
	c := &cobra.Command{
		Use:   "diff VOLUME@FROM [VOLUME@TO]",
		Short: "List the ranges in which two states of a volume differ",
		Long: `List the ranges in which two states of a volume differ, in order: the second is
the volume as it is now unless another snapshot is named (a volume in use needs
one, since it changes while one looks). A range is data, or a
hole that reads as zeros in the newer state. With --full and one state, list all
that is allocated in it. A backup that copies these ranges is incremental.`,
		Example: `  moraine snapshot diff pg@monday pg@tuesday
  moraine snapshot diff pg@monday
  moraine snapshot diff --full pg@monday -o json --file ranges.json`,
		Args: cobra.RangeArgs(1, 2),
	}
	c.Flags().BoolVar(&full, "full", false, "everything that is allocated")
	c.Flags().StringVar(&file, "file", "", "write the list to this file")
	c.RunE = a.call(func(ctx context.Context, svc api.Service, cmd *cobra.Command, args []string) error {
		r, err := diffRequest(cmd, args, full)
		if err != nil {
			return err
		}
		if file == "" {
			err = a.diff(ctx, svc, r, a.Stdout)
		} else {
			err = toFile(file, func(w io.Writer) error { return a.diff(ctx, svc, r, w) })
		}
		if errdefs.IsFailedPrecondition(err) && !strings.Contains(r.GetTo(), "@") {
			err = withHint(err, "while a volume is in use, compare with a second snapshot of it: 'moraine snapshot create %s'", clean(r.GetTo()))
		}
		return err
	})
	// Both arguments are names here, unlike elsewhere.
	offer := a.offer(a.volumeAndSnapshotNames)
	c.ValidArgsFunction = func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 1 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return offer(cmd, args, word)
	}
	return c
}

// diffRequest reads the arguments of a diff.
func diffRequest(cmd *cobra.Command, args []string, full bool) (*apiv1.DiffSnapshotRequest, error) {
	if full {
		if len(args) != 1 {
			return nil, usagef(cmd, "--full takes one state")
		}
		return &apiv1.DiffSnapshotRequest{To: args[0]}, nil
	}
	vol, name, _ := strings.Cut(args[0], "@")
	if vol == "" || name == "" {
		return nil, usagef(cmd, "%s: VOLUME@SNAPSHOT is needed, or --full for all that is allocated", quote(args[0]))
	}
	r := &apiv1.DiffSnapshotRequest{From: args[0], To: vol}
	if len(args) == 2 {
		r.To = args[1]
	}
	return r, nil
}

// toFile writes a file of which the whole appears or nothing.
func toFile(path string, fn func(io.Writer) error) error {
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	err = fn(f)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return nil
}

// diff prints extents as they come: there may be millions.
func (a *app) diff(ctx context.Context, svc api.Service, r *apiv1.DiffSnapshotRequest, out io.Writer) error {
	w := bufio.NewWriterSize(out, 64<<10)
	b := a.newBar("comparing", "bytes")
	defer b.finish()
	var p extentPrinter
	switch a.output {
	case formJSON:
		p = &jsonExtents{w: w}
	case formYAML:
		p = &yamlExtents{w: w}
	default:
		p = &textExtents{w: w, quiet: a.quiet}
	}
	var total int64
	if b != nil {
		total = stateSize(ctx, svc, r.GetTo())
	}
	err := svc.DiffSnapshot(ctx, r, func(d *apiv1.DiffExtents) error {
		for _, e := range d.GetExtents() {
			if err := p.extent(e); err != nil {
				return err
			}
			b.update(e.GetOffset()+e.GetLength(), total)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return errors.Join(p.end(), w.Flush())
}

// stateSize is the size of a volume or snapshot, for the bar; 0: not known.
func stateSize(ctx context.Context, svc api.Service, name string) int64 {
	if strings.Contains(name, "@") {
		s, _ := svc.GetSnapshot(ctx, &apiv1.GetSnapshotRequest{Name: name})
		return s.GetSizeBytes()
	}
	v, _ := svc.GetVolume(ctx, &apiv1.GetVolumeRequest{Name: name})
	return v.GetSpec().GetSizeBytes()
}

// extentPrinter is one form of the list.
type extentPrinter interface {
	extent(*apiv1.DiffExtents_Extent) error
	end() error
}

// textExtents prints lines: offset, length, kind; exact numbers in bytes.
type textExtents struct {
	w           *bufio.Writer
	quiet       bool
	begun       bool
	data, holes int64
}

func (t *textExtents) extent(e *apiv1.DiffExtents_Extent) error {
	if !t.begun && !t.quiet {
		fmt.Fprintf(t.w, "%16s  %16s  %s\n", "OFFSET", "LENGTH", "KIND")
	}
	t.begun = true
	kind := "data"
	if e.GetHole() {
		kind = "hole"
		t.holes += e.GetLength()
	} else {
		t.data += e.GetLength()
	}
	_, err := fmt.Fprintf(t.w, "%16d  %16d  %s\n", e.GetOffset(), e.GetLength(), kind)
	return err
}

func (t *textExtents) end() error {
	if t.quiet {
		return nil
	}
	if !t.begun {
		_, err := fmt.Fprintln(t.w, "no difference")
		return err
	}
	_, err := fmt.Fprintf(t.w, "%s of data, %s of holes\n", size.Format(t.data), size.Format(t.holes))
	return err
}

// extentJSON is an extent as protojson has it, with the fields in one order.
type extentJSON struct {
	Offset int64 `json:"offset,string"`
	Length int64 `json:"length,string"`
	Hole   bool  `json:"hole"`
}

// jsonExtents prints one array, an element per line.
type jsonExtents struct {
	w *bufio.Writer
	n int
}

func (j *jsonExtents) extent(e *apiv1.DiffExtents_Extent) error {
	b, err := json.Marshal(extentJSON{e.GetOffset(), e.GetLength(), e.GetHole()})
	if err != nil {
		return err
	}
	sep := ",\n  "
	if j.n == 0 {
		sep = "[\n  "
	}
	j.n++
	_, err = fmt.Fprintf(j.w, "%s%s", sep, b)
	return err
}

func (j *jsonExtents) end() error {
	text := "\n]\n"
	if j.n == 0 {
		text = "[]\n"
	}
	_, err := j.w.WriteString(text)
	return err
}

// yamlExtents prints one list.
type yamlExtents struct {
	w *bufio.Writer
	n int
}

func (y *yamlExtents) extent(e *apiv1.DiffExtents_Extent) error {
	y.n++
	_, err := fmt.Fprintf(y.w, "- hole: %t\n  length: \"%d\"\n  offset: \"%d\"\n", e.GetHole(), e.GetLength(), e.GetOffset())
	return err
}

func (y *yamlExtents) end() error {
	if y.n > 0 {
		return nil
	}
	_, err := y.w.WriteString("[]\n")
	return err
}
