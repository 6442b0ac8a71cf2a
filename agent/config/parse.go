package config

import (
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"

	"github.com/moraine-storage/moraine/plugins/schema"
)

// entry is one block as written, or the top level: what was set, checked
// against the table.
type entry struct {
	spec   *block
	label  string
	at     place
	values map[string]any   // checked, by attribute
	where  map[string]place // of each value
	blocks []*entry
	body   body // of a raw block
}

// path names the block in messages: `backend "local"`, or "" at the top.
func (e *entry) path() string {
	switch {
	case e.spec.name == "":
		return ""
	case e.label != "":
		return fmt.Sprintf("%s %q: ", e.spec.name, e.label)
	}
	return e.spec.name + ": "
}

// body is a config block as written.
type body struct {
	src  source
	hcl  *hclsyntax.Body // nil: there is none
	open hcl.Range       // of the block's header
}

// parse reads one file. What cannot be understood is reported and left out.
func parse(r *report, src source, text []byte) *entry {
	if len(text) > fileBytesMax {
		r.add(place{file: src.name, order: src.order}, "file of %d bytes: at most %d", len(text), fileBytesMax)
		return nil
	}
	if line := tooDeep(text); line > 0 {
		r.add(place{file: src.name, order: src.order, line: line, column: 1}, "brackets are nested deeper than %d", nestingMax)
		return nil
	}
	f, diags := hclsyntax.ParseConfig(text, src.name, hcl.InitialPos)
	r.syntax(src, diags)
	if diags.HasErrors() || f == nil {
		return nil
	}
	b, ok := f.Body.(*hclsyntax.Body)
	if !ok {
		return nil
	}
	e := &entry{spec: root, at: place{file: src.name, order: src.order}}
	e.read(r, src, b)
	return e
}

// tooDeep returns the line in which brackets nest deeper than nestingMax, or 0.
// It looks at bytes, not at syntax: the parser recurses, so this comes first.
func tooDeep(text []byte) int {
	depth, line := 0, 1
	run := 0 // unary operators in a row recurse as well
	for _, c := range text {
		switch c {
		case '\n':
			line++
		case '(', '[', '{':
			depth++
		case ')', ']', '}':
			depth = max(depth-1, 0)
		}
		if c == '!' || c == '-' || c == '~' {
			run++
		} else if c != ' ' && c != '\t' {
			run = 0
		}
		if depth > nestingMax || run > 16*nestingMax {
			return line
		}
	}
	return 0
}

// read fills the entry from a body.
func (e *entry) read(r *report, src source, b *hclsyntax.Body) {
	e.values, e.where = map[string]any{}, map[string]place{}
	for _, name := range sortedAttributes(b) {
		e.readAttribute(r, src, b.Attributes[name])
	}
	for _, hb := range b.Blocks {
		e.readBlock(r, src, hb)
	}
	for _, a := range e.spec.attrs {
		_, written := b.Attributes[a.Name]
		if a.Required && !written {
			r.add(e.at, "%smissing: %q, %s", e.path(), a.Name, a.Doc)
		}
	}
}

func sortedAttributes(b *hclsyntax.Body) []string {
	names := make([]string, 0, len(b.Attributes))
	for name := range b.Attributes {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func (e *entry) readAttribute(r *report, src source, ha *hclsyntax.Attribute) {
	at := src.at(ha.NameRange)
	a, ok := e.spec.attr(ha.Name)
	if !ok {
		if c := e.spec.child(ha.Name); c != nil {
			r.add(at, "%s%q is a block: write %s { … }, without the equals sign", e.path(), ha.Name, c.header())
			return
		}
		r.add(at, "%sunknown key %q%s", e.path(), ha.Name, suggest(ha.Name, e.spec.words()))
		return
	}
	v, ok := literal(ha.Expr)
	at = src.at(ha.Expr.Range())
	if !ok {
		r.add(at, "%s%q: want a plain value: text, number, true, false, a list or a map", e.path(), a.Name)
		return
	}
	if v == nil { // null: as if it were not written
		return
	}
	checked, err := a.Check(v)
	if err != nil {
		r.add(at, "%s", e.path()+explain(a, v, err))
		return
	}
	e.values[a.Name], e.where[a.Name] = checked, at
}

// explain words a failed check; the value itself is only used to find a near
// allowed one.
func explain(a schema.Attribute, v any, err error) string {
	problem := err.Error()
	if se, ok := err.(*schema.Error); ok {
		problem = se.Problem
	}
	out := fmt.Sprintf("%q: %s", a.Name, problem)
	if s, isText := v.(string); isText && len(a.Allowed) > 0 {
		if hint := suggest(s, a.Allowed); strings.Contains(hint, "did you mean") {
			out += hint
		}
	}
	return out
}

// header is how the block begins.
func (b *block) header() string {
	if b.label == "" {
		return b.name
	}
	return fmt.Sprintf("%s %q", b.name, b.label)
}

func (e *entry) readBlock(r *report, src source, hb *hclsyntax.Block) {
	at := src.at(hb.TypeRange)
	spec := e.spec.child(hb.Type)
	if spec == nil {
		if _, ok := e.spec.attr(hb.Type); ok {
			r.add(at, "%s%q is a value: write %s = …", e.path(), hb.Type, hb.Type)
			return
		}
		r.add(at, "%sunknown block %q%s", e.path(), hb.Type, suggest(hb.Type, e.spec.words()))
		return
	}
	child := &entry{spec: spec, at: at}
	want := 0
	if spec.label != "" {
		want = 1
	}
	if len(hb.Labels) != want {
		r.add(at, "%sblock %q has %d labels: write %s { … }", e.path(), hb.Type, len(hb.Labels), spec.header())
		return
	}
	if want == 1 {
		child.label = hb.Labels[0]
		at = src.at(hb.LabelRanges[0])
		if !spec.checkLabel(r, at, child.label) {
			return
		}
	}
	if spec.raw {
		child.body = body{src: src, hcl: hb.Body, open: hb.TypeRange}
	} else {
		child.read(r, src, hb.Body)
	}
	e.add(r, child)
}

func (b *block) checkLabel(r *report, at place, label string) bool {
	switch {
	case b.labels == nil && !nameRE.MatchString(label):
		r.add(at, "%s %q: %s", b.name, label, nameRule)
	case b.labels == nil || slices.Contains(b.labels, label):
		return true
	case b.name == "runtime" && slices.Contains(laterRuntimes, label):
		r.add(at, "%s %q is not in this release; it has: %s", b.name, label, strings.Join(b.labels, ", "))
	default:
		r.add(at, "unknown %s %q%s", b.name, label, suggest(label, b.labels))
	}
	return false
}

// add takes in a block, unless it is there already and may be only once.
func (e *entry) add(r *report, child *entry) {
	if !child.spec.many {
		for _, have := range e.blocks {
			if have.spec == child.spec && have.label == child.label {
				name := child.spec.name
				if child.label != "" {
					name = fmt.Sprintf("%s %q", name, child.label)
				}
				r.add(child.at, "%s%s is here a second time; the first is at %s", e.path(), name, have.at)
				return
			}
		}
	}
	e.blocks = append(e.blocks, child)
}

// merge takes in a later file: attributes replace, blocks add up.
func (e *entry) merge(r *report, later *entry) {
	for name, v := range later.values {
		e.values[name], e.where[name] = v, later.where[name]
	}
	for _, b := range later.blocks {
		e.add(r, b)
	}
}
