// Package aiotest is the conformance suite of aio.Engine. Each engine passes
// it in one test; engines of tests (over a simulated disk) may run it too.
package aiotest

import (
	"bytes"
	"errors"
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

func checkReadWrite(o *owner) {
	f := o.file(0)
	fd := int(f.Fd())
	want := make([]byte, 3<<20+777)
	fill(want, 1)
	o.mustDo(aio.Write, fd, want, 5)
	onDisk, err := os.ReadFile(f.Name())
	if err != nil || !bytes.Equal(onDisk[5:], want) {
		o.Fatalf("file differs from what was written (%v)", err)
	}
	got := make([]byte, len(want))
	o.mustDo(aio.Read, fd, got, 5)
	if !bytes.Equal(got, want) {
		o.Fatal("read differs from what was written")
	}
	o.mustDo(aio.Write, fd, nil, 0)
	o.mustDo(aio.Read, fd, nil, 1<<40)
	if st, _ := f.Stat(); st.Size() != int64(len(want)+5) {
		o.Fatalf("size %d after empty transfers", st.Size())
	}
}

func checkReadPastEnd(o *owner) {
	f := o.file(0)
	if _, err := f.Write([]byte("moraine")); err != nil {
		o.Fatal(err)
	}
	for _, c := range []struct {
		off  int64
		want string
	}{{0, "moraine\x00\x00\x00"}, {5, "ne\x00\x00\x00\x00\x00\x00\x00\x00"}, {7, "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}, {1 << 30, "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}} {
		buf := bytes.Repeat([]byte{0xff}, 10)
		o.mustDo(aio.Read, int(f.Fd()), buf, c.off)
		if string(buf) != c.want {
			o.Errorf("read at %d: %q, want %q", c.off, buf, c.want)
		}
	}
}

// checkDirectPastEnd reads over an end of file that is not aligned, by O_DIRECT.
func checkDirectPastEnd(o *owner) {
	f := o.file(0)
	data := make([]byte, 5000)
	fill(data, 2)
	if _, err := f.Write(data); err != nil {
		o.Fatal(err)
	}
	fd, err := unix.Open(f.Name(), unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		o.Logf("no O_DIRECT here (%v): buffered instead", err)
		fd = int(f.Fd())
	} else {
		defer unix.Close(fd)
	}
	buf, err := unix.Mmap(-1, 0, 16384, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		o.Fatal(err)
	}
	defer unix.Munmap(buf)
	for i := range buf {
		buf[i] = 0xff
	}
	o.mustDo(aio.Read, fd, buf, 0)
	want := append(bytes.Clone(data), make([]byte, len(buf)-len(data))...)
	if !bytes.Equal(buf, want) {
		o.Fatal("direct read over the end of the file differs")
	}
}

func checkDatasync(o *owner) {
	f := o.file(0)
	o.mustDo(aio.Write, int(f.Fd()), []byte("x"), 0)
	o.mustDo(aio.Datasync, int(f.Fd()), nil, 0)
	a, b := o.pair()
	defer unix.Close(a)
	defer unix.Close(b)
	if errno := o.do(aio.Datasync, a, nil, 0); errno != unix.EINVAL {
		o.Errorf("datasync of a socket: %v, want EINVAL", errno)
	}
}

func checkErrors(o *owner) {
	f := o.file(0)
	ro, err := os.Open(f.Name())
	if err != nil {
		o.Fatal(err)
	}
	defer ro.Close()
	gone := int(f.Fd()) + 500
	buf := make([]byte, 16)
	for _, c := range []struct {
		name string
		kind aio.Kind
		fd   int
		off  int64
		want syscall.Errno
	}{
		{"read closed", aio.Read, gone, 0, unix.EBADF},
		{"write closed", aio.Write, gone, 0, unix.EBADF},
		{"sync closed", aio.Datasync, gone, 0, unix.EBADF},
		{"write read-only", aio.Write, int(ro.Fd()), 0, unix.EBADF},
		{"negative offset", aio.Read, int(f.Fd()), -4096, unix.EINVAL},
		{"negative offset write", aio.Write, int(f.Fd()), -4096, unix.EINVAL},
		{"unknown kind", 99, int(f.Fd()), 0, unix.EINVAL},
		{"no kind", 0, int(f.Fd()), 0, unix.EINVAL},
	} {
		if errno := o.do(c.kind, c.fd, buf, c.off); errno != c.want {
			o.Errorf("%s: %v, want %v", c.name, errno, c.want)
		}
	}
}

// checkNoSpace writes to /dev/full, which accepts nothing.
func checkNoSpace(o *owner) {
	fd, err := unix.Open("/dev/full", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		o.Fatal(err)
	}
	defer unix.Close(fd)
	if errno := o.do(aio.Write, fd, make([]byte, 4096), 0); errno != unix.ENOSPC {
		o.Errorf("write to a full device: %v, want ENOSPC", errno)
	}
}

// checkRandom compares the file with a byte array under random operations, at
// most one in flight per range.
func checkRandom(o *owner) {
	const size, slots = 1 << 20, 16
	seed := rand.Uint64()
	o.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 2))
	f := o.file(size)
	model := make([]byte, size)
	ops, bufs := make([]*aio.Op, slots), make([][]byte, slots)
	for round := range 60 {
		for i := range ops {
			// Slot i works in its own stripe, so that the outcome is defined.
			stripe := int64(i) * size / slots
			off := stripe + r.Int64N(size/slots)
			n := r.Int64N(stripe + size/slots - off + 1)
			bufs[i] = make([]byte, n)
			ops[i] = &aio.Op{Kind: aio.Read, FD: int(f.Fd()), Buf: bufs[i], Off: off, Done: o}
			switch r.IntN(5) {
			case 0, 1:
				ops[i].Kind = aio.Write
				fill(bufs[i], r.Uint64())
				copy(model[off:], bufs[i])
			case 2:
				ops[i] = &aio.Op{Kind: aio.Datasync, FD: int(f.Fd()), Done: o}
			}
		}
		want := o.done + slots
		o.e.Submit(ops...)
		o.settle(want)
		for i, op := range ops {
			if op.Err != 0 {
				o.Fatalf("round %d: kind %d at %d: %v", round, op.Kind, op.Off, op.Err)
			}
			if op.Kind == aio.Read && !bytes.Equal(bufs[i], model[op.Off:op.Off+int64(len(bufs[i]))]) {
				o.Fatalf("round %d: read of %d bytes at %d differs", round, len(bufs[i]), op.Off)
			}
		}
	}
}

