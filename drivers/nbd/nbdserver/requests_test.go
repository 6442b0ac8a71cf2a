package nbdserver_test

import (
	"bytes"
	"io"
	"math/rand"
	"testing"

	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/block/memblock"
	"github.com/moraine-storage/moraine/drivers/nbd"
	"github.com/moraine-storage/moraine/drivers/nbd/nbdserver"
)

// Goal: a request that parses and is wrong gets its errno; the connection goes on.
func TestWrongRequests(t *testing.T) {
	const size = 1 << 20
	payload := make([]byte, 1<<20)
	for _, c := range []struct {
		name    string
		export  string
		req     nbd.Request
		payload int
		want    uint32
	}{
		{name: "read past the end", req: nbd.Request{Cmd: nbd.CmdRead, Off: size - 512, Len: 1024}, want: nbd.EINVAL},
		{name: "read far out", req: nbd.Request{Cmd: nbd.CmdRead, Off: 1<<64 - 512, Len: 512}, want: nbd.EINVAL},
		{name: "read too long", req: nbd.Request{Cmd: nbd.CmdRead, Len: 1<<32 - 512}, want: nbd.EINVAL},
		{name: "write past the end", req: nbd.Request{Cmd: nbd.CmdWrite, Off: size - 512, Len: 1024}, payload: 1024, want: nbd.ENOSPC},
		{name: "bulk write past the end", req: nbd.Request{Cmd: nbd.CmdWrite, Off: size - 512, Len: 1 << 20}, payload: 1 << 20, want: nbd.ENOSPC},
		{name: "zero past the end", req: nbd.Request{Cmd: nbd.CmdWriteZeroes, Off: size, Len: 512}, want: nbd.ENOSPC},
		{name: "trim past the end", req: nbd.Request{Cmd: nbd.CmdTrim, Off: size, Len: 512}, want: nbd.EINVAL},
		{name: "cache past the end", req: nbd.Request{Cmd: nbd.CmdCache, Off: size, Len: 512}, want: nbd.EINVAL},
		{name: "unaligned offset", req: nbd.Request{Cmd: nbd.CmdRead, Off: 1, Len: 512}, want: nbd.EINVAL},
		{name: "unaligned length", req: nbd.Request{Cmd: nbd.CmdWrite, Len: 100}, payload: 100, want: nbd.EINVAL},
		{name: "empty read", req: nbd.Request{Cmd: nbd.CmdRead}, want: nbd.EINVAL},
		{name: "empty write", req: nbd.Request{Cmd: nbd.CmdWrite}, want: nbd.EINVAL},
		{name: "flush of a range", req: nbd.Request{Cmd: nbd.CmdFlush, Len: 512}, want: nbd.EINVAL},
		{name: "unknown command", req: nbd.Request{Cmd: 99}, want: nbd.EINVAL},
		{name: "unknown flags", req: nbd.Request{Cmd: nbd.CmdRead, Flags: 1 << 14, Len: 512}, want: nbd.EINVAL},
		{name: "DF without structured replies", req: nbd.Request{Cmd: nbd.CmdRead, Flags: nbd.CmdFlagDF, Len: 512}, want: nbd.EINVAL},
		{name: "block status without a context", req: nbd.Request{Cmd: nbd.CmdBlockStatus, Len: 512}, want: nbd.EINVAL},
		{name: "write to a read-only export", export: "vol@snap", req: nbd.Request{Cmd: nbd.CmdWrite, Len: 512}, payload: 512, want: nbd.EPERM},
		{name: "bulk write to it", export: "vol@snap", req: nbd.Request{Cmd: nbd.CmdWrite, Len: 1 << 19}, payload: 1 << 19, want: nbd.EPERM},
		{name: "trim of it", export: "vol@snap", req: nbd.Request{Cmd: nbd.CmdTrim, Len: 512}, want: nbd.EPERM},
		{name: "zero of it", export: "vol@snap", req: nbd.Request{Cmd: nbd.CmdWriteZeroes, Len: 512}, want: nbd.EPERM},
		{name: "FUA on a read", req: nbd.Request{Cmd: nbd.CmdRead, Flags: nbd.CmdFlagFUA, Len: 512}, want: 0},
		{name: "cache", req: nbd.Request{Cmd: nbd.CmdCache, Len: 4096}, want: 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, path := serve(t, memblock.Options{Size: size}, nbdserver.Limits{})
			h := simple
			h.Export = c.export
			cl := connect(t, path, h)
			c.req.Cookie = 5
			if errno, _ := cl.do(c.req, payload[:c.payload]); errno != c.want {
				t.Fatalf("errno %d, want %d", errno, c.want)
			}
			cl.works()
		})
	}
}

