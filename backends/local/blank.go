package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// releasedMagic at the beginning of a medium is the mark of Delete: the rest is what a
// deleted drive left behind.
const releasedMagic = "MORAINE-RELEASED-1\n"

// signatures give the refusal a name; what they miss, blkid and the search for
// zeros do not. Offsets are from the beginning.
var signatures = []struct {
	off   int
	magic string
	name  string
}{
	{0, "XFSB", "an XFS file system"},
	{1080, "\x53\xef", "an ext2, ext3 or ext4 file system"},
	{0x10040, "_BHRfS_M", "a btrfs file system"},
	{512, "EFI PART", "a GPT partition table"},
	{4096, "EFI PART", "a GPT partition table"},
	{510, "\x55\xaa", "a partition table, boot sector or FAT file system"},
	{512, "LABELONE", "an LVM physical volume"},
	{0, "LUKS\xba\xbe", "LUKS encryption"},
	{4096, "\xfc\x4e\x2b\xa9", "a Linux RAID member"},
	{0, "\xfc\x4e\x2b\xa9", "a Linux RAID member"},
	{4086, "SWAPSPACE2", "swap space"},
	{4086, "SWAP-SPACE", "swap space"},
	{0, "bluestore block device", "a Ceph OSD"},
	{4096 + 24, "\xc6\x85\x73\xf6\x4e\x1a\x45\xca", "a bcache device"},
	{0x400, "\x10\x20\xf5\xf2", "an F2FS file system"},
	{0x400, "\xe2\xe1\xf5\xe0", "an EROFS file system"},
	{0, "hsqs", "a squashfs file system"},
	{0x8001, "CD001", "an ISO 9660 file system"},
	{0, "QFI\xfb", "a QEMU disk image"},
	{0, "KDMV", "a VMware disk image"},
	{3, "NTFS", "an NTFS file system"},
}

// signature names what the beginning of a medium holds, "" when it knows none.
func signature(head []byte) string {
	for _, s := range signatures {
		if len(head) >= s.off+len(s.magic) && string(head[s.off:s.off+len(s.magic)]) == s.magic {
			return s.name
		}
	}
	return ""
}

// inUse says who uses the medium, "" when nobody does. Nothing in use is ever
// written to, whatever the configuration says.
func (m medium) inUse(all []mounted) (string, error) {
	for _, mt := range all {
		if m.nodeDev != 0 && mt.dev == m.nodeDev {
			return "mounted at " + mt.point, nil
		}
	}
	if m.kind == fileMedium {
		// A loop device vanishes a moment after its last user.
		node := m.node
		for n := 0; node != "" && n < 100; n++ {
			time.Sleep(20 * time.Millisecond)
			node = loopOf(all, m.dev, m.ino)
		}
		if node != "" {
			return "shown as " + node, nil
		}
		return "", nil
	}
	if holders, _ := os.ReadDir(filepath.Join(m.sys, "holders")); len(holders) > 0 {
		return "used by " + holders[0].Name(), nil
	}
	if parts, _ := filepath.Glob(filepath.Join(m.sys, "*", "partition")); len(parts) > 0 {
		return "it has partitions", nil
	}
	// For all that mountinfo of this namespace does not show: swap, RAID, LVM,
	// multipath, mounts elsewhere.
	f, err := os.OpenFile(m.path, os.O_RDONLY|unix.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) {
		return "in use by the kernel (mounted elsewhere, swap, RAID, LVM or multipath)", nil
	}
	if err != nil {
		return "", err
	}
	return "", f.Close()
}

// foreign says what is on a file or device that is not in use: "" when it is
// blank. fresh tells that it is a drive whose making was interrupted.
func (m medium) foreign(ctx context.Context) (what string, fresh bool, err error) {
	r, err := m.open()
	if err != nil {
		return "", false, err
	}
	defer r.close()
	head, err := r.at(0, zeroEdge)
	if err != nil {
		return "", false, err
	}
	if sb, ok := parseXFS(head); ok && (sb.label == labelNew || sb.label == labelDrive && sb.inProgress) {
		return "", true, nil
	}
	if what := signature(head); what != "" {
		return what, false, nil
	}
	if what, err := blkid(ctx, m.path); what != "" || err != nil {
		return what, false, err
	}
	if bytes.HasPrefix(head, []byte(releasedMagic)) {
		return "", false, nil
	}
	if !zero(head) {
		return "data of unknown kind", false, nil
	}
	for _, off := range sampleOffsets(m.size) {
		if err := ctx.Err(); err != nil {
			return "", false, err
		}
		p, err := r.at(off, zeroSample)
		if err != nil {
			return "", false, err
		}
		if !zero(p) {
			return fmt.Sprintf("data of unknown kind (first seen at byte %d)", off), false, nil
		}
	}
	return "", false, nil
}

// sampleOffsets are where to look for zeros, beyond the first zeroEdge bytes: all of the
// last zeroEdge, and zeroSamples places spread evenly in between.
func sampleOffsets(size int64) []int64 {
	var out []int64
	add := func(off int64) {
		if off -= off % pageSize; off >= 0 && off < size {
			out = append(out, off)
		}
	}
	for n := int64(1); n <= zeroSamples; n++ {
		add(size / (zeroSamples + 1) * n)
	}
	for off := size - zeroEdge; off < size; off += zeroSample {
		add(off)
	}
	add(size - 1)
	return out
}

func zero(p []byte) bool {
	return len(bytes.TrimLeft(p, "\x00")) == 0
}

// blkid asks libblkid, which knows every signature there is. Where it is not
// installed the other checks must do.
func blkid(ctx context.Context, path string) (string, error) {
	if _, err := exec.LookPath("blkid"); err != nil {
		return "", nil
	}
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	out, code, err := command(ctx, "blkid", "-p", "-o", "export", path)
	const nothing, ambivalent = 2, 8
	switch {
	case err == nil:
	case code == nothing && ctx.Err() == nil:
		return "", nil
	case code == ambivalent:
		return "several signatures", nil
	default:
		return "", err
	}
	var found []string
	for line := range strings.SplitSeq(out, "\n") {
		k, v, _ := strings.Cut(line, "=")
		if slices.Contains([]string{"TYPE", "PTTYPE", "LABEL"}, k) {
			found = append(found, strings.ToLower(k)+" "+printable(v))
		}
	}
	if len(found) == 0 {
		return "", nil // block size and the like: no signature
	}
	return "a signature (" + strings.Join(found, ", ") + ")", nil
}
