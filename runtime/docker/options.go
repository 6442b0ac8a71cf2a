package docker

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/mitchellh/mapstructure"

	"github.com/moraine-storage/moraine/agent/api/size"
	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// options are what `docker volume create -o NAME=VALUE` may say. A field that
// is not set leaves the choice to the agent.
type options struct {
	Size         capacity `mapstructure:"size"`          // bytes
	Replicas     replicas `mapstructure:"replicas"`      //
	Pool         string   `mapstructure:"pool"`          //
	FS           fsName   `mapstructure:"fs"`            //
	Driver       driver   `mapstructure:"driver"`        //
	Stripes      stripes  `mapstructure:"stripes"`       //
	MaxIOPS      iops     `mapstructure:"max-iops"`      // operations per second, 0 is no limit
	MaxBandwidth rate     `mapstructure:"max-bandwidth"` // bytes per second, 0 is no limit
	FromSnapshot string   `mapstructure:"from-snapshot"` // VOLUME@SNAPSHOT
	MinInSync    replicas `mapstructure:"min-in-sync"`   //
	Encrypt      boolean  `mapstructure:"encrypt"`       //
	MkfsOptions  words    `mapstructure:"mkfs-options"`  // separated by spaces
	MountOptions commas   `mapstructure:"mount-options"` //
	Labels       labels   `mapstructure:"labels"`        // K=V,K=V; joined with label.K=V
}

// Each kind of value has its type, and the type its parser and its range.
type (
	capacity int64
	rate     int64
	iops     int64
	replicas uint32
	stripes  uint32
	boolean  bool
	fsName   string
	driver   string
	words    []string
	commas   []string
	labels   map[string]string
)

// parsers turn text into values. Their errors say what would be right and
// never repeat the text: what stands in an option may be meant for nobody's log.
var parsers = map[reflect.Type]func(string) (any, error){
	reflect.TypeFor[capacity](): parseSize,
	reflect.TypeFor[rate]():     parseRate,
	reflect.TypeFor[iops]():     func(s string) (any, error) { n, err := parseInt(s, 0, maxIOPS); return iops(n), err },
	reflect.TypeFor[replicas](): func(s string) (any, error) { n, err := parseInt(s, 1, maxReplicas); return replicas(n), err },
	reflect.TypeFor[stripes]():  func(s string) (any, error) { n, err := parseInt(s, 1, maxStripes); return stripes(n), err },
	reflect.TypeFor[boolean]():  parseBool,
	reflect.TypeFor[fsName]():   func(s string) (any, error) { v, err := parseWord(s, "ext4", "xfs"); return fsName(v), err },
	reflect.TypeFor[driver]():   func(s string) (any, error) { v, err := parseWord(s, "nbd", "fuse"); return driver(v), err },
	reflect.TypeFor[words]():    func(s string) (any, error) { v, err := parseList(strings.Fields(s)); return words(v), err },
	reflect.TypeFor[commas]():   func(s string) (any, error) { v, err := parseList(strings.Split(s, ",")); return commas(v), err },
	reflect.TypeFor[labels]():   parseLabels,
}

// knownOptions, sorted, for messages; label.K stands for every label.
func knownOptions() []string {
	var names []string
	for f := range reflect.TypeFor[options]().Fields() {
		names = append(names, f.Tag.Get("mapstructure"))
	}
	names = append(names, "repl", "label.KEY")
	slices.Sort(names)
	return names
}

// parseOptions reads the options of a Create.
func parseOptions(in map[string]string) (*apiv1.VolumeSpec, error) {
	if len(in) > maxOptions {
		return nil, fmt.Errorf("%d options, at most %d: %w", len(in), maxOptions, errdefs.ErrInvalidArgument)
	}
	plain, extra, err := splitLabels(in)
	if err != nil {
		return nil, err
	}
	var o options
	dec, err := mapstructure.NewDecoder(&mapstructure.DecoderConfig{Result: &o, DecodeHook: parseHook, ErrorUnused: true,
		// Names are exact: "Size" is a typing mistake, not a size.
		MatchName: func(key, field string) bool { return key == field }})
	if err != nil {
		return nil, fmt.Errorf("options: %w", err)
	}
	if err := dec.Decode(plain); err != nil {
		return nil, optionError(err)
	}
	for k, v := range extra {
		if _, twice := o.Labels[k]; twice {
			return nil, fmt.Errorf("option label.%s: labels has it too: %w", k, errdefs.ErrInvalidArgument)
		}
		if o.Labels == nil {
			o.Labels = labels{}
		}
		o.Labels[k] = v
	}
	return o.spec(), nil
}

