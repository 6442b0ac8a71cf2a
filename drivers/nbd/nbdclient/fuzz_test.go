package nbdclient

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/drivers/aio"
	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/nbd"
)

// FuzzReplies: whatever a server sends, each request ends, and nothing is
// written outside of its buffer.
func FuzzReplies(f *testing.F) {
	simple := make([]byte, nbd.SimpleReplySize, nbd.SimpleReplySize+4096)
	nbd.PutSimpleReply(simple, 0, 1<<32)
	f.Add(append(simple, make([]byte, 4096)...), false, false)
	for _, extended := range []bool{false, true} {
		var p []byte
		put := func(typ, flags uint16, cookie uint64, payload []byte) {
			c := nbd.Chunk{Flags: flags, Type: typ, Cookie: cookie, Len: uint64(len(payload))}
			h := make([]byte, nbd.ChunkSize)
			if extended {
				h = make([]byte, nbd.ExtChunkSize)
				c.PutExt(h)
			} else {
				c.Put(h)
			}
			p = append(append(p, h...), payload...)
		}
		put(nbd.ChunkOffsetData, 0, 1<<32, make([]byte, 8+2048))
		put(nbd.ChunkOffsetHole, nbd.ChunkFlagDone, 1<<32, []byte{0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0})
		put(nbd.ChunkError, nbd.ChunkFlagDone, 1<<32|1, nbd.AppendErrorPayload(nil, nbd.EIO, "no"))
		put(nbd.ChunkNone, nbd.ChunkFlagDone, 1<<32|2, nil)
		f.Add(p, true, extended)
	}
	f.Fuzz(func(t *testing.T, p []byte, structured, extended bool) {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(pair[1])
		e, err := aio.New(aio.Inline)
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		neg := nbd.Negotiated{Size: 1 << 20, Structured: structured || extended, Extended: extended,
			Flags: nbd.FlagHasFlags | nbd.FlagSendFlush | nbd.FlagSendTrim}
		c, err := newClient(pair[0], nil, neg, e, 1)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		around := make([]byte, 3*32768)
		reqs := []*block.Request{
			{Op: block.OpRead, Len: 4096, Buf: around[32768 : 32768+4096]},
			{Op: block.OpRead, Off: 8192, Len: 32768 - 4096, Buf: around[32768+4096 : 65536]},
			{Op: block.OpFlush}, {Op: block.OpTrim, Len: 65536},
		}
		c.Submit(reqs)
		if len(p) > 100<<10 {
			p = p[:100<<10] // what the socket takes at once
		}
		if _, err := unix.Write(pair[1], p); err != nil {
			t.Fatal(err)
		}
		if err := unix.Shutdown(pair[1], unix.SHUT_WR); err != nil {
			t.Fatal(err)
		}
		done := make([]*block.Request, len(reqs))
		ended := 0
		for rounds := 0; ended < len(reqs); rounds++ {
			ended += c.Reap(done)
			if rounds > 1000 {
				t.Fatalf("%d requests do not end", len(reqs)-ended)
			}
		}
		for i, b := range around {
			if b != 0 && (i < 32768 || i >= 65536) {
				t.Fatalf("byte %d was written", i-32768)
			}
		}
	})
}
