package config

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// Change is one setting that differs between two configurations.
type Change struct {
	Key string // "log.level", `backend "local" (pool fast)`
	Old string // as it was; "" when it was not there
	New string // as it shall be; "" when it shall not be there
}

// String prints the change in one line.
func (c Change) String() string {
	switch {
	case c.Old == "" && c.New == "":
		return c.Key + ": changed"
	case c.Old == "":
		return fmt.Sprintf("%s: added: %s", c.Key, c.New)
	case c.New == "":
		return fmt.Sprintf("%s: removed, was %s", c.Key, c.Old)
	}
	return fmt.Sprintf("%s: %s, was %s", c.Key, c.New, c.Old)
}

// Changes is what a reload finds.
type Changes struct {
	// Live can be taken over by a running agent: set them in the old Config by
	// using the new one for these keys.
	Live []Change
	// Restart take effect at the next start only.
	Restart []Change

	// Added are the backends among Live, to be started.
	Added []Backend
}

// Diff compares the running configuration with a new one. What a plugin is
// configured with is never shown.
func Diff(old, next *Config) Changes {
	var out Changes
	compare := func(b *block, prefix string, o, n any) {
		ov, nv := fields(o), fields(n)
		for _, a := range b.attrs {
			if reflect.DeepEqual(ov[a.Name], nv[a.Name]) {
				continue
			}
			c := Change{Key: prefix + a.Name, Old: show(ov[a.Name]), New: show(nv[a.Name])}
			if b.isLive(a.Name) {
				out.Live = append(out.Live, c)
			} else {
				out.Restart = append(out.Restart, c)
			}
		}
	}
	compare(root, "", old, next)
	for _, p := range []struct {
		name string
		o, n any
	}{
		{"log", &old.Log, &next.Log}, {"ports", &old.Ports, &next.Ports}, {"cluster", &old.Cluster, &next.Cluster},
		{"etcd", &old.Etcd, &next.Etcd}, {"defaults", &old.Defaults, &next.Defaults}, {"timeouts", &old.Timeouts, &next.Timeouts},
	} {
		compare(root.child(p.name), p.name+".", p.o, p.n)
	}
	if !reflect.DeepEqual(old.Docker, next.Docker) {
		out.Restart = append(out.Restart, Change{Key: `runtime "docker"`, Old: showDocker(old.Docker), New: showDocker(next.Docker)})
	}
	if !slices.Equal(old.Plugins, next.Plugins) {
		out.Live = append(out.Live, Change{Key: "plugin"})
	}
	out.backends(old.Backends, next.Backends)
	return out
}

// backends pairs those of the same kind and pool in their order: what is new
// can be started at once; what changed or went away waits for a restart,
// because its drives are open.
func (out *Changes) backends(old, next []Backend) {
	byName := func(all []Backend) map[string][]Backend {
		m := map[string][]Backend{}
		for _, b := range all {
			name := fmt.Sprintf("backend %q (pool %s)", b.Kind, b.Pool)
			m[name] = append(m[name], b)
		}
		return m
	}
	o, n := byName(old), byName(next)
	names := map[string]bool{}
	for k := range o {
		names[k] = true
	}
	for k := range n {
		names[k] = true
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		was, is := o[name], n[name]
		var fresh []Backend
		for _, b := range is { // those that are unchanged, wherever they stand
			if i := slices.IndexFunc(was, b.same); i >= 0 {
				was = slices.Delete(slices.Clone(was), i, i+1)
				continue
			}
			fresh = append(fresh, b)
		}
		for i := range max(len(was), len(fresh)) {
			switch {
			case i >= len(was):
				out.Live = append(out.Live, Change{Key: name, New: "configured at " + fresh[i].At()})
				out.Added = append(out.Added, fresh[i])
			case i >= len(fresh):
				out.Restart = append(out.Restart, Change{Key: name, Old: "configured at " + was[i].At()})
			default:
				out.Restart = append(out.Restart, Change{Key: name})
			}
		}
	}
}

// fields lists a struct's tagged fields by key.
func fields(p any) map[string]any {
	v := reflect.ValueOf(p).Elem()
	out := map[string]any{}
	for i := range v.NumField() {
		if tag := v.Type().Field(i).Tag.Get("config"); tag != "" {
			out[tag] = v.Field(i).Interface()
		}
	}
	return out
}

func show(v any) string {
	switch v := v.(type) {
	case string:
		return fmt.Sprintf("%q", v)
	case []string:
		return fmt.Sprintf("%q", v)
	case map[string]string:
		var parts []string
		for _, k := range slices.Sorted(maps.Keys(v)) {
			parts = append(parts, k+"="+v[k])
		}
		return "{" + strings.Join(parts, ", ") + "}"
	}
	return fmt.Sprint(v)
}

func showDocker(d *Docker) string {
	if d == nil {
		return ""
	}
	return fmt.Sprintf("socket %q", d.Socket)
}
