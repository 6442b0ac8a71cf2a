package backendtest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/moraine-storage/moraine/backends"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

func testInfo(w *world) {
	a, err := w.b.Info(w.call())
	if err != nil {
		w.Fatal(err)
	}
	w.want("name", backends.CheckName(a.Name), nil)
	if a.Contract != backends.ContractVersion {
		w.Errorf("contract %d, want %d", a.Contract, backends.ContractVersion)
	}
	w.configure()
	if b, err := w.b.Info(w.call()); err != nil || a != b {
		w.Errorf("info changed by configure: %+v, then %+v, %v", a, b, err)
	}
	s, err := w.b.ConfigSchema(w.call())
	w.want("schema", err, nil)
	w.want("schema", s.Validate(), nil)
	for _, a := range s.Attributes {
		if a.Doc == "" {
			w.Errorf("attribute %q has no text", a.Name)
		}
	}
}

// each calls everything but Info, ConfigSchema and Configure.
func (w *world) each(ctx context.Context, id backends.DriveID, got func(call string, err error)) {
	i, err := w.b.Info(w.call())
	if err != nil {
		w.Fatal(err)
	}
	w.caps = i.Capabilities
	_, err = w.b.Discover(ctx)
	got("discover", err)
	_, err = w.b.Get(ctx, id)
	got("get", err)
	_, err = w.b.List(ctx, backends.Page{})
	got("list", err)
	_, err = w.b.Attach(ctx, id, here)
	got("attach", err)
	got("detach", w.b.Detach(ctx, id, here))
	if w.caps.Provision {
		_, err = w.b.Create(ctx, backends.CreateRequest{ID: id, Size: w.fx.Size})
		got("create", err)
		got("delete", w.b.Delete(ctx, id))
	}
	if w.caps.Expand {
		_, err = w.b.Expand(ctx, id, 1<<40)
		got("expand", err)
	}
	if w.caps.Fence {
		got("fence", w.b.Fence(ctx, id, here))
	}
	if w.caps.Health {
		_, err = w.b.Health(ctx, id)
		got("health", err)
	}
}

func testNotConfigured(w *world) {
	w.each(w.call(), newID(), func(call string, err error) {
		w.want(call+" before configure", err, errdefs.ErrFailedPrecondition)
	})
}

func testConfigure(w *world) {
	w.configure()
	for _, bad := range w.fx.BadOptions {
		err := w.b.Configure(w.call(), w.config(bad))
		w.want("configure with bad options", err, errdefs.ErrInvalidArgument)
	}
	// A refused configuration leaves the old one in force.
	if _, err := w.b.Discover(w.call()); err != nil {
		w.Errorf("discover after a refused configuration: %v", err)
	}
	w.want("the same configuration again", w.b.Configure(w.call(), w.config(w.fx.Options)), nil)
}

// must tell whether the backend provisions; if it does not, the calls have to
// say so, and the test is over.
func (w *world) provisions() bool {
	w.configure()
	if w.caps.Provision {
		return true
	}
	_, err := w.b.Create(w.call(), backends.CreateRequest{ID: newID(), Size: w.fx.Size})
	w.want("create", err, errdefs.ErrUnimplemented)
	w.want("delete", w.b.Delete(w.call(), newID()), errdefs.ErrUnimplemented)
	return false
}

func testCreateIdempotent(w *world) {
	if !w.provisions() {
		return
	}
	r := w.request(newID())
	a, err := w.b.Create(w.call(), r)
	if err != nil {
		w.Fatal(err)
	}
	if a.ID != r.ID || a.State != backends.StateReady || a.Size < r.Size || a.Size < backends.MinDriveSize || a.Node != "" {
		w.Errorf("created %+v from %+v", a, r)
	}
	for _, phase := range []string{"again", "again after a restart"} {
		b, err := w.b.Create(w.call(), r)
		if err != nil || b.ID != a.ID || b.Size != a.Size || b.Source != a.Source || !b.Created.Equal(a.Created) {
			w.Errorf("create %s: %+v, %v, first was %+v", phase, b, err, a)
		}
		other := r
		other.Size = a.Size + backends.MinDriveSize
		_, err = w.b.Create(w.call(), other)
		w.want("create with another size, "+phase, err, errdefs.ErrAlreadyExists)
		if got := w.get(r.ID); got.Size != a.Size {
			w.Errorf("refused create changed the drive: %+v", got)
		}
		w.restart()
	}
	page, err := w.b.List(w.call(), backends.Page{})
	if err != nil || len(page.Drives) != 1 {
		w.Errorf("list: %+v, %v, want one drive", page, err)
	}
}

