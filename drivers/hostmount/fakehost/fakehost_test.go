package fakehost_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/moraine-storage/moraine/drivers/hostmount"
	"github.com/moraine-storage/moraine/drivers/hostmount/fakehost"
	"github.com/moraine-storage/moraine/drivers/hostmount/hostmounttest"
)

func TestConformance(t *testing.T) {
	hostmounttest.Run(t, func(t *testing.T) hostmounttest.Env {
		h, n := fakehost.New(), 0
		return hostmounttest.Env{
			Host: h, Dir: "/fake",
			NewDevice: func(_ *testing.T, size int64) hostmounttest.Device {
				n++
				path := fmt.Sprintf("/dev/fake%d", n)
				h.AddDevice(path, size)
				return hostmounttest.Device{
					Path:     path,
					Grow:     func(size int64) { h.AddDevice(path, size) },
					Scribble: func() { h.SetSignature(path, hostmount.Signature{}) },
					Sign:     func() { h.SetSignature(path, hostmount.Signature{Type: "swap"}) },
				}
			},
			Hold: func(_ *testing.T, path string) func() { return h.Use(path, "sleep[1]") },
		}
	})
}

func TestFail(t *testing.T) {
	h, broken := fakehost.New(), errors.New("broken")
	h.AddDevice("/dev/x", 1<<30)
	h.Fail("Format", broken)
	if err := h.Format(context.Background(), "/dev/x", hostmount.FormatOptions{Type: hostmount.Ext4}); !errors.Is(err, broken) {
		t.Error(err)
	}
	h.Fail("Format", nil)
	if err := h.Format(context.Background(), "/dev/x", hostmount.FormatOptions{Type: hostmount.Ext4}); err != nil || h.Formats("/dev/x") != 1 {
		t.Errorf("%v, %d formats", err, h.Formats("/dev/x"))
	}
	h.RemoveDevice("/dev/x")
	if _, err := h.Probe(context.Background(), "/dev/x"); err == nil {
		t.Error("a device that was removed is there")
	}
}
