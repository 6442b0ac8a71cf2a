// Command moraine-backend-ramdisk is an example of a backend plugin: it offers
// drives that are directories below one path, which is meant to be on a tmpfs.
// What is in them is gone after a reboot, so it is of use for tests and for
// caches with replicas elsewhere, and as a start for a plugin of your own.
//
// To use it: build it, put it into the agent's plugin_dir under the name
// moraine-backend-ramdisk (owned by root, not writable by others), and configure
//
//	backend "ramdisk" {
//	  pool = "ram"
//	  config {
//	    path = "/dev/shm/moraine"
//	  }
//	}
//
// A plugin has three parts. main calls sdk.Serve. The configuration is a
// schema, which the agent checks blocks against, and a struct to decode into. The
// rest is the contract, package backends: here each drive is a directory with a
// small file beside it, drive.json, that says which drive it is and to which node it is
// attached. The test runs the conformance suite over a real plugin process; that is
// all there is to do.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/moraine-storage/moraine/backends"
	"github.com/moraine-storage/moraine/plugins/errdefs"
	"github.com/moraine-storage/moraine/plugins/schema"
	"github.com/moraine-storage/moraine/plugins/sdk"
)

func main() { sdk.Serve(&ramdisk{}) }

// options is what stands in the config block.
type options struct {
	Path  string `config:"path"`
	Limit int64  `config:"limit"`
}

var blockSchema = schema.Schema{Attributes: []schema.Attribute{
	{Name: "path", Type: schema.String, Required: true, Doc: "Absolute path of the directory for the drives, on a tmpfs; made if absent."},
	{Name: "limit", Type: schema.Size, Default: int64(1 << 30), Min: schema.Bound(backends.MinDriveSize),
		Doc: "Bytes that all drives together may have."},
}}

// ramdisk is the backend. One mutex is enough: no call takes long. What
// matters is in files, so a restart of the plugin loses nothing.
type ramdisk struct {
	mu sync.Mutex
	o  *options // guarded by mu; nil before Configure
}

// record is drive.json.
type record struct {
	Drive backends.Drive
	Spec  backends.CreateRequest
}

func (r *ramdisk) Info(context.Context) (backends.Info, error) {
	return backends.Info{Name: "ramdisk", Version: "1.0.0", Contract: backends.ContractVersion}, nil
}

func (r *ramdisk) ConfigSchema(context.Context) (schema.Schema, error) { return blockSchema, nil }

