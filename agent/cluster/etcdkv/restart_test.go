package etcdkv

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/hashicorp/go-hclog"

	"github.com/moraine-storage/moraine/agent/cluster"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// childEnv makes the test binary play a process that a test kills: the name of
// its part, a colon, its data directory.
const childEnv = "MORAINE_ETCDKV_CHILD"

func TestMain(m *testing.M) {
	if part, dir, ok := strings.Cut(os.Getenv(childEnv), ":"); ok {
		switch part {
		case "count":
			childCount(dir)
		case "full":
			childFull(dir)
		}
		os.Exit(0)
	}
	flag.Parse()
	if err := flag.Set("test.parallel", "5"); err != nil { // they wait for elections, not for a processor
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

func child(t *testing.T, part, dir string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+part+":"+dir)
	cmd.Stderr = os.Stderr
	return cmd
}

func fatal(err error) {
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
}

// childCount counts up in one key for ever and prints each number once it was
// acknowledged.
func childCount(dir string) {
	s, err := Start(context.Background(), ServerOptions{Dir: dir, Name: "test"})
	fatal(err)
	kv := s.Client()
	n := 0
	if it, err := kv.Get(context.Background(), "n"); err == nil {
		n, _ = strconv.Atoi(string(it.Value))
	}
	for {
		n++
		_, err := kv.Txn(context.Background(), cluster.Txn{Then: []cluster.Op{cluster.Put("n", []byte(strconv.Itoa(n)))}})
		fatal(err)
		fmt.Println(n)
	}
}

// TestKilled: what was acknowledged survives SIGKILL, again and again.
func TestKilled(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "etcd")
	last := 0
	for round := range 3 {
		cmd := child(t, "count", dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		sc := bufio.NewScanner(out)
		for i := 0; i < 50 && sc.Scan(); i++ {
			n, err := strconv.Atoi(sc.Text())
			if err != nil || n <= last {
				t.Errorf("round %d: %q after %d: %v", round, sc.Text(), last, err)
			}
			last = n
		}
		cmd.Process.Kill()
		for sc.Scan() { // acknowledged before the kill
			if n, err := strconv.Atoi(sc.Text()); err == nil {
				last = n
			}
		}
		cmd.Wait()
		if last < 50*(round+1) {
			t.Fatalf("round %d: counted to %d only", round, last)
		}
	}
	it, err := open(t, ServerOptions{Dir: dir}).Client().Get(context.Background(), "n")
	if err != nil {
		t.Fatal(err)
	}
	if n, err := strconv.Atoi(string(it.Value)); err != nil || n < last || n > last+1 {
		t.Errorf("%d was acknowledged, the store has %q", last, it.Value)
	}
}

// childFull runs a store whose disk refuses every write from some moment on,
// and prints what its client saw.
func childFull(dir string) {
	ctx := context.Background()
	signal.Ignore(syscall.SIGXFSZ)
	s, err := Start(ctx, ServerOptions{Dir: dir, Name: "test"})
	fatal(err)
	kv := s.Client()
	put := func(v string) error {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		_, err := kv.Txn(ctx, cluster.Txn{Then: []cluster.Op{cluster.Put("k", []byte(v))}})
		return err
	}
	fatal(put("before"))
	fatal(unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 1, Max: unix.RLIM_INFINITY}))
	err = put("after")
	fmt.Println("put", err != nil, errdefs.IsUnavailable(err), errdefs.Indeterminate(err))
	<-s.Failed()
	fmt.Println("failed", s.Reason() != "")
	_, err = kv.Get(ctx, "k")
	fmt.Println("get", errdefs.IsUnavailable(err), errdefs.Indeterminate(err))
	fmt.Println("close", s.Close() != nil)
}

