package host_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/moraine-storage/moraine/backends"
	"github.com/moraine-storage/moraine/plugins/errdefs"
	"github.com/moraine-storage/moraine/plugins/host"
	"github.com/moraine-storage/moraine/plugins/plugintest"
	"github.com/moraine-storage/moraine/plugins/sdk"
)

// fast lets the supervision of a test be over in seconds; what may depend on
// the speed of the machine (Start, Media) stays generous.
var fast = host.Timing{
	Start: 2 * time.Minute, Stop: 5 * time.Second, Ping: 2 * time.Second, Health: 200 * time.Millisecond, Misses: 2,
	BackoffMin: 20 * time.Millisecond, BackoffMax: 200 * time.Millisecond, Debounce: 50 * time.Millisecond, Stable: time.Minute,
}

func argv(mode, name, version string) []string {
	return plugintest.Self(childWord, mode, name, version)
}

// newHost makes a host whose built-ins are children: the name is the mode.
func newHost(t *testing.T, change func(*host.Options)) *host.Host {
	t.Helper()
	o := host.Options{
		RunDir: filepath.Join(t.TempDir(), "run"), Node: "node-a", Timing: fast, Logger: plugintest.Logger(t),
		Builtin:      func(name string) ([]string, bool) { return argv(name, name, "1.0"), true },
		BuiltinNames: []string{"good"},
	}
	if change != nil {
		change(&o)
	}
	h, err := host.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
		if err := h.Close(); err != nil {
			t.Errorf("close again: %v", err)
		}
	})
	return h
}

func add(t *testing.T, h *host.Host, s host.Spec) *host.Instance {
	t.Helper()
	if s.Instance == "" {
		s.Instance = s.Plugin
	}
	i, err := h.Add(t.Context(), s)
	if err != nil {
		t.Fatalf("add: %v", err)
	}
	return i
}

// eventually waits, long, for cond.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if cond() {
			return
		}
	}
	t.Fatalf("waited in vain: %s", what)
}

func newID() backends.DriveID { return backends.DriveID(uuid.NewString()) }

func works(i *host.Instance) bool {
	_, err := i.Create(context.Background(), backends.CreateRequest{ID: newID(), Size: backends.MinDriveSize})
	return err == nil
}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }

func TestServesAndEnds(t *testing.T) {
	h := newHost(t, nil)
	i := add(t, h, host.Spec{Plugin: "good", Instance: "good.fast"})
	st := i.Status()
	if st.State != host.Running || st.Version != "1.0" || st.Kind != host.Builtin || st.PID == 0 || st.Contract != 1 || st.Instance != "good.fast" {
		t.Errorf("status %+v", st)
	}
	if !works(i) {
		t.Error("create failed")
	}
	f, err := i.Full()
	if err != nil || !f.Capabilities.Provision || !f.Capabilities.Fence {
		t.Errorf("full: %+v, %v", f.Capabilities, err)
	}
	if got := h.List(); len(got) != 1 || got[0] != i.Status() {
		t.Errorf("list: %+v", got)
	}
	if _, err := h.Add(t.Context(), host.Spec{Plugin: "good", Instance: "good.fast"}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("same instance again: %v", err)
	}
	h.Remove("good.fast")
	if alive(st.PID) {
		t.Error("process is alive after remove")
	}
	if _, err := i.Discover(t.Context()); !errdefs.IsUnavailable(err) {
		t.Errorf("call after remove: %v", err)
	}
	if err := i.Reconfigure(t.Context(), nil); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("reconfigure after remove: %v", err)
	}
	if got := h.List(); len(got) != 1 || got[0].State != host.Available {
		t.Errorf("list after remove: %+v", got)
	}
}

