package hostmount

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/plugins/errdefs"
)

func TestParseOptions(t *testing.T) {
	flags, data, err := ParseOptions(Ext4, []string{"noatime,discard", "commit=5", "nosuid", "suid", "", "defaults", "errors=remount-ro"})
	if err != nil || flags != unix.MS_NOATIME || data != "discard,commit=5,errors=remount-ro" {
		t.Errorf("%#x %q %v", flags, data, err)
	}
	for _, bad := range []string{"nobarrier", "noload", "journal_async_commit", "commit", "commit=-1", "commit=x", "discard=1", "errors=", "data=none", "allocsize=1m", "bind", "remount", "\x00"} {
		if _, _, err := ParseOptions(Ext4, []string{bad}); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, data, err := ParseOptions(XFS, []string{"allocsize=64m", "nouuid"}); err != nil || data != "allocsize=64m,nouuid" {
		t.Errorf("%q %v", data, err)
	}
	if _, _, err := ParseOptions("tmpfs", nil); err == nil {
		t.Error("tmpfs is accepted")
	}
}

func TestParseMountInfo(t *testing.T) {
	ms, err := ParseMountInfo([]byte("36 35 98:0 /mnt1 /a\\040b rw,noatime master:1 shared:7 - ext3 /dev/root rw,errors=continue\n" +
		"37 35 0:5 / /proc rw - proc proc rw\n38 35 0:6 / /x rw - tmpfs  rw\n"))
	if err != nil || len(ms) != 3 {
		t.Fatalf("%+v, %v", ms, err)
	}
	m := ms[0]
	if m.ID != 36 || m.Parent != 35 || m.Major != 98 || m.Root != "/mnt1" || m.Path != "/a b" || m.Type != "ext3" || m.Source != "/dev/root" ||
		strings.Join(m.Options, " ") != "rw noatime rw errors=continue" {
		t.Errorf("%+v", m)
	}
	if ms[2].Source != "" {
		t.Errorf("empty source became %q", ms[2].Source)
	}
	for _, bad := range []string{"x", "36 35 98:0 / / rw ext3 /dev/root rw", "a 35 98:0 / / rw - ext3 s o", "36 35 98 / / rw - ext3 s o"} {
		if _, err := ParseMountInfo([]byte(bad)); err == nil {
			t.Errorf("accepted %q", bad)
		}
	}
	if own, err := New().List(context.Background()); err != nil || len(own) == 0 {
		t.Errorf("own table: %d, %v", len(own), err)
	}
}

func TestParseBlkid(t *testing.T) {
	if s := parseBlkid("DEVNAME=/dev/x\nUUID=1-2\nTYPE=ext4\nLABEL=a b\nUSAGE=filesystem"); s.Type != Ext4 || s.UUID != "1-2" || s.Label != "a b" || s.Blank {
		t.Errorf("%+v", s)
	}
	if s := parseBlkid("PTTYPE=gpt\nPTUUID=3"); s.Type != "gpt" {
		t.Errorf("%+v", s)
	}
	if s := parseBlkid("MINIMUM_IO_SIZE=512"); s.Type == "" {
		t.Error("something that blkid found counts as nothing")
	}
}

func TestRun(t *testing.T) {
	ctx := context.Background()
	if out, code, err := run(ctx, time.Minute, "sh", "-c", "echo out; echo err >&2; exit 3"); err != nil || code != 3 || !strings.Contains(out, "out") || !strings.Contains(out, "err") {
		t.Errorf("%q %d %v", out, code, err)
	}
	if _, _, err := run(ctx, time.Minute, "no-such-program"); !errors.Is(err, errdefs.ErrUnimplemented) {
		t.Error(err)
	}
	start := time.Now()
	_, _, err := run(ctx, 50*time.Millisecond, "sh", "-c", "sleep 1000 & sleep 1000")
	if !errdefs.Indeterminate(err) || !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 5*time.Minute {
		t.Error(err)
	}
	if out, _, err := run(ctx, time.Minute, "sh", "-c", "yes | head -c 1000000"); err != nil || len(out) > maxOutput {
		t.Errorf("%d bytes of output kept, %v", len(out), err)
	}
}

func TestWithin(t *testing.T) {
	hang := make(chan struct{})
	defer close(hang)
	err := within(context.Background(), 20*time.Millisecond, "hang", func() error { <-hang; return nil })
	if !errdefs.Indeterminate(err) {
		t.Error(err)
	}
	if err := within(context.Background(), time.Minute, "x", func() error { return unix.EBUSY }); !errors.Is(err, unix.EBUSY) {
		t.Error(err)
	}
}

func TestZeroEnds(t *testing.T) {
	path := t.TempDir() + "/f"
	for _, c := range []struct {
		size, at int64
		want     bool
	}{{4 << 20, -1, true}, {4 << 20, 0, false}, {4 << 20, 1<<20 - 1, false}, {4 << 20, 2 << 20, true}, {4 << 20, 4<<20 - 1, false}, {4096, 4095, false}, {512, -1, true}, {0, -1, true}} {
		b := make([]byte, c.size)
		if c.at >= 0 {
			b[c.at] = 1
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := zeroEnds(path); err != nil || got != c.want {
			t.Errorf("size %d, byte at %d: %v, %v", c.size, c.at, got, err)
		}
	}
	if err := checkDevice(path); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("a file as a device: %v", err)
	}
}

func FuzzMountInfo(f *testing.F) {
	f.Add([]byte("36 35 98:0 /mnt1 /a\\040b rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		ms, err := ParseMountInfo(b)
		if err != nil && ms != nil {
			t.Error("both a table and an error")
		}
	})
}

func FuzzMountOptions(f *testing.F) {
	f.Add("noatime,discard,commit=5")
	f.Fuzz(func(t *testing.T, s string) {
		for _, fs := range []string{Ext4, XFS} {
			_, data, err := ParseOptions(fs, []string{s})
			if err == nil && (strings.ContainsRune(data, 0) || strings.Contains(data, "barrier")) {
				t.Errorf("%q gave %q", s, data)
			}
		}
	})
}
