package agent

import (
	"context"
	"sort"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/hashicorp/go-hclog"
	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	"github.com/moraine-storage/moraine/agent/cluster/records"
	"github.com/moraine-storage/moraine/agent/config"
	"github.com/moraine-storage/moraine/plugins/host"
)

// reload reads the configuration again (SIGHUP) and takes over what can change
// while running. A configuration with a mistake changes nothing.
func (a *Agent) reload(ctx context.Context) {
	_, _ = daemon.SdNotify(false, daemon.SdNotifyReloading)
	defer func() { _, _ = daemon.SdNotify(false, daemon.SdNotifyReady) }()
	next, err := a.o.load()
	if err != nil {
		a.parts.events.Record(apiv1.Severity_ERROR, "config.rejected", "node "+a.cfg.Name, "the configuration stays as it was: "+err.Error())
		return
	}
	changes := config.Diff(a.cfg, next)
	for _, c := range changes.Restart {
		a.parts.events.Record(apiv1.Severity_WARNING, "config.needs-restart", "node "+a.cfg.Name, c.String())
	}
	for _, c := range changes.Live {
		a.logger.Info("configuration", "change", c.String())
	}
	a.logger.SetLevel(hclog.LevelFromString(next.Log.Level))
	a.parts.volumes.SetDefaults(volumeDefaults(next))
	a.cfg.Log.Level, a.cfg.Defaults, a.cfg.Plugins, a.cfg.Labels = next.Log.Level, next.Defaults, next.Plugins, next.Labels
	if err := a.recordNode(ctx, records.ID(a.parts.node)); err != nil { // its labels
		a.logger.Warn("labels are not recorded", "error", err)
	}
	for _, b := range changes.Added {
		if err := a.addBackend(ctx, b); err != nil {
			a.parts.events.Record(apiv1.Severity_ERROR, "config.rejected", "node "+a.cfg.Name, err.Error())
			continue
		}
		a.cfg.Backends = append(a.cfg.Backends, b)
	}
	a.parts.events.Record(apiv1.Severity_INFO, "config.reloaded", "node "+a.cfg.Name, "")
}

// listPlugins is what `moraine plugin list` shows.
func (a *Agent) listPlugins() []*apiv1.Plugin {
	var out []*apiv1.Plugin
	for _, s := range a.parts.plugins.List() {
		if s.State == host.Available && s.Instance == "" {
			out = append(out, &apiv1.Plugin{Name: s.Plugin, Kind: "backend", Builtin: s.Kind == host.Builtin, Path: s.Path, State: string(s.State)})
			continue
		}
		out = append(out, &apiv1.Plugin{
			Name: s.Instance, Kind: "backend", Builtin: s.Kind == host.Builtin, Version: s.Version, Path: s.Path, State: string(s.State),
			Restarts: uint32(s.Restarts), LastError: s.LastError, Pid: int32(s.PID),
		})
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}
