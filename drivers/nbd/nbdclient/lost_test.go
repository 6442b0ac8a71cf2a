package nbdclient

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/drivers/aio"
	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/nbd"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// peer is the other end of a client: what the server would be.
type peer struct {
	t *testing.T
	c *Client
	e aio.Engine
	f int
}

func newPeer(t *testing.T, neg nbd.Negotiated) *peer {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	e, err := aio.New(aio.Inline)
	if err != nil {
		t.Fatal(err)
	}
	neg.Size = 64 << 20
	c, err := newClient(pair[0], nil, neg, e, 5)
	if err != nil {
		t.Fatal(err)
	}
	p := &peer{t: t, c: c, e: e, f: pair[1]}
	t.Cleanup(func() {
		p.hangup()
		_ = c.Close()
		_ = e.Close()
	})
	return p
}

func (p *peer) hangup() {
	if p.f >= 0 {
		_ = unix.Close(p.f)
		p.f = -1
	}
}

func (p *peer) send(b []byte) {
	p.t.Helper()
	if n, err := unix.Write(p.f, b); err != nil || n != len(b) {
		p.t.Fatal(n, err)
	}
}

// reap waits for n requests to end.
func (p *peer) reap(n int) []*block.Request {
	p.t.Helper()
	var all []*block.Request
	done := make([]*block.Request, 8)
	events := make([]aio.Event, 4)
	for end := time.Now().Add(time.Minute); len(all) < n; {
		k := p.c.Reap(done)
		all = append(all, done[:k]...)
		if k > 0 {
			continue
		}
		m, err := p.e.Wait(events, time.Second)
		if err != nil {
			p.t.Fatal(err)
		}
		for _, ev := range events[:m] {
			p.c.Ready(ev)
		}
		if time.Now().After(end) {
			p.t.Fatalf("%d of %d requests have ended", len(all), n)
		}
	}
	return all
}

var allFlags = nbd.FlagHasFlags | nbd.FlagSendFlush | nbd.FlagSendFUA | nbd.FlagSendTrim | nbd.FlagSendZeroes | nbd.FlagSendCache

func read(off, n int64) *block.Request {
	return &block.Request{Op: block.OpRead, Off: off, Len: n, Buf: make([]byte, n)}
}

func write(off, n int64) *block.Request {
	return &block.Request{Op: block.OpWrite, Off: off, Len: n, Buf: make([]byte, n)}
}

// Goal (invariant 3): after a lost connection each request ends; what may have
// happened says so, what was not sent says that it did not.
func TestLostConnection(t *testing.T) {
	p := newPeer(t, nbd.Negotiated{Flags: allFlags})
	r, w, big, late := read(0, 4096), write(0, 4096), write(0, 32<<20), write(0, 4096)
	flush := &block.Request{Op: block.OpFlush}
	p.c.Submit([]*block.Request{r, w, flush, big, late}) // big fills the socket: late stays here
	if p.c.InFlight() != 5 {
		t.Fatalf("%d in flight", p.c.InFlight())
	}
	p.hangup()
	p.reap(5)
	for name, c := range map[string]struct {
		r     *block.Request
		maybe bool
	}{"read": {r, false}, "write": {w, true}, "flush": {flush, true}, "large write": {big, true}, "write that was not sent": {late, false}} {
		if !errors.Is(c.r.Err, block.ErrIO) || errdefs.Indeterminate(c.r.Err) != c.maybe {
			t.Errorf("%s: %v", name, c.r.Err)
		}
	}
	after := write(0, 512)
	p.c.Submit([]*block.Request{after})
	if p.reap(1); !errors.Is(after.Err, block.ErrIO) || errdefs.Indeterminate(after.Err) || p.c.Err() == nil {
		t.Fatalf("after: %v", after.Err)
	}
}

// Goal: a server that hangs is given up at the deadline.
func TestExpire(t *testing.T) {
	p := newPeer(t, nbd.Negotiated{Flags: allFlags})
	r := write(0, 4096)
	now := time.Now()
	r.Deadline = now.Add(time.Second)
	p.c.Submit([]*block.Request{r})
	p.c.Expire(now)
	if p.c.Err() != nil {
		t.Fatal("expired early")
	}
	p.c.Expire(now.Add(2 * time.Second))
	if p.reap(1); !errors.Is(r.Err, block.ErrTimeout) || !errdefs.Indeterminate(r.Err) {
		t.Fatalf("%v", r.Err)
	}
}

// Goal: what the server cannot do is refused here; hints are dropped.
func TestMissingAbilities(t *testing.T) {
	p := newPeer(t, nbd.Negotiated{Flags: nbd.FlagHasFlags})
	fua := write(0, 512)
	fua.Flags = block.FUA
	reqs := []*block.Request{{Op: block.OpFlush}, {Op: block.OpTrim, Len: 512}, {Op: block.OpZero, Len: 512}, fua}
	hint := &block.Request{Op: block.OpCache, Len: 512}
	p.c.Submit(append(reqs, hint))
	p.reap(5)
	for _, r := range reqs {
		if !errors.Is(r.Err, block.ErrUnsupported) {
			t.Errorf("%v: %v", r.Op, r.Err)
		}
	}
	if hint.Err != nil {
		t.Errorf("hint: %v", hint.Err)
	}
}