func checkManyInFlight(o *owner) {
	const n, unit = 5000, 512 // more than any ring holds
	f := o.file(n * unit)
	ops := make([]*aio.Op, n)
	for i := range ops {
		b := bytes.Repeat([]byte{byte(i), byte(i >> 8)}, unit/2)
		ops[i] = &aio.Op{Kind: aio.Write, FD: int(f.Fd()), Buf: b, Off: int64(i) * unit, Done: o}
	}
	o.e.Submit(ops...)
	if got := o.e.InFlight() + o.done; got != n {
		o.Errorf("in flight and completed are %d, want %d", got, n)
	}
	o.settle(n)
	got, err := os.ReadFile(f.Name())
	if err != nil {
		o.Fatal(err)
	}
	for i := range n {
		if p := i * unit; got[p] != byte(i) || got[p+unit-1] != byte(i>>8) {
			o.Fatalf("block %d holds other bytes", i)
		}
	}
}

// chain submits its next operation from the completion of the last.
type chain struct {
	o    *owner
	op   *aio.Op
	ops  []*aio.Op
	left int
	in   int // depth of nested completions, must stay 1
	deep int
}

func (c *chain) Complete(op *aio.Op) {
	c.in++
	c.deep = max(c.deep, c.in)
	c.o.done++
	if c.left--; c.left > 0 {
		c.op.Off++
		c.o.e.Submit(c.ops...)
	}
	c.in--
}

func runChain(o *owner, n int) {
	f := o.file(0)
	c := &chain{o: o, left: n}
	c.op = &aio.Op{Kind: aio.Write, FD: int(f.Fd()), Buf: []byte("a"), Done: c}
	c.ops = []*aio.Op{c.op}
	o.e.Submit(c.op)
	o.settle(n)
	if c.deep != 1 {
		o.Errorf("completions were nested %d deep", c.deep)
	}
	if st, err := f.Stat(); err != nil || st.Size() != int64(n) {
		o.Errorf("size %d, want %d (%v)", st.Size(), n, err)
	}
}