// Goal: a WRITE above the limit is read away and refused, not followed blindly.
func TestOversizedWrite(t *testing.T) {
	_, path := serve(t, memblock.Options{Size: 128 << 20}, nbdserver.Limits{})
	cl := connect(t, path, simple)
	if errno, _ := cl.do(nbd.Request{Cmd: nbd.CmdWrite, Len: nbd.MaxPayload + 4096}, make([]byte, nbd.MaxPayload+4096)); errno != nbd.EINVAL {
		t.Fatalf("errno %d", errno)
	}
	cl.works()
}

// Goal: errors of commands that need structured replies come as error chunks,
// and DF on a read that is too long is told apart.
func TestErrorChunks(t *testing.T) {
	for _, extended := range []bool{false, true} {
		_, path := serve(t, memblock.Options{Size: 64 << 20}, nbdserver.Limits{})
		cl := connect(t, path, nbd.ClientHandshake{NoExtended: !extended})
		for _, c := range []struct {
			req  nbd.Request
			want uint32
		}{
			{nbd.Request{Cmd: nbd.CmdRead, Cookie: 3, Off: 64 << 20, Len: 512}, nbd.EINVAL},
			{nbd.Request{Cmd: nbd.CmdRead, Flags: nbd.CmdFlagDF, Cookie: 4, Len: nbd.MaxPayload + 512}, nbd.EOVERFLOW},
		} {
			cl.send(c.req, nil)
			h, p := cl.chunk()
			if h.Type != nbd.ChunkError || !h.Done() || h.Cookie != c.req.Cookie || extended && h.Off != c.req.Off {
				t.Fatalf("chunk %+v", h)
			}
			if errno, msg, err := nbd.DecodeErrorPayload(p); err != nil || errno != c.want || msg == "" {
				t.Fatalf("errno %d %q %v, want %d", errno, msg, err, c.want)
			}
		}
	}
}

// Goal: large reads show holes unless DF forbids it, and either way give the
// right bytes.
func TestReadHoles(t *testing.T) {
	_, path := serve(t, memblock.Options{Size: 4 << 20}, nbdserver.Limits{})
	for _, extended := range []bool{false, true} {
		cl := connect(t, path, nbd.ClientHandshake{NoExtended: !extended})
		want := make([]byte, 1<<20)
		copy(want[256<<10:], fill(64<<10, 9))
		copy(want[512<<10:], fill(128<<10, 8))
		for _, w := range []struct{ off, n int }{{256 << 10, 64 << 10}, {512 << 10, 128 << 10}} {
			cl.send(nbd.Request{Cmd: nbd.CmdWrite, Flags: payloadFlag(extended), Off: uint64(w.off), Len: uint64(w.n)}, want[w.off:w.off+w.n])
			if extended {
				if h, _ := cl.chunk(); h.Type != nbd.ChunkNone || !h.Done() {
					t.Fatalf("reply to a write: %+v", h)
				}
			} else if _, errno, _ := cl.reply(0); errno != 0 {
				t.Fatalf("errno %d", errno)
			}
		}
		for _, c := range []struct {
			name   string
			flags  uint16
			off, n int
			chunks int
			holes  int
		}{
			{"mixed", 0, 0, 1 << 20, 5, 3},
			{"DF", nbd.CmdFlagDF, 0, 1 << 20, 1, 0},
			{"hole alone", 0, 0, 128 << 10, 1, 1},
			{"data alone", 0, 512 << 10, 128 << 10, 1, 0},
			{"ends in data", 0, 128 << 10, 192 << 10, 2, 1},
			{"small", 0, 0, 4096, 1, 0},
		} {
			cl.send(nbd.Request{Cmd: nbd.CmdRead, Flags: c.flags, Cookie: 1, Off: uint64(c.off), Len: uint64(c.n)}, nil)
			got := fill(c.n, 0xee)
			chunks, holes := 0, 0
			for done := false; !done; {
				h, p := cl.chunk()
				done = h.Done()
				chunks++
				at := be.Uint64(p) - uint64(c.off)
				if h.Type == nbd.ChunkOffsetHole {
					holes++
					clear(got[at : at+uint64(be.Uint32(p[8:]))])
				} else {
					copy(got[at:], p[8:])
				}
			}
			if chunks != c.chunks || holes != c.holes {
				t.Errorf("%s: %d chunks, %d holes; want %d, %d", c.name, chunks, holes, c.chunks, c.holes)
			}
			if !bytes.Equal(got, want[c.off:c.off+c.n]) {
				t.Errorf("%s: wrong bytes", c.name)
			}
		}
	}
}

