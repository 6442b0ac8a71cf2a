package cli

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/moraine-storage/moraine/agent/api"
	"github.com/moraine-storage/moraine/agent/api/size"
	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// listPage is how many volumes are asked for at once.
const listPage = 500

func (a *app) volumeCommand() *cobra.Command {
	c := group("volume", "Make, use and remove volumes",
		"  moraine volume create pg --size 10GiB\n  moraine volume list",
		a.volumeCreate(), a.volumeList(), a.volumeShow(), a.volumeAttach(), a.volumeDetach(),
		a.volumeMount(), a.volumeUnmount(), a.volumeExport(), a.volumeResize(), a.volumeUpdate(),
		a.volumeClone(), a.volumeDelete())
	c.Aliases = []string{"vol", "volumes"}
	return c
}

func (a *app) volumeCreate() *cobra.Command {
	var s specFlags
	c := &cobra.Command{
		Use:   "create NAME",
		Short: "Make a volume",
		Long: `Make a volume: a thin block device that takes space as it is written.

The same command again gives the same volume; another specification for a name
that exists is an error. Sizes take Ki, Mi, Gi, Ti (powers of 1024) and K, M, G,
T (powers of 1000), with or without a B; a bare number is bytes.`,
		Example: `  moraine volume create pg --size 10GiB
  moraine volume create scratch --size 500GiB --fs xfs --pool fast --label team=db
  moraine volume create test --from-snapshot pg@before-upgrade`,
		Args: cobra.ExactArgs(1),
	}
	s.add(c, false)
	a.completeFlag(c, "pool", a.poolNames)
	a.completeFlag(c, "from-snapshot", a.snapshotNames)
	c.RunE = a.call(func(ctx context.Context, svc api.Service, cmd *cobra.Command, args []string) error {
		spec, err := s.get(cmd)
		if err != nil {
			return err
		}
		v, err := svc.CreateVolume(ctx, &apiv1.CreateVolumeRequest{Name: args[0], Spec: spec})
		if err != nil {
			return err
		}
		return a.emitVolume(v)
	})
	c.ValidArgsFunction = cobra.NoFileCompletions
	return c
}

// emitVolume prints the answer of a call that changed a volume: one line.
func (a *app) emitVolume(v *apiv1.Volume) error {
	return a.emit(v, func(w io.Writer) {
		if a.quiet {
			fmt.Fprintln(w, clean(v.GetName()))
			return
		}
		s := v.GetSpec()
		fmt.Fprintf(w, "volume %s: %s, %s, %s, %s\n", clean(v.GetName()), size.Format(s.GetSizeBytes()), fsText(s.GetFs()),
			plural(s.GetReplicas(), "replica", "replicas"), stateText(v))
	})
}

func fsText(fs string) string {
	if fs == "none" {
		return "no filesystem"
	}
	return clean(fs)
}

func (a *app) volumeList() *cobra.Command {
	labels := labelFlag{}
	c := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List volumes",
		Example: `  moraine volume list
  moraine volume list --label team=db
  moraine volume list -q`,
		Args: cobra.NoArgs,
		RunE: a.call(func(ctx context.Context, svc api.Service, _ *cobra.Command, _ []string) error {
			volumes, err := allVolumes(ctx, svc, labels)
			if err != nil {
				return err
			}
			return a.emit(messages(volumes), func(w io.Writer) { a.volumeTable(w, volumes) })
		}),
	}
	c.Flags().VarP(labels, "label", "l", "only volumes with this label KEY=VALUE; may be repeated")
	return c
}

// allVolumes reads the list page by page.
func allVolumes(ctx context.Context, svc api.Service, labels map[string]string) ([]*apiv1.Volume, error) {
	var all []*apiv1.Volume
	r := &apiv1.ListVolumesRequest{PageSize: listPage, Labels: labels}
	for {
		resp, err := svc.ListVolumes(ctx, r)
		if err != nil {
			return nil, err
		}
		all = append(all, resp.GetVolumes()...)
		if resp.GetNextPageToken() == "" || resp.GetNextPageToken() == r.PageToken {
			return all, nil
		}
		r.PageToken = resp.GetNextPageToken()
	}
}

