package config

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/moraine-storage/moraine/agent/api/size"
	"github.com/moraine-storage/moraine/plugins/schema"
)

var testSchema = schema.Schema{Attributes: []schema.Attribute{
	{Name: "paths", Type: schema.List, Required: true, Doc: "where the drives are", Min: schema.Bound(1)},
	{Name: "size", Type: schema.Size, Default: int64(1 << 30), Min: schema.Bound(1 << 20)},
	{Name: "class", Type: schema.String, Allowed: []string{"ssd", "disk"}},
	{Name: "count", Type: schema.Number, Min: schema.Bound(1), Max: schema.Bound(8)},
	{Name: "wait", Type: schema.Duration},
	{Name: "force", Type: schema.Bool},
	{Name: "tags", Type: schema.Map},
	{Name: "secret", Type: schema.String, Sensitive: true, Max: schema.Bound(4)},
}}

func backend(t *testing.T, text string) Backend {
	t.Helper()
	c, ds := Parse("f.hcl", []byte(text), nil)
	if len(ds) > 0 {
		t.Fatal(ds)
	}
	return c.Backends[0]
}

func TestDecode(t *testing.T) {
	b := backend(t, `backend "local" {
  config {
    paths  = ["/a", "/b"]
    class  = "ssd"
    count  = 3
    wait   = "1m30s"
    force  = true
    tags   = { a = "b", "c.d" = "e" }
    secret = null
  }
}`)
	got, ds := b.Decode(testSchema)
	if len(ds) > 0 {
		t.Fatal(ds)
	}
	want := map[string]any{
		"paths": []string{"/a", "/b"}, "class": "ssd", "count": int64(3), "wait": 90 * time.Second, "force": true,
		"tags": map[string]string{"a": "b", "c.d": "e"}, "size": int64(1 << 30),
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

func TestDecodeErrors(t *testing.T) {
	b := backend(t, `backend "local" {
  pool = "fast"
  config {
    path   = ["/a"]
    size   = "1KiB"
    class  = "sdd"
    count  = 1.5e3
    wait   = 5
    force  = "yes"
    tags   = ["a"]
    secret = "hunter2"
    paths  = var.x
    tags2 {}
    size {}
  }
}`)
	_, ds := b.Decode(testSchema)
	want := `f.hcl:4:5: backend "local": config: unknown key "path" (did you mean "paths"?)
f.hcl:5:14: backend "local": config: "size": size in bytes must be at least 1MiB
f.hcl:6:14: backend "local": config: "class": must be one of ssd, disk (did you mean "ssd"?)
f.hcl:7:14: backend "local": config: "count": value must be at most 8
f.hcl:8:14: backend "local": config: "wait": must be a duration such as "30s"
f.hcl:9:14: backend "local": config: "force": must be true or false
f.hcl:10:14: backend "local": config: "tags": must be a map of strings
f.hcl:11:14: backend "local": config: "secret": length in bytes must be at most 4
f.hcl:12:14: backend "local": config: "paths": want a plain value: text, number, true, false, a list or a map
f.hcl:13:5: backend "local": config: unknown block "tags2" (did you mean "tags"?)
f.hcl:14:5: backend "local": config: unknown block "size": write size = …`
	if d := cmp.Diff(want, ds.String()); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	if strings.Contains(ds.String(), "hunter2") {
		t.Error("a secret is shown")
	}
	for _, text := range []string{`backend "local" {}`, "backend \"local\" {\nconfig {}\n}", "backend \"local\" {\nconfig {\npaths = null\n}\n}"} {
		if _, ds := backend(t, text).Decode(testSchema); !strings.Contains(ds.String(), `missing: "paths", where the drives are`) {
			t.Errorf("%s: %v", text, ds)
		}
	}
	if _, ds := b.Decode(schema.Schema{Attributes: []schema.Attribute{{Name: "BAD"}}}); !strings.Contains(ds.String(), "makes no sense") {
		t.Errorf("bad schema: %v", ds)
	}
}

func TestDevBackendDecodes(t *testing.T) {
	c, ds := Dev("/tmp/dev", nil)
	if len(ds) > 0 {
		t.Fatal(ds)
	}
	got, ds := c.Backends[0].Decode(testSchema)
	if len(ds) > 0 || !cmp.Equal(got["paths"], []string{"/tmp/dev/drives/d1"}) {
		t.Errorf("%v, %v", got, ds)
	}
}

// TestSizesAgree: a plugin's sizes and the command line's are read alike.
func TestSizesAgree(t *testing.T) {
	for _, s := range []string{"10GiB", "10G", "10gb", "1.5Ti", "0", "512", "8EiB", "-1", "1.5", "", "x", "9223372036854775807", "7E", " 1 KiB "} {
		a, errA := size.Parse(s)
		b, errB := schema.ParseSize(s)
		if a != b || (errA == nil) != (errB == nil) {
			t.Errorf("%q: %d %v, %d %v", s, a, errA, b, errB)
		}
	}
}

func TestDiff(t *testing.T) {
	parse := func(text string) *Config {
		t.Helper()
		c, ds := Parse("f.hcl", []byte(text), nil)
		if len(ds) > 0 {
			t.Fatal(ds)
		}
		return c
	}
	old := parse(`
name = "a"
labels = { zone = "1" }
log {
  level = "info"
}
backend "local" {
  config {
    paths = ["/a"]
  }
}
backend "local" {
  config {
    paths = ["/b"]
  }
}
backend "ebs" {
  config {
    secret = "hunter2"
  }
}`)
	next := parse(`
name = "b"
labels = { zone = "2", rack = "1" }
log {
  level  = "debug"
  format = "json"
}
backend "local" {
  config {
    paths = ["/b"]
  }
}
backend "local" {
  config {
    paths = ["/a"]
  }
}
backend "local" {
  config {
    paths = ["/c"]
  }
}
backend "ebs" {
  config {
    secret = "hunter3"
  }
}
runtime "docker" {}
timeouts {
  hold = "5s"
}
plugin "x" {
  sha256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
}`)
	lines := func(cs []Change) string {
		var out []string
		for _, c := range cs {
			out = append(out, c.String())
		}
		return strings.Join(out, "\n")
	}
	ch := Diff(old, next)
	wantLive := `labels: {rack=1, zone=2}, was {zone=1}
log.level: "debug", was "info"
plugin: changed
backend "local" (pool default): added: configured at f.hcl:18:1`
	wantRestart := `name: "b", was "a"
log.format: "json", was "text"
timeouts.hold: 5s, was 1m0s
runtime "docker": added: socket "/run/docker/plugins/moraine.sock"
backend "ebs" (pool default): changed`
	if d := cmp.Diff(wantLive, lines(ch.Live)); d != "" {
		t.Errorf("live: -want +got:\n%s", d)
	}
	if d := cmp.Diff(wantRestart, lines(ch.Restart)); d != "" {
		t.Errorf("restart: -want +got:\n%s", d)
	}
	if len(ch.Added) != 1 || ch.Added[0].At() != "f.hcl:18:1" {
		t.Errorf("added: %+v", ch.Added)
	}
	if back := Diff(next, old); !strings.Contains(lines(back.Restart), `backend "local" (pool default): removed, was configured at f.hcl:18:1`) {
		t.Errorf("back: %s", lines(back.Restart))
	}
}
