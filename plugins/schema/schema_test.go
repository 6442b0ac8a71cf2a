package schema_test

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/moraine-storage/moraine/plugins/errdefs"
	"github.com/moraine-storage/moraine/plugins/schema"
)

var sample = schema.Schema{Attributes: []schema.Attribute{
	{Name: "paths", Type: schema.List, Required: true, Min: schema.Bound(1)},
	{Name: "size", Type: schema.Size, Min: schema.Bound(1 << 20), Max: schema.Bound(1 << 40)},
	{Name: "wait", Type: schema.Duration, Default: 5 * time.Second, Max: schema.Bound(int64(time.Minute))},
	{Name: "kind", Type: schema.String, Allowed: []string{"gp3", "io2"}},
	{Name: "iops", Type: schema.Number, Min: schema.Bound(100), Max: schema.Bound(16000)},
	{Name: "encrypt", Type: schema.Bool, Default: true},
	{Name: "tags", Type: schema.Map},
	{Name: "password", Type: schema.String, Sensitive: true, Max: schema.Bound(16)},
}}

func TestCheckConverts(t *testing.T) {
	if err := sample.Validate(); err != nil {
		t.Fatal(err)
	}
	got, err := sample.Check(map[string]any{
		"paths": []any{"/a", "/b"}, "size": "10GiB", "iops": 3000.0, "kind": "gp3",
		"tags": map[string]any{"a": "b"}, "encrypt": nil,
	})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"paths": []string{"/a", "/b"}, "size": int64(10 << 30), "iops": int64(3000), "kind": "gp3",
		"tags": map[string]string{"a": "b"}, "encrypt": true, "wait": 5 * time.Second,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Fatal(d)
	}
	for name, m := range map[string]map[string]any{"checked": got, "plain": schema.Plain(got)} {
		again, err := sample.Check(m)
		if err != nil || !cmp.Equal(again, got) {
			t.Errorf("checking the %s result again: %v %v", name, again, err)
		}
	}
}

func TestCheckRefuses(t *testing.T) {
	ok := func(k string, v any) map[string]any { return map[string]any{"paths": []string{"/x"}, k: v} }
	const secret = "hunter2-hunter2-hunter2"
	for _, tc := range []struct {
		in   map[string]any
		attr string
		want string
	}{
		{map[string]any{}, "paths", "required"},
		{ok("paths", []string{}), "paths", "at least 1"},
		{ok("paths", secret), "paths", "list of strings"},
		{ok("paths", []any{secret, 1}), "paths", "list of strings"},
		{ok("size", "-1"), "size", "a size"},
		{ok("size", -1), "size", "a size"},
		{ok("size", "1EiB"), "size", "at most 1TiB"},
		{ok("size", 1.5), "size", "a size"},
		{ok("size", secret), "size", "a size"},
		{ok("size", uint64(math.MaxUint64)), "size", "a size"},
		{ok("wait", secret), "wait", "a duration"},
		{ok("wait", "2m"), "wait", "at most 1m0s"},
		{ok("wait", 5), "wait", "a duration"},
		{ok("kind", secret), "kind", "one of gp3, io2"},
		{ok("iops", 99), "iops", "at least 100"},
		{ok("iops", 99.5), "iops", "at least 100"},
		{ok("iops", math.NaN()), "iops", "a number"},
		{ok("iops", math.Inf(1)), "iops", "a number"},
		{ok("iops", secret), "iops", "a number"},
		{ok("encrypt", "yes"), "encrypt", "true or false"},
		{ok("tags", map[string]any{"k": 1}), "tags", "map of strings"},
		{ok("password", secret), "password", "at most 16"},
		{ok("pathz", secret), "pathz", `did you mean "paths"`},
		{ok("unrelated", secret), "unrelated", "unknown"},
		{ok(strings.Repeat("x", 1<<16), secret), strings.Repeat("x", 64), "unknown"},
	} {
		_, err := sample.Check(tc.in)
		var e *schema.Error
		if !errors.As(err, &e) || !errdefs.IsInvalidArgument(err) {
			t.Errorf("%v: got %v", tc.in, err)
			continue
		}
		if e.Attribute != tc.attr || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%.40v: got %v, want %q about %q", tc.in, err, tc.want, tc.attr)
		}
		if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q leaks the value: %v", tc.attr, err)
		}
	}
}

// TestCheckReportsAll: a file with three mistakes gives three errors.
func TestCheckReportsAll(t *testing.T) {
	_, err := sample.Check(map[string]any{"sizee": 1, "iops": "x"})
	for _, want := range []string{`"sizee"`, `"iops"`, `"paths"`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not name %s", err, want)
		}
	}
}

