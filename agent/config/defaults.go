package config

import "time"

// What holds when nothing is configured. Paths below DataDir and RunDir are
// filled in by complete, once those are known.
const (
	defaultDataDir      = "/var/lib/moraine"
	defaultRunDir       = "/run/moraine"
	defaultSocketName   = "agent.sock" // in RunDir
	defaultPluginFolder = "plugins"    // in DataDir
	defaultDockerSocket = "/run/docker/plugins/moraine.sock"
	defaultPool         = "default"
)

// Default returns the configuration of an empty file, but for what depends on
// other settings or on the host (Name, Address, PluginDir).
func Default() *Config {
	return &Config{
		DataDir: defaultDataDir,
		RunDir:  defaultRunDir,
		Bind:    "127.0.0.1",
		Labels:  map[string]string{},
		Log:     Log{Level: "info", Format: "text"},
		Ports:   Ports{API: 7420, NBD: 7421, Metrics: 7422, EtcdPeer: 7423, EtcdClient: 7424, Streams: 7425},
		Cluster: Cluster{Server: true},
		Etcd:    Etcd{Prefix: "moraine/"},
		Defaults: Defaults{
			Size: 10 << 30, FS: "ext4", Driver: "nbd",
			Extent: 64 << 10, Region: 1 << 20,
		},
		Timeouts: Timeouts{
			Hold:           60 * time.Second,
			ReplicaAnswer:  2 * time.Second,
			ReadLease:      2 * time.Second,
			NBD:            90 * time.Second,
			DeadConnection: 10 * time.Minute,
			NodeLease:      5 * time.Second,
			ReplaceAfter:   10 * time.Minute,
			Stop:           30 * time.Second,
		},
		where: map[string]place{},
	}
}
