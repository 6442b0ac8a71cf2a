package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/backends"
)

// entry is a medium and what it is to the agent.
type entry struct {
	medium
	drive    backends.Drive
	identity identity // of a drive that could be read
	point    string   // where a device's file system is mounted by us, or ""
	fresh    bool     // blank, but mkfs has been there
}

func (e *entry) refuse(format string, a ...any) {
	e.drive.State, e.drive.Reason = backends.StateRefused, fmt.Sprintf(format, a...)
}

// scan looks at all configured media. Without candidates the costly question
// what is on a medium that is no drive is not asked.
func (b *Backend) scan(ctx context.Context, c *config, candidates bool) ([]*entry, error) {
	sources, err := c.expand()
	if err != nil {
		return nil, err
	}
	all, err := mounts()
	if err != nil {
		return nil, err
	}
	var out []*entry
	type thing struct {
		kind     mediumKind
		dev, ino uint64
	}
	seen := map[thing]bool{}
	for _, s := range sources {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		m, err := c.look(s, all)
		e := &entry{medium: m}
		e.drive = backends.Drive{Source: s.path, Serial: m.serial, Class: m.class, Size: m.size}
		if err != nil {
			e.drive.Size = 0
			e.refuse("%v", err)
			out = append(out, e)
			continue
		}
		if t := (thing{m.kind, m.dev, m.ino}); seen[t] {
			continue // another name of it
		} else {
			seen[t] = true
		}
		if m.kind == dirMedium {
			b.classifyDir(c, e, all)
		} else if err := b.classifyDevice(ctx, c, e, all, candidates); err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	refuseCopies(out)
	return out, nil
}

// refuseCopies: of several media with one identity none is used, except one that
// is attached already (invariant 2).
func refuseCopies(all []*entry) {
	byID := map[backends.DriveID][]*entry{}
	for _, e := range all {
		if e.drive.ID != "" {
			byID[e.drive.ID] = append(byID[e.drive.ID], e)
		}
	}
	for id, same := range byID {
		if len(same) < 2 {
			continue
		}
		var paths []string
		for _, e := range same {
			paths = append(paths, e.path)
		}
		for _, e := range same {
			if e.drive.Node == "" {
				e.refuse("the identity of drive %s is on %s: one is a copy; take the copy out of paths or away", id, strings.Join(paths, " and on "))
			}
		}
	}
}

// known fills in what the identity says.
func (e *entry) known(id identity) {
	e.identity = id
	e.drive.ID, e.drive.Created, e.drive.Size, e.drive.State = id.ID, id.Created, id.Size, backends.StateReady
	if id.Spec.Class != "" {
		e.drive.Class = id.Spec.Class
	}
	if id.Serial != "" && e.serial != "" && id.Serial != e.serial {
		e.drive.Reason = fmt.Sprintf("serial is %s, was %s when the drive was made: moved to another device?", e.serial, id.Serial)
	}
}

func (b *Backend) classifyDir(c *config, e *entry, all []mounted) {
	if within(realPath(e.path), realPath(c.runDir)) {
		e.refuse("lies in the agent's run directory")
		return
	}
	id, err := readIdentity(e.path)
	switch {
	case err == nil:
		e.known(id)
		e.drive.MaxSize = c.cut(id.Size + max(e.size-(id.Size-used(e.path)), 0))
		if target, err := os.Readlink(c.marker(id.ID)); err == nil && target == e.path {
			e.drive.Node = c.node
		}
		if readOnly(e.path) {
			e.drive.State, e.drive.Reason = backends.StateFailed, "its file system is read-only"
		}
	case !errors.Is(err, fs.ErrNotExist):
		e.refuse("%v", err)
	default:
		e.drive.Size = c.cut(e.size)
		e.blankDir(all)
	}
}

// blankDir decides whether a directory without identity may be taken.
func (e *entry) blankDir(all []mounted) {
	names, err := os.ReadDir(e.path)
	if err != nil {
		e.refuse("%v", err)
		return
	}
	for _, n := range names {
		switch {
		case strings.HasPrefix(n.Name(), identityName+".tmp-"): // a making that was cut off
		case n.Name() == "lost+found" && n.IsDir():
			if inner, err := os.ReadDir(filepath.Join(e.path, n.Name())); err == nil && len(inner) > 0 {
				e.refuse("the directory is not empty (lost+found has files)")
				return
			}
		default:
			e.refuse("the directory is not empty and not a drive; only empty ones are taken")
			return
		}
	}
	switch p := mountBelow(all, e.path); {
	case p != "":
		e.refuse("something is mounted inside, at %s", p)
	case readOnly(e.path):
		e.refuse("its file system is read-only")
	case e.drive.Size < backends.MinDriveSize:
		e.refuse("too small: %d bytes after the reserve, need %d", e.drive.Size, int64(backends.MinDriveSize))
	default:
		e.drive.State = backends.StateBlank
	}
}

func mountBelow(all []mounted, dir string) string {
	dir = realPath(dir)
	for _, m := range all {
		if m.point != dir && within(m.point, dir) {
			return m.point
		}
	}
	return ""
}

func realPath(p string) string {
	if r, err := filepath.EvalSymlinks(p); err == nil {
		return r
	}
	return p
}

func readOnly(dir string) bool {
	var st unix.Statfs_t
	return unix.Statfs(dir, &st) == nil && st.Flags&unix.ST_RDONLY != 0
}

// used is what a drive in a directory takes up now: sizes, not contents, are
// looked at. A file that vanishes meanwhile counts nothing.
func used(dir string) int64 {
	var sum int64
	_ = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil && unix.Lstat(path, &st) == nil {
			sum += st.Blocks * 512
		}
		return nil
	})
	return sum
}