func (a *app) volumeTable(w io.Writer, volumes []*apiv1.Volume) {
	if a.quiet {
		for _, v := range volumes {
			fmt.Fprintln(w, clean(v.GetName()))
		}
		return
	}
	var rows [][]string
	for _, v := range volumes {
		s := v.GetSpec()
		rows = append(rows, []string{
			v.GetName(), stateText(v), size.Format(s.GetSizeBytes()), size.Format(usedBytes(v)),
			s.GetFs(), replicaText(v), fmt.Sprint(v.GetSnapshots()), dash(whereText(v)),
		})
	}
	printTable(w, []string{"NAME", "STATE", ">SIZE", ">USED", "FS", "REPLICAS", ">SNAPSHOTS", "WHERE"}, rows)
}

// usedBytes is the space behind a volume and its snapshots.
func usedBytes(v *apiv1.Volume) int64 {
	return v.GetUsage().GetAllocatedBytes() + v.GetUsage().GetSnapshotBytes()
}

// stateText is the state as a word: what is wrong comes first.
func stateText(v *apiv1.Volume) string {
	for _, at := range v.GetAttachments() {
		if st := at.GetState(); st != "" && st != "ready" {
			return clean(st)
		}
	}
	switch v.GetState() {
	case apiv1.VolumeState_CREATING:
		return "creating"
	case apiv1.VolumeState_DETACHED:
		return "detached"
	case apiv1.VolumeState_ATTACHED:
		return "attached"
	case apiv1.VolumeState_VOLUME_FAILED:
		return "failed"
	case apiv1.VolumeState_DELETING:
		return "deleting"
	}
	return "unknown"
}

// replicaText is in-sync replicas of those wanted.
func replicaText(v *apiv1.Volume) string {
	n := 0
	for _, r := range v.GetReplicas() {
		if r.GetRole() == "in_sync" {
			n++
		}
	}
	return fmt.Sprintf("%d/%d", n, v.GetSpec().GetReplicas()*max(v.GetSpec().GetStripes(), 1))
}

// whereText is the nearest thing to a path of an attached volume.
func whereText(v *apiv1.Volume) string {
	for _, at := range v.GetAttachments() {
		for _, s := range []string{at.GetPath(), at.GetDevice(), at.GetUri()} {
			if s != "" {
				return s
			}
		}
	}
	return ""
}

func (a *app) volumeShow() *cobra.Command {
	return a.named(&cobra.Command{
		Use:   "show NAME...",
		Short: "Show volumes in detail",
		Example: `  moraine volume show pg
  moraine volume show pg -o json`,
		Args: cobra.MinimumNArgs(1),
		RunE: a.call(func(ctx context.Context, svc api.Service, cmd *cobra.Command, args []string) error {
			first := true
			return a.each(ctx, cmd, args, func(name string) (proto.Message, func(io.Writer), error) {
				v, err := svc.GetVolume(ctx, &apiv1.GetVolumeRequest{Name: name})
				return v, func(w io.Writer) {
					if !first {
						fmt.Fprintln(w)
					}
					first = false
					showVolume(w, v)
				}, err
			})
		}),
	}, a.volumeNames)
}

func showVolume(w io.Writer, v *apiv1.Volume) {
	s, u := v.GetSpec(), v.GetUsage()
	fields := []field{
		{"Name", v.GetName()},
		{"ID", v.GetId()},
		{"State", stateText(v)},
		{"Size", size.Format(s.GetSizeBytes())},
		{"Used", fmt.Sprintf("%s, and %s by snapshots only", size.Format(u.GetAllocatedBytes()), size.Format(u.GetSnapshotBytes()))},
		{"Filesystem", filesystemText(v)},
		{"Driver", s.GetDriver()},
		{"Replicas", replicaText(v) + " in sync"},
		{"Pool", s.GetPool()},
		{"Limits", limitText(s)},
		{"Labels", labelText(s.GetLabels())},
		{"From", s.GetFromSnapshot()},
		{"Snapshots", fmt.Sprint(v.GetSnapshots())},
		{"Created", when(v.GetCreatedAt())},
	}
	for _, at := range v.GetAttachments() {
		fields = append(fields, field{"Attached", attachmentText(at)})
		for _, c := range at.GetConsumers() {
			fields = append(fields, field{"Used by", c})
		}
	}
	for _, r := range v.GetReplicas() {
		fields = append(fields, field{"Replica", fmt.Sprintf("%s %s on drive %s of %s, %s",
			r.GetId(), r.GetRole(), r.GetDriveId(), r.GetNode(), size.Format(r.GetAllocatedBytes()))})
	}
	printFields(w, append(fields, conditionFields(v.GetConditions())...))
}

