package cli

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/moraine-storage/moraine/agent/api"
	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// requestID makes the identity of a request: 32 hex digits.
func requestID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

// joinWords is "a, b and c".
func joinWords(s []string) string {
	if len(s) < 2 {
		return strings.Join(s, "")
	}
	return strings.Join(s[:len(s)-1], ", ") + " and " + s[len(s)-1]
}

// consumerFlag says for whom a volume is used.
func consumerFlag(c *cobra.Command, to *string) {
	c.Flags().StringVar(to, "consumer", "", "who uses it: a volume stays as long as it has a consumer (default: the command line)")
}

func (a *app) volumeAttach() *cobra.Command {
	var readOnly bool
	var consumer string
	c := &cobra.Command{
		Use:   "attach NAME",
		Short: "Make a volume appear as a block device; print the device",
		Example: `  moraine volume attach pg
  dev=$(moraine volume attach pg --read-only)`,
		Args: cobra.ExactArgs(1),
	}
	c.Flags().BoolVar(&readOnly, "read-only", false, "refuse writes")
	consumerFlag(c, &consumer)
	c.RunE = a.call(func(ctx context.Context, svc api.Service, _ *cobra.Command, args []string) error {
		r, err := svc.AttachVolume(ctx, &apiv1.AttachVolumeRequest{Name: args[0], Consumer: consumer, ReadOnly: readOnly})
		if err != nil {
			return err
		}
		return a.emit(r, func(w io.Writer) { fmt.Fprintln(w, clean(r.GetDevice())) })
	})
	return a.named(c, a.volumeNames)
}

func (a *app) volumeDetach() *cobra.Command {
	var force bool
	var consumer string
	c := &cobra.Command{
		Use:   "detach NAME...",
		Short: "Take the block device of a volume away",
		Long: `Take the block device of a volume away once nobody uses it. With --force it goes
whoever uses it: their next access fails.`,
		Example: `  moraine volume detach pg`,
		Args:    cobra.MinimumNArgs(1),
	}
	c.Flags().BoolVar(&force, "force", false, "also while it is used")
	consumerFlag(c, &consumer)
	c.RunE = a.call(func(ctx context.Context, svc api.Service, cmd *cobra.Command, args []string) error {
		return a.each(ctx, cmd, args, func(name string) (proto.Message, func(io.Writer), error) {
			r, err := svc.DetachVolume(ctx, &apiv1.DetachVolumeRequest{Name: name, Consumer: consumer, Force: force})
			if err == nil {
				err = stillUsed("detach", name, r.GetVolume(), false)
			}
			return r, a.said(true, "volume %s detached", name), err
		})
	})
	return a.named(c, a.volumeNames)
}

// stillUsed is an error if a volume whose use was given up is still there for
// others, which is not what was asked for, or is not there at all.
func stillUsed(verb, name string, v *apiv1.Volume, mountOnly bool) error {
	if v == nil {
		return fmt.Errorf("%s volume %s: %w", verb, quote(name), errdefs.ErrNotFound)
	}
	for _, at := range v.GetAttachments() {
		if at.GetKind() != "block" || mountOnly && at.GetPath() == "" {
			continue
		}
		users := at.GetConsumers()
		if len(users) == 0 {
			users = []string{"another consumer"}
		}
		return withHint(fmt.Errorf("%s volume %s: it is still used by %s: %w", verb, quote(name), joinWords(users), errdefs.ErrFailedPrecondition),
			"--consumer NAME gives up the use of another, --force that of all")
	}
	return nil
}

func (a *app) volumeMount() *cobra.Command {
	var readOnly bool
	var consumer string
	var options []string
	c := &cobra.Command{
		Use:   "mount NAME [PATH]",
		Short: "Mount the filesystem of a volume; print the path",
		Long: `Attach a volume, make its filesystem if it has none yet, check it, and mount it:
at the agent's own path, and at PATH too if one is given. The answer is the path.`,
		Example: `  moraine volume mount pg
  moraine volume mount pg /srv/pg --option noatime
  ls $(moraine volume mount pg)`,
		Args: cobra.RangeArgs(1, 2),
	}
	c.Flags().BoolVar(&readOnly, "read-only", false, "refuse writes")
	c.Flags().StringArrayVar(&options, "option", nil, "mount option; may be repeated")
	consumerFlag(c, &consumer)
	c.RunE = a.call(func(ctx context.Context, svc api.Service, _ *cobra.Command, args []string) error {
		target, err := a.mountTarget(args[1:])
		if err != nil {
			return err
		}
		req := &apiv1.MountVolumeRequest{
			Name: args[0], Consumer: consumer, Target: target, ReadOnly: readOnly, MountOptions: options, RequestId: requestID(),
		}
		done := a.followOperation(ctx, svc, req.RequestId)
		r, err := svc.MountVolume(ctx, req)
		done()
		if err != nil {
			return err
		}
		return a.emit(r, func(w io.Writer) { fmt.Fprintln(w, clean(r.GetPath())) })
	})
	return a.named(c, a.volumeNames)
}