func testCreateConcurrent(w *world) {
	if !w.provisions() {
		return
	}
	r := w.request(newID())
	const n = 8
	var wg sync.WaitGroup
	got, errs := make([]backends.Drive, n), make([]error, n)
	for i := range n {
		ctx := w.call()
		wg.Go(func() { got[i], errs[i] = w.b.Create(ctx, r) })
	}
	wg.Wait()
	ok := 0
	for i := range n {
		switch {
		case errs[i] == nil:
			ok++
			if got[i].ID != r.ID || got[i].Source != got[0].Source && errs[0] == nil {
				w.Errorf("create %d: %+v", i, got[i])
			}
		case !errors.Is(errs[i], errdefs.ErrAborted): // "another create of this ID is running" is allowed
			w.Errorf("create %d: %v", i, errs[i])
		}
	}
	if ok == 0 {
		w.Error("none of the concurrent creates succeeded")
	}
	if page, err := w.b.List(w.call(), backends.Page{}); err != nil || len(page.Drives) != 1 {
		w.Errorf("list: %+v, %v, want one drive", page, err)
	}
}

func testCreateRefuses(w *world) {
	if !w.provisions() {
		return
	}
	for what, r := range map[string]backends.CreateRequest{
		"huge":           {ID: newID(), Size: backends.MaxDriveSize},
		"absent source":  {ID: newID(), Size: w.fx.Size, Source: "/no/such/source"},
		"tiny":           {ID: newID(), Size: 1},
		"negative":       {ID: newID(), Size: -1},
		"above the most": {ID: newID(), Size: backends.MaxDriveSize + 1},
	} {
		w.made = append(w.made, r.ID)
		d, err := w.b.Create(w.call(), r)
		class := map[string]error{"huge": errdefs.ErrResourceExhausted, "absent source": errdefs.ErrNotFound}[what]
		if class == nil {
			class = errdefs.ErrOutOfRange
		}
		w.want("create: "+what, err, class)
		if err == nil {
			w.Errorf("create: %s: got %+v", what, d)
		}
		_, err = w.b.Get(w.call(), r.ID)
		w.want("get after a refused create", err, errdefs.ErrNotFound)
	}
}

// testDiscover: candidates are what Create takes, and what it took is a drive.
func testDiscover(w *world) {
	w.configure()
	before, err := w.b.Discover(w.call())
	if err != nil {
		w.Fatal(err)
	}
	for _, d := range before {
		if (d.ID == "") == (d.State == backends.StateReady) || d.Source == "" {
			w.Errorf("discovered %+v", d)
		}
		if d.State == backends.StateRefused && d.Reason == "" {
			w.Errorf("refused without a reason: %+v", d)
		}
	}
	if !w.caps.Provision {
		return
	}
	r := w.request(newID())
	for _, d := range before {
		if d.State == backends.StateBlank {
			r.Source = d.Source
			break
		}
	}
	made, err := w.b.Create(w.call(), r)
	if err != nil {
		w.Fatal(err)
	}
	if r.Source != "" && made.Source != r.Source {
		w.Errorf("created on %q, asked for %q", made.Source, r.Source)
	}
	if r.Source != "" { // the source is taken now
		_, err := w.b.Create(w.call(), backends.CreateRequest{ID: newID(), Size: w.fx.Size, Source: r.Source})
		if err == nil {
			w.Error("one source was given out twice")
		}
	}
	after, err := w.b.Discover(w.call())
	if err != nil {
		w.Fatal(err)
	}
	found := 0
	for _, d := range after {
		if d.ID == made.ID {
			found++
			if d.State != backends.StateReady || d.Source != made.Source {
				w.Errorf("discovered %+v, created %+v", d, made)
			}
		}
		if d.ID == "" && d.State == backends.StateBlank && d.Source == made.Source {
			w.Errorf("still a candidate: %+v", d)
		}
	}
	if found != 1 {
		w.Errorf("drive discovered %d times", found)
	}
}

