//go:build integration

package fuseloop_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/drivers"
	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/fuse"
	"github.com/moraine-storage/moraine/drivers/fuse/fuseloop"
	"github.com/moraine-storage/moraine/drivers/loopdev"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// The test binary is also the holder and the agent that serves a volume, so
// that both can be killed.
func TestMain(m *testing.M) {
	switch os.Getenv("MORAINE_TEST_ROLE") {
	case "holder":
		if err := fuse.HolderMain(os.Getenv("MORAINE_TEST_SOCKET")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case "serve":
		serve()
	default:
		os.Exit(m.Run())
	}
}

// fileDevice keeps a volume in a plain file: what was written survives the
// death of the process, as a store's do.
type fileDevice struct {
	f    *os.File
	mu   sync.Mutex
	size int64
	// delay of each transfer, so that a kill meets requests in progress
	delay time.Duration
}

func openFileDevice(path string, size int64) (*fileDevice, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(size); err != nil {
		return nil, err
	}
	return &fileDevice{f: f, size: size}, nil
}

func (d *fileDevice) Info() block.Info {
	d.mu.Lock()
	defer d.mu.Unlock()
	return block.Info{Size: d.size, BlockSize: 4096, Grain: 65536, MaxLen: 32 << 20}
}

func (d *fileDevice) ReadAt(_ context.Context, p []byte, off int64) error {
	time.Sleep(d.delay)
	_, err := d.f.ReadAt(p, off)
	return err
}

func (d *fileDevice) WriteAt(_ context.Context, p []byte, off int64, f block.Flags) error {
	time.Sleep(d.delay)
	if _, err := d.f.WriteAt(p, off); err != nil {
		return err
	}
	if f&block.FUA != 0 {
		return d.f.Sync()
	}
	return nil
}

func (d *fileDevice) Flush(context.Context) error { return unix.Fdatasync(int(d.f.Fd())) }

func (d *fileDevice) Zero(_ context.Context, off, n int64, _ block.Flags) error {
	return unix.Fallocate(int(d.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

func (d *fileDevice) grow(size int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.size = size
	return d.f.Truncate(size)
}

const volumeID = "0123456789abcdef0123456789abcdef"

// serve is a small agent: it attaches or recovers one volume and obeys lines
// on its standard input.
func serve() {
	dir := os.Getenv("MORAINE_TEST_DIR")
	die := func(err error) {
		fmt.Println("error", err)
		os.Exit(1)
	}
	var size int64
	fmt.Sscan(os.Getenv("MORAINE_TEST_SIZE"), &size)
	dev, err := openFileDevice(filepath.Join(dir, "backing"), size)
	if err != nil {
		die(err)
	}
	dev.delay, _ = time.ParseDuration(os.Getenv("MORAINE_TEST_DELAY"))
	ctx := context.Background()
	d, keeper, err := newDriver(ctx, dir)
	if err != nil {
		die(err)
	}
	defer keeper.Close()
	statePath := filepath.Join(dir, "state")
	o := drivers.Options{Persist: func(_ context.Context, s drivers.State) error {
		b, err := s.Marshal()
		if err != nil {
			return err
		}
		if err := os.WriteFile(statePath+".tmp", b, 0o600); err != nil {
			return err
		}
		// Where the test wants the agent to die between two steps.
		if os.Getenv("MORAINE_TEST_DIE_AT") == string(s.Step) {
			os.Rename(statePath+".tmp", statePath)
			unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		}
		return os.Rename(statePath+".tmp", statePath)
	}}
	v := drivers.Volume{ID: volumeID, Name: "v", Info: dev.Info(), Device: dev, Inline: os.Getenv("MORAINE_TEST_INLINE") != ""}
	var a drivers.Attachment
	if s, ok := readState(statePath); ok && s.Recoverable() == nil {
		a, err = d.Recover(ctx, v, s, o)
	} else {
		a, err = d.Attach(ctx, v, o)
	}
	if err != nil {
		die(err)
	}
	fmt.Println("ready", a.State().Device)
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		var err error
		cmd, arg, _ := strings.Cut(in.Text(), " ")
		switch cmd {
		case "detach":
			err = a.Detach(ctx, arg == "force")
		case "release":
			err = a.Release(ctx)
		case "resize":
			var n int64
			fmt.Sscan(arg, &n)
			if err = dev.grow(n); err == nil {
				err = a.Resize(ctx, n)
			}
		}
		if err != nil {
			fmt.Println("error", strings.ReplaceAll(err.Error(), "\n", " "))
			continue
		}
		fmt.Println("ok")
	}
}

func newDriver(ctx context.Context, dir string) (*fuseloop.Driver, *fuse.Keeper, error) {
	sock := filepath.Join(dir, "holder.sock")
	os.Setenv("MORAINE_TEST_SOCKET", sock)
	keeper, err := fuse.NewKeeper(ctx, fuse.KeeperOptions{
		Socket:  sock,
		Command: []string{"/usr/bin/env", "MORAINE_TEST_ROLE=holder", "MORAINE_TEST_SOCKET=" + sock, os.Args[0]},
	})
	if err != nil {
		return nil, nil, err
	}
	d, err := fuseloop.New(fuseloop.Config{Dir: filepath.Join(dir, "image"), Store: keeper, HolderSock: sock})
	return d, keeper, err
}

func readState(path string) (drivers.State, bool) {
	b, err := os.ReadFile(path)
	if err != nil {
		return drivers.State{}, false
	}
	s, err := drivers.ParseState(b)
	return s, err == nil
}

// agent is a running serve process.
type agent struct {
	t      testing.TB
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Scanner
	device string
}

// host is one machine's worth of state for a test; its cleanup leaves nothing.
type host struct {
	t    testing.TB
	dir  string
	size int64
	env  []string
}

func newHost(t testing.TB, size int64) *host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root")
	}
	h := &host{t: t, dir: t.TempDir(), size: size}
	// A hung FUSE mount hangs whoever lists processes: abort it in any case.
	mp := filepath.Join(h.dir, "image", volumeID)
	watchdog := time.AfterFunc(4*time.Minute, func() { h.abort(mp) })
	t.Cleanup(func() {
		watchdog.Stop()
		ns, _ := loopdev.Find(filepath.Join(mp, fuse.FileName))
		_ = fuse.Abort(mp)
		for _, n := range ns {
			_ = loopdev.Detach(context.Background(), n, filepath.Join(mp, fuse.FileName), true)
		}
		h.abort(mp)
		k, err := fuse.NewKeeper(context.Background(), fuse.KeeperOptions{Socket: filepath.Join(h.dir, "holder.sock")})
		if err != nil {
			return
		}
		keys, _ := k.List(context.Background())
		for _, key := range keys {
			_ = k.Drop(context.Background(), key)
		}
		_ = k.Quit(context.Background())
	})
	return h
}

func (h *host) abort(mp string) {
	_ = unix.Unmount(mp, unix.MNT_FORCE)
	_ = unix.Unmount(mp, unix.MNT_DETACH)
}

func (h *host) state() drivers.State {
	h.t.Helper()
	s, ok := readState(filepath.Join(h.dir, "state"))
	if !ok {
		h.t.Fatal("no state")
	}
	return s
}

// start runs an agent and waits until it serves.
func (h *host) start(env ...string) *agent {
	h.t.Helper()
	a, line := h.tryStart(env...)
	if !strings.HasPrefix(line, "ready ") {
		h.t.Fatalf("agent says %q", line)
	}
	a.device = strings.TrimPrefix(line, "ready ")
	return a
}

func (h *host) tryStart(env ...string) (*agent, string) {
	h.t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(append(os.Environ(), h.env...), "MORAINE_TEST_ROLE=serve", "MORAINE_TEST_DIR="+h.dir, fmt.Sprintf("MORAINE_TEST_SIZE=%d", h.size)), env...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	a := &agent{t: h.t, cmd: cmd, in: in, out: bufio.NewScanner(out)}
	h.t.Cleanup(a.kill)
	a.out.Scan()
	return a, a.out.Text()
}

func (a *agent) kill() {
	_ = a.cmd.Process.Kill()
	_ = a.cmd.Wait()
}

func (a *agent) do(line string) error {
	a.t.Helper()
	fmt.Fprintln(a.in, line)
	if !a.out.Scan() {
		return errors.New("agent is gone")
	}
	if t := a.out.Text(); t != "ok" {
		return errors.New(t)
	}
	return nil
}

func (a *agent) must(line string) {
	a.t.Helper()
	if err := a.do(line); err != nil {
		a.t.Fatalf("%s: %v", line, err)
	}
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// Goal: what is written to the device is in the backing file, and the device
// goes without a trace. Method: random bytes in, compare, discard, detach.
func TestAttachWriteReadDetach(t *testing.T) {
	h := newHost(t, 64<<20)
	a := h.start()
	want := make([]byte, 8<<20)
	rand.Read(want)
	dev, err := os.OpenFile(a.device, os.O_RDWR|os.O_SYNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dev.WriteAt(want, 4096); err != nil {
		t.Fatal(err)
	}
	if err := dev.Sync(); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(h.dir, "backing"))
	if err != nil || !bytes.Equal(got[4096:4096+len(want)], want) {
		t.Fatalf("backing file differs (%v)", err)
	}
	dev.Close()
	run(t, "blkdiscard", "-o", "4096", "-l", "1048576", a.device)
	run(t, "blkdiscard", "-z", "-o", "2097152", "-l", "1048576", a.device)
	got, _ = os.ReadFile(filepath.Join(h.dir, "backing"))
	if !bytes.Equal(got[4096:4096+1<<20], make([]byte, 1<<20)) || !bytes.Equal(got[2<<20:3<<20], make([]byte, 1<<20)) {
		t.Error("discarded or zeroed range is not zero")
	}
	if !bytes.Equal(got[3<<20:4096+len(want)], want[3<<20-4096:]) {
		t.Error("discard touched its neighbour")
	}
	// Not the size of the volume, not beyond it, not a part of a sector.
	image := filepath.Join(h.state().Loop.MountPath, fuse.FileName)
	if err := os.Truncate(image, 1<<20); !errors.Is(err, unix.EPERM) {
		t.Errorf("truncate of the image: %v", err)
	}
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, 4096), 64<<20); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("write past the end: %v", err)
	}
	if _, err := f.WriteAt(make([]byte, 100), 0); !errors.Is(err, unix.EINVAL) {
		t.Errorf("write of a part of a sector: %v", err)
	}
	if n, err := f.ReadAt(make([]byte, 8192), 64<<20-4096); n != 4096 || err != io.EOF {
		t.Errorf("read across the end: %d, %v", n, err)
	}
	if err := a.do("detach"); err == nil {
		t.Error("detached while the image file was open")
	}
	f.Close()
	a.must("detach")
	a.must("detach")
	checkGone(t, h)
}

