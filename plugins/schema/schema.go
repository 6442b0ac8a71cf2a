// Package schema describes the configuration of a plugin: which attributes its
// block has, of which type, with which limits. A plugin returns its Schema; the
// agent checks a block against it before the plugin sees it, so that every error
// names file, line and key; the plugin decodes what it gets with Decode.
//
// No error of this package contains a configured value: a value may be a secret.
package schema

import (
	"fmt"
	"regexp"
	"slices"
	"time"

	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// Type is the type of an attribute.
type Type string

// The types, and what a checked value of each is in Go.
const (
	String   Type = "string"       // string
	Number   Type = "number"       // int64, or float64 when it is not whole
	Bool     Type = "bool"         // bool
	Size     Type = "size"         // int64 bytes; written "10GiB" or as a number of bytes
	Duration Type = "duration"     // time.Duration; written "1m30s"
	List     Type = "list(string)" // []string
	Map      Type = "map(string)"  // map[string]string
)

var types = []Type{String, Number, Bool, Size, Duration, List, Map}

// Limits: a schema is shown to people and checked on each start; these are far
// above what any backend needs and keep a broken plugin from filling memory
// (256 attributes * (4 KiB doc + 64 * 256 B allowed) = 5 MiB at the very most).
const (
	MaxAttributes = 256
	MaxDoc        = 4 << 10
	MaxAllowed    = 64
	MaxValue      = 64 << 10 // bytes of one string
	MaxEntries    = 4096     // of one list or map
)

// Attribute describes one attribute of a block.
type Attribute struct {
	Name     string   // [a-z][a-z0-9_]{0,63}
	Type     Type     // one of the above
	Required bool     // must be present; then Default is nil
	Default  any      // a value as Check returns it, or nil
	Doc      string   // one or two sentences: meaning, unit, when to change it
	Allowed  []string // String: the only values; List: of each entry; nil = any
	// Min and Max bound, inclusively: Number the value; Size bytes; Duration
	// nanoseconds; List and Map the number of entries; String its bytes. nil = no bound.
	Min, Max *int64
	// Sensitive marks what is never shown: passwords, keys.
	Sensitive bool
}

// Schema is the set of attributes of a block, in the order to show them.
type Schema struct {
	Attributes []Attribute
}

// Bound makes a Min or Max.
func Bound(n int64) *int64 { return &n }

var nameForm = regexp.MustCompile(`^[a-z][a-z0-9_]{0,63}$`)

// Find returns the attribute of that name.
func (s Schema) Find(name string) (Attribute, bool) {
	i := slices.IndexFunc(s.Attributes, func(a Attribute) bool { return a.Name == name })
	if i < 0 {
		return Attribute{}, false
	}
	return s.Attributes[i], true
}

// Names returns the names of all attributes in order.
func (s Schema) Names() []string {
	names := make([]string, len(s.Attributes))
	for i, a := range s.Attributes {
		names[i] = a.Name
	}
	return names
}

// Validate says whether the schema itself makes sense; a schema that came from
// another process is not used before. ErrInvalidArgument.
func (s Schema) Validate() error {
	if len(s.Attributes) > MaxAttributes {
		return fmt.Errorf("schema: %w: more than %d attributes", errdefs.ErrInvalidArgument, MaxAttributes)
	}
	seen := make(map[string]bool, len(s.Attributes))
	for _, a := range s.Attributes {
		if err := a.validate(); err != nil {
			return fmt.Errorf("schema: attribute %.64q: %w", a.Name, err)
		}
		if seen[a.Name] {
			return fmt.Errorf("schema: attribute %q: %w: declared twice", a.Name, errdefs.ErrInvalidArgument)
		}
		seen[a.Name] = true
	}
	return nil
}

func (a Attribute) validate() error {
	bad := func(why string) error { return fmt.Errorf("%w: %s", errdefs.ErrInvalidArgument, why) }
	switch {
	case !nameForm.MatchString(a.Name):
		return bad("name must be " + nameForm.String())
	case !slices.Contains(types, a.Type):
		return bad(fmt.Sprintf("unknown type %.64q", string(a.Type)))
	case len(a.Doc) > MaxDoc:
		return bad("text too long")
	case len(a.Allowed) > MaxAllowed:
		return bad("too many allowed values")
	case len(a.Allowed) > 0 && a.Type != String && a.Type != List:
		return bad("allowed values are for string and list(string)")
	case a.Type == Bool && (a.Min != nil || a.Max != nil):
		return bad("a bool has no bounds")
	case a.Min != nil && a.Max != nil && *a.Min > *a.Max:
		return bad("min above max")
	case a.Required && a.Default != nil:
		return bad("required and a default")
	}
	for _, v := range a.Allowed {
		if len(v) > 256 {
			return bad("allowed value too long")
		}
	}
	if a.Default != nil {
		if _, err := a.Check(a.Default); err != nil {
			return fmt.Errorf("default: %w", err)
		}
	}
	return nil
}

// ZeroOf returns a value of type t for documentation and tests.
func ZeroOf(t Type) any {
	switch t {
	case Number, Size:
		return int64(0)
	case Bool:
		return false
	case Duration:
		return time.Duration(0)
	case List:
		return []string{}
	case Map:
		return map[string]string{}
	}
	return ""
}
