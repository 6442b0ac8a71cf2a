package backendrpc

import (
	"fmt"
	"time"

	"github.com/moraine-storage/moraine/plugins/errdefs"
	pb "github.com/moraine-storage/moraine/plugins/proto/backend/v1"
	"github.com/moraine-storage/moraine/plugins/schema"
)

// maxDepth bounds nesting of values: attributes are at most a list or map of
// strings (depth 2); one level of room for a later type.
const maxDepth = 3

// toValue turns a configuration value into its wire form.
func toValue(v any) (*pb.Value, error) {
	switch v := v.(type) {
	case string:
		return &pb.Value{Kind: &pb.Value_String_{String_: v}}, nil
	case bool:
		return &pb.Value{Kind: &pb.Value_Bool{Bool: v}}, nil
	case int:
		return &pb.Value{Kind: &pb.Value_Integer{Integer: int64(v)}}, nil
	case int64:
		return &pb.Value{Kind: &pb.Value_Integer{Integer: v}}, nil
	case float64:
		return &pb.Value{Kind: &pb.Value_Number{Number: v}}, nil
	case time.Duration:
		return &pb.Value{Kind: &pb.Value_String_{String_: v.String()}}, nil
	case []string:
		l := &pb.ListValue{}
		for _, s := range v {
			l.Values = append(l.Values, &pb.Value{Kind: &pb.Value_String_{String_: s}})
		}
		return &pb.Value{Kind: &pb.Value_List{List: l}}, nil
	case map[string]string:
		m := &pb.MapValue{Values: make(map[string]*pb.Value, len(v))}
		for k, s := range v {
			m.Values[k] = &pb.Value{Kind: &pb.Value_String_{String_: s}}
		}
		return &pb.Value{Kind: &pb.Value_Map{Map: m}}, nil
	}
	return nil, fmt.Errorf("configuration value of type %T: %w: not checked against the schema", v, errdefs.ErrInvalidArgument)
}

// fromValue is the inverse for what schema.Attribute.Check accepts: lists are
// []any, maps map[string]any, an unset value is nil.
func fromValue(v *pb.Value, depth int) (any, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("configuration: %w: nested too deeply", errdefs.ErrInvalidArgument)
	}
	switch k := v.GetKind().(type) {
	case nil:
		return nil, nil
	case *pb.Value_String_:
		return k.String_, nil
	case *pb.Value_Bool:
		return k.Bool, nil
	case *pb.Value_Integer:
		return k.Integer, nil
	case *pb.Value_Number:
		return k.Number, nil
	case *pb.Value_List:
		out := make([]any, 0, min(len(k.List.GetValues()), schema.MaxEntries))
		for _, e := range k.List.GetValues() {
			x, err := fromValue(e, depth+1)
			if err != nil {
				return nil, err
			}
			out = append(out, x)
		}
		return out, nil
	case *pb.Value_Map:
		return fromMap(k.Map, depth+1)
	}
	return nil, fmt.Errorf("configuration: %w: unknown kind of value", errdefs.ErrInvalidArgument)
}

func toMap(in map[string]any) (*pb.MapValue, error) {
	m := &pb.MapValue{Values: make(map[string]*pb.Value, len(in))}
	for k, v := range in {
		if v == nil {
			continue
		}
		w, err := toValue(v)
		if err != nil {
			return nil, fmt.Errorf("%.64q: %w", k, err)
		}
		m.Values[k] = w
	}
	return m, nil
}

func fromMap(m *pb.MapValue, depth int) (map[string]any, error) {
	out := make(map[string]any, len(m.GetValues()))
	for k, v := range m.GetValues() {
		x, err := fromValue(v, depth)
		if err != nil {
			return nil, err
		}
		out[k] = x
	}
	return out, nil
}

func toSchema(s schema.Schema) (*pb.Schema, error) {
	out := &pb.Schema{}
	for _, a := range s.Attributes {
		w := &pb.Attribute{Name: a.Name, Type: string(a.Type), Required: a.Required, Doc: a.Doc,
			Allowed: a.Allowed, Min: a.Min, Max: a.Max, Sensitive: a.Sensitive}
		if a.Default != nil {
			var err error
			if w.Default, err = toValue(a.Default); err != nil {
				return nil, fmt.Errorf("schema: default of %q: %w", a.Name, err)
			}
		}
		out.Attributes = append(out.Attributes, w)
	}
	return out, nil
}

// fromSchema returns a schema that Validate accepts, defaults normalised.
func fromSchema(in *pb.Schema) (schema.Schema, error) {
	var out schema.Schema
	for _, w := range in.GetAttributes() {
		a := schema.Attribute{Name: w.GetName(), Type: schema.Type(w.GetType()), Required: w.GetRequired(), Doc: w.GetDoc(),
			Allowed: w.GetAllowed(), Min: w.Min, Max: w.Max, Sensitive: w.GetSensitive()}
		if w.GetDefault() != nil {
			v, err := fromValue(w.GetDefault(), 1)
			if err != nil {
				return schema.Schema{}, err
			}
			if v != nil {
				if a.Default, err = a.Check(v); err != nil {
					return schema.Schema{}, err
				}
			}
		}
		out.Attributes = append(out.Attributes, a)
		if len(out.Attributes) > schema.MaxAttributes {
			break // Validate says so
		}
	}
	return out, out.Validate()
}