func testList(w *world) {
	made := w.provision(3)
	ids := map[backends.DriveID]bool{}
	for _, d := range made {
		ids[d.ID] = true
	}
	seen, last, after := 0, backends.DriveID(""), ""
	for range 100 {
		page, err := w.b.List(w.call(), backends.Page{After: after, Limit: 1})
		if err != nil || len(page.Drives) > 1 {
			w.Fatalf("page after %q: %+v, %v", after, page, err)
		}
		for _, d := range page.Drives {
			if d.ID <= last {
				w.Errorf("%s after %s: not in order", d.ID, last)
			}
			if last = d.ID; ids[d.ID] {
				seen++
			}
		}
		if after = page.Next; after == "" {
			break
		}
	}
	if seen != 3 {
		w.Errorf("paging found %d of 3 drives", seen)
	}
	whole, err := w.b.List(w.call(), backends.Page{})
	if err != nil || len(whole.Drives) < 3 {
		w.Errorf("list: %+v, %v", whole, err)
	}
	for _, bad := range []backends.Page{{Limit: -1}, {Limit: backends.MaxPage + 1}} {
		_, err := w.b.List(w.call(), bad)
		w.want("list with a bad limit", err, errdefs.ErrOutOfRange)
	}
	_, err = w.b.List(w.call(), backends.Page{After: "../../etc"})
	w.want("list with a bad token", err, errdefs.ErrInvalidArgument)
}

func testAttach(w *world) {
	d := w.provision(1)[0]
	a := w.attach(d.ID)
	if a.Size < backends.MinDriveSize || a.Size != w.get(d.ID).Size {
		w.Errorf("attached %+v, drive is %+v", a, w.get(d.ID))
	}
	if b := w.attach(d.ID); a != b {
		w.Errorf("attach again: %+v, first %+v", b, a)
	}
	if n := w.get(d.ID).Node; n != here {
		w.Errorf("attached, but get says node %q", n)
	}
	w.restart()
	if n := w.get(d.ID).Node; n != here {
		w.Errorf("after a restart get says node %q", n)
	}
	if b := w.attach(d.ID); a != b {
		w.Errorf("attach after a restart: %+v, first %+v", b, a)
	}
	w.want("detach of another node", w.b.Detach(w.call(), d.ID, there), nil)
	if n := w.get(d.ID).Node; n != here {
		w.Errorf("detach of another node detached this one: %q", n)
	}
	for range 2 {
		w.want("detach", w.b.Detach(w.call(), d.ID, here), nil)
		if n := w.get(d.ID).Node; n != "" {
			w.Errorf("detached, but get says node %q", n)
		}
	}
	absent := newID()
	w.want("detach of an absent drive", w.b.Detach(w.call(), absent, here), nil)
	_, err := w.b.Attach(w.call(), absent, here)
	w.want("attach of an absent drive", err, errdefs.ErrNotFound)
}

func (w *world) attach(id backends.DriveID) backends.Attachment {
	w.Helper()
	w.made = append(w.made, id)
	a, err := w.b.Attach(w.call(), id, here)
	if err != nil {
		w.Fatalf("attach: %v", err)
	}
	fi, err := os.Stat(a.Path)
	if err != nil {
		w.Fatalf("attached, but path does not work: %v", err)
	}
	if (a.Kind == backends.KindDir) != fi.IsDir() {
		w.Fatalf("attached as %s, is %v", a.Kind, fi.Mode())
	}
	return a
}