// TestRefused: what does not pass the checks is not loaded, the error says
// why, and no process stays behind.
func TestRefused(t *testing.T) {
	for mode, want := range map[string]string{
		"contract": "contract version 2",
		"liar":     `it says that it is "somebody-else"`,
		"protocol": "Plugin version: 99",
		"cookie":   "not meant to be executed directly",
		"garbage":  "Unrecognized remote plugin message",
		"flood":    "",
		"tcp":      "want a unix socket",
		"silent":   "timeout while waiting for plugin to start",
		"dies":     "cannot find my licence",
	} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, func(o *host.Options) {
				o.Timing.BackoffMin, o.Timing.BackoffMax = time.Hour, time.Hour
				if mode == "silent" {
					o.Timing.Start = 500 * time.Millisecond
				}
			})
			i, err := h.Add(t.Context(), host.Spec{Plugin: mode, Instance: mode})
			if err == nil || !strings.Contains(err.Error(), want) || len(err.Error()) > 4<<10 || strings.ContainsAny(err.Error(), "\x00\n") {
				t.Fatalf("got %.300v, want it to contain %q", err, want)
			}
			if !errdefs.IsUnavailable(err) && !errdefs.IsFailedPrecondition(err) {
				t.Errorf("class of %v", err)
			}
			if _, err := i.Discover(t.Context()); !errdefs.IsUnavailable(err) {
				t.Errorf("call of a plugin that was not loaded: %v", err)
			}
			eventually(t, "status", func() bool { return i.Status().State == host.Waiting })
			if st := i.Status(); st.LastError == "" || st.PID != 0 {
				t.Errorf("status %+v", st)
			}
		})
	}
}

// TestHangsInCalls: a call that hangs, obeying its context or not, ends with
// the host's deadline, as unavailable and indeterminate; others go on.
func TestHangsInCalls(t *testing.T) {
	for _, action := range []string{"hang", "ignore"} {
		t.Run(action, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, func(o *host.Options) {
				// Long enough for a call that does not hang on a busy machine.
				o.Timing.Quick, o.Timing.Media, o.Timing.Slow = 2*time.Second, 2*time.Second, 2*time.Second
				o.Timing.Misses = 100
			})
			i := add(t, h, host.Spec{Plugin: "good"})
			ctx, id := t.Context(), newID()
			if _, err := i.Create(ctx, backends.CreateRequest{ID: id, Size: backends.MinDriveSize}); err != nil {
				t.Fatal(err)
			}
			for name, do := range calls(i, id) {
				if err := i.Reconfigure(ctx, map[string]any{"rules": []string{name + ":" + action + ":1"}}); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				if err := do(ctx); !errdefs.IsUnavailable(err) || !errdefs.Indeterminate(err) {
					t.Errorf("%s: %v", name, err)
				}
				if _, err := i.Get(ctx, id); err != nil {
					t.Errorf("get after %s: %v", name, err)
				}
			}
		})
	}
}

// calls names each call of an instance as the fake's rules do.
func calls(i *host.Instance, id backends.DriveID) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"discover": func(ctx context.Context) error { _, err := i.Discover(ctx); return err },
		"get":      func(ctx context.Context) error { _, err := i.Get(ctx, id); return err },
		"list":     func(ctx context.Context) error { _, err := i.List(ctx, backends.Page{}); return err },
		"create": func(ctx context.Context) error {
			_, err := i.Create(ctx, backends.CreateRequest{ID: newID(), Size: backends.MinDriveSize})
			return err
		},
		"attach": func(ctx context.Context) error { _, err := i.Attach(ctx, id, "node-a"); return err },
		"detach": func(ctx context.Context) error { return i.Detach(ctx, id, "node-a") },
		"expand": func(ctx context.Context) error { _, err := i.Expand(ctx, id, 1<<30); return err },
		"fence":  func(ctx context.Context) error { return i.Fence(ctx, id, "node-b") },
		"health": func(ctx context.Context) error { _, err := i.Health(ctx, id); return err },
		"delete": func(ctx context.Context) error { return i.Delete(ctx, newID()) },
	}
}

