package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/vfs"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// Goal: foreign directories are never formatted (rule 10).
func TestFormatRefuses(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "precious"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Format(dir, FormatOptions{}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("foreign file: %v", err)
	}
	dir = t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "data"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Format(dir, FormatOptions{}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("foreign data: %v", err)
	}
}

// Goal: a Format that was cut at any step can be done again, and is either no
// store or a whole one.
func TestFormatCut(t *testing.T) {
	for step := 1; ; step++ {
		m := vfs.NewMem(0)
		n := 0
		m.Fault = func(e vfs.Event) error {
			if n++; n >= step && e.Kind != vfs.OpRead {
				return errIO
			}
			return nil
		}
		err := Format("/d", FormatOptions{FS: m})
		m.Fault = nil
		c := m.PowerCut(newRand(uint64(step)))
		_ = c.Mkdir("/d")
		if s, oerr := Open("/d", Options{FS: c, BootID: csBoot(0)}); oerr == nil {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		} else if !errdefs.IsNotFound(oerr) {
			t.Fatalf("step %d: %v", step, oerr)
		} else if ferr := Format("/d", FormatOptions{FS: c}); ferr != nil {
			t.Fatalf("step %d: format again: %v", step, ferr)
		}
		if err == nil {
			if step < 10 {
				t.Fatalf("only %d steps", step)
			}
			return
		}
	}
}

// Goal: every control call is idempotent and refuses nonsense with its class.
func TestControlCalls(t *testing.T) {
	g := newMemRig(t, 0, 1<<20, testOptions{})
	spec := ReplicaSpec{ID: g.id, VolumeID: ID{6}, Size: 1 << 20, Untracked: true}
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}
	is := func(f func(error) bool, err error) {
		t.Helper()
		if err == nil || !f(err) {
			t.Errorf("error: %v", err)
		}
	}
	outOfRange := func(err error) bool { return errors.Is(err, errdefs.ErrOutOfRange) }
	r2, err := g.s.CreateReplica(spec)
	ok(err)
	if r2 != g.r {
		t.Error("created twice")
	}
	spec.Size *= 2
	_, err = g.s.CreateReplica(spec)
	is(errdefs.IsAlreadyExists, err)
	for _, bad := range []ReplicaSpec{
		{}, {ID: ID{1}}, {ID: ID{1}, Size: -1}, {ID: ID{1}, Size: ExtentSize + 1}, {ID: ID{1}, Size: 1 << 60}, {ID: ID{1}, Size: ExtentSize, Grain: 512},
	} {
		_, err := g.s.CreateReplica(bad)
		is(func(err error) bool { return outOfRange(err) || errdefs.IsInvalidArgument(err) }, err)
	}
	ok(g.write(0, 1, 4096))
	ok(g.r.Freeze(ID{1}))
	ok(g.r.Freeze(ID{1}))
	is(errdefs.IsInvalidArgument, g.r.Freeze(ID{}))
	is(errdefs.IsFailedPrecondition, g.r.Restore(ID{1}))
	_, err = g.s.Clone(ReplicaSpec{ID: ID{2}, Size: 1 << 20}, g.id, ID{9})
	is(errdefs.IsNotFound, err)
	_, err = g.s.Clone(ReplicaSpec{ID: ID{2}, Size: 64 << 10}, g.id, ID{1})
	is(outOfRange, err)
	_, err = g.s.Clone(ReplicaSpec{ID: ID{2}, Size: 2 << 20}, g.id, ID{1})
	ok(err)
	_, err = g.r.View(nil)
	is(errdefs.IsFailedPrecondition, err)
	is(outOfRange, g.r.Grow(64<<10))
	ok(g.r.Grow(1<<20 + ExtentSize))
	ok(g.r.Grow(1<<20 + ExtentSize))
	if g.q.Info().Size != 1<<20+ExtentSize {
		t.Error("queue did not grow")
	}
	ok(g.write(1<<20, 1, 4096))
	is(errdefs.IsFailedPrecondition, g.s.Delete(g.id, true))
	is(errdefs.IsFailedPrecondition, g.s.Delete(ID{2}, false))
	is(errdefs.IsFailedPrecondition, g.s.Close())
	ok(g.q.Close())
	is(errdefs.IsNotFound, g.r.Restore(ID{5}))
	ok(g.r.Thaw(ID{1}))
	ok(g.r.Thaw(ID{1}))
	ok(g.r.Drop(ID{1}))
	ok(g.s.Delete(g.id, true))
	ok(g.s.Delete(g.id, true))
	is(errdefs.IsNotFound, g.r.Freeze(ID{3}))
	ok(g.s.Delete(ID{2}, true))
	ok(g.s.WaitIdle(context.Background()))
	if in := g.s.Info(); in.Used != 0 || in.Pending != 0 {
		t.Errorf("space did not come back: %+v", in)
	}
	ok(g.s.Close())
}