func (r *ramdisk) Configure(_ context.Context, c backends.Config) error {
	o := &options{}
	if err := schema.Decode(c.Options, o); err != nil {
		return fmt.Errorf("configure ramdisk: %w", err)
	}
	if !filepath.IsAbs(o.Path) {
		return fmt.Errorf("configure ramdisk: %w", &schema.Error{Attribute: "path", Problem: "must be an absolute path"})
	}
	if err := os.MkdirAll(o.Path, 0o700); err != nil {
		return fmt.Errorf("configure ramdisk: %w: cannot make the directory", errdefs.ErrInvalidArgument)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.o = o
	return nil
}

// begin is the start of every call: it takes the mutex, which end gives back.
func (r *ramdisk) begin(ctx context.Context, call string) (end func(), err error) {
	r.mu.Lock()
	if r.o == nil {
		err = fmt.Errorf("%s: %w: not configured", call, errdefs.ErrFailedPrecondition)
	} else {
		err = ctx.Err()
	}
	if err != nil {
		r.mu.Unlock()
		return nil, err
	}
	return r.mu.Unlock, nil
}

func (r *ramdisk) dir(id backends.DriveID) string { return filepath.Join(r.o.Path, string(id)) }

// load reads one drive's record.
func (r *ramdisk) load(id backends.DriveID) (record, error) {
	if err := id.Check(); err != nil { // also keeps ".." out of paths
		return record{}, err
	}
	p, err := os.ReadFile(filepath.Join(r.dir(id), "drive.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return record{}, fmt.Errorf("drive %s: %w", id, errdefs.ErrNotFound)
	}
	var rec record
	if err == nil {
		err = json.Unmarshal(p, &rec)
	}
	if err != nil {
		return record{}, fmt.Errorf("drive %s: %w: %w", id, errdefs.ErrDataLoss, err)
	}
	return rec, nil
}

// save writes a record whole or not at all.
func (r *ramdisk) save(rec record) error {
	p, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	name := filepath.Join(r.dir(rec.Drive.ID), "drive.json")
	if err := errors.Join(os.MkdirAll(rec.Drive.Source, 0o700), os.WriteFile(name+".new", p, 0o600)); err != nil {
		return fmt.Errorf("drive %s: %w: %w", rec.Drive.ID, errdefs.ErrUnavailable, err)
	}
	return os.Rename(name+".new", name)
}

func (r *ramdisk) all() ([]backends.Drive, error) {
	entries, err := os.ReadDir(r.o.Path)
	if err != nil {
		return nil, fmt.Errorf("list drives: %w: %w", errdefs.ErrUnavailable, err)
	}
	var out []backends.Drive
	for _, e := range entries {
		rec, err := r.load(backends.DriveID(e.Name()))
		if errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) {
			continue // being made, or not ours
		}
		if err != nil {
			return nil, err
		}
		out = append(out, rec.Drive)
	}
	return out, nil
}

func (r *ramdisk) Discover(ctx context.Context) ([]backends.Drive, error) {
	end, err := r.begin(ctx, "discover")
	if err != nil {
		return nil, err
	}
	defer end()
	return r.all()
}

func (r *ramdisk) Get(ctx context.Context, id backends.DriveID) (backends.Drive, error) {
	end, err := r.begin(ctx, "get drive")
	if err != nil {
		return backends.Drive{}, err
	}
	defer end()
	rec, err := r.load(id)
	return rec.Drive, err
}

func (r *ramdisk) List(ctx context.Context, p backends.Page) (backends.Drives, error) {
	end, err := r.begin(ctx, "list drives")
	if err != nil {
		return backends.Drives{}, err
	}
	defer end()
	all, err := r.all()
	if err != nil {
		return backends.Drives{}, err
	}
	return backends.Paginate(all, p)
}

func (r *ramdisk) Create(ctx context.Context, q backends.CreateRequest) (backends.Drive, error) {
	end, err := r.begin(ctx, "create drive")
	if err != nil {
		return backends.Drive{}, err
	}
	defer end()
	if err := q.Check(); err != nil {
		return backends.Drive{}, err
	}
	rec, err := r.load(q.ID)
	switch {
	case err == nil && rec.Spec == q:
		return rec.Drive, nil // asked for before
	case err == nil:
		return backends.Drive{}, fmt.Errorf("create drive %s: %w with another spec", q.ID, errdefs.ErrAlreadyExists)
	case !errdefs.IsNotFound(err):
		return backends.Drive{}, err
	case q.Source != "":
		return backends.Drive{}, fmt.Errorf("create drive %s: source: %w", q.ID, errdefs.ErrNotFound)
	}
	all, err := r.all()
	if err != nil {
		return backends.Drive{}, err
	}
	free := r.o.Limit
	for _, d := range all {
		free -= d.Size
	}
	size := q.Size
	if size == 0 {
		size = free
	}
	if size > free || size < backends.MinDriveSize {
		return backends.Drive{}, fmt.Errorf("create drive %s: %w: %d bytes are left", q.ID, errdefs.ErrResourceExhausted, free)
	}
	rec = record{Spec: q, Drive: backends.Drive{ID: q.ID, Source: filepath.Join(r.dir(q.ID), "drive"), Size: size, Class: "ram",
		State: backends.StateReady, Created: time.Now().UTC()}}
	return rec.Drive, r.save(rec)
}

func (r *ramdisk) Delete(ctx context.Context, id backends.DriveID) error {
	end, err := r.begin(ctx, "delete drive")
	if err != nil {
		return err
	}
	defer end()
	rec, err := r.load(id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if rec.Drive.Node != "" {
		return fmt.Errorf("delete drive %s: %w: attached to node %s", id, errdefs.ErrFailedPrecondition, rec.Drive.Node)
	}
	return os.RemoveAll(r.dir(id))
}

func (r *ramdisk) Attach(ctx context.Context, id backends.DriveID, node backends.NodeID) (backends.Attachment, error) {
	end, err := r.begin(ctx, "attach drive")
	if err != nil {
		return backends.Attachment{}, err
	}
	defer end()
	rec, err := r.load(id)
	if err == nil {
		err = node.Check()
	}
	if err != nil {
		return backends.Attachment{}, err
	}
	if rec.Drive.Node != "" && rec.Drive.Node != node {
		return backends.Attachment{}, fmt.Errorf("attach drive %s: %w: attached to node %s", id, errdefs.ErrFailedPrecondition, rec.Drive.Node)
	}
	rec.Drive.Node = node
	return backends.Attachment{Path: rec.Drive.Source, Kind: backends.KindDir, Size: rec.Drive.Size}, r.save(rec)
}

func (r *ramdisk) Detach(ctx context.Context, id backends.DriveID, node backends.NodeID) error {
	end, err := r.begin(ctx, "detach drive")
	if err != nil {
		return err
	}
	defer end()
	rec, err := r.load(id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil || rec.Drive.Node != node {
		return err
	}
	rec.Drive.Node = ""
	return r.save(rec)
}
