package cli

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/moraine-storage/moraine/agent/api"
	"github.com/moraine-storage/moraine/agent/api/size"
	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// DriveTool looks into a drive that no agent uses. It never writes to it.
type DriveTool interface {
	// Check verifies the store in dir; data reads and verifies contents too.
	// What is wrong with the store is in the report, not in the error.
	Check(ctx context.Context, dir string, data bool, p Progress) (*DriveReport, error)
	// Replicas lists what the store holds.
	Replicas(ctx context.Context, dir string) ([]DriveReplica, error)
	// Export writes a replica as a raw, sparse image.
	Export(ctx context.Context, o ExportOptions, p Progress) error
}

// DriveReport is the result of a check.
type DriveReport struct {
	Dir       string    `json:"dir"`
	DriveID   string    `json:"driveId"`
	ClusterID string    `json:"clusterId"`
	Format    string    `json:"format"`
	Replicas  int       `json:"replicas"`
	Allocated int64     `json:"allocatedBytes,string"`
	Data      bool      `json:"dataChecked"`
	Problems  []string  `json:"problems"` // empty: the store is sound
	Notes     []string  `json:"notes"`    // for example that it was not closed cleanly
	CheckedAt time.Time `json:"checkedAt"`
}

// DriveReplica is a replica on a drive.
type DriveReplica struct {
	ID        string          `json:"id"`
	VolumeID  string          `json:"volumeId"`
	Size      int64           `json:"sizeBytes,string"`
	Allocated int64           `json:"allocatedBytes,string"`
	Snapshots []DriveSnapshot `json:"snapshots"`
}

// DriveSnapshot is a snapshot of a replica on a drive.
type DriveSnapshot struct {
	ID      string    `json:"id"`
	Size    int64     `json:"sizeBytes,string"`
	Created time.Time `json:"created"`
}

// ExportOptions say what to export, and where to.
type ExportOptions struct {
	Dir      string
	Replica  string // ID
	Snapshot string // ID; "": the newest state
	To       string // path of the image; it does not exist
}

func (a *app) driveCommand() *cobra.Command {
	return group("drive", "Show and check drives", "  moraine drive list\n  moraine drive check /var/lib/moraine/drives/default",
		a.driveList(), a.driveShow(), a.driveCheck())
}

func (a *app) driveList() *cobra.Command {
	var pool string
	c := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List drives",
		Example: `  moraine drive list
  moraine drive list --pool fast`,
		Args: cobra.NoArgs,
		RunE: a.call(func(ctx context.Context, svc api.Service, _ *cobra.Command, _ []string) error {
			r, err := svc.ListDrives(ctx, &apiv1.ListDrivesRequest{Pool: pool})
			if err != nil {
				return err
			}
			return a.emit(messages(r.GetDrives()), func(w io.Writer) {
				if a.quiet {
					for _, d := range r.GetDrives() {
						fmt.Fprintln(w, clean(d.GetId()))
					}
					return
				}
				driveTable(w, r.GetDrives())
			})
		}),
	}
	c.Flags().StringVar(&pool, "pool", "", "only those of this pool")
	a.completeFlag(c, "pool", a.poolNames)
	return c
}

func driveTable(w io.Writer, drives []*apiv1.Drive) {
	var rows [][]string
	for _, d := range drives {
		rows = append(rows, []string{
			d.GetId(), d.GetNode(), d.GetPool(), d.GetBackend(), d.GetState(), size.Format(d.GetCapacityBytes()),
			size.Format(d.GetUsedBytes()), size.Format(d.GetFreeBytes()), fmt.Sprint(d.GetReplicas()), d.GetPath(),
		})
	}
	printTable(w, []string{"ID", "NODE", "POOL", "BACKEND", "STATE", ">CAPACITY", ">USED", ">FREE", ">REPLICAS", "PATH"}, rows)
}

func (a *app) driveShow() *cobra.Command {
	return a.named(&cobra.Command{
		Use:   "show ID...",
		Short: "Show drives in detail",
		Long:  "Show drives in detail. The beginning of an ID will do if it is the only one.",
		Example: `  moraine drive show 3f9a
  moraine drive show 3f9a0c11d5c84fd8a1b66b6b2f0f7d10 -o json`,
		Args: cobra.MinimumNArgs(1),
		RunE: a.call(func(ctx context.Context, svc api.Service, cmd *cobra.Command, args []string) error {
			r, err := svc.ListDrives(ctx, &apiv1.ListDrivesRequest{})
			if err != nil {
				return err
			}
			first := true
			return a.each(ctx, cmd, args, func(id string) (proto.Message, func(io.Writer), error) {
				d, err := findDrive(r.GetDrives(), id)
				return d, func(w io.Writer) {
					if !first {
						fmt.Fprintln(w)
					}
					first = false
					showDrive(w, d)
				}, err
			})
		}),
	}, a.driveIDs)
}

