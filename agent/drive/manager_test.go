package drive

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/go-hclog"
	"github.com/moraine-storage/moraine/agent/event"
	"github.com/moraine-storage/moraine/backends"
	"github.com/moraine-storage/moraine/backends/fake"
	"github.com/moraine-storage/moraine/drivers/store"
	"github.com/moraine-storage/moraine/plugins/errdefs"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type memory struct {
	mu sync.Mutex
	m  map[string]Record
}

func (r *memory) GetDrive(_ context.Context, id string) (Record, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if rec, ok := r.m[id]; ok {
		return rec, nil
	}
	return Record{}, fmt.Errorf("drive %s: %w", id, errdefs.ErrNotFound)
}

func (r *memory) ListDrives(context.Context) (out []Record, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, rec := range r.m {
		out = append(out, rec)
	}
	return out, nil
}

func (r *memory) PutDrive(_ context.Context, rec Record) (Record, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.m[rec.ID].Revision != rec.Revision {
		return rec, errdefs.ErrAborted
	}
	rec.Revision++
	r.m[rec.ID] = rec
	return rec, nil
}

// change alters the record of the only drive, as another node would.
func (r *memory) change(f func(*Record)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, rec := range r.m {
		f(&rec)
		rec.Revision++
		r.m[id] = rec
	}
}

type provider struct{ b backends.Full }

func (p *provider) Full() (backends.Full, error) { return p.b, nil }

type fixture struct {
	t     *testing.T
	reg   *memory
	media *fake.Media
	src   Source
	id    backends.DriveID
	dir   string
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "media")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	f := &fixture{t: t, reg: &memory{m: map[string]Record{}}, media: fake.NewMedia(dir, 8<<30), id: backends.DriveID(uuid.NewString()), dir: dir}
	b := fake.New("fake", f.media)
	ctx := context.Background()
	if err := b.Configure(ctx, backends.Config{Instance: "i", Node: "node", RunDir: t.TempDir(), Options: map[string]any{"limit": int64(1 << 40)}}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Create(ctx, backends.CreateRequest{ID: f.id, Size: 4 << 30}); err != nil {
		t.Fatal(err)
	}
	f.src = Source{Kind: "fake", Pool: "p", Backend: &provider{backends.Complete(b)}}
	return f
}

func (f *fixture) manager() *Manager {
	ev, err := event.Open("", hclog.NewNullLogger())
	if err != nil {
		f.t.Fatal(err)
	}
	m := New(Options{NodeID: "node", ClusterID: strings.Repeat("c", 32), Registry: f.reg, Events: ev, Logger: hclog.NewNullLogger(), Interval: time.Hour, Timeout: time.Minute})
	if err := m.Add(context.Background(), f.src); err != nil {
		f.t.Fatal(err)
	}
	return m
}

func (f *fixture) only(m *Manager) Status {
	f.t.Helper()
	all := m.List()
	if len(all) != 1 {
		f.t.Fatalf("%d drives: %v", len(all), all)
	}
	return all[0]
}

func (f *fixture) close(m *Manager) {
	f.t.Helper()
	if err := m.Close(context.Background()); err != nil {
		f.t.Fatal(err)
	}
}

// Goal: invariant 1: the open counter grows at each claim, and the drive is given back.
func TestClaim(t *testing.T) {
	f := newFixture(t)
	for i := range 3 {
		m := f.manager()
		st := f.only(m)
		if st.State != Ready || st.OpenCounter != uint64(i+1) {
			t.Fatalf("opening %d: %+v", i, st)
		}
		if rec, _ := f.reg.GetDrive(context.Background(), st.ID); !rec.Open || !rec.Formatted {
			t.Errorf("record while open: %+v", rec)
		}
		s, release, err := m.Acquire(st.ID)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Close(context.Background()); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("closed under a user: %v", err)
		}
		if s.Info().Failed != nil {
			t.Error("the store was closed")
		}
		release()
		f.close(m)
		if rec, _ := f.reg.GetDrive(context.Background(), st.ID); rec.Open {
			t.Error("not given back")
		}
	}
}

// Goal: DriveTwice in the small: a drive that another node has open, that was
// opened elsewhere since, or that is another medium, is refused.
func TestRefusals(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Record)
		want   string
	}{
		{"open elsewhere", func(r *Record) { r.Node, r.Open = "other", true }, "has it open"},
		{"other serial", func(r *Record) { r.Serial = "another" }, "a copy of a drive"},
		{"record went back", func(r *Record) { r.OpenCounter = 0 }, "open"},
		{"never formatted by the record", func(r *Record) { r.Formatted = false }, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t)
			f.close(f.manager())
			f.reg.change(tt.change)
			m := f.manager()
			defer f.close(m)
			st := f.only(m)
			if tt.want == "" {
				if st.State != Ready {
					t.Errorf("%s: %s", st.State, st.Reason)
				}
				return
			}
			if st.State != Failed || !strings.Contains(st.Reason, tt.want) {
				t.Errorf("%s: %s", st.State, st.Reason)
			}
			if _, _, err := m.Acquire(st.ID); !errdefs.IsUnavailable(err) {
				t.Errorf("acquire: %v", err)
			}
		})
	}
}

