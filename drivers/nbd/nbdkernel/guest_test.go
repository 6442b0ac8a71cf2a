//go:build guest

// These tests need a kernel with nbd. contrib/interop/guest runs them in a
// virtual machine; on a host that has the module they run with -tags guest.
package nbdkernel_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/drivers"
	"github.com/moraine-storage/moraine/drivers/aio"
	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/nbd"
	"github.com/moraine-storage/moraine/drivers/nbd/nbdkernel"
	"github.com/moraine-storage/moraine/drivers/nbd/nbdserver"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

func TestMain(m *testing.M) {
	if os.Getenv("MORAINE_TEST_ROLE") == "serve" {
		serve()
		return
	}
	os.Exit(m.Run())
}

// fileQueue is a block.Queue over a plain file, ended within Submit. What was
// written survives the death of the process.
type fileQueue struct {
	f     *os.File
	size  int64
	delay time.Duration // of each batch, so that a kill meets requests in progress
	ended []*block.Request
}

func (q *fileQueue) Submit(reqs []*block.Request) {
	time.Sleep(q.delay)
	for _, r := range reqs {
		if r.Err = block.Validate(r, q.Info()); r.Err == nil {
			r.Err = q.execute(r)
		}
		q.ended = append(q.ended, r)
	}
}

func (q *fileQueue) execute(r *block.Request) (err error) {
	switch r.Op {
	case block.OpRead:
		_, err = q.f.ReadAt(r.Buf, r.Off)
	case block.OpWrite:
		_, err = q.f.WriteAt(r.Buf, r.Off)
	case block.OpFlush:
		err = q.f.Sync()
	case block.OpTrim, block.OpZero:
		err = unix.Fallocate(int(q.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, r.Off, r.Len)
	}
	return err
}

func (q *fileQueue) Reap(done []*block.Request) int {
	n := copy(done, q.ended)
	q.ended = append(q.ended[:0], q.ended[n:]...)
	return n
}

func (q *fileQueue) InFlight() int { return len(q.ended) }
func (q *fileQueue) Close() error  { return q.f.Close() }
func (q *fileQueue) Info() block.Info {
	return block.Info{Size: q.size, BlockSize: 4096, Grain: 65536, MaxLen: 32 << 20, Trim: true, Zero: true}
}

const volumeID = "00112233445566778899aabbccddeeff"

// serve is a small agent: one volume, attached or recovered; it obeys lines on
// its standard input.
func serve() {
	die := func(err error) {
		fmt.Println("error", strings.ReplaceAll(err.Error(), "\n", " "))
		os.Exit(1)
	}
	dir := os.Getenv("MORAINE_TEST_DIR")
	var size int64
	var conns int
	fmt.Sscan(os.Getenv("MORAINE_TEST_SIZE"), &size)
	fmt.Sscan(os.Getenv("MORAINE_TEST_CONNS"), &conns)
	f, err := os.OpenFile(filepath.Join(dir, "backing"), os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		err = f.Truncate(size)
	}
	if err != nil {
		die(err)
	}
	q := &fileQueue{f: f, size: size}
	q.delay, _ = time.ParseDuration(os.Getenv("MORAINE_TEST_DELAY"))
	newLoop := func() *nbdserver.Loop {
		l, err := nbdserver.NewLoop(nbdserver.LoopOptions{
			Name: "v", NewEngine: func() (aio.Engine, error) { return aio.New(aio.Inline) },
			NewQueue: func(aio.Engine) (block.Queue, error) { return q, nil },
		})
		if err == nil {
			err = l.Start()
		}
		if err != nil {
			die(err)
		}
		return l
	}
	loop := newLoop()
	v := drivers.Volume{ID: volumeID, Name: "v", Info: q.Info(), Connect: func(fd int) error {
		return loop.AddFD(fd, nbdserver.Session{Negotiated: nbd.Negotiated{Flags: nbdserver.TransmissionFlags(q.Info(), false)}, Peer: "kernel"})
	}}
	statePath := filepath.Join(dir, "state")
	o := drivers.Options{Connections: conns, Persist: func(_ context.Context, s drivers.State) error {
		b, err := s.Marshal()
		if err == nil {
			err = os.WriteFile(statePath+".tmp", b, 0o600)
		}
		if err == nil {
			err = os.Rename(statePath+".tmp", statePath)
		}
		if os.Getenv("MORAINE_TEST_DIE_AT") == string(s.Step) {
			unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		}
		return err
	}}
	d := nbdkernel.New(nbdkernel.Config{RequestTimeout: 3 * time.Second, DeadConnTimeout: 2 * time.Minute, ReconnectTimeout: 5 * time.Second})
	ctx := context.Background()
	var a drivers.Attachment
	if s, ok := readState(dir); ok && s.Recoverable() == nil {
		a, err = d.Recover(ctx, v, s, o)
	} else {
		a, err = d.Attach(ctx, v, o)
	}
	if err != nil {
		die(err)
	}
	fmt.Println("ready", a.State().Device)
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		var err error
		cmd, arg, _ := strings.Cut(in.Text(), " ")
		switch cmd {
		case "detach":
			err = a.Detach(ctx, arg == "force")
		case "release":
			err = errors.Join(a.Release(ctx), loop.Drain(ctx))
		case "resize":
			fmt.Sscan(arg, &q.size)
			if err = f.Truncate(q.size); err == nil {
				err = a.Resize(ctx, q.size)
			}
		}
		if err != nil {
			fmt.Println("error", strings.ReplaceAll(err.Error(), "\n", " "))
			continue
		}
		fmt.Println("ok")
	}
}

