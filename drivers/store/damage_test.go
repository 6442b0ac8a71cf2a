package store

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"strings"
	"testing"

	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/vfs"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// memRig is a store on a disk in memory whose steps are all in the test's hands.
type memRig struct {
	t  testing.TB
	m  *vfs.Mem
	s  *Store
	r  *Replica
	q  block.Queue
	e  *vfs.MemEngine
	id ID
}

func newMemRig(t testing.TB, capacity, size int64, o testOptions) *memRig {
	t.Helper()
	g := &memRig{t: t, m: vfs.NewMem(capacity), id: ID{5}}
	if err := Format("/d", FormatOptions{FS: g.m, DriveID: ID{9}}); err != nil {
		t.Fatal(err)
	}
	g.open(0, o)
	if _, err := g.s.CreateReplica(ReplicaSpec{ID: g.id, VolumeID: ID{6}, Size: size, Untracked: true}); err != nil {
		t.Fatal(err)
	}
	g.attach()
	return g
}

func (g *memRig) open(boot int, o testOptions) {
	g.t.Helper()
	if o.journalBound == 0 {
		o.journalBound = 1 << 20
	}
	s, err := csOpen(g.m, boot, o)
	if err != nil {
		g.t.Fatal(err)
	}
	g.s = s
	g.e = vfs.NewMemEngine(g.m, nil)
}

func (g *memRig) attach() {
	g.t.Helper()
	r, err := g.s.Replica(g.id)
	if err != nil {
		g.t.Fatal(err)
	}
	g.r = r
	promote(g.t, r, r.Info().Promised.Epoch.N+1)
	if g.q, err = r.OpenQueue(g.e, testSession); err != nil {
		g.t.Fatal(err)
	}
}

func (g *memRig) close() {
	g.t.Helper()
	if err := errors.Join(g.q.Close(), g.s.Close()); err != nil {
		g.t.Fatal(err)
	}
}

func (g *memRig) do(r *block.Request) error {
	g.t.Helper()
	do(g.t, g.q, g.e, r)
	return r.Err
}

func (g *memRig) write(off int64, b byte, n int) error {
	g.t.Helper()
	return g.do(&block.Request{Op: block.OpWrite, Off: off, Len: int64(n), Buf: bytes.Repeat([]byte{b}, n)})
}

func (g *memRig) flush() {
	g.t.Helper()
	if err := g.do(&block.Request{Op: block.OpFlush}); err != nil {
		g.t.Fatal(err)
	}
}

func (g *memRig) read(off int64, n int) []byte {
	g.t.Helper()
	buf := make([]byte, n)
	if err := g.do(&block.Request{Op: block.OpRead, Off: off, Len: int64(n), Buf: buf}); err != nil {
		g.t.Fatal(err)
	}
	return buf
}

// sample is a closed store with a bit of everything.
func sample(t testing.TB) *vfs.Mem {
	g := newMemRig(t, 0, 1<<20, testOptions{})
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(g.write(0, 1, 200<<10))
	g.flush()
	must(g.r.Freeze(ID{1}))
	must(g.write(4096, 2, 8192))
	must(g.s.checkpoint())
	must(g.r.Freeze(ID{2}))
	must(g.write(100<<10, 3, 70<<10))
	_, err := g.s.Clone(ReplicaSpec{ID: ID{8}, Size: 2 << 20}, g.id, ID{1})
	must(err)
	other, err := g.s.Replica(ID{8})
	must(err)
	must(other.MarkDirty(0, 1))
	must(other.Clean(nil, Stamp{Epoch{3, 4}, 1}, 1))
	g.s.runBackground()
	g.close()
	return g.m
}

// readAllOf reads every replica and snapshot through a fresh opening.
func readAllOf(m *vfs.Mem) (map[string]string, error) {
	s, err := csOpen(m, 0, testOptions{journalBound: 1 << 20})
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, ri := range s.Replicas() {
		r, err := s.Replica(ri.ID)
		if err != nil {
			return nil, err
		}
		snaps := []*ID{nil}
		for _, l := range ri.Layers {
			snaps = append(snaps, &l.Snapshot)
		}
		for _, snap := range snaps {
			v, err := r.View(snap)
			if err != nil {
				return nil, err
			}
			buf := make([]byte, v.Size())
			_, err = v.ReadAt(buf, 0)
			if err := errors.Join(err, v.Close()); err != nil {
				return nil, errors.Join(err, s.Close())
			}
			out[fmt.Sprint(ri.ID, v.Snapshot())] = string(buf)
		}
		if err := r.States(nil, 0, 1, func(st RegionState) error { out[fmt.Sprint(ri.ID, "state")] = fmt.Sprint(st); return nil }); err != nil {
			return nil, err
		}
	}
	return out, s.Close()
}

