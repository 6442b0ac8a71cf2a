// Package builtin lists the backends that are linked into the agent's binary. The
// agent runs each as a child process of the same binary (`moraine plugin serve
// NAME`, see plugins/host), never in its own process.
package builtin

import (
	"fmt"
	"maps"
	"slices"

	"github.com/moraine-storage/moraine/backends"
	"github.com/moraine-storage/moraine/backends/local"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// registry maps a name to what makes the backend; version is the program's.
// A backend with a heavy dependency gets a file of its own with a build tag.
var registry = map[string]func(version string) backends.Backend{
	local.Name: func(version string) backends.Backend { return local.New(version) },
}

// Names lists the built-in backends in alphabetical order.
func Names() []string { return slices.Sorted(maps.Keys(registry)) }

// Has says whether name is built in.
func Has(name string) bool { return registry[name] != nil }

// New makes the backend of that name; ErrNotFound when there is none.
func New(name, version string) (backends.Backend, error) {
	if f := registry[name]; f != nil {
		return f(version), nil
	}
	return nil, fmt.Errorf("built-in backend %.64q: %w", name, errdefs.ErrNotFound)
}