func readState(dir string) (drivers.State, bool) {
	b, err := os.ReadFile(filepath.Join(dir, "state"))
	if err != nil {
		return drivers.State{}, false
	}
	s, err := drivers.ParseState(b)
	return s, err == nil
}

type host struct {
	t     *testing.T
	dir   string
	size  int64
	conns int
	env   []string
}

type agent struct {
	t      *testing.T
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Scanner
	device string
}

func newHost(t *testing.T, size int64) *host {
	t.Helper()
	if s := nbdkernel.Probe(context.Background()); !s.Available {
		t.Fatalf("no kernel nbd: %s", s.Reason)
	}
	h := &host{t: t, dir: t.TempDir(), size: size, conns: 1}
	t.Cleanup(func() {
		if s, ok := readState(h.dir); ok {
			_ = nbdkernel.New(nbdkernel.Config{}).Cleanup(context.Background(), s, true)
		}
	})
	return h
}

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
	cmd.Env = append(append(append(os.Environ(), h.env...), "MORAINE_TEST_ROLE=serve", "MORAINE_TEST_DIR="+h.dir,
		fmt.Sprintf("MORAINE_TEST_SIZE=%d", h.size), fmt.Sprintf("MORAINE_TEST_CONNS=%d", h.conns)), env...)
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

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// checkGone: no device of ours is connected.
func checkGone(t *testing.T, device string) {
	t.Helper()
	list, err := nbdkernel.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range list {
		if s.Connected && nbdkernel.Path(s.Index) == device {
			t.Errorf("%s is still connected", device)
		}
	}
}

// Goal: data of the device are those of the volume; a filesystem lives on it.
func TestAttachFilesystemDetach(t *testing.T) {
	for _, conns := range []int{1, 4} {
		t.Run(fmt.Sprint(conns), func(t *testing.T) {
			h := newHost(t, 64<<20)
			h.conns = conns
			a := h.start()
			want := make([]byte, 4<<20)
			rand.Read(want)
			dev, err := os.OpenFile(a.device, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := dev.WriteAt(want, 1<<20); err != nil {
				t.Fatal(err)
			}
			if err := dev.Sync(); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(filepath.Join(h.dir, "backing"))
			if err != nil || !bytes.Equal(got[1<<20:5<<20], want) {
				t.Fatalf("backing file differs (%v)", err)
			}
			if err := a.do("detach"); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("[%d]", os.Getpid())) {
				t.Errorf("detach of an open device: %v", err)
			}
			dev.Close()
			run(t, "mkfs.ext4", "-q", "-F", a.device)
			mnt := filepath.Join(h.dir, "mnt")
			os.Mkdir(mnt, 0o700)
			if err := unix.Mount(a.device, mnt, "ext4", 0, "discard"); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = unix.Unmount(mnt, unix.MNT_DETACH) })
			if err := os.WriteFile(filepath.Join(mnt, "file"), want, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := a.do("detach"); err == nil || !strings.Contains(err.Error(), mnt) {
				t.Errorf("detach of a mounted device: %v", err)
			}
			if err := unix.Unmount(mnt, 0); err != nil {
				t.Fatal(err)
			}
			run(t, "e2fsck", "-f", "-n", a.device)
			a.must("detach")
			a.must("detach")
			checkGone(t, a.device)
			run(t, "e2fsck", "-f", "-n", filepath.Join(h.dir, "backing"))
		})
	}
}

