package lint

import (
	"slices"
	"strings"
	"testing"
)

// layer says what the packages of a folder may import of this module. The most
// specific row holds. Tests of a package may import more: what its suite and
// its fakes need, listed in testsToo.
type layer struct {
	folder   string
	may      []string // folders of this module, beside the layer's own
	testsToo []string
	why      string
}

var layers = []layer{
	{"drivers", []string{"plugins/errdefs"}, nil,
		"the data path decides nothing: the agent hands it paths and policies, and it must be testable and fast without a control plane"},
	{"backends", []string{"plugins/errdefs", "plugins/schema"}, []string{"plugins/plugintest", "plugins/sdk", "plugins/host"},
		"a backend provides raw drives in a process of its own; it never sees volume data and must not link the agent"},
	{"backends/builtin", []string{"backends", "plugins/errdefs", "plugins/schema", "plugins/sdk"}, []string{"plugins"},
		"the list of the backends that are linked in"},
	{"plugins", []string{"backends"}, nil,
		"what crosses a process boundary is imported by outsiders: values and contracts only"},
	{"plugins/errdefs", []string{"plugins/proto"}, nil, "everything imports the error classes: they import nothing"},
	{"plugins/schema", []string{"plugins/proto", "plugins/errdefs"}, nil, "values only"},
	{"runtime", []string{"agent/api", "agent/client", "drivers/hostmount", "plugins/errdefs"}, nil,
		"a front end sees the product through its public API, so that it can run in a process of its own"},
	{"agent/api", []string{"plugins/errdefs", "plugins/proto"}, nil, "the public contract: imported by outsiders"},
	{"agent/client", []string{"agent/api", "plugins/errdefs"}, []string{"agent"}, "imported by outsiders"},
	{"agent/config", []string{"plugins/errdefs", "plugins/schema", "agent/api"}, nil, "a file is understood without an agent"},
	{"agent/cluster", []string{"plugins/errdefs"}, nil, "the cluster store knows records, not those who use them"},
	{"agent", []string{"drivers", "backends", "runtime", "plugins"}, nil, "the agent is the composition of the rest"},
	{"contrib", []string{"agent", "drivers", "backends", "runtime", "plugins"}, nil, "not linked into the binary, may use everything"},
}

func layerOf(folder string) *layer {
	var best *layer
	for i := range layers {
		l := &layers[i]
		if below(folder, l.folder) && (best == nil || len(l.folder) > len(best.folder)) {
			best = l
		}
	}
	return best
}

func (l *layer) allows(imported string, test bool) bool {
	ok := func(f string) bool { return below(imported, f) }
	return ok(l.folder) || slices.ContainsFunc(l.may, ok) || test && slices.ContainsFunc(l.testsToo, ok)
}

func TestLayers(t *testing.T) {
	for _, p := range listPackages(t) {
		l := layerOf(p.folder())
		if l == nil {
			t.Errorf("%s belongs to no layer", p.ImportPath)
			continue
		}
		check := func(imports []string, test bool) {
			for _, imp := range imports {
				folder, ours := strings.CutPrefix(imp, module+"/")
				if ours && !l.allows(folder, test) {
					t.Errorf("%s imports %s: %s may not: %s", p.folder(), folder, l.folder, l.why)
				}
			}
		}
		check(p.Imports, false)
		check(p.TestImports, true)
		check(p.XTestImports, true)
	}
}

