package nbdkernel

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/drivers"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// Golden bytes: what the kernel is told, by hand from linux/nbd-netlink.h
// (length u16, type u16, value padded to 4).
func TestEncodeConnect(t *testing.T) {
	r := request{index: 3, size: 1 << 20, blockSize: 4096, setTimeout: true, timeout: 90 * time.Second, deadConn: 10 * time.Minute, serverFlags: 0x15, identifier: "moraine/a", sockets: []int{7, 8}}
	got, err := r.encode()
	if err != nil {
		t.Fatal(err)
	}
	want := []byte{
		8, 0, 1, 0, 3, 0, 0, 0,
		12, 0, 2, 0, 0, 0, 0x10, 0, 0, 0, 0, 0,
		12, 0, 3, 0, 0, 0x10, 0, 0, 0, 0, 0, 0,
		12, 0, 4, 0, 90, 0, 0, 0, 0, 0, 0, 0,
		12, 0, 8, 0, 0x58, 2, 0, 0, 0, 0, 0, 0,
		12, 0, 5, 0, 0x15, 0, 0, 0, 0, 0, 0, 0,
		14, 0, 10, 0, 'm', 'o', 'r', 'a', 'i', 'n', 'e', '/', 'a', 0, 0, 0,
		28, 0, 7, 0x80,
		12, 0, 1, 0x80, 8, 0, 1, 0, 7, 0, 0, 0,
		12, 0, 1, 0x80, 8, 0, 1, 0, 8, 0, 0, 0,
	}
	if !bytes.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	got, _ = (&request{index: 3}).encode()
	if !bytes.Equal(got, want[:8]) {
		t.Errorf("index alone: %v", got)
	}
	got, _ = (&request{index: 3, setTimeout: true}).encode()
	if !bytes.Equal(got, append(bytes.Clone(want[:8]), 12, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0)) {
		t.Errorf("no time-out is not said: %v", got)
	}
}

func statusMessage(devices ...Status) []byte {
	e := netlink.NewAttributeEncoder()
	e.Nested(attrDeviceList, func(e *netlink.AttributeEncoder) error {
		for _, s := range devices {
			e.Nested(deviceItem, func(e *netlink.AttributeEncoder) error {
				e.Uint32(deviceIndex, uint32(s.Index))
				c := uint8(0)
				if s.Connected {
					c = 1
				}
				e.Uint8(deviceConnected, c)
				return nil
			})
		}
		return nil
	})
	b, err := e.Encode()
	if err != nil {
		panic(err)
	}
	return b
}

func TestDecodeStatus(t *testing.T) {
	want := []Status{{0, true}, {1, false}, {17, true}}
	got, err := decodeStatus(statusMessage(want...))
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := decodeStatus([]byte{1, 2, 3}); err == nil {
		t.Error("garbage accepted")
	}
	b, _ := (&request{index: 12}).encode()
	if n := decodeIndex(b); n != 12 {
		t.Errorf("index %d", n)
	}
	if n := decodeIndex(nil); n != -1 {
		t.Errorf("index of nothing is %d", n)
	}
}

func TestExplain(t *testing.T) {
	for err, class := range map[error]error{
		unix.EBUSY: errdefs.ErrAlreadyExists, unix.EPERM: errdefs.ErrPermissionDenied, unix.ENODEV: errdefs.ErrNotFound, unix.EINVAL: unix.EINVAL,
	} {
		if got := explain(fmt.Errorf("netlink receive: %w", err)); !errors.Is(got, class) || !errors.Is(got, err) {
			t.Errorf("%v became %v", err, got)
		}
	}
}

func TestServerFlags(t *testing.T) {
	if f := serverFlags(&drivers.State{}, true); f != 0x16d {
		t.Errorf("writable: %#x", f)
	}
	if f := serverFlags(&drivers.State{}, false); f != 0x14d {
		t.Errorf("without trim: %#x", f)
	}
	if f := serverFlags(&drivers.State{ReadOnly: true}, true); f != 0x10f {
		t.Errorf("read-only: %#x", f)
	}
}

func TestOwnedByNobody(t *testing.T) {
	s := drivers.State{NBD: &drivers.NBDState{Index: maxIndex, Identifier: "x"}}
	if err := owned(&s); !errdefs.IsNotFound(err) {
		t.Errorf("device %d: %v", maxIndex, err)
	}
	if ns := find("moraine/no such volume"); len(ns) != 0 {
		t.Errorf("found %v", ns)
	}
	if n := free(5000); n != 5001 {
		t.Errorf("free above 5000 is %d", n)
	}
}

func FuzzNetlink(f *testing.F) {
	f.Add(statusMessage(Status{3, true}, Status{4, false}))
	b, _ := (&request{index: 12}).encode()
	f.Add(b)
	f.Fuzz(func(_ *testing.T, b []byte) {
		_, _ = decodeStatus(b)
		decodeIndex(b)
	})
}
