package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	"github.com/moraine-storage/moraine/agent/apiserver"
	"github.com/moraine-storage/moraine/agent/cluster"
	"github.com/moraine-storage/moraine/agent/cluster/records"
	"github.com/moraine-storage/moraine/agent/config"
	"github.com/moraine-storage/moraine/agent/drive"
	"github.com/moraine-storage/moraine/agent/event"
	"github.com/moraine-storage/moraine/agent/membership"
	"github.com/moraine-storage/moraine/agent/operation"
	"github.com/moraine-storage/moraine/agent/version"
	"github.com/moraine-storage/moraine/agent/volume"
	"github.com/moraine-storage/moraine/backends"
	"github.com/moraine-storage/moraine/backends/builtin"
	"github.com/moraine-storage/moraine/drivers/nbd/nbdserver"
	"github.com/moraine-storage/moraine/plugins/errdefs"
	"github.com/moraine-storage/moraine/plugins/host"
	"github.com/moraine-storage/moraine/runtime/docker"
	"golang.org/x/sys/unix"
)

// How often drives are looked at, and how long a backend may take for one call.
const (
	driveInterval  = 5 * time.Second
	backendTimeout = 2 * time.Minute
	laterInterval  = 15 * time.Second // between attempts to start a backend that did not run
)

// parts are the subsystems, in the order in which they are started.
type parts struct {
	events  *event.Log
	kv      cluster.KV
	records *records.Store
	cluster string           // ID
	node    string           // ID
	member  *membership.Node // nil with an etcd outside the agent
	plugins *host.Host
	drives  *drive.Manager
	volumes *volume.Manager
	adds    int // backends added so far, for instance names
}

func (a *Agent) start(ctx context.Context) error {
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"directories", a.startDirs},
		{"events", a.startEvents},
		{"cluster store", a.startCluster},
		{"node", a.startNode},
		{"plugins", a.startPlugins},
		{"drives", a.startDrives},
		{"volumes", a.startVolumes},
		{"NBD socket", a.startNBD},
		{"recovery", func(ctx context.Context) error { return a.parts.volumes.Start(a.closeCtx) }},
		{"API", a.startAPI},
		{"API for other nodes", a.startTCP},
		{"docker front end", a.startDocker},
	} {
		begin := time.Now()
		if err := step.do(ctx); err != nil {
			return fmt.Errorf("start %s: %w", step.what, err)
		}
		a.logger.Debug("started", "part", step.what, "took", time.Since(begin).Round(time.Millisecond))
	}
	return nil
}

