package config

import (
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

const nameRule = "want 1 to 128 letters, digits, '_', '.', '-', with a letter or digit at both ends"

var (
	nameRE  = regexp.MustCompile(`^[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,126}[A-Za-z0-9])?$`)
	shaRE   = regexp.MustCompile(`^[0-9a-f]{64}$`)
	labelRE = regexp.MustCompile(`^[A-Za-z0-9](?:[A-Za-z0-9_./-]{0,254}[A-Za-z0-9])?$`)
)

// validate checks what the table cannot: forms of text, and settings against
// each other.
func (c *Config) validate(r *report) {
	bad := func(key, format string, args ...any) {
		r.add(c.where[key], "%q: "+format, append([]any{key}, args...)...)
	}

	if c.where["name"].file != "" && !nameRE.MatchString(c.Name) {
		bad("name", nameRule)
	}
	for key, p := range map[string]string{"data_dir": c.DataDir, "run_dir": c.RunDir, "plugin_dir": c.PluginDir, "address": c.Address} {
		if _, set := c.where[key]; set && (!filepath.IsAbs(p) || filepath.Clean(p) != p || p == "/") {
			bad(key, `must be an absolute path without "..", "." or a slash at the end, such as "/var/lib/moraine"`)
		}
	}
	if c.DataDir == c.RunDir {
		bad("run_dir", "is the same as data_dir: a boot may empty the one and must not empty the other")
	}
	if len(c.RunDir) > runDirMax {
		bad("run_dir", "has %d bytes: at most %d, because sockets below it have a length limit of %d", len(c.RunDir), runDirMax, socketPathMax)
	}
	if _, set := c.where["address"]; set && len(c.Address) > socketPathMax {
		bad("address", "has %d bytes: a socket's path has at most %d", len(c.Address), socketPathMax)
	}
	if ip, err := netip.ParseAddr(c.Bind); err != nil || ip.Zone() != "" {
		bad("bind", `must be an IP address, such as "10.0.0.1"`)
	}
	c.validateLabels(bad)
	c.validateCluster(bad)
	c.validateParts(r, bad)
	c.validateVolumes(bad)
}

func (c *Config) validateLabels(bad func(string, string, ...any)) {
	if len(c.Labels) > labelsMax {
		bad("labels", "%d labels: at most %d", len(c.Labels), labelsMax)
	}
	for k, v := range c.Labels {
		if !labelRE.MatchString(k) || len(v) > labelBytesMax || strings.ContainsAny(v, "\x00\n") {
			bad("labels", "label %.80q: a key has 1 to 256 letters, digits, '_', '.', '-', '/', a value at most %d bytes on one line", k, labelBytesMax)
		}
	}
}

func (c *Config) validateCluster(bad func(string, string, ...any)) {
	c.validateJoin(bad)
	for _, ep := range c.Etcd.Endpoints {
		u, err := url.Parse(ep)
		ok := err == nil && (u.Scheme == "unix" && filepath.IsAbs(u.Path) ||
			(u.Scheme == "http" || u.Scheme == "https") && u.Hostname() != "" && u.Port() != "" && u.Path == "")
		if !ok {
			bad("etcd.endpoints", `an entry is no endpoint: want "https://host:2379", "http://host:2379" or "unix:///path"`)
		}
	}
	if _, written := c.where["etcd"]; written && len(c.Etcd.Endpoints) == 0 {
		bad("etcd", "has no endpoints: name those of your etcd, or leave the block out to use the store inside the agent")
	}
	if (c.Etcd.CertFile == "") != (c.Etcd.KeyFile == "") {
		bad("etcd.cert_file", "cert_file and key_file belong together: set both or none")
	}
	if (c.Etcd.Username == "") != (c.Etcd.PasswordFile == "") {
		bad("etcd.username", "username and password_file belong together: set both or none")
	}
	if p := c.Etcd.Prefix; p != "" && (!strings.HasSuffix(p, "/") || len(p) > 64) {
		bad("etcd.prefix", `must be empty or end in a slash, and have at most 64 bytes: "moraine/"`)
	}
	ports := map[int]string{}
	for _, p := range []struct {
		key string
		n   int
	}{
		{"ports.api", c.Ports.API}, {"ports.nbd", c.Ports.NBD}, {"ports.metrics", c.Ports.Metrics},
		{"ports.etcd_peer", c.Ports.EtcdPeer}, {"ports.etcd_client", c.Ports.EtcdClient}, {"ports.streams", c.Ports.Streams},
	} {
		if other, taken := ports[p.n]; taken {
			key := p.key
			if _, set := c.where[key]; !set {
				key = other // report at the one that a person wrote
			}
			bad(key, "%s and %s are both %d", other, p.key, p.n)
		}
		ports[p.n] = p.key
	}
}

// validateJoin checks what concerns other nodes.
func (c *Config) validateJoin(bad func(string, string, ...any)) {
	join, outside := len(c.Cluster.Join) > 0, len(c.Etcd.Endpoints) > 0
	for _, a := range c.Cluster.Join {
		host, port, err := net.SplitHostPort(a)
		if n, perr := strconv.Atoi(port); err != nil || perr != nil || host == "" || n < 1 || n > 65535 {
			bad("cluster.join", `%q is no agent's address: want host:port, such as "10.0.0.2:7420"`, a)
		}
	}
	switch {
	case join && outside:
		bad("cluster.join", "this release joins clusters that keep their store inside the agents: leave the block etcd out, or join")
	case join && !c.Reachable():
		bad("cluster.join", "needs bind, the IP address at which the other nodes reach this one")
	case join && c.Cluster.TokenFile == "":
		bad("cluster.token_file", "is missing: make a token on a node of the cluster (moraine node token create), write it into a file, and name that")
	case !join && c.Cluster.TokenFile != "":
		bad("cluster.token_file", "is of no use without join")
	case !join && !c.Cluster.Server && !outside:
		bad("cluster.server", "is false, and there is nobody to join: somebody must keep the cluster store")
	}
	if f := c.Cluster.TokenFile; f != "" && !filepath.IsAbs(f) {
		bad("cluster.token_file", "must be an absolute path")
	}
	if ip, err := netip.ParseAddr(c.Bind); c.Reachable() && err == nil && ip.IsUnspecified() {
		bad("bind", "stands for all addresses: want the one at which other nodes reach this one")
	}
}

// Reachable says whether other nodes can reach this one: only then it listens
// for them.
func (c *Config) Reachable() bool {
	_, written := c.where["bind"]
	return written
}

func (c *Config) validateParts(r *report, bad func(string, string, ...any)) {
	for _, b := range c.Backends {
		if !nameRE.MatchString(b.Pool) {
			r.add(b.at, `backend %q: "pool": %s`, b.Kind, nameRule)
		}
	}
	for _, p := range c.Plugins {
		if p.SHA256 != "" && !shaRE.MatchString(p.SHA256) {
			r.add(c.where[`plugin "`+p.Name+`".sha256`], `plugin %q: "sha256": want 64 lower-case hex digits, as sha256sum prints them`, p.Name)
		}
	}
	if c.Docker != nil {
		switch s := c.Docker.Socket; {
		case !filepath.IsAbs(s) || filepath.Clean(s) != s:
			bad("docker.socket", "must be an absolute path")
		case len(s) > socketPathMax:
			bad("docker.socket", "has %d bytes: a socket's path has at most %d", len(s), socketPathMax)
		case s == c.Address:
			bad("docker.socket", "is the API's socket: they speak different protocols")
		case !strings.HasSuffix(s, ".sock"):
			bad("docker.socket", "must end in .sock: Docker looks for that, and takes what stands before it as the driver's name")
		}
	}
}

func (c *Config) validateVolumes(bad func(string, string, ...any)) {
	d, t := c.Defaults, c.Timeouts
	if d.Pool != "" && !nameRE.MatchString(d.Pool) {
		bad("defaults.pool", nameRule)
	}
	if d.FS == "xfs" && d.Size < 300<<20 {
		bad("defaults.size", "is too small for xfs, which needs 300MiB; use ext4")
	}
	if d.Replicas > 0 && d.MinInSync > d.Replicas {
		bad("defaults.min_in_sync", "is %d, more than the %d replicas", d.MinInSync, d.Replicas)
	}
	if d.Extent&(d.Extent-1) != 0 {
		bad("defaults.extent", "must be a power of two, such as 64KiB")
	}
	if d.Region&(d.Region-1) != 0 || d.Region < d.Extent {
		bad("defaults.region", "must be a power of two and no smaller than extent, such as 1MiB")
	}
	if t.NBD <= t.Hold {
		key := "timeouts.nbd_timeout"
		if _, set := c.where[key]; !set {
			key = "timeouts.hold"
		}
		bad(key, "nbd_timeout (%v) must be longer than hold (%v): else the kernel gives up first", t.NBD, t.Hold)
	}
	if t.ReplicaAnswer > t.Hold {
		bad("timeouts.replica_deadline", "is %v, longer than hold (%v): else I/O fails before a silent replica is dropped", t.ReplicaAnswer, t.Hold)
	}
	for key, v := range map[string]time.Duration{"timeouts.nbd_timeout": t.NBD, "timeouts.dead_connection_timeout": t.DeadConnection} {
		if v%time.Second != 0 {
			bad(key, "must be whole seconds: the kernel counts in them")
		}
	}
}

// HostPort joins the bind address and a port.
func (c *Config) HostPort(port int) string { return net.JoinHostPort(c.Bind, strconv.Itoa(port)) }
