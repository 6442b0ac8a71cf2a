package nbdserver_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/drivers/aio"
	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/block/memblock"
	"github.com/moraine-storage/moraine/drivers/nbd"
	"github.com/moraine-storage/moraine/drivers/nbd/internal/nbdtest"
	"github.com/moraine-storage/moraine/drivers/nbd/nbdserver"
)

// Goal: a stream that cannot be followed ends its own connection, leaves
// nothing behind, and the neighbour does not notice.
func TestBrokenStreams(t *testing.T) {
	l, path := serve(t, memblock.Options{Size: 64 << 20}, nbdserver.Limits{})
	neighbour := connect(t, path, simple)
	huge := make([]byte, nbd.RequestSize)
	(&nbd.Request{Cmd: nbd.CmdWrite, Len: 1<<32 - 512}).Put(huge)
	for name, p := range map[string][]byte{
		"zeros":      make([]byte, 64),
		"text":       []byte("GET / HTTP/1.1\r\nHost: example.org\r\n\r\n"),
		"huge write": huge,
		"late magic": append(validRead(), fill(28, 0xff)...),
	} {
		t.Run(name, func(t *testing.T) {
			cl := connect(t, path, simple)
			if _, err := cl.Write(p); err != nil {
				t.Fatal(err)
			}
			cl.ends()
			neighbour.works()
		})
	}
	waitFor(t, "only the neighbour is left", func() bool { s := l.Stats(); return s.Open == 1 && s.InFlight == 0 && s.Broken == 4 })
}

func validRead() []byte {
	p := make([]byte, nbd.RequestSize)
	(&nbd.Request{Cmd: nbd.CmdRead, Len: 512}).Put(p)
	return p
}

// Goal: a client may vanish at any byte of a request.
func TestVanish(t *testing.T) {
	l, path := serve(t, memblock.Options{Size: 64 << 20}, nbdserver.Limits{})
	neighbour := connect(t, path, simple)
	for _, n := range []int{4096, 1 << 20} {
		msg := make([]byte, nbd.RequestSize, nbd.RequestSize+n)
		(&nbd.Request{Cmd: nbd.CmdWrite, Len: uint64(n)}).Put(msg)
		msg = append(msg, fill(n, 7)...)
		for _, cut := range []int{0, 1, 27, 28, 29, 28 + n/2, 28 + n - 1} {
			cl := connect(t, path, simple)
			if _, err := cl.Write(msg[:cut]); err != nil {
				t.Fatal(err)
			}
			_ = cl.Close()
			neighbour.works()
		}
	}
	waitFor(t, "all are gone", func() bool { s := l.Stats(); return s.Open == 1 && s.InFlight == 0 })
	if s := l.Stats(); s.Writes != 0 {
		t.Fatalf("%d halves of writes were executed", s.Writes)
	}
	_ = neighbour.Close()
	leavesNothing(t, l)
}

// Goal (S7, no ghost requests): a request that waits for its range lock when
// its client goes away is never executed; one of a new connection that was sent
// after it is.
func TestNoGhostRequests(t *testing.T) {
	l, g, d := gated(t, 1<<20)
	path := serveLoop(t, l)
	old := connect(t, path, simple)
	old.send(nbd.Request{Cmd: nbd.CmdWrite, Cookie: 1, Len: 4096}, fill(4096, 1)) // started, kept by the gate
	old.send(nbd.Request{Cmd: nbd.CmdWrite, Cookie: 2, Len: 8192}, fill(8192, 2)) // waits for its lock
	waitFor(t, "both are here", func() bool { return l.Stats().InFlight == 2 })
	fresh := connect(t, path, simple)
	fresh.send(nbd.Request{Cmd: nbd.CmdWrite, Cookie: 3, Off: 4096, Len: 4096}, fill(4096, 3)) // behind it
	waitFor(t, "three are here", func() bool { return l.Stats().InFlight == 3 })
	if g.submitted() != 1 {
		t.Fatalf("%d requests started, want 1", g.submitted())
	}
	_ = old.Close()
	g.set(true)
	if cookie, errno, _ := fresh.reply(0); cookie != 3 || errno != 0 {
		t.Fatalf("reply %d, errno %d", cookie, errno)
	}
	waitFor(t, "the ghost is dropped", func() bool { return l.Stats().Dropped == 1 })
	_ = fresh.Close()
	leavesNothing(t, l)
	if got := content(d, 0, 8192); !bytes.Equal(got, append(fill(4096, 1), fill(4096, 3)...)) {
		t.Fatalf("first bytes %d, %d", got[0], got[4096])
	}
}