func payloadFlag(extended bool) uint16 {
	if extended {
		return nbd.CmdFlagPayloadLen
	}
	return 0
}

// deltas is a context that says that every other 64 KiB changed.
type deltas struct{}

func (deltas) Match(query string) []string {
	switch query {
	case "", "moraine:", "moraine:delta/s1":
		return []string{"moraine:delta/s1"}
	}
	return nil
}

func (deltas) Status(_ block.Queue, _ string, dst []nbd.Extent, off, length int64, limit int) ([]nbd.Extent, error) {
	for at := off; at < off+length && len(dst) < limit; {
		next := min((at/65536+1)*65536, off+length)
		dst = append(dst, nbd.Extent{Len: uint64(next - at), Flags: uint64(at / 65536 % 2)})
		at = next
	}
	return dst, nil
}

func TestBlockStatus(t *testing.T) {
	l, _ := serve(t, memblock.Options{Size: 1 << 20}, nbdserver.Limits{})
	path := serveExport(t, &nbdserver.Export{Name: "vol", Loop: l, Contexts: deltas{}})
	for _, extended := range []bool{false, true} {
		cl := connect(t, path, nbd.ClientHandshake{NoExtended: !extended,
			Contexts: []string{"moraine:delta/s1", nbd.ContextAllocation, "foreign:context"}})
		if len(cl.neg.Contexts) != 2 {
			t.Fatalf("contexts %v", cl.neg.Contexts)
		}
		status := func(flags uint16, off, n uint64) map[uint32][]nbd.Extent {
			cl.send(nbd.Request{Cmd: nbd.CmdBlockStatus, Flags: flags, Cookie: 9, Off: off, Len: n}, nil)
			m := map[uint32][]nbd.Extent{}
			for done := false; !done; {
				h, p := cl.chunk()
				done = h.Done()
				id, ext, err := nbd.DecodeStatus(nil, p, extended)
				if err != nil {
					t.Fatal(err)
				}
				m[id] = ext
			}
			return m
		}
		delta, alloc := cl.neg.Contexts[0].ID, cl.neg.Contexts[1].ID
		m := status(0, 32768, 131072)
		if e := m[delta]; len(e) != 3 || e[0] != (nbd.Extent{Len: 32768}) || e[1] != (nbd.Extent{Len: 65536, Flags: 1}) || e[2] != (nbd.Extent{Len: 32768}) {
			t.Fatalf("delta %v", e)
		}
		if e := m[alloc]; len(e) != 1 || e[0] != (nbd.Extent{Len: 131072, Flags: nbd.StateHole | nbd.StateZero}) {
			t.Fatalf("allocation %v", e)
		}
		if e := status(nbd.CmdFlagReqOne, 0, 1<<20)[delta]; len(e) != 1 || e[0].Len != 65536 {
			t.Fatalf("REQ_ONE: %v", e)
		}
	}
}

