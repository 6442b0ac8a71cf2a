package fuse

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/drivers/block"
)

// memDevice is a device in memory that can be told to hold or fail.
type memDevice struct {
	mu   sync.Mutex
	b    []byte
	err  error
	hold chan struct{} // nil, or what transfers wait for
}

func (d *memDevice) Info() block.Info { return block.Info{Size: int64(len(d.b)), BlockSize: 4096} }

func (d *memDevice) enter() (func(), error) {
	d.mu.Lock()
	hold, err := d.hold, d.err
	d.mu.Unlock()
	if hold != nil {
		<-hold
	}
	d.mu.Lock()
	return d.mu.Unlock, err
}

func (d *memDevice) ReadAt(_ context.Context, p []byte, off int64) error {
	leave, err := d.enter()
	defer leave()
	copy(p, d.b[off:])
	return err
}

func (d *memDevice) WriteAt(_ context.Context, p []byte, off int64, _ block.Flags) error {
	leave, err := d.enter()
	defer leave()
	if err == nil {
		copy(d.b[off:], p)
	}
	return err
}

func (d *memDevice) Flush(context.Context) error {
	leave, err := d.enter()
	defer leave()
	return err
}

func (d *memDevice) Zero(_ context.Context, off, n int64, _ block.Flags) error {
	leave, err := d.enter()
	defer leave()
	if err == nil {
		clear(d.b[off : off+n])
	}
	return err
}

// kernel plays the kernel's part over a socket pair: one message per packet,
// as /dev/fuse has it.
type kernel struct {
	t  *testing.T
	fd int
	m  *Image
}

func newKernel(t *testing.T, cfg Config) *kernel {
	t.Helper()
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range p {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 4<<20)
	}
	m, err := newImage(p[1], session{Version: sessionVersion, Major: 7, Minor: 45, MaxWrite: maxWrite, Flags: wanted}, cfg)
	if err != nil {
		t.Fatal(err)
	}
	m.start()
	k := &kernel{t: t, fd: p[0], m: m}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := m.Release(ctx); err != nil {
			t.Error(err)
		}
		m.Close()
		m.Close()
		unix.Close(p[0])
	})
	return k
}

func (k *kernel) send(b []byte) {
	k.t.Helper()
	if _, err := unix.Write(k.fd, b); err != nil {
		k.t.Fatal(err)
	}
}