func filesystemText(v *apiv1.Volume) string {
	s, u := v.GetSpec(), v.GetUsage()
	switch {
	case s.GetFs() == "none":
		return "none"
	case u.GetFilesystemSizeBytes() > 0:
		return fmt.Sprintf("%s, %s of %s used", s.GetFs(), size.Format(u.GetFilesystemUsedBytes()), size.Format(u.GetFilesystemSizeBytes()))
	case !v.GetFormatted():
		return s.GetFs() + ", made at the first mount"
	}
	return s.GetFs()
}

func limitText(s *apiv1.VolumeSpec) string {
	var parts []string
	if n := s.GetMaxIops(); n > 0 {
		parts = append(parts, fmt.Sprintf("%d operations/s", n))
	}
	if n := s.GetMaxBandwidth(); n > 0 {
		parts = append(parts, size.Format(n)+"/s")
	}
	return joinWords(parts)
}

func attachmentText(at *apiv1.Attachment) string {
	text := "on " + at.GetNode()
	for _, s := range []string{at.GetDevice(), at.GetPath(), at.GetUri()} {
		if s != "" {
			text += ", " + s
		}
	}
	if at.GetReadOnly() {
		text += ", read-only"
	}
	if at.GetState() != "" && at.GetState() != "ready" {
		text += ", " + at.GetState()
	}
	return text + ", since " + when(at.GetSince())
}

func (a *app) volumeResize() *cobra.Command {
	return a.named(&cobra.Command{
		Use:   "resize NAME SIZE",
		Short: "Grow a volume",
		Long: `Grow a volume to a size, attached or not. A mounted filesystem grows with it, one
that is not mounted at its next mount. A volume cannot shrink.`,
		Example: `  moraine volume resize pg 20GiB`,
		Args:    cobra.ExactArgs(2),
		RunE: a.call(func(ctx context.Context, svc api.Service, cmd *cobra.Command, args []string) error {
			n, err := size.Parse(args[1])
			if err == nil && n == 0 {
				err = fmt.Errorf("size 0: it must be more than 0")
			}
			if err != nil {
				return usage(cmd, err)
			}
			v, err := svc.ResizeVolume(ctx, &apiv1.ResizeVolumeRequest{Name: args[0], SizeBytes: n, RequestId: requestID()})
			if err != nil {
				return err
			}
			return a.emitVolume(v)
		}),
	}, a.volumeNames)
}

func (a *app) volumeUpdate() *cobra.Command {
	var bandwidth sizeFlag
	var iops int64
	labels := labelFlag{}
	var remove []string
	c := &cobra.Command{
		Use:   "update NAME",
		Short: "Change limits and labels of a volume",
		Example: `  moraine volume update pg --max-iops 2000 --max-bandwidth 200MiB
  moraine volume update pg --max-iops 0
  moraine volume update pg --label tier=gold --remove-label test`,
		Args: cobra.ExactArgs(1),
	}
	f := c.Flags()
	f.Int64Var(&iops, "max-iops", 0, "limit of operations per second, 0 for none")
	f.Var(&bandwidth, "max-bandwidth", "limit of bytes per second, for example 200MiB, 0 for none")
	f.VarP(labels, "label", "l", "set label KEY=VALUE; may be repeated")
	f.StringSliceVar(&remove, "remove-label", nil, "remove the label with this KEY; may be repeated")
	c.RunE = a.call(func(ctx context.Context, svc api.Service, cmd *cobra.Command, args []string) error {
		r := &apiv1.UpdateVolumeRequest{Name: args[0], SetLabels: labels, RemoveLabels: remove}
		if f.Changed("max-iops") {
			r.MaxIops = &iops
		}
		if f.Changed("max-bandwidth") {
			r.MaxBandwidth = &bandwidth.bytes
		}
		if iops < 0 {
			return usagef(cmd, "--max-iops %d: 0 (no limit) or more", iops)
		}
		if r.MaxIops == nil && r.MaxBandwidth == nil && len(labels) == 0 && len(remove) == 0 {
			return usagef(cmd, "nothing to change: name a limit or a label")
		}
		for _, k := range remove {
			if _, both := labels[k]; both {
				return usagef(cmd, "label %s is set and removed", quote(k))
			}
		}
		v, err := svc.UpdateVolume(ctx, r)
		if err != nil {
			return err
		}
		return a.emitVolume(v)
	})
	return a.named(c, a.volumeNames)
}

