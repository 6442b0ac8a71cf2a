package aio

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// uringRefused says whether the kernel or a container's seccomp profile
// forbids io_uring; that is where the threads engine is for.
func uringRefused(err error) bool {
	return errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM)
}

// RingSets runs f once for each set of ring features that this kernel has, so
// that the fallbacks for older kernels are proved too.
func RingSets(t *testing.T, f func(t *testing.T, fresh func() (Engine, error))) {
	for i, flags := range ringFlagSets {
		t.Run(fmt.Sprintf("flags%#x", flags), func(t *testing.T) {
			fresh := func() (Engine, error) { return newUring(ringFlagSets[i : i+1]) }
			e, err := fresh()
			if uringRefused(err) && os.Getenv("CI") == "" {
				t.Skipf("SKIPPED: io_uring is not available here: %v", err)
			}
			if errors.Is(err, syscall.EINVAL) && i+1 < len(ringFlagSets) {
				t.Skipf("SKIPPED: this kernel does not know the flags: %v", err)
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := e.Close(); err != nil {
				t.Fatal(err)
			}
			f(t, fresh)
		})
	}
}

// A chain of short transfers: a pipe-like file would end early, so the results
// are fed in by hand.
func TestShortTransfers(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(name, []byte("0123456789"), 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	type step struct {
		n     int
		errno unix.Errno
		end   bool
		want  unix.Errno
	}
	for _, c := range []struct {
		name  string
		kind  Kind
		off   int64
		steps []step
		buf   string
	}{
		{"read in parts", Read, 0, []step{{4, 0, false, 0}, {6, 0, true, 0}}, "xxxxxxxxxx"},
		{"read to the end", Read, 6, []step{{4, 0, false, 0}, {0, 0, true, 0}}, "xxxx\x00\x00\x00\x00\x00\x00"},
		{"direct read to the end", Read, 6, []step{{4, 0, false, 0}, {0, unix.EINVAL, true, 0}}, "xxxx\x00\x00\x00\x00\x00\x00"},
		{"direct read, not at the end", Read, 0, []step{{4, 0, false, 0}, {0, unix.EINVAL, true, unix.EINVAL}}, "xxxxxxxxxx"},
		{"read fails midway", Read, 0, []step{{4, 0, false, 0}, {0, unix.EIO, true, unix.EIO}}, "xxxxxxxxxx"},
		{"write in parts", Write, 0, []step{{1, 0, false, 0}, {8, 0, false, 0}, {1, 0, true, 0}}, "xxxxxxxxxx"},
		{"write fills the disk", Write, 0, []step{{1, 0, false, 0}, {0, unix.ENOSPC, true, unix.ENOSPC}}, "xxxxxxxxxx"},
		{"write stops without a reason", Write, 0, []step{{5, 0, false, 0}, {0, 0, true, unix.EIO}}, "xxxxxxxxxx"},
	} {
		op := &Op{Kind: c.kind, FD: fd, Off: c.off, Buf: []byte("xxxxxxxxxx")}
		for i, s := range c.steps {
			if end, errno := op.advance(s.n, s.errno); end != s.end || errno != s.want {
				t.Errorf("%s: step %d: %v, %v; want %v, %v", c.name, i, end, errno, s.end, s.want)
			}
		}
		if string(op.Buf) != c.buf {
			t.Errorf("%s: buffer %q, want %q", c.name, op.Buf, c.buf)
		}
	}
}

// TestDatasyncOnce: an interrupted fdatasync has failed. Repeating it could
// report as written what the first call found lost.
func TestDatasyncOnce(t *testing.T) {
	RingSets(t, func(t *testing.T, fresh func() (Engine, error)) {
		e, err := fresh()
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		u := e.(*uring)
		for _, errno := range []unix.Errno{unix.EINTR, unix.EAGAIN, unix.EIO} {
			last := len(u.free) - 1
			op := &Op{Kind: Datasync, index: u.free[last]}
			u.free = u.free[:last]
			u.slots[op.index] = op
			u.opDone(op, -int32(errno))
			if u.ended.pop() != op || op.Err != errno || u.r.pending() != 0 {
				t.Errorf("result %v: error %v, %d entries submitted again", errno, op.Err, u.r.pending())
			}
		}
	})
}
