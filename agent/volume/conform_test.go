package volume

import (
	"context"
	"testing"

	"github.com/moraine-storage/moraine/agent/api"
	"github.com/moraine-storage/moraine/agent/api/apitest"
	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	"github.com/moraine-storage/moraine/drivers/block"
)

// Goal: the real implementation passes the suite of api.Service, over real stores.
func TestConformance(t *testing.T) {
	var n *node
	apitest.Run(t, apitest.Harness{
		New: func(t *testing.T) api.Service { n = newNode(t); return n.manager() },
		Write: func(t *testing.T, svc api.Service, volume string, off, length int64) {
			ctx := context.Background()
			a, err := svc.AttachVolume(ctx, &apiv1.AttachVolumeRequest{Name: volume, Consumer: "writer"})
			if err != nil {
				t.Fatal(err)
			}
			dev, err := n.kernel.device(a.Device)
			if err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, length)
			for i := range buf {
				buf[i] = byte(off>>16) | 1
			}
			if err := dev.WriteAt(ctx, buf, off, block.FUA); err != nil {
				t.Fatal(err)
			}
			if _, err := svc.DetachVolume(ctx, &apiv1.DetachVolumeRequest{Name: volume, Consumer: "writer"}); err != nil {
				t.Fatal(err)
			}
		},
	})
}