func testAttachElsewhere(w *world) {
	d := w.provision(1)[0]
	w.attach(d.ID)
	_, err := w.b.Attach(w.call(), d.ID, there)
	w.want("attach to a second node", err, errdefs.ErrFailedPrecondition)
	if n := w.get(d.ID).Node; n != here {
		w.Errorf("get says node %q", n)
	}
	w.want("detach", w.b.Detach(w.call(), d.ID, here), nil)
	_, err = w.b.Attach(w.call(), d.ID, there)
	if w.fx.OneNode {
		w.want("attach of this node's medium to another", err, errdefs.ErrFailedPrecondition)
		return
	}
	w.want("attach to the other node after detach", err, nil)
	w.want("detach of a node that may be dead", w.b.Detach(w.call(), d.ID, there), nil)
}

// testDataSurvives: what the agent wrote is there after detach, restart and attach.
func testDataSurvives(w *world) {
	d := w.provision(1)[0]
	a := w.attach(d.ID)
	path := a.Path
	if a.Kind == backends.KindDir {
		path = filepath.Join(a.Path, "superblock")
	}
	want := []byte("what the agent wrote: " + string(d.ID))
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		w.Fatal(err)
	}
	_, err = f.WriteAt(want, 0)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		w.Fatal(err)
	}
	w.want("detach", w.b.Detach(w.call(), d.ID, here), nil)
	w.restart()
	if _, err := w.b.Discover(w.call()); err != nil {
		w.Error(err)
	}
	w.attach(d.ID)
	got := make([]byte, len(want))
	f, err = os.Open(path)
	if err != nil {
		w.Fatal(err)
	}
	_, err = f.ReadAt(got, 0)
	if err := errors.Join(err, f.Close()); err != nil || string(got) != string(want) {
		w.Errorf("read back %q, %v", got, err)
	}
}

func testDelete(w *world) {
	if !w.provisions() {
		return
	}
	r := w.request(newID())
	d, err := w.b.Create(w.call(), r)
	if err != nil {
		w.Fatal(err)
	}
	a := w.attach(d.ID)
	if a.Kind == backends.KindDir {
		if err := os.WriteFile(filepath.Join(a.Path, "data"), []byte("x"), 0o600); err != nil {
			w.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(a.Path, "meta", "deep"), 0o700); err != nil {
			w.Fatal(err)
		}
	}
	w.want("delete of an attached drive", w.b.Delete(w.call(), d.ID), errdefs.ErrFailedPrecondition)
	if got := w.get(d.ID); got.Node != here {
		w.Errorf("after a refused delete: %+v", got)
	}
	w.want("detach", w.b.Detach(w.call(), d.ID, here), nil)
	w.want("delete", w.b.Delete(w.call(), d.ID), nil)
	w.want("delete again", w.b.Delete(w.call(), d.ID), nil)
	w.want("delete of a drive that never was", w.b.Delete(w.call(), newID()), nil)
	_, err = w.b.Get(w.call(), d.ID)
	w.want("get after delete", err, errdefs.ErrNotFound)
	// The medium can be used again, under a new ID, and shows nothing of the old drive.
	again := w.request(newID())
	if len(d.Source) > 0 && w.candidate(d.Source) {
		again.Source = d.Source
	}
	if _, err := w.b.Create(w.call(), again); err != nil {
		w.Fatalf("create after delete: %v", err)
	}
	if a := w.attach(again.ID); a.Kind == backends.KindDir {
		if _, err := os.Stat(filepath.Join(a.Path, "data")); err == nil {
			w.Error("the deleted drive's data came back")
		}
	}
}

// candidate tells whether source is offered as blank now.
func (w *world) candidate(source string) bool {
	all, err := w.b.Discover(w.call())
	if err != nil {
		w.Error(err)
	}
	for _, d := range all {
		if d.Source == source && d.State == backends.StateBlank {
			return true
		}
	}
	return false
}

