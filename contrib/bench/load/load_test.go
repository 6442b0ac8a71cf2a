package load_test

import (
	"context"
	"encoding/binary"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moraine-storage/moraine/contrib/bench/load"
	"github.com/moraine-storage/moraine/drivers/aio"
	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/block/blocktest"
	"github.com/moraine-storage/moraine/drivers/block/memblock"
	"github.com/moraine-storage/moraine/drivers/nbd"
	"github.com/moraine-storage/moraine/drivers/nbd/nbdserver"
)

const deviceSize = 8 << 20

type exports struct{ loop *nbdserver.Loop }

func (e exports) Lookup(context.Context, string, nbdserver.Peer) (*nbdserver.Export, error) {
	return &nbdserver.Export{Loop: e.loop}, nil
}

func (e exports) List(context.Context, nbdserver.Peer) ([]nbd.ExportEntry, error) { return nil, nil }

// serve serves a memory disk and returns a connection, and the disk.
func serve(t *testing.T) (*load.Conn, *memblock.Disk) {
	t.Helper()
	d, err := memblock.New(memblock.Options{Size: deviceSize})
	if err != nil {
		t.Fatal(err)
	}
	loop, err := nbdserver.NewLoop(nbdserver.LoopOptions{
		Name:      "test",
		NewEngine: func() (aio.Engine, error) { return aio.New(aio.Inline) },
		NewQueue:  func(e aio.Engine) (block.Queue, error) { return d.OpenQueue(e.Wake), nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := loop.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(loop.Close)
	srv, err := nbdserver.NewServer(nbdserver.ServerOptions{Exports: exports{loop}, TLS: nbd.TLSOff})
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	t.Cleanup(func() {
		srv.Close()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	c, err := load.Dial(socket, "any")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for range 2 {
			if err := c.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		}
	})
	if c.Size != deviceSize {
		t.Fatalf("size %d, want %d", c.Size, deviceSize)
	}
	return c, d
}

// TestOnce: each block of the range is written exactly once, nothing else is.
func TestOnce(t *testing.T) {
	for _, random := range []bool{false, true} {
		c, d := serve(t)
		j := load.Job{Write: true, Random: random, Block: 4096, Depth: 32, Offset: 1 << 20, Range: 4 << 20, Seed: 77, Once: true}
		res, err := c.Run(j)
		if err != nil {
			t.Fatal(err)
		}
		if want := j.Range / 4096; res.Ops != want || res.Bytes != j.Range {
			t.Errorf("%d operations, %d bytes; want %d, %d", res.Ops, res.Bytes, want, j.Range)
		}
		if err := c.Flush(); err != nil {
			t.Error(err)
		}
		content := make([]byte, deviceSize)
		r := blocktest.ReadRequest(content, 0)
		q := d.OpenQueue(nil)
		q.Submit([]*block.Request{r})
		if q.Reap(make([]*block.Request, 1)) != 1 || r.Err != nil {
			t.Fatal("read the disk:", r.Err)
		}
		for at := int64(0); at < deviceSize; at += 4096 {
			want := uint64(0)
			if at >= j.Offset && at < j.Offset+j.Range {
				want = uint64(at) ^ j.Seed
			}
			if got := binary.BigEndian.Uint64(content[at:]); got != want {
				t.Fatalf("random %v: block at %d begins with %#x, want %#x", random, at, got, want)
			}
		}
	}
}

// TestShapes runs every kind of job on one connection, one after the other:
// each leaves it as it found it.
func TestShapes(t *testing.T) {
	c, _ := serve(t)
	for _, j := range []load.Job{
		{Block: 4096, Depth: 1}, {Block: 4096, Depth: 32, Random: true}, {Block: 1 << 20, Depth: 8},
		{Write: true, Block: 1 << 20, Depth: 4}, {Write: true, Random: true, Block: 512, Depth: 128},
		{Block: 4096, Depth: 4, Stride: 65536, Once: true, Random: true}, {Block: 2 << 20, Depth: 2, Once: true},
	} {
		j.Time = 20 * time.Millisecond
		seen := int64(0)
		j.Watch = func(sent, done time.Time) {
			seen++
			if done.Before(sent) {
				t.Error("a request ended before it was sent")
			}
		}
		res, err := c.Run(j)
		if err != nil {
			t.Fatalf("%+v: %v", j, err)
		}
		if res.Ops == 0 || res.Ops != seen || res.Bytes != res.Ops*int64(j.Block) || res.IOPS() <= 0 || res.MiBps() <= 0 {
			t.Errorf("%+v: %+v, %d seen", j, res, seen)
		}
	}
}

func TestStop(t *testing.T) {
	c, _ := serve(t)
	stop := make(chan struct{})
	time.AfterFunc(20*time.Millisecond, func() { close(stop) })
	if _, err := c.Run(load.Job{Block: 4096, Depth: 8, Random: true, Time: time.Hour, Stop: stop}); err != nil {
		t.Fatal(err)
	}
}

func TestErrors(t *testing.T) {
	c, _ := serve(t)
	for _, j := range []load.Job{
		{}, {Block: 4096}, {Depth: 1}, {Block: 4096, Depth: 1, Offset: -4096}, {Block: 4096, Depth: 1, Range: deviceSize + 4096},
		{Block: 4096, Depth: 1, Offset: deviceSize}, {Block: 4096, Depth: 1, Range: 100},
	} {
		if _, err := c.Run(j); err == nil {
			t.Errorf("%+v was accepted", j)
		}
	}
	// A block that the server refuses: its errno is reported.
	if _, err := c.Run(load.Job{Block: 100, Depth: 1, Once: true}); err == nil || !strings.Contains(err.Error(), "errno") {
		t.Errorf("misaligned requests: %v", err)
	}
	if _, err := load.Dial(filepath.Join(t.TempDir(), "nobody"), ""); err == nil {
		t.Error("dialled nobody")
	}
}

// TestNotNBD: a server that speaks something else is an error, not a hang.
func TestNotNBD(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		if nc, err := ln.Accept(); err == nil {
			_, _ = nc.Write([]byte("220 mail.example.org ESMTP ready\r\n"))
			nc.Close()
		}
	}()
	if _, err := load.Dial(socket, ""); err == nil || !strings.Contains(err.Error(), "newstyle") {
		t.Errorf("dial: %v", err)
	}
}