// TestDiskFails: a disk that fails under the store ends the store, not the
// process; the change that hit it is indeterminate; what was before is there at
// the next start.
func TestDiskFails(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "etcd")
	cmd := child(t, "full", dir)
	var out bytes.Buffer
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop := time.AfterFunc(2*time.Minute, func() { cmd.Process.Kill() })
	defer stop.Stop()
	if err := cmd.Wait(); err != nil {
		t.Errorf("process: %v", err)
	}
	if want := "put true true true\nfailed true\nget true false\nclose true\n"; out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
	it, err := open(t, ServerOptions{Dir: dir}).Client().Get(context.Background(), "k")
	if err != nil || string(it.Value) != "before" && string(it.Value) != "after" {
		t.Errorf("%+v, %v", it, err)
	}
}

// TestRestart: state, revisions and leases survive an orderly stop.
func TestRestart(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	dir := filepath.Join(t.TempDir(), "etcd")
	var logged bytes.Buffer
	log := hclog.New(&hclog.LoggerOptions{Output: &logged, Level: hclog.Info})
	s := open(t, ServerOptions{Dir: dir, Logger: log})
	kv := s.Client()
	l, err := kv.Grant(ctx, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	res, err := kv.Txn(ctx, cluster.Txn{Then: []cluster.Op{cluster.Put("a", []byte("1")), cluster.PutLeased("b", nil, l.ID())}})
	if err != nil {
		t.Fatal(err)
	}
	w, err := kv.Watch(ctx, "a", 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := kv.Txn(ctx, cluster.Txn{Then: []cluster.Op{cluster.Put("a", nil)}}); !errdefs.IsUnavailable(err) {
		t.Errorf("txn after the server's close: %v", err)
	}
	waitCtx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if _, err := w.Next(waitCtx); !errors.Is(err, cluster.ErrUnavailable) {
		t.Errorf("watch across a close: %v", err)
	}
	if err := kv.Close(); err != nil {
		t.Error(err)
	}
	begin := time.Now()
	s = open(t, ServerOptions{Dir: dir, Logger: log})
	t.Logf("restart took %v", time.Since(begin))
	kv = s.Client()
	for _, k := range []string{"a", "b"} {
		if it, err := kv.Get(ctx, k); err != nil || it.ModRevision != res.Revision {
			t.Errorf("%s: %+v, %v", k, it, err)
		}
	}
	w, err = kv.Watch(ctx, "a", res.Revision)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := w.Next(ctx); err != nil || b.Revision != res.Revision {
		t.Errorf("watch of the past: %+v, %v", b, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if logged.Len() > 0 {
		t.Errorf("an orderly life logs:\n%s", &logged)
	}
}

// TestLocked: a directory belongs to one process at a time.
func TestLocked(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "etcd")
	s := open(t, ServerOptions{Dir: dir})
	if _, err := Start(context.Background(), ServerOptions{Dir: dir, Name: "test"}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("second start: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, ServerOptions{Dir: dir})
}

// TestDamaged: files that are no store are an error, not the end of the process.
func TestDamaged(t *testing.T) {
	for _, name := range []string{"member/snap/db", "member/wal"} {
		t.Run(filepath.Base(name), func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "etcd")
			if err := open(t, ServerOptions{Dir: dir}).Close(); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, name)
			if st, err := os.Stat(path); err != nil {
				t.Fatal(err)
			} else if st.IsDir() {
				files, err := filepath.Glob(filepath.Join(path, "*.wal"))
				if err != nil || len(files) == 0 {
					t.Fatalf("%v, %v", files, err)
				}
				path = files[0]
			}
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt(bytes.Repeat([]byte{0x5a}, 16<<10), 0); err != nil {
				t.Fatal(err)
			}
			f.Close()
			cmd := child(t, "count", dir) // a damaged start leaks what etcd leaves behind: not in this process
			out, err := cmd.Output()
			if err == nil || !strings.HasPrefix(string(out), "error start cluster store in "+dir) || !strings.Contains(string(out), "data loss") {
				t.Errorf("%v\n%s", err, out)
			}
			t.Logf("%s", out)
		})
	}
}

// TestOptions: options that cannot be are refused before anything is touched.
func TestOptions(t *testing.T) {
	dir := t.TempDir()
	for _, o := range []ServerOptions{{}, {Dir: dir}, {Name: "x"}, {Dir: dir, Name: "x", ClientSocket: "relative"}} {
		if _, err := Start(context.Background(), o); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: %v", o, err)
		}
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Start(context.Background(), ServerOptions{Dir: file, Name: "x"}); err == nil {
		t.Error("a file taken for a directory")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Start(ctx, ServerOptions{Dir: filepath.Join(dir, "c"), Name: "x"}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled start: %v", err)
	}
}

// TestDialNobody: an endpoint where nobody is is unavailable, soon.
func TestDialNobody(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "nobody")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := Dial(ctx, ClientOptions{Endpoints: []string{"unix://" + socket}}); !errdefs.IsUnavailable(err) || ctx.Err() != nil {
		t.Errorf("dial: %v", err)
	}
	if _, err := Dial(ctx, ClientOptions{}); err == nil {
		t.Error("dialled no endpoint")
	}
}

// TestServerGone: a dialled client whose server goes away fails as unavailable;
// a change as indeterminate unless it was never sent.
func TestServerGone(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "s")
	s := open(t, ServerOptions{ClientSocket: socket})
	kv, err := Dial(context.Background(), ClientOptions{Endpoints: []string{"unix://" + socket}})
	if err != nil {
		t.Fatal(err)
	}
	defer kv.Close()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_, err = kv.Txn(ctx, cluster.Txn{Then: []cluster.Op{cluster.Put("a", nil)}})
	if !errdefs.IsUnavailable(err) {
		t.Errorf("txn: %v", err)
	}
	if _, err := kv.Get(ctx, "a"); err == nil || errdefs.Indeterminate(err) {
		t.Errorf("get: %v", err)
	}
}

// TestFull: a store that has reached its quota refuses changes as such, stays
// readable, and takes changes again after a restart that found room.
func TestFull(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	dir := filepath.Join(t.TempDir(), "etcd")
	const quota = 16 << 20
	s := open(t, ServerOptions{Dir: dir, quota: quota})
	kv := s.Client()
	value := make([]byte, 1<<20)
	var err error
	for i := range 100 {
		if _, err = kv.Txn(ctx, cluster.Txn{Then: []cluster.Op{cluster.Put("k", value)}}); err != nil {
			t.Logf("full after %d MiB", i)
			break
		}
	}
	if !errors.Is(err, errdefs.ErrResourceExhausted) || !errdefs.Indeterminate(err) {
		t.Errorf("full: %v", err)
	}
	if _, err := kv.Get(ctx, "k"); err != nil {
		t.Errorf("read of a full store: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	kv = open(t, ServerOptions{Dir: dir, quota: quota}).Client()
	if _, err := kv.Txn(ctx, cluster.Txn{Then: []cluster.Op{cluster.Put("k", value)}}); err != nil {
		t.Errorf("after the restart: %v", err)
	}
}

// TestFatalEntry: a fatal entry ends the goroutine that writes it and marks the
// store, and only that.
func TestFatalEntry(t *testing.T) {
	var out bytes.Buffer
	lg, st := newZap(hclog.New(&hclog.LoggerOptions{Output: &out, Level: hclog.Info}))
	ended, after := make(chan struct{}), false
	go func() {
		defer close(ended)
		lg.Fatal("disk is gone")
		after = true
	}()
	<-ended
	<-st.failed
	if after || st.reason != "disk is gone" || !strings.Contains(out.String(), "disk is gone") {
		t.Errorf("after %v, reason %q, log %q", after, st.reason, &out)
	}
}

// Goal: a store whose log is gone is refused at once, not taken for a new one.
func TestLogMissing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "etcd")
	if err := open(t, ServerOptions{Dir: dir}).Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "member", "wal")); err != nil {
		t.Fatal(err)
	}
	s, err := Start(t.Context(), ServerOptions{Dir: dir, Name: "n1"})
	if !errors.Is(err, errdefs.ErrDataLoss) {
		t.Errorf("start without a log: %v", err)
	}
	if err == nil {
		_ = s.Close()
	}
}