// Goal: a flipped bit anywhere in the metadata is refused with place and
// reason, or seen by Check, or harmless; it never panics and never shows other
// bytes. Method: flip bits one at a time in each file.
func TestBitFlips(t *testing.T) {
	m := sample(t)
	want, err := readAllOf(m.Kill())
	if err != nil {
		t.Fatal(err)
	}
	names, err := m.List("/d/meta")
	if err != nil {
		t.Fatal(err)
	}
	files := []string{"/d/superblock"}
	for _, n := range names {
		files = append(files, path.Join("/d/meta", n))
	}
	r := rand.New(rand.NewPCG(1, 2))
	refused := map[string]int{}
	for _, name := range files {
		size := fileSize(t, m, name)
		for range 150 {
			at := r.Int64N(size)
			bit := byte(1) << r.IntN(8)
			c := m.Kill()
			flip(t, c, name, at, bit)
			rep, cerr := Check("/d", CheckOptions{FS: c, BootID: csBoot(0), Data: true})
			got, err := readAllOf(c)
			switch {
			case err != nil:
				if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrNewer) || !strings.Contains(err.Error(), "/d/") {
					t.Fatalf("%s byte %d: error without place or class: %v", name, at, err)
				}
				if cerr == nil && len(rep.Problems) == 0 {
					t.Fatalf("%s byte %d: open says %v, check says nothing", name, at, err)
				}
				refused[path.Base(name)]++
			case fmt.Sprint(got) != fmt.Sprint(want):
				t.Fatalf("%s byte %d bit %#x: other contents without an error", name, at, bit)
			}
		}
	}
	for _, name := range files {
		if n := path.Base(name); n != "superblock" && refused[n] == 0 {
			t.Errorf("no flip in %s was refused", n)
		}
	}
}

func fileSize(t testing.TB, m *vfs.Mem, name string) int64 {
	t.Helper()
	f, err := m.Open(name, 0)
	if err != nil {
		t.Fatal(err)
	}
	size, err := f.Size()
	if err != nil {
		t.Fatal(err)
	}
	return size
}

func flip(t testing.TB, m *vfs.Mem, name string, at int64, bit byte) {
	t.Helper()
	f, err := m.Open(name, 0)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= bit
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

// Goal: files cut short or gone are refused with place and reason.
func TestTruncation(t *testing.T) {
	m := sample(t)
	names, err := m.List("/d/meta")
	if err != nil {
		t.Fatal(err)
	}
	files := []string{"/d/superblock", "/d/data"}
	for _, n := range names {
		files = append(files, path.Join("/d/meta", n))
	}
	for _, name := range files {
		size := fileSize(t, m, name)
		for _, to := range []int64{0, 1, size / 3, size / 2, size - 1} {
			if name == "/d/data" && to == size-1 {
				continue // a lost byte of an extent without a checksum cannot be seen
			}
			c := m.Kill()
			f, err := c.Open(name, 0)
			if err != nil {
				t.Fatal(err)
			}
			if err := f.Truncate(to); err != nil {
				t.Fatal(err)
			}
			rep, err := Check("/d", CheckOptions{FS: c, BootID: csBoot(0), Data: true})
			if err == nil && len(rep.Problems) == 0 {
				t.Errorf("%s cut to %d of %d bytes: check finds nothing", name, to, size)
			}
		}
		c := m.Kill()
		if err := c.Remove(name); err != nil {
			t.Fatal(err)
		}
		if _, err := csOpen(c, 0, testOptions{}); err == nil {
			t.Errorf("%s removed: opened", name)
		}
	}
}

// Goal: a newer format is refused by name, and nothing is changed.
func TestNewerFormat(t *testing.T) {
	m := sample(t)
	names, err := m.List("/d/meta")
	if err != nil {
		t.Fatal(err)
	}
	type patch struct {
		name       string
		size, copy int64 // of the checksummed block, and where the next copy is
	}
	patches := []patch{{"/d/superblock", superSize, superSize}}
	for _, n := range names {
		patches = append(patches, patch{path.Join("/d/meta", n), 512, 0})
	}
	for _, p := range patches {
		c := m.Kill()
		f, err := c.Open(p.name, 0)
		if err != nil {
			t.Fatal(err)
		}
		for at := int64(0); at <= p.copy; at += max(p.size, 1) {
			b := make([]byte, p.size)
			if _, err := f.ReadAt(b, at); err != nil {
				t.Fatal(err)
			}
			le.PutUint32(b[8:], 99)
			le.PutUint32(b[p.size-4:], checksum(b[:p.size-4]))
			if _, err := f.WriteAt(b, at); err != nil {
				t.Fatal(err)
			}
		}
		c.Hook = func(e vfs.Event) { t.Errorf("%s: %v", p.name, e) }
		if _, err := csOpen(c, 0, testOptions{}); !errors.Is(err, ErrNewer) || !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s of format 99: %v", p.name, err)
		}
	}
}