// TestDiesInCalls: a process that dies within a call gives an indeterminate
// error, and another one serves soon.
func TestDiesInCalls(t *testing.T) {
	h := newHost(t, nil)
	i := add(t, h, host.Spec{Plugin: "good"})
	for name, do := range calls(i, newID()) {
		eventually(t, "reconfigure", func() bool {
			return i.Reconfigure(t.Context(), map[string]any{"rules": []string{name + ":exit:1"}}) == nil
		})
		before := i.Status()
		if err := do(t.Context()); !errdefs.IsUnavailable(err) || !errdefs.Indeterminate(err) {
			t.Errorf("%s: %v", name, err)
		}
		eventually(t, "a new process after "+name, func() bool {
			st := i.Status()
			return st.State == host.Running && st.PID != before.PID && st.Restarts > before.Restarts
		})
		if alive(before.PID) {
			t.Errorf("%s: old process is alive", name)
		}
		// The configuration, with its rule, was given again: take it away.
		if err := i.Reconfigure(t.Context(), nil); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if !works(i) {
		t.Error("does not work after all that")
	}
}

// TestClassesOverProcess: errors keep their class and their doubt over a real
// process and its supervision.
func TestClassesOverProcess(t *testing.T) {
	h := newHost(t, nil)
	i := add(t, h, host.Spec{Plugin: "good"})
	for rule, class := range map[string]error{
		"fail": errdefs.ErrUnavailable, "io": errdefs.ErrDataLoss, "full": errdefs.ErrResourceExhausted,
		"maybe": errdefs.ErrIndeterminate, "unknown": errdefs.ErrInternal,
	} {
		if err := i.Reconfigure(t.Context(), map[string]any{"rules": []string{"discover:" + rule}}); err != nil {
			t.Fatal(err)
		}
		if _, err := i.Discover(t.Context()); !errors.Is(err, class) || !strings.Contains(err.Error(), "scripted") {
			t.Errorf("%s: %v", rule, err)
		}
	}
}

// TestHungIsReplaced: frozen as a whole, hanging in health checks, or hanging in
// everything but health checks: each is killed and replaced.
func TestHungIsReplaced(t *testing.T) {
	for name, freeze := range map[string]func(*testing.T, *host.Instance){
		"stopped": func(t *testing.T, i *host.Instance) {
			if err := syscall.Kill(i.Status().PID, syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
		},
		"health checks": func(t *testing.T, i *host.Instance) {
			if err := i.Reconfigure(t.Context(), map[string]any{"rules": []string{"info:ignore:2"}}); err != nil {
				t.Fatal(err)
			}
		},
		"calls": func(t *testing.T, i *host.Instance) {
			if err := i.Reconfigure(t.Context(), map[string]any{"rules": []string{"get:ignore:2"}}); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if _, err := i.Get(t.Context(), newID()); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("hanging get: %v", err)
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, func(o *host.Options) {
				o.Timing.Ping, o.Timing.Quick, o.Timing.Stop = time.Second, 2*time.Second, time.Second
			})
			i := add(t, h, host.Spec{Plugin: "good"})
			before := i.Status()
			freeze(t, i)
			eventually(t, "a new process", func() bool { st := i.Status(); return st.State == host.Running && st.Restarts > before.Restarts })
			if alive(before.PID) {
				t.Error("the hung process is alive")
			}
		})
	}
}

// TestStopOfFrozen: Close returns although the plugin does not answer.
func TestStopOfFrozen(t *testing.T) {
	h := newHost(t, func(o *host.Options) { o.Timing.Stop, o.Timing.Health = 300*time.Millisecond, time.Hour })
	i := add(t, h, host.Spec{Plugin: "good"})
	pid := i.Status().PID
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	if alive(pid) {
		t.Error("process is alive after close")
	}
}

func TestConfiguration(t *testing.T) {
	h := newHost(t, func(o *host.Options) { o.Timing.BackoffMin, o.Timing.BackoffMax = time.Hour, time.Hour })
	const secret = "hunter2-SECRET"
	i, err := h.Add(t.Context(), host.Spec{Plugin: "good", Instance: "g", Options: map[string]any{"limit": secret}})
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), `"limit"`) || strings.Contains(err.Error(), secret) {
		t.Fatalf("bad options: %v", err)
	}
	if err := i.Reconfigure(t.Context(), map[string]any{"password": secret, "limit": "1GiB"}); err != nil {
		t.Fatalf("repaired options: %v", err)
	}
	pid := i.Status().PID
	if err := i.Reconfigure(t.Context(), map[string]any{"limit": 1}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("bad options while running: %v", err)
	}
	if _, err := i.Create(t.Context(), backends.CreateRequest{ID: newID(), Size: 2 << 30}); !errors.Is(err, errdefs.ErrResourceExhausted) {
		t.Errorf("the old limit must be in force: %v", err)
	}
	if st := i.Status(); st.PID != pid || strings.Contains(fmt.Sprintf("%+v", h.List()), secret) {
		t.Errorf("status %+v", st)
	}
	s, err := h.Schema(t.Context(), "good", "")
	if a, ok := s.Find("password"); err != nil || !ok || !a.Sensitive {
		t.Errorf("schema: %+v, %v", s, err)
	}
}

// TestSchemaWithoutInstance starts a process for the question and ends it.
func TestSchemaWithoutInstance(t *testing.T) {
	h := newHost(t, nil)
	s, err := h.Schema(t.Context(), "good", "")
	if _, ok := s.Find("limit"); err != nil || !ok {
		t.Errorf("schema: %+v, %v", s, err)
	}
	if _, err := h.Schema(t.Context(), "liar", ""); err == nil {
		t.Error("schema of a liar")
	}
}

