package host

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/moraine-storage/moraine/backends"
	"github.com/moraine-storage/moraine/plugins/errdefs"
	"github.com/moraine-storage/moraine/plugins/schema"
)

// Instance is one configured backend. Its methods are those of package
// backends; they go to whatever process serves now (calls.go).
type Instance struct {
	h      *Host
	log    hclog.Logger
	spec   Spec // Options are guarded by mu, the rest is set once
	runDir string

	first   chan error         // gets the outcome of the first attempt; buffered
	changed chan struct{}      // the plugin's file may have changed; buffered
	configs chan configRequest // to supervise
	quit    chan struct{}      // closed by stop
	stopped chan struct{}      // closed when supervise has ended
	once    sync.Once          // for quit
	slots   chan struct{}      // calls in flight
	drains  sync.WaitGroup     // replaced processes that are ending

	mu   sync.Mutex
	proc *process // guarded by mu; nil = no process serves
	st   Status   // guarded by mu
	late int      // guarded by mu: calls in a row that ran into the host's deadline
}

type configRequest struct {
	ctx     context.Context
	options map[string]any
	done    chan error // buffered
}

func newInstance(h *Host, s Spec, runDir string) *Instance {
	i := &Instance{
		h: h, log: h.log.Named(s.Instance), spec: s, runDir: runDir,
		first: make(chan error, 1), changed: make(chan struct{}, 1), configs: make(chan configRequest),
		quit: make(chan struct{}), stopped: make(chan struct{}), slots: make(chan struct{}, maxInFlight),
		st: Status{Instance: s.Instance, Plugin: s.Plugin, State: Starting, Since: time.Now()},
	}
	i.spec.Options = maps.Clone(s.Options)
	return i
}

// Status tells how the instance is now.
func (i *Instance) Status() Status {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.st
}

// set changes the status under the mutex and tells who listens.
func (i *Instance) set(change func(*Status)) {
	i.mu.Lock()
	before := i.st.State
	change(&i.st)
	if i.st.State != before {
		i.st.Since = time.Now()
	}
	st := i.st
	i.mu.Unlock()
	if i.h.o.Changed != nil {
		i.h.o.Changed(st)
	}
}

func (i *Instance) stop() {
	i.once.Do(func() { close(i.quit) })
	<-i.stopped
}

// Reconfigure replaces the options. When the plugin refuses them the old ones
// stay in force; when no process runs, one is started with them at once.
func (i *Instance) Reconfigure(ctx context.Context, options map[string]any) error {
	r := configRequest{ctx: ctx, options: maps.Clone(options), done: make(chan error, 1)}
	gone := fmt.Errorf("configure backend %s: %w: removed", i.spec.Instance, errdefs.ErrFailedPrecondition)
	select {
	case i.configs <- r:
	case <-i.stopped:
		return gone
	case <-ctx.Done():
		return fmt.Errorf("configure backend %s: %w: %w", i.spec.Instance, errdefs.ErrUnavailable, ctx.Err())
	}
	select {
	case err := <-r.done:
		return err
	case <-i.stopped:
		return gone
	}
}

// supervise owns the process: it starts, watches, replaces and ends it.
func (i *Instance) supervise() {
	defer close(i.stopped)
	back := backoff{min: i.h.t.BackoffMin, max: i.h.t.BackoffMax}
	var pending *configRequest // waits for the outcome of the next start
	for attempt := 0; ; attempt++ {
		p, err := i.start()
		if err == nil {
			i.serve(p) // before anybody hears of the success
		}
		if attempt == 0 {
			i.first <- err
		}
		if pending != nil {
			pending.done <- err
			pending = nil
		}
		wait := time.Duration(0)
		if err == nil {
			began := time.Now()
			err = i.run(p)
			if time.Since(began) >= i.h.t.Stable {
				back.reset()
			}
		}
		if i.quitting() {
			break
		}
		wait = back.next()
		i.log.Warn("plugin failed", "plugin", i.spec.Plugin, "error", err, "retry_in", wait)
		i.set(func(s *Status) {
			s.State, s.LastError, s.PID = Waiting, oneLine(err.Error(), 1024), 0
			s.Restarts++
		})
		if pending = i.pause(wait); i.quitting() {
			break
		}
	}
	i.drains.Wait()
	i.set(func(s *Status) { s.State, s.PID = Stopped, 0 })
}

func (i *Instance) quitting() bool {
	select {
	case <-i.quit:
		return true
	default:
		return false
	}
}

// pause waits before the next attempt; what may have repaired the cause ends it.
func (i *Instance) pause(d time.Duration) *configRequest {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-i.changed:
	case <-i.quit:
	case r := <-i.configs:
		i.setOptions(r.options)
		return &r
	}
	return nil
}

func (i *Instance) setOptions(o map[string]any) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.spec.Options = o
}

// start launches and configures a process that is not serving yet.
func (i *Instance) start() (*process, error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan struct{})
	defer close(done)
	go func() { // stop ends a start under way
		select {
		case <-i.quit:
			cancel()
		case <-done:
		}
	}()
	p, err := i.h.launch(ctx, i.spec.Plugin, i.spec.SHA256)
	if err != nil {
		return nil, err
	}
	i.mu.Lock()
	options := i.spec.Options
	i.mu.Unlock()
	if err := i.configure(ctx, p, options); err != nil {
		p.end(i.h.t.Stop, true)
		return nil, err
	}
	return p, nil
}

