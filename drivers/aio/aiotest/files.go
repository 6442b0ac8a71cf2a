package aiotest

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/drivers/aio"
)

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
