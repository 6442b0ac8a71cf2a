package local

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/backends"
)

type mediumKind int

const (
	dirMedium mediumKind = iota + 1
	fileMedium
	blockMedium
)

// medium is a path and what is known of it without reading its contents.
type medium struct {
	source
	kind     mediumKind
	dev, ino uint64 // what it is, whatever its name: (device, inode), or (device number, 0) of a block device
	node     string // block device with its data: itself, or the loop device of a file; "" if none
	nodeDev  uint64 // number of node
	sys      string // sysfs directory of a block device, or ""
	size     int64  // bytes of a file or device; free bytes of a directory less the reserve
	serial   string
	class    string
}

// look finds out what a path is. The error is a text for people.
func (c *config) look(s source, all []mounted) (medium, error) {
	m := medium{source: s}
	fi, err := os.Stat(s.path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return m, errors.New("no such file or directory")
		}
		return m, err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return m, errors.New("cannot be examined on this system")
	}
	m.dev, m.ino = uint64(st.Dev), st.Ino
	switch mode := fi.Mode(); {
	case mode.IsDir():
		m.kind, m.class = dirMedium, "dir"
		m.size, err = c.free(s.path)
	case mode.IsRegular():
		m.kind, m.class, m.size = fileMedium, "file", fi.Size()
		if m.node = loopOf(all, m.dev, m.ino); m.node != "" {
			m.nodeDev, err = deviceNumber(m.node)
		}
	case mode&fs.ModeDevice != 0 && mode&fs.ModeCharDevice == 0:
		m.kind, m.dev, m.ino = blockMedium, uint64(st.Rdev), 0
		m.node, m.nodeDev = s.path, uint64(st.Rdev)
		m.sys, err = filepath.EvalSymlinks(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(m.dev), unix.Minor(m.dev)))
		if err == nil {
			m.size, err = deviceSize(s.path)
			m.serial, m.class = serialOf(m.sys), classOf(m.sys)
		}
	default:
		err = errors.New("neither a directory nor a regular file nor a block device")
	}
	if c.Class != "" {
		m.class = c.Class
	}
	return m, err
}

// free is what a drive made in this directory now could use.
func (c *config) free(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	bs := int64(st.Frsize)
	if bs == 0 {
		bs = int64(st.Bsize)
	}
	return max(int64(st.Bavail)*bs-c.reserve(int64(st.Blocks)*bs), 0), nil
}

func deviceNumber(node string) (uint64, error) {
	var st unix.Stat_t
	err := unix.Stat(node, &st)
	return uint64(st.Rdev), err
}

func deviceSize(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return f.Seek(0, io.SeekEnd)
}

// whole returns the sysfs directory of the disk that a partition is on.
func whole(sys string) string {
	if _, err := os.Stat(filepath.Join(sys, "partition")); err == nil {
		return filepath.Dir(sys)
	}
	return sys
}

func isPartition(sys string) bool { return whole(sys) != sys }

// serialOf finds what tells this device from all others: a partition's serial
// is its disk's and its number.
func serialOf(sys string) string {
	disk := whole(sys)
	serial := ""
	for _, name := range []string{"device/serial", "serial", "device/wwid", "wwid", "dm/uuid"} {
		if serial = sysText(disk, name); serial != "" {
			break
		}
	}
	if serial == "" {
		if p, err := os.ReadFile(filepath.Join(disk, "device/vpd_pg80")); err == nil && len(p) > 4 { // SCSI: four bytes of header
			serial = printable(string(p[4:]))
		}
	}
	if serial != "" && disk != sys {
		serial += "-part" + sysText(sys, "partition")
	}
	return serial
}

func sysText(dir, name string) string {
	p, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return ""
	}
	return printable(string(p))
}

func printable(s string) string {
	s = strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, s))
	return s[:min(len(s), 256)]
}

func classOf(sys string) string {
	disk := whole(sys)
	switch {
	case strings.HasPrefix(filepath.Base(disk), "nvme"):
		return "nvme"
	case sysText(disk, "queue/rotational") == "1":
		return "hdd"
	}
	return "ssd"
}

// reader reads a file or device past the page cache where it can: what is
// looked for is on the medium, and the cache may be older.
type reader struct {
	f    *os.File
	size int64
}

func (m medium) open() (*reader, error) {
	f, err := os.OpenFile(m.path, os.O_RDONLY|unix.O_DIRECT, 0)
	if errors.Is(err, unix.EINVAL) {
		f, err = os.Open(m.path)
	}
	if err != nil {
		return nil, err
	}
	return &reader{f, m.size}, nil
}

func (r *reader) close() error { return r.f.Close() }

const pageSize = 4096

// page-aligned memory, as direct I/O wants it.
func aligned(n int) []byte {
	p := make([]byte, n+pageSize)
	skip := pageSize - int(uintptr(unsafe.Pointer(&p[0]))%pageSize)
	return p[skip : skip+n]
}

// at reads n bytes at off, both multiples of a page; fewer at the end.
func (r *reader) at(off int64, n int) ([]byte, error) {
	p := aligned(n)
	got, err := r.f.ReadAt(p, off)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return p[:got], err
}

// xfs is what the first sector says (xfs_sb, all big-endian): magic at 0, UUID
// at 32, label at 108, mkfs in progress at 126.
type xfs struct {
	id         backends.DriveID
	label      string
	inProgress bool
}

const (
	labelNew   = "moraine-new"
	labelDrive = "moraine-drv"
)

// parseXFS returns the super block at the beginning of p, if there is one.
func parseXFS(p []byte) (xfs, bool) {
	if len(p) < 512 || string(p[:4]) != "XFSB" {
		return xfs{}, false
	}
	u := p[32:48]
	return xfs{
		id:         backends.DriveID(fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])),
		label:      strings.TrimRight(string(p[108:120]), "\x00"),
		inProgress: p[126] != 0,
	}, true
}

// readXFS reads the super block of a file or device.
func (m medium) readXFS() (sb xfs, ok bool, err error) {
	if m.size < pageSize {
		return xfs{}, false, nil
	}
	r, err := m.open()
	if err != nil {
		return xfs{}, false, err
	}
	p, err := r.at(0, pageSize)
	if err := errors.Join(err, r.close()); err != nil {
		return xfs{}, false, err
	}
	sb, ok = parseXFS(p)
	return sb, ok, nil
}
