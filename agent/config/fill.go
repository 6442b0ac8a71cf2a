package config

import (
	"path/filepath"

	"github.com/moraine-storage/moraine/plugins/schema"
)

// fill takes the values of the merged files over into the structs.
func (c *Config) fill(r *report, all *entry) {
	c.take(r, all, "", c)
	for _, b := range all.blocks {
		switch b.spec.name {
		case "log":
			c.take(r, b, "log.", &c.Log)
		case "ports":
			c.take(r, b, "ports.", &c.Ports)
		case "cluster":
			c.take(r, b, "cluster.", &c.Cluster)
		case "etcd":
			c.take(r, b, "etcd.", &c.Etcd)
			c.where["etcd"] = b.at
		case "defaults":
			c.take(r, b, "defaults.", &c.Defaults)
		case "timeouts":
			c.take(r, b, "timeouts.", &c.Timeouts)
		case "runtime":
			c.Docker = &Docker{}
			c.take(r, b, "docker.", c.Docker)
		case "plugin":
			p := Plugin{Name: b.label}
			c.take(r, b, `plugin "`+b.label+`".`, &p)
			c.Plugins = append(c.Plugins, p)
		case "backend":
			be := Backend{Kind: b.label, Pool: defaultPool, at: b.at}
			decode(r, b, &be)
			for _, inner := range b.blocks {
				be.body = inner.body
			}
			c.Backends = append(c.Backends, be)
		}
	}
}

// take decodes a block's values into a struct and remembers their places.
func (c *Config) take(r *report, e *entry, prefix string, into any) {
	decode(r, e, into)
	for name, at := range e.where {
		c.where[prefix+name] = at
	}
}

// decode cannot fail for values that the table has checked; if the table and
// the struct disagree, that is reported rather than lost.
func decode(r *report, e *entry, into any) {
	if err := schema.Decode(e.values, into); err != nil {
		r.add(e.at, "%s%s", e.path(), err)
	}
}

// complete fills in what depends on other settings and on the host.
func (c *Config) complete(r *report) {
	if c.Name == "" {
		host, err := hostname()
		if err != nil || !nameRE.MatchString(host) {
			r.add(place{}, "the host name is no name for a node: set name in the configuration: %s", nameRule)
		}
		c.Name = host
	}
	if c.Address == "" {
		c.Address = filepath.Join(c.RunDir, defaultSocketName)
	}
	if c.PluginDir == "" {
		c.PluginDir = filepath.Join(c.DataDir, defaultPluginFolder)
	}
	if c.Docker != nil && c.Docker.Socket == "" {
		c.Docker.Socket = defaultDockerSocket
	}
}
