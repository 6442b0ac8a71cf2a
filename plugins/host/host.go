package host

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/moraine-storage/moraine/backends"
	"github.com/moraine-storage/moraine/plugins/errdefs"
	"github.com/moraine-storage/moraine/plugins/schema"
)

// Options configures a Host.
type Options struct {
	// RunDir is the host's own directory below the agent's run_dir; made if
	// absent. Sockets and the backends' run directories are in it.
	RunDir string
	// PluginDir holds external plugins; "" = none.
	PluginDir string
	// Builtin returns the command that serves a built-in backend, argv[0] a
	// path ("/proc/self/exe", "plugin", "serve", NAME); nil = none.
	Builtin func(name string) (argv []string, ok bool)
	// BuiltinNames is for List.
	BuiltinNames []string
	Node         backends.NodeID
	Logger       hclog.Logger // nil = none
	Timing       Timing
	// Changed, when not nil, is called after each change of an instance's
	// state, from the goroutine that made it: it must not block nor call back.
	Changed func(Status)
}

// Spec says which backend to run.
type Spec struct {
	Instance string         // unique in the host, [A-Za-z0-9_.-]+: names its run directory
	Plugin   string         // what Info must answer
	Options  map[string]any // configuration, checked against the schema or not
	SHA256   string         // of an external plugin's file, in hex; "" = any
}

// RunState is the state of an instance's process.
type RunState string

// The states.
const (
	Available RunState = "available" // could be configured; no process
	Starting  RunState = "starting"
	Running   RunState = "running"
	Waiting   RunState = "waiting" // failed; waits before the next attempt
	Stopped   RunState = "stopped"
)

// Status is one line of `moraine plugin list`.
type Status struct {
	Instance  string // "" when only available
	Plugin    string
	Kind      Kind
	Path      string
	Version   string // "" until it first ran
	Contract  int
	State     RunState
	PID       int // 0 without a process
	Restarts  int // how often a process was replaced after a failure
	LastError string
	Since     time.Time // of State
}

// Host runs plugins. Make it with New, end it with Close.
type Host struct {
	o       Options
	t       Timing
	log     hclog.Logger
	sockDir string
	tempDir string // sockDir's parent when RunDir is too long for a socket; else ""

	mu        sync.Mutex
	instances map[string]*Instance // guarded by mu
	closed    bool                 // guarded by mu

	stopWatch func() // ends and awaits the watch goroutine
}

// New makes a host. It starts nothing but the watch of PluginDir.
func New(o Options) (*Host, error) {
	if !filepath.IsAbs(o.RunDir) {
		return nil, fmt.Errorf("plugin host: %w: run directory %q is not an absolute path", errdefs.ErrInvalidArgument, o.RunDir)
	}
	if err := o.Node.Check(); err != nil {
		return nil, fmt.Errorf("plugin host: %w", err)
	}
	h := &Host{o: o, t: o.Timing.withDefaults(), log: o.Logger, instances: map[string]*Instance{}}
	if h.log == nil {
		h.log = hclog.NewNullLogger()
	}
	if err := h.makeSockDir(); err != nil {
		return nil, fmt.Errorf("plugin host: %w: %w", errdefs.ErrUnavailable, err)
	}
	h.stopWatch = h.watch()
	return h, nil
}

// makeSockDir makes an empty private directory for sockets. What an earlier
// agent left there is of no use: its plugins ended with it.
func (h *Host) makeSockDir() error {
	dir := filepath.Join(h.o.RunDir, "sock")
	if len(h.o.RunDir) > maxRunDir {
		var err error
		if h.tempDir, err = os.MkdirTemp("", "moraine-"); err != nil {
			return err
		}
		dir = filepath.Join(h.tempDir, "sock")
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	h.sockDir = dir
	return os.MkdirAll(dir, 0o700)
}

// Add registers an instance, starts its plugin, and waits for the outcome of
// the first attempt (or ctx). The instance stays registered when that fails:
// it is tried again with back-off, at once when its file changes or when
// Reconfigure is called, until Remove. The error says why it failed.
func (h *Host) Add(ctx context.Context, s Spec) (*Instance, error) {
	if backends.NodeID(s.Instance).Check() != nil {
		return nil, fmt.Errorf("add backend %.64q: %w: not a valid instance name", s.Instance, errdefs.ErrInvalidArgument)
	}
	if err := backends.CheckName(s.Plugin); err != nil {
		return nil, fmt.Errorf("add backend %s: %w", s.Instance, err)
	}
	i, err := h.register(s)
	if err != nil {
		return nil, fmt.Errorf("add backend %s: %w", s.Instance, err)
	}
	select {
	case err = <-i.first:
	case <-ctx.Done():
		err = fmt.Errorf("start backend %s: %w: %w", s.Instance, errdefs.ErrUnavailable, ctx.Err())
	}
	return i, err
}

func (h *Host) register(s Spec) (*Instance, error) {
	run := filepath.Join(h.o.RunDir, "backends", s.Instance)
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.closed:
		return nil, fmt.Errorf("%w: plugin host is closed", errdefs.ErrFailedPrecondition)
	case h.instances[s.Instance] != nil:
		return nil, fmt.Errorf("%w: an instance of that name runs", errdefs.ErrAlreadyExists)
	case len(h.instances) >= maxInstances:
		return nil, fmt.Errorf("%w: more than %d backends", errdefs.ErrResourceExhausted, maxInstances)
	}
	if err := os.MkdirAll(run, 0o700); err != nil {
		return nil, fmt.Errorf("%w: %w", errdefs.ErrUnavailable, err)
	}
	i := newInstance(h, s, run)
	h.instances[s.Instance] = i
	go i.supervise()
	return i, nil
}