func (b *Backend) classifyDevice(ctx context.Context, c *config, e *entry, all []mounted, candidates bool) error {
	sb, ok, err := e.readXFS()
	if err != nil {
		e.refuse("cannot be read: %v", err)
		return ctx.Err()
	}
	if ok && sb.label == labelDrive && !sb.inProgress && sb.id.Check() == nil {
		b.classifyDrive(ctx, c, e, sb.id, all)
		return nil
	}
	if !candidates {
		return nil
	}
	use, err := e.inUse(all)
	switch {
	case err != nil:
		e.refuse("cannot be opened: %v", err)
		return ctx.Err()
	case use != "":
		e.refuse("%s", use)
		return nil
	case e.size < minDevice:
		e.refuse("too small: %d bytes, need %d", e.size, int64(minDevice))
		return nil
	case e.kind == blockMedium && isPartition(e.sys) && !e.exact:
		e.refuse("a partition is taken only when paths names it exactly, not by a pattern")
		return nil
	}
	what, fresh, err := e.foreign(ctx)
	switch {
	case err != nil && ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		e.refuse("cannot be examined: %v", err)
	case what != "" && !slices.Contains(c.ForceFormat, e.path):
		e.refuse("holds %s; if that may be destroyed, list %s in force_format", what, e.path)
	default:
		e.drive.State, e.fresh = backends.StateBlank, fresh || what != ""
		// What XFS itself needs is known after mkfs; this is a close lower bound.
		e.drive.Size = c.cut(max(e.size-e.size/100-(80<<20)-c.reserve(e.size), 0))
		if what != "" {
			e.drive.Reason = "holds " + what + ", which Create will destroy (force_format)"
		}
	}
	return nil
}

// classifyDrive: the first sector says that this is drive id.
func (b *Backend) classifyDrive(ctx context.Context, c *config, e *entry, id backends.DriveID, all []mounted) {
	e.drive.ID, e.drive.State, e.drive.Size = id, backends.StateReady, 0
	point := c.marker(id)
	if m, ok := at(all, point); ok && e.nodeDev != 0 && m.dev == e.nodeDev {
		e.point, e.drive.Node = point, c.node
		got, err := readIdentity(point)
		switch {
		case err != nil:
			e.failed(b, "cannot be read: %v", err)
		case got.ID != id:
			e.failed(b, "identity file says drive %s, super block %s", got.ID, id)
		default:
			b.remember(got)
			e.known(got)
			if m.readOnly {
				e.drive.State, e.drive.Reason = backends.StateFailed, "its file system has become read-only"
			}
		}
		return
	}
	for _, m := range all {
		if e.nodeDev != 0 && m.dev == e.nodeDev && !within(m.point, c.peekDir()) {
			e.refuse("mounted at %s, not by this backend", m.point)
			return
		}
	}
	if got, ok := b.recall(id); ok {
		e.known(got)
		return
	}
	got, err := c.peek(ctx, e.source)
	switch {
	case err != nil:
		e.failed(b, "its identity cannot be read without attaching it: %v", err)
	case got.ID != id:
		e.refuse("identity file says drive %s, super block %s", got.ID, id)
	default:
		b.remember(got)
		e.known(got)
	}
}

// failed marks a drive as failed, with what is remembered of it.
func (e *entry) failed(b *Backend, format string, a ...any) {
	if got, ok := b.recall(e.drive.ID); ok {
		e.known(got)
	}
	e.drive.State, e.drive.Reason = backends.StateFailed, fmt.Sprintf(format, a...)
}

// marker is where a drive of that ID is, or would be, attached.
func (c *config) marker(id backends.DriveID) string {
	return filepath.Join(c.runDir, "drives", string(id))
}