func testExpand(w *world) {
	d := w.provision(1)[0]
	if !w.caps.Expand {
		_, err := w.b.Expand(w.call(), d.ID, d.Size*2)
		w.want("expand", err, errdefs.ErrUnimplemented)
		return
	}
	if got, err := w.b.Expand(w.call(), d.ID, backends.MinDriveSize); err != nil || got.Size != d.Size {
		w.Errorf("expand to less: %+v, %v", got, err)
	}
	_, err := w.b.Expand(w.call(), d.ID, backends.MaxDriveSize)
	w.want("expand beyond the medium", err, errdefs.ErrResourceExhausted)
	if got := w.get(d.ID); got.Size != d.Size {
		w.Errorf("a refused expand changed the size: %+v", got)
	}
	_, err = w.b.Expand(w.call(), newID(), 1<<40)
	w.want("expand of an absent drive", err, errdefs.ErrNotFound)
	want := d.Size + backends.MinDriveSize
	got, err := w.b.Expand(w.call(), d.ID, want)
	if errors.Is(err, errdefs.ErrResourceExhausted) && w.fx.Size == 0 {
		return // the drive already is all of its medium
	}
	if err != nil || got.Size < want || w.get(d.ID).Size != got.Size {
		w.Errorf("expand to %d: %+v, %v", want, got, err)
	}
	w.restart()
	if again := w.get(d.ID); again.Size != got.Size {
		w.Errorf("after a restart: %+v", again)
	}
	if a := w.attach(d.ID); a.Size != got.Size {
		w.Errorf("attached %+v after expand to %d", a, got.Size)
	}
}

func testFence(w *world) {
	d := w.provision(1)[0]
	if !w.caps.Fence {
		w.want("fence", w.b.Fence(w.call(), d.ID, here), errdefs.ErrUnimplemented)
		return
	}
	w.attach(d.ID)
	for range 2 {
		w.want("fence", w.b.Fence(w.call(), d.ID, here), nil)
		if n := w.get(d.ID).Node; n == here {
			w.Errorf("fenced, but still on node %q", n)
		}
	}
}

func testHealth(w *world) {
	d := w.provision(1)[0]
	for range 2 { // detached, attached
		start := time.Now().Add(-time.Minute)
		h, err := w.b.Health(w.call(), d.ID)
		if err != nil || h.State != backends.StateReady || h.Checked.Before(start) {
			w.Errorf("health: %+v, %v", h, err)
		}
		w.attach(d.ID)
	}
	_, err := w.b.Health(w.call(), newID())
	w.want("health of an absent drive", err, errdefs.ErrNotFound)
}

// testCancelled: a call whose caller is gone answers soon and leaves a state
// from which the same call, made again, succeeds.
func testCancelled(w *world) {
	d := w.provision(1)[0]
	gone, cancel := context.WithCancel(w.ctx)
	cancel()
	w.each(gone, d.ID, func(call string, err error) {
		if err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, errdefs.ErrFailedPrecondition) {
			w.Errorf("%s with a cancelled context: %v", call, err)
		}
	})
	if w.caps.Provision {
		r := w.request(newID())
		_, _ = w.b.Create(gone, r)
		if _, err := w.b.Create(w.call(), r); err != nil {
			w.Errorf("create after a cancelled create: %v", err)
		}
		w.attach(r.ID)
	}
}

func testBadIDs(w *world) {
	w.configure()
	for _, id := range []backends.DriveID{"", "x", "../../../etc", "00000000-0000-0000-0000-000000000000",
		"6BA7B810-9DAD-11D1-80B4-00C04FD430C8", "6ba7b810-9dad-11d1-80b4-00c04fd430c8\n", "a\x00b"} {
		bad := func(call string, err error) { w.want(call+" with a bad id", err, errdefs.ErrInvalidArgument) }
		_, err := w.b.Get(w.call(), id)
		bad("get", err)
		_, err = w.b.Attach(w.call(), id, here)
		bad("attach", err)
		bad("detach", w.b.Detach(w.call(), id, here))
		if w.caps.Provision {
			_, err = w.b.Create(w.call(), backends.CreateRequest{ID: id, Size: w.fx.Size})
			bad("create", err)
			bad("delete", w.b.Delete(w.call(), id))
		}
	}
	d := w.provision(1)[0]
	for _, n := range []backends.NodeID{"", "a/b", "a b", "\x00"} {
		_, err := w.b.Attach(w.call(), d.ID, n)
		w.want("attach to a bad node", err, errdefs.ErrInvalidArgument)
	}
}
