//go:build integration

package node

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// digest of every regular file below dir, with names.
func digest(t testing.TB, dir string) string {
	t.Helper()
	h := sha256.New()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		fmt.Fprintf(h, "%s %x\n", path, sha256.Sum256(b))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// edit changes a file in place.
func edit(t testing.TB, path string, f func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, f(b), 0o600); err != nil {
		t.Fatal(err)
	}
}

func flip(at int) func([]byte) []byte {
	return func(b []byte) []byte { b[at%len(b)] ^= 4; return b }
}

// newest is the file of a pattern whose name is the last.
func newest(t testing.TB, pattern string) string {
	t.Helper()
	list, err := filepath.Glob(pattern)
	if err != nil || len(list) == 0 {
		t.Fatalf("%s: %v, %v", pattern, list, err)
	}
	return slices.Max(list)
}

// Goal: a store that is damaged, cut short or of a newer format is a failed
// drive with its reason, named by `drive check` too, and nobody else's problem;
// put back, it is used as if nothing had been.
func TestDamagedStore(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	a := newAgent(t, dir, [2]string{"p", "d1"}, [2]string{"other", "d2"})
	w := newWriter(a.mounted("v", "p", "64MiB"), 1, mib)
	ow := newWriter(a.mounted("o", "other", "64MiB"), 2, mib)
	for range 4 {
		if err := errors.Join(w.write(), ow.write()); err != nil {
			t.Fatal(err)
		}
	}
	a.must("snapshot", "create", "v@s")
	a.must("volume", "unmount", "v")
	a.must("volume", "unmount", "o")
	a.stop()
	d1, keep := filepath.Join(dir, "d1"), filepath.Join(dir, "keep")
	must(t, "cp", "-a", "--sparse=always", d1, keep)
	super := filepath.Join(d1, "store", "superblock")
	for _, c := range []struct {
		name   string
		damage func()
		words  string
		code   int // of drive check
	}{
		{"bit in both superblocks", func() { edit(t, super, flip(100)); edit(t, super, flip(4196)) }, "checksum", exitDataLoss},
		{"superblock cut short", func() { edit(t, super, func(b []byte) []byte { return b[:100] }) }, "superblock", exitDataLoss},
		{"newer format", func() {
			edit(t, super, func(b []byte) []byte {
				for _, at := range []int{0, 4096} {
					binary.LittleEndian.PutUint32(b[at+8:], 99)
					sum := crc32.Checksum(b[at:at+4092], crc32.MakeTable(crc32.Castagnoli))
					binary.LittleEndian.PutUint32(b[at+4092:], sum)
				}
				return b
			})
		}, "newer", exitPrecondition},
		{"bit in the checkpoint", func() { edit(t, newest(t, d1+"/store/meta/checkpoint-*"), flip(200)) }, "checkpoint", exitDataLoss},
		{"bit in the journal", func() { edit(t, newest(t, d1+"/store/meta/journal-*"), flip(20)) }, "journal", exitDataLoss},
		{"no data", func() { edit(t, d1+"/store/data", func([]byte) []byte { return nil }) }, "data", exitDataLoss},
		{"no store", func() {
			if err := os.RemoveAll(d1 + "/store"); err != nil {
				t.Fatal(err)
			}
		}, "missing", exitNotFound},
	} {
		c.damage()
		if r, err := a.cli("drive", "check", d1); err == nil || r.code != c.code {
			t.Errorf("%s: drive check: %d, %v %s", c.name, r.code, err, r.stdout)
		}
		hurt := digest(t, d1)
		a.start()
		d := a.drive("p")
		if d.State != "failed" || !strings.Contains(d.reason(), c.words) {
			t.Errorf("%s: %+v; want failed because of %q", c.name, d, c.words)
		}
		if r, err := a.cli("volume", "mount", "v"); err == nil {
			t.Errorf("%s: mounted: %s", c.name, r.stdout)
		}
		at := a.must("volume", "mount", "o")
		if err := ow.verify(at); err != nil {
			t.Errorf("%s: the other drive: %v", c.name, err)
		}
		a.must("volume", "unmount", "o")
		a.stop()
		if digest(t, d1) != hurt {
			t.Errorf("%s: the agent changed a damaged drive", c.name)
		}
		must(t, "rm", "-rf", d1)
		must(t, "cp", "-a", "--sparse=always", keep, d1)
	}
	// One bit in one copy of the superblock is what the other copy is for.
	edit(t, super, flip(60))
	a.start()
	a.driveBecomes("p", "ready")
	at := a.must("volume", "mount", "v")
	if err := w.verify(at); err != nil {
		t.Error(err)
	}
	a.must("volume", "unmount", "v")
	a.nothingLeft()
}