// heavy dependencies live in few folders: one can be replaced or left out
// without touching the rest, and the data path stays small.
var heavy = []struct {
	prefix  string
	folders []string
	why     string
}{
	{"go.etcd.io/etcd", []string{"agent/cluster/etcdkv"}, "everyone else uses the KV interface"},
	{"github.com/hanwen/go-fuse", []string{"drivers/fuse"}, "one place answers FUSE"},
	{"github.com/hashicorp/go-plugin", []string{"plugins/host", "plugins/sdk", "plugins/plugintest"}, "the contract is ours, the transport is a detail"},
	{"github.com/docker/", []string{"runtime/docker"}, "only this front end knows Docker"},
	{"github.com/spf13/cobra", []string{"agent/cli"}, "the command line is one way in among several"},
	{"github.com/jedib0t/go-pretty", []string{"agent/cli"}, "tables are for people"},
	{"github.com/schollz/progressbar", []string{"agent/cli"}, "progress bars are for people"},
	{"github.com/hashicorp/hcl", []string{"agent/config"}, "configuration is plain Go values outside"},
	{"github.com/zclconf/go-cty", []string{"agent/config"}, "configuration is plain Go values outside"},
	{"connectrpc.com/", []string{"agent/api", "agent/apiserver", "agent/client", "agent/membership"}, "the API is an interface; its transport is a detail. Membership is a service of its own"},
	{"github.com/mdlayher/", []string{"drivers/nbd/nbdkernel"}, "one place speaks netlink"},
	{"github.com/pojntfx/go-nbd", []string{"drivers/nbd"}, "constants of the wire"},
	{"github.com/containerd/errdefs", []string{"plugins/errdefs"}, "everyone else uses our names of the classes"},
}

func TestHeavyDependencies(t *testing.T) {
	for _, p := range listPackages(t) {
		if below(p.folder(), "contrib") {
			continue
		}
		for _, imp := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			for _, h := range heavy {
				in := func(f string) bool { return below(p.folder(), f) }
				if strings.HasPrefix(imp, h.prefix) && !slices.ContainsFunc(h.folders, in) {
					t.Errorf("%s imports %s, which belongs to %v: %s", p.folder(), imp, h.folders, h.why)
				}
			}
		}
	}
}

// pure packages compute and do nothing else.
var pure = []struct {
	folder string
	forbid []string
	why    string
}{
	{"drivers/replication", []string{"os", "net", "sync", "syscall", "context", "golang.org/x/sys/unix", "math/rand", "crypto/rand"},
		"the core is a state machine: no I/O, no goroutine, no clock and no randomness of its own, so that a simulator can run it"},
	{"agent/placement", []string{"os", "net", "sync", "syscall", "math/rand", "crypto/rand"},
		"placement is a function of its input: explained and repeatable"},
	{"drivers/nbd", []string{"os", "net", "sync", "golang.org/x/sys/unix"},
		"the wire protocol: encoding and decoding without sockets, so that it can be fuzzed and used anywhere"},
}

func TestPurePackages(t *testing.T) {
	for _, p := range listPackages(t) {
		for _, rule := range pure {
			if p.folder() != rule.folder {
				continue
			}
			for _, imp := range p.Imports {
				if slices.Contains(rule.forbid, imp) {
					t.Errorf("%s imports %s: %s", p.folder(), imp, rule.why)
				}
			}
		}
	}
}

// The table itself: a row that allows nothing sensible would hide mistakes.
func TestLayersTable(t *testing.T) {
	for _, tc := range []struct {
		from, to string
		test, ok bool
	}{
		{"drivers/store", "agent/volume", false, false},
		{"drivers/store", "backends", false, false},
		{"drivers/store", "drivers/block", false, true},
		{"backends/local", "drivers/block", false, false},
		{"backends/local", "plugins/plugintest", false, false},
		{"backends/local", "plugins/plugintest", true, true},
		{"runtime/docker", "agent/api/v1", false, true},
		{"runtime/docker", "agent/volume", false, false},
		{"runtime/docker", "agent/apiserver", true, false},
		{"agent/api", "agent/cluster", false, false},
		{"agent/volume", "drivers/store", false, true},
		{"plugins/errdefs", "agent/api", false, false},
	} {
		if got := layerOf(tc.from).allows(tc.to, tc.test); got != tc.ok {
			t.Errorf("%s -> %s (test %v): %v, want %v", tc.from, tc.to, tc.test, got, tc.ok)
		}
	}
}