// answer reads one answer: its request, error and body.
func (k *kernel) answer() (uint64, syscall.Errno, []byte) {
	k.t.Helper()
	fds := []unix.PollFd{{Fd: int32(k.fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 30_000)
		if n == 1 {
			break
		}
		if !errors.Is(err, unix.EINTR) {
			k.t.Fatalf("no answer: %v", err)
		}
	}
	b := make([]byte, maxWrite+4096)
	n, err := unix.Read(k.fd, b)
	if err != nil || n < outHeaderSize || int(le.Uint32(b)) != n {
		k.t.Fatalf("answer of %d bytes, %v", n, err)
	}
	return le.Uint64(b[8:]), syscall.Errno(-int32(le.Uint32(b[4:]))), b[outHeaderSize:n]
}

func (k *kernel) call(opcode uint32, node uint64, parts ...[]byte) (syscall.Errno, []byte) {
	k.t.Helper()
	k.send(msg(opcode, 1234, node, parts...))
	u, errno, b := k.answer()
	if u != 1234 {
		k.t.Fatalf("answer to request %d", u)
	}
	return errno, b
}

func readMsg(unique uint64, off, n int64) []byte {
	in := gofuse.ReadIn{Offset: uint64(off), Size: uint32(n)}
	return msg(opRead, unique, imageNode, body(&in))
}

func writeMsg(unique uint64, off int64, p []byte) []byte {
	in := gofuse.WriteIn{Offset: uint64(off), Size: uint32(len(p))}
	return msg(opWrite, unique, imageNode, body(&in), p)
}

func TestOperations(t *testing.T) {
	dev := &memDevice{b: make([]byte, 4<<20)}
	for _, c := range []struct {
		name  string
		op    uint32
		node  uint64
		body  []byte
		errno syscall.Errno
		size  int // of the answer's body
	}{
		{"lookup", opLookup, rootNode, []byte("image\x00"), 0, entryOutSize},
		{"lookup of another", opLookup, rootNode, []byte("other\x00"), syscall.ENOENT, 0},
		{"lookup in a file", opLookup, imageNode, []byte("image\x00"), syscall.ENOENT, 0},
		{"getattr", opGetattr, imageNode, make([]byte, 16), 0, attrOutSize},
		{"getattr of the root", opGetattr, rootNode, make([]byte, 16), 0, attrOutSize},
		{"getattr of nothing", opGetattr, 77, make([]byte, 16), syscall.ESTALE, 0},
		{"open", opOpen, imageNode, make([]byte, 8), 0, 16},
		{"opendir", opOpendir, rootNode, make([]byte, 8), 0, 16},
		{"release", opRelease, imageNode, make([]byte, 24), 0, 0},
		{"flush", opFlush, imageNode, make([]byte, 24), syscall.ENOSYS, 0},
		{"fsync", opFsync, imageNode, make([]byte, 16), 0, 0},
		{"statfs", opStatfs, rootNode, nil, 0, statfsOutSize},
		{"mknod", 8, rootNode, make([]byte, 32), syscall.ENOSYS, 0},
		{"unlink", 10, rootNode, []byte("image\x00"), syscall.ENOSYS, 0},
		{"getxattr", 22, imageNode, make([]byte, 16), syscall.ENOSYS, 0},
		{"short read", opRead, imageNode, make([]byte, 8), syscall.EINVAL, 0},
	} {
		k := newKernel(t, Config{Device: dev})
		if errno, b := k.call(c.op, c.node, c.body); errno != c.errno || len(b) != c.size {
			t.Errorf("%s: %v and %d bytes, want %v and %d", c.name, errno, len(b), c.errno, c.size)
		}
	}
}

func TestFallocateAndSetattr(t *testing.T) {
	dev := &memDevice{b: bytes.Repeat([]byte{7}, 1<<20)}
	k := newKernel(t, Config{Device: dev})
	alloc := func(off, n uint64, mode uint32) syscall.Errno {
		in := gofuse.FallocateIn{Offset: off, Length: n, Mode: mode}
		errno, _ := k.call(opFallocate, imageNode, body(&in))
		return errno
	}
	const punch, zero, keep = unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_ZERO_RANGE, unix.FALLOC_FL_KEEP_SIZE
	for _, c := range []struct {
		off, n uint64
		mode   uint32
		want   syscall.Errno
	}{
		{4096, 4096, punch | keep, 0}, {16384, 512, zero | keep, 0}, {1<<20 - 512, 4096, punch | keep, 0},
		{2 << 20, 4096, punch | keep, 0}, {0, 4096, 0, syscall.EOPNOTSUPP}, {0, 4096, unix.FALLOC_FL_COLLAPSE_RANGE, syscall.EOPNOTSUPP},
		{0, 100, punch | keep, syscall.EINVAL}, {1 << 63, 4096, punch | keep, syscall.EINVAL}, {0, 2 << 20, zero, syscall.EPERM},
	} {
		if got := alloc(c.off, c.n, c.mode); got != c.want {
			t.Errorf("fallocate(%d, %d, %#x) = %v, want %v", c.off, c.n, c.mode, got, c.want)
		}
	}
	want := bytes.Repeat([]byte{7}, 1<<20)
	clear(want[4096:8192])
	clear(want[16384:16896])
	clear(want[1<<20-512:])
	if !bytes.Equal(dev.b, want) {
		t.Error("other bytes than asked were zeroed")
	}
	for _, c := range []struct {
		valid uint32
		size  uint64
		want  syscall.Errno
	}{{gofuse.FATTR_SIZE, 0, syscall.EPERM}, {gofuse.FATTR_SIZE, 1 << 20, 0}, {gofuse.FATTR_MODE, 0, syscall.EPERM}, {gofuse.FATTR_MTIME, 0, 0}} {
		in := gofuse.SetAttrIn{}
		in.Valid, in.Size = c.valid, c.size
		if errno, _ := k.call(opSetattr, imageNode, body(&in)); errno != c.want {
			t.Errorf("setattr(%#x, %d) = %v, want %v", c.valid, c.size, errno, c.want)
		}
	}
}

// Goal: bytes arrive where they belong, whatever runs beside them. Method:
// random writes and reads in flight on separate ranges, against a model.
func TestRandomIO(t *testing.T) {
	for _, inline := range []bool{false, true} {
		seed := rand.Uint64()
		t.Logf("seed %d, inline %v", seed, inline)
		rng := rand.New(rand.NewPCG(seed, 0))
		const slots, slot = 16, 256 << 10
		dev := &memDevice{b: make([]byte, slots*slot)}
		model := make([]byte, slots*slot)
		k := newKernel(t, Config{Device: dev, Inline: inline})
		for range 60 {
			type want struct {
				off, n int64
				read   bool
			}
			sent := map[uint64]want{}
			for _, s := range rng.Perm(slots)[:1+rng.IntN(8)] {
				n := int64(1+rng.IntN(slot/512-1)) * 512
				off := int64(s)*slot + int64(rng.IntN(int(slot-n)/512+1))*512
				w := want{off: off, n: n, read: rng.IntN(2) == 0}
				u := rng.Uint64()>>1 | 1
				sent[u] = w
				if w.read {
					k.send(readMsg(u, off, n))
					continue
				}
				p := make([]byte, n)
				for i := range p {
					p[i] = byte(rng.Uint32())
				}
				copy(model[off:], p)
				k.send(writeMsg(u, off, p))
			}
			for len(sent) > 0 {
				u, errno, b := k.answer()
				w, ok := sent[u]
				if !ok || errno != 0 {
					t.Fatalf("answer to %d: %v (known %v)", u, errno, ok)
				}
				delete(sent, u)
				if w.read && !bytes.Equal(b, model[w.off:w.off+w.n]) {
					t.Fatalf("read of %d at %d differs from the model", w.n, w.off)
				}
				if !w.read && (len(b) != 8 || int64(le.Uint32(b)) != w.n) {
					t.Fatalf("write of %d at %d answered %x", w.n, w.off, b)
				}
			}
		}
		if !bytes.Equal(dev.b, model) {
			t.Error("device differs from the model")
		}
	}
}

// Goal: invariant 2: Release waits for what was read and answers it, and reads
// nothing more.
func TestReleaseAnswersAll(t *testing.T) {
	dev := &memDevice{b: make([]byte, 1<<20), hold: make(chan struct{})}
	k := newKernel(t, Config{Device: dev})
	for u := range uint64(10) {
		k.send(writeMsg(u+1, int64(u)*4096, make([]byte, 4096)))
	}
	for range 1000 { // until all have been read
		if k.m.stats.Writes.Load() == 10 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := k.m.Release(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("release with requests in progress: %v", err)
	}
	k.send(writeMsg(99, 0, make([]byte, 4096))) // stays unread
	close(dev.hold)
	if err := k.m.Release(context.Background()); err != nil {
		t.Fatal(err)
	}
	seen := map[uint64]bool{}
	for range 10 {
		u, errno, _ := k.answer()
		if errno != 0 || u == 99 || seen[u] {
			t.Errorf("answer to %d: %v", u, errno)
		}
		seen[u] = true
	}
	if k.m.Err() != nil {
		t.Errorf("released with %v", k.m.Err())
	}
	if n, err := unix.FcntlInt(uintptr(k.fd), unix.F_GETFD, 0); n < 0 || err != nil {
		t.Error(err)
	}
}

func TestErrorsAndReadOnly(t *testing.T) {
	dev := &memDevice{b: make([]byte, 1<<20)}
	k := newKernel(t, Config{Device: dev})
	for err, want := range map[error]syscall.Errno{block.ErrFenced: syscall.ESHUTDOWN, block.ErrNoSpace: syscall.ENOSPC, block.ErrIO: syscall.EIO, block.ErrTimeout: syscall.EIO} {
		dev.mu.Lock()
		dev.err = err
		dev.mu.Unlock()
		k.send(writeMsg(5, 0, make([]byte, 512)))
		if _, errno, b := k.answer(); errno != want || len(b) != 0 {
			t.Errorf("%v became %v with %d bytes", err, errno, len(b))
		}
		if errno, _ := k.call(opFsync, imageNode, make([]byte, 16)); errno != want {
			t.Errorf("flush: %v became %v", err, errno)
		}
	}
	dev.mu.Lock()
	dev.err = nil
	dev.mu.Unlock()
	ro := newKernel(t, Config{Device: dev, ReadOnly: true})
	ro.send(writeMsg(5, 0, make([]byte, 512)))
	if _, errno, _ := ro.answer(); errno != syscall.EPERM {
		t.Errorf("write: %v", errno)
	}
	in := gofuse.OpenIn{Flags: unix.O_RDWR}
	if errno, _ := ro.call(opOpen, imageNode, body(&in)); errno != syscall.EROFS {
		t.Errorf("open for writing: %v", errno)
	}
	ro.send(readMsg(6, 1<<20-512, 4096))
	if _, errno, b := ro.answer(); errno != 0 || len(b) != 512 {
		t.Errorf("read across the end: %v, %d bytes", errno, len(b))
	}
}

func TestReaddirPages(t *testing.T) {
	k := newKernel(t, Config{Device: &memDevice{b: make([]byte, 4096)}})
	names := ""
	for off := uint64(0); ; {
		in := gofuse.ReadIn{Offset: off, Size: 40} // one entry at a time
		errno, b := k.call(opReaddir, rootNode, body(&in))
		if errno != 0 {
			t.Fatal(errno)
		}
		if len(b) == 0 {
			break
		}
		off = le.Uint64(b[8:])
		names += string(b[24:24+le.Uint32(b[16:])]) + " "
	}
	if names != ". .. image " {
		t.Errorf("names %q", names)
	}
}