func (a *Agent) startDirs(context.Context) error {
	protect(a.logger)
	dirs := []string{a.cfg.DataDir, a.cfg.RunDir, filepath.Join(a.cfg.RunDir, "mounts")}
	if a.o.Dev {
		dirs = append(dirs, filepath.Join(a.cfg.DataDir, "drives", "d1")) // its one pool
	}
	for _, d := range dirs {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	// The lock says that no other agent of this data directory lives: the
	// sessions in it are ours to end (0001, 4.1.6).
	f, err := os.OpenFile(filepath.Join(a.cfg.DataDir, "agent.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("another agent uses %s: stop it, or give this one a data directory of its own (-data-dir): %w", a.cfg.DataDir, errdefs.ErrFailedPrecondition)
		}
		return fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	a.onStop("data directory", func(context.Context) error { return f.Close() })
	return nil
}

func (a *Agent) startEvents(context.Context) (err error) {
	a.parts.events, err = event.Open(filepath.Join(a.cfg.DataDir, "events.log"), a.logger.Named("event"))
	if err == nil {
		a.onStop("events", func(context.Context) error { return a.parts.events.Close() })
	}
	return err
}

func (a *Agent) startCluster(ctx context.Context) error {
	if len(a.cfg.Etcd.Endpoints) == 0 {
		return a.startMembership(ctx)
	}
	c, err := a.dialEtcd(ctx)
	if err != nil {
		return err
	}
	a.parts.kv = c
	a.onStop("cluster store client", func(context.Context) error { return a.parts.kv.Close() })
	a.parts.records = records.New(a.parts.kv)
	cl, err := a.parts.records.Bootstrap(ctx)
	if err != nil {
		return err
	}
	a.parts.cluster = cl.Id
	return nil
}

func (a *Agent) startPlugins(context.Context) error {
	h, err := host.New(host.Options{
		RunDir: filepath.Join(a.cfg.RunDir, "plugins"), PluginDir: a.pluginDir(), Node: backends.NodeID(a.parts.node), Logger: a.logger.Named("plugin"),
		Builtin: func(name string) ([]string, bool) {
			if !builtin.Has(name) {
				return nil, false
			}
			return append(append([]string{}, a.o.Self...), "plugin", "serve", name), true
		},
		BuiltinNames: builtin.Names(),
		Changed:      a.pluginChanged,
	})
	if err != nil {
		return err
	}
	a.parts.plugins = h
	a.onStop("plugins", func(context.Context) error { return h.Close() })
	return nil
}

// pluginDir is "" when it does not exist: external plugins are an option.
func (a *Agent) pluginDir() string {
	if st, err := os.Stat(a.cfg.PluginDir); err != nil || !st.IsDir() {
		return ""
	}
	return a.cfg.PluginDir
}

func (a *Agent) pluginChanged(s host.Status) {
	switch s.State {
	case host.Running:
		a.parts.events.Record(apiv1.Severity_INFO, "plugin.running", "plugin "+s.Instance, "", "version", s.Version, "pid", strconv.Itoa(s.PID))
	case host.Waiting:
		a.parts.events.Record(apiv1.Severity_WARNING, "plugin.down", "plugin "+s.Instance, s.LastError)
	}
}

func (a *Agent) startDrives(ctx context.Context) error {
	m := drive.New(drive.Options{
		NodeID: a.parts.node, ClusterID: a.parts.cluster, Registry: registry{a.parts.records}, Events: a.parts.events,
		Logger: a.logger.Named("drive"), Interval: driveInterval, Timeout: backendTimeout,
	})
	a.parts.drives = m
	a.onStop("drives", m.Close)
	for _, b := range a.cfg.Backends {
		err := a.addBackend(ctx, b)
		switch {
		case err == nil:
		case errdefs.IsInvalidArgument(err) || errdefs.IsNotFound(err) || ctx.Err() != nil:
			return err
		default:
			// A plugin that does not run must not keep the volumes of others from
			// coming back (rule 12).
			a.parts.events.Record(apiv1.Severity_ERROR, "backend.failed", "backend "+b.Kind, "it is tried again: "+err.Error())
			a.later = append(a.later, b)
		}
	}
	m.Start()
	return nil
}

// addLater tries the backends again that did not run when the agent started.
func (a *Agent) addLater(ctx context.Context) {
	a.later = slices.DeleteFunc(a.later, func(b config.Backend) bool {
		if err := a.addBackend(ctx, b); err != nil {
			a.logger.Debug("backend does not run", "backend", b.Kind, "error", err)
			return false
		}
		a.parts.events.Record(apiv1.Severity_INFO, "backend.running", "backend "+b.Kind, "")
		return true
	})
}

// addBackend starts a backend's plugin and takes its drives in. A mistake in
// its configuration is an error; a plugin that does not run now is not: it is
// tried again, and volumes wait for their drives.
func (a *Agent) addBackend(ctx context.Context, b config.Backend) error {
	pin := ""
	for _, p := range a.cfg.Plugins {
		if p.Name == b.Kind {
			pin = p.SHA256
		}
	}
	schema, err := a.parts.plugins.Schema(ctx, b.Kind, pin)
	if err != nil {
		return fmt.Errorf("%s: backend %q: %w", b.At(), b.Kind, err)
	}
	options, ds := b.Decode(schema)
	if err := ds.Err(); err != nil {
		return err
	}
	name := fmt.Sprintf("%s-%s-%d", b.Kind, b.Pool, a.parts.adds)
	a.parts.adds++
	inst, err := a.parts.plugins.Add(ctx, host.Spec{Instance: name, Plugin: b.Kind, Options: options, SHA256: pin})
	switch {
	case errdefs.IsInvalidArgument(err):
		return fmt.Errorf("%s: backend %q: %w", b.At(), b.Kind, err)
	case err != nil && inst == nil:
		return fmt.Errorf("%s: backend %q: %w", b.At(), b.Kind, err)
	case err != nil:
		a.logger.Error("backend does not run; it is tried again", "backend", name, "error", err)
	}
	if err := a.parts.drives.Add(ctx, drive.Source{Kind: b.Kind, Pool: b.Pool, Backend: inst}); err != nil {
		a.logger.Error("no drives from backend; it is tried again", "backend", name, "error", err)
	}
	return nil
}

func (a *Agent) startVolumes(ctx context.Context) error {
	devices, err := a.devices(ctx)
	if err != nil {
		return err
	}
	a.parts.volumes = volume.New(volume.Options{
		NodeID: a.parts.node, NodeName: a.cfg.Name, DataDir: a.cfg.DataDir, RunDir: a.cfg.RunDir,
		Records: a.parts.records, Drives: a.parts.drives, Host: hostFS(a.logger), Drivers: devices,
		Events: a.parts.events, Operations: operation.NewTable(), Logger: a.logger.Named("volume"),
		Defaults: volumeDefaults(a.cfg), Plugins: a.listPlugins, HostChecks: hostChecks,
		Version: version.Version, Commit: version.Commit,
	})
	a.onStop("volumes", a.parts.volumes.Close)
	return nil
}

func volumeDefaults(c *config.Config) volume.Defaults {
	return volume.Defaults{
		Size: c.Defaults.Size, FS: c.Defaults.FS, Driver: c.Defaults.Driver, Pool: c.Defaults.Pool, Replicas: uint32(c.Defaults.Replicas),
		MinInSync: uint32(c.Defaults.MinInSync), Extent: c.Defaults.Extent, Region: c.Defaults.Region,
	}
}

// startNBD serves exported volumes and snapshots on a unix socket, which only
// root can reach.
func (a *Agent) startNBD(context.Context) error {
	path := a.parts.volumes.SocketPath()
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return err
	}
	old := unix.Umask(0o177)
	l, err := net.Listen("unix", path)
	unix.Umask(old)
	if err != nil {
		return err
	}
	s, err := nbdserver.NewServer(nbdserver.ServerOptions{Exports: a.parts.volumes.Exports(), Logger: a.logger.Named("nbd")})
	if err != nil {
		return errors.Join(err, l.Close())
	}
	served := make(chan struct{})
	a.tasks.Go(func() {
		defer close(served)
		if err := s.Serve(l); err != nil {
			a.fail(fmt.Errorf("NBD socket: %w", err))
		}
	})
	a.onStop("NBD socket", func(context.Context) error { s.Close(); <-served; return nil })
	return nil
}

func (a *Agent) startAPI(context.Context) error {
	s, err := apiserver.Start(a.parts.volumes, apiserver.Options{Socket: a.cfg.Address, Nodes: a.nodesAPI(), Logger: a.logger.Named("api")})
	if err != nil {
		return err
	}
	a.onStop("API", func(ctx context.Context) error { return errors.Join(s.Drain(ctx), s.Close()) })
	a.tasks.Go(func() {
		select {
		case <-a.closeCtx.Done():
		case <-s.Done():
			if err := s.Err(); err != nil {
				a.fail(fmt.Errorf("API: %w", err))
			}
		}
	})
	return nil
}

func (a *Agent) startDocker(context.Context) error {
	if a.cfg.Docker == nil {
		return nil
	}
	p := docker.New(a.parts.volumes, docker.Options{Socket: a.cfg.Docker.Socket, Node: a.cfg.Name, Logger: a.logger.Named("docker")})
	if err := p.Start(); err != nil {
		return err
	}
	a.onStop("docker front end", p.Close)
	return nil
}