// Goal (S7): bytes that were sent before the client shut its side, and read
// after, are not executed.
func TestUnreadBytesOfTheGone(t *testing.T) {
	for _, half := range []bool{false, true} {
		t.Run(fmt.Sprintf("half close %v", half), func(t *testing.T) {
			d := nbdtest.Disk(t, memblock.Options{Size: 1 << 20})
			l := nbdtest.Loop(t, "", nbdtest.Queue(d), nbdserver.Limits{})
			path := serveLoop(t, l)
			cl := connect(t, path, simple)
			ctx, cancel := context.WithTimeout(context.Background(), nbdtest.Patience)
			defer cancel()
			// The loop stands still while both happen.
			if err := l.Do(ctx, func(block.Queue) {
				cl.send(nbd.Request{Cmd: nbd.CmdWrite, Len: 4096}, fill(4096, 1))
				if half {
					if err := cl.Conn.(*net.UnixConn).CloseWrite(); err != nil {
						t.Error(err)
					}
				} else {
					_ = cl.Close()
				}
			}); err != nil {
				t.Fatal(err)
			}
			waitFor(t, "the connection is gone", func() bool { s := l.Stats(); return s.Open == 0 && s.InFlight == 0 })
			if s := l.Stats(); s.Writes != 0 || content(d, 0, 512)[0] != 0 {
				t.Fatalf("a ghost wrote: %+v", s)
			}
		})
	}
}

// Goal: libnbd's good-bye: DISC, then shutdown of its side. Replies to what
// runs still come, then the end, no reset.
func TestGoodbye(t *testing.T) {
	l, g, _ := gated(t, 1<<20)
	path := serveLoop(t, l)
	cl := connect(t, path, simple)
	cl.send(nbd.Request{Cmd: nbd.CmdRead, Cookie: 1, Len: 4096}, nil)
	waitFor(t, "the read runs", func() bool { return g.submitted() == 1 })
	cl.send(nbd.Request{Cmd: nbd.CmdDisc}, nil)
	if err := cl.Conn.(*net.UnixConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(10 * time.Millisecond) // let the loop see it; either order must work
	g.set(true)
	if _, errno, _ := cl.reply(4096); errno != 0 {
		t.Fatalf("errno %d", errno)
	}
	if n, err := cl.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, unix.ECONNRESET) {
		t.Fatalf("end of the stream: %d, %v", n, err)
	}
	if s := l.Stats(); s.Broken != 0 {
		t.Fatalf("%+v", s)
	}
}

// Goal: eight clients that write and read the same blocks: each request is
// atomic towards the others, in any order of completion (invariant 3).
func TestEightClients(t *testing.T) {
	for _, async := range []bool{false, true} {
		t.Run(fmt.Sprintf("async=%v", async), func(t *testing.T) {
			l, path := serve(t, memblock.Options{Size: 1 << 20, Async: async, Seed: 1}, nbdserver.Limits{})
			var wg sync.WaitGroup
			for id := range 8 {
				cl := connect(t, path, simple)
				seed := rand.Int63()
				wg.Go(func() {
					contend(t, cl, byte(id), rand.New(rand.NewSource(seed)))
					_ = cl.Close()
				})
			}
			wg.Wait()
			leavesNothing(t, l)
		})
	}
}

