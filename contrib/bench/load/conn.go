// Package load is a minimal NBD client that makes load: one thread, many
// requests per system call, replies parsed as they come. It costs well below
// a microsecond per request, so that what is measured is the server.
//
// It speaks just enough of the protocol (fixed newstyle, OPT_EXPORT_NAME,
// simple replies) to drive any server, and trusts the server it measures.
package load

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

const (
	nbdMagic     = 0x4e42444d41474943
	optMagic     = 0x49484156454f5054
	requestMagic = 0x25609513
	replyMagic   = 0x67446698
	requestSize  = 28
	replySize    = 16

	cmdRead, cmdWrite, cmdDisc, cmdFlush = 0, 1, 2, 3

	handshakeTime = 10 * time.Second
)

// Conn is one connection in the transmission phase. One goroutine.
type Conn struct {
	fd   int
	Size int64
}

// Dial connects to an export on a unix socket.
func Dial(socket, export string) (*Conn, error) {
	nc, err := net.DialTimeout("unix", socket, handshakeTime)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", socket, err)
	}
	defer nc.Close()
	if err := nc.SetDeadline(time.Now().Add(handshakeTime)); err != nil {
		return nil, err
	}
	size, err := handshake(nc, export)
	if err != nil {
		return nil, fmt.Errorf("negotiate export %q: %w", export, err)
	}
	f, err := nc.(*net.UnixConn).File() // a blocking duplicate
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate socket: %w", err)
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return &Conn{fd: fd, Size: size}, nil
}

func handshake(rw io.ReadWriter, export string) (int64, error) {
	var hello [18]byte
	if _, err := io.ReadFull(rw, hello[:]); err != nil {
		return 0, err
	}
	if binary.BigEndian.Uint64(hello[:]) != nbdMagic || binary.BigEndian.Uint64(hello[8:]) != optMagic {
		return 0, errors.New("not a newstyle NBD server")
	}
	noZeroes := binary.BigEndian.Uint16(hello[16:]) & 2
	out := binary.BigEndian.AppendUint32(nil, uint32(1|noZeroes))
	out = binary.BigEndian.AppendUint64(out, optMagic)
	out = binary.BigEndian.AppendUint32(out, 1) // OPT_EXPORT_NAME
	out = binary.BigEndian.AppendUint32(out, uint32(len(export)))
	if _, err := rw.Write(append(out, export...)); err != nil {
		return 0, err
	}
	reply := make([]byte, 10)
	if noZeroes == 0 {
		reply = make([]byte, 134)
	}
	if _, err := io.ReadFull(rw, reply); err != nil {
		return 0, err
	}
	return int64(binary.BigEndian.Uint64(reply)), nil
}

// Close tells the server and closes.
func (c *Conn) Close() error {
	if c.fd < 0 {
		return nil
	}
	var b [requestSize]byte
	binary.BigEndian.PutUint32(b[:], requestMagic)
	b[7] = cmdDisc
	_ = c.send(b[:]) // the server may be gone
	err := unix.Close(c.fd)
	c.fd = -1
	return err
}

func (c *Conn) send(b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(c.fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("send: %w", err)
		}
		b = b[n:]
	}
	return nil
}

// locked runs f on a thread of its own.
func locked(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		done <- f()
	}()
	return <-done
}