func (a *app) volumeClone() *cobra.Command {
	var s specFlags
	c := &cobra.Command{
		Use:   "clone SOURCE NAME",
		Short: "Make a volume with the content of another",
		Long: `Make a volume that begins with the content of a snapshot, or of a volume as it is
now. It takes no time and no space until one of the two is written, and either
can be deleted without the other.`,
		Example: `  moraine volume clone pg@monday pg-test
  moraine volume clone pg pg-copy --size 50GiB`,
		Args: cobra.ExactArgs(2),
	}
	s.add(c, true)
	a.completeFlag(c, "pool", a.poolNames)
	c.RunE = a.call(func(ctx context.Context, svc api.Service, cmd *cobra.Command, args []string) error {
		spec, err := s.get(cmd)
		if err != nil {
			return err
		}
		v, err := svc.CloneVolume(ctx, &apiv1.CloneVolumeRequest{Source: args[0], Name: args[1], Spec: spec})
		if err != nil {
			return err
		}
		return a.emitVolume(v)
	})
	return a.named(c, a.volumeAndSnapshotNames)
}

func (a *app) volumeDelete() *cobra.Command {
	var yes, snapshots, ifExists bool
	c := &cobra.Command{
		Use:     "delete NAME...",
		Aliases: []string{"rm"},
		Short:   "Remove volumes and what is in them",
		Long: `Remove volumes and what is in them, for ever. On a terminal it asks first. A
volume in use is refused, and one with snapshots unless they go too.`,
		Example: `  moraine volume delete scratch
  moraine volume delete pg --snapshots --yes`,
		Args: cobra.MinimumNArgs(1),
	}
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	c.Flags().BoolVar(&snapshots, "snapshots", false, "remove the snapshots too")
	c.Flags().BoolVar(&ifExists, "if-exists", false, "a volume that does not exist is no error")
	c.RunE = a.call(func(ctx context.Context, svc api.Service, cmd *cobra.Command, args []string) error {
		if err := a.ask(cmd, yes, "Remove %s and all data in it for ever?", joinWords(quoteAll(args))); err != nil {
			return err
		}
		return a.each(ctx, cmd, args, func(name string) (proto.Message, func(io.Writer), error) {
			r, err := svc.DeleteVolume(ctx, &apiv1.DeleteVolumeRequest{Name: name, WithSnapshots: snapshots, RequestId: requestID()})
			if err == nil && !r.GetExisted() && !ifExists {
				err = fmt.Errorf("delete volume %s: %w", quote(name), errdefs.ErrNotFound)
			}
			return r, a.said(r.GetExisted(), "volume %s deleted", name), err
		})
	})
	return a.named(c, a.volumeNames)
}

// said prints one line about what was done, if it was.
func (a *app) said(done bool, format, name string) func(io.Writer) {
	return func(w io.Writer) {
		if done && !a.quiet {
			fmt.Fprintf(w, format+"\n", clean(name))
		}
	}
}

func quoteAll(s []string) []string {
	out := slices.Clone(s)
	for i := range out {
		out[i] = quote(out[i])
	}
	return out
}
