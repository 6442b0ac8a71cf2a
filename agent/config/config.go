package config

import (
	"time"
)

// Config is a complete, valid configuration: defaults filled in.
type Config struct {
	// Name of this node in the cluster; unique, fixed once it has joined.
	// Default: the host name.
	Name string `config:"name"`

	// DataDir holds what must survive a restart: the cluster store, the node's
	// identity, attachment files. Default /var/lib/moraine.
	DataDir string `config:"data_dir"`

	// RunDir holds sockets and mount points; it may be empty after a boot.
	// Default /run/moraine.
	RunDir string `config:"run_dir"`

	// Bind is the IP address on which other nodes reach this one. If it is not
	// written, nothing listens for other nodes (see Reachable). Default
	// 127.0.0.1.
	Bind string `config:"bind"`

	// Address is the path of the API's unix socket. Default RunDir/agent.sock.
	Address string `config:"address"`

	// Labels say where the node is (zone, rack), for placement.
	Labels map[string]string `config:"labels"`

	// PluginDir is where external plugins are found. Default DataDir/plugins.
	PluginDir string `config:"plugin_dir"`

	Log      Log
	Ports    Ports
	Cluster  Cluster
	Etcd     Etcd
	Backends []Backend // in order of the files
	Plugins  []Plugin  // pins of external plugins
	Docker   *Docker   // nil: no Docker front end
	Defaults Defaults
	Timeouts Timeouts

	// where tells where each attribute was set ("timeouts.hold"); one that
	// was not set is not there.
	where map[string]place
}

// Log is the block log.
type Log struct {
	Level  string `config:"level"`  // trace, debug, info, warn, error. Default info.
	Format string `config:"format"` // text or json. Default text.
}

// Ports are the TCP ports of this node, all on Bind.
type Ports struct {
	API        int `config:"api"`         // API and web page. Default 7420.
	NBD        int `config:"nbd"`         // replicas. Default 7421.
	Metrics    int `config:"metrics"`     // Default 7422.
	EtcdPeer   int `config:"etcd_peer"`   // Default 7423.
	EtcdClient int `config:"etcd_client"` // Default 7424.
	Streams    int `config:"streams"`     // files and layers. Default 7425.
}

// Cluster is the block cluster.
type Cluster struct {
	// Join lists agents, host:port, one of which is asked to take this node into
	// its cluster at the first start. Later starts know the cluster. None: the
	// first start makes a new cluster.
	Join []string `config:"join"`
	// TokenFile has the token to join with; read at the first start.
	TokenFile string `config:"token_file"`
	// Server lets this node keep a copy of the cluster store, if it is needed;
	// fixed when the node joins. Default true.
	Server bool `config:"server"`
}

// Etcd is the block etcd: a cluster store outside the agent.
type Etcd struct {
	Endpoints    []string `config:"endpoints"`     // none: the store inside the agent
	CAFile       string   `config:"ca_file"`       // authority of the servers' certificates
	CertFile     string   `config:"cert_file"`     // our certificate
	KeyFile      string   `config:"key_file"`      // and its key
	Username     string   `config:"username"`      // "": no login
	PasswordFile string   `config:"password_file"` // read at start; the password has no place in a configuration
	Prefix       string   `config:"prefix"`        // before every key. Default "moraine/".
}

// Backend is one block backend: a source of drives.
type Backend struct {
	Kind string // its label: "local"
	Pool string `config:"pool"` // the pool its drives join. Default "default".

	at   place // of the block
	body body  // of its config block, for Decode
}

// Plugin is one block plugin: what is expected of an external plugin.
type Plugin struct {
	Name   string // its label
	SHA256 string `config:"sha256"` // of the executable, 64 hex digits; another file is not run
}

// Docker is the block runtime "docker".
type Docker struct {
	// Socket is where Docker finds the plugin. Default
	// /run/docker/plugins/moraine.sock.
	Socket string `config:"socket"`
}

// Defaults are for volumes that say nothing else. A volume keeps for ever what
// it was created with.
type Defaults struct {
	Size     int64  `config:"size"`     // bytes. Default 10GiB.
	FS       string `config:"fs"`       // ext4, xfs, none. Default ext4.
	Driver   string `config:"driver"`   // nbd. Default nbd.
	Pool     string `config:"pool"`     // "": any
	Replicas int    `config:"replicas"` // 0: three, or one per node if there are fewer
	// MinInSync is how few replicas may be in sync before writes wait. 0: one,
	// or two with three or more replicas.
	MinInSync int   `config:"min_in_sync"`
	Extent    int64 `config:"extent"` // bytes a store allocates at a time. Default 64KiB.
	Region    int64 `config:"region"` // bytes a dirty bit stands for. Default 1MiB.
}

// Timeouts scale how patient the data path and the control plane are. Tests
// shorten them; people rarely should.
type Timeouts struct {
	Hold           time.Duration `config:"hold"`                    // I/O waits that long for a replica, then EIO. Default 60s.
	ReplicaAnswer  time.Duration `config:"replica_deadline"`        // a replica that does not answer is dropped. Default 2s.
	ReadLease      time.Duration `config:"read_lease"`              // Default 2s.
	NBD            time.Duration `config:"nbd_timeout"`             // the kernel's, per request. Default 90s.
	DeadConnection time.Duration `config:"dead_connection_timeout"` // the kernel waits that long for a new agent. Default 10m.
	NodeLease      time.Duration `config:"node_lease"`              // a silent node is taken for dead. Default 5s.
	ReplaceAfter   time.Duration `config:"replace_after"`           // a lost replica is rebuilt elsewhere. Default 10m.
	Stop           time.Duration `config:"stop"`                    // an orderly stop gives up waiting. Default 30s.
}
