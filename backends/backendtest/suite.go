// Package backendtest is the conformance suite of the backend contract
// (package backends). A backend's own test is a call of Run with a factory; the
// same factory is then run over a real plugin connection by plugins/plugintest.
//
// The suite reports every misbehaviour it sees, not the first one. What a
// backend declares absent (Capabilities) must answer ErrUnimplemented; nothing
// is skipped in silence.
package backendtest

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/moraine-storage/moraine/backends"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// Fixture is one fresh world for one test of the suite.
type Fixture struct {
	// Backend is not configured yet.
	Backend backends.Backend
	// Options configures it so that at least three drives can be created.
	Options map[string]any
	// BadOptions are configurations that must be refused. A string value that
	// contains "SECRET" must not show up in the error.
	BadOptions []map[string]any
	// Restart returns a backend over the same media, not configured: what a new process
	// would be. The old one is used no more. Must be set.
	Restart func(t *testing.T) backends.Backend
	// Size to ask of Create; 0 = all that the source gives.
	Size int64
	// OneNode: media are part of this node, so that no other node can attach.
	OneNode bool
}

const (
	here  backends.NodeID = "node-a"
	there backends.NodeID = "node-b"
)

// callTime bounds one call: generous, because machines that test are slow.
const callTime = 2 * time.Minute

// Run runs the suite; fresh is called once per test.
func Run(t *testing.T, fresh func(t *testing.T) Fixture) {
	for _, tc := range []struct {
		name string
		run  func(*world)
	}{
		{"Info", testInfo},
		{"NotConfigured", testNotConfigured},
		{"Configure", testConfigure},
		{"CreateIdempotent", testCreateIdempotent},
		{"CreateConcurrent", testCreateConcurrent},
		{"CreateRefuses", testCreateRefuses},
		{"DiscoverAndSource", testDiscover},
		{"ListPages", testList},
		{"Attach", testAttach},
		{"AttachElsewhere", testAttachElsewhere},
		{"DataSurvives", testDataSurvives},
		{"Delete", testDelete},
		{"Expand", testExpand},
		{"Fence", testFence},
		{"Health", testHealth},
		{"Cancelled", testCancelled},
		{"BadIDs", testBadIDs},
	} {
		t.Run(tc.name, func(t *testing.T) {
			fx := fresh(t)
			w := &world{T: t, fx: fx, b: backends.Complete(fx.Backend), ctx: t.Context()}
			defer w.clean() // not t.Cleanup: the fixture's own must run after it
			tc.run(w)
		})
	}
}

// world is a fixture in use.
type world struct {
	*testing.T
	fx     Fixture
	b      backends.Full
	ctx    context.Context
	runDir string
	made   []backends.DriveID
	caps   backends.Capabilities
}

// clean detaches and deletes what the test made, so that nothing (a mount, a
// cloud drive) stays behind even when it failed.
func (w *world) clean() {
	w.ctx = context.Background()
	slices.Sort(w.made)
	for _, id := range slices.Compact(w.made) {
		for _, n := range []backends.NodeID{here, there} {
			if err := w.b.Detach(w.call(), id, n); err != nil && !errors.Is(err, errdefs.ErrFailedPrecondition) {
				w.Errorf("clean up: detach %s: %v", id, err)
			}
		}
		if w.caps.Provision {
			if err := w.b.Delete(w.call(), id); err != nil && !errors.Is(err, errdefs.ErrFailedPrecondition) {
				w.Errorf("clean up: delete %s: %v", id, err)
			}
		}
	}
}

func (w *world) call() context.Context {
	ctx, cancel := context.WithTimeout(w.ctx, callTime)
	w.Cleanup(cancel)
	return ctx
}

// configure brings the backend into use.
func (w *world) configure() {
	w.Helper()
	if w.runDir == "" {
		w.runDir = w.TempDir()
	}
	if err := w.b.Configure(w.call(), w.config(w.fx.Options)); err != nil {
		w.Fatalf("configure: %v", err)
	}
	i, err := w.b.Info(w.call())
	if err != nil {
		w.Fatalf("info: %v", err)
	}
	w.caps = i.Capabilities
}

// config builds what the agent would send: options checked and normalised.
func (w *world) config(options map[string]any) backends.Config {
	w.Helper()
	s, err := w.b.ConfigSchema(w.call())
	if err != nil {
		w.Fatalf("schema: %v", err)
	}
	if checked, err := s.Check(options); err == nil {
		options = checked
	}
	return backends.Config{Instance: "test", Node: here, RunDir: w.runDir, Options: options}
}

func (w *world) restart() {
	w.Helper()
	w.b = backends.Complete(w.fx.Restart(w.T))
	w.configure()
}

func newID() backends.DriveID { return backends.DriveID(uuid.NewString()) }

// provision configures the backend and creates n drives.
func (w *world) provision(n int) []backends.Drive {
	w.Helper()
	w.configure()
	if !w.caps.Provision {
		all, err := w.b.Discover(w.call())
		if err != nil {
			w.Fatalf("discover: %v", err)
		}
		all = slices.DeleteFunc(all, func(d backends.Drive) bool { return d.State != backends.StateReady })
		if len(all) < n {
			w.Fatalf("a backend that cannot provision must offer %d drives in the fixture, has %d", n, len(all))
		}
		return all[:n]
	}
	var out []backends.Drive
	for range n {
		d, err := w.b.Create(w.call(), w.request(newID()))
		if err != nil {
			w.Fatalf("create: %v", err)
		}
		out = append(out, d)
	}
	return out
}

// request is a create request for id, remembered for the clean-up.
func (w *world) request(id backends.DriveID) backends.CreateRequest {
	w.made = append(w.made, id)
	return backends.CreateRequest{ID: id, Size: w.fx.Size}
}

// want fails the test when err is not of the class; nil class means success.
func (w *world) want(what string, err, class error) {
	w.Helper()
	if class == nil {
		if err != nil {
			w.Errorf("%s: %v", what, err)
		}
		return
	}
	if !errors.Is(err, class) {
		w.Errorf("%s: got %v, want class %q", what, err, class)
	}
	if err != nil && strings.Contains(err.Error(), "SECRET") {
		w.Errorf("%s: error shows a configured value: %v", what, err)
	}
}

func (w *world) get(id backends.DriveID) backends.Drive {
	w.Helper()
	d, err := w.b.Get(w.call(), id)
	if err != nil {
		w.Errorf("get %s: %v", id, err)
	}
	return d
}