// splitLabels takes the label.K options apart from the others, resolves the
// short name of replicas, and refuses unknown names.
func splitLabels(in map[string]string) (plain map[string]any, extra labels, err error) {
	plain, extra = map[string]any{}, labels{}
	known := knownOptions()
	for _, name := range slices.Sorted(maps.Keys(in)) {
		value := in[name]
		if key, ok := strings.CutPrefix(name, "label."); ok && key != "" {
			extra[key] = value
			continue
		}
		if !slices.Contains(known, name) {
			return nil, nil, fmt.Errorf("unknown option %q; known are %s: %w", name, strings.Join(known, ", "), errdefs.ErrInvalidArgument)
		}
		if name == "repl" {
			name = "replicas"
		}
		if _, twice := plain[name]; twice {
			return nil, nil, fmt.Errorf("options replicas and repl mean the same: give one: %w", errdefs.ErrInvalidArgument)
		}
		plain[name] = value
	}
	return plain, extra, nil
}

// parseHook is called by mapstructure for every value.
func parseHook(from, to reflect.Value) (any, error) {
	parse, ok := parsers[to.Type()]
	if !ok || from.Kind() != reflect.String {
		return from.Interface(), nil
	}
	return parse(from.String())
}

// optionError keeps our parsers' words and the name of the option. What
// mapstructure itself would say may quote a value, so it is replaced.
func optionError(err error) error {
	var all *mapstructure.Error
	if !errors.As(err, &all) {
		return fmt.Errorf("options: cannot be read: %w", errdefs.ErrInvalidArgument)
	}
	var text []string
	for _, e := range all.Errors {
		line := "options: a value cannot be read"
		for _, name := range knownOptions() {
			if want, ok := strings.CutPrefix(e, "error decoding '"+name+"': "); ok {
				line = "option " + name + ": " + want
			}
		}
		text = append(text, line)
	}
	slices.Sort(text)
	return fmt.Errorf("%s: %w", strings.Join(text, "; "), errdefs.ErrInvalidArgument)
}

func parseSize(s string) (any, error) {
	n, err := size.Parse(s)
	if err != nil {
		return capacity(0), errors.New("want a size such as 10GiB, 500G or a number of bytes, at least 1MiB")
	}
	if n == 0 {
		return capacity(0), errors.New("a volume has at least 1MiB; leave the option out for the default size")
	}
	return capacity(n), nil
}

func parseRate(s string) (any, error) {
	n, err := size.Parse(s)
	if err != nil {
		return rate(0), errors.New("want bytes per second, such as 200MiB; 0 is no limit")
	}
	return rate(n), nil
}

func parseInt(s string, lo, hi int64) (int64, error) {
	n, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64)
	if err != nil || n < lo || n > hi {
		return 0, fmt.Errorf("want a whole number from %d to %d", lo, hi)
	}
	return n, nil
}

func parseBool(s string) (any, error) {
	switch strings.ToLower(s) {
	case "", "true", "yes", "on", "1": // `-o encrypt` alone has no value
		return boolean(true), nil
	case "false", "no", "off", "0":
		return boolean(false), nil
	}
	return boolean(false), errors.New("want true or false")
}

func parseWord(s string, allowed ...string) (string, error) {
	if slices.Contains(allowed, s) {
		return s, nil
	}
	return "", errors.New("want " + strings.Join(allowed, " or "))
}

func parseList(list []string) ([]string, error) {
	if len(list) > maxListItems {
		return nil, fmt.Errorf("at most %d words", maxListItems)
	}
	for _, w := range list {
		if strings.TrimSpace(w) == "" {
			return nil, errors.New("an empty word")
		}
	}
	return list, nil
}

func parseLabels(s string) (any, error) {
	l := labels{}
	for pair := range strings.SplitSeq(s, ",") {
		k, v, ok := strings.Cut(pair, "=")
		if _, twice := l[k]; !ok || k == "" || twice {
			return nil, errors.New("want KEY=VALUE,KEY=VALUE, every key once")
		}
		l[k] = v
	}
	return l, nil
}

func (o *options) spec() *apiv1.VolumeSpec {
	return &apiv1.VolumeSpec{
		SizeBytes: int64(o.Size), Replicas: uint32(o.Replicas), Pool: o.Pool, Fs: string(o.FS), Driver: string(o.Driver),
		Stripes: uint32(o.Stripes), MaxIops: int64(o.MaxIOPS), MaxBandwidth: int64(o.MaxBandwidth),
		Labels: o.Labels, Encrypt: bool(o.Encrypt), FromSnapshot: o.FromSnapshot, MinInSync: uint32(o.MinInSync),
		MkfsOptions: o.MkfsOptions, MountOptions: o.MountOptions,
	}
}
