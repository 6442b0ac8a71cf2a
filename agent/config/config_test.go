package config

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/moraine-storage/moraine/plugins/errdefs"
)

var update = flag.Bool("update", false, "write the golden files of testdata anew")

// load loads and must succeed.
func load(t *testing.T, paths []string, overrides ...Override) *Config {
	t.Helper()
	c, ds := Load(paths, overrides)
	if len(ds) > 0 {
		t.Fatal(ds)
	}
	return c
}

// TestErrors compares all mistakes of each file in testdata/errors with the
// golden list beside it.
func TestErrors(t *testing.T) {
	files, err := filepath.Glob("testdata/errors/*.hcl")
	if err != nil || len(files) < 6 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, f := range files {
		t.Run(filepath.Base(f), func(t *testing.T) {
			c, ds := Load([]string{f}, nil)
			if c != nil || !errors.Is(ds.Err(), errdefs.ErrInvalidArgument) || ds.Err().Error() != ds.String() {
				t.Errorf("config %v, error %v", c, ds.Err())
			}
			golden := strings.TrimSuffix(f, ".hcl") + ".txt"
			got := ds.String() + "\n"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), got); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

// TestExample: the example at the top of the tree is valid, names every key
// there is, and shows the defaults where it says so.
func TestExample(t *testing.T) {
	const file = "../../agent.hcl.example"
	c := load(t, []string{file})
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var keys func(b *block, path string)
	keys = func(b *block, path string) {
		for _, a := range b.attrs {
			if !regexp.MustCompile(`(?m)^[ #]*` + a.Name + ` += `).Match(text) {
				t.Errorf("the example has no %s%s", path, a.Name)
			}
		}
		for _, k := range b.blocks {
			if !regexp.MustCompile(`(?m)^[ #]*` + k.name + `( "\w+")? \{`).Match(text) {
				t.Errorf("the example has no block %s%s", path, k.name)
			}
			keys(k, path+k.name+".")
		}
	}
	keys(root, "")
	want := Default()
	want.Name, want.Labels = c.Name, c.Labels
	want.Backends, want.Plugins = c.Backends, c.Plugins
	want.Docker = &Docker{}
	want.complete(&report{})
	if d := cmp.Diff(want, c, cmp.FilterPath(func(p cmp.Path) bool {
		last := p.Last().String()
		return last == ".where" || last == ".Backends"
	}, cmp.Ignore()), cmp.AllowUnexported(Config{})); d != "" {
		t.Errorf("the example differs from the defaults: -default +example:\n%s", d)
	}
	if len(c.Backends) != 1 || c.Backends[0].Kind != "local" || c.Backends[0].Pool != "fast" {
		t.Errorf("backends: %+v", c.Backends)
	}
}

// TestDesign: the configuration in the design, but for what is of a later
// release.
func TestDesign(t *testing.T) {
	c, ds := Parse("agent.hcl", []byte(`
name     = "node-a"
data_dir = "/var/lib/moraine"
bind     = "10.0.0.1"
labels   = { zone = "eu-1a", rack = "r7" }
cluster {
  server = true
}
backend "local" {
  pool = "fast"
  config {
    paths = ["/dev/disk/by-id/nvme-*"]
  }
}
backend "ebs" {
  pool = "cloud"
  config {
    type  = "gp3"
    size  = "500GiB"
    count = 2
  }
}
runtime "docker" {}
`), nil)
	if len(ds) > 0 {
		t.Fatal(ds)
	}
	if len(c.Backends) != 2 || c.Backends[1].Kind != "ebs" || c.Backends[1].At() != "agent.hcl:15:1" {
		t.Errorf("backends: %+v", c.Backends)
	}
	if c.Labels["rack"] != "r7" || c.Docker.Socket != defaultDockerSocket || c.HostPort(c.Ports.NBD) != "10.0.0.1:7421" {
		t.Errorf("%+v", c)
	}
}

// TestEmpty: no configuration at all is a valid one.
func TestEmpty(t *testing.T) {
	for _, c := range []*Config{load(t, nil), func() *Config { c, _ := Parse("x", nil, nil); return c }()} {
		if c == nil || c.Docker != nil || c.Address != "/run/moraine/agent.sock" || c.PluginDir != "/var/lib/moraine/plugins" || c.Name == "" {
			t.Errorf("%+v", c)
		}
		if c.Defaults.Size != 10<<30 || c.Timeouts.Hold != time.Minute || c.Timeouts.NBD != 90*time.Second {
			t.Errorf("%+v", c)
		}
	}
}

// TestMerge: files of a folder in order, later values, blocks that add up,
// flags last.
func TestMerge(t *testing.T) {
	c := load(t, []string{"testdata/merge/conf.d"},
		Override{"data_dir", "/flag", "-data-dir"}, Override{"log.level", "warn", "-log-level"}, Override{"timeouts.hold", "5s", "-hold"},
		Override{"ports.api", "1", "-port"}, Override{"cluster.server", "true", "-server"}, Override{"etcd.endpoints", "http://a:1,http://b:2", "-etcd"})
	if c.Name != "site" || c.DataDir != "/flag" || !reflect.DeepEqual(c.Labels, map[string]string{"zone": "b"}) {
		t.Errorf("%+v", c)
	}
	if c.Log.Level != "warn" || c.Timeouts.Hold != 5*time.Second || c.Ports.API != 1 || len(c.Etcd.Endpoints) != 2 {
		t.Errorf("%+v", c)
	}
	if len(c.Backends) != 2 || c.Backends[0].Pool != "default" || c.Backends[1].Pool != "fast" {
		t.Errorf("%+v", c.Backends)
	}
	_, ds := Load([]string{"testdata/merge/conf.d", "testdata/merge/again.hcl"}, nil)
	want := "testdata/merge/again.hcl:1:1: log is here a second time; the first is at testdata/merge/conf.d/20-site.hcl:11:1"
	if ds.String() != want {
		t.Errorf("got  %s\nwant %s", ds, want)
	}
}

// TestOverrideErrors: flags are checked like files, and named in messages.
func TestOverrideErrors(t *testing.T) {
	_, ds := Load(nil, []Override{
		{"run_dir", "x", "-run-dir"}, {"ports.api", "many", "-port"}, {"log.level", "wran", "-log-level"},
		{"nothing", "", "-nothing"}, {"log.nothing", "", "-log-nothing"}, {"backend.pool", "x", "-pool"}, {"labels", "zone", "-labels"},
		{"cluster.server", "perhaps", "-server"},
	})
	want := `-run-dir: "run_dir": must be an absolute path without "..", "." or a slash at the end, such as "/var/lib/moraine"
-port: "api": must be a number
-log-level: "level": must be one of trace, debug, info, warn, error (did you mean "warn"?)
-nothing: unknown key "nothing" (known: name, data_dir, run_dir, bind, address, labels, plugin_dir, log, ports, cluster, etcd, backend, plugin, runtime, defaults, timeouts)
-log-nothing: unknown key "log.nothing" (known: level, format)
-pool: unknown key "backend.pool"
-labels: "labels": must be a map of strings
-server: "server": must be true or false`
	if d := cmp.Diff(want, ds.String()); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

// TestFiles: what cannot be read as a file is said so.
func TestFiles(t *testing.T) {
	dir := t.TempDir()
	large := filepath.Join(dir, "large.hcl")
	if err := os.WriteFile(large, make([]byte, fileBytesMax+1), 0o600); err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(dir, "empty")
	if err := os.Mkdir(empty, 0o700); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(dir, "missing.hcl")
	_, ds := Load([]string{missing, large, empty, "/dev/null"}, nil)
	for _, want := range []string{
		missing + ": stat: no such file or directory", large + ": file of 262145 bytes: at most 262144",
		empty + ": no *.hcl file in this folder", "/dev/null: not a regular file",
	} {
		if !strings.Contains(ds.String(), want) {
			t.Errorf("no %q in\n%s", want, ds)
		}
	}
}

// TestManyMistakes: the list of mistakes has an end.
func TestManyMistakes(t *testing.T) {
	var b strings.Builder
	for range diagnosticsMax + 20 {
		b.WriteString("unknown {}\n")
	}
	_, ds := Parse("f", []byte(b.String()), nil)
	if len(ds) != diagnosticsMax+1 || ds[diagnosticsMax].Problem != "and 20 more mistakes" {
		t.Errorf("%d: %v", len(ds), ds[len(ds)-1])
	}
}

// TestDeep: nesting that would exhaust the parser's stack is refused first.
func TestDeep(t *testing.T) {
	for name, unit := range map[string]string{
		"brackets": "[", "braces": "{", "parentheses": "(", "templates": `"${`, "not": "!", "minus": "- ", "blocks": "a {\n",
		"conditions": "a ? a : ", "operators": "1 + ", "indexes": "a[", "heredocs": "<<A\n${",
	} {
		text := "x = " + strings.Repeat(unit, (fileBytesMax-4)/len(unit))
		if c, ds := Parse(name, []byte(text), nil); c != nil || len(ds) == 0 {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestDev(t *testing.T) {
	c, ds := Dev("/tmp/dev", []Override{{"name", "n1", "-name"}})
	if len(ds) > 0 {
		t.Fatal(ds)
	}
	if c.DataDir != "/tmp/dev" || c.RunDir != "/tmp/dev/run" || c.Address != "/tmp/dev/run/agent.sock" || c.Name != "n1" || c.Docker == nil {
		t.Errorf("%+v", c)
	}
	if len(c.Backends) != 1 || c.Backends[0].Kind != "local" {
		t.Errorf("%+v", c.Backends)
	}
	long := "/tmp/" + strings.Repeat("x", 100)
	c, ds = Dev(long, nil)
	if len(ds) > 0 || len(c.RunDir) > runDirMax {
		t.Errorf("%v, %v", c, ds)
	}
	if other, _ := Dev(long+"y", nil); other.RunDir == c.RunDir {
		t.Error("two data directories share a run directory")
	}
	defer func() { hostname = os.Hostname }()
	for host, want := range map[string]string{"(none)": DevName, "": DevName, "box-7.example": "box-7.example"} {
		hostname = func() (string, error) { return host, nil }
		if c, ds := Dev("/tmp/dev", nil); len(ds) > 0 || c.Name != want {
			t.Errorf("host %q: %v, %v", host, c, ds)
		}
		if c, ds := Dev("/tmp/dev", []Override{{"name", "n1", "-name"}}); len(ds) > 0 || c.Name != "n1" {
			t.Errorf("host %q, with a name given: %v, %v", host, c, ds)
		}
	}
	for _, bad := range []string{"", "relative", "/"} {
		if c, ds := Dev(bad, nil); c != nil || len(ds) == 0 {
			t.Errorf("%q accepted", bad)
		}
	}
}

// FuzzParse: no text makes Parse panic or hang, and a configuration without
// diagnostics holds what validate promises.
func FuzzParse(f *testing.F) {
	seeds, err := filepath.Glob("testdata/*/*.hcl")
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range append(seeds, "../../agent.hcl.example") {
		text, err := os.ReadFile(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		c, ds := Parse("f", text, nil)
		if (c == nil) == (len(ds) == 0) {
			t.Fatalf("config %v with %d diagnostics", c, len(ds))
		}
		_ = ds.String()
		if c == nil {
			return
		}
		if !nameRE.MatchString(c.Name) || !filepath.IsAbs(c.DataDir) || len(c.RunDir) > runDirMax || c.Timeouts.NBD <= c.Timeouts.Hold {
			t.Fatalf("accepted: %+v", c)
		}
		if ch := Diff(c, c); len(ch.Live)+len(ch.Restart)+len(ch.Added) > 0 {
			t.Fatalf("differs from itself: %+v", ch)
		}
	})
}
