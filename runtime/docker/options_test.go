package docker

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

func TestParseOptions(t *testing.T) {
	for _, tc := range []struct {
		in   map[string]string
		want *apiv1.VolumeSpec
	}{
		{nil, &apiv1.VolumeSpec{}},
		{map[string]string{"size": "10GiB"}, &apiv1.VolumeSpec{SizeBytes: 10 << 30}},
		{map[string]string{"size": "500G", "repl": "3"}, &apiv1.VolumeSpec{SizeBytes: 500e9, Replicas: 3}},
		{map[string]string{"size": "1048576", "replicas": "2", "pool": "fast", "fs": "xfs", "driver": "nbd", "stripes": "4",
			"max-iops": "1000", "max-bandwidth": "200MiB", "from-snapshot": "pg@nightly", "min-in-sync": "2", "encrypt": "",
			"mkfs-options": "-m 0 -i 8192", "mount-options": "noatime,discard", "labels": "a=1,b=", "label.c.d": "x=y"},
			&apiv1.VolumeSpec{SizeBytes: 1 << 20, Replicas: 2, Pool: "fast", Fs: "xfs", Driver: "nbd", Stripes: 4, MaxIops: 1000,
				MaxBandwidth: 200 << 20, FromSnapshot: "pg@nightly", MinInSync: 2, Encrypt: true,
				MkfsOptions: []string{"-m", "0", "-i", "8192"}, MountOptions: []string{"noatime", "discard"},
				Labels: map[string]string{"a": "1", "b": "", "c.d": "x=y"}}},
		{map[string]string{"encrypt": "No", "max-iops": "0"}, &apiv1.VolumeSpec{}},
	} {
		got, err := parseOptions(tc.in)
		if err != nil {
			t.Errorf("%v: %v", tc.in, err)
		} else if d := cmp.Diff(tc.want, got, protocmp.Transform()); d != "" {
			t.Errorf("%v: %s", tc.in, d)
		}
	}
}

// Each refusal names the option and says what would be right, and never
// repeats the value: it may be a secret that stands in the wrong place.
func TestParseOptionsRefuses(t *testing.T) {
	for _, tc := range []struct{ name, value, want string }{
		{"size", "-1", "option size: want a size"},
		{"size", "hunter2", "option size: want a size"},
		{"size", "0", "option size: a volume has at least"},
		{"size", "9EiB", "option size: want a size"},
		{"size", "", "option size: want a size"},
		{"replicas", "0", "option replicas: want a whole number from 1 to 16"},
		{"replicas", "17", "from 1 to 16"},
		{"repl", "hunter2", "option replicas: want a whole number"},
		{"stripes", "1.5", "option stripes: want a whole number from 1 to 64"},
		{"min-in-sync", "99", "option min-in-sync"},
		{"max-iops", "-5", "option max-iops: want a whole number from 0"},
		{"max-bandwidth", "hunter2", "option max-bandwidth: want bytes per second"},
		{"fs", "hunter2", "option fs: want ext4 or xfs"},
		{"fs", "none", "option fs: want ext4 or xfs"},
		{"driver", "hunter2", "option driver: want nbd or fuse"},
		{"encrypt", "hunter2", "option encrypt: want true or false"},
		{"labels", "hunter2", "option labels: want KEY=VALUE"},
		{"labels", "a=hunter2,a=hunter2", "every key once"},
		{"mount-options", "noatime,,hunter2", "option mount-options: an empty word"},
		{"mkfs-options", strings.Repeat("hunter2 ", maxListItems+1), "at most 32 words"},
		{"Size", "1GiB", `unknown option "Size"; known are driver, encrypt, from-snapshot, fs`},
		{"label.", "hunter2", `unknown option "label."`},
		{"max_iops", "hunter2", `unknown option "max_iops"`},
	} {
		_, err := parseOptions(map[string]string{tc.name: tc.value})
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s=%.20s: %v, want %q", tc.name, tc.value, err, tc.want)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: the error repeats the value: %v", tc.name, err)
		}
	}
	for _, in := range []map[string]string{
		{"repl": "1", "replicas": "1"},
		{"labels": "a=1", "label.a": "2"},
	} {
		if _, err := parseOptions(in); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%v: %v", in, err)
		}
	}
	many := map[string]string{}
	for i := range maxOptions + 1 {
		many["label."+strings.Repeat("x", i+1)] = ""
	}
	if _, err := parseOptions(many); !errdefs.IsInvalidArgument(err) {
		t.Errorf("%d options: %v", len(many), err)
	}
	_, err := parseOptions(map[string]string{"size": "x", "fs": "y"})
	if err == nil || !strings.Contains(err.Error(), "option fs: ") || !strings.Contains(err.Error(), "option size: ") {
		t.Errorf("two bad values: %v, want both", err)
	}
}

// FuzzOptions: no option makes the decoder panic, and what it accepts is in
// range.
func FuzzOptions(f *testing.F) {
	for _, s := range [][4]string{{"size", "10GiB", "fs", "xfs"}, {"label.a", "b", "labels", "a=b,c=d"},
		{"max-iops", "1e9", "encrypt", "maybe"}, {"mkfs-options", " -m  0 ", "mount-options", "a,b"}, {"repl", "-1", "replicas", "1"}} {
		f.Add(s[0], s[1], s[2], s[3])
	}
	f.Fuzz(func(t *testing.T, k1, v1, k2, v2 string) {
		spec, err := parseOptions(map[string]string{k1: v1, k2: v2})
		if err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("class of %v", err)
			}
			return
		}
		if spec.SizeBytes < 0 || spec.MaxIops < 0 || spec.MaxIops > maxIOPS || spec.MaxBandwidth < 0 ||
			spec.Replicas > maxReplicas || spec.Stripes > maxStripes || len(spec.MkfsOptions) > maxListItems {
			t.Errorf("accepted %v", spec)
		}
	})
}