// Goal: a second agent on a data directory refuses; a copy of a drive, and a
// device with somebody's file system, are refused and not touched.
func TestForeignMedia(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	a := newAgent(t, dir, [2]string{"p", "d1"})
	w := newWriter(a.mounted("v", "p", "64MiB"), 1, mib)
	if err := w.write(); err != nil {
		t.Fatal(err)
	}
	second := &agent{t: t, dir: dir}
	if said := second.refuseStart(); !strings.Contains(said, "another agent uses "+dir) {
		t.Errorf("a second agent said: %s", said)
	}
	a.alive()
	a.must("volume", "unmount", "v")
	a.stop()

	// A copy, and a disk with data of somebody else, both in paths.
	must(t, "cp", "-a", filepath.Join(dir, "d1"), filepath.Join(dir, "d1copy"))
	disk := newMedium(t, dir, "disk", "ext4", 400*mib)
	if err := os.WriteFile(filepath.Join(disk.at, "thesis"), pattern(9, mib), 0o600); err != nil {
		t.Fatal(err)
	}
	disk.unmount(t)
	raw := filepath.Join(dir, "notes.img")
	noise(t, raw, 4, 400*mib) // a file that is no file system
	before, beforeCopy, beforeRaw := digest(t, disk.file), digest(t, filepath.Join(dir, "d1copy")), digest(t, raw)
	a.configure([2]string{"p", filepath.Join(dir, "d1*")}, [2]string{"disk", disk.loop}, [2]string{"raw", raw})
	a.start()
	out := a.must("drive", "list", "-o", "json")
	for _, words := range []string{"one is a copy", "ext4"} {
		if !strings.Contains(out, words) {
			t.Errorf("no %q in %s", words, out)
		}
	}
	for _, pool := range []string{"disk", "raw"} {
		if d := a.drive(pool); d.State != "refused" {
			t.Errorf("%s: %+v", pool, d)
		}
	}
	a.stop()
	if digest(t, disk.file) != before || digest(t, filepath.Join(dir, "d1copy")) != beforeCopy || digest(t, raw) != beforeRaw {
		t.Error("a refused medium was changed")
	}
	a.configure([2]string{"p", "d1"})
	a.start()
	at := a.must("volume", "mount", "v")
	if err := w.verify(at); err != nil {
		t.Error(err)
	}
	a.must("volume", "unmount", "v")
}

// Goal: a damaged cluster store is a clear error at start; drives are not
// touched, and with the store put back all is as it was.
func TestDamagedClusterStore(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	a := newAgent(t, dir, [2]string{"p", "d1"})
	w := newWriter(a.mounted("v", "p", "64MiB"), 1, mib)
	if err := w.write(); err != nil {
		t.Fatal(err)
	}
	a.must("volume", "unmount", "v")
	a.stop()
	etcd, keep := filepath.Join(dir, "etcd"), filepath.Join(dir, "keep")
	must(t, "cp", "-a", etcd, keep)
	drives := digest(t, filepath.Join(dir, "d1"))
	garbage := func(b []byte) []byte { return append(b[:0:0], pattern(1, len(b))...) }
	for _, c := range []struct {
		name   string
		damage func()
	}{
		{"database overwritten", func() { edit(t, etcd+"/member/snap/db", garbage) }},
		{"log overwritten", func() { edit(t, newest(t, etcd+"/member/wal/*.wal"), garbage) }},
		{"log missing", func() { must(t, "rm", newest(t, etcd+"/member/wal/*.wal")) }},
		{"a file in its place", func() { must(t, "rm", "-rf", etcd); must(t, "touch", etcd) }},
	} {
		c.damage()
		said := a.refuseStart()
		last := said[strings.LastIndex(said, "\n")+1:]
		if !strings.Contains(last, "cluster store") && !strings.Contains(last, "etcd") {
			t.Errorf("%s: the agent said: %s", c.name, said)
		}
		if digest(t, filepath.Join(dir, "d1")) != drives {
			t.Errorf("%s: the drive was changed", c.name)
		}
		must(t, "rm", "-rf", etcd)
		must(t, "cp", "-a", keep, etcd)
	}
	a.start()
	at := a.must("volume", "mount", "v")
	if err := w.verify(at); err != nil {
		t.Error(err)
	}
	a.must("volume", "unmount", "v")
}