// Goal: invariant 2: a store that is missing, or of another cluster, is never made anew.
func TestNeverFormattedTwice(t *testing.T) {
	f := newFixture(t)
	m := f.manager()
	dir := filepath.Join(f.only(m).Path, "store")
	f.close(m)
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	m = f.manager()
	if st := f.only(m); st.State != Failed || !strings.Contains(st.Reason, "missing") {
		t.Errorf("without its store: %s: %s", st.State, st.Reason)
	}
	f.close(m)
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("something was made: %v", err)
	}
	other := store.FormatOptions{ClusterID: store.NewID(), DriveID: store.NewID(), SizeLimit: 1 << 30}
	if err := store.Format(dir, other); err != nil {
		t.Fatal(err)
	}
	m = f.manager()
	defer f.close(m)
	if st := f.only(m); st.State != Failed || !strings.Contains(st.Reason, "cluster") {
		t.Errorf("with a foreign store: %s: %s", st.State, st.Reason)
	}
}

// Goal: what the backend says of the medium is seen, and a drive that comes
// back is opened by itself.
func TestGoneAndBack(t *testing.T) {
	f := newFixture(t)
	f.media.Break(f.id, backends.StateGone, "pulled")
	m := f.manager()
	defer f.close(m)
	if st := f.only(m); st.State != Gone || st.Reason != "pulled" {
		t.Fatalf("%s: %s", st.State, st.Reason)
	}
	m.check(context.Background(), m.drives[hexID(f.id)])
	if st := f.only(m); st.State != Gone {
		t.Fatalf("%s: %s", st.State, st.Reason)
	}
	f.media.Break(f.id, backends.StateReady, "")
	m.check(context.Background(), m.drives[hexID(f.id)])
	st := f.only(m)
	if st.State != Ready {
		t.Fatalf("%s: %s", st.State, st.Reason)
	}
	_, release, err := m.Acquire(st.ID)
	if err != nil {
		t.Fatal(err)
	}
	f.media.Break(f.id, backends.StateFailed, "EIO")
	m.check(context.Background(), m.drives[hexID(f.id)])
	if st := f.only(m); st.State != Failed {
		t.Errorf("%s: %s", st.State, st.Reason)
	}
	if _, r2, err := m.Acquire(st.ID); err != nil {
		t.Errorf("an open store of a bad medium still serves what it can: %v", err)
	} else {
		r2()
	}
	release()
	m.check(context.Background(), m.drives[hexID(f.id)])
	if _, _, err := m.Acquire(st.ID); !errdefs.IsUnavailable(err) {
		t.Errorf("a bad drive that nobody uses stays open: %v", err)
	}
}

// counted counts calls of Health and holds them while held is locked.
type counted struct {
	backends.Full
	calls atomic.Int32
	held  sync.Mutex
}

func (c *counted) Health(ctx context.Context, id backends.DriveID) (backends.Health, error) {
	c.calls.Add(1)
	c.held.Lock()
	defer c.held.Unlock()
	return c.HealthReporter.Health(ctx, id)
}

type countedProvider struct{ c *counted }

func (p countedProvider) Full() (backends.Full, error) {
	f := p.c.Full
	f.HealthReporter = p.c
	return f, nil
}

func soon(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 30 s", what)
		}
	}
}

// Goal: a drive whose I/O fails is looked at without waiting for the tick (an
// hour here), any number of failures during one look make one more, and the
// look after the last failure sees what that failure meant.
func TestSuspect(t *testing.T) {
	f := newFixture(t)
	full, _ := f.src.Backend.Full()
	c := &counted{Full: full}
	f.src.Backend = countedProvider{c}
	m := f.manager()
	id := f.only(m).ID
	m.Suspect(id, nil) // not started: nothing
	m.Start()
	m.Suspect("no such drive", nil)
	f.media.Break(f.id, backends.StateFailed, "EIO")
	c.held.Lock()
	m.Suspect(id, nil)
	soon(t, "a look", func() bool { return c.calls.Load() == 1 })
	for range 1000 {
		m.Suspect(id, nil)
	}
	f.media.Break(f.id, backends.StateFailed, "EIO, and worse")
	c.held.Unlock()
	soon(t, "the second look", func() bool { return c.calls.Load() == 2 })
	soon(t, "the end of looking", func() bool {
		m.urgent.mu.Lock()
		defer m.urgent.mu.Unlock()
		return len(m.urgent.again) == 0
	})
	if st := f.only(m); st.State != Failed || st.Reason != "EIO, and worse" || c.calls.Load() != 2 {
		t.Errorf("after %d looks: %s: %s", c.calls.Load(), st.State, st.Reason)
	}
	f.media.Break(f.id, backends.StateReady, "")
	m.Suspect(id, nil)
	soon(t, "back", func() bool { return f.only(m).State == Ready })
	// What neither the store nor the backend knows of is believed all the same.
	m.Suspect(id, errors.New("a sector is gone"))
	soon(t, "failed by I/O alone", func() bool {
		st := f.only(m)
		return st.State == Failed && strings.Contains(st.Reason, "a sector is gone")
	})
	f.close(m)
	m.Suspect(id, nil) // closed: nothing; a goroutine would be seen as a leak
}

// Goal: a blank medium where a drive was is left alone.
func TestBlankWhereADriveWas(t *testing.T) {
	f := newFixture(t)
	m := f.manager()
	st := f.only(m)
	defer f.close(m)
	ctx := context.Background()
	blank := backends.Drive{Source: st.Source, State: backends.StateBlank}
	if why := m.missing(ctx, f.src, blank, []backends.Drive{blank}); !strings.Contains(why, st.ID) {
		t.Errorf("taken: %q", why)
	}
	there := backends.Drive{ID: f.id, Source: "elsewhere", State: backends.StateReady}
	if why := m.missing(ctx, f.src, blank, []backends.Drive{blank, there}); why != "" {
		t.Errorf("the drive has moved, its old place is free: %q", why)
	}
}