// TestHugeMessages: answers beyond the contract's limits are errors of that
// call; the plugin and the agent stay up.
func TestHugeMessages(t *testing.T) {
	h := newHost(t, nil)
	i := add(t, h, host.Spec{Plugin: "huge"})
	pid := i.Status().PID
	if _, err := i.Discover(t.Context()); err == nil {
		t.Error("discover of 100000 drives")
	}
	if _, err := i.List(t.Context(), backends.Page{}); !errors.Is(err, errdefs.ErrInternal) {
		t.Errorf("list of 8 MiB: %v", err)
	}
	if !works(i) || i.Status().PID != pid {
		t.Error("the plugin did not survive")
	}
}

// TestNoise: a plugin that prints all the time is served all the same.
func TestNoise(t *testing.T) {
	h := newHost(t, func(o *host.Options) { o.Logger = nil })
	i := add(t, h, host.Spec{Plugin: "noisy"})
	for range 20 {
		if !works(i) {
			t.Fatal("call failed")
		}
	}
}

// TestEnvironment: the agent's secrets are not the plugin's.
func TestEnvironment(t *testing.T) {
	t.Setenv("MORAINE_TEST_TOKEN", "hunter2")
	h := newHost(t, nil)
	i := add(t, h, host.Spec{Plugin: "good"})
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", i.Status().PID))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(env), "hunter2") || strings.Contains(string(env), "HOME=") {
		t.Errorf("environment of the plugin: %q", env)
	}
	if !strings.Contains(string(env), sdk.LifelineEnv) {
		t.Error("no lifeline")
	}
}

// external writes a plugin file that runs this binary as a child.
func external(t *testing.T, dir, name, mode, version string) string {
	t.Helper()
	path := filepath.Join(dir, host.Prefix+name)
	// Replaced by rename, as an installer does: a running script keeps its file.
	tmp := filepath.Join(dir, ".new-"+name)
	text := "#!/bin/sh\nexec '" + strings.Join(argv(mode, name, version), "' '") + "'\n"
	if err := os.WriteFile(tmp, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, path); err != nil {
		t.Fatal(err)
	}
	return path
}

func externalHost(t *testing.T, change func(*host.Options)) (*host.Host, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "plugins")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return newHost(t, func(o *host.Options) {
		o.Builtin, o.BuiltinNames, o.PluginDir = nil, nil, dir
		if change != nil {
			change(o)
		}
	}), dir
}

// TestHotReload: a new file takes over without a gap; a broken one does not;
// a file that is gone changes nothing.
func TestHotReload(t *testing.T) {
	for _, notify := range []bool{true, false} { // by event, by health tick alone
		t.Run(fmt.Sprintf("events=%v", notify), func(t *testing.T) {
			t.Parallel()
			h, dir := externalHost(t, func(o *host.Options) {
				o.Timing.Health = time.Hour
				if !notify {
					o.Timing.Health, o.Timing.Debounce = 200*time.Millisecond, time.Hour
				}
			})
			path := external(t, dir, "ext", "good", "1")
			i := add(t, h, host.Spec{Plugin: "ext"})
			old := i.Status()
			if old.Kind != host.External || old.Path != path || old.Version != "1" {
				t.Errorf("status %+v", old)
			}
			stop, failed := make(chan struct{}), make(chan error, 1)
			go func() { // calls all the time: none may fail
				defer close(failed)
				for {
					select {
					case <-stop:
						return
					default:
					}
					if _, err := i.Discover(context.Background()); err != nil {
						failed <- err
						return
					}
				}
			}()
			external(t, dir, "ext", "contract", "2")
			eventually(t, "refusal", func() bool { return strings.Contains(i.Status().LastError, "contract version 2") })
			if st := i.Status(); st.PID != old.PID || st.State != host.Running {
				t.Errorf("a broken file took over: %+v", st)
			}
			external(t, dir, "ext", "good", "3")
			eventually(t, "take-over", func() bool { st := i.Status(); return st.Version == "3" && st.LastError == "" })
			eventually(t, "end of the old process", func() bool { return !alive(old.PID) })
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			time.Sleep(300 * time.Millisecond)
			close(stop)
			if err := <-failed; err != nil {
				t.Errorf("a call failed during reload: %v", err)
			}
			if st := i.Status(); st.Version != "3" || st.State != host.Running || st.Restarts != 0 {
				t.Errorf("after removal of the file: %+v", st)
			}
		})
	}
}