// Get returns a registered instance.
func (h *Host) Get(instance string) (*Instance, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if i := h.instances[instance]; i != nil {
		return i, nil
	}
	return nil, fmt.Errorf("backend %.64q: %w", instance, errdefs.ErrNotFound)
}

// Remove stops an instance and forgets it. Attached drives stay attached; an
// unknown instance is success.
func (h *Host) Remove(instance string) {
	h.mu.Lock()
	i := h.instances[instance]
	delete(h.instances, instance)
	h.mu.Unlock()
	if i != nil {
		i.stop()
	}
}

// List tells of every instance, and of every plugin that could be used but is not.
func (h *Host) List() []Status {
	h.mu.Lock()
	all := slices.Collect(maps.Values(h.instances))
	h.mu.Unlock()
	var out []Status
	used := map[string]bool{}
	for _, i := range all {
		s := i.Status()
		used[s.Plugin] = true
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b Status) int {
		if a.Instance < b.Instance {
			return -1
		}
		return 1
	})
	builtin := map[string]bool{}
	for _, n := range slices.Sorted(slices.Values(h.o.BuiltinNames)) {
		builtin[n] = true
		if !used[n] {
			out = append(out, Status{Plugin: n, Kind: Builtin, State: Available})
		}
	}
	for _, n := range h.available() {
		if !used[n] && !builtin[n] {
			out = append(out, Status{Plugin: n, Kind: External, Path: filepath.Join(h.o.PluginDir, Prefix+n), State: Available})
		}
	}
	return out
}

// Schema returns the configuration schema of a plugin: from a running instance
// or, when there is none, from a process started for the question.
func (h *Host) Schema(ctx context.Context, plugin, sha256 string) (schema.Schema, error) {
	h.mu.Lock()
	all := slices.Collect(maps.Values(h.instances))
	h.mu.Unlock()
	for _, i := range all {
		if st := i.Status(); i.spec.Plugin == plugin && i.spec.SHA256 == sha256 && st.State == Running {
			if s, err := i.ConfigSchema(ctx); err == nil {
				return s, nil
			}
		}
	}
	b, end, err := h.Open(ctx, plugin, sha256)
	if err != nil {
		return schema.Schema{}, err
	}
	defer end()
	ctx, cancel := context.WithTimeout(ctx, h.t.Quick)
	defer cancel()
	s, err := b.ConfigSchema(ctx)
	if err != nil {
		return schema.Schema{}, fmt.Errorf("schema of plugin %s: %w", plugin, err)
	}
	return s, nil
}

// Open starts a plugin outside supervision and without configuration, for
// questions about it and for tests. end stops it; it must be called.
func (h *Host) Open(ctx context.Context, plugin, sha256 string) (b backends.Full, end func(), err error) {
	p, err := h.launch(ctx, plugin, sha256)
	if err != nil {
		return backends.Full{}, nil, err
	}
	c := p.conn
	b = backends.Full{Backend: c, Provisioner: c, Expander: c, Fencer: c, HealthReporter: c, Capabilities: p.info.Capabilities}
	return b, func() { p.end(h.t.Stop, true) }, nil
}

// Close ends all plugins in order and returns when they are gone. Drives stay
// attached. Idempotent.
func (h *Host) Close() error {
	h.mu.Lock()
	all := slices.Collect(maps.Values(h.instances))
	first := !h.closed
	h.closed = true
	clear(h.instances)
	h.mu.Unlock()
	var wg sync.WaitGroup
	for _, i := range all {
		wg.Go(i.stop)
	}
	wg.Wait()
	if !first {
		return nil
	}
	h.stopWatch()
	err := os.RemoveAll(h.sockDir)
	if h.tempDir != "" {
		err = errors.Join(err, os.RemoveAll(h.tempDir))
	}
	return err
}
