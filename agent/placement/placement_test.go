package placement

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

const gib = 1 << 30

func TestPlace(t *testing.T) {
	d := func(id, node, pool string, free int64) Drive {
		return Drive{ID: id, Node: node, Pool: pool, State: "ready", Capacity: 100 * gib, Free: free}
	}
	failed := d("f", "n1", "fast", 90*gib)
	failed.State = "failed"
	full := d("full", "n2", "fast", 1<<20)
	over := d("over", "n3", "fast", 50*gib)
	over.Provisioned = 100 * gib * provisionRatioMax
	tests := []struct {
		name   string
		drives []Drive
		req    Request
		want   []string
		class  error
	}{
		{"most room", []Drive{d("a", "n1", "p", 10*gib), d("b", "n2", "p", 20*gib)}, Request{Replicas: 1, Size: gib}, []string{"b"}, nil},
		{"local first", []Drive{d("a", "n1", "p", 10*gib), d("b", "n2", "p", 20*gib)}, Request{Replicas: 1, Size: gib, Local: "n1"}, []string{"a"}, nil},
		{"ties by id", []Drive{d("b", "n1", "p", gib), d("a", "n2", "p", gib)}, Request{Replicas: 1, Size: 1}, []string{"a"}, nil},
		{"one per node", []Drive{d("a", "n1", "p", 9*gib), d("b", "n1", "p", 8*gib), d("c", "n2", "p", gib)}, Request{Replicas: 2, Size: 1}, []string{"a", "c"}, nil},
		{"bad drives are passed over", []Drive{failed, full, over, d("ok", "n4", "fast", gib)}, Request{Replicas: 1, Size: gib, Pool: "fast"}, []string{"ok"}, nil},
		{"only bad drives", []Drive{failed, full, over}, Request{Replicas: 1, Size: gib}, nil, errdefs.ErrResourceExhausted},
		{"unknown pool", []Drive{d("a", "n1", "p", gib)}, Request{Replicas: 1, Pool: "q"}, nil, errdefs.ErrNotFound},
		{"too few nodes", []Drive{d("a", "n1", "p", gib)}, Request{Replicas: 2, Size: 1}, nil, errdefs.ErrResourceExhausted},
		{"none", nil, Request{Replicas: 1}, nil, errdefs.ErrResourceExhausted},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Place(tt.drives, tt.req)
			if !errors.Is(err, tt.class) || (err == nil) != (tt.class == nil) {
				t.Fatalf("error %v, want %v", err, tt.class)
			}
			if err == nil {
				if diff := cmp.Diff(tt.want, got.Drives); diff != "" {
					t.Error(diff)
				}
				if len(got.Rejected)+len(got.Drives) != len(tt.drives) {
					t.Errorf("no reason for some: %v", got.Rejected)
				}
			}
		})
	}
}
