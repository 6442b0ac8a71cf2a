package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/moraine-storage/moraine/plugins/schema"
)

// Override is one flag: it counts more than any file.
type Override struct {
	Key   string // of an attribute: "data_dir", "log.level"
	Value string // as given
	From  string // the flag's name, for messages: "-data-dir"
}

// Load reads files and folders (their *.hcl, by name) in order, then the
// overrides. With diagnostics the Config is nil. No path at all is the empty
// configuration.
func Load(paths []string, overrides []Override) (*Config, Diagnostics) {
	r := &report{}
	all := &entry{spec: root, values: map[string]any{}, where: map[string]place{}}
	for i, name := range expand(r, paths) {
		src := source{name: name, order: i}
		text, err := readFile(name)
		if err != nil {
			r.add(place{file: name, order: i}, "%s", err)
			continue
		}
		if e := parse(r, src, text); e != nil {
			all.merge(r, e)
		}
	}
	return finish(r, all, overrides)
}

// Parse reads one configuration from memory; name stands for the file in
// messages.
func Parse(name string, text []byte, overrides []Override) (*Config, Diagnostics) {
	r := &report{}
	all := &entry{spec: root, values: map[string]any{}, where: map[string]place{}}
	if e := parse(r, source{name: name}, text); e != nil {
		all.merge(r, e)
	}
	return finish(r, all, overrides)
}

func finish(r *report, all *entry, overrides []Override) (*Config, Diagnostics) {
	for i, o := range overrides {
		all.override(r, o, filesMax+i)
	}
	cfg := Default()
	cfg.fill(r, all)
	cfg.complete(r)
	cfg.validate(r)
	if len(r.ds) > 0 {
		return nil, r.done()
	}
	return cfg, nil
}

// expand lists the files behind the paths.
func expand(r *report, paths []string) []string {
	var files []string
	for i, p := range paths {
		st, err := os.Stat(p)
		switch {
		case err != nil:
			r.add(place{file: p, order: i}, "%s", reason(err))
			continue
		case !st.IsDir():
			files = append(files, p)
			continue
		}
		inside, err := os.ReadDir(p) // sorted by name
		if err != nil {
			r.add(place{file: p, order: i}, "%s", reason(err))
			continue
		}
		found := 0
		for _, f := range inside {
			if !f.IsDir() && strings.HasSuffix(f.Name(), ".hcl") && !strings.HasPrefix(f.Name(), ".") {
				files = append(files, filepath.Join(p, f.Name()))
				found++
			}
		}
		if found == 0 {
			r.add(place{file: p, order: i}, "no *.hcl file in this folder")
		}
	}
	if len(files) > filesMax {
		r.add(place{file: files[filesMax]}, "more than %d files", filesMax)
		files = files[:filesMax]
	}
	return files
}

// readFile reads at most a byte more than parse accepts; not from a device or
// a pipe, which might never end.
func readFile(name string) ([]byte, error) {
	st, err := os.Stat(name)
	if err != nil {
		return nil, errors.New(reason(err))
	}
	if !st.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	if st.Size() > fileBytesMax {
		return nil, fmt.Errorf("file of %d bytes: at most %d", st.Size(), fileBytesMax)
	}
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, errors.New(reason(err))
	}
	return text, nil
}

// reason is the cause without the path, which stands in front already.
func reason(err error) string {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return fmt.Sprintf("%s: %v", pe.Op, pe.Err)
	}
	return err.Error()
}

// override sets one attribute from a flag.
func (e *entry) override(r *report, o Override, order int) {
	at := place{file: o.From, order: order}
	target, key := e, o.Key
	if name, rest, ok := strings.Cut(o.Key, "."); ok {
		spec := root.child(name)
		if spec == nil || spec.label != "" {
			r.add(at, "unknown key %q", o.Key)
			return
		}
		target, key = e.only(spec), rest
	}
	a, ok := target.spec.attr(key)
	if !ok {
		r.add(at, "unknown key %q%s", o.Key, suggest(key, target.spec.words()))
		return
	}
	v, err := a.Check(fromText(a, o.Value))
	if err != nil {
		r.add(at, "%s", explain(a, o.Value, err))
		return
	}
	target.values[key], target.where[key] = v, at
}

// only returns the block of that kind, made if it is not there.
func (e *entry) only(spec *block) *entry {
	for _, b := range e.blocks {
		if b.spec == spec {
			return b
		}
	}
	b := &entry{spec: spec, values: map[string]any{}, where: map[string]place{}}
	e.blocks = append(e.blocks, b)
	return b
}

// fromText gives a flag's text the type of its attribute, if it has that form.
func fromText(a schema.Attribute, text string) any {
	switch a.Type {
	case schema.Number:
		if n, err := strconv.ParseInt(text, 10, 64); err == nil {
			return n
		}
	case schema.Bool:
		if b, err := strconv.ParseBool(text); err == nil {
			return b
		}
	case schema.List:
		if text == "" {
			return []string{}
		}
		return strings.Split(text, ",")
	case schema.Map:
		m := map[string]string{}
		for _, kv := range strings.Split(text, ",") {
			k, v, ok := strings.Cut(kv, "=")
			if !ok {
				return text // refused by Check as no map
			}
			m[k] = v
		}
		return m
	}
	return text
}