// findDrive looks a drive up by its ID or the beginning of it.
func findDrive(drives []*apiv1.Drive, id string) (*apiv1.Drive, error) {
	var found *apiv1.Drive
	for _, d := range drives {
		if d.GetId() == id {
			return d, nil
		}
		if id == "" || !strings.HasPrefix(d.GetId(), id) {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("drive %s: more than one ID begins so: %w", quote(id), errdefs.ErrInvalidArgument)
		}
		found = d
	}
	if found == nil {
		return nil, fmt.Errorf("drive %s: %w", quote(id), errdefs.ErrNotFound)
	}
	return found, nil
}

func showDrive(w io.Writer, d *apiv1.Drive) {
	fields := []field{
		{"ID", d.GetId()}, {"Node", d.GetNode()}, {"Pool", d.GetPool()}, {"Backend", d.GetBackend()},
		{"Path", d.GetPath()}, {"Serial", d.GetSerial()}, {"State", d.GetState()},
		{"Capacity", size.Format(d.GetCapacityBytes())}, {"Used", size.Format(d.GetUsedBytes())}, {"Free", size.Format(d.GetFreeBytes())},
		{"I/O", d.GetIoMode()}, {"Loss ID", d.GetLossId()}, {"Opened", plural(int64(d.GetOpenCounter()), "time", "times")},
	}
	for _, r := range d.GetReplicaIds() {
		fields = append(fields, field{"Replica", r})
	}
	printFields(w, append(fields, conditionFields(d.GetConditions())...))
}

func (a *app) driveCheck() *cobra.Command {
	var data bool
	c := &cobra.Command{
		Use:   "check DIR",
		Short: "Verify the store of a drive that no agent uses",
		Long: `Verify the store in the directory of a drive: superblock, journal, checkpoints and
maps, and with --data the checksums of what is frozen. No agent is needed, none
may use the drive, and nothing is written. The exit code is 10 if it is damaged.`,
		Example: `  moraine drive check /var/lib/moraine/drives/default
  moraine drive check --data /mnt/old-drive`,
		Args: cobra.ExactArgs(1),
	}
	c.Flags().BoolVar(&data, "data", false, "read and verify contents too")
	c.RunE = a.local(func(ctx context.Context, cmd *cobra.Command, args []string) error {
		if a.Drives == nil {
			return notBuiltIn("drive check")
		}
		b := a.newBar("checking", "bytes")
		rep, err := a.Drives.Check(ctx, args[0], data, b.update)
		b.finish()
		if err != nil {
			return fmt.Errorf("check drive %s: %w", quote(args[0]), err)
		}
		if err := a.emit(rep, func(w io.Writer) { showReport(w, rep) }); err != nil {
			return err
		}
		if len(rep.Problems) > 0 {
			return fmt.Errorf("check drive %s: %s: %w", quote(args[0]), plural(len(rep.Problems), "problem", "problems"), errdefs.ErrDataLoss)
		}
		return nil
	})
	return dirArg(c)
}

// dirArg completes the only argument as a directory.
func dirArg(c *cobra.Command) *cobra.Command {
	c.ValidArgsFunction = func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return nil, cobra.ShellCompDirectiveFilterDirs
	}
	return c
}

func showReport(w io.Writer, r *DriveReport) {
	fields := []field{
		{"Drive", r.DriveID}, {"Cluster", r.ClusterID}, {"Format", r.Format}, {"Replicas", fmt.Sprint(r.Replicas)},
		{"Allocated", size.Format(r.Allocated)},
	}
	for _, n := range r.Notes {
		fields = append(fields, field{"Note", n})
	}
	for _, p := range r.Problems {
		fields = append(fields, field{"Problem", p})
	}
	switch {
	case len(r.Problems) > 0:
		fields = append(fields, field{"Result", "damaged"})
	case r.Data:
		fields = append(fields, field{"Result", "sound, with its data"})
	default:
		fields = append(fields, field{"Result", "sound (contents were not read: --data)"})
	}
	printFields(w, fields)
}

func (a *app) replicaCommand() *cobra.Command {
	list := dirArg(&cobra.Command{
		Use:     "list DIR",
		Aliases: []string{"ls"},
		Short:   "List the replicas on a drive that no agent uses",
		Example: `  moraine replica list /mnt/old-drive`,
		Args:    cobra.ExactArgs(1),
		RunE: a.local(func(ctx context.Context, _ *cobra.Command, args []string) error {
			if a.Drives == nil {
				return notBuiltIn("replica list")
			}
			rs, err := a.Drives.Replicas(ctx, args[0])
			if err != nil {
				return fmt.Errorf("list replicas on %s: %w", quote(args[0]), err)
			}
			return a.emit(append([]DriveReplica{}, rs...), func(w io.Writer) { a.replicaTable(w, rs) })
		}),
	})
	return group("replica", "Read replicas of a drive without an agent",
		"  moraine replica list /mnt/old-drive\n  moraine replica export /mnt/old-drive --to pg.img", list, a.replicaExport())
}