// configure checks options against the plugin's schema and hands them over.
func (i *Instance) configure(ctx context.Context, p *process, options map[string]any) error {
	quick, cancel := context.WithTimeout(ctx, i.h.t.Quick)
	defer cancel()
	s, err := p.conn.ConfigSchema(quick)
	if err != nil {
		return fmt.Errorf("configure backend %s: schema: %w", i.spec.Instance, err)
	}
	checked, err := s.Check(options)
	if err != nil {
		return fmt.Errorf("configure backend %s: %w", i.spec.Instance, err)
	}
	media, cancel := context.WithTimeout(ctx, i.h.t.Media)
	defer cancel()
	err = p.conn.Configure(media, backends.Config{Instance: i.spec.Instance, Node: i.h.o.Node, RunDir: i.runDir, Options: schema.Plain(checked)})
	if err != nil {
		return fmt.Errorf("configure backend %s: %w", i.spec.Instance, err)
	}
	return nil
}

// serve makes p the process that calls go to and returns the one before.
func (i *Instance) serve(p *process) *process {
	i.mu.Lock()
	old := i.proc
	i.proc, i.late = p, 0
	i.mu.Unlock()
	if p != nil {
		i.set(func(s *Status) {
			s.State, s.PID, s.Kind, s.Path = Running, p.child.Load().processID(), p.prog.kind, p.prog.path
			s.Version, s.Contract = p.info.Version, p.info.Contract
		})
	}
	return old
}

// run watches p, which serves, until it fails (the error says how) or the instance stops.
func (i *Instance) run(p *process) error {
	i.log.Info("plugin serves", "plugin", i.spec.Plugin, "version", p.info.Version, "pid", p.child.Load().processID())
	tick := time.NewTicker(i.h.t.Health)
	defer tick.Stop()
	reload := reloader{i: i, back: backoff{min: i.h.t.BackoffMin, max: i.h.t.BackoffMax}}
	misses := 0
	for {
		select {
		case <-i.quit:
			i.serve(nil)
			p.end(i.h.t.Stop, true)
			return nil
		case <-p.exited():
			i.serve(nil)
			p.end(i.h.t.Stop, false)
			return fmt.Errorf("plugin %s: %w: process ended: %v", i.spec.Plugin, errdefs.ErrUnavailable, endOf(p.child.Load().err))
		case r := <-i.configs:
			r.done <- i.reconfigure(r, p)
		case <-i.changed:
			p = reload.try(p)
		case <-tick.C:
			p = reload.try(p)
			if err := i.ping(p); err != nil {
				misses++
				i.log.Warn("plugin missed a health check", "plugin", i.spec.Plugin, "misses", misses, "error", err)
			} else {
				misses = 0
			}
			if misses >= i.h.t.Misses || i.lateCalls() >= i.h.t.Misses {
				i.serve(nil)
				p.end(i.h.t.Stop, false)
				return fmt.Errorf("plugin %s: %w: it did not answer in time, killed", i.spec.Plugin, errdefs.ErrUnavailable)
			}
		}
	}
}

func endOf(err error) string {
	if err == nil {
		return "exit status 0"
	}
	return err.Error()
}

func (i *Instance) ping(p *process) error {
	ctx, cancel := context.WithTimeout(context.Background(), i.h.t.Ping)
	defer cancel()
	info, err := p.conn.Info(ctx)
	if err != nil {
		return err
	}
	return judge(i.spec.Plugin, info)
}

func (i *Instance) lateCalls() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.late
}

func (i *Instance) reconfigure(r configRequest, p *process) error {
	err := i.configure(r.ctx, p, r.options)
	if err == nil {
		i.setOptions(r.options)
		i.log.Info("plugin reconfigured", "plugin", i.spec.Plugin)
	}
	return err
}

// reloader replaces the process when the plugin's file has changed.
type reloader struct {
	i       *Instance
	back    backoff
	tried   fileID    // the file that did not work
	retryAt time.Time // when to try it again
}

// try returns the process that serves from now on: a new one when the file is
// another and works, else p.
func (r *reloader) try(p *process) *process {
	i := r.i
	if p.prog.kind != External {
		return p
	}
	id, ok := current(p.prog.path)
	if !ok || id == p.prog.id || id == r.tried && time.Now().Before(r.retryAt) {
		return p // gone: the running one goes on
	}
	next, err := i.start()
	if err != nil {
		if i.quitting() {
			return p
		}
		if id != r.tried {
			r.back.reset()
		}
		r.tried, r.retryAt = id, time.Now().Add(r.back.next())
		if errors.Is(err, syscall.ETXTBSY) { // still being written
			r.retryAt = time.Now()
		}
		i.log.Warn("new version of plugin does not work, the old one goes on", "plugin", i.spec.Plugin, "error", err)
		i.set(func(s *Status) { s.LastError = oneLine("reload: "+err.Error(), 1024) })
		return p
	}
	r.back.reset()
	old := i.serve(next)
	i.set(func(s *Status) { s.LastError = "" })
	i.log.Info("plugin replaced", "plugin", i.spec.Plugin, "version", next.info.Version, "was", old.info.Version)
	i.drains.Go(func() { old.end(i.h.t.Stop, true) })
	return next
}

// backoff gives waiting times: min, doubled up to max, each up to a fifth
// shorter at random so that a node's plugins do not fall into step.
type backoff struct {
	min, max time.Duration
	n        int
}

func (b *backoff) reset() { b.n = 0 }

func (b *backoff) next() time.Duration {
	d := b.min << min(b.n, 20)
	if d > b.max || d <= 0 {
		d = b.max
	} else {
		b.n++
	}
	return d - time.Duration(rand.Int64N(int64(d)/5+1))
}
