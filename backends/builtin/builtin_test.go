package builtin_test

import (
	"testing"

	"github.com/moraine-storage/moraine/backends"
	"github.com/moraine-storage/moraine/backends/builtin"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// TestRegistry: each name makes a backend that answers to it.
func TestRegistry(t *testing.T) {
	if len(builtin.Names()) == 0 {
		t.Fatal("nothing is built in")
	}
	for _, name := range builtin.Names() {
		b, err := builtin.New(name, "1.2.3")
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		i, err := b.Info(t.Context())
		if err != nil || i.Name != name || i.Version != "1.2.3" || i.Contract != backends.ContractVersion || !builtin.Has(name) {
			t.Errorf("%s: %+v, %v", name, i, err)
		}
	}
	if _, err := builtin.New("nope", ""); !errdefs.IsNotFound(err) || builtin.Has("nope") {
		t.Errorf("unknown backend: %v", err)
	}
}
