package client

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestAddresses(t *testing.T) {
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for in, want := range map[string]string{
		"":                        "unix:///run/moraine/agent.sock",
		"/a/b.sock":               "unix:///a/b.sock",
		"unix:///a/b.sock":        "unix:///a/b.sock",
		"unix:/a/b.sock":          "unix:///a/b.sock",
		"unix:b.sock":             "unix://" + filepath.Join(wd, "b.sock"),
		"b.sock":                  "unix://" + filepath.Join(wd, "b.sock"),
		"./dir/b.sock":            "unix://" + filepath.Join(wd, "dir/b.sock"),
		"/a:b/c.sock":             "unix:///a:b/c.sock",
		"tcp://10.0.0.1:7420":     "",
		"10.0.0.1:7420":           "",
		"http://h/":               "",
		"unix://host/a.sock":      "",
		"unix://":                 "",
		"unix:///a.sock?x=1":      "",
		"unix:///%zz":             "",
		"unix://user@/run/a.sock": "",
	} {
		c, err := New(in)
		if want == "" {
			if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), in) {
				t.Errorf("New(%q) = %v, want an error that names it", in, err)
			}
			continue
		}
		if err != nil || c.Address() != want {
			t.Errorf("New(%q) = %v %v, want %s", in, c, err, want)
		}
	}
}

// Without an agent every call says which one it wanted and what for.
func TestNobodyThere(t *testing.T) {
	c, err := New(filepath.Join(t.TempDir(), "none.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, uerr := c.CreateVolume(t.Context(), &apiv1.CreateVolumeRequest{Name: "pg"})
	serr := c.WatchOperation(t.Context(), &apiv1.GetOperationRequest{Id: "op1"}, nil)
	for want, err := range map[string]error{`create volume "pg": agent at unix://`: uerr, `watch operation "op1": agent at unix://`: serr} {
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("error %v, want %s...", err, want)
		}
		if !IsNotReached(err) || !errors.Is(err, errdefs.ErrUnavailable) || errdefs.Indeterminate(err) {
			t.Errorf("classes of %v", err)
		}
	}
}