// Goal: DESIGN rule 12 with kernel nbd: an agent killed under load costs no
// I/O error and no byte. Method: fio with checksums, direct and buffered;
// SIGKILL and restart; verified at once, and from the backing file.
func TestKillUnderLoad(t *testing.T) {
	for _, c := range []struct {
		mode  string
		conns int
		kills int
	}{{"direct", 1, 10}, {"buffered", 1, 10}, {"direct", 3, 3}} {
		t.Run(fmt.Sprintf("%s-%d", c.mode, c.conns), func(t *testing.T) {
			h := newHost(t, 32<<20)
			h.conns = c.conns
			h.env = []string{"MORAINE_TEST_DELAY=3ms"}
			a := h.start()
			args := []string{"--name=x", "--filename=" + a.device, "--rw=randwrite", "--bs=4k", "--ioengine=libaio", "--iodepth=8",
				"--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--output-format=terse", "--thread"}
			if c.mode == "direct" {
				args = append(args, "--direct=1", "--rate_iops=250", "--size=16m")
			} else {
				args = append(args, "--direct=0", "--fsync=32", "--rate_iops=250", "--size=6m")
			}
			var out bytes.Buffer
			fio := exec.Command("fio", args...)
			fio.Stdout, fio.Stderr = &out, &out
			if err := fio.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = fio.Process.Kill() })
			ended := make(chan error, 1)
			go func() { ended <- fio.Wait() }()
			hangs := time.After(3 * time.Minute)
			kills := 0
			var ferr error
			for done := false; !done; {
				select {
				case ferr = <-ended:
					done = true
				case <-time.After(700 * time.Millisecond):
					if kills < c.kills {
						a.kill()
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
			if kills < c.kills {
				t.Fatalf("fio ended after %d kills of %d", kills, c.kills)
			}
			a.must("detach")
			args[1] = "--filename=" + filepath.Join(h.dir, "backing")
			run(t, "fio", append(args, "--direct=0", "--verify_only=1")...)
			checkGone(t, a.device)
		})
	}
}

// Goal: a stop in order and the next start are a pause, not an error.
func TestReleaseAndRecover(t *testing.T) {
	h := newHost(t, 16<<20)
	h.conns = 2
	a := h.start()
	dev := a.device
	f, err := os.OpenFile(dev, os.O_RDWR|unix.O_SYNC, 0) // the first open looks for partitions: it waits too
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	a.must("release")
	a.kill()
	wrote := make(chan error, 1)
	go func() {
		_, err := f.WriteAt([]byte("written while nobody served"), 8192)
		wrote <- err
	}()
	select {
	case err := <-wrote:
		t.Fatalf("write did not wait for an agent: %v", err)
	case <-time.After(time.Second):
	}
	a = h.start()
	if a.device != dev {
		t.Errorf("device is %s, was %s", a.device, dev)
	}
	select {
	case err := <-wrote:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("write hangs")
	}
	b, _ := os.ReadFile(filepath.Join(h.dir, "backing"))
	if !bytes.HasPrefix(b[8192:], []byte("written while nobody served")) {
		t.Error("write is lost")
	}
	// A second agent is not let in while the first lives.
	other, line := h.tryStart()
	if strings.HasPrefix(line, "ready") {
		t.Error("two agents serve one device")
	}
	other.kill()
	f.Close()
	a.must("detach")
	checkGone(t, dev)
}

// Goal: schedule NbdGhost (REPLICATION S7): a server that stands still for
// longer than the request time-out gets its requests a second time on another
// socket; the copies that it has not read yet must not be executed after
// writes that came later. Method: writers that raise the version of their own
// block; the server stopped and continued; each acknowledged version is read
// back, at once and at the end.
func TestNbdGhost(t *testing.T) {
	h := newHost(t, 16<<20)
	h.conns = 2
	a := h.start()
	end := time.Now().Add(40 * time.Second)
	type result struct {
		writer  int
		version uint64
		err     error
	}
	results := make(chan result)
	const writers = 6
	for w := range writers {
		go func() {
			v, err := raise(a.device, int64(w)*65536, end)
			results <- result{w, v, err}
		}()
	}
	for time.Now().Before(end.Add(-8 * time.Second)) {
		_ = a.cmd.Process.Signal(unix.SIGSTOP)
		time.Sleep(7 * time.Second) // the time-out is 3 s, looked at every few
		_ = a.cmd.Process.Signal(unix.SIGCONT)
		time.Sleep(3 * time.Second)
	}
	last := map[int]uint64{}
	for range writers {
		select {
		case r := <-results:
			if r.err != nil {
				t.Errorf("writer %d: %v", r.writer, r.err)
			}
			last[r.writer] = r.version
		case <-time.After(2 * time.Minute):
			t.Fatal("a writer hangs")
		}
	}
	time.Sleep(4 * time.Second) // for ghosts to come
	for w, v := range last {
		if got, err := version(a.device, int64(w)*65536); err != nil || got != v {
			t.Errorf("block of writer %d has version %d, acknowledged was %d (%v)", w, got, v, err)
		}
	}
	a.must("detach")
}

// raise writes growing versions to a block until end, reading each back.
func raise(device string, off int64, end time.Time) (uint64, error) {
	f, err := os.OpenFile(device, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	buf, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return 0, err
	}
	defer unix.Munmap(buf)
	v := uint64(0)
	for time.Now().Before(end) {
		v++
		for i := 0; i < len(buf); i += 8 {
			binary.LittleEndian.PutUint64(buf[i:], v)
		}
		if _, err := f.WriteAt(buf, off); err != nil {
			return v, err
		}
		clear(buf)
		if _, err := f.ReadAt(buf, off); err != nil {
			return v, err
		}
		if got := binary.LittleEndian.Uint64(buf[4088:]); got != v {
			return v, fmt.Errorf("read version %d after %d was acknowledged", got, v)
		}
	}
	return v, nil
}

func version(device string, off int64) (uint64, error) {
	f, err := os.Open(device)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	_ = unix.IoctlSetInt(int(f.Fd()), unix.BLKFLSBUF, 0)
	b := make([]byte, 8)
	_, err = f.ReadAt(b, off)
	return binary.LittleEndian.Uint64(b), err
}

func TestResize(t *testing.T) {
	h := newHost(t, 16<<20)
	a := h.start()
	size := func() int64 {
		f, err := os.Open(a.device)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		n, _ := f.Seek(0, io.SeekEnd)
		return n
	}
	a.must("resize 33554432")
	if got := size(); got != 32<<20 {
		t.Errorf("size %d", got)
	}
	if err := a.do("resize 16777216"); err == nil {
		t.Error("shrunk")
	}
	h.size = 48 << 20
	a.kill()
	a = h.start()
	if got := size(); got != 48<<20 {
		t.Errorf("size after recovery %d", got)
	}
	a.must("detach")
}

// Goal: by force a device goes though it is open and nobody serves it.
func TestForce(t *testing.T) {
	h := newHost(t, 16<<20)
	a := h.start()
	f, err := os.Open(a.device)
	if err != nil {
		t.Fatal(err)
	}
	a.kill()
	read := make(chan error, 1)
	go func() {
		_, err := f.ReadAt(make([]byte, 4096), 8<<20)
		read <- err
	}()
	time.Sleep(500 * time.Millisecond)
	s, _ := readState(h.dir)
	if err := nbdkernel.New(nbdkernel.Config{}).Cleanup(context.Background(), s, true); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-read:
		if err == nil {
			t.Error("read of a device that was taken away")
		}
	case <-time.After(time.Minute):
		t.Error("read hangs")
	}
	f.Close()
	for range 2 {
		if err := nbdkernel.New(nbdkernel.Config{}).Cleanup(context.Background(), s, false); err != nil {
			t.Error(err)
		}
	}
	checkGone(t, a.device)
}

