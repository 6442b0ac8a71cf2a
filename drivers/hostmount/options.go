package hostmount

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// flagOptions are those that mount(2) takes as bits; off clears the bit.
var flagOptions = map[string]struct {
	bit uintptr
	off bool
}{
	"rw": {unix.MS_RDONLY, true}, "ro": {unix.MS_RDONLY, false},
	"suid": {unix.MS_NOSUID, true}, "nosuid": {unix.MS_NOSUID, false},
	"dev": {unix.MS_NODEV, true}, "nodev": {unix.MS_NODEV, false},
	"exec": {unix.MS_NOEXEC, true}, "noexec": {unix.MS_NOEXEC, false},
	"atime": {unix.MS_NOATIME, true}, "noatime": {unix.MS_NOATIME, false},
	"diratime": {unix.MS_NODIRATIME, true}, "nodiratime": {unix.MS_NODIRATIME, false},
	"relatime": {unix.MS_RELATIME, false}, "strictatime": {unix.MS_STRICTATIME, false},
	"lazytime": {unix.MS_LAZYTIME, false}, "async": {unix.MS_SYNCHRONOUS, true},
	"sync": {unix.MS_SYNCHRONOUS, false}, "dirsync": {unix.MS_DIRSYNC, false},
}

// dataOptions are those of the filesystems that may be asked for; the value
// says of which kind the option's own value is. What weakens durability
// (nobarrier, journal_async_commit, noload and the like) is not among them.
var dataOptions = map[string]map[string]string{
	Ext4: {
		"discard": "", "nodiscard": "", "acl": "", "noacl": "", "user_xattr": "", "commit": "number", "stripe": "number",
		"data": "journal|ordered|writeback", "errors": "continue|remount-ro|panic", "delalloc": "", "nodelalloc": "",
		"usrquota": "", "grpquota": "", "prjquota": "", "quota": "", "noquota": "", "max_batch_time": "number", "min_batch_time": "number",
		"auto_da_alloc": "", "i_version": "",
	},
	XFS: {
		"discard": "", "nodiscard": "", "nouuid": "", "inode64": "", "inode32": "", "largeio": "", "nolargeio": "", "allocsize": "size",
		"logbufs": "number", "logbsize": "size", "sunit": "number", "swidth": "number", "swalloc": "", "attr2": "",
		"uquota": "", "gquota": "", "pquota": "", "prjquota": "", "usrquota": "", "grpquota": "", "noquota": "", "wsync": "",
	},
}

// ParseOptions checks mount options against what the filesystem may be asked
// for and splits them into the flags and the data of mount(2). An element may
// hold several options with commas between them.
func ParseOptions(fsType string, options []string) (flags uintptr, data string, err error) {
	known, ok := dataOptions[fsType]
	if !ok {
		return 0, "", fmt.Errorf("mount options: filesystem %q: %w", fsType, errdefs.ErrInvalidArgument)
	}
	var rest []string
	for _, o := range strings.Split(strings.Join(options, ","), ",") {
		if o == "" || o == "defaults" {
			continue
		}
		if f, ok := flagOptions[o]; ok {
			if f.off {
				flags &^= f.bit
			} else {
				flags |= f.bit
			}
			continue
		}
		k, v, hasValue := strings.Cut(o, "=")
		kind, ok := known[k]
		if !ok {
			return 0, "", fmt.Errorf("mount option %q: not known or not allowed for %s: %w", k, fsType, errdefs.ErrInvalidArgument)
		}
		if !fits(kind, v, hasValue) {
			return 0, "", fmt.Errorf("mount option %q: %s: %w", o, kindText(kind), errdefs.ErrInvalidArgument)
		}
		rest = append(rest, o)
	}
	return flags, strings.Join(rest, ","), nil
}

func fits(kind, v string, hasValue bool) bool {
	switch kind {
	case "":
		return !hasValue
	case "number":
		_, err := strconv.ParseUint(v, 10, 31)
		return err == nil
	case "size":
		_, err := strconv.ParseUint(strings.TrimRight(v, "kmgKMG"), 10, 31)
		return err == nil
	}
	for _, w := range strings.Split(kind, "|") {
		if v == w {
			return true
		}
	}
	return false
}

func kindText(kind string) string {
	switch kind {
	case "":
		return "takes no value"
	case "number", "size":
		return "its value is a " + kind
	}
	return "its value is one of " + kind
}