// mountTarget is optionalPath for a path that the agent makes if it is not there.
// A relative one it would make in the working directory, by a slip as easily as
// on purpose: that has to be there, and the answer says what it was taken for.
func (a *app) mountTarget(args []string) (string, error) {
	target, err := optionalPath(args)
	if err != nil || target == "" || filepath.IsAbs(args[0]) {
		return target, err
	}
	if st, err := os.Stat(target); err != nil || !st.IsDir() {
		return "", withHint(fmt.Errorf("path %s is relative, and there is no such directory here: %w", quote(args[0]), errdefs.ErrInvalidArgument),
			"make it first, or give the absolute path, which is made")
	}
	fmt.Fprintf(a.Stderr, "mounting at %s\n", target)
	return target, nil
}

// optionalPath is the absolute form of a path that may be missing: the agent
// has another working directory.
func optionalPath(args []string) (string, error) {
	if len(args) == 0 {
		return "", nil
	}
	if args[0] == "" {
		return "", fmt.Errorf("the path is empty: %w", errdefs.ErrInvalidArgument)
	}
	return filepath.Abs(args[0])
}

func (a *app) volumeUnmount() *cobra.Command {
	var force bool
	var consumer string
	c := &cobra.Command{
		Use:     "unmount NAME [PATH]",
		Aliases: []string{"umount"},
		Short:   "Unmount a volume, and detach it if the mount attached it",
		Example: `  moraine volume unmount pg
  moraine volume unmount pg /srv/pg`,
		Args: cobra.RangeArgs(1, 2),
	}
	c.Flags().BoolVar(&force, "force", false, "also while files in it are open")
	consumerFlag(c, &consumer)
	c.RunE = a.call(func(ctx context.Context, svc api.Service, _ *cobra.Command, args []string) error {
		target, err := optionalPath(args[1:])
		if err != nil {
			return err
		}
		r, err := svc.UnmountVolume(ctx, &apiv1.UnmountVolumeRequest{Name: args[0], Consumer: consumer, Target: target, Force: force})
		if err == nil {
			err = stillUsed("unmount", args[0], r.GetVolume(), true)
		}
		if err != nil {
			return err
		}
		return a.emit(r, a.said(true, "volume %s unmounted", args[0]))
	})
	return a.named(c, a.volumeNames)
}

func (a *app) volumeExport() *cobra.Command {
	var readOnly, stop bool
	c := &cobra.Command{
		Use:   "export NAME|NAME@SNAPSHOT",
		Short: "Offer a volume to NBD clients; print the URI",
		Long: `Offer a volume, or read-only a snapshot, on a unix socket to any NBD client. The
answer is a URI that nbdinfo, nbdcopy, qemu-img and others take. A volume that is
attached cannot be exported; --stop ends the export.`,
		Example: `  moraine volume export pg
  nbdinfo "$(moraine volume export pg)"
  nbdcopy "$(moraine volume export pg@monday)" pg.img
  moraine volume export pg --stop`,
		Args: cobra.ExactArgs(1),
	}
	c.Flags().BoolVar(&readOnly, "read-only", false, "refuse writes")
	c.Flags().BoolVar(&stop, "stop", false, "end the export")
	c.RunE = a.call(func(ctx context.Context, svc api.Service, cmd *cobra.Command, args []string) error {
		if stop && readOnly {
			return usagef(cmd, "--stop and --read-only do not go together")
		}
		r, err := svc.ExportVolume(ctx, &apiv1.ExportVolumeRequest{Name: args[0], ReadOnly: readOnly, Stop: stop})
		if err != nil {
			return err
		}
		return a.emit(r, func(w io.Writer) {
			switch {
			case !stop:
				fmt.Fprintln(w, clean(r.GetUri()))
			case !a.quiet:
				fmt.Fprintf(w, "export of %s ended\n", clean(args[0]))
			}
		})
	})
	return a.named(c, a.volumeAndSnapshotNames)
}