// Goal: invariant 1: death at any step leaves what Cleanup can undo, and no
// device is taken for another's.
func TestDieDuringAttach(t *testing.T) {
	for _, step := range []drivers.Step{drivers.StepIntent, drivers.StepServing, drivers.StepReady} {
		h := newHost(t, 16<<20)
		if _, line := h.tryStart("MORAINE_TEST_DIE_AT=" + string(step)); line != "" {
			t.Fatalf("agent lived and said %q", line)
		}
		s, ok := readState(h.dir)
		if !ok || s.Step != step {
			t.Fatalf("state %+v", s)
		}
		foreign := s.Clone()
		foreign.NBD.Identifier = nbdkernel.Identifier("another")
		if err := nbdkernel.New(nbdkernel.Config{}).Cleanup(context.Background(), foreign, true); err != nil {
			t.Error(err)
		}
		if step == drivers.StepReady { // the foreign state has not touched it
			a := h.start()
			a.must("detach")
			continue
		}
		if err := s.Recoverable(); !errdefs.IsNotFound(err) {
			t.Errorf("recoverable: %v", err)
		}
		if err := nbdkernel.New(nbdkernel.Config{}).Cleanup(context.Background(), s, true); err != nil {
			t.Error(err)
		}
		checkGone(t, nbdkernel.Path(s.NBD.Index))
	}
}
