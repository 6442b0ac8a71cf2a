package config

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
)

// DevName is the name of a node in -dev whose host has none that would do, such
// as "(none)".
const DevName = "dev-node"

// hostname is the host's; tests replace it.
var hostname = os.Hostname

// Dev is the configuration of `moraine agent -dev`: everything below dataDir,
// an absolute path, one pool in a folder there, and the Docker front end. The
// overrides count as in Load.
func Dev(dataDir string, overrides []Override) (*Config, Diagnostics) {
	r := &report{}
	all := &entry{spec: root, values: map[string]any{}, where: map[string]place{}}
	dir := filepath.Clean(dataDir)
	if !filepath.IsAbs(dir) || dir == "/" {
		r.add(place{file: "-data-dir"}, `must be an absolute path, such as "/var/lib/moraine-dev"`)
		return nil, r.done()
	}
	all.values["data_dir"], all.where["data_dir"] = dir, place{file: "-data-dir"}
	all.values["run_dir"] = devRunDir(dir)
	if host, err := hostname(); err != nil || !nameRE.MatchString(host) {
		all.values["name"] = DevName
	}
	drives := filepath.Join(dir, "drives")
	all.blocks = []*entry{
		{
			spec: root.child("backend"), label: "local", at: place{file: "-dev"},
			blocks: []*entry{{spec: root.child("backend").child("config"), body: listBody("paths", filepath.Join(drives, "d1"))}},
		},
		{spec: root.child("runtime"), label: "docker", at: place{file: "-dev"}},
	}
	return finish(r, all, overrides)
}

// devRunDir is below dir, or, where sockets' paths would become too long, a
// folder of that dir's own elsewhere.
func devRunDir(dir string) string {
	run := filepath.Join(dir, "run")
	if len(run) <= runDirMax {
		return run
	}
	parent := "/run"
	if os.Geteuid() != 0 {
		parent = os.TempDir()
	}
	sum := sha256.Sum256([]byte(dir))
	return filepath.Join(parent, fmt.Sprintf("moraine-%x", sum[:6]))
}

// listBody is a config block with one attribute, a list of one.
func listBody(name, value string) body {
	expr := &hclsyntax.TupleConsExpr{Exprs: []hclsyntax.Expression{&hclsyntax.LiteralValueExpr{Val: cty.StringVal(value)}}}
	return body{
		src: source{name: "-dev"},
		hcl: &hclsyntax.Body{Attributes: hclsyntax.Attributes{
			name: {Name: name, Expr: expr, NameRange: hcl.Range{Filename: "-dev"}},
		}},
	}
}