// Goal: dropping what only a snapshot held gives exactly that back; a snapshot
// being read keeps its extents.
func TestSpaceComesBack(t *testing.T) {
	g := newMemRig(t, 0, 4<<20, testOptions{})
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(g.write(0, 1, 1<<20))
	must(g.r.Freeze(ID{1}))
	must(g.write(0, 2, 512<<10))
	used := func() int64 { return g.s.Info().Used }
	if used() != 1<<20+512<<10 {
		t.Fatalf("used %d", used())
	}
	for snap, want := range map[ID]int64{{1}: 512 << 10, {}: 512 << 10} {
		id := &snap
		if snap.IsZero() {
			id = nil
		}
		if n, err := g.r.Exclusive(id); err != nil || n != want {
			t.Errorf("exclusive of %s: %d, %v", snap, n, err)
		}
	}
	v, err := g.r.View(&ID{1})
	must(err)
	q, err := g.r.OpenSnapshot(g.e, ID{1})
	must(err)
	must(g.r.Drop(ID{1}))
	must(g.s.WaitIdle(context.Background()))
	if used() != 1<<20+512<<10 {
		t.Errorf("used %d while a snapshot is read", used())
	}
	b := make([]byte, 4096)
	do(t, q, g.e, &block.Request{Op: block.OpRead, Len: 4096, Buf: b})
	if b[0] != 1 {
		t.Error("snapshot changed")
	}
	w := &block.Request{Op: block.OpWrite, Len: 4096, Buf: b}
	if do(t, q, g.e, w); !errors.Is(w.Err, block.ErrReadOnly) {
		t.Errorf("write to a snapshot: %v", w.Err)
	}
	must(v.Close())
	must(q.Close())
	must(g.s.WaitIdle(context.Background()))
	if used() != 1<<20 {
		t.Errorf("used %d after the snapshot went", used())
	}
	must(g.do(&block.Request{Op: block.OpTrim, Off: 0, Len: 512 << 10}))
	must(g.s.WaitIdle(context.Background()))
	if used() != 512<<10 {
		t.Errorf("used %d after a trim", used())
	}
	g.close()
}

// Goal: an extent that a volume and a clone share is not written in place by
// one while the other's giving it up is not durable: after a power cut the
// other has it back. Method: both have leaves of their own that name it; one
// moves away, the other writes; cut.
func TestSharedExtentAfterCut(t *testing.T) {
	broken := func(o testOptions) (n int) {
		for seed := range uint64(60) {
			g := newMemRig(t, 0, 1<<20, o)
			must := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			must(g.write(0, 1, ExtentSize))
			must(g.r.Freeze(ID{1}))
			c, err := g.s.Clone(ReplicaSpec{ID: ID{50}, Size: 1 << 20, Untracked: true}, g.id, ID{1})
			must(err)
			promote(t, c, 1)
			cq, err := c.OpenQueue(g.e, testSession)
			must(err)
			other := func(off int64, b byte) {
				r := &block.Request{Op: block.OpWrite, Off: off, Len: 4096, Buf: bytes.Repeat([]byte{b}, 4096)}
				do(t, cq, g.e, r)
				must(r.Err)
			}
			other(256<<10, 9)               // the clone's own leaf
			must(g.write(256<<10, 8, 4096)) // and the volume's
			must(g.r.Drop(ID{1}))           // now both alone name extent 0
			must(g.s.WaitIdle(context.Background()))
			must(g.do(&block.Request{Op: block.OpTrim, Len: ExtentSize}))
			other(0, 7)
			g.m = g.m.PowerCut(newRand(seed))
			g.open(1, testOptions{})
			g.attach()
			if b := g.read(0, 512)[0]; b != 0 && b != 1 {
				n++
			}
			g.close()
		}
		return n
	}
	if n := broken(testOptions{}); n != 0 {
		t.Errorf("%d of 60 cuts show the clone's bytes in the volume", n)
	}
	if n := broken(testOptions{freeAtOnce: true}); n == 0 {
		t.Error("mutation not seen: references given up at once")
	}
}