// checkGone says what an attachment left behind.
func checkGone(t *testing.T, h *host) {
	t.Helper()
	mp := filepath.Join(h.dir, "image", volumeID)
	if ns, _ := loopdev.Find(filepath.Join(mp, fuse.FileName)); len(ns) > 0 {
		t.Errorf("loop devices %v are left", ns)
	}
	// A device whose mount was taken from under it shows no more than this.
	if s := h.state(); s.Loop.Number >= 0 && loopdev.Backing(s.Loop.Number) == "/"+fuse.FileName {
		t.Errorf("%s is left without a mount", loopdev.Path(s.Loop.Number))
	}
	if ok, err := fuse.Mounted(mp); ok || err != nil {
		t.Errorf("mount is left (%v)", err)
	}
	if _, err := os.Lstat(mp); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("directory is left: %v", err)
	}
	k, err := fuse.NewKeeper(context.Background(), fuse.KeeperOptions{Socket: filepath.Join(h.dir, "holder.sock")})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	if keys, err := k.List(context.Background()); err != nil || len(keys) > 0 {
		t.Errorf("holder keeps %v (%v)", keys, err)
	}
}

// Goal: REPLICATION S8 and DESIGN rule 12 on the loop path: an agent that is
// killed ten times under load costs no I/O error and no byte. Method: fio with
// checksums over the block device, direct and buffered; SIGKILL and restart;
// verify at once, and again from the backing file after detach.
func TestKillUnderLoad(t *testing.T) {
	for _, mode := range []string{"direct", "buffered"} {
		t.Run(mode, func(t *testing.T) {
			h := newHost(t, 128<<20)
			h.env = []string{"MORAINE_TEST_DELAY=2ms"}
			a := h.start()
			args := []string{"--name=x", "--filename=" + a.device, "--rw=randwrite", "--bs=4k", "--ioengine=libaio", "--iodepth=16",
				"--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--output-format=json"}
			if mode == "direct" {
				args = append(args, "--direct=1", "--size=64m")
			} else {
				args = append(args, "--direct=0", "--fsync=64", "--size=12m")
			}
			var out bytes.Buffer
			fio := exec.Command("fio", args...)
			fio.Stdout, fio.Stderr = &out, &out
			if err := fio.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- fio.Wait() }()
			t.Cleanup(func() { _ = fio.Process.Kill() })
			hangs := time.After(2 * time.Minute)
			kills := 0
			var ferr error
			for done := false; !done; {
				select {
				case ferr = <-ended:
					done = true
				case <-time.After(400 * time.Millisecond):
					if kills < 10 {
						a.kill()
						if kills%3 == 0 {
							time.Sleep(300 * time.Millisecond) // requests pile up
						}
						a = h.start()
						kills++
					}
				case <-hangs:
					t.Fatal("fio hangs")
				}
			}
			if ferr != nil {
				t.Fatalf("fio: %v\n%s", ferr, out.String())
			}
			if kills < 10 {
				t.Fatalf("fio ended after %d kills of 10", kills)
			}
			// Again, from the medium itself.
			a.must("detach")
			verify := append([]string{}, args...)
			for i, s := range verify {
				if strings.HasPrefix(s, "--filename=") {
					verify[i] = "--filename=" + filepath.Join(h.dir, "backing")
				}
			}
			run(t, "fio", append(verify, "--verify_only=1")...)
			checkGone(t, h)
		})
	}
}

