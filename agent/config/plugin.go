package config

import (
	"fmt"
	"reflect"

	"github.com/moraine-storage/moraine/plugins/schema"
)

// At says where the block is written, for messages: "agent.hcl:12:1".
func (b Backend) At() string { return b.at.String() }

// Decode checks the backend's config block against the schema that its plugin
// returned and gives the values, in the types of the schema, with defaults
// filled in. A block that is not there is an empty one.
func (b Backend) Decode(s schema.Schema) (map[string]any, Diagnostics) {
	r := &report{}
	if err := s.Validate(); err != nil {
		r.add(b.at, "backend %q: its plugin describes a configuration that makes no sense: %v", b.Kind, err)
		return nil, r.done()
	}
	path := fmt.Sprintf("backend %q: config: ", b.Kind)
	spec := &block{name: "config", attrs: s.Attributes}
	values := map[string]any{}
	at := b.at
	if b.body.hcl != nil {
		src := b.body.src
		at = src.at(b.body.open)
		for _, name := range sortedAttributes(b.body.hcl) {
			ha := b.body.hcl.Attributes[name]
			a, ok := spec.attr(name)
			if !ok {
				r.add(src.at(ha.NameRange), "%sunknown key %q%s", path, name, suggest(name, spec.words()))
				continue
			}
			v, ok := literal(ha.Expr)
			if !ok {
				r.add(src.at(ha.Expr.Range()), "%s%q: want a plain value: text, number, true, false, a list or a map", path, name)
				continue
			}
			if v == nil {
				continue
			}
			checked, err := a.Check(v)
			if err != nil {
				r.add(src.at(ha.Expr.Range()), "%s", path+explain(a, v, err))
				continue
			}
			values[name] = checked
		}
		for _, hb := range b.body.hcl.Blocks {
			hint := suggest(hb.Type, spec.words())
			if _, ok := spec.attr(hb.Type); ok {
				hint = fmt.Sprintf(": write %s = …", hb.Type)
			}
			r.add(src.at(hb.TypeRange), "%sunknown block %q%s", path, hb.Type, hint)
		}
	}
	for _, a := range s.Attributes {
		if a.Required && values[a.Name] == nil && !b.writes(a.Name) {
			r.add(at, "%smissing: %q, %s", path, a.Name, a.Doc)
		}
	}
	if len(r.ds) > 0 {
		return nil, r.done()
	}
	out, err := s.Check(values) // fills in the defaults
	if err != nil {
		r.add(at, "%s%v", path, err)
		return nil, r.done()
	}
	return out, nil
}

// writes says whether the config block has that attribute with a value, be it a
// wrong one, which was reported already.
func (b Backend) writes(name string) bool {
	if b.body.hcl == nil {
		return false
	}
	a, ok := b.body.hcl.Attributes[name]
	if !ok {
		return false
	}
	v, ok := literal(a.Expr)
	return !ok || v != nil
}

// same says whether two backends are configured alike.
func (b Backend) same(o Backend) bool {
	return b.Kind == o.Kind && b.Pool == o.Pool && reflect.DeepEqual(b.body.values(), o.body.values())
}

// values evaluates a config block without a schema.
func (b body) values() map[string]any {
	out := map[string]any{}
	if b.hcl == nil {
		return out
	}
	for name, a := range b.hcl.Attributes {
		if v, ok := literal(a.Expr); ok && v != nil {
			out[name] = v
		}
	}
	return out
}