// Goal: rot in a frozen extent is an error to whoever reads it, and is not
// copied into a new extent.
func TestRot(t *testing.T) {
	g := newMemRig(t, 0, 1<<20, testOptions{})
	if err := g.write(0, 1, ExtentSize); err != nil {
		t.Fatal(err)
	}
	if err := g.r.Freeze(ID{1}); err != nil {
		t.Fatal(err)
	}
	g.s.runBackground()
	if !g.r.Info().Layers[0].Summed {
		t.Fatal("not summed")
	}
	flip(t, g.m, "/d/data", 5000, 4)
	v, err := g.r.View(&ID{1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.ReadAt(make([]byte, 10), 9000); !errors.Is(err, block.ErrIO) {
		t.Errorf("read of rot: %v", err)
	}
	if err := Send(&bytes.Buffer{}, v, nil); !errors.Is(err, block.ErrIO) {
		t.Errorf("send of rot: %v", err)
	}
	if err := g.write(4096, 2, 4096); !errors.Is(err, block.ErrIO) {
		t.Errorf("copy of rot: %v", err)
	}
	if g.s.Info().ChecksumErrors != 3 {
		t.Errorf("%d checksum errors counted", g.s.Info().ChecksumErrors)
	}
	if err := g.write(0, 2, ExtentSize); err != nil {
		t.Errorf("a whole overwrite needs nothing of the old: %v", err)
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	g.close()
	rep, err := Check("/d", CheckOptions{FS: g.m, BootID: csBoot(0), Data: true})
	if err != nil || len(rep.Problems) != 1 || rep.Verified != 1 {
		t.Errorf("check: %+v, %v", rep, err)
	}
}

// Goal: one extent named at two places is found.
func TestCheckFindsDoubleUse(t *testing.T) {
	g := newMemRig(t, 0, 1<<20, testOptions{})
	if err := g.write(0, 1, 128<<10); err != nil {
		t.Fatal(err)
	}
	st := &g.s.st.trees
	st.set(&g.r.rs.top.view, 1, entryOf(physOf(st.get(g.r.rs.top.view, 0))), false)
	if err := g.s.checkpoint(); err != nil {
		t.Fatal(err)
	}
	rep, err := Check("/d", CheckOptions{FS: g.m.Kill(), BootID: csBoot(0)})
	if err != nil || len(rep.Problems) != 1 || !strings.Contains(rep.Problems[0], "also holds extent 0") {
		t.Errorf("check: %+v, %v", rep, err)
	}
}

// Goal: a failed sync ends the store's life: flushes and first writes fail,
// reads go on, the loss id changes, and reopening serves again.
func TestFlushError(t *testing.T) {
	for _, file := range []string{"/d/data", "/d/meta/journal"} {
		g := newMemRig(t, 0, 1<<20, testOptions{})
		if err := g.write(0, 1, 4096); err != nil {
			t.Fatal(err)
		}
		loss := g.s.Info().LossID
		g.m.Fault = func(e vfs.Event) error {
			if e.Kind == vfs.OpSync && strings.HasPrefix(e.Name, file) {
				return errIO
			}
			return nil
		}
		if err := g.do(&block.Request{Op: block.OpFlush}); !errors.Is(err, block.ErrIO) {
			t.Fatalf("%s: flush: %v", file, err)
		}
		g.m.Fault = nil
		if err := g.do(&block.Request{Op: block.OpFlush}); !errors.Is(err, block.ErrIO) {
			t.Errorf("%s: second flush: %v", file, err)
		}
		if err := g.write(512<<10, 1, 4096); !errors.Is(err, block.ErrIO) {
			t.Errorf("%s: first write: %v", file, err)
		}
		if !bytes.Equal(g.read(0, 512), bytes.Repeat([]byte{1}, 512)) {
			t.Errorf("%s: read", file)
		}
		if err := errors.Join(g.r.Freeze(ID{1})); !errors.Is(err, block.ErrIO) {
			t.Errorf("%s: freeze: %v", file, err)
		}
		if g.s.Info().Failed == nil || g.s.Info().LossID == loss {
			t.Errorf("%s: loss is not recorded", file)
		}
		g.m = g.m.Kill()
		g.open(0, testOptions{})
		if got := g.s.Info().LossID; got == loss {
			t.Errorf("%s: loss id came back", file)
		}
		g.attach()
		if err := g.write(512<<10, 1, 4096); err != nil {
			t.Errorf("%s: after reopening: %v", file, err)
		}
		g.close()
	}
}

var errIO = fmt.Errorf("injected: %w", block.ErrIO)

// Goal: an error of one write is that write's alone and leaves old or new.
func TestDataError(t *testing.T) {
	g := newMemRig(t, 0, 1<<20, testOptions{unit: 4096})
	if err := g.write(0, 1, 4096); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []vfs.OpKind{vfs.OpRead, vfs.OpWrite} {
		g.m.Fault = func(e vfs.Event) error {
			if e.Kind == kind && e.Name == "/d/data" {
				return errIO
			}
			return nil
		}
		for _, off := range []int64{0, 512, 256 << 10} {
			n := 4096
			if off == 512 {
				n = 512
			}
			if err := g.write(off, 2, n); kind == vfs.OpWrite && !errors.Is(err, block.ErrIO) {
				t.Errorf("%s fails, write at %d: %v", kind, off, err)
			}
		}
	}
	g.m.Fault = nil
	if b := g.read(256<<10, 4096); b[0] != 0 && b[0] != 2 {
		t.Error("neither old nor new")
	}
	if err := g.write(256<<10, 3, 4096); err != nil {
		t.Error(err)
	}
	g.flush()
	g.close()
}