// contend keeps up to 16 requests in flight on one range of 128 KiB; each read
// must be of one colour per 4 KiB, as each write has been.
func contend(t *testing.T, cl *raw, id byte, rng *rand.Rand) {
	sizes := map[uint64]int{}
	buf := make([]byte, 128<<10)
	for i := range 300 {
		n := 4096 * (1 + rng.Intn(32))
		off := 4096 * rng.Intn((128<<10-n)/4096+1)
		r := nbd.Request{Cookie: uint64(i), Off: uint64(off), Len: uint64(n)}
		sizes[r.Cookie] = 0
		var payload []byte
		if rng.Intn(2) == 0 {
			r.Cmd, payload = nbd.CmdWrite, fill(n, id<<4|byte(i%16))
		} else {
			sizes[r.Cookie] = n
		}
		p := make([]byte, nbd.RequestSize)
		r.Put(p)
		if _, err := cl.Write(append(p, payload...)); err != nil {
			t.Error(err)
			return
		}
		for len(sizes) >= 16 || i == 299 && len(sizes) > 0 {
			if !takeReply(t, cl, sizes, buf) {
				return
			}
		}
	}
}

func takeReply(t *testing.T, cl *raw, sizes map[uint64]int, buf []byte) bool {
	h := buf[:nbd.SimpleReplySize]
	if err := readAll(cl, h); err != nil {
		t.Error(err)
		return false
	}
	r, err := nbd.DecodeReplyHeader(h)
	n, known := sizes[r.Cookie]
	if err != nil || r.Errno != 0 || !known {
		t.Errorf("reply %+v, %v, known %v", r, err, known)
		return false
	}
	delete(sizes, r.Cookie)
	if err := readAll(cl, buf[:n]); err != nil {
		t.Error(err)
		return false
	}
	for at := 0; at < n; at += 4096 {
		if !bytes.Equal(buf[at:at+4095], buf[at+1:at+4096]) {
			t.Errorf("torn block at %d of a read of %d", at, n)
			return false
		}
	}
	return true
}

