package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/moraine-storage/moraine/agent/api/size"
	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
)

// sizeFlag is a size in bytes with a unit: 10GiB, 500G, 4096.
type sizeFlag struct{ bytes int64 }

func (f *sizeFlag) String() string {
	if f.bytes == 0 {
		return ""
	}
	return size.Exact(f.bytes)
}

func (f *sizeFlag) Set(s string) error {
	n, err := size.Parse(s)
	if err != nil {
		return err
	}
	f.bytes = n
	return nil
}

func (f *sizeFlag) Type() string { return "size" }

// labelFlag collects k=v pairs; the flag may be repeated, and take several
// pairs with commas.
type labelFlag map[string]string

func (f labelFlag) String() string { return labelText(f) }

func (f labelFlag) Set(s string) error {
	for pair := range strings.SplitSeq(s, ",") {
		k, v, ok := strings.Cut(pair, "=")
		if !ok || k == "" {
			return fmt.Errorf("label %s: KEY=VALUE is needed", quote(pair))
		}
		if old, there := f[k]; there && old != v {
			return fmt.Errorf("label %s has two values, %s and %s", quote(k), quote(old), quote(v))
		}
		f[k] = v
	}
	return nil
}

func (f labelFlag) Type() string { return "key=value" }

// specFlags are the flags that say what a volume shall be.
type specFlags struct {
	size, bandwidth sizeFlag
	labels          labelFlag
	spec            apiv1.VolumeSpec
}

// add defines them on a command. A clone has its filesystem from its source.
func (s *specFlags) add(cmd *cobra.Command, clone bool) {
	s.labels = labelFlag{}
	f := cmd.Flags()
	def := "10GiB"
	if clone {
		def = "that of the source"
	}
	f.Var(&s.size, "size", "size, for example 500MiB or 2TiB (default "+def+")")
	f.Uint32Var(&s.spec.Replicas, "replicas", 0, "number of copies (default: one per node, 3 at most)")
	f.Uint32Var(&s.spec.MinInSync, "min-in-sync", 0, "copies that must hold a write (default 1, or 2 of three and more)")
	f.StringVar(&s.spec.Pool, "pool", "", "pool of the drives (default: any)")
	f.StringVar(&s.spec.Driver, "driver", "", "how it reaches the host: nbd or fuse (default nbd)")
	f.Uint32Var(&s.spec.Stripes, "stripes", 0, "number of replica groups that the volume is spread over (default 1)")
	f.Int64Var(&s.spec.MaxIops, "max-iops", 0, "limit of operations per second, 0 for none")
	f.Var(&s.bandwidth, "max-bandwidth", "limit of bytes per second, for example 200MiB")
	f.VarP(s.labels, "label", "l", "label KEY=VALUE; may be repeated")
	f.StringArrayVar(&s.spec.MountOptions, "mount-option", nil, "option of every mount; may be repeated")
	complete(cmd, "driver", "nbd", "fuse")
	if clone {
		return
	}
	f.StringVar(&s.spec.Fs, "fs", "", "filesystem: ext4, xfs or none (default ext4)")
	f.BoolVar(&s.spec.Encrypt, "encrypt", false, "encrypt what is stored")
	f.StringVar(&s.spec.FromSnapshot, "from-snapshot", "", "begin with the content of VOLUME@SNAPSHOT")
	f.StringArrayVar(&s.spec.MkfsOptions, "mkfs-option", nil, "option for making the filesystem; may be repeated")
	complete(cmd, "fs", "ext4", "xfs", "none")
}

// get returns the specification, or what is wrong with it. Zero means the
// default in the API, so a zero that was typed is refused here.
func (s *specFlags) get(cmd *cobra.Command) (*apiv1.VolumeSpec, error) {
	for _, name := range []string{"size", "replicas", "stripes", "min-in-sync"} {
		if f := cmd.Flags().Lookup(name); f != nil && f.Changed && (f.Value.String() == "0" || f.Value.String() == "") {
			return nil, usagef(cmd, "--%s 0: it must be more than 0", name)
		}
	}
	if s.spec.MaxIops < 0 {
		return nil, usagef(cmd, "--max-iops %d: 0 (no limit) or more", s.spec.MaxIops)
	}
	s.spec.SizeBytes, s.spec.MaxBandwidth = s.size.bytes, s.bandwidth.bytes
	if len(s.labels) > 0 {
		s.spec.Labels = s.labels
	}
	return &s.spec, nil
}

// complete offers fixed values for a flag.
func complete(cmd *cobra.Command, flag string, values ...string) {
	// It fails only for a flag that is not defined, which a test would show.
	if err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err)
	}
}

var (
	_ pflag.Value = (*sizeFlag)(nil)
	_ pflag.Value = labelFlag(nil)
)
