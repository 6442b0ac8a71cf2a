package fuse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/plugins/errdefs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// startHolder runs a holder inside the test.
func startHolder(t *testing.T) (socket string, stop func()) {
	t.Helper()
	dir, err := os.MkdirTemp("", "holder") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket = filepath.Join(dir, "s")
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- RunHolder(ctx, socket) }()
	stop = func() {
		cancel()
		if err, ok := <-ended; ok {
			close(ended)
			if err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(stop)
	for range 500 {
		if c, err := dialHolder(socket); err == nil {
			c.Close()
			return socket, stop
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("holder does not answer")
	return
}

func keeper(t *testing.T, socket string) *Keeper {
	t.Helper()
	k, err := NewKeeper(context.Background(), KeeperOptions{Socket: socket})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	return k
}

// pipeEnd is a descriptor that can be told from others by what it says.
func pipeEnd(t *testing.T, text string) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	if _, err := w.WriteString(text); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestHolderKeeps(t *testing.T) {
	ctx := context.Background()
	socket, _ := startHolder(t)
	k := keeper(t, socket)
	a, b := pipeEnd(t, "first"), pipeEnd(t, "second")
	if err := k.Put(ctx, "v-1", int(a.Fd()), nil); err != nil {
		t.Fatal(err)
	}
	if err := k.Put(ctx, "v-1", int(b.Fd()), []byte("blob")); err != nil {
		t.Fatal(err)
	}
	b.Close()
	k.Close()
	k = keeper(t, socket) // as the next process
	if keys, err := k.List(ctx); err != nil || fmt.Sprint(keys) != "[v-1]" {
		t.Errorf("list %v, %v", keys, err)
	}
	fd, blob, err := k.Get(ctx, "v-1")
	if err != nil || string(blob) != "blob" {
		t.Fatalf("get %q, %v", blob, err)
	}
	buf := make([]byte, 16)
	n, _ := unix.Read(fd, buf)
	unix.Close(fd)
	if string(buf[:n]) != "second" {
		t.Errorf("the descriptor says %q", buf[:n])
	}
	if err := k.Quit(ctx); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("quit while holding: %v", err)
	}
	k = keeper(t, socket)
	for range 2 {
		if err := k.Drop(ctx, "v-1"); err != nil {
			t.Error(err)
		}
	}
	if _, _, err := k.Get(ctx, "v-1"); !errdefs.IsNotFound(err) {
		t.Errorf("get of what was dropped: %v", err)
	}
	if err := k.Put(ctx, "", int(a.Fd()), nil); !errdefs.IsInvalidArgument(err) {
		t.Errorf("empty key: %v", err)
	}
	if err := k.Put(ctx, "x", int(a.Fd()), make([]byte, maxBlob+1)); !errdefs.IsInvalidArgument(err) {
		t.Errorf("large blob: %v", err)
	}
	for i := range 300 { // a list longer than a socket's buffer
		if err := k.Put(ctx, fmt.Sprintf("%s-%03d", strings.Repeat("k", 100), i), int(a.Fd()), nil); err != nil {
			t.Fatal(err)
		}
	}
	keys, err := k.List(ctx)
	if err != nil || len(keys) != 300 {
		t.Errorf("list of %d, %v", len(keys), err)
	}
	for _, key := range keys {
		if err := k.Drop(ctx, key); err != nil {
			t.Fatal(err)
		}
	}
	if err := k.Quit(ctx); err != nil {
		t.Errorf("quit: %v", err)
	}
}

func TestSecondHolderGoes(t *testing.T) {
	socket, _ := startHolder(t)
	if err := RunHolder(context.Background(), socket); err != nil {
		t.Errorf("second holder: %v", err)
	}
	keeper(t, socket)
}

// Goal: garbage ends its connection and nothing else.
func TestHolderGarbage(t *testing.T) {
	socket, _ := startHolder(t)
	k := keeper(t, socket)
	p := pipeEnd(t, "x")
	if err := k.Put(context.Background(), "v", int(p.Fd()), nil); err != nil {
		t.Fatal(err)
	}
	good, _ := (&message{op: holdPut, key: "w"}).encode()
	for _, b := range [][]byte{{0}, bytes.Repeat([]byte{1}, maxMessage+1), good[:10], append(bytes.Clone(good), 0)} {
		c, err := dialHolder(socket)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := c.WriteMsgUnix(b, unix.UnixRights(int(p.Fd())), nil); err != nil {
			t.Error(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if n, err := c.Read(make([]byte, 10)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("after %x: %d bytes, %v", b[:1], n, err)
		}
		c.Close()
	}
	// A put without a descriptor and an unknown operation are answered.
	for _, m := range []message{{op: holdPut, key: "w"}, {op: 99}} {
		c, err := dialHolder(socket)
		if err != nil {
			t.Fatal(err)
		}
		if err := send(c, &m, -1); err != nil {
			t.Fatal(err)
		}
		a, _, err := receive(c)
		if err != nil || !errdefs.IsInvalidArgument(a.err()) {
			t.Errorf("operation %d: %v, %v", m.op, err, a.err())
		}
		c.Close()
	}
	if keys, err := k.List(context.Background()); err != nil || fmt.Sprint(keys) != "[v]" {
		t.Errorf("holder has %v, %v", keys, err)
	}
}

func TestHolderBoundsClients(t *testing.T) {
	socket, _ := startHolder(t)
	var conns []*net.UnixConn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	refused := 0
	for range maxHolderClients + 3 {
		c, err := dialHolder(socket)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
		if err := send(c, &message{op: holdList}, -1); err != nil {
			refused++
			continue
		}
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, _, err := receive(c); err != nil {
			refused++
		}
	}
	if refused < 3 || refused > 4 { // the dial that looked whether it answers may linger
		t.Errorf("%d clients refused", refused)
	}
}

func TestKeeperWithoutHolder(t *testing.T) {
	if _, err := NewKeeper(context.Background(), KeeperOptions{Socket: filepath.Join(t.TempDir(), "none")}); !errdefs.IsUnavailable(err) {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := NewKeeper(ctx, KeeperOptions{Socket: filepath.Join(t.TempDir(), "none"), Command: []string{"/bin/true"}}); !errdefs.IsUnavailable(err) {
		t.Errorf("a holder that does not start: %v", err)
	}
}

func FuzzHolderMessage(f *testing.F) {
	b, _ := (&message{op: holdPut, key: "k", blob: []byte("b")}).encode()
	f.Add(b)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decodeMessage(b)
		if err != nil {
			return
		}
		again, err := m.encode()
		if err != nil || !bytes.Equal(again, b) {
			t.Errorf("%x became %x, %v", b, again, err)
		}
	})
}
