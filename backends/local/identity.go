package local

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/backends"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// identityName is the identity file; names with identityPrefix are this
// package's, all others in a drive are the agent's.
const (
	identityName   = ".moraine-drive"
	identityPrefix = ".moraine-"
	identityMagic  = "MORAINE-DRIVE"
	identityFormat = 1
)

// identity is what a drive says of itself.
type identity struct {
	ID      backends.DriveID `json:"id"`
	Created time.Time        `json:"created"`
	Serial  string           `json:"serial,omitempty"` // of the device when the drive was made
	Size    int64            `json:"size"`             // bytes that the agent may use
	Spec    spec             `json:"spec"`
}

// spec is what Create was asked for, to tell a repetition from a conflict.
type spec struct {
	Size   int64  `json:"size,omitempty"`
	Class  string `json:"class,omitempty"`
	Source string `json:"source,omitempty"`
}

func specOf(r backends.CreateRequest) spec { return spec{r.Size, r.Class, r.Source} }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (id identity) encode() ([]byte, error) {
	body, err := json.MarshalIndent(id, "", " ")
	if err != nil {
		return nil, err
	}
	body = append(body, '\n')
	if len(body) > maxIdentity-64 {
		return nil, fmt.Errorf("identity: %w: larger than %d bytes", errdefs.ErrInvalidArgument, maxIdentity)
	}
	head := fmt.Sprintf("%s %d %d %08x\n", identityMagic, identityFormat, len(body), crc32.Checksum(body, castagnoli))
	return append([]byte(head), body...), nil
}

// decodeIdentity reads an identity file. ErrDataLoss: damaged;
// ErrFailedPrecondition: of a newer format, or not ours.
func decodeIdentity(p []byte) (identity, error) {
	damaged := func(what string) (identity, error) {
		return identity{}, fmt.Errorf("identity file: %w: %s", errdefs.ErrDataLoss, what)
	}
	if len(p) > maxIdentity {
		return damaged("too long")
	}
	head, body, ok := bytes.Cut(p, []byte("\n"))
	fields := strings.Split(string(head), " ")
	if !ok || fields[0] != identityMagic {
		return damaged("no header")
	}
	if len(fields) >= 2 && fields[1] != strconv.Itoa(identityFormat) {
		return identity{}, fmt.Errorf("identity file: %w: written by a newer version (format %.16q)", errdefs.ErrFailedPrecondition, fields[1])
	}
	if len(fields) != 4 {
		return damaged("bad header")
	}
	if fields[2] != strconv.Itoa(len(body)) {
		return damaged("length does not fit")
	}
	if fields[3] != fmt.Sprintf("%08x", crc32.Checksum(body, castagnoli)) {
		return damaged("checksum does not fit")
	}
	var id identity
	if err := json.Unmarshal(body, &id); err != nil {
		return damaged("not JSON")
	}
	if id.ID.Check() != nil || id.Size < backends.MinDriveSize || id.Size > backends.MaxDriveSize {
		return damaged("drive ID or size is not possible")
	}
	return id, nil
}

// readIdentity reads the identity in directory dir; fs.ErrNotExist when there
// is none.
func readIdentity(dir string) (identity, error) {
	// O_NONBLOCK and O_NOFOLLOW: what bears the name need not be our file.
	f, err := os.OpenFile(filepath.Join(dir, identityName), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return identity{}, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return identity{}, err
	}
	if !fi.Mode().IsRegular() {
		return identity{}, fmt.Errorf("identity file: %w: not a regular file", errdefs.ErrDataLoss)
	}
	p, err := io.ReadAll(io.LimitReader(f, maxIdentity+1))
	if err != nil {
		return identity{}, err
	}
	return decodeIdentity(p)
}

// writeIdentity puts the identity into dir, durable on return. With fresh it
// refuses to replace one (fs.ErrExist): of two that try, one succeeds.
func writeIdentity(dir string, id identity, fresh bool) (err error) {
	p, err := id.encode()
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, identityName+".tmp-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ignoreAbsent(os.Remove(tmp.Name())))
		}
	}()
	_, err = tmp.Write(p)
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	final := filepath.Join(dir, identityName)
	if fresh {
		err = renameNew(tmp.Name(), final)
	} else {
		err = os.Rename(tmp.Name(), final)
	}
	if err != nil {
		return err
	}
	return syncDir(dir)
}

// renameNew renames unless the target exists, atomically.
func renameNew(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	if err := os.Link(from, to); err != nil { // a file system that cannot do it in one step
		return err
	}
	return os.Remove(from)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func ignoreAbsent(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
