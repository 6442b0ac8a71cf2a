package aiotest

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/drivers/aio"
)

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