// Goal: a client that asks for much and reads nothing is not read from any
// further; the others are served; what it then reads is right.
func TestSlowReader(t *testing.T) {
	l, path := serve(t, memblock.Options{Size: 64 << 20}, nbdserver.Limits{ConnBytes: 4 << 20, LoopBytes: 8 << 20})
	slow, quick := connect(t, path, simple), connect(t, path, simple)
	if errno, _ := quick.do(nbd.Request{Cmd: nbd.CmdWrite, Off: 1 << 20, Len: 1 << 20}, fill(1<<20, 5)); errno != 0 {
		t.Fatalf("errno %d", errno)
	}
	const n = 200
	sent := make(chan error, 1)
	go func() {
		for i := range n {
			p := make([]byte, nbd.RequestSize)
			(&nbd.Request{Cmd: nbd.CmdRead, Cookie: uint64(i), Off: 1 << 20, Len: 1 << 20}).Put(p)
			if _, err := slow.Write(p); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	waitFor(t, "the slow one is throttled", func() bool { return l.Stats().Reads >= 3 })
	for range 50 {
		quick.works()
	}
	if got := int(l.Stats().Reads) - 50; got > 12 {
		t.Fatalf("%d MiB were read for a client that takes nothing", got)
	}
	for i := range n {
		cookie, errno, p := slow.reply(1 << 20)
		if cookie != uint64(i) || errno != 0 || !bytes.Equal(p, fill(1<<20, 5)) {
			t.Fatalf("reply %d: cookie %d, errno %d", i, cookie, errno)
		}
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
}

// Goal: one that never reads and then vanishes leaves nothing.
func TestSlowReaderVanishes(t *testing.T) {
	l, path := serve(t, memblock.Options{Size: 64 << 20}, nbdserver.Limits{ConnBytes: 4 << 20})
	slow := connect(t, path, simple)
	for range 20 {
		slow.send(nbd.Request{Cmd: nbd.CmdRead, Len: 1 << 20}, nil)
	}
	waitFor(t, "some were read", func() bool { return l.Stats().Reads >= 3 })
	_ = slow.Close()
	leavesNothing(t, l)
}

// Goal: a client that writes without reading replies, and many of them, does
// not lock up with the server: requests over the limit wait in the socket.
func TestManyRequestsOneConnection(t *testing.T) {
	for _, async := range []bool{false, true} {
		l, path := serve(t, memblock.Options{Size: 16 << 20, Async: async, Seed: 2}, nbdserver.Limits{ConnRequests: 7, ConnBytes: 64 << 10})
		cl := connect(t, path, simple)
		const n = 2000
		errc := make(chan error, 1)
		go func() {
			p := make([]byte, nbd.RequestSize+4096)
			for i := range n {
				(&nbd.Request{Cmd: nbd.CmdWrite, Cookie: uint64(i), Off: uint64(i) * 4096, Len: 4096}).Put(p)
				if _, err := cl.Write(p); err != nil {
					errc <- err
					return
				}
			}
			errc <- nil
		}()
		seen := map[uint64]bool{}
		for range n {
			cookie, errno, _ := cl.reply(0)
			if errno != 0 || seen[cookie] || cookie >= n {
				t.Fatalf("cookie %d, errno %d", cookie, errno)
			}
			seen[cookie] = true
		}
		if err := <-errc; err != nil {
			t.Fatal(err)
		}
		waitFor(t, "all writes are counted", func() bool { return l.Stats().Writes == n })
		_ = cl.Close()
		leavesNothing(t, l)
	}
}

// Goal: a descriptor that was negotiated elsewhere (kernel nbd) is served, and
// Closed is called once when it has ended.
func TestAddFD(t *testing.T) {
	l := nbdtest.Loop(t, "", nbdtest.Queue(nbdtest.Disk(t, memblock.Options{Size: 1 << 20})), nbdserver.Limits{Conns: 1})
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var closed atomic.Int32
	s := nbdserver.Session{Negotiated: nbd.Negotiated{Flags: nbdserver.TransmissionFlags(l.Info(), false)}, Closed: func() { closed.Add(1) }}
	if err := l.AddFD(pair[0], s); err != nil {
		t.Fatal(err)
	}
	other, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(other[1])
	if err := l.AddFD(other[0], s); err == nil {
		t.Fatal("more connections than the limit")
	}
	_ = unix.Close(other[0]) // still ours
	if _, err := unix.Write(pair[1], validRead()); err != nil {
		t.Fatal(err)
	}
	got := 0
	for buf := make([]byte, 4096); got < nbd.SimpleReplySize+512; {
		n, err := unix.Read(pair[1], buf)
		if err != nil || n == 0 {
			t.Fatal(n, err)
		}
		got += n
	}
	_ = unix.Close(pair[1])
	waitFor(t, "closed is told", func() bool { return closed.Load() == 1 && l.Stats().Open == 0 })
}

// Goal: the same on each engine.
func TestEngines(t *testing.T) {
	for _, mode := range []aio.Mode{aio.Inline, aio.Threads, aio.Uring} {
		t.Run(string(mode), func(t *testing.T) {
			if e, err := aio.New(mode); err != nil {
				if os.Getenv("CI") != "" {
					t.Fatalf("engine %s: %v", mode, err)
				}
				t.Skipf("this kernel has no %s engine: %v", mode, err)
			} else if err := e.Close(); err != nil {
				t.Fatal(err)
			}
			l := nbdtest.Loop(t, mode, nbdtest.Queue(nbdtest.Disk(t, memblock.Options{Size: 4 << 20, Async: mode != aio.Inline, Seed: 1})), nbdserver.Limits{})
			path := serveLoop(t, l)
			for id := range 2 {
				cl := connect(t, path, simple)
				contend(t, cl, byte(id), rand.New(rand.NewSource(int64(id))))
				cl.works()
			}
		})
	}
}

func readAll(cl *raw, p []byte) error {
	for len(p) > 0 {
		n, err := cl.Read(p)
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}
