package hostmount

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// host is the real Host.
type host struct{}

// New returns the host that this process runs on.
func New() Host { return host{} }

func (host) Probe(ctx context.Context, device string) (Signature, error) {
	fail := func(err error) (Signature, error) {
		return Signature{}, fmt.Errorf("probe %s: %w", device, err)
	}
	if err := checkDevice(device); err != nil {
		return fail(err)
	}
	// -p reads the device itself and no cache. 0: found, 2: nothing, 8: several.
	out, code, err := run(ctx, quickTimeout, "blkid", "-p", "-o", "export", device)
	if err != nil {
		return fail(err)
	}
	switch code {
	case 0:
		return parseBlkid(out), nil
	case 8:
		return Signature{Ambiguous: true}, nil
	case 2:
	default:
		return fail(fmt.Errorf("blkid: exit code %d: %s", code, out))
	}
	out, err = child(ctx, quickTimeout, childBlank, device)
	if err != nil {
		return fail(err)
	}
	return Signature{Blank: out == "true"}, nil
}

// parseBlkid reads KEY=value lines.
func parseBlkid(out string) Signature {
	var s Signature
	var pt string
	for _, l := range strings.Split(out, "\n") {
		k, v, _ := strings.Cut(l, "=")
		switch k {
		case "TYPE":
			s.Type = v
		case "PTTYPE":
			pt = v
		case "UUID":
			s.UUID = v
		case "LABEL":
			s.Label = v
		}
	}
	if s.Type == "" {
		s.Type = pt
	}
	if s.Type == "" {
		s.Type = "unknown" // blkid found something: never blank
	}
	return s
}

// zeroEnds says whether both ends of a device are zeros. For a child: who is
// killed while he has a device open closes it, and that waits for its reads.
func zeroEnds(device string) (bool, error) {
	f, err := os.Open(device)
	if err != nil {
		return false, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return false, err
	}
	buf, zero := make([]byte, 64<<10), make([]byte, 64<<10)
	for _, at := range []int64{0, max(size-zeroProbe, 0)} {
		for off := at; off < min(at+zeroProbe, size); off += int64(len(buf)) {
			n, err := f.ReadAt(buf, off)
			if err != nil && !errors.Is(err, io.EOF) {
				return false, err
			}
			if !bytes.Equal(buf[:n], zero[:n]) {
				return false, nil
			}
		}
	}
	return true, nil
}

