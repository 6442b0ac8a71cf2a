package drivers_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/moraine-storage/moraine/drivers"
	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

func volume() drivers.Volume {
	return drivers.Volume{ID: "0a1b", Name: "v", Info: block.Info{Size: 1 << 20}}
}

func persist(context.Context, drivers.State) error { return nil }

func TestStateRoundTrip(t *testing.T) {
	s := drivers.NewState(drivers.KindLoop, volume(), drivers.Options{})
	s.Loop = &drivers.LoopState{MountPath: "/run/x", Number: 3}
	b, err := s.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	got, err := drivers.ParseState(b)
	if err != nil {
		t.Fatal(err)
	}
	if *got.Loop != *s.Loop || got.Size != 1<<20 || got.BlockSize != 512 || got.BootID != drivers.BootID() {
		t.Errorf("%+v became %+v", s, got)
	}
	c := got.Clone()
	c.Loop.Number = 9
	if got.Loop.Number != 3 {
		t.Error("a clone shares its parts")
	}
	if err := got.Recoverable(); !errdefs.IsNotFound(err) {
		t.Errorf("intent is recoverable: %v", err)
	}
	got.Step = drivers.StepReady
	if err := got.Recoverable(); err != nil {
		t.Error(err)
	}
	got.BootID = "another"
	if err := got.Recoverable(); !errdefs.IsNotFound(err) {
		t.Errorf("state of another boot: %v", err)
	}
}

func TestStateRefused(t *testing.T) {
	good := `{"version":1,"kind":"nbd","step":"ready","volume":"0a","boot_id":"b","size_bytes":512,"block_size_bytes":512,"nbd":{"index":1}}`
	if _, err := drivers.ParseState([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for _, r := range [][2]string{
		{`"version":1`, `"version":2`}, {`"kind":"nbd"`, `"kind":"loop"`}, {`"kind":"nbd"`, `"kind":"x"`}, {`"ready"`, `"done"`},
		{`"0a"`, `"../x"`}, {`"0a"`, `""`}, {`size_bytes":512,"b`, `size_bytes":5,"b`}, {`block_size_bytes":512`, `block_size_bytes":513`}, {`{"version"`, `["version"`},
	} {
		bad := strings.Replace(good, r[0], r[1], 1)
		if bad == good {
			t.Fatalf("%q is not there", r[0])
		}
		if _, err := drivers.ParseState([]byte(bad)); err == nil {
			t.Errorf("accepted: %s", bad)
		}
	}
}

func TestCheckAttach(t *testing.T) {
	if err := drivers.CheckAttach(volume(), drivers.Options{Persist: persist}); err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]func(*drivers.Volume, *drivers.Options){
		"no persist":      func(_ *drivers.Volume, o *drivers.Options) { o.Persist = nil },
		"block size":      func(_ *drivers.Volume, o *drivers.Options) { o.BlockSize = 8192 },
		"connections":     func(_ *drivers.Volume, o *drivers.Options) { o.Connections = 17 },
		"size":            func(v *drivers.Volume, _ *drivers.Options) { v.Info.Size = 1000 },
		"size of nothing": func(v *drivers.Volume, _ *drivers.Options) { v.Info.Size = 0 },
		"size for 4096":   func(v *drivers.Volume, o *drivers.Options) { v.Info.Size, o.BlockSize = 4608, 4096 },
		"id":              func(v *drivers.Volume, _ *drivers.Options) { v.ID = "a/b" },
	} {
		v, o := volume(), drivers.Options{Persist: persist}
		f(&v, &o)
		if err := drivers.CheckAttach(v, o); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestUnescape(t *testing.T) {
	for in, want := range map[string]string{`/a\040b`: "/a b", `/a\134x`: `/a\x`, `/\04`: `/\04`, `/\999`: `/\999`, "": ""} {
		if got := drivers.Unescape(in); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}

func TestBusyError(t *testing.T) {
	e := &drivers.BusyError{Device: "/dev/x", Mounts: []string{"/m"}, Processes: []string{"cp[3]"}}
	if got := e.Error(); got != "device /dev/x: in use: mounted at /m; open in cp[3]" {
		t.Error(got)
	}
	if !errdefs.IsFailedPrecondition(e) || !e.Known() {
		t.Error("class or knowledge is wrong")
	}
	if u := drivers.Users("/dev/no-such-device-" + drivers.BootID()); u.Known() {
		t.Errorf("users of nothing: %v", u)
	}
}

func FuzzState(f *testing.F) {
	f.Add([]byte(`{"version":1,"kind":"nbd","step":"ready","volume":"0a","boot_id":"b","size_bytes":512,"block_size_bytes":512,"nbd":{"index":1}}`))
	f.Add([]byte(`{"version":1,"kind":"loop","step":"intent","volume":"0a","size_bytes":512,"block_size_bytes":4096,"loop":{"mount_path":"/x"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := drivers.ParseState(b)
		if err == nil {
			if _, err := s.Marshal(); err != nil {
				t.Error(err)
			}
			_ = s.Clone().Recoverable()
		}
	})
}