func TestExternalRefused(t *testing.T) {
	h, dir := externalHost(t, func(o *host.Options) { o.Timing.BackoffMin, o.Timing.BackoffMax = time.Hour, time.Hour })
	good := external(t, dir, "good", "good", "1")
	text, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	pin := fmt.Sprintf("%x", sha256.Sum256(text))
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.WriteFile(filepath.Join(dir, host.Prefix+"noexec"), text, 0o644))
	must(os.WriteFile(filepath.Join(dir, host.Prefix+"writable"), text, 0o755))
	must(os.Chmod(filepath.Join(dir, host.Prefix+"writable"), 0o777))
	must(os.Mkdir(filepath.Join(dir, host.Prefix+"dir"), 0o755))
	must(syscall.Mkfifo(filepath.Join(dir, host.Prefix+"fifo"), 0o755))
	must(os.WriteFile(filepath.Join(dir, host.Prefix+"binary"), []byte("\x7fELF nonsense"), 0o755))
	for n, tc := range []struct {
		plugin, pin string
		class       error
		want        string
	}{
		{"absent", "", errdefs.ErrNotFound, "no file"},
		{"noexec", "", errdefs.ErrFailedPrecondition, "not executable"},
		{"writable", "", errdefs.ErrFailedPrecondition, "written by others"},
		{"dir", "", errdefs.ErrFailedPrecondition, "not a regular file"},
		{"fifo", "", errdefs.ErrFailedPrecondition, "not a regular file"},
		{"binary", "", errdefs.ErrUnavailable, "execute"},
		{"good", strings.Repeat("0", 64), errdefs.ErrFailedPrecondition, "checksum"},
		{"good", "zz", errdefs.ErrInvalidArgument, "64 hexadecimal"},
		{"../../bin/sh", "", errdefs.ErrInvalidArgument, "name"},
	} {
		_, err := h.Add(t.Context(), host.Spec{Plugin: tc.plugin, Instance: fmt.Sprintf("i%d", n), SHA256: tc.pin})
		if !errors.Is(err, tc.class) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", tc.plugin, err)
		}
	}
	i := add(t, h, host.Spec{Plugin: "good", Instance: "pinned", SHA256: pin})
	if !works(i) {
		t.Error("pinned plugin does not work")
	}
	names := []string{}
	for _, s := range h.List() {
		if s.State == host.Available {
			names = append(names, s.Plugin)
		}
	}
	if slices.Contains(names, "good") {
		t.Errorf("available: %v", names)
	}
}

// TestAppears: an instance whose file is missing starts as soon as it appears.
func TestAppears(t *testing.T) {
	h, dir := externalHost(t, func(o *host.Options) { o.Timing.BackoffMin, o.Timing.BackoffMax = time.Hour, time.Hour })
	i, err := h.Add(t.Context(), host.Spec{Plugin: "late", Instance: "late"})
	if !errdefs.IsNotFound(err) {
		t.Fatal(err)
	}
	eventually(t, "waiting", func() bool { return i.Status().State == host.Waiting })
	external(t, dir, "late", "good", "1")
	eventually(t, "running", func() bool { return i.Status().State == host.Running })
}

// TestLongRunDir: a run directory too long for a socket's address works.
func TestLongRunDir(t *testing.T) {
	h := newHost(t, func(o *host.Options) { o.RunDir = filepath.Join(o.RunDir, strings.Repeat("long", 30)) })
	if !works(add(t, h, host.Spec{Plugin: "good"})) {
		t.Error("create failed")
	}
}

func TestBadUse(t *testing.T) {
	if _, err := host.New(host.Options{RunDir: "relative", Node: "a"}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("relative run dir: %v", err)
	}
	if _, err := host.New(host.Options{RunDir: t.TempDir()}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("no node: %v", err)
	}
	h := newHost(t, nil)
	for _, s := range []host.Spec{{Plugin: "good", Instance: "../x"}, {Plugin: "good"}, {Plugin: "No", Instance: "x"}} {
		if _, err := h.Add(t.Context(), s); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: %v", s, err)
		}
	}
	if _, err := h.Get("nobody"); !errdefs.IsNotFound(err) {
		t.Errorf("get: %v", err)
	}
	h.Remove("nobody")
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	if _, err := h.Add(t.Context(), host.Spec{Plugin: "good", Instance: "x"}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("add after close: %v", err)
	}
}
