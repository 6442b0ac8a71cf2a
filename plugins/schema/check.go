package schema

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// Error says what is wrong with one attribute. It is an ErrInvalidArgument.
type Error struct {
	Attribute string // its name; for the caller to find the line
	Problem   string // what is wrong and what would be right; never the value
}

func (e *Error) Error() string { return fmt.Sprintf("attribute %q: %s", e.Attribute, e.Problem) }

// Unwrap gives the class.
func (e *Error) Unwrap() error { return errdefs.ErrInvalidArgument }

// Check checks a block against the schema and returns a new map with every
// value in the Go type of its attribute and the defaults filled in. All
// problems are reported: errors.Join of *Error in order of attribute name.
//
// It takes what HCL, JSON and the wire make of a value: any integer or float
// type for numbers, []any for lists, map[string]any for maps, text for sizes
// and durations. Applying it to its own result changes nothing.
func (s Schema) Check(in map[string]any) (map[string]any, error) {
	out := make(map[string]any, len(s.Attributes))
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(in)) {
		a, ok := s.Find(name)
		if !ok {
			errs = append(errs, &Error{trimName(name), "unknown" + s.suggest(name)})
			continue
		}
		if in[name] == nil { // as if it were not there
			continue
		}
		v, err := a.Check(in[name])
		if err != nil {
			errs = append(errs, err)
			continue
		}
		out[name] = v
	}
	for _, a := range s.Attributes {
		if _, ok := in[a.Name]; ok && in[a.Name] != nil {
			continue
		}
		if a.Required {
			errs = append(errs, &Error{a.Name, "missing: " + a.expects() + " is required"})
		} else if a.Default != nil {
			v, err := a.Check(a.Default)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			out[a.Name] = v
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return out, nil
}

// Check checks one value and returns it in the Go type of the attribute. The
// error is an *Error.
func (a Attribute) Check(v any) (any, error) {
	got, problem := a.convert(v)
	if problem == "" {
		problem = a.bounds(got)
	}
	if problem != "" {
		return nil, &Error{a.Name, problem}
	}
	return got, nil
}

func (a Attribute) expects() string {
	switch a.Type {
	case Size:
		return `a size such as "10GiB" or a number of bytes`
	case Duration:
		return `a duration such as "30s"`
	case List:
		return "a list of strings"
	case Map:
		return "a map of strings"
	case Bool:
		return "true or false"
	}
	return "a " + string(a.Type)
}

func (a Attribute) convert(v any) (any, string) {
	wrong := "must be " + a.expects()
	switch a.Type {
	case String:
		if s, ok := v.(string); ok {
			return s, ""
		}
	case Bool:
		if b, ok := v.(bool); ok {
			return b, ""
		}
	case Number:
		if n, ok := toNumber(v); ok {
			return n, ""
		}
	case Size:
		if s, ok := v.(string); ok {
			n, err := ParseSize(s)
			if err != nil {
				return nil, wrong
			}
			return n, ""
		}
		if n, ok := toInt(v); ok {
			if n < 0 {
				return nil, wrong
			}
			return n, ""
		}
	case Duration:
		return convertDuration(v, wrong)
	case List:
		if l, ok := toList(v); ok {
			return l, ""
		}
	case Map:
		if m, ok := toMap(v); ok {
			return m, ""
		}
	}
	return nil, wrong
}

func convertDuration(v any, wrong string) (any, string) {
	switch d := v.(type) {
	case time.Duration:
		return d, ""
	case string:
		if p, err := time.ParseDuration(d); err == nil {
			return p, ""
		}
	}
	return nil, wrong
}

func (a Attribute) bounds(v any) string {
	switch v := v.(type) {
	case string:
		if len(v) > MaxValue {
			return fmt.Sprintf("longer than %d bytes", MaxValue)
		}
		if p := a.allowed(v); p != "" {
			return p
		}
		return a.within(int64(len(v)), "length in bytes")
	case int64:
		if a.Type == Size {
			return a.within(v, "size in bytes")
		}
		return a.within(v, "value")
	case float64:
		return a.withinFloat(v)
	case time.Duration:
		return a.within(int64(v), "duration")
	case []string:
		if len(v) > MaxEntries {
			return fmt.Sprintf("more than %d entries", MaxEntries)
		}
		for _, s := range v {
			if len(s) > MaxValue {
				return fmt.Sprintf("an entry is longer than %d bytes", MaxValue)
			}
			if p := a.allowed(s); p != "" {
				return "an entry " + p
			}
		}
		return a.within(int64(len(v)), "number of entries")
	case map[string]string:
		if len(v) > MaxEntries {
			return fmt.Sprintf("more than %d entries", MaxEntries)
		}
		for k, s := range v {
			if len(k) > MaxValue || len(s) > MaxValue {
				return fmt.Sprintf("an entry is longer than %d bytes", MaxValue)
			}
		}
		return a.within(int64(len(v)), "number of entries")
	}
	return ""
}

func (a Attribute) allowed(v string) string {
	if len(a.Allowed) == 0 || slices.Contains(a.Allowed, v) {
		return ""
	}
	return "must be one of " + strings.Join(a.Allowed, ", ")
}

func (a Attribute) within(n int64, what string) string {
	show := func(n int64) string {
		switch a.Type {
		case Size:
			return FormatSize(n)
		case Duration:
			return time.Duration(n).String()
		}
		return fmt.Sprint(n)
	}
	switch {
	case a.Min != nil && n < *a.Min:
		return fmt.Sprintf("%s must be at least %s", what, show(*a.Min))
	case a.Max != nil && n > *a.Max:
		return fmt.Sprintf("%s must be at most %s", what, show(*a.Max))
	}
	return ""
}

func (a Attribute) withinFloat(f float64) string {
	switch {
	case a.Min != nil && f < float64(*a.Min):
		return fmt.Sprintf("value must be at least %d", *a.Min)
	case a.Max != nil && f > float64(*a.Max):
		return fmt.Sprintf("value must be at most %d", *a.Max)
	}
	return ""
}

// toInt takes whole numbers of any type that fit int64.
func toInt(v any) (int64, bool) {
	switch n := v.(type) {
	case int:
		return int64(n), true
	case int8:
		return int64(n), true
	case int16:
		return int64(n), true
	case int32:
		return int64(n), true
	case int64:
		return n, true
	case uint:
		return int64(n), uint64(n) <= math.MaxInt64
	case uint8:
		return int64(n), true
	case uint16:
		return int64(n), true
	case uint32:
		return int64(n), true
	case uint64:
		return int64(n), n <= math.MaxInt64
	case float32:
		return toInt(float64(n))
	case float64:
		// 2^63 itself is a float64; anything below it that is whole fits.
		if n == math.Trunc(n) && n >= math.MinInt64 && n < 1<<63 {
			return int64(n), true
		}
	}
	return 0, false
}

func toNumber(v any) (any, bool) {
	if n, ok := toInt(v); ok {
		return n, true
	}
	var f float64
	switch n := v.(type) {
	case float32:
		f = float64(n)
	case float64:
		f = n
	default:
		return nil, false
	}
	return f, !math.IsNaN(f) && !math.IsInf(f, 0)
}

func toList(v any) ([]string, bool) {
	switch l := v.(type) {
	case []string:
		return append([]string{}, l...), true
	case []any:
		out := make([]string, 0, len(l))
		for _, e := range l {
			s, ok := e.(string)
			if !ok {
				return nil, false
			}
			out = append(out, s)
		}
		return out, true
	}
	return nil, false
}

func toMap(v any) (map[string]string, bool) {
	switch m := v.(type) {
	case map[string]string:
		out := make(map[string]string, len(m))
		maps.Copy(out, m)
		return out, true
	case map[string]any:
		out := make(map[string]string, len(m))
		for k, e := range m {
			s, ok := e.(string)
			if !ok {
				return nil, false
			}
			out[k] = s
		}
		return out, true
	}
	return nil, false
}

func trimName(s string) string {
	if len(s) > 64 {
		return s[:64]
	}
	return s
}