// Goal: a full drive answers ENOSPC before it changes a byte, overwrites go on,
// and space that is being freed is waited for.
func TestFullDrive(t *testing.T) {
	m := vfs.NewMem(0)
	if err := Format("/d", FormatOptions{FS: m, SizeLimit: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	g := &memRig{t: t, m: m, id: ID{5}}
	g.open(0, testOptions{})
	if _, err := g.s.CreateReplica(ReplicaSpec{ID: g.id, Size: 4 << 20, Untracked: true}); err != nil {
		t.Fatal(err)
	}
	g.attach()
	if err := g.write(0, 1, 960<<10); err != nil {
		t.Fatal(err)
	}
	if err := g.write(960<<10, 2, 128<<10); !errors.Is(err, block.ErrNoSpace) {
		t.Fatalf("write of two extents into one: %v", err)
	}
	if b := g.read(960<<10, 4096); b[0] != 0 {
		t.Error("a part was written")
	}
	if err := g.write(960<<10, 2, 64<<10); err != nil {
		t.Fatal(err)
	}
	if err := g.write(0, 3, 960<<10); err != nil {
		t.Errorf("overwrite on a full drive: %v", err)
	}
	if err := g.do(&block.Request{Op: block.OpTrim, Len: 256 << 10}); err != nil {
		t.Fatal(err)
	}
	if err := g.write(2<<20, 4, 256<<10); err != nil {
		t.Errorf("write into space just freed: %v", err)
	}
	if err := g.write(3<<20, 4, 4096); !errors.Is(err, block.ErrNoSpace) {
		t.Errorf("full again: %v", err)
	}
	// The ends of this zero lie in frozen extents: copies need space, and
	// without it the middle must stay too.
	if err := g.r.Freeze(ID{1}); err != nil {
		t.Fatal(err)
	}
	if err := g.do(&block.Request{Op: block.OpZero, Off: 2<<20 + 4096, Len: 200 << 10}); !errors.Is(err, block.ErrNoSpace) {
		t.Errorf("zero without space for its ends: %v", err)
	}
	if !bytes.Equal(g.read(2<<20, 256<<10), bytes.Repeat([]byte{4}, 256<<10)) {
		t.Error("a zero that lacked space changed something")
	}
	g.close()

	// The file system is full although the limit is not reached.
	g = newMemRig(t, 64<<20, 256<<20, testOptions{})
	var err error
	n := int64(0)
	for ; err == nil && n < 256; n++ {
		err = g.write(n<<20, 1, 1<<20)
	}
	if !errors.Is(err, block.ErrNoSpace) || n < 40 {
		t.Fatalf("after %d MiB: %v", n, err)
	}
	g.flush()
	if err := g.r.Freeze(ID{1}); err != nil {
		t.Errorf("metadata has no reserve: %v", err)
	}
	g.close()
}

// Goal: a view of the present contents, taken while a queue is open, stays as
// it is under writes in place, and gives its space back.
func TestNow(t *testing.T) {
	g := newMemRig(t, 0, 1<<20, testOptions{})
	if err := g.write(0, 1, 256<<10); err != nil {
		t.Fatal(err)
	}
	v, err := g.r.Now()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(g.write(4096, 2, 4096), g.do(&block.Request{Op: block.OpTrim, Off: 64 << 10, Len: 64 << 10})); err != nil {
		t.Fatal(err)
	}
	g.s.runBackground()
	got := make([]byte, 256<<10)
	if _, err := v.ReadAt(got, 0); err != nil || !bytes.Equal(got, bytes.Repeat([]byte{1}, 256<<10)) {
		t.Errorf("the view changed (%v)", err)
	}
	if err := errors.Join(v.Close(), g.s.WaitIdle(context.Background())); err != nil {
		t.Fatal(err)
	}
	if used := g.s.Info().Used; used != 192<<10 {
		t.Errorf("used %d", used)
	}
	g.q.Submit([]*block.Request{{Op: block.OpFlush}})
	if _, err := g.r.Now(); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("with a request in flight: %v", err)
	}
	g.q.Reap(make([]*block.Request, 1))
	g.close()
}

// Goal: where no holes can be punched, a reused extent still reads as zeros.
func TestNoPunch(t *testing.T) {
	g := newMemRig(t, 0, 1<<20, testOptions{})
	g.m.Fault = func(e vfs.Event) error {
		if e.Kind == vfs.OpPunch {
			return vfs.ErrNoPunch
		}
		return nil
	}
	for round := range byte(5) {
		if err := g.write(0, round+1, 1<<20); err != nil {
			t.Fatal(err)
		}
		if err := g.do(&block.Request{Op: block.OpTrim, Len: 1 << 20}); err != nil {
			t.Fatal(err)
		}
		if err := g.s.WaitIdle(context.Background()); err != nil {
			t.Fatal(err)
		}
		if err := g.write(8192, round+1, 4096); err != nil {
			t.Fatal(err)
		}
		want := make([]byte, 1<<20)
		copy(want[8192:], bytes.Repeat([]byte{round + 1}, 4096))
		if !bytes.Equal(g.read(0, 1<<20), want) {
			t.Fatalf("round %d: old bytes show", round)
		}
	}
	if used := g.s.Info().Used; used != ExtentSize {
		t.Errorf("used %d", used)
	}
	g.close()
}

// Goal: dirty bits and stamps follow REPLICATION 1 over layers.
func TestRegions(t *testing.T) {
	g := newMemRig(t, 0, 4<<20, testOptions{})
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	state := func(snap *ID) (out string) {
		must(g.r.States(snap, 0, 4, func(s RegionState) error {
			c := "-"
			if s.Dirty {
				c = "D"
			}
			out += fmt.Sprintf("%s%d ", c, s.Stamp.Counter)
			return nil
		}))
		return strings.TrimSpace(out)
	}
	expect := func(snap *ID, want string) {
		t.Helper()
		if got := state(snap); got != want {
			t.Errorf("states %q, want %q", got, want)
		}
	}
	ep := Epoch{3, 99}
	expect(nil, "D0 D0 D0 D0")
	must(g.r.SetUntracked(false))
	expect(nil, "D0 D0 D0 D0")
	must(g.r.Clean(nil, Stamp{ep, 1}, 0, 1, 2, 3))
	expect(nil, "-1 -1 -1 -1")
	must(g.write(1<<20, 1, 4096))
	expect(nil, "-1 D1 -1 -1")
	must(g.r.Freeze(ID{1}))
	expect(nil, "-1 -1 -1 -1")
	expect(&ID{1}, "-1 D1 -1 -1")
	must(g.write(2<<20, 1, 4096))
	must(g.r.Clean(nil, Stamp{ep, 2}, 2))
	must(g.r.Clean(&ID{1}, Stamp{ep, 3}, 1, 2))
	// Region 1 of the top inherits from the layer, region 2 has its own stamp.
	expect(&ID{1}, "-1 -3 -3 -1")
	expect(nil, "-1 -3 -2 -1")
	must(g.write(3<<20, 1, 4096))
	must(g.r.Freeze(ID{2}))
	must(g.write(0, 1, 4096))
	must(g.r.Thaw(ID{2})) // dirty goes up
	expect(nil, "D1 -3 -2 D1")
	for _, err := range []error{g.r.MarkDirty(4), g.r.Clean(nil, Stamp{ep, 1 << 31}, 0), g.r.Clean(nil, Stamp{ep, 1}, 9), g.r.Clean(&ID{9}, Stamp{ep, 1}, 0)} {
		if err == nil {
			t.Error("nonsense was taken")
		}
	}
	g.flush()
	g.m = g.m.Kill()
	g.open(0, testOptions{})
	g.attach()
	expect(nil, "D1 -3 -2 D1")
	expect(&ID{1}, "-1 -3 -3 -1")
	g.close()
}

// RemovalDirtyRegionNextEpoch, level C: dirty bits are durable before the
// first data write to a clean region reaches the device.
func TestDirtyBeforeData(t *testing.T) {
	bad := func(o testOptions) (n int) {
		for seed := range uint64(30) {
			g := newMemRig(t, 0, 4<<20, o)
			if err := errors.Join(g.r.SetUntracked(false), g.write(0, 1, 4<<20), g.r.Clean(nil, Stamp{Epoch{1, 1}, 1}, 0, 1, 2, 3)); err != nil {
				t.Fatal(err)
			}
			g.flush()
			if err := g.write(1<<20, 2, 4096); err != nil {
				t.Fatal(err)
			}
			g.m = g.m.PowerCut(newRand(seed))
			g.open(1, testOptions{})
			g.attach()
			dirty := false
			if err := g.r.States(nil, 1, 1, func(s RegionState) error { dirty = s.Dirty; return nil }); err != nil {
				t.Fatal(err)
			}
			if g.read(1<<20, 512)[0] == 2 && !dirty {
				n++
			}
			g.close()
		}
		return n
	}
	if n := bad(testOptions{}); n != 0 {
		t.Errorf("%d of 30 cuts left new bytes in a clean region", n)
	}
	if n := bad(testOptions{noDirtySync: true}); n == 0 {
		t.Error("mutation not seen: data before dirty")
	}
}