func TestValidateRefuses(t *testing.T) {
	for name, a := range map[string]schema.Attribute{
		"name":      {Name: "Bad Name", Type: schema.String},
		"type":      {Name: "a", Type: "list(number)"},
		"bounds":    {Name: "a", Type: schema.Number, Min: schema.Bound(2), Max: schema.Bound(1)},
		"default":   {Name: "a", Type: schema.Number, Default: "x"},
		"both":      {Name: "a", Type: schema.String, Default: "x", Required: true},
		"bool":      {Name: "a", Type: schema.Bool, Min: schema.Bound(1)},
		"allowed":   {Name: "a", Type: schema.Size, Allowed: []string{"1"}},
		"doc":       {Name: "a", Type: schema.String, Doc: strings.Repeat("x", schema.MaxDoc+1)},
		"outofset":  {Name: "a", Type: schema.String, Default: "c", Allowed: []string{"a", "b"}},
		"longvalue": {Name: "a", Type: schema.String, Allowed: []string{strings.Repeat("x", 257)}},
	} {
		if err := (schema.Schema{Attributes: []schema.Attribute{a}}).Validate(); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	twice := schema.Schema{Attributes: []schema.Attribute{{Name: "a", Type: schema.String}, {Name: "a", Type: schema.Bool}}}
	if err := twice.Validate(); err == nil {
		t.Error("an attribute declared twice was accepted")
	}
}

func TestParseSize(t *testing.T) {
	for in, want := range map[string]int64{
		"0": 0, "1": 1, "512B": 512, "1KiB": 1024, "1Ki": 1024, "1K": 1000, "1kB": 1000, "10GiB": 10 << 30, "10 GiB": 10 << 30,
		"10G": 10e9, "1.5TiB": 3 << 39, "0.5KiB": 512, "8191PiB": 8191 << 50, "9223372036854775807": math.MaxInt64,
	} {
		if got, err := schema.ParseSize(in); err != nil || got != want {
			t.Errorf("%q: got %d, %v, want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "-1", "+1", "GiB", "1.GiB", ".5GiB", "1..5GiB", "1XiB", "0.3B", "1e3", "0x10", "8EiB",
		"9223372036854775808", "1GiBB", "1 2", "\u0661", strings.Repeat("9", 41), "1/2", "1_000"} {
		if got, err := schema.ParseSize(in); err == nil {
			t.Errorf("%q: got %d, want an error", in, got)
		}
	}
}

func TestFormatSizeReadsBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Int64Range(0, math.MaxInt64).Draw(t, "n") >> rapid.IntRange(0, 62).Draw(t, "shift")
		n = n >> 10 << rapid.SampledFrom([]int{0, 10}).Draw(t, "unit")
		got, err := schema.ParseSize(schema.FormatSize(n))
		if err != nil || got != n {
			t.Fatalf("%d -> %s -> %d, %v", n, schema.FormatSize(n), got, err)
		}
	})
}

type target struct {
	Paths   []string          `config:"paths"`
	Size    int64             `config:"size"`
	Wait    time.Duration     `config:"wait"`
	Kind    string            `config:"kind"`
	IOPS    int64             `config:"iops"`
	Encrypt bool              `config:"encrypt"`
	Tags    map[string]string `config:"tags"`
	Secret  string            `config:"password"`
}

func TestDecode(t *testing.T) {
	in, err := sample.Check(map[string]any{"paths": []string{"/a"}, "size": "1GiB", "wait": "7s", "tags": map[string]string{"a": "b"}, "password": "pw"})
	if err != nil {
		t.Fatal(err)
	}
	want := target{Paths: []string{"/a"}, Size: 1 << 30, Wait: 7 * time.Second, Encrypt: true, Tags: map[string]string{"a": "b"}, Secret: "pw"}
	for name, m := range map[string]map[string]any{"checked": in, "plain": schema.Plain(in)} {
		var got target
		if err := schema.Decode(m, &got); err != nil || !cmp.Equal(got, want) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

// TestDecodeLeaksNothing: a value of the wrong type, wherever it stands, never
// shows up in the error.
func TestDecodeLeaksNothing(t *testing.T) {
	const secret = "hunter2"
	for _, m := range []map[string]any{
		{"size": secret}, {"password": []any{secret}}, {"wait": secret}, {"iops": map[string]any{"x": secret}},
		{"paths": []any{1, secret}}, {"tags": secret}, {"none": secret}, {"encrypt": secret},
	} {
		var got target
		err := schema.Decode(m, &got)
		if !errdefs.IsInvalidArgument(err) || strings.Contains(fmt.Sprintf("%+v", err), secret) {
			t.Errorf("%v: %v", m, err)
		}
	}
	var notStruct chan int
	if err := schema.Decode(map[string]any{"a": secret}, &notStruct); err == nil || strings.Contains(err.Error(), secret) {
		t.Errorf("bad target: %v", err)
	}
}
