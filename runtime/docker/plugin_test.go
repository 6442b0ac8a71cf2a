package docker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/moraine-storage/moraine/agent/api"
	"github.com/moraine-storage/moraine/agent/api/apitest"
	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

var _ Service = api.Service(nil)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// engine speaks to a plugin as a Docker Engine does.
type engine struct {
	t    *testing.T
	http *http.Client
}

// serve starts a plugin over svc on a socket of its own.
func serve(t *testing.T, svc Service) (*Plugin, *engine) {
	t.Helper()
	p := New(svc, Options{Socket: filepath.Join(t.TempDir(), "moraine.sock")})
	return p, start(t, p)
}

func start(t *testing.T, p *Plugin) *engine {
	t.Helper()
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	e := &engine{t, &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", p.Socket())
	}}}}
	t.Cleanup(func() {
		e.http.CloseIdleConnections()
		if err := p.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return e
}

type answer struct {
	status       int
	body         string
	Err          string
	Implements   []string
	Mountpoint   string
	Volume       *apiVolume
	Volumes      []*apiVolume
	Capabilities struct{ Scope string }
}

type apiVolume struct {
	Name, Mountpoint, CreatedAt string
	Status                      map[string]any
}

func (e *engine) raw(ctx context.Context, path, body string) (*answer, error) {
	req, err := http.NewRequestWithContext(ctx, "POST", "http://plugin"+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	resp, err := e.http.Do(req)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(resp.Body)
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		return nil, err
	}
	a := &answer{status: resp.StatusCode, body: string(b)}
	if json.Valid(b) {
		if err := json.Unmarshal(b, a); err != nil {
			return nil, err
		}
	}
	return a, nil
}

func (e *engine) call(name string, req any) *answer {
	e.t.Helper()
	b, err := json.Marshal(req)
	if err != nil {
		e.t.Fatal(err)
	}
	a, err := e.raw(e.t.Context(), "/VolumeDriver."+name, string(b))
	if err != nil {
		e.t.Fatalf("%s: %v", name, err)
	}
	if (a.status == 200) != (a.Err == "") {
		e.t.Errorf("%s: status %d with error %q", name, a.status, a.Err)
	}
	return a
}

// must is a call that has to work.
func (e *engine) must(name string, req any) *answer {
	e.t.Helper()
	a := e.call(name, req)
	if a.Err != "" {
		e.t.Fatalf("%s %v: %s", name, req, a.Err)
	}
	return a
}

// refuse is a call that has to fail with all of these words.
func (e *engine) refuse(name string, req any, words ...string) {
	e.t.Helper()
	a := e.call(name, req)
	for _, w := range words {
		if !strings.Contains(a.Err, w) {
			e.t.Errorf("%s %v: error %q lacks %q", name, req, a.Err, w)
		}
	}
	if a.Err == "" {
		e.t.Errorf("%s %v worked", name, req)
	}
}

type m map[string]any

func opts(name string, kv ...string) m {
	o := map[string]string{}
	for i := 0; i < len(kv); i += 2 {
		o[kv[i]] = kv[i+1]
	}
	return m{"Name": name, "Opts": o}
}

func consumers(t *testing.T, svc Service, name string) []string {
	t.Helper()
	v, err := svc.GetVolume(t.Context(), &apiv1.GetVolumeRequest{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, a := range v.GetAttachments() {
		list = append(list, a.GetConsumers()...)
	}
	slices.Sort(list)
	return list
}

func expectConsumers(t *testing.T, svc Service, name string, want ...string) {
	t.Helper()
	if got := consumers(t, svc, name); !slices.Equal(got, want) {
		t.Errorf("consumers of %s: %q, want %q", name, got, want)
	}
}

func TestActivateAndCapabilities(t *testing.T) {
	_, e := serve(t, apitest.NewFake(apitest.Options{}))
	a, err := e.raw(t.Context(), "/Plugin.Activate", "")
	if err != nil || !slices.Equal(a.Implements, []string{"VolumeDriver"}) {
		t.Errorf("activate: %+v, %v", a, err)
	}
	for _, body := range []string{"", "null", "{}"} {
		a, err := e.raw(t.Context(), "/VolumeDriver.Capabilities", body)
		if err != nil || a.Capabilities.Scope != "global" {
			t.Errorf("capabilities with body %q: %+v, %v", body, a, err)
		}
	}
}

func TestCreate(t *testing.T) {
	f := apitest.NewFake(apitest.Options{})
	_, e := serve(t, f)
	e.must("Create", opts("pg", "size", "2GiB", "fs", "xfs", "label.app", "db"))
	e.must("Create", opts("pg", "size", "2147483648", "fs", "xfs", "labels", "app=db"))
	e.refuse("Create", opts("pg", "size", "3GiB", "fs", "xfs", "label.app", "db"), `"pg"`, "exists")
	e.refuse("Create", opts("bad name", "size", "1GiB"), `"bad name"`)
	e.refuse("Create", opts("x", "siez", "1GiB"), `"siez"`, "known are", "size", "label.KEY")
	e.refuse("Create", opts("x", "size", "-1"), "option size", "10GiB")
	e.refuse("Create", opts("x", "size", "99999EiB"), "option size")
	e.refuse("Create", opts("x", "replicas", "0"), "option replicas", "from 1 to 16")
	v, err := f.GetVolume(t.Context(), &apiv1.GetVolumeRequest{Name: "pg"})
	if err != nil || v.Spec.SizeBytes != 2<<30 || v.Spec.Fs != "xfs" || v.Spec.Labels["app"] != "db" {
		t.Errorf("created %v, %v", v, err)
	}
	if _, err := f.GetVolume(t.Context(), &apiv1.GetVolumeRequest{Name: "x"}); !errdefs.IsNotFound(err) {
		t.Errorf("a refused create made a volume: %v", err)
	}
}

func TestGetListPath(t *testing.T) {
	f := apitest.NewFake(apitest.Options{RunDir: "/run/m"})
	_, e := serve(t, f)
	if a := e.must("List", nil); len(a.Volumes) != 0 || !strings.Contains(a.body, `"Volumes":[]`) {
		t.Errorf("empty list: %s", a.body)
	}
	e.must("Create", opts("a", "size", "1GiB"))
	e.must("Create", opts("b", "size", "10GiB", "max-iops", "500", "label.k", "v"))
	a := e.must("Get", m{"Name": "b"})
	s := a.Volume.Status
	for k, want := range map[string]any{"size": "10GiB", "state": "detached", "filesystem": "ext4", "replicas": 1.0,
		"in_sync_replicas": 1.0, "max_iops": 500.0, "used_bytes": 0.0} {
		if s[k] != want {
			t.Errorf("status[%s] = %v, want %v", k, s[k], want)
		}
	}
	if _, err := time.Parse(time.RFC3339, a.Volume.CreatedAt); err != nil || a.Volume.Mountpoint != "" {
		t.Errorf("created at %q, mountpoint %q", a.Volume.CreatedAt, a.Volume.Mountpoint)
	}
	at := e.must("Mount", m{"Name": "b", "ID": "c1"}).Mountpoint
	if got := e.must("Path", m{"Name": "b"}).Mountpoint; got != at || at == "" {
		t.Errorf("path %q, mounted at %q", got, at)
	}
	if err := f.Write("b", 0, 1<<20); err != nil {
		t.Fatal(err)
	}
	a = e.must("List", nil)
	if len(a.Volumes) != 2 || a.Volumes[1].Mountpoint != at || a.Volumes[1].Status["used_bytes"] != float64(1<<20) ||
		a.Volumes[1].Status["state"] != "attached" || a.Volumes[0].Mountpoint != "" {
		t.Errorf("list: %s", a.body)
	}
	e.refuse("Get", m{"Name": "nope"}, `"nope"`)
	e.refuse("Path", m{"Name": "nope"}, `"nope"`)
	// An ID is a name for the API, but a second volume to Docker.
	id := e.must("Get", m{"Name": "a"}).Volume.Status["id"].(string)
	e.refuse("Get", m{"Name": id}, id)
	e.refuse("Mount", m{"Name": id, "ID": "c"}, id)
	e.must("Remove", m{"Name": id})
	e.must("Get", m{"Name": "a"})
}

// List follows pages, whatever their size is.
type paged struct{ Service }

func (p paged) ListVolumes(ctx context.Context, r *apiv1.ListVolumesRequest) (*apiv1.ListVolumesResponse, error) {
	r = proto.CloneOf(r)
	r.PageSize = 2
	return p.Service.ListVolumes(ctx, r)
}

func TestListPages(t *testing.T) {
	_, e := serve(t, paged{apitest.NewFake(apitest.Options{})})
	for i := range 5 {
		e.must("Create", opts(fmt.Sprint("v", i)))
	}
	if a := e.must("List", nil); len(a.Volumes) != 5 {
		t.Errorf("%d volumes, want 5: %s", len(a.Volumes), a.body)
	}
}

func TestMountCounts(t *testing.T) {
	f := apitest.NewFake(apitest.Options{})
	_, e := serve(t, f)
	e.must("Create", opts("v"))
	one := e.must("Mount", m{"Name": "v", "ID": "c1"}).Mountpoint
	two := e.must("Mount", m{"Name": "v", "ID": "c2"}).Mountpoint
	if one == "" || one != two {
		t.Errorf("mountpoints %q and %q", one, two)
	}
	expectConsumers(t, f, "v", "docker:c1", "docker:c2")
	e.refuse("Remove", m{"Name": "v"}, `"v"`, "in use", "docker:c1")
	e.must("Unmount", m{"Name": "v", "ID": "c1"})
	e.must("Unmount", m{"Name": "v", "ID": "c1"})
	e.must("Unmount", m{"Name": "v", "ID": "unknown"})
	expectConsumers(t, f, "v", "docker:c2")
	e.must("Unmount", m{"Name": "v", "ID": "c2"})
	expectConsumers(t, f, "v")
	if a := e.must("Get", m{"Name": "v"}); a.Volume.Mountpoint != "" || a.Volume.Status["state"] != "detached" {
		t.Errorf("after the last unmount: %s", a.body)
	}
	e.must("Remove", m{"Name": "v"})
	e.must("Remove", m{"Name": "v"})
	e.must("Unmount", m{"Name": "v", "ID": "c2"})
	e.refuse("Mount", m{"Name": "v", "ID": "c2"}, `"v"`)
}

// docker cp into a running container mounts and unmounts under the container's
// own ID; the container must keep its volume (invariant 1).
func TestSecondUseUnderOneID(t *testing.T) {
	f := apitest.NewFake(apitest.Options{})
	_, e := serve(t, f)
	e.must("Create", opts("v"))
	for range 2 {
		e.must("Mount", m{"Name": "v", "ID": "c1"})
		e.must("Mount", m{"Name": "v", "ID": "c1"})
		e.must("Mount", m{"Name": "v", "ID": "c1"})
		expectConsumers(t, f, "v", "docker:c1", "docker:c1#2", "docker:c1#3")
		e.must("Unmount", m{"Name": "v", "ID": "c1"})
		e.must("Unmount", m{"Name": "v", "ID": "c1"})
		expectConsumers(t, f, "v", "docker:c1")
		e.must("Unmount", m{"Name": "v", "ID": "c1"})
		expectConsumers(t, f, "v")
	}
}

// After a restart of the agent the counts are there, and a Mount that Docker
// repeats because its answer was lost is one use (invariant 2).
func TestRestart(t *testing.T) {
	f := apitest.NewFake(apitest.Options{})
	path := filepath.Join(t.TempDir(), "moraine.sock")
	p := New(f, Options{Socket: path})
	e := start(t, p)
	e.must("Create", opts("v"))
	e.must("Mount", m{"Name": "v", "ID": "c1"})
	e.must("Mount", m{"Name": "v", "ID": "c2"})
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	expectConsumers(t, f, "v", "docker:c1", "docker:c2")

	now := time.Now()
	q := New(f, Options{Socket: path})
	q.uses = newUses(func() time.Time { return now })
	e = start(t, q)
	e.must("Mount", m{"Name": "v", "ID": "c2"}) // repeated
	expectConsumers(t, f, "v", "docker:c1", "docker:c2")
	e.must("Mount", m{"Name": "v", "ID": "c2"}) // docker cp
	expectConsumers(t, f, "v", "docker:c1", "docker:c2", "docker:c2#2")
	e.must("Unmount", m{"Name": "v", "ID": "c2"})
	now = now.Add(retryWindow)
	e.must("Mount", m{"Name": "v", "ID": "c1"}) // docker cp, long after the start
	expectConsumers(t, f, "v", "docker:c1", "docker:c1#2", "docker:c2")
	for _, id := range []string{"c1", "c1", "c2"} {
		e.must("Unmount", m{"Name": "v", "ID": id})
	}
	expectConsumers(t, f, "v")
}

// An engine that is killed forgets its uses: they are taken over, or dropped,
// once an engine has started and no container has the volume (invariant 6).
func TestEngineKilled(t *testing.T) {
	f := apitest.NewFake(apitest.Options{})
	p, e := serve(t, f)
	now, bound := time.Now(), true
	p.uses = newUses(func() time.Time { return now })
	p.bound = func(path string) (bool, error) {
		if path == "" {
			t.Error("asked about a volume that is not mounted")
		}
		return bound, nil
	}
	activate := func() {
		if _, err := e.raw(t.Context(), "/Plugin.Activate", ""); err != nil {
			t.Fatal(err)
		}
	}
	pass := func() { now = now.Add(retryWindow + time.Second) }
	activate()
	pass()
	e.must("Create", opts("v"))
	e.must("Mount", m{"Name": "v", "ID": "c1"})
	pass()
	bound = false                                // not yet, or the engine binds in a way that is not seen
	e.refuse("Remove", m{"Name": "v"}, "in use") // no engine was started since
	bound = true
	activate()
	pass()
	e.refuse("Remove", m{"Name": "v"}, "in use") // a container lives on (live restore)
	e.must("Mount", m{"Name": "v", "ID": "c1"})  // and somebody copies into it
	expectConsumers(t, f, "v", "docker:c1", "docker:c1#2")
	e.must("Unmount", m{"Name": "v", "ID": "c1"})
	expectConsumers(t, f, "v", "docker:c1")

	bound = false // the container was killed with its engine
	e.must("Mount", m{"Name": "v", "ID": "c1"})
	expectConsumers(t, f, "v", "docker:c1")
	e.must("Mount", m{"Name": "v", "ID": "c2"})
	pass()
	activate()
	e.must("Mount", m{"Name": "v", "ID": "c3"})
	e.must("Unmount", m{"Name": "v", "ID": "c2"}) // c3 is fresh: c1 stays
	expectConsumers(t, f, "v", "docker:c1", "docker:c3")
	e.must("Unmount", m{"Name": "v", "ID": "c3"}) // the last: c1 goes with it
	expectConsumers(t, f, "v")

	e.must("Mount", m{"Name": "v", "ID": "c4"})
	now = now.Add(time.Millisecond)
	activate() // at once: the engine may not have bound it
	e.refuse("Remove", m{"Name": "v"}, "in use")
	pass()
	p.bound = func(string) (bool, error) { return false, errors.New("cannot see") }
	e.refuse("Remove", m{"Name": "v"}, "in use")
	p.bound = func(string) (bool, error) { return false, nil }
	e.must("Remove", m{"Name": "v"})
	e.refuse("Get", m{"Name": "v"}, `"v"`)
}

// An Unmount that failed leaves the use to Docker; mounting again under the
// same ID is the same use.
func TestFailedUnmount(t *testing.T) {
	f := apitest.NewFake(apitest.Options{})
	_, e := serve(t, f)
	e.must("Create", opts("v"))
	e.must("Mount", m{"Name": "v", "ID": "c1"})
	f.SetHook(func(_ context.Context, call string, _ proto.Message) error {
		if call == "UnmountVolume" {
			return fmt.Errorf("unmount volume %q: busy: %w", "v", errdefs.ErrFailedPrecondition)
		}
		return nil
	})
	e.refuse("Unmount", m{"Name": "v", "ID": "c1"}, "busy")
	f.SetHook(nil)
	e.must("Mount", m{"Name": "v", "ID": "c1"})
	expectConsumers(t, f, "v", "docker:c1")
	e.must("Unmount", m{"Name": "v", "ID": "c1"})
	expectConsumers(t, f, "v")
}

// A caller that goes away while its Mount runs leaves no consumer (invariant
// 3), whether the agent then reports success or failure.
func TestMountCallerGone(t *testing.T) {
	for _, fails := range []bool{false, true} {
		f := apitest.NewFake(apitest.Options{})
		_, e := serve(t, f)
		e.must("Create", opts("v"))
		entered, undone := make(chan struct{}), make(chan struct{})
		slow := &slowMount{Service: f, entered: entered, fails: fails}
		p2, e2 := serve(t, slow)
		f.SetHook(func(_ context.Context, call string, _ proto.Message) error {
			if call == "UnmountVolume" {
				close(undone)
			}
			return nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		go func() { <-entered; cancel() }()
		if _, err := e2.raw(ctx, "/VolumeDriver.Mount", `{"Name":"v","ID":"c1"}`); err == nil {
			t.Fatal("the cancelled call returned an answer")
		}
		<-undone
		unlock := p2.uses.lock("v") // waits for the handler to end
		expectConsumers(t, f, "v")
		unlock()
	}
}

// slowMount holds a Mount until its caller has gone, and mounts all the same.
type slowMount struct {
	Service
	entered chan struct{}
	fails   bool
}

func (s *slowMount) MountVolume(ctx context.Context, r *apiv1.MountVolumeRequest) (*apiv1.MountVolumeResponse, error) {
	close(s.entered)
	<-ctx.Done()
	resp, err := s.Service.MountVolume(context.WithoutCancel(ctx), r)
	if s.fails && err == nil {
		return nil, ctx.Err()
	}
	return resp, err
}

// Many containers at once: every Mount is one consumer, and in the end none.
func TestParallel(t *testing.T) {
	f := apitest.NewFake(apitest.Options{})
	p, e := serve(t, f)
	e.must("Create", opts("v"))
	e.must("Create", opts("w"))
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			for range 5 {
				req := m{"Name": []string{"v", "w"}[i%2], "ID": fmt.Sprint("c", i%8)}
				e.must("Mount", req)
				e.must("Get", req)
				e.must("Unmount", req)
			}
		})
	}
	wg.Wait()
	expectConsumers(t, f, "v")
	expectConsumers(t, f, "w")
	if len(p.uses.locks) != 0 || len(p.uses.mounted) != 0 {
		t.Errorf("%d locks and %d uses left behind", len(p.uses.locks), len(p.uses.mounted))
	}
}

func TestBadRequests(t *testing.T) {
	f := apitest.NewFake(apitest.Options{})
	_, e := serve(t, f)
	e.must("Create", opts("v"))
	for _, tc := range []struct{ path, body, want string }{
		{"/VolumeDriver.Create", "{", "no JSON"},
		{"/VolumeDriver.Create", `{"Name":5}`, "no JSON"},
		{"/VolumeDriver.Create", `{"Name":"x","Opts":{"size":7}}`, "no JSON"},
		{"/VolumeDriver.Create", "", "name"},
		{"/VolumeDriver.Mount", `[]`, "no JSON"},
		{"/VolumeDriver.Mount", `{"Name":"v","ID":"` + strings.Repeat("i", maxID+1) + `"}`, "201 bytes"},
		{"/VolumeDriver.Create", `{"Name":"` + strings.Repeat("x", maxBody) + `"}`, "more than"},
	} {
		a, err := e.raw(t.Context(), tc.path, tc.body)
		if err != nil || a.status != 500 || !strings.Contains(a.Err, tc.want) {
			t.Errorf("%s %.40q: %+v, %v; want %q", tc.path, tc.body, a, err, tc.want)
		}
	}
	if a, err := e.raw(t.Context(), "/VolumeDriver.Explode", "{}"); err != nil || a.status != 404 {
		t.Errorf("unknown call: %+v, %v", a, err)
	}
	expectConsumers(t, f, "v")
}

type panics struct{ Service }

func (panics) GetVolume(context.Context, *apiv1.GetVolumeRequest) (*apiv1.Volume, error) {
	panic("oops")
}

// A mistake in here is an error of one call, not the end of the agent.
func TestPanicIsAnError(t *testing.T) {
	_, e := serve(t, panics{apitest.NewFake(apitest.Options{})})
	for range 2 {
		e.refuse("Get", m{"Name": "v"}, "internal error")
		e.refuse("Unmount", m{"Name": "v", "ID": "c"}, "internal error") // with the lock held
	}
}

func TestSocket(t *testing.T) {
	f := apitest.NewFake(apitest.Options{})
	path := filepath.Join(t.TempDir(), "sub", "moraine.sock")
	p := New(f, Options{Socket: path})
	start(t, p)
	st, err := os.Lstat(path)
	if err != nil || st.Mode().Perm() != 0o600 || st.Mode().Type() != os.ModeSocket {
		t.Fatalf("socket: %v, %v", st, err)
	}
	q := New(f, Options{Socket: path})
	if err := q.Start(); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "another process") {
		t.Errorf("second plugin on one socket: %v", err)
	}
	if err := p.Start(); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("started twice: %v", err)
	}
	for range 2 {
		if err := p.Close(t.Context()); err != nil {
			t.Errorf("close: %v", err)
		}
	}
	if err := p.Start(); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("started after close: %v", err)
	}

	// A socket left by a process that was killed is replaced.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	r := New(f, Options{Socket: path})
	start(t, r).must("List", nil)
	// One that has been replaced is not removed by its first owner.
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	s := New(f, Options{Socket: path})
	e := start(t, s)
	if err := r.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	e.must("List", nil)

	// Another kind of file is somebody's.
	file := filepath.Join(t.TempDir(), "notes.sock")
	if err := os.WriteFile(file, []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := New(f, Options{Socket: file}).Start(); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("on a regular file: %v", err)
	}
	if b, err := os.ReadFile(file); err != nil || !bytes.Equal(b, []byte("mine")) {
		t.Errorf("the file is now %q, %v", b, err)
	}
	long := filepath.Join(t.TempDir(), strings.Repeat("d", 100), "moraine.sock")
	if err := New(f, Options{Socket: long}).Start(); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a path beyond what a socket can have: %v", err)
	}
}

// Close waits for a call that runs, and its answer arrives.
func TestCloseWaits(t *testing.T) {
	f := apitest.NewFake(apitest.Options{})
	p, e := serve(t, f)
	e.must("Create", opts("v"))
	entered, release := make(chan struct{}), make(chan struct{})
	f.SetHook(func(_ context.Context, call string, _ proto.Message) error {
		if call == "MountVolume" {
			close(entered)
			<-release
		}
		return nil
	})
	got := make(chan *answer)
	go func() { got <- e.call("Mount", m{"Name": "v", "ID": "c1"}) }()
	<-entered
	closed := make(chan error)
	go func() { closed <- p.Close(context.Background()) }()
	select {
	case err := <-closed:
		t.Fatalf("closed with a call running: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(release)
	if a := <-got; a.Err != "" || a.Mountpoint == "" {
		t.Errorf("the call that ran: %+v", a)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
	expectConsumers(t, f, "v", "docker:c1") // it stays mounted (invariant 5)
}
