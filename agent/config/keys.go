package config

import (
	"slices"
	"time"

	"github.com/moraine-storage/moraine/plugins/schema"
)

// block describes what may be written in one block. The attributes' names are
// the `config` tags of the struct it fills.
type block struct {
	name   string
	label  string   // what its label is called in messages; "": it has none
	labels []string // the only labels there are; nil: any name
	many   bool     // may be there more than once (with one label: once per label otherwise)
	attrs  []schema.Attribute
	blocks []*block
	raw    bool // kept as it is, for somebody else to check

	// live names attributes (or "*") that a running agent can take over.
	live []string
}

func text(name, doc string) schema.Attribute {
	return schema.Attribute{Name: name, Type: schema.String, Doc: doc}
}

func choice(name, doc string, allowed ...string) schema.Attribute {
	return schema.Attribute{Name: name, Type: schema.String, Doc: doc, Allowed: allowed}
}

func whole(name, doc string, lo, hi int64) schema.Attribute {
	return schema.Attribute{Name: name, Type: schema.Number, Doc: doc, Min: &lo, Max: &hi}
}

func bytes(name, doc string, lo, hi int64) schema.Attribute {
	return schema.Attribute{Name: name, Type: schema.Size, Doc: doc, Min: &lo, Max: &hi}
}

func span(name, doc string, lo, hi time.Duration) schema.Attribute {
	return schema.Attribute{Name: name, Type: schema.Duration, Doc: doc, Min: schema.Bound(int64(lo)), Max: schema.Bound(int64(hi))}
}

func port(name, doc string) schema.Attribute { return whole(name, doc, 1, 65535) }

// root is the whole configuration.
var root = &block{
	attrs: []schema.Attribute{
		text("name", "name of this node; default: the host name"),
		text("data_dir", "what must survive a restart"),
		text("run_dir", "sockets and mount points"),
		text("bind", "IP address on which other nodes reach this one"),
		text("address", "path of the API's unix socket; default: agent.sock in run_dir"),
		{Name: "labels", Type: schema.Map, Doc: "where the node is: zone, rack"},
		text("plugin_dir", "where external plugins are; default: plugins in data_dir"),
	},
	live: []string{"labels"},
	blocks: []*block{
		{name: "log", attrs: []schema.Attribute{
			choice("level", "least severe lines that are written", "trace", "debug", "info", "warn", "error"),
			choice("format", "for people or for programs", "text", "json"),
		}, live: []string{"level"}},
		{name: "ports", attrs: []schema.Attribute{
			port("api", "API and web page"), port("nbd", "replicas"), port("metrics", "metrics"),
			port("etcd_peer", "cluster store, between its members"), port("etcd_client", "cluster store, from other agents"),
			port("streams", "files and layers"),
		}},
		{name: "cluster", attrs: []schema.Attribute{
			{Name: "join", Type: schema.List, Doc: "agents (host:port) of the cluster to join"},
			text("token_file", "file with the token to join with"),
			{Name: "server", Type: schema.Bool, Doc: "whether this node keeps a copy of the cluster store"},
		}},
		{name: "etcd", attrs: []schema.Attribute{
			{Name: "endpoints", Type: schema.List, Doc: "URLs of an etcd outside the agent; none: the one inside"},
			text("ca_file", "authority of the servers' certificates"),
			text("cert_file", "certificate of this node"), text("key_file", "its key"),
			text("username", "login; none: no login"), text("password_file", "file with the password"),
			text("prefix", "before every key, so that a store can be shared"),
		}},
		{name: "backend", label: "KIND", many: true, attrs: []schema.Attribute{
			text("pool", "pool that its drives join"),
		}, blocks: []*block{{name: "config", raw: true}}},
		{name: "plugin", label: "NAME", attrs: []schema.Attribute{
			{Name: "sha256", Type: schema.String, Required: true, Doc: "of the executable, 64 hex digits"},
		}, live: []string{"*"}},
		{name: "runtime", label: "KIND", labels: []string{"docker"}, attrs: []schema.Attribute{
			text("socket", "where Docker finds the plugin"),
		}},
		{name: "defaults", attrs: []schema.Attribute{
			bytes("size", "of a volume", 1<<20, 32<<40),
			choice("fs", "file system", "ext4", "xfs", "none"),
			choice("driver", "how a volume reaches the host", "nbd"),
			text("pool", "pool of a volume; empty: any"),
			whole("replicas", "copies of a volume; 0: three, or as many as there are nodes", 0, 16),
			whole("min_in_sync", "copies that must be in sync for writes; 0: one, or two of three and more", 0, 16),
			bytes("extent", "what a store allocates at a time; a power of two", 4<<10, 16<<20),
			bytes("region", "what a dirty bit stands for; a power of two", 64<<10, 64<<20),
		}, live: []string{"*"}},
		{name: "timeouts", attrs: []schema.Attribute{
			span("hold", "I/O waits that long for a replica, then fails", 10*time.Millisecond, time.Hour),
			span("replica_deadline", "a replica that does not answer is dropped", 10*time.Millisecond, 5*time.Minute),
			span("read_lease", "how long a replica answers for what it granted", 10*time.Millisecond, 5*time.Minute),
			span("nbd_timeout", "the kernel's patience with one request; more than hold", time.Second, 24*time.Hour),
			span("dead_connection_timeout", "the kernel's patience with an agent that is gone", time.Second, 24*time.Hour),
			span("node_lease", "a silent node is taken for dead", time.Second, 5*time.Minute),
			span("replace_after", "a lost replica is rebuilt elsewhere", time.Second, 30*24*time.Hour),
			span("stop", "an orderly stop gives up waiting", time.Second, time.Hour),
		}},
	},
}

// later names runtimes that exist in the design but not in this release.
var laterRuntimes = []string{"csi", "containerd", "kubernetes"}

func (b *block) attr(name string) (schema.Attribute, bool) {
	return schema.Schema{Attributes: b.attrs}.Find(name)
}

func (b *block) child(name string) *block {
	for _, c := range b.blocks {
		if c.name == name {
			return c
		}
	}
	return nil
}

// words are all names that may be written in the block.
func (b *block) words() []string {
	var out []string
	for _, a := range b.attrs {
		out = append(out, a.Name)
	}
	for _, c := range b.blocks {
		out = append(out, c.name)
	}
	return out
}

func (b *block) isLive(attr string) bool {
	return slices.Contains(b.live, "*") || slices.Contains(b.live, attr)
}
