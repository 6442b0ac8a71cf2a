// Package agent is the composition root: it starts every part of the daemon in
// order, and stops them in reverse, leaving attached devices attached.
//
// Start order: configuration, data directory lock, cluster store, node record
// and lease, plugin host, drives, NBD socket, device drivers, volumes (those
// that an earlier agent left are served again), API, front ends. It is ready
// when the API answers; then it prints one line and notifies the service
// manager.
//
// Goroutines of its own: the lease keeper, the accept loop of the NBD socket,
// and the one that waits for signals (Run's caller).
package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/hashicorp/go-hclog"
	"github.com/moraine-storage/moraine/agent/config"
	"github.com/moraine-storage/moraine/agent/version"
	"github.com/moraine-storage/moraine/drivers"
	"github.com/moraine-storage/moraine/plugins/errdefs"
	"golang.org/x/sys/unix"
)

// Options of Run: what the command line says over the configuration.
type Options struct {
	ConfigPaths  []string // files and folders; ignored with Dev
	Dev          bool
	DataDir      string // "": the configuration's
	RunDir       string
	Address      string // of the API socket
	DockerSocket string
	LogLevel     string
	LogFormat    string
	// Self is the command that runs this program again, for its child
	// processes; nil: /proc/self/exe.
	Self []string
	// Out gets the line that says the agent is ready.
	Out io.Writer
	// LogTo gets the log.
	LogTo io.Writer
}

// devDataDir is the data directory of -dev when none is given.
const devDataDir = "/var/lib/moraine-dev"

// Agent is a running agent.
type Agent struct {
	o      Options
	cfg    *config.Config
	logger hclog.Logger

	// stops end the parts, last started first.
	stops []func(context.Context) error
	// closeCtx ends when the agent stops.
	closeCtx context.Context
	tasks    sync.WaitGroup
	failed   chan error // a part that the agent cannot do without has ended

	parts parts
	later []config.Backend // did not run at start; of Run's goroutine
}

// Run runs an agent until ctx ends, and returns when it has stopped. SIGHUP
// reloads the configuration.
func Run(ctx context.Context, o Options) error {
	begin := time.Now()
	cfg, err := o.load()
	if err != nil {
		return err
	}
	if o.Self == nil {
		o.Self = []string{"/proc/self/exe"}
	}
	if o.LogTo == nil {
		o.LogTo = os.Stderr
	}
	closeCtx, cancel := context.WithCancel(context.Background())
	a := &Agent{o: o, cfg: cfg, closeCtx: closeCtx, failed: make(chan error, 1), logger: newLogger(cfg, o.LogTo)}
	if o.Dev && cfg.Name == config.DevName {
		a.logger.Warn("the host's name is no name for a node; this one is called as shown: set name to choose", "node", cfg.Name)
	}
	if id := os.Getenv(drivers.DebugBootID); id != "" {
		a.logger.Error("NOT FOR PRODUCTION: "+drivers.DebugBootID+" replaces the kernel's boot ID; after a real restart of this machine with the same value, DATA WILL BE LOST", "boot_id", id)
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, unix.SIGHUP)
	defer signal.Stop(hup)
	err = a.start(ctx)
	if err == nil {
		a.announce(time.Since(begin))
		err = a.wait(ctx, hup)
	}
	cancel()
	_, _ = daemon.SdNotify(false, daemon.SdNotifyStopping)
	sctx, scancel := context.WithTimeout(context.Background(), cfg.Timeouts.Stop)
	defer scancel()
	return errors.Join(err, a.stop(sctx))
}

// load reads the configuration; its error has every mistake with its place.
func (o Options) load() (*config.Config, error) {
	var over []config.Override
	set := func(key, flag, value string) {
		if value != "" {
			over = append(over, config.Override{Key: key, Value: value, From: flag})
		}
	}
	set("run_dir", "-run-dir", o.RunDir)
	set("address", "-address", strings.TrimPrefix(o.Address, "unix://"))
	set("log.level", "-log-level", o.LogLevel)
	set("log.format", "-log-format", o.LogFormat)
	var cfg *config.Config
	var ds config.Diagnostics
	if o.Dev {
		dir := o.DataDir
		if dir == "" {
			dir = devDataDir
		}
		dir, err := filepath.Abs(dir)
		if err != nil {
			return nil, err
		}
		cfg, ds = config.Dev(dir, over)
	} else {
		set("data_dir", "-data-dir", o.DataDir)
		cfg, ds = config.Load(o.ConfigPaths, over)
	}
	if err := ds.Err(); err != nil {
		return nil, err
	}
	if o.DockerSocket != "" {
		if cfg.Docker == nil {
			return nil, fmt.Errorf("-docker-socket: the configuration has no runtime \"docker\" block: %w", errdefs.ErrInvalidArgument)
		}
		cfg.Docker.Socket = o.DockerSocket
	}
	return cfg, nil
}

func newLogger(cfg *config.Config, w io.Writer) hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{
		Name: "moraine", Level: hclog.LevelFromString(cfg.Log.Level), JSONFormat: cfg.Log.Format == "json", Output: w, TimeFormat: "2006-01-02T15:04:05.000Z07:00",
	})
}

func (a *Agent) announce(took time.Duration) {
	a.logger.Info("ready", "version", version.Version, "node", a.cfg.Name, "address", a.cfg.Address, "took", took.Round(time.Millisecond))
	if a.o.Out != nil {
		fmt.Fprintf(a.o.Out, "moraine agent is ready: node %s, API %s\n", a.cfg.Name, a.cfg.Address)
	}
	_, _ = daemon.SdNotify(false, daemon.SdNotifyReady)
}

// wait returns when the agent is to stop.
func (a *Agent) wait(ctx context.Context, hup <-chan os.Signal) error {
	t := time.NewTicker(laterInterval)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			a.addLater(ctx)
		case <-ctx.Done():
			a.logger.Info("stopping; attached volumes stay attached")
			return nil
		case err := <-a.failed:
			a.logger.Error("stopping", "error", err)
			return err
		case <-hup:
			a.reload(ctx)
		}
	}
}

// fail ends the agent because of err.
func (a *Agent) fail(err error) {
	select {
	case a.failed <- err:
	default:
	}
}

// onStop registers how to end a part that was started.
func (a *Agent) onStop(what string, f func(context.Context) error) {
	a.stops = append(a.stops, func(ctx context.Context) error {
		if err := f(ctx); err != nil {
			return fmt.Errorf("stop %s: %w", what, err)
		}
		return nil
	})
}

func (a *Agent) stop(ctx context.Context) error {
	var errs []error
	for i := len(a.stops) - 1; i >= 0; i-- {
		errs = append(errs, a.stops[i](ctx))
	}
	a.tasks.Wait()
	return errors.Join(errs...)
}
