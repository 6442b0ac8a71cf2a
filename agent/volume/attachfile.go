package volume

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/moraine-storage/moraine/drivers"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// attachVersion is raised when an older agent could misread an attachment file.
const attachVersion = 1

// Kinds of attachment (0000, "attachment").
const (
	kindBlock  = "block"
	kindSocket = "socket"
)

// attachFile is what this node remembers of a volume attached here, so that
// the next agent can go on with it, or undo it. It is written before what it
// announces: the sessions before a record that names them becomes active
// (0001, 4.1.4), the driver's state before the kernel is asked for anything.
type attachFile struct {
	Version  int           `json:"version"`
	Volume   string        `json:"volume"` // ID
	Name     string        `json:"name"`
	Kind     string        `json:"kind"` // kindBlock, kindSocket
	ReadOnly bool          `json:"read_only,omitempty"`
	Sessions []sessionLine `json:"sessions"` // of this device, oldest first
	BootID   string        `json:"boot_id"`
	Since    time.Time     `json:"since"`

	Driver *drivers.State `json:"driver,omitempty"` // kindBlock, once the driver was asked
	// Mount is where the file system is, or is about to be, mounted; "" if not.
	Mount string `json:"mount,omitempty"`
	// Targets are bind mounts of Mount: where, for which consumer.
	Targets map[string]string `json:"targets,omitempty"`
}

// sessionLine is one life of the mirror behind the device.
type sessionLine struct {
	N       uint64 `json:"n"`
	Session string `json:"session"`
}

func (f *attachFile) ownSessions() []uint64 {
	var out []uint64
	for _, s := range f.Sessions {
		out = append(out, s.N)
	}
	return out
}

// attachDir is the folder of attachment files, one per volume.
type attachDir string

func (d attachDir) path(id string) string { return filepath.Join(string(d), id+".json") }

// save writes f durably; after a crash the file is the old or the new one.
func (d attachDir) save(f *attachFile) error {
	b, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return err
	}
	if err := writeDurably(d.path(f.Volume), b); err != nil {
		return fmt.Errorf("attachment file of volume %s: %w", f.Name, err)
	}
	return nil
}

func writeDurably(path string, b []byte) error {
	tmp := path + ".tmp"
	w, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = w.Write(b)
	if err == nil {
		err = w.Sync()
	}
	if err = errors.Join(err, w.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// remove forgets the attachment; that it was not there is no error.
func (d attachDir) remove(id string) error {
	if err := os.Remove(d.path(id)); err != nil {
		if os.IsNotExist(err) {
			return nil
		}
		return err
	}
	return syncDir(string(d))
}

// load reads all attachment files. Those that cannot be understood are
// reported, by volume ID, and left alone: a person or another version may need
// them.
func (d attachDir) load() (files []*attachFile, bad map[string]error, err error) {
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return nil, nil, err
	}
	entries, err := os.ReadDir(string(d))
	if err != nil {
		return nil, nil, err
	}
	bad = map[string]error{}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".json") {
			continue
		}
		f, err := d.read(filepath.Join(string(d), e.Name()))
		if err != nil {
			bad[strings.TrimSuffix(e.Name(), ".json")] = err
			continue
		}
		files = append(files, f)
	}
	return files, bad, nil
}

func (d attachDir) read(path string) (*attachFile, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	f, err := parseAttachFile(b)
	if err != nil {
		return nil, fmt.Errorf("attachment file %s: %w", path, err)
	}
	if d.path(f.Volume) != path {
		return nil, fmt.Errorf("attachment file %s is of volume %q: %w", path, f.Volume, errdefs.ErrDataLoss)
	}
	return f, nil
}

func parseAttachFile(b []byte) (*attachFile, error) {
	f := &attachFile{}
	if err := json.Unmarshal(b, f); err != nil {
		return nil, fmt.Errorf("%v: %w", err, errdefs.ErrDataLoss)
	}
	if f.Version != attachVersion {
		return nil, fmt.Errorf("version %d, this agent reads %d: %w", f.Version, attachVersion, errdefs.ErrFailedPrecondition)
	}
	if f.Volume == "" || f.Kind != kindBlock && f.Kind != kindSocket {
		return nil, fmt.Errorf("volume %q, kind %q: %w", f.Volume, f.Kind, errdefs.ErrDataLoss)
	}
	if f.Driver != nil {
		if err := f.Driver.Validate(); err != nil {
			return nil, err
		}
	}
	return f, nil
}
