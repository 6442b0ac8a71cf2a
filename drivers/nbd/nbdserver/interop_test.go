//go:build integration

package nbdserver_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moraine-storage/moraine/drivers/aio"
	"github.com/moraine-storage/moraine/drivers/block/memblock"
	"github.com/moraine-storage/moraine/drivers/nbd"
	"github.com/moraine-storage/moraine/drivers/nbd/internal/nbdtest"
	"github.com/moraine-storage/moraine/drivers/nbd/nbdclient"
	"github.com/moraine-storage/moraine/drivers/nbd/nbdserver"
)

// need skips the test when a peer is not installed, and fails it in CI.
func need(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatalf("%s is missing (Debian: nbdkit libnbd-bin qemu-utils qemu-block-extra fio)", p)
			}
			t.Skipf("SKIPPED: %s is not installed", p)
		}
	}
}

// run runs a program to success and returns its standard output.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	need(t, name)
	ctx, cancel := context.WithTimeout(context.Background(), 2*nbdtest.Patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, &stderr)
	}
	if s := stderr.String(); s != "" {
		t.Logf("%s: %s", name, s)
	}
	return string(out)
}

// media are the kinds of disk that peers talk to.
func media(t *testing.T, size int64, f func(t *testing.T, l *nbdserver.Loop, path string)) {
	for _, async := range []bool{false, true} {
		t.Run(fmt.Sprintf("async=%v", async), func(t *testing.T) {
			l, path := serve(t, memblock.Options{Size: size, Async: async, Seed: 1}, nbdserver.Limits{})
			f(t, l, path)
			waitFor(t, "all are gone", func() bool { s := l.Stats(); return s.Open == 0 && s.InFlight == 0 })
			if s := l.Stats(); s.Broken != 0 || s.Dropped != 0 {
				t.Errorf("%+v", s)
			}
		})
	}
}

func uri(path, export string) string { return "nbd+unix:///" + export + "?socket=" + path }

