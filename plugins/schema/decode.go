package schema

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/mitchellh/mapstructure"

	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// Decode fills the struct that out points to from a free-form map: plugin
// configuration, driver or Docker options. Fields are matched by the tag
// `config:"name"`; types must fit exactly (a duration may be text); a key
// without a field is an error.
//
// mapstructure's own errors quote the value, which may be a secret: they are
// dropped, and the error says only which key does not fit. To know that
// without reading their text, keys are decoded one at a time.
func Decode(in map[string]any, out any) error {
	var errs []error
	for _, key := range slices.Sorted(maps.Keys(in)) {
		if err := decodeOne(key, in[key], out); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func decodeOne(key string, value, out any) (err error) {
	// The library panics on targets it does not know (channels, ...), and a
	// panic's text could quote the value as well.
	defer func() {
		if recover() != nil {
			err = &Error{trimName(key), "does not fit"}
		}
	}()
	dec, err := mapstructure.NewDecoder(&mapstructure.DecoderConfig{
		Result:      out,
		TagName:     "config",
		ErrorUnused: true,
		DecodeHook:  mapstructure.StringToTimeDurationHookFunc(),
		MatchName:   func(mapKey, field string) bool { return mapKey == field },
	})
	if err != nil {
		return fmt.Errorf("decode configuration: %w: target must be a pointer to a struct", errdefs.ErrInternal)
	}
	if dec.Decode(map[string]any{key: value}) != nil {
		return &Error{trimName(key), "unknown, or not of the type wanted"}
	}
	return nil
}

// Plain turns a checked map into one without Go-only types: durations become
// text. It is what goes over the wire; Check turns it back.
func Plain(in map[string]any) map[string]any {
	out := make(map[string]any, len(in))
	for k, v := range in {
		if d, ok := v.(time.Duration); ok {
			v = d.String()
		}
		out[k] = v
	}
	return out
}