// Goal: an agent that stops in order loses no time and no request, and the
// next one goes on. Method: release, look that I/O waits, start the next.
func TestReleaseAndRecover(t *testing.T) {
	h := newHost(t, 16<<20)
	a := h.start()
	dev := a.device
	a.must("release")
	if !h.state().Loop.Released {
		t.Error("release was not noted")
	}
	a.kill()
	wrote := make(chan error, 1)
	go func() {
		f, err := os.OpenFile(dev, os.O_RDWR|unix.O_DIRECT, 0)
		if err == nil {
			buf, merr := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
			if merr != nil {
				wrote <- merr
				return
			}
			copy(buf, "written while nobody served")
			_, err = f.WriteAt(buf, 8192)
			f.Close()
		}
		wrote <- err
	}()
	select {
	case err := <-wrote:
		t.Fatalf("write did not wait for an agent: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	a = h.start()
	if a.device != dev {
		t.Errorf("device is %s, was %s", a.device, dev)
	}
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
	if h.state().Loop.Released {
		t.Error("still noted as released while it is served")
	}
	b, _ := os.ReadFile(filepath.Join(h.dir, "backing"))
	if !bytes.HasPrefix(b[8192:], []byte("written while nobody served")) {
		t.Error("write is lost")
	}
	a.must("detach")
	checkGone(t, h)
}

// Goal: a device grows under its user, and stays grown after a kill.
func TestResize(t *testing.T) {
	h := newHost(t, 16<<20)
	a := h.start()
	n := h.state().Loop.Number
	a.must("resize 33554432")
	if got, _ := loopdev.Size(n); got != 32<<20 {
		t.Fatalf("size is %d", got)
	}
	if err := a.do("resize 16777216"); err == nil {
		t.Error("shrunk")
	}
	h.size = 48 << 20 // the volume grew, and the agent died before it told the device
	a.kill()
	a = h.start()
	if got, _ := loopdev.Size(n); got != 48<<20 {
		t.Fatalf("size after recovery is %d", got)
	}
	if h.state().Size != 48<<20 {
		t.Errorf("state says %d", h.state().Size)
	}
	a.must("detach")
	checkGone(t, h)
}

// Goal: detach refuses a mounted device and names the mount; by force the
// device goes and its user gets errors, not a hang.
func TestBusyAndForce(t *testing.T) {
	h := newHost(t, 64<<20)
	a := h.start()
	run(t, "mkfs.ext4", "-q", a.device)
	mnt := filepath.Join(h.dir, "a mount")
	os.Mkdir(mnt, 0o700)
	run(t, "mount", a.device, mnt)
	t.Cleanup(func() { _ = unix.Unmount(mnt, unix.MNT_DETACH) })
	err := a.do("detach")
	if err == nil || !strings.Contains(err.Error(), mnt) {
		t.Fatalf("detach of a mounted device: %v", err)
	}
	if err := os.WriteFile(filepath.Join(mnt, "x"), []byte("still works"), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "umount", mnt)
	hold, err := os.Open(a.device)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.do("detach"); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("[%d]", os.Getpid())) {
		t.Fatalf("detach of an open device: %v", err)
	}
	a.must("detach force")
	if _, err := hold.ReadAt(make([]byte, 4096), 32<<20); err == nil {
		t.Error("read from a device that was taken away")
	}
	hold.Close()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if ns, _ := loopdev.Find(filepath.Join(h.dir, "image", volumeID, fuse.FileName)); len(ns) == 0 {
			break
		}
	}
	checkGone(t, h)
}

