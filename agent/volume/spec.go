package volume

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	"github.com/moraine-storage/moraine/drivers/store"
	"github.com/moraine-storage/moraine/plugins/errdefs"
	"google.golang.org/protobuf/proto"
)

// Limits of a volume. The largest size is what the map of a store addresses
// with room to spare; labels and options are bounded so that a record stays
// far below the 1.5 MiB that the cluster store takes.
const (
	sizeMin          = 1 << 20              // bytes; an XFS needs 300 MiB, an ext4 1 MiB
	sizeMax          = store.MaxReplicaSize // bytes, 32 TiB
	labelsMax        = 64
	labelBytesMax    = 256
	optionsMax       = 32
	optionBytesMax   = 256
	snapshotsMax     = 1024
	consumersMax     = 1024
	consumerBytesMax = 256
	xfsSizeMin       = 300 << 20 // mkfs.xfs refuses less
)

var nameRE = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9_.-]{0,126}[A-Za-z0-9])?$`)

// checkName returns an error that says what a name may be.
func checkName(what, name string) error {
	if nameRE.MatchString(name) {
		return nil
	}
	return fmt.Errorf("%s name %q: %w: 1 to 128 letters, digits, '_', '.', '-', beginning and ending with a letter or digit", what, name, errdefs.ErrInvalidArgument)
}

// splitSnapshot splits VOLUME@SNAPSHOT.
func splitSnapshot(s string) (volume, snapshot string, err error) {
	volume, snapshot, ok := strings.Cut(s, "@")
	if !ok || volume == "" || snapshot == "" {
		return "", "", fmt.Errorf("snapshot %q: %w: say VOLUME@SNAPSHOT", s, errdefs.ErrInvalidArgument)
	}
	return volume, snapshot, nil
}

// Defaults are what a spec that is silent gets; from the configuration.
type Defaults struct {
	Size      int64 // bytes
	FS        string
	Driver    string
	Pool      string // "": any
	Replicas  uint32 // 0: one per node, at most three
	MinInSync uint32 // 0: one, or two with three or more replicas
	Extent    int64  // bytes; sizes are rounded up to it
	Region    int64  // bytes
}

// normalise fills in defaults and refuses what cannot be. The result is what
// the record keeps and what a repeated create is compared with.
func (d Defaults) normalise(name string, in *apiv1.VolumeSpec) (*apiv1.VolumeSpec, error) {
	s := &apiv1.VolumeSpec{}
	if in != nil {
		s = proto.Clone(in).(*apiv1.VolumeSpec)
	}
	if s.SizeBytes == 0 {
		s.SizeBytes = d.Size
	}
	if s.SizeBytes < sizeMin || s.SizeBytes > sizeMax {
		return nil, fmt.Errorf("volume %q: size %d: %w: %d (1MiB) to %d (32TiB) bytes", name, s.SizeBytes, errdefs.ErrOutOfRange, int64(sizeMin), int64(sizeMax))
	}
	s.SizeBytes = roundUp(s.SizeBytes, d.Extent)
	if s.Fs == "" {
		s.Fs = d.FS
	}
	if s.Driver == "" {
		s.Driver = d.Driver
	}
	if s.Stripes == 0 {
		s.Stripes = 1
	}
	if s.Pool == "" {
		s.Pool = d.Pool
	}
	if s.Replicas == 0 {
		s.Replicas = max(d.Replicas, 1)
	}
	if s.MinInSync == 0 {
		s.MinInSync = min(d.MinInSync, s.Replicas)
	}
	if s.MinInSync == 0 {
		s.MinInSync = 1
		if s.Replicas >= 3 {
			s.MinInSync = 2
		}
	}
	return s, checkSpec(name, s)
}

func roundUp(n, to int64) int64 { return (n + to - 1) / to * to }

func checkSpec(name string, s *apiv1.VolumeSpec) error {
	bad := func(class error, format string, a ...any) error {
		return fmt.Errorf("volume %q: %s: %w", name, fmt.Sprintf(format, a...), class)
	}
	switch {
	case !slices.Contains([]string{"ext4", "xfs", "none"}, s.Fs):
		return bad(errdefs.ErrInvalidArgument, "file system %q: ext4, xfs or none", s.Fs)
	case s.Fs == "xfs" && s.SizeBytes < xfsSizeMin:
		return bad(errdefs.ErrOutOfRange, "size %d: xfs needs at least %d bytes (300MiB); use ext4", s.SizeBytes, int64(xfsSizeMin))
	case s.Driver == "fuse":
		return bad(errdefs.ErrUnimplemented, "driver fuse (shared file systems) is not in this release; use nbd")
	case s.Driver != "nbd":
		return bad(errdefs.ErrInvalidArgument, "driver %q: nbd or fuse", s.Driver)
	case s.Stripes != 1:
		return bad(errdefs.ErrUnimplemented, "%d stripes: this release has 1", s.Stripes)
	case s.Encrypt:
		return bad(errdefs.ErrUnimplemented, "encryption is not in this release")
	case s.MaxIops < 0 || s.MaxBandwidth < 0:
		return bad(errdefs.ErrOutOfRange, "limits of %d operations and %d bytes per second: 0 (none) or more", s.MaxIops, s.MaxBandwidth)
	case s.MinInSync > s.Replicas:
		return bad(errdefs.ErrOutOfRange, "min_in_sync %d with %d replicas", s.MinInSync, s.Replicas)
	}
	if err := checkLabels(s.Labels); err != nil {
		return bad(errdefs.ErrInvalidArgument, "%v", err)
	}
	for _, opts := range [][]string{s.MkfsOptions, s.MountOptions} {
		if len(opts) > optionsMax {
			return bad(errdefs.ErrInvalidArgument, "%d options, at most %d", len(opts), optionsMax)
		}
		for _, o := range opts {
			if o == "" || len(o) > optionBytesMax || strings.ContainsAny(o, "\x00\n") {
				return bad(errdefs.ErrInvalidArgument, "option %q: 1 to %d printable bytes", o, optionBytesMax)
			}
		}
	}
	return nil
}

func checkLabels(labels map[string]string) error {
	if len(labels) > labelsMax {
		return fmt.Errorf("%d labels, at most %d", len(labels), labelsMax)
	}
	for k, v := range labels {
		if k == "" || len(k) > labelBytesMax || len(v) > labelBytesMax {
			return fmt.Errorf("label %q: key and value of at most %d bytes, key not empty", k, labelBytesMax)
		}
	}
	return nil
}

// sameSpec says whether a repeated create asks for the volume that is there.
// Fields left out match anything: a caller who said no size gets the volume.
func sameSpec(name string, have, asked *apiv1.VolumeSpec) error {
	if asked == nil {
		return nil
	}
	var diff []string
	differ := func(field string, asked, have any, set bool) {
		if set && asked != have {
			diff = append(diff, fmt.Sprintf("%s is %v, not %v", field, have, asked))
		}
	}
	differ("size", asked.SizeBytes, have.SizeBytes, asked.SizeBytes != 0)
	differ("replicas", asked.Replicas, have.Replicas, asked.Replicas != 0)
	differ("pool", asked.Pool, have.Pool, asked.Pool != "")
	differ("fs", asked.Fs, have.Fs, asked.Fs != "")
	differ("driver", asked.Driver, have.Driver, asked.Driver != "")
	differ("stripes", asked.Stripes, have.Stripes, asked.Stripes != 0)
	differ("max-iops", asked.MaxIops, have.MaxIops, asked.MaxIops != 0)
	differ("max-bandwidth", asked.MaxBandwidth, have.MaxBandwidth, asked.MaxBandwidth != 0)
	differ("from-snapshot", asked.FromSnapshot, have.FromSnapshot, asked.FromSnapshot != "")
	differ("encrypt", asked.Encrypt, have.Encrypt, asked.Encrypt)
	for k, v := range asked.Labels {
		differ("label "+k, v, have.Labels[k], true)
	}
	if len(diff) > 0 {
		return fmt.Errorf("volume %q exists with another spec (%s): %w", name, strings.Join(diff, "; "), errdefs.ErrAlreadyExists)
	}
	return nil
}