func checkSubmitInCompletion(o *owner) { runChain(o, 10) }
func checkDeepChain(o *owner)          { runChain(o, 4000) }

func checkNoAllocation(o *owner) {
	f := o.file(1 << 16)
	ops := make([]*aio.Op, 8)
	for i := range ops {
		ops[i] = &aio.Op{Kind: aio.Write, FD: int(f.Fd()), Buf: make([]byte, 512), Off: int64(i) * 512, Done: o}
	}
	ev := make([]aio.Event, 4)
	once := func() {
		want := o.done + len(ops)
		o.e.Submit(ops...)
		for o.done < want {
			if _, err := o.e.Wait(ev, time.Second); err != nil {
				o.Fatal(err)
			}
		}
	}
	// Workers of a pool may allocate in the runtime when they park for the
	// first time; an allocation per operation would be 8 per round.
	if got := testing.AllocsPerRun(200, once); got >= 1 {
		o.Errorf("%.2f allocations per round of %d operations", got, len(ops))
	}
}

func checkWatchLevel(o *owner) {
	a, b := o.pair()
	defer unix.Close(a)
	defer unix.Close(b)
	if err := o.e.Watch(a, aio.Readable, 7); err != nil {
		o.Fatal(err)
	}
	o.quiet()
	o.write(b, "xy")
	for range 3 {
		o.expect(7, aio.Readable) // until it is read
	}
	o.read(a, 1)
	o.expect(7, aio.Readable)
	o.read(a, 1)
	// What was seen before the read may be reported once more, not twice.
	o.wait(0)
	o.quiet()
	if err := o.e.Unwatch(a); err != nil {
		o.Fatal(err)
	}
	o.write(b, "z")
	o.quiet()
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

func checkWatchChange(o *owner) {
	a, b := o.pair()
	defer unix.Close(a)
	defer unix.Close(b)
	steps := []struct {
		interest uint32
		token    uint64
		want     uint32
	}{
		{aio.Writable, 1, aio.Writable},
		{aio.Readable | aio.Writable, 2, aio.Writable},
		{aio.Readable, 3, 0},
		{0, 4, 0},
		{aio.Writable, 5, aio.Writable},
		{aio.Writable, 6, aio.Writable}, // token alone
	}
	for _, s := range steps {
		if err := o.e.Watch(a, s.interest, s.token); err != nil {
			o.Fatal(err)
		}
		if s.want == 0 {
			o.quiet()
		} else {
			o.expect(s.token, s.want)
		}
	}
	o.write(b, "x")
	if err := o.e.Watch(a, aio.Readable|aio.Writable, 8); err != nil {
		o.Fatal(err)
	}
	o.expect(8, aio.Readable|aio.Writable)
	if err := o.e.Watch(a, 0, 9); err != nil {
		o.Fatal(err)
	}
	o.quiet() // data, but nobody asked
}

func checkHangUp(o *owner) {
	for _, interest := range []uint32{0, aio.Readable, aio.Readable | aio.Writable} {
		a, b := o.pair()
		if err := o.e.Watch(a, interest, 3); err != nil {
			o.Fatal(err)
		}
		o.wait(0)
		unix.Close(b)
		var seen uint32
		for end := time.Now().Add(patience); seen&aio.HangUp == 0 && time.Now().Before(end); {
			for _, ev := range o.wait(time.Second) {
				seen = ev.Ready
			}
		}
		if want := interest | aio.HangUp; seen != want {
			o.Errorf("interest %#x: closed peer shows bits %#x, want %#x", interest, seen, want)
		}
		if err := o.e.Unwatch(a); err != nil {
			o.Fatal(err)
		}
		unix.Close(a)
	}
	// Half closed: the peer has ended sending and still reads.
	a, b := o.pair()
	defer unix.Close(a)
	defer unix.Close(b)
	if err := o.e.Watch(a, aio.Readable, 4); err != nil {
		o.Fatal(err)
	}
	o.quiet()
	if err := unix.Shutdown(b, unix.SHUT_WR); err != nil {
		o.Fatal(err)
	}
	o.expect(4, aio.Readable|aio.HangUp)
}

// checkWatchMany has more ready descriptors than fit the events of a Wait.
func checkWatchMany(o *owner) {
	const n = 100
	var fds []int
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	for i := range n {
		a, b := o.pair()
		fds = append(fds, a, b)
		if err := o.e.Watch(a, aio.Readable, uint64(i)); err != nil {
			o.Fatal(err)
		}
		o.write(b, "x")
	}
	seen := map[uint64]bool{}
	for end := time.Now().Add(patience); len(seen) < n && time.Now().Before(end); {
		for _, ev := range o.wait(time.Second) {
			seen[ev.Token] = true
			// Read, as an owner would: the others get their turn.
			_, _ = unix.Read(fds[2*ev.Token], make([]byte, 8))
		}
	}
	if len(seen) != n {
		o.Errorf("%d of %d ready descriptors were reported", len(seen), n)
	}
	for i := range n {
		if err := o.e.Unwatch(fds[2*i]); err != nil {
			o.Fatal(err)
		}
	}
}

func checkWatchErrors(o *owner) {
	if err := o.e.Unwatch(3999); err == nil {
		o.Error("unwatch of what is not watched succeeded")
	}
	if err := o.e.Watch(-1, aio.Readable, 1); !errors.Is(err, unix.EBADF) {
		o.Errorf("watch of descriptor -1: %v, want EBADF", err)
	}
	if err := o.e.Watch(3999, aio.Readable, 1); !errors.Is(err, unix.EBADF) {
		o.Errorf("watch of a closed descriptor: %v, want EBADF", err)
	}
	a, b := o.pair()
	defer unix.Close(a)
	defer unix.Close(b)
	if err := o.e.Watch(a, 1<<20, 1); !errors.Is(err, unix.EINVAL) {
		o.Errorf("watch with unknown interest: %v, want EINVAL", err)
	}
	if err := o.e.Unwatch(a); err == nil {
		o.Error("a refused watch is there")
	}
}

// checkUnwatchReleases: an engine keeps no reference to a descriptor after
// Unwatch, or closing it would not reach the peer.
func checkUnwatchReleases(o *owner) {
	a, b := o.pair()
	defer unix.Close(b)
	if err := o.e.Watch(a, aio.Readable, 1); err != nil {
		o.Fatal(err)
	}
	o.wait(0)
	if err := o.e.Watch(a, aio.Readable|aio.Writable, 1); err != nil {
		o.Fatal(err)
	}
	o.wait(0)
	if err := o.e.Unwatch(a); err != nil {
		o.Fatal(err)
	}
	unix.Close(a)
	p := []unix.PollFd{{Fd: int32(b), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(p, int(patience.Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		if n != 1 || p[0].Revents&unix.POLLHUP == 0 {
			o.Fatalf("peer does not see the close: %d, %#x, %v", n, p[0].Revents, err)
		}
		break
	}
	// The number is used again by another socket: it is a new watch.
	c, d := o.pair()
	defer unix.Close(c)
	defer unix.Close(d)
	if err := o.e.Watch(c, aio.Readable, 22); err != nil {
		o.Fatal(err)
	}
	o.write(d, "x")
	o.expect(22, aio.Readable)
}

func checkWaitLimits(o *owner) {
	if got := o.wait(0); len(got) != 0 {
		o.Errorf("events %+v from an idle engine", got)
	}
	for _, d := range []time.Duration{time.Microsecond, 300 * time.Microsecond, 20 * time.Millisecond} {
		start := time.Now()
		o.wait(d)
		if took := time.Since(start); took < d {
			o.Errorf("wait of %v returned after %v with nothing", d, took)
		}
	}
	if n := o.e.Poll(); n != 0 {
		o.Errorf("poll of an idle engine ran %d completions", n)
	}
}

func checkWake(o *owner) {
	o.e.Wake() // before Wait
	o.e.Wake()
	o.wait(-1)
	start := time.Now()
	o.wait(10 * time.Millisecond)
	if time.Since(start) < 10*time.Millisecond {
		o.Error("two wakes before one wait made two waits return")
	}
	stop := make(chan struct{})
	go func() {
		time.Sleep(5 * time.Millisecond)
		o.e.Wake()
		close(stop)
	}()
	o.wait(-1)
	<-stop
}

// checkWakeLost passes messages from several goroutines by Wake alone; a lost
// wake-up hangs it.
func checkWakeLost(o *owner) {
	const senders, each = 4, 500
	ch := make(chan int, senders*each)
	for range senders {
		go func() {
			for i := range each {
				ch <- i
				o.e.Wake()
			}
		}()
	}
	for got, end := 0, time.Now().Add(patience); got < senders*each; {
		select {
		case <-ch:
			got++
		default:
			if time.Now().After(end) {
				o.Fatalf("%d of %d messages arrived", got, senders*each)
			}
			start := time.Now()
			o.wait(5 * time.Second)
			if time.Since(start) >= 5*time.Second && len(ch) > 0 {
				o.Fatal("a wake-up was lost")
			}
		}
	}
}

func checkCompletionEndsWait(o *owner) {
	f := o.file(4096)
	op := &aio.Op{Kind: aio.Read, FD: int(f.Fd()), Buf: make([]byte, 4096), Done: o}
	for i := range 50 {
		o.e.Submit(op)
		for o.done <= i {
			o.wait(-1) // ends by the completion, or hangs
		}
	}
	// Poll alone makes progress too.
	o.e.Submit(op)
	for end := time.Now().Add(patience); o.done < 51; runtime.Gosched() {
		o.e.Poll()
		if time.Now().After(end) {
			o.Fatal("poll never completed the operation")
		}
	}
}

func checkFilesAndSockets(o *owner) {
	f := o.file(1 << 20)
	a, b := o.pair()
	defer unix.Close(a)
	defer unix.Close(b)
	if err := o.e.Watch(a, aio.Readable, 1); err != nil {
		o.Fatal(err)
	}
	op := &aio.Op{Kind: aio.Write, FD: int(f.Fd()), Buf: make([]byte, 1<<16), Done: o}
	for i := range 200 {
		o.write(b, "x")
		o.e.Submit(op)
		events := 0
		for end := time.Now().Add(patience); o.done <= i || events == 0; {
			events += len(o.wait(time.Second))
			if time.Now().After(end) {
				o.Fatalf("round %d: %d completions, %d events", i, o.done, events)
			}
		}
		o.read(a, 1)
	}
}

func checkCloseInFlight(o *owner) {
	f := o.file(0)
	ops := make([]*aio.Op, 64)
	for i := range ops {
		b := make([]byte, 1<<16)
		fill(b, uint64(i))
		ops[i] = &aio.Op{Kind: aio.Write, FD: int(f.Fd()), Buf: b, Off: int64(i) << 16, Done: o}
	}
	o.e.Submit(ops...)
	if err := o.e.Close(); err != nil {
		o.Errorf("close: %v", err)
	}
	if o.done != len(ops) {
		o.Fatalf("close returned with %d of %d operations completed", o.done, len(ops))
	}
	for i, op := range ops {
		got := make([]byte, len(op.Buf))
		if _, err := f.ReadAt(got, op.Off); op.Err != 0 || err != nil || !bytes.Equal(got, op.Buf) {
			o.Fatalf("operation %d: %v, %v, or other bytes", i, op.Err, err)
		}
	}
}

func checkClosed(o *owner) {
	f := o.file(0)
	if err := o.e.Close(); err != nil {
		o.Fatal(err)
	}
	op := &aio.Op{Kind: aio.Write, FD: int(f.Fd()), Buf: []byte("late"), Done: o}
	o.e.Submit(op)
	if o.done != 1 || op.Err != unix.ESHUTDOWN {
		o.Errorf("operation after close: %d completions, %v; want ESHUTDOWN", o.done, op.Err)
	}
	if st, _ := f.Stat(); st.Size() != 0 {
		o.Error("an operation after close took effect")
	}
	if _, err := o.e.Wait(nil, 0); !errors.Is(err, aio.ErrClosed) {
		o.Errorf("wait after close: %v", err)
	}
	if err := o.e.Watch(0, aio.Readable, 1); !errors.Is(err, aio.ErrClosed) {
		o.Errorf("watch after close: %v", err)
	}
	if err := o.e.Unwatch(0); !errors.Is(err, aio.ErrClosed) {
		o.Errorf("unwatch after close: %v", err)
	}
	if n := o.e.Poll(); n != 0 {
		o.Errorf("poll after close: %d", n)
	}
}