// randomFile makes a file of size bytes: random, with holes.
func randomFile(t *testing.T, size int) string {
	t.Helper()
	p := make([]byte, size)
	seed := rand.Int63()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewSource(seed))
	for off := 0; off < size; off += 256 << 10 {
		if rng.Intn(3) > 0 {
			rng.Read(p[off:min(size, off+256<<10)])
		}
	}
	path := filepath.Join(t.TempDir(), "random")
	if err := os.WriteFile(path, p, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestInteropNbdinfo(t *testing.T) {
	media(t, 64<<20, func(t *testing.T, _ *nbdserver.Loop, path string) {
		var info struct {
			Protocol   string
			Structured bool
			Exports    []map[string]any
		}
		if err := json.Unmarshal([]byte(run(t, "nbdinfo", "--json", uri(path, ""))), &info); err != nil {
			t.Fatal(err)
		}
		if info.Protocol != "newstyle-fixed" || !info.Structured || len(info.Exports) != 1 {
			t.Fatalf("%+v", info)
		}
		e := info.Exports[0]
		for key, want := range map[string]any{
			"export-name": "vol", "description": "a volume", "export-size": 64 << 20, "is_read_only": false, "is_rotational": false,
			"can_cache": true, "can_df": true, "can_fast_zero": true, "can_flush": true, "can_fua": true, "can_multi_conn": true,
			"can_trim": true, "can_zero": true, "block_size_minimum": 512, "block_size_preferred": 4096, "block_size_maximum": 32 << 20,
			"contexts": []any{"base:allocation"},
		} {
			if fmt.Sprint(e[key]) != fmt.Sprint(want) && fmt.Sprintf("%.0f", e[key]) != fmt.Sprint(want) {
				t.Errorf("%s is %v, want %v", key, e[key], want)
			}
		}
		if out := run(t, "nbdinfo", "--list", uri(path, "")); !strings.Contains(out, `export="vol":`) || !strings.Contains(out, `export="vol@snap":`) {
			t.Errorf("list:\n%s", out)
		}
		if out := run(t, "nbdinfo", uri(path, "vol%40snap")); !strings.Contains(out, "is_read_only: true") || !strings.Contains(out, "can_trim: false") {
			t.Errorf("snapshot:\n%s", out)
		}
		run(t, "qemu-io", "-f", "raw", "-c", "write -P 1 1M 64k", uri(path, "vol"))
		if f := strings.Fields(run(t, "nbdinfo", "--map", uri(path, "vol"))); len(f) != 12 || f[5] != "65536" || f[7] != "data" {
			t.Errorf("map: %q", f)
		}
		if out, err := exec.Command("nbdinfo", uri(path, "nothing")).CombinedOutput(); err == nil || !strings.Contains(string(out), "No such file") {
			t.Errorf("unknown export: %v %s", err, out)
		}
	})
}

func TestInteropNbdcopy(t *testing.T) {
	const size = 64 << 20
	file := randomFile(t, size)
	media(t, size, func(t *testing.T, _ *nbdserver.Loop, path string) {
		for _, flags := range [][]string{{}, {"--connections=8", "--requests=64"}, {"--synchronous"}, {"--request-size=33554432", "--flush"}} {
			back := filepath.Join(t.TempDir(), "back")
			run(t, "nbdcopy", append(flags, "--destination-is-zero", file, uri(path, "vol"))...)
			run(t, "nbdcopy", append(flags, uri(path, "vol"), back)...)
			run(t, "cmp", file, back)
		}
	})
}

func TestInteropQemuImg(t *testing.T) {
	const size = 64 << 20
	file := randomFile(t, size)
	media(t, size+8<<20, func(t *testing.T, _ *nbdserver.Loop, path string) {
		raw := uri(path, "vol")
		qcow := filepath.Join(t.TempDir(), "x.qcow2")
		run(t, "qemu-img", "convert", "-n", "-W", "-m", "8", "-f", "raw", "-O", "raw", file, raw)
		run(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", file, raw)
		run(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, qcow)
		run(t, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", qcow, raw)
		run(t, "qemu-img", "create", "-f", "qcow2", raw, "64M")
		run(t, "qemu-img", "convert", "-n", "-f", "raw", "-O", "qcow2", file, raw)
		run(t, "qemu-img", "check", "-f", "qcow2", raw)
		run(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", file, raw)
	})
}

func TestInteropQemuIO(t *testing.T) {
	media(t, 256<<20, func(t *testing.T, l *nbdserver.Loop, path string) {
		out := run(t, "qemu-io", "-t", "writeback", "-d", "unmap", "-f", "raw",
			"-c", "write -P 0xa5 0 32M", "-c", "write -P 0x5a 512 512", "-c", "write -P 1 1M 4k", "-c", "write -f -P 2 2M 4k",
			"-c", "read -P 0xa5 0 512", "-c", "read -P 0x5a 512 512", "-c", "read -P 0xa5 1k 1023k", "-c", "read -P 1 1M 4k", "-c", "read -P 2 2M 4k",
			"-c", "discard 4M 4M", "-c", "read -P 0 4M 4M", "-c", "read -P 0xa5 3M 1M", "-c", "read -P 0xa5 8M 1M",
			"-c", "write -z 10M 100k", "-c", "read -P 0 10M 100k", "-c", "write -z -u 12M 1M", "-c", "read -P 0 12M 1M",
			"-c", "write -z 0 256M", "-c", "read -P 0 0 32M", "-c", "discard 0 256M", "-c", "read -P 0 100M 32M",
			"-c", "aio_write -P 7 1M 64k", "-c", "aio_write -P 8 2M 64k", "-c", "aio_read -P 0 5M 64k", "-c", "aio_flush",
			"-c", "read -P 7 1M 64k", "-c", "read -P 8 2M 64k", "-c", "flush", "-c", "map",
			uri(path, "vol"))
		if strings.Contains(out, "fail") || strings.Contains(out, "rror") {
			t.Fatalf("%s", out)
		}
		if s := l.Stats(); s.Trims == 0 || s.Zeroes == 0 || s.Flushes == 0 || s.Errors != 0 {
			t.Errorf("%+v", s)
		}
		ro := exec.Command("qemu-io", "-f", "raw", "-c", "write 0 4k", uri(path, "vol%40snap"))
		if out, err := ro.CombinedOutput(); err == nil {
			t.Errorf("write to a snapshot: %s", out)
		}
	})
}

// Goal: eight connections of fio write and verify checksums.
func TestInteropFioVerify(t *testing.T) {
	media(t, 128<<20, func(t *testing.T, l *nbdserver.Loop, path string) {
		run(t, "fio", "--name=verify", "--ioengine=nbd", "--uri="+uri(path, "vol"), "--rw=randwrite", "--bsrange=512-256k", "--iodepth=16",
			"--size=16M", "--offset_increment=16M", "--numjobs=8", "--thread=0", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--fsync=64", "--group_reporting")
		if s := l.Stats(); s.Writes == 0 || s.Reads == 0 || s.Connections < 8 || s.Errors != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// Goal: the same peers through TLS, with certificates checked on both sides.
func TestInteropTLS(t *testing.T) {
	dir := t.TempDir()
	server, _ := nbdtest.Certificates(t, dir)
	l := nbdtest.Loop(t, "", nbdtest.Queue(nbdtest.Disk(t, memblock.Options{Size: 64 << 20})), nbdserver.Limits{})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nbdtest.Serve(t, nbdserver.ServerOptions{Exports: nbdtest.NewExports(&nbdserver.Export{Name: "vol", Loop: l}), TLS: nbd.TLSRequired, TLSConfig: server}, ln)
	_, port, err := net.SplitHostPort(ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	secure := "nbds://localhost:" + port + "/vol?tls-certificates=" + dir
	if out := run(t, "nbdinfo", secure); !strings.Contains(out, "with TLS") {
		t.Fatalf("%s", out)
	}
	if out, err := exec.Command("nbdinfo", "nbd://localhost:"+port+"/vol").CombinedOutput(); err == nil {
		t.Fatalf("in the clear: %s", out)
	}
	file, back := randomFile(t, 64<<20), filepath.Join(t.TempDir(), "back")
	run(t, "nbdcopy", file, secure)
	run(t, "nbdcopy", secure, back)
	run(t, "cmp", file, back)
	run(t, "qemu-img", "compare", "--object", "tls-creds-x509,id=t,endpoint=client,dir="+dir, "--image-opts",
		"driver=raw,file.driver=file,file.filename="+file,
		"driver=nbd,server.type=inet,server.host=localhost,server.port="+port+",export=vol,tls-creds=t")
	waitFor(t, "all are gone", func() bool { return l.Stats().Open == 0 })
}

// startPeer runs an NBD server of another make until the test ends; its socket
// is sock.
func startPeer(t *testing.T, sock, name string, args ...string) {
	t.Helper()
	need(t, name)
	cmd := exec.Command(name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
	})
	waitFor(t, name+" listens", func() bool {
		nc, err := net.Dial("unix", sock)
		if err == nil {
			_ = nc.Close()
		}
		return err == nil
	})
}

// Goal: our client against servers of other make.
func TestInteropClient(t *testing.T) {
	dir, err := os.MkdirTemp("", "nbd")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	_, clientTLS := nbdtest.Certificates(t, dir)
	image := filepath.Join(dir, "image")
	if err := os.WriteFile(image, make([]byte, 64<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		args func(sock string) []string
		o    nbdclient.Options
		sr   bool
	}{
		{"nbdkit", func(s string) []string { return []string{"nbdkit", "-f", "-U", s, "memory", "64M"} }, nbdclient.Options{}, true},
		{"nbdkit simple", func(s string) []string { return []string{"nbdkit", "-f", "--no-sr", "-U", s, "memory", "64M"} }, nbdclient.Options{}, false},
		{"nbdkit tls", func(s string) []string {
			return []string{"nbdkit", "-f", "--tls=require", "--tls-certificates=" + dir, "--tls-verify-peer", "-U", s, "memory", "64M"}
		}, nbdclient.Options{TLS: clientTLS}, true},
		{"qemu-nbd", func(s string) []string {
			return []string{"qemu-nbd", "-f", "raw", "-t", "-e", "4", "--discard=unmap", "-k", s, image}
		}, nbdclient.Options{}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			sock := filepath.Join(dir, strings.ReplaceAll(c.name, " ", "-"))
			args := c.args(sock)
			startPeer(t, sock, args[0], args[1:]...)
			c.o.Contexts = []string{nbd.ContextAllocation}
			ctx, cancel := context.WithTimeout(context.Background(), nbdtest.Patience)
			defer cancel()
			dev, err := nbdclient.OpenDevice(ctx, "unix", sock, c.o)
			if err != nil {
				t.Fatal(err)
			}
			defer dev.Close()
			if n := dev.Negotiated(); n.Structured != c.sr || n.Size != 64<<20 || n.TLS != (c.o.TLS != nil) {
				t.Fatalf("%+v", n)
			}
			exercise(t, ctx, dev, c.sr)
		})
	}
}

// exercise writes, zeroes, trims and reads back against a model.
func exercise(t *testing.T, ctx context.Context, dev *nbdclient.Device, status bool) {
	const size = 64 << 20
	seed := rand.Int63()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewSource(seed))
	model := make([]byte, size)
	for range 60 {
		n := int64(512 * (1 + rng.Intn(1<<rng.Intn(13))))
		off := rng.Int63n((size-n)/512) * 512
		var err error
		switch rng.Intn(3) {
		case 0:
			err = dev.Zero(ctx, off, n, 0)
			clear(model[off : off+n])
		default:
			rng.Read(model[off : off+n])
			err = dev.WriteAt(ctx, model[off:off+n], off, 0)
		}
		if err != nil {
			t.Fatalf("at %d, %d bytes: %v", off, n, err)
		}
	}
	if err := dev.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, size)
	if err := dev.ReadAt(ctx, got, 0); err != nil || !bytes.Equal(got, model) {
		t.Fatalf("read back: %v, equal %v", err, bytes.Equal(got, model))
	}
	if err := dev.ReadAt(ctx, got[:512], size); err == nil {
		t.Fatal("read past the end")
	}
	if err := dev.Trim(ctx, 0, size, 0); err != nil {
		t.Fatal(err)
	}
	if !status {
		return
	}
	ext, err := dev.Status(ctx, nbd.ContextAllocation, 0, size)
	if err != nil || len(ext) == 0 || ext[0].Flags&nbd.StateHole == 0 {
		t.Fatalf("status after trim: %v, %v", ext, err)
	}
}

// Goal: the loop on each engine under a real client, for a short while.
func TestInteropEngines(t *testing.T) {
	for _, mode := range []aio.Mode{aio.Inline, aio.Threads, aio.Uring} {
		t.Run(string(mode), func(t *testing.T) {
			l := nbdtest.Loop(t, mode, nbdtest.Queue(nbdtest.Disk(t, memblock.Options{Size: 64 << 20})), nbdserver.Limits{})
			start := time.Now()
			run(t, "fio", "--name=x", "--ioengine=nbd", "--uri="+uri(serveLoop(t, l), "vol"), "--rw=randrw", "--bs=4k", "--iodepth=32", "--size=64M", "--verify=crc32c")
			t.Logf("%v: %+v", time.Since(start).Round(time.Millisecond), l.Stats())
		})
	}
}