func (a *app) replicaTable(w io.Writer, rs []DriveReplica) {
	var rows [][]string
	for _, r := range rs {
		if a.quiet {
			fmt.Fprintln(w, r.ID)
			continue
		}
		rows = append(rows, []string{r.ID, r.VolumeID, size.Format(r.Size), size.Format(r.Allocated), ""})
		for _, s := range r.Snapshots {
			rows = append(rows, []string{"", "", size.Format(s.Size), "", s.ID})
		}
	}
	if !a.quiet {
		printTable(w, []string{"REPLICA", "VOLUME", ">SIZE", ">ALLOCATED", "SNAPSHOT"}, rows)
	}
}

func (a *app) replicaExport() *cobra.Command {
	var o ExportOptions
	c := &cobra.Command{
		Use:   "export DIR [REPLICA]",
		Short: "Write a replica of a drive as a raw image",
		Long: `Write a replica as a raw, sparse image, straight from the directory of a drive: no
agent is needed and none may use the drive, which is not written. It works after
a crash: the image has what the agent would find. REPLICA is the ID of a replica
or of its volume, or the beginning of one; a drive with one replica needs none.`,
		Example: `  moraine replica export /mnt/old-drive --to pg.img
  moraine replica export /mnt/old-drive 3f9a --snapshot 77c1 --to pg.img`,
		Args: cobra.RangeArgs(1, 2),
	}
	c.Flags().StringVar(&o.To, "to", "", "file to write; it must not exist")
	c.Flags().StringVar(&o.Snapshot, "snapshot", "", "ID of a snapshot, or the beginning of one (default: the newest state)")
	c.RunE = a.local(func(ctx context.Context, cmd *cobra.Command, args []string) error {
		if a.Drives == nil {
			return notBuiltIn("replica export")
		}
		if o.To == "" {
			return usagef(cmd, "--to FILE is needed")
		}
		o.Dir = args[0]
		if err := a.chooseReplica(ctx, &o, strings.Join(args[1:], "")); err != nil {
			return err
		}
		b := a.newBar("exporting", "bytes")
		err := a.Drives.Export(ctx, o, b.update)
		b.finish()
		if err != nil {
			return fmt.Errorf("export replica %s to %s: %w", o.Replica, quote(o.To), err)
		}
		answer := map[string]string{"replica": o.Replica, "snapshot": o.Snapshot, "file": o.To}
		return a.emit(answer, func(w io.Writer) {
			if a.quiet {
				return
			}
			fmt.Fprintf(w, "replica %s written to %s\n", o.Replica, clean(filepath.Clean(o.To)))
		})
	})
	return dirArg(c)
}

// chooseReplica turns what was typed into IDs.
func (a *app) chooseReplica(ctx context.Context, o *ExportOptions, typed string) error {
	rs, err := a.Drives.Replicas(ctx, o.Dir)
	if err != nil {
		return fmt.Errorf("list replicas on %s: %w", quote(o.Dir), err)
	}
	var fit []DriveReplica
	for _, r := range rs {
		if strings.HasPrefix(r.ID, typed) || strings.HasPrefix(r.VolumeID, typed) {
			fit = append(fit, r)
		}
	}
	switch {
	case len(fit) == 0 && typed == "":
		return fmt.Errorf("drive %s holds no replica: %w", quote(o.Dir), errdefs.ErrNotFound)
	case len(fit) == 0:
		return withHint(fmt.Errorf("replica %s on %s: %w", quote(typed), quote(o.Dir), errdefs.ErrNotFound),
			"'moraine replica list %s' shows those that there are", o.Dir)
	case len(fit) > 1:
		return withHint(fmt.Errorf("%d replicas on %s fit: %w", len(fit), quote(o.Dir), errdefs.ErrInvalidArgument),
			"'moraine replica list %s' shows them; name one", o.Dir)
	}
	o.Replica = fit[0].ID
	if o.Snapshot == "" {
		return nil
	}
	var ids []string
	for _, s := range fit[0].Snapshots {
		if strings.HasPrefix(s.ID, o.Snapshot) {
			ids = append(ids, s.ID)
		}
	}
	if len(ids) != 1 {
		var class error = errdefs.ErrNotFound
		if len(ids) > 1 {
			class = errdefs.ErrInvalidArgument
		}
		return withHint(fmt.Errorf("snapshot %s of replica %s: %d fit: %w", quote(o.Snapshot), o.Replica, len(ids), class),
			"'moraine replica list %s' shows those that there are", o.Dir)
	}
	o.Snapshot = ids[0]
	return nil
}