// Goal: TRIM and WRITE_ZEROES longer than the queue takes at once are done in
// full, whatever their alignment; other clients go on meanwhile.
func TestLongTrimAndZero(t *testing.T) {
	const size = 300 << 20
	d, path := diskServer(t, memblock.Options{Size: size})
	cl := connect(t, path, simple)
	for off := 0; off < size; off += 10 << 20 {
		if errno, _ := cl.do(nbd.Request{Cmd: nbd.CmdWrite, Off: uint64(off), Len: 4096}, fill(4096, 1)); errno != 0 {
			t.Fatalf("errno %d", errno)
		}
	}
	const from, to = 512, size - 512
	if errno, _ := cl.do(nbd.Request{Cmd: nbd.CmdTrim, Off: from, Len: to - from}, nil); errno != 0 {
		t.Fatalf("trim: errno %d", errno)
	}
	// Whole grains inside the range are gone, at every seam.
	for off := int64(10 << 20); off < size; off += 10 << 20 {
		if content(d, off, 512)[0] != 0 {
			t.Fatalf("not trimmed at %d", off)
		}
	}
	if content(d, 0, 512)[0] != 1 {
		t.Fatal("trimmed outside")
	}
	if errno, _ := cl.do(nbd.Request{Cmd: nbd.CmdWriteZeroes, Len: size}, nil); errno != 0 {
		t.Fatalf("zero: errno %d", errno)
	}
	if content(d, 0, 512)[0] != 0 {
		t.Fatal("not zeroed")
	}
}

// Goal: payloads of all sizes, pieces of TCP-like arrival, several at once,
// arrive whole: the receive buffer's seams do not show.
func TestSizesAndFragments(t *testing.T) {
	const size = 8 << 20
	for _, async := range []bool{false, true} {
		l, path := serve(t, memblock.Options{Size: size, Async: async, Seed: 3}, nbdserver.Limits{})
		cl := connect(t, path, simple)
		seed := rand.Int63()
		t.Logf("seed %d", seed)
		rng := rand.New(rand.NewSource(seed))
		model := make([]byte, size)
		for range 60 {
			var stream []byte
			n := 1 + rng.Intn(12) // below the read's reply there are as many at most
			at := 0
			for i := range n {
				length := 512 * (1 + rng.Intn(1<<rng.Intn(11)))
				if at+length > size {
					break
				}
				p := make([]byte, nbd.RequestSize)
				r := nbd.Request{Cmd: nbd.CmdWrite, Cookie: uint64(i), Off: uint64(at), Len: uint64(length)}
				r.Put(p)
				rng.Read(model[at : at+length])
				stream = append(append(stream, p...), model[at:at+length]...)
				at += length
			}
			for len(stream) > 0 {
				k := min(len(stream), 1+rng.Intn(1<<(6+rng.Intn(14))))
				if _, err := cl.Write(stream[:k]); err != nil {
					t.Fatal(err)
				}
				stream = stream[k:]
			}
			checkBack(t, cl, model[:at], n)
		}
		_ = cl.Close()
		leavesNothing(t, l)
	}
}

// checkBack takes the replies to up to n writes and reads the range back.
func checkBack(t *testing.T, cl *raw, want []byte, n int) {
	t.Helper()
	cl.send(nbd.Request{Cmd: nbd.CmdRead, Cookie: 1 << 40, Len: uint64(len(want))}, nil)
	for range n + 1 {
		p := make([]byte, nbd.SimpleReplySize)
		if _, err := io.ReadFull(cl, p); err != nil {
			t.Fatal(err)
		}
		h, err := nbd.DecodeReplyHeader(p)
		if err != nil || h.Errno != 0 {
			t.Fatalf("reply %+v, %v", h, err)
		}
		if h.Cookie != 1<<40 {
			continue
		}
		got := make([]byte, len(want))
		if _, err := io.ReadFull(cl, got); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Fatal("read back differs")
		}
		return
	}
	t.Fatal("no reply to the read")
}
