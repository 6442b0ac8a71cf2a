package host_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-plugin"
	"go.uber.org/goleak"

	"github.com/moraine-storage/moraine/backends"
	"github.com/moraine-storage/moraine/backends/fake"
	"github.com/moraine-storage/moraine/plugins/sdk"
)

// The plugins of these tests are this test binary, started again with the
// words below as arguments: child MODE NAME VERSION.
const childWord = "moraine-test-child"

func TestMain(m *testing.M) {
	if len(os.Args) > 4 && os.Args[1] == childWord {
		child(os.Args[2], os.Args[3], os.Args[4])
		os.Exit(0)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		// Those that were killed did not.
		if err := os.RemoveAll(childDir(os.Getpid())); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = max(code, 1)
		}
		os.Exit(code)
	}))
}

// childDir has the media of the plugins that a process starts.
func childDir(parent int) string {
	return filepath.Join(os.TempDir(), fmt.Sprintf("moraine-host-child-%d", parent))
}

// scripted is a fake whose version is told on the command line.
type scripted struct {
	*fake.Backend
	version string
	name    string // as Info; "" = the fake's
}

func (s scripted) Info(ctx context.Context) (backends.Info, error) {
	i, err := s.Backend.Info(ctx)
	i.Version = s.version
	if s.name != "" {
		i.Name = s.name
	}
	return i, err
}

func child(mode, name, version string) {
	dir := childDir(os.Getppid())
	if err := os.MkdirAll(dir, 0o700); err != nil {
		panic(err)
	}
	root, err := os.MkdirTemp(dir, "")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(root)
	b := scripted{Backend: fake.New(name, fake.NewMedia(root, 1<<40)), version: version}
	switch mode {
	case "good":
		sdk.Serve(b)
	case "contract":
		sdk.ServeConfig(b, func(c *plugin.ServeConfig) {
			c.Plugins = plugin.PluginSet{sdk.BackendPlugin: &sdk.GRPC{Backend: b, Contract: 2}}
		})
	case "liar":
		b.name = "somebody-else"
		sdk.Serve(b)
	case "protocol":
		sdk.ServeConfig(b, func(c *plugin.ServeConfig) { c.ProtocolVersion = 99 })
	case "cookie":
		sdk.ServeConfig(b, func(c *plugin.ServeConfig) { c.MagicCookieValue = "another" })
	case "garbage":
		fmt.Print(strings.Repeat("\x00\xffgarbage", 1000), "\n")
		time.Sleep(time.Hour)
	case "flood":
		for {
			if _, err := os.Stdout.WriteString(strings.Repeat("x", 1<<16)); err != nil {
				os.Exit(1)
			}
		}
	case "tcp":
		fmt.Println("1|1|tcp|127.0.0.1:1|grpc")
		time.Sleep(time.Hour)
	case "silent":
		time.Sleep(time.Hour)
	case "dies":
		fmt.Fprintln(os.Stderr, "cannot find my licence")
		os.Exit(7)
	case "huge":
		sdk.Serve(huge{b})
	case "noisy":
		sdk.Serve(&noisy{scripted: b})
	default:
		panic("unknown mode " + mode)
	}
}

// huge answers with more than a message may hold, and with more drives.
type huge struct{ scripted }

func (h huge) Discover(context.Context) ([]backends.Drive, error) {
	return make([]backends.Drive, 100000), nil
}

func (h huge) List(context.Context, backends.Page) (backends.Drives, error) {
	d := backends.Drive{ID: "6ba7b810-9dad-11d1-80b4-00c04fd430c8", State: backends.StateReady, Reason: strings.Repeat("r", 1<<20)}
	all := make([]backends.Drive, 2000)
	for i := range all {
		all[i] = d
	}
	return backends.Drives{Drives: all}, nil
}

// noisy prints all the time, from the first question on: before the handshake
// the agent would take its noise for a broken one.
type noisy struct {
	scripted
	once sync.Once
}

func (n *noisy) Info(ctx context.Context) (backends.Info, error) {
	n.once.Do(func() {
		go func() {
			for {
				fmt.Println(strings.Repeat("noise", 100))
				fmt.Fprintln(os.Stderr, strings.Repeat("noise", 100))
				time.Sleep(time.Millisecond)
			}
		}()
	})
	return n.scripted.Info(ctx)
}
