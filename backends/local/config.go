package local

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moraine-storage/moraine/backends"
	"github.com/moraine-storage/moraine/plugins/errdefs"
	"github.com/moraine-storage/moraine/plugins/schema"
)

// options is the configuration block.
type options struct {
	Paths       []string `config:"paths"`
	Class       string   `config:"class"`
	Size        int64    `config:"size"`
	Reserve     int64    `config:"reserve"`
	ForceFormat []string `config:"force_format"`
}

var blockSchema = schema.Schema{Attributes: []schema.Attribute{
	{Name: "paths", Type: schema.List, Required: true, Min: schema.Bound(1), Max: schema.Bound(maxMedia),
		Doc: "Directories, files and block devices to offer, as absolute paths or patterns (/dev/disk/by-id/nvme-*). Empty directories and blank devices become drives; anything else is refused."},
	{Name: "class", Type: schema.String, Max: schema.Bound(64),
		Doc: "Class of the drives, for people and placement; by default nvme, ssd, hdd, file or dir."},
	{Name: "size", Type: schema.Size, Min: schema.Bound(backends.MinDriveSize), Max: schema.Bound(backends.MaxDriveSize),
		Doc: "Most bytes to use of each path; by default all but the reserve."},
	{Name: "reserve", Type: schema.Size, Max: schema.Bound(backends.MaxDriveSize),
		Doc: "Bytes to leave free on each file system; by default 2 %, at least 16 MiB and at most 4 GiB."},
	{Name: "force_format", Type: schema.List, Max: schema.Bound(maxMedia),
		Doc: "Block devices and files, by exact path, whose present contents may be destroyed. Never applies to what is mounted or otherwise in use, nor to directories."},
}}

// config is a configuration in force.
type config struct {
	options
	node     backends.NodeID
	instance string
	runDir   string
}

func newConfig(c backends.Config) (*config, error) {
	checked, err := blockSchema.Check(c.Options)
	if err != nil {
		return nil, fmt.Errorf("configure local: %w", err)
	}
	out := &config{node: c.Node, instance: c.Instance, runDir: realPath(filepath.Clean(c.RunDir))} // as mountinfo will show it
	if err := schema.Decode(checked, &out.options); err != nil {
		return nil, fmt.Errorf("configure local: %w", err)
	}
	if err := c.Node.Check(); err != nil {
		return nil, fmt.Errorf("configure local: %w", err)
	}
	if !filepath.IsAbs(c.RunDir) {
		return nil, fmt.Errorf("configure local: %w: run directory must be an absolute path", errdefs.ErrInvalidArgument)
	}
	return out, out.validate()
}

// validate names entries by position: a configured value does not go into an error.
func (c *config) validate() error {
	bad := func(list string, n int, why string) error {
		return fmt.Errorf("configure local: %w", &schema.Error{Attribute: list, Problem: fmt.Sprintf("entry %d %s", n+1, why)})
	}
	for n, p := range c.Paths {
		if !filepath.IsAbs(p) || strings.ContainsRune(p, 0) {
			return bad("paths", n, "must be an absolute path")
		}
		if _, err := filepath.Match(p, ""); err != nil {
			return bad("paths", n, "is not a valid pattern")
		}
		if within(filepath.Clean(p), c.runDir) {
			return bad("paths", n, "lies in the agent's run directory")
		}
		c.Paths[n] = filepath.Clean(p)
	}
	for n, p := range c.ForceFormat {
		p = filepath.Clean(p)
		c.ForceFormat[n] = p
		if !filepath.IsAbs(p) || isPattern(p) {
			return bad("force_format", n, "must be an absolute path without a pattern")
		}
		covered := slices.ContainsFunc(c.Paths, func(q string) bool {
			ok, err := filepath.Match(q, p)
			return q == p || ok && err == nil
		})
		if !covered {
			return bad("force_format", n, "is not among paths")
		}
	}
	return nil
}

func isPattern(p string) bool { return strings.ContainsAny(p, `*?[\`) }

// within says whether path is dir or below it.
func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// source is one path to look at.
type source struct {
	path  string
	exact bool // named by itself, not only matched by a pattern
}

// expand turns paths into sources, in the order of configuration, patterns
// sorted. A plain path is a source whether it exists or not.
func (c *config) expand() ([]source, error) {
	var out []source
	seen := map[string]int{}
	take := func(path string, exact bool) {
		if n, ok := seen[path]; ok {
			out[n].exact = out[n].exact || exact
			return
		}
		seen[path] = len(out)
		out = append(out, source{path, exact})
	}
	for _, p := range c.Paths {
		if !isPattern(p) {
			take(p, true)
			continue
		}
		matches, err := filepath.Glob(p)
		if err != nil {
			return nil, fmt.Errorf("%w: paths: not a valid pattern", errdefs.ErrInvalidArgument)
		}
		slices.Sort(matches)
		for _, m := range matches {
			take(m, false)
		}
	}
	if len(out) > maxMedia {
		return nil, fmt.Errorf("%w: paths match %d media, more than %d", errdefs.ErrResourceExhausted, len(out), maxMedia)
	}
	return out, nil
}

// reserve is what must stay free on a file system of total bytes.
func (c *config) reserve(total int64) int64 {
	if c.Reserve > 0 {
		return c.Reserve
	}
	return min(max(total/reserveShare, reserveMin), reserveMax)
}

// cut bounds a size by the configured one.
func (c *config) cut(size int64) int64 {
	if c.Size > 0 {
		return min(size, c.Size)
	}
	return size
}
