package rawtls_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/drivers/nbd/internal/nbdtest"
	"github.com/moraine-storage/moraine/drivers/nbd/internal/rawtls"
	"github.com/moraine-storage/moraine/drivers/nbd/internal/stream"
)

// tap keeps what is written instead of sending it, when on.
type tap struct {
	net.Conn
	on   bool
	kept []byte
}

func (c *tap) Write(p []byte) (int, error) {
	if !c.on {
		return c.Conn.Write(p)
	}
	c.kept = append(c.kept, p...)
	return len(p), nil
}

// pair is a TLS connection: a client behind a tap, and a server attached to a
// raw descriptor.
func pair(t *testing.T) (*rawtls.Transport, *tap, *rawtls.Transport, int) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	server, client := nbdtest.Certificates(t, "")
	ctx, cancel := context.WithTimeout(context.Background(), nbdtest.Patience)
	defer cancel()
	accepted := make(chan net.Conn, 1)
	go func() {
		nc, err := ln.Accept()
		if err != nil {
			close(accepted)
			return
		}
		accepted <- nc
	}()
	cc, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cc.Close() })
	sc, ok := <-accepted
	if !ok {
		t.Fatal("not accepted")
	}
	wire := &tap{Conn: cc}
	done := make(chan error, 1)
	var ct *rawtls.Transport
	go func() {
		var err error
		ct, err = rawtls.Client(ctx, wire, client)
		done <- err
	}()
	st, err := rawtls.Server(ctx, sc, server)
	if err = errors.Join(err, <-done); err != nil {
		t.Fatal(err)
	}
	fd, err := stream.Dup(sc)
	if err == nil {
		err = stream.Prepare(fd)
	}
	if err != nil {
		t.Fatal(err)
	}
	_ = sc.Close()
	t.Cleanup(func() { _ = unix.Close(fd) })
	st.Attach(fd)
	return ct, wire, st, fd
}

func wait(t *testing.T, fd int) {
	t.Helper()
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(p, int(nbdtest.Patience/time.Millisecond))
		if err == unix.EINTR {
			continue
		}
		if n != 1 || err != nil {
			t.Fatal(n, err)
		}
		return
	}
}

// Goal: records that arrive byte by byte are read whole, and in between a read
// says "later" and breaks nothing.
func TestByteByByte(t *testing.T) {
	ct, wire, st, fd := pair(t)
	buf := make([]byte, 1<<10)
	if _, drained, err := st.Read(buf); err != unix.EAGAIN || !drained {
		t.Fatalf("read of nothing: %v, %v", drained, err)
	}
	wire.on = true
	want := bytes.Repeat([]byte("moraine "), 40)
	if err := ct.Write(want[:100]); err != nil {
		t.Fatal(err)
	}
	if err := ct.Write(want[100:]); err != nil {
		t.Fatal(err)
	}
	var got []byte
	for _, b := range wire.kept {
		if _, err := wire.Conn.Write([]byte{b}); err != nil {
			t.Fatal(err)
		}
		wait(t, fd)
		n, _, err := st.Read(buf)
		if err != nil && err != unix.EAGAIN {
			t.Fatal(err)
		}
		got = append(got, buf[:n]...)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("got %q", got)
	}
	// The end of the stream without a close_notify is an error or an end, not "later".
	_ = wire.Conn.Close()
	wait(t, fd)
	if n, _, err := st.Read(buf); n != 0 || err == unix.EAGAIN {
		t.Fatalf("at the end: %d, %v", n, err)
	}
}

// Goal: a flipped bit is an error, not data.
func TestTampered(t *testing.T) {
	ct, wire, st, fd := pair(t)
	wire.on = true
	if err := ct.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	wire.kept[len(wire.kept)-3] ^= 1
	if _, err := wire.Conn.Write(wire.kept); err != nil {
		t.Fatal(err)
	}
	wait(t, fd)
	if n, _, err := st.Read(make([]byte, 10)); n != 0 || err == nil || err == unix.EAGAIN {
		t.Fatalf("read %d, %v", n, err)
	}
}

// Goal: output that the socket does not take is kept and sent later, in order.
func TestPush(t *testing.T) {
	ct, _, st, _ := pair(t)
	want := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	got := make(chan []byte, 1)
	for left := want; len(left) > 0; left = left[rawtls.Gather:] {
		if err := st.Write(left[:rawtls.Gather]); err != nil {
			t.Fatal(err)
		}
	}
	if err := st.Push(); err != unix.EAGAIN || st.Idle() {
		t.Fatalf("16 MiB at once: %v, idle %v", err, st.Idle())
	}
	go func() {
		p := make([]byte, 0, len(want))
		for len(p) < len(want) {
			n, err := ct.Stream().Read(p[len(p):cap(p)])
			if err != nil {
				break
			}
			p = p[:len(p)+n]
		}
		got <- p
	}()
	for end := time.Now().Add(nbdtest.Patience); !st.Idle(); time.Sleep(time.Millisecond) {
		if err := st.Push(); err != nil && err != unix.EAGAIN || time.Now().After(end) {
			t.Fatal(err)
		}
	}
	if p := <-got; !bytes.Equal(p, want) {
		t.Fatalf("%d bytes, want %d, or different", len(p), len(want))
	}
}