// Goal (invariants 1, 2): answers that cannot be right end the connection.
func TestHostileReplies(t *testing.T) {
	const cookie = 1 << 32
	chunk := func(typ, flags uint16, ck uint64, payload ...byte) []byte {
		h := make([]byte, nbd.ChunkSize)
		c := nbd.Chunk{Flags: flags, Type: typ, Cookie: ck, Len: uint64(len(payload))}
		c.Put(h)
		return append(h, payload...)
	}
	simple := func(errno uint32, ck uint64) []byte {
		h := make([]byte, nbd.SimpleReplySize)
		nbd.PutSimpleReply(h, errno, ck)
		return h
	}
	at := func(off uint64, n int) []byte {
		return append([]byte{0, 0, 0, 0, byte(off >> 24), byte(off >> 16), byte(off >> 8), byte(off)}, make([]byte, n)...)
	}
	const done = nbd.ChunkFlagDone
	huge := make([]byte, nbd.ChunkSize)
	(&nbd.Chunk{Type: nbd.ChunkError, Flags: done, Cookie: cookie, Len: 1 << 30}).Put(huge)
	for name, p := range map[string][]byte{
		"zeros":              make([]byte, 64),
		"unknown cookie":     chunk(nbd.ChunkNone, done, 7),
		"old cookie":         chunk(nbd.ChunkNone, done, 0),
		"simple read":        simple(0, cookie),
		"no data":            chunk(nbd.ChunkNone, done, cookie),
		"short data":         chunk(nbd.ChunkOffsetData, done, cookie, at(4096, 512)...),
		"data before":        chunk(nbd.ChunkOffsetData, done, cookie, at(3584, 4096)...),
		"data behind":        chunk(nbd.ChunkOffsetData, done, cookie, at(8192, 512)...),
		"too much data":      chunk(nbd.ChunkOffsetData, done, cookie, at(4096, 4097)...),
		"data twice":         append(chunk(nbd.ChunkOffsetData, 0, cookie, at(4096, 4096)...), chunk(nbd.ChunkOffsetData, done, cookie, at(4096, 512)...)...),
		"empty data":         chunk(nbd.ChunkOffsetData, done, cookie, at(4096, 0)...),
		"hole of a lie":      chunk(nbd.ChunkOffsetHole, done, cookie, append(at(4096, 0), 0xff, 0xff, 0xff, 0xff)...),
		"short hole":         chunk(nbd.ChunkOffsetHole, done, cookie, at(4096, 0)...),
		"none not last":      chunk(nbd.ChunkNone, 0, cookie),
		"none with payload":  chunk(nbd.ChunkNone, done, cookie, 1),
		"status of a read":   chunk(nbd.ChunkBlockStatus, done, cookie, make([]byte, 12)...),
		"unknown type":       chunk(99, done, cookie),
		"unknown flags":      chunk(nbd.ChunkNone, 0x8001, cookie),
		"huge error":         huge,
		"error without one":  chunk(nbd.ChunkError, done, cookie, 0, 0, 0, 0, 0, 0),
		"reply after reply":  append(chunk(nbd.ChunkOffsetData, done, cookie, at(4096, 4096)...), chunk(nbd.ChunkNone, done, cookie)...),
		"extended in simple": {0x6e, 0x8a, 0x27, 0x8c, 0, 0, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			srv := newPeer(t, nbd.Negotiated{Flags: allFlags, Structured: true})
			r := read(4096, 4096)
			other := read(0, 512)
			srv.c.Submit([]*block.Request{r, other})
			srv.send(p)
			srv.reap(2)
			if err := srv.c.Err(); !errors.Is(err, nbd.ErrProtocol) {
				t.Fatalf("connection: %v", err)
			}
			if other.Err == nil {
				t.Fatal("the other request has succeeded")
			}
		})
	}
}

// Goal: an error chunk ends the read with its error and text, and the
// connection goes on; pieces in any order make a whole.
func TestPieces(t *testing.T) {
	p := newPeer(t, nbd.Negotiated{Flags: allFlags, Structured: true})
	bad, good := read(0, 4096), read(8192, 4096)
	p.c.Submit([]*block.Request{bad, good})
	h := make([]byte, nbd.ChunkSize)
	payload := nbd.AppendErrorPayload(nil, nbd.ENOMEM, "not now")
	(&nbd.Chunk{Flags: nbd.ChunkFlagDone, Type: nbd.ChunkError, Cookie: 1 << 32, Len: uint64(len(payload))}).Put(h)
	msg := append(bytes.Clone(h), payload...)
	(&nbd.Chunk{Type: nbd.ChunkOffsetData, Cookie: 1<<32 | 1, Len: 8 + 1024}).Put(h)
	msg = append(append(msg, h...), append([]byte{0, 0, 0, 0, 0, 0, 0x2c, 0}, bytes.Repeat([]byte{9}, 1024)...)...)
	(&nbd.Chunk{Type: nbd.ChunkOffsetHole, Flags: nbd.ChunkFlagDone, Cookie: 1<<32 | 1, Len: 12}).Put(h)
	msg = append(append(msg, h...), 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0x0c, 0)
	good.Buf[0] = 1      // must become zero
	for i := range msg { // byte by byte
		p.send(msg[i : i+1])
		p.c.Reap(nil)
	}
	p.reap(2)
	if !errors.Is(bad.Err, block.ErrNoMemory) || !bytes.Contains([]byte(bad.Err.Error()), []byte("not now")) {
		t.Errorf("bad: %v", bad.Err)
	}
	if good.Err != nil || !bytes.Equal(good.Buf, append(make([]byte, 3072), bytes.Repeat([]byte{9}, 1024)...)) {
		t.Errorf("good: %v, %v", good.Err, good.Buf[:4])
	}
}

func TestSession(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[1])
	s := &Session{fd: pair[0]}
	fd, err := s.TakeFD()
	if err != nil || fd != pair[0] {
		t.Fatal(fd, err)
	}
	defer unix.Close(fd)
	if _, err := s.TakeFD(); err == nil {
		t.Fatal("taken twice")
	}
	if _, err := NewDevice(s); err == nil {
		t.Fatal("used after it was taken")
	}
	s.Close()
	s.Close()
}