// Goal: mistakes in the configuration are named with file and line, at start and
// at a reload, where they change nothing; a good reload adds a pool.
func TestConfiguration(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	a := prepare(t, dir, [2]string{"p", "d1"})
	good, err := os.ReadFile(a.configPath())
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Count(string(good), "\n")
	for _, c := range []struct{ text, words string }{
		{"colour = \"blue\"\n", "colour"},
		{"log {\n  level = \"loud\"\n}\n", "level"},
		{"defaults {\n  size = \"-1\"\n}\n", "size"},
		{"backend \"local\" {\n  pool = \"x\"\n  config {\n    path = [\"/x\"]\n  }\n}\n", "path"},
		{"backend \"nonesuch\" {\n  pool = \"x\"\n  config {}\n}\n", "nonesuch"},
		{"name =\n", ""},
	} {
		a.writeConfig(string(good))
		a.addConfig(c.text)
		said := a.refuseStart()
		if !strings.Contains(said, a.configPath()+":") || !strings.Contains(said, c.words) {
			t.Errorf("%q: the agent said: %s", c.text, said)
		}
		var line int
		if _, after, ok := strings.Cut(said, a.configPath()+":"); ok {
			_, _ = fmt.Sscanf(after, "%d", &line)
		}
		if line <= lines || line > lines+6 {
			t.Errorf("%q: line %d of %d: %s", c.text, line, lines, said)
		}
	}
	a.writeConfig(string(good))
	a.start()
	reload := func(text, event string) {
		t.Helper()
		before := len(a.eventTypes())
		a.writeConfig(text)
		if err := a.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		eventually(t, event, func() error {
			if types := a.eventTypes(); !slices.Contains(types[before:], event) {
				return fmt.Errorf("events %v", types[before:])
			}
			return nil
		})
	}
	reload(string(good)+"colour = \"blue\"\n", "config.rejected")
	if out := a.must("pool", "list", "-o", "json"); !strings.Contains(out, `"p"`) {
		t.Errorf("pools after a bad reload: %s", out)
	}
	added := filepath.Join(dir, "d2")
	if err := os.Mkdir(added, 0o700); err != nil {
		t.Fatal(err)
	}
	reload(string(good)+fmt.Sprintf("backend \"local\" {\n  pool = \"q\"\n  config {\n    paths = [%q]\n  }\n}\n", added), "config.reloaded")
	a.driveBecomes("q", "ready")
	w := newWriter(a.mounted("v", "q", "64MiB"), 1, mib)
	if err := w.write(); err != nil {
		t.Error(err)
	}
	reload("name = ", "config.rejected")
	if err := w.write(); err != nil {
		t.Error(err)
	}
	a.must("volume", "unmount", "v")
	a.writeConfig(string(good))
}

// Goal: a drive whose file system becomes read-only says so, its volumes get
// errors, others work on, and mounted for writing again it is used again.
func TestDriveReadOnly(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	m := newMedium(t, dir, "ro", "ext4", 300*mib)
	a := newAgent(t, dir, [2]string{"ro", m.at}, [2]string{"good", "d1"})
	w := newWriter(a.mounted("v", "ro", "128MiB"), 1, mib)
	good := newWriter(a.mounted("g", "good", "64MiB"), 2, mib)
	for range 4 {
		if err := w.write(); err != nil {
			t.Fatal(err)
		}
	}
	// What the kernel does by itself at an error.
	must(t, "mount", "-o", "remount,errors=remount-ro", m.at)
	if err := os.WriteFile("/sys/fs/ext4/"+filepath.Base(m.loop)+"/trigger_fs_error", []byte("test"), 0o200); err != nil {
		t.Fatal(err)
	}
	var failed error
	for range 100 {
		if failed = inTime(t, "write", w.write); failed != nil {
			break
		}
	}
	if failed == nil {
		t.Error("writes to a read-only drive succeed")
	}
	eventually(t, "an event tells of it", func() error {
		if types := a.eventTypes(); !slices.Contains(types, "volume.io-error") {
			return fmt.Errorf("%v", types)
		}
		return nil
	})
	a.alive()
	if err := inTime(t, "write", good.write); err != nil {
		t.Errorf("another drive: %v", err)
	}
	a.must("volume", "detach", "v", "--force")
	d := a.driveBecomes("ro", "failed", "gone")
	t.Logf("writer: %v; drive: %s %s", failed, d.State, d.reason())
	if !strings.Contains(d.reason(), "read-only") {
		t.Errorf("no reason: %+v", d)
	}
	eventually(t, "unmount the read-only medium", func() error { _, err := try("umount", m.at); return err })
	_, _ = try("e2fsck", "-p", m.loop)
	must(t, "mount", m.loop, m.at)
	a.driveBecomes("ro", "ready")
	at := a.must("volume", "mount", "v")
	if err := inTime(t, "verify", func() error { return w.verify(at) }); err != nil {
		t.Error(err)
	}
	a.must("volume", "unmount", "v")
	a.must("volume", "unmount", "g")
	a.nothingLeft("/ro")
}