// Goal: a device that must never be served again (REPLICATION 4.1.4) goes
// though a filesystem with unwritten data is mounted on it and no server runs.
// Method: Cleanup by force first, which makes the data fail, then unmount: in
// the other order the unmount waits for a server that will not come.
func TestForceUnservedMount(t *testing.T) {
	h := newHost(t, 64<<20)
	a := h.start()
	run(t, "mkfs.ext4", "-q", a.device)
	mnt := filepath.Join(h.dir, "mnt")
	os.Mkdir(mnt, 0o700)
	run(t, "mount", a.device, mnt)
	t.Cleanup(func() { _ = unix.Unmount(mnt, unix.MNT_DETACH) })
	if err := os.WriteFile(filepath.Join(mnt, "x"), make([]byte, 4<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	a.kill()
	d, k, err := newDriver(context.Background(), h.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	ended := make(chan error, 1)
	go func() {
		err := d.Cleanup(context.Background(), h.state(), true)
		ended <- errors.Join(err, unix.Unmount(mnt, unix.MNT_DETACH))
	}()
	select {
	case err := <-ended:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("hangs")
	}
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if loopdev.Backing(h.state().Loop.Number) != "/"+fuse.FileName {
			break
		}
	}
	checkGone(t, h)
}

// Goal: invariant 1 of drivers: death between any two steps of attach leaves
// what Cleanup can undo and the next attach is not hindered by.
func TestDieDuringAttach(t *testing.T) {
	for _, step := range []drivers.Step{drivers.StepIntent, drivers.StepServing, drivers.StepReady} {
		t.Run(string(step), func(t *testing.T) {
			h := newHost(t, 16<<20)
			if _, line := h.tryStart("MORAINE_TEST_DIE_AT=" + string(step)); line != "" {
				t.Fatalf("agent lived and said %q", line)
			}
			s := h.state()
			d, k, err := newDriver(context.Background(), h.dir)
			if err != nil {
				t.Fatal(err)
			}
			defer k.Close()
			if step != drivers.StepReady {
				if err := s.Recoverable(); !errdefs.IsNotFound(err) {
					t.Errorf("recoverable: %v", err)
				}
				for range 2 {
					if err := d.Cleanup(context.Background(), s, true); err != nil {
						t.Fatalf("cleanup: %v", err)
					}
				}
				checkGone(t, h)
				return
			}
			a := h.start()
			a.must("detach")
			checkGone(t, h)
		})
	}
}

// Goal: the death of the holder is noticed and repaired while the agent lives,
// so that the death of the agent after it still costs nothing.
func TestHolderDies(t *testing.T) {
	h := newHost(t, 16<<20)
	a := h.start()
	sock := filepath.Join(h.dir, "holder.sock")
	pid := holderPID(t, sock)
	if err := unix.Kill(pid, unix.SIGTERM); err != nil { // does nothing
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	if got := holderPID(t, sock); got != pid {
		t.Fatalf("SIGTERM ended the holder")
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		k, err := fuse.NewKeeper(context.Background(), fuse.KeeperOptions{Socket: sock})
		if err == nil {
			keys, _ := k.List(context.Background())
			k.Close()
			if len(keys) == 1 && holderPID(t, sock) != pid {
				break
			}
		}
		if time.Now().After(end) {
			t.Fatal("no new holder with the descriptor in it")
		}
	}
	a.kill()
	a = h.start()
	a.must("detach")
	checkGone(t, h)
}

func holderPID(t *testing.T, sock string) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: sock}); err != nil {
		return -1
	}
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		t.Fatal(err)
	}
	return int(cred.Pid)
}
