package nbdserver_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/moraine-storage/moraine/drivers/aio"
	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/block/memblock"
	"github.com/moraine-storage/moraine/drivers/nbd"
	"github.com/moraine-storage/moraine/drivers/nbd/internal/nbdtest"
	"github.com/moraine-storage/moraine/drivers/nbd/nbdserver"
)

func patience(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), nbdtest.Patience)
	t.Cleanup(cancel)
	return ctx
}

// Goal: while held nothing is executed, not even a large write that was half
// here; afterwards everything is.
func TestHoldResume(t *testing.T) {
	d := nbdtest.Disk(t, memblock.Options{Size: 4 << 20})
	l := nbdtest.Loop(t, "", nbdtest.Queue(d), nbdserver.Limits{})
	path := serveLoop(t, l)
	small, bulk := connect(t, path, simple), connect(t, path, simple)
	small.works()
	msg := make([]byte, nbd.RequestSize)
	(&nbd.Request{Cmd: nbd.CmdWrite, Cookie: 8, Off: 1 << 20, Len: 1 << 20}).Put(msg)
	msg = append(msg, fill(1<<20, 8)...)
	if _, err := bulk.Write(msg[:300<<10]); err != nil {
		t.Fatal(err)
	}
	ctx := patience(t)
	for range 2 { // they nest
		if err := l.Hold(ctx); err != nil {
			t.Fatal(err)
		}
	}
	sent := make(chan error, 1)
	go func() { _, err := bulk.Write(msg[300<<10:]); sent <- err }()
	small.send(nbd.Request{Cmd: nbd.CmdWrite, Cookie: 7, Len: 4096}, fill(4096, 7))
	l.Resume()
	time.Sleep(20 * time.Millisecond)
	if err := l.Do(ctx, func(q block.Queue) {
		if q.InFlight() != 0 {
			t.Error("requests in flight while held")
		}
	}); err != nil {
		t.Fatal(err)
	}
	if content(d, 0, 512)[0] != 0 || content(d, 1<<20, 512)[0] != 0 {
		t.Fatal("a write was executed while held")
	}
	l.Resume()
	if cookie, errno, _ := small.reply(0); cookie != 7 || errno != 0 {
		t.Fatalf("reply %d, errno %d", cookie, errno)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	if cookie, errno, _ := bulk.reply(0); cookie != 8 || errno != 0 {
		t.Fatalf("reply %d, errno %d", cookie, errno)
	}
	if content(d, 0, 512)[0] != 7 || content(d, 1<<20, 512)[0] != 8 {
		t.Fatal("a write is missing")
	}
}

// Goal: a Hold that cannot be had in time says so and leaves nothing held.
func TestHoldTimesOut(t *testing.T) {
	l, g, _ := gated(t, 1<<20)
	path := serveLoop(t, l)
	cl := connect(t, path, simple)
	cl.send(nbd.Request{Cmd: nbd.CmdRead, Len: 4096}, nil)
	waitFor(t, "the read runs", func() bool { return g.submitted() == 1 })
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := l.Hold(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("hold: %v", err)
	}
	g.set(true)
	cl.reply(4096)
	cl.works()
}

// Goal: Drain answers what was received, closes, and can be repeated.
func TestDrain(t *testing.T) {
	l, g, _ := gated(t, 1<<20)
	path := serveLoop(t, l)
	cl := connect(t, path, simple)
	cl.send(nbd.Request{Cmd: nbd.CmdWrite, Cookie: 6, Len: 4096}, fill(4096, 6))
	waitFor(t, "the write runs", func() bool { return g.submitted() == 1 })
	drained := make(chan error, 1)
	go func() { drained <- l.Drain(patience(t)) }()
	select {
	case err := <-drained:
		t.Fatalf("drained with a write in flight: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	g.set(true)
	if cookie, errno, _ := cl.reply(0); cookie != 6 || errno != 0 {
		t.Fatalf("reply %d, errno %d", cookie, errno)
	}
	if err := <-drained; err != nil {
		t.Fatal(err)
	}
	cl.ends()
	for range 2 {
		l.Close()
		if err := l.Drain(patience(t)); err != nil {
			t.Fatalf("drain of a closed loop: %v", err)
		}
	}
	if err := l.Do(patience(t), func(block.Queue) {}); !errors.Is(err, block.ErrClosed) {
		t.Fatalf("do after close: %v", err)
	}
	if err := l.Hold(patience(t)); !errors.Is(err, block.ErrClosed) {
		t.Fatalf("hold after close: %v", err)
	}
	if err := l.Add(dial(t, path), nbdserver.Session{}); !errors.Is(err, block.ErrClosed) {
		t.Fatalf("add after close: %v", err)
	}
}

// Goal: Close does not wait for clients, only for the queue.
func TestCloseWithClients(t *testing.T) {
	l, path := serve(t, memblock.Options{Size: 64 << 20}, nbdserver.Limits{ConnBytes: 4 << 20})
	idle, slow := connect(t, path, simple), connect(t, path, simple)
	for range 20 {
		slow.send(nbd.Request{Cmd: nbd.CmdRead, Len: 1 << 20}, nil)
	}
	waitFor(t, "some were read", func() bool { return l.Stats().Reads >= 3 })
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := l.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("drain towards a client that does not read: %v", err)
	}
	idle.ends()
	slow.ends()
	<-l.Done()
}

// Goal: a loop whose parts cannot be made says so, and Close of it returns.
func TestStartFails(t *testing.T) {
	bad := errors.New("no such thing")
	engine := func() (aio.Engine, error) { return aio.New(aio.Inline) }
	for name, o := range map[string]nbdserver.LoopOptions{
		"engine": {NewEngine: func() (aio.Engine, error) { return nil, bad }, NewQueue: func(aio.Engine) (block.Queue, error) { return nil, bad }},
		"queue":  {NewEngine: engine, NewQueue: func(aio.Engine) (block.Queue, error) { return nil, bad }},
	} {
		l, err := nbdserver.NewLoop(o)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Do(patience(t), func(block.Queue) {}); !errors.Is(err, block.ErrClosed) {
			t.Fatalf("%s: do before start: %v", name, err)
		}
		if err := l.Start(); !errors.Is(err, bad) {
			t.Fatalf("%s: %v", name, err)
		}
		if err := l.Start(); err == nil {
			t.Fatalf("%s: started twice", name)
		}
		l.Close()
		<-l.Done()
	}
	if _, err := nbdserver.NewLoop(nbdserver.LoopOptions{}); err == nil {
		t.Fatal("a loop of nothing")
	}
	l, err := nbdserver.NewLoop(nbdserver.LoopOptions{NewEngine: engine, NewQueue: func(aio.Engine) (block.Queue, error) { return nil, bad }})
	if err != nil {
		t.Fatal(err)
	}
	l.Close() // never started
}

// Goal: a grown volume takes requests in the new part without reconnecting.
func TestGrow(t *testing.T) {
	d := nbdtest.Disk(t, memblock.Options{Size: 1 << 20})
	l := nbdtest.Loop(t, "", nbdtest.Queue(d), nbdserver.Limits{})
	cl := connect(t, serveLoop(t, l), simple)
	r := nbd.Request{Cmd: nbd.CmdWrite, Off: 1 << 20, Len: 4096}
	if errno, _ := cl.do(r, fill(4096, 1)); errno != nbd.ENOSPC {
		t.Fatalf("errno %d", errno)
	}
	if err := d.Grow(2 << 20); err != nil {
		t.Fatal(err)
	}
	if errno, _ := cl.do(r, fill(4096, 1)); errno != 0 {
		t.Fatalf("errno %d after growing", errno)
	}
}