// checkDevice refuses paths that are no block devices before a program is run
// on them.
func checkDevice(device string) error {
	if !strings.HasPrefix(device, "/") {
		return fmt.Errorf("not an absolute path: %w", errdefs.ErrInvalidArgument)
	}
	var st unix.Stat_t
	if err := unix.Stat(device, &st); errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("no such device: %w", errdefs.ErrNotFound)
	} else if err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return fmt.Errorf("not a block device: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}

func (h host) Format(ctx context.Context, device string, o FormatOptions) error {
	fail := func(err error) error { return fmt.Errorf("format %s: %w", device, err) }
	if err := o.Validate(); err != nil {
		return fail(err)
	}
	s, err := h.Probe(ctx, device)
	if err != nil {
		return fail(err)
	}
	if !s.Blank && !o.Force {
		return fail(fmt.Errorf("holds %s: %w", s.describe(), errdefs.ErrFailedPrecondition))
	}
	if ms, err := mountedDevice(device); err != nil || len(ms) > 0 {
		return fail(errors.Join(err, fmt.Errorf("mounted at %v: %w", ms, errdefs.ErrFailedPrecondition)))
	}
	name, args := o.command(device)
	err = must(ctx, mkfsTimeout, name, args...)
	if err != nil && o.Zeroed && !errdefs.Indeterminate(err) && ctx.Err() == nil {
		// e2fsprogs before 1.47 do not know the option; nothing is written then.
		o.Zeroed = false
		name, args = o.command(device)
		err = must(ctx, mkfsTimeout, name, args...)
	}
	if err != nil {
		return fail(err)
	}
	// The caller may note "formatted" now: what was made must be there after a
	// power cut too.
	if err := SyncDevice(ctx, device); err != nil {
		return fail(err)
	}
	return nil
}

func (s *Signature) describe() string {
	switch {
	case s.Ambiguous:
		return "several signatures"
	case s.Type != "":
		return "a signature of " + s.Type
	}
	return "data without a known signature"
}

// Validate says what is wrong with o.
func (o *FormatOptions) Validate() error {
	if o.Type != Ext4 && o.Type != XFS {
		return fmt.Errorf("filesystem %q, not ext4 or xfs: %w", o.Type, errdefs.ErrInvalidArgument)
	}
	if len(o.Label) > 12 || strings.ContainsFunc(o.Label, func(r rune) bool { return r <= ' ' || r > '~' || r == '/' }) {
		return fmt.Errorf("label %q: up to 12 printable characters: %w", o.Label, errdefs.ErrInvalidArgument)
	}
	for _, a := range o.Args {
		if strings.HasPrefix(a, "/") || a == "-F" || a == "-f" || strings.ContainsRune(a, 0) {
			return fmt.Errorf("mkfs argument %q: %w", a, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// command is the program and its arguments. No discard: a thin volume has
// nothing to discard, and a forced format frees what it overwrites by zeroing.
func (o *FormatOptions) command(device string) (string, []string) {
	var args []string
	if o.Type == XFS {
		args = []string{"-q", "-K"}
		if o.Force {
			args = append(args, "-f")
		}
	} else {
		// No lazy initialisation: the kernel would write to every block group
		// in the background of the first mount.
		ext := "nodiscard,lazy_itable_init=0,lazy_journal_init=0"
		if o.Zeroed {
			ext = "nodiscard,assume_storage_prezeroed=1"
		}
		args = []string{"-q", "-m", "0", "-E", ext}
		if o.Force {
			args = append(args, "-F")
		}
	}
	if o.Label != "" {
		args = append(args, "-L", o.Label)
	}
	return "mkfs." + o.Type, append(append(args, o.Args...), device)
}

func (host) Check(ctx context.Context, device, fsType string, readOnly bool) (CheckResult, error) {
	fail := func(r CheckResult, err error) (CheckResult, error) {
		return r, fmt.Errorf("check %s: %w", device, err)
	}
	if err := checkDevice(device); err != nil {
		return fail(CheckResult{}, err)
	}
	switch fsType {
	case XFS:
		// XFS repairs itself at mount, by its log; Mount looks closer when that fails.
		return CheckResult{}, nil
	case Ext4:
	default:
		return fail(CheckResult{}, fmt.Errorf("filesystem %q: %w", fsType, errdefs.ErrInvalidArgument))
	}
	mode := "-p"
	if readOnly {
		mode = "-n"
	}
	out, code, err := run(ctx, fsckTimeout, "e2fsck", mode, device)
	r := CheckResult{Output: out}
	if err != nil {
		return fail(r, err)
	}
	// Bits: 1 corrected, 2 corrected and reboot, 4 left uncorrected, 8 could
	// not run, 16 wrong use, 32 interrupted, 128 library.
	switch {
	case code&^3 == 0:
		r.Repaired = code != 0
		if !readOnly {
			if err := fillDevice(ctx, device); err != nil {
				return fail(r, err)
			}
		}
		return r, nil
	case code&4 != 0 && readOnly && code&^7 == 0:
		return r, nil // with -n, a journal to replay counts as uncorrected
	case code&4 != 0:
		return fail(r, fmt.Errorf("e2fsck could not repair it without a decision, run e2fsck by hand: %s: %w", out, errdefs.ErrDataLoss))
	}
	return fail(r, fmt.Errorf("e2fsck: exit code %d: %s", code, out))
}

// fillDevice grows an unmounted ext4 to its device: what Grow could not do
// where the process lacks CAP_SYS_RESOURCE, or did not come to do.
func fillDevice(ctx context.Context, device string) error {
	small, err := child(ctx, quickTimeout, childSmall, device)
	if err != nil {
		return fmt.Errorf("read superblock: %w", err)
	}
	if small != "true" {
		return nil
	}
	// resize2fs wants a full check before.
	if out, code, err := run(ctx, fsckTimeout, "e2fsck", "-f", "-p", device); err != nil || code&^3 != 0 {
		return errors.Join(err, fmt.Errorf("e2fsck -f: exit code %d: %s", code, out))
	}
	return must(ctx, growTimeout, "resize2fs", device)
}

// ext4Small says whether a block group more would fit behind the filesystem.
// For a child, as zeroEnds.
func ext4Small(device string) (bool, error) {
	f, err := os.Open(device)
	if err != nil {
		return false, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return false, err
	}
	sb := make([]byte, 1024)
	if _, err := f.ReadAt(sb, 1024); err != nil {
		return false, err
	}
	// s_blocks_count_lo, s_log_block_size, s_blocks_per_group, s_feature_incompat (64bit), s_blocks_count_hi.
	blocks := uint64(binary.LittleEndian.Uint32(sb[4:]))
	if binary.LittleEndian.Uint32(sb[0x60:])&0x80 != 0 {
		blocks |= uint64(binary.LittleEndian.Uint32(sb[0x150:])) << 32
	}
	shift := 10 + binary.LittleEndian.Uint32(sb[24:])
	if binary.LittleEndian.Uint16(sb[0x38:]) != 0xEF53 || shift > 16 {
		return false, unix.EUCLEAN // not an ext4 superblock: no other program said so
	}
	group := uint64(binary.LittleEndian.Uint32(sb[0x20:]))
	return uint64(size)>>shift >= blocks+group, nil
}

func (h host) Grow(ctx context.Context, target string) error {
	fail := func(err error) error { return fmt.Errorf("grow filesystem at %s: %w", target, err) }
	m, err := h.top(ctx, target)
	if err != nil {
		return fail(err)
	}
	switch m.Type {
	case Ext4:
		if !mayGrowExt4() {
			// ext4_resize_begin in the kernel asks for it.
			return fail(fmt.Errorf("growing a mounted ext4 needs CAP_SYS_RESOURCE, which this process lacks; it grows when it is mounted next: %w", errdefs.ErrPermissionDenied))
		}
		err = must(ctx, growTimeout, "resize2fs", m.Source)
	case XFS:
		err = must(ctx, growTimeout, "xfs_growfs", target)
	default:
		err = fmt.Errorf("filesystem %s: %w", m.Type, errdefs.ErrUnimplemented)
	}
	if err != nil {
		return fail(err)
	}
	return nil
}

// mayGrowExt4 says whether this process has CAP_SYS_RESOURCE.
func mayGrowExt4() bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return true // resize2fs will say
	}
	return data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

// top is the mount that a path of the host leads to.
func (h host) top(ctx context.Context, target string) (Mountpoint, error) {
	ms, err := h.List(ctx)
	if err != nil {
		return Mountpoint{}, err
	}
	at := At(ms, target)
	if len(at) == 0 {
		return Mountpoint{}, fmt.Errorf("nothing is mounted there: %w", errdefs.ErrNotFound)
	}
	return at[len(at)-1], nil
}

// fitrim is FITRIM of linux/fs.h, and its argument.
const fitrim = 0xC0185879

type trimRange struct{ start, length, minLength uint64 }

func (h host) Trim(ctx context.Context, target string) (int64, error) {
	if _, err := h.top(ctx, target); err != nil {
		return 0, fmt.Errorf("trim %s: %w", target, err)
	}
	out, err := child(ctx, trimTimeout, childTrim, target)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return 0, fmt.Errorf("trim %s: the device does not trim: %w", target, errdefs.ErrUnimplemented)
	}
	if err != nil {
		return 0, fmt.Errorf("trim %s: %w", target, err)
	}
	freed, err := strconv.ParseInt(out, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("trim %s: %w", target, err)
	}
	return freed, nil
}

func (h host) Usage(ctx context.Context, target string) (Usage, error) {
	if _, err := h.top(ctx, target); err != nil {
		return Usage{}, fmt.Errorf("usage of %s: %w", target, err)
	}
	var st unix.Statfs_t
	if err := within(ctx, quickTimeout, "usage of "+target, func() error { return unix.Statfs(target, &st) }); err != nil {
		return Usage{}, err
	}
	bs := int64(st.Frsize)
	return Usage{
		TotalBytes: int64(st.Blocks) * bs, UsedBytes: int64(st.Blocks-st.Bfree) * bs, AvailableBytes: int64(st.Bavail) * bs,
		Inodes: int64(st.Files), InodesUsed: int64(st.Files - st.Ffree), InodesFree: int64(st.Ffree),
	}, nil
}
