package config

import (
	"math/big"

	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
)

// literal evaluates an expression that is a literal value: text, number, true,
// false, null, and lists and maps of those. ok is false for anything else.
//
// The result is a string, int64, float64, bool, nil, []any or map[string]any,
// which is what schema.Attribute.Check takes.
func literal(e hclsyntax.Expression) (v any, ok bool) {
	switch e := e.(type) {
	case *hclsyntax.LiteralValueExpr:
		return plain(e.Val)
	case *hclsyntax.ParenthesesExpr:
		return literal(e.Expression)
	case *hclsyntax.TemplateExpr:
		text := ""
		for _, part := range e.Parts {
			l, isLiteral := part.(*hclsyntax.LiteralValueExpr)
			if !isLiteral || l.Val.IsNull() || !l.Val.Type().Equals(cty.String) {
				return nil, false
			}
			text += l.Val.AsString()
		}
		return text, true
	case *hclsyntax.UnaryOpExpr:
		n, isNumber := literal(e.Val)
		if e.Op != hclsyntax.OpNegate || !isNumber {
			return nil, false
		}
		switch n := n.(type) {
		case int64:
			return -n, true
		case float64:
			return -n, true
		}
		return nil, false
	case *hclsyntax.TupleConsExpr:
		list := make([]any, 0, len(e.Exprs))
		for _, x := range e.Exprs {
			v, ok := literal(x)
			if !ok {
				return nil, false
			}
			list = append(list, v)
		}
		return list, true
	case *hclsyntax.ObjectConsExpr:
		m := make(map[string]any, len(e.Items))
		for _, it := range e.Items {
			k, ok := mapKey(it.KeyExpr)
			v, ok2 := literal(it.ValueExpr)
			if _, twice := m[k]; !ok || !ok2 || twice {
				return nil, false
			}
			m[k] = v
		}
		return m, true
	}
	return nil, false
}

// mapKey reads a key: a bare word or text.
func mapKey(e hclsyntax.Expression) (string, bool) {
	k, ok := e.(*hclsyntax.ObjectConsKeyExpr)
	if !ok {
		return "", false
	}
	if t, ok := k.Wrapped.(*hclsyntax.ScopeTraversalExpr); ok {
		if len(t.Traversal) != 1 || k.ForceNonLiteral {
			return "", false
		}
		return t.Traversal.RootName(), true
	}
	v, ok := literal(k.Wrapped)
	s, isText := v.(string)
	return s, ok && isText
}

func plain(v cty.Value) (any, bool) {
	switch {
	case v.IsNull():
		return nil, true
	case !v.IsKnown():
		return nil, false
	case v.Type().Equals(cty.String):
		return v.AsString(), true
	case v.Type().Equals(cty.Bool):
		return v.True(), true
	case v.Type().Equals(cty.Number):
		return number(v.AsBigFloat()), true
	}
	return nil, false
}

// number is an int64 when it is whole and fits.
func number(f *big.Float) any {
	if n, acc := f.Int64(); acc == big.Exact {
		return n
	}
	n, _ := f.Float64()
	return n
}
