//go:build integration

package node

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

const mib = 1 << 20

// pattern is size reproducible bytes.
func pattern(seed uint64, size int) []byte {
	b := make([]byte, size)
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	_, _ = rand.NewChaCha8(key).Read(b) // never an error
	return b
}

// noise fills a file with a pattern.
func noise(t testing.TB, path string, seed uint64, size int) []byte {
	t.Helper()
	b := pattern(seed, size)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return b
}

// sameFile says at which byte a file differs.
func sameFile(t testing.TB, what, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(got, want) {
		return
	}
	if len(got) != len(want) {
		t.Errorf("%s: %d bytes, want %d", what, len(got), len(want))
		return
	}
	for i := range got {
		if got[i] != want[i] {
			t.Errorf("%s: differs from byte %d: %x, want %x", what, i, got[i], want[i])
			return
		}
	}
}

// exported makes a volume and returns its URI.
func (a *agent) exported(name, size string) string {
	a.t.Helper()
	a.must("volume", "create", name, "--size", size, "--fs", "none")
	return a.must("volume", "export", name)
}

// mapEntry is a line of nbdinfo --map --json.
type mapEntry struct {
	Offset, Length int64
	Type           int // base:allocation: 1 hole, 2 zero
}

func nbdMap(t testing.TB, uri string) []mapEntry {
	t.Helper()
	var list []mapEntry
	if err := json.Unmarshal([]byte(must(t, "nbdinfo", "--json", "--map", uri)), &list); err != nil {
		t.Fatal(err)
	}
	return list
}

