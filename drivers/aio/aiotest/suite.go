// Package aiotest is the conformance suite of aio.Engine. Each engine passes
// it in one test; engines of tests (over a simulated disk) may run it too.
package aiotest

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/drivers/aio"
)

// patience is far beyond what any step takes, so that only a hang fails.
const patience = 30 * time.Second

// Run checks engines made by fresh. Each check runs on its own goroutine,
// locked to its thread, as owners are.
func Run(t *testing.T, fresh func() (aio.Engine, error)) {
	t.Helper()
	for _, c := range []struct {
		name string
		fn   func(*owner)
	}{
		{"ReadWrite", checkReadWrite},
		{"ReadPastEnd", checkReadPastEnd},
		{"DirectPastEnd", checkDirectPastEnd},
		{"Datasync", checkDatasync},
		{"Errors", checkErrors},
		{"NoSpace", checkNoSpace},
		{"Random", checkRandom},
		{"ManyInFlight", checkManyInFlight},
		{"SubmitInCompletion", checkSubmitInCompletion},
		{"DeepChain", checkDeepChain},
		{"NoAllocation", checkNoAllocation},
		{"WatchLevelTriggered", checkWatchLevel},
		{"WatchChange", checkWatchChange},
		{"WatchHangUp", checkHangUp},
		{"WatchMany", checkWatchMany},
		{"WatchErrors", checkWatchErrors},
		{"UnwatchReleases", checkUnwatchReleases},
		{"WaitLimits", checkWaitLimits},
		{"Wake", checkWake},
		{"WakeLost", checkWakeLost},
		{"CompletionEndsWait", checkCompletionEndsWait},
		{"FilesAndSockets", checkFilesAndSockets},
		{"CloseInFlight", checkCloseInFlight},
		{"Closed", checkClosed},
	} {
		t.Run(c.name, func(t *testing.T) {
			done := make(chan struct{})
			go func() {
				defer close(done) // also when FailNow ends this goroutine
				runtime.LockOSThread()
				defer runtime.UnlockOSThread()
				e, err := fresh()
				if err != nil {
					t.Errorf("make engine: %v", err)
					return
				}
				o := &owner{T: t, e: e}
				c.fn(o)
				if n := e.InFlight(); n != 0 {
					t.Errorf("%d operations in flight at the end", n)
				}
				for range 2 {
					if err := e.Close(); err != nil {
						t.Errorf("close: %v", err)
					}
				}
				e.Wake() // allowed after Close
			}()
			<-done
		})
	}
}

// owner is one check: the goroutine that owns an engine.
type owner struct {
	*testing.T
	e    aio.Engine
	done int
}

// Complete implements aio.Completer.
func (o *owner) Complete(op *aio.Op) { o.done++ }

// settle waits until want operations have completed.
func (o *owner) settle(want int) {
	o.Helper()
	for end := time.Now().Add(patience); o.done < want; {
		if time.Now().After(end) {
			o.Fatalf("%d of %d operations completed, %d in flight", o.done, want, o.e.InFlight())
		}
		if _, err := o.e.Wait(nil, time.Second); err != nil {
			o.Fatalf("wait: %v", err)
		}
	}
	if o.done != want {
		o.Fatalf("%d operations completed, %d were submitted", o.done, want)
	}
}

// do runs one operation to its end.
func (o *owner) do(kind aio.Kind, fd int, buf []byte, off int64) syscall.Errno {
	o.Helper()
	op := &aio.Op{Kind: kind, FD: fd, Buf: buf, Off: off, Done: o}
	o.e.Submit(op)
	o.settle(o.done + btoi(o.e.InFlight() > 0))
	return op.Err
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (o *owner) mustDo(kind aio.Kind, fd int, buf []byte, off int64) {
	o.Helper()
	if errno := o.do(kind, fd, buf, off); errno != 0 {
		o.Fatalf("kind %d at %d: %v", kind, off, errno)
	}
}

func (o *owner) file(size int64) *os.File {
	o.Helper()
	f, err := os.OpenFile(filepath.Join(o.TempDir(), "data"), os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		o.Cleanup(func() { f.Close() })
		err = f.Truncate(size)
	}
	if err != nil {
		o.Fatal(err)
	}
	return f
}

func (o *owner) pair() (int, int) {
	o.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		o.Fatal(err)
	}
	return fds[0], fds[1]
}

// wait returns the events of one Wait; at most d.
func (o *owner) wait(d time.Duration) []aio.Event {
	o.Helper()
	ev := make([]aio.Event, 16)
	n, err := o.e.Wait(ev, d)
	if err != nil {
		o.Fatalf("wait: %v", err)
	}
	return ev[:n]
}

// expect waits until exactly the event of token with these bits is reported.
func (o *owner) expect(token uint64, ready uint32) {
	o.Helper()
	var got []aio.Event
	for end := time.Now().Add(patience); len(got) == 0 && time.Now().Before(end); {
		got = o.wait(time.Second)
	}
	if len(got) != 1 || got[0] != (aio.Event{Token: token, Ready: ready}) {
		o.Fatalf("events %+v, want token %d with bits %#x", got, token, ready)
	}
}

func (o *owner) quiet() {
	o.Helper()
	if got := o.wait(5 * time.Millisecond); len(got) != 0 {
		o.Fatalf("events %+v, want none", got)
	}
}

func fill(b []byte, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 1))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
}

func (o *owner) write(fd int, s string) {
	o.Helper()
	if n, err := unix.Write(fd, []byte(s)); err != nil || n != len(s) {
		o.Fatalf("write to socket: %d, %v", n, err)
	}
}

func (o *owner) read(fd, n int) {
	o.Helper()
	if got, err := unix.Read(fd, make([]byte, n)); err != nil || got != n {
		o.Fatalf("read from socket: %d, %v", got, err)
	}
}
