package stream

import (
	"errors"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestPrepare(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	if err := Prepare(pair[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Read(pair[0], make([]byte, 1)); err != unix.EAGAIN {
		t.Fatalf("read of an empty socket: %v", err)
	}
	dgram, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(dgram)
	if err := Prepare(dgram); !errors.Is(err, unix.EPROTOTYPE) {
		t.Fatalf("datagram socket: %v", err)
	}
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := Prepare(int(f.Fd())); !errors.Is(err, unix.ENOTSOCK) {
		t.Fatalf("no socket: %v", err)
	}
}

func TestDup(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	nc, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	fd, err := Dup(nc)
	if err != nil {
		t.Fatal(err)
	}
	_ = nc.Close()
	if err := Prepare(fd); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Write(fd, []byte("x")); err != nil {
		t.Fatalf("the duplicate went with the original: %v", err)
	}
	_ = unix.Close(fd)
	if _, err := Dup(nc); err == nil {
		t.Fatal("duplicate of a closed connection")
	}
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if _, err := Dup(a); !errors.Is(err, unix.EOPNOTSUPP) {
		t.Fatalf("pipe in memory: %v", err)
	}
}
