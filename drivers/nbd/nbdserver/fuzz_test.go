package nbdserver_test

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/drivers/block/memblock"
	"github.com/moraine-storage/moraine/drivers/nbd"
	"github.com/moraine-storage/moraine/drivers/nbd/internal/nbdtest"
	"github.com/moraine-storage/moraine/drivers/nbd/nbdserver"
)

// FuzzStream: whatever a client sends in the transmission phase, the loop
// survives, and nothing of the connection stays behind when it is gone.
func FuzzStream(f *testing.F) {
	add := func(structured, extended bool, split byte, reqs ...nbd.Request) {
		var p []byte
		for _, r := range reqs {
			h := make([]byte, nbd.RequestSize)
			if extended {
				h = make([]byte, nbd.ExtRequestSize)
				r.PutExt(h)
			} else {
				r.Put(h)
			}
			p = append(p, h...)
			if r.Cmd == nbd.CmdWrite {
				p = append(p, make([]byte, r.Len)...)
			}
		}
		f.Add(p, structured, extended, split)
	}
	write := nbd.Request{Cmd: nbd.CmdWrite, Off: 4096, Len: 4096}
	add(false, false, 0, nbd.Request{Cmd: nbd.CmdRead, Len: 8192}, write, nbd.Request{Cmd: nbd.CmdFlush})
	add(true, false, 9, nbd.Request{Cmd: nbd.CmdBlockStatus, Len: 65536}, nbd.Request{Cmd: nbd.CmdRead, Len: 131072})
	add(true, true, 31, nbd.Request{Cmd: nbd.CmdTrim, Len: 1 << 20}, nbd.Request{Cmd: nbd.CmdWrite, Flags: nbd.CmdFlagPayloadLen, Len: 131072}, nbd.Request{Cmd: nbd.CmdDisc})
	add(false, false, 3, nbd.Request{Cmd: nbd.CmdWrite, Off: 1 << 30, Len: 512}, nbd.Request{Cmd: 77, Len: 1}, nbd.Request{Cmd: nbd.CmdWriteZeroes, Len: 4096})
	l := nbdtest.Loop(f, "", nbdtest.Queue(nbdtest.Disk(f, memblock.Options{Size: 1 << 20})), nbdserver.Limits{ConnRequests: 4, ConnBytes: 256 << 10})
	f.Fuzz(func(t *testing.T, p []byte, structured, extended bool, split byte) {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		closed := make(chan bool, 2)
		neg := nbd.Negotiated{Flags: nbdserver.TransmissionFlags(l.Info(), false), Structured: structured || extended, Extended: extended}
		if structured {
			neg.Contexts = []nbd.Context{{ID: 1, Name: nbd.ContextAllocation}}
		}
		if err := l.AddFD(pair[0], nbdserver.Session{Negotiated: neg, Closed: func() { closed <- true }}); err != nil {
			t.Fatal(err)
		}
		if err := unix.SetNonblock(pair[1], true); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 64<<10)
		for end := time.Now().Add(nbdtest.Patience); len(p) > 0; {
			n, err := unix.Write(pair[1], p[:min(len(p), 1+int(split)*int(split))])
			if err == nil {
				p = p[n:]
			} else if err != unix.EAGAIN || time.Now().After(end) {
				break // closed by the loop
			}
			for {
				if n, err := unix.Read(pair[1], buf); err != nil || n == 0 {
					break
				}
			}
		}
		_ = unix.Close(pair[1])
		select {
		case <-closed:
		case <-time.After(nbdtest.Patience):
			t.Fatalf("the connection stayed: %+v", l.Stats())
		}
		leavesNothing(t, l)
	})
}