// Goal: the tools of libnbd see what is there and copy it both ways.
func TestLibnbd(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	a := newAgent(t, dir, [2]string{"p", "d1"})
	uri := a.exported("v", "64MiB")

	var info struct {
		Exports []struct {
			Name     string   `json:"export-name"`
			Size     int64    `json:"export-size"`
			Contexts []string `json:"contexts"`
			Multi    bool     `json:"can_multi_conn"`
			Flush    bool     `json:"can_flush"`
			FUA      bool     `json:"can_fua"`
			Trim     bool     `json:"can_trim"`
			Zero     bool     `json:"can_zero"`
			ReadOnly bool     `json:"is_read_only"`
			Min      int      `json:"block_size_minimum"`
		} `json:"exports"`
	}
	if err := json.Unmarshal([]byte(must(t, "nbdinfo", "--json", uri)), &info); err != nil {
		t.Fatal(err)
	}
	e := info.Exports[0]
	if e.Name != "v" || e.Size != 64*mib || !e.Multi || !e.Flush || !e.FUA || !e.Trim || !e.Zero || e.ReadOnly || e.Min != 512 {
		t.Errorf("nbdinfo: %+v", e)
	}
	if m := nbdMap(t, uri); len(m) != 1 || m[0] != (mapEntry{0, 64 * mib, 3}) {
		t.Errorf("map of an empty volume: %v", m)
	}

	in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
	want := noise(t, in, 1, 64*mib)
	clear(want[8*mib : 24*mib]) // nbdcopy makes holes of it
	if err := os.WriteFile(in, want, 0o600); err != nil {
		t.Fatal(err)
	}
	must(t, "nbdcopy", "--flush", in, uri)
	must(t, "nbdcopy", uri, out)
	sameFile(t, "nbdcopy there and back", out, want)
	m := nbdMap(t, uri)
	if len(m) != 3 || m[1] != (mapEntry{8 * mib, 16 * mib, 3}) || m[0].Type != 0 || m[2].Type != 0 {
		t.Errorf("map after the copy: %v", m)
	}
	if v := a.volume("v"); v.Replicas[0].AllocatedBytes != strconv.Itoa(48*mib) {
		t.Errorf("allocated: %+v, want %d", v.Replicas, 48*mib)
	}

	// Both ends at once: one volume into another.
	uri2 := a.exported("w", "64MiB")
	must(t, "nbdcopy", "--flush", uri, uri2)
	must(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", uri, uri2)
	a.must("volume", "export", "v", "--stop")
	a.must("volume", "export", "w", "--stop")
	a.must("volume", "delete", "v", "w")
	if d := a.drive("p"); d.Replicas != 0 {
		t.Errorf("after the delete: %+v", d)
	}
	a.nothingLeft()
}

// Goal: the tools of QEMU write, discard, zero, convert, compare and check.
func TestQEMU(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	a := newAgent(t, dir, [2]string{"p", "d1"})
	uri := a.exported("v", "64MiB")
	io := func(cmds ...string) string {
		t.Helper()
		argv := []string{"qemu-io", "-f", "raw", "-d", "unmap"}
		for _, c := range cmds {
			argv = append(argv, "-c", c)
		}
		out := must(t, append(argv, uri)...)
		if strings.Contains(out, "verification failed") || strings.Contains(out, "failed:") {
			t.Errorf("qemu-io %v:\n%s", cmds, out)
		}
		return out
	}
	io("write -P 0xaa 0 8M", "write -P 0xbb 8M 8M", "write -f -P 0xcc 16777216 512", "flush")
	io("read -P 0xaa 0 8M", "read -P 0xbb 8M 8M", "read -P 0xcc 16777216 512", "read -P 0 16777728 65024")
	// Discards of whole extents and of parts, and zeros with and without holes.
	io("discard 1M 2M", "read -P 0 1M 2M", "read -P 0xaa 0 1M", "read -P 0xaa 3M 5M")
	io("write -z 9M 1M", "read -P 0 9M 1M", "write -z -u 11M 1M", "read -P 0 11M 1M", "write -z 12587008 1536", "read -P 0 12587008 1536",
		"read -P 0xbb 12588544 4096", "read -P 0xbb 10M 1M")
	m := nbdMap(t, uri)
	for _, h := range []mapEntry{{1 * mib, 2 * mib, 3}, {11 * mib, mib, 3}} {
		found := false
		for _, e := range m {
			found = found || e.Type == 3 && e.Offset <= h.Offset && e.Offset+e.Length >= h.Offset+h.Length
		}
		if !found {
			t.Errorf("no hole at %v in %v", h, m)
		}
	}
	qcow, raw := filepath.Join(dir, "c.qcow2"), filepath.Join(dir, "c.raw")
	must(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri, qcow)
	must(t, "qemu-img", "check", qcow)
	must(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", uri, qcow)
	must(t, "qemu-img", "map", "-f", "raw", "--output=json", uri)
	// And back, into a volume that has other content.
	noise(t, raw, 2, 64*mib)
	uri2 := a.exported("w", "64MiB")
	must(t, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", raw, uri2)
	must(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", raw, uri2)
	must(t, "qemu-img", "convert", "-n", "-f", "qcow2", "-O", "raw", qcow, uri2)
	must(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", uri, uri2)
	// Past the end is an error and nothing more.
	if out, err := try("qemu-io", "-f", "raw", "-c", "read 64M 4k", uri); err == nil && !strings.Contains(out, "rror") && !strings.Contains(out, "failed") {
		t.Errorf("read past the end: %s", out)
	}
	a.alive()
}

// Goal: many clients at once on one volume, each on its own part, all verified.
func TestManyClients(t *testing.T) {
	t.Parallel()
	a := newAgent(t, newDir(t), [2]string{"p", "d1"})
	uri := a.exported("v", "128MiB")
	const clients = 8
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			_, err := try("fio", "--name=c", "--ioengine=nbd", "--uri="+uri, "--rw=randwrite", "--bs=4k", "--iodepth=16",
				fmt.Sprintf("--offset=%dM", i*16), "--size=16M", "--io_size=16M", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1",
				"--fsync=512", fmt.Sprintf("--randseed=%d", i+1), "--output-format=terse")
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	a.alive()
}

// Goal: a snapshot is what the volume was, also while the volume is written, and
// clone, diff and restore agree with it.
func TestSnapshotsByClients(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	a := newAgent(t, dir, [2]string{"p", "d1"})
	uri := a.exported("v", "64MiB")
	in := filepath.Join(dir, "in")
	want := noise(t, in, 3, 64*mib)
	must(t, "nbdcopy", "--flush", in, uri)
	a.must("snapshot", "create", "v@one")
	snap := a.must("volume", "export", "v@one")

	// The volume is written while the snapshot is read three times.
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := try("fio", "--name=w", "--ioengine=nbd", "--uri="+uri, "--rw=randwrite", "--bs=16k", "--iodepth=8", "--size=32M",
			"--io_size=64M", "--output-format=terse")
		if err != nil {
			t.Error(err)
		}
	})
	for i := range 3 {
		out := filepath.Join(dir, fmt.Sprintf("out%d", i))
		must(t, "nbdcopy", snap, out)
		sameFile(t, "snapshot while the volume is written", out, want)
	}
	wg.Wait()
	if _, err := try("nbdcopy", in, snap); err == nil {
		t.Error("a snapshot was written")
	}

	// Exactly three changed ranges between two snapshots.
	a.must("snapshot", "create", "v@two")
	must(t, "qemu-io", "-f", "raw", "-c", "write -P 1 40M 64k", "-c", "write -P 2 50M 128k", "-c", "discard 60M 64k", "-c", "flush", uri)
	a.must("snapshot", "create", "v@three")
	type diffRange struct {
		Offset, Length string
		Hole           bool
	}
	var got []diffRange
	a.json(&got, "snapshot", "diff", "v@two", "v@three")
	if want := []diffRange{{"41943040", "65536", false}, {"52428800", "131072", false}, {"62914560", "65536", true}}; !slices.Equal(got, want) {
		t.Errorf("diff: %v, want %v", got, want)
	}

	// A clone of the first state is that state, and goes its own way.
	a.must("volume", "clone", "v@one", "c")
	curi := a.must("volume", "export", "c")
	must(t, "nbdcopy", curi, filepath.Join(dir, "clone"))
	sameFile(t, "clone", filepath.Join(dir, "clone"), want)
	must(t, "qemu-io", "-f", "raw", "-c", "write -P 7 0 64M", "-c", "flush", curi)
	must(t, "nbdcopy", snap, filepath.Join(dir, "again"))
	sameFile(t, "snapshot after its clone was written", filepath.Join(dir, "again"), want)

	a.must("volume", "export", "v@one", "--stop")
	a.must("volume", "export", "v", "--stop")
	a.must("snapshot", "restore", "v@one")
	uri = a.must("volume", "export", "v")
	must(t, "nbdcopy", uri, filepath.Join(dir, "restored"))
	sameFile(t, "restored", filepath.Join(dir, "restored"), want)
	a.alive()
}
