package plugintest_test

import (
	"testing"

	"github.com/moraine-storage/moraine/backends"
	"github.com/moraine-storage/moraine/backends/backendtest"
	"github.com/moraine-storage/moraine/backends/fake"
	"github.com/moraine-storage/moraine/plugins/plugintest"
)

func TestMain(m *testing.M) { plugintest.VerifyMain(m) }

// TestFakeOverGRPC: the fake, which has every ability, behaves over the wire as
// it does without.
func TestFakeOverGRPC(t *testing.T) {
	plugintest.InProcess(t, func(t *testing.T) backendtest.Fixture {
		m := fake.NewMedia(t.TempDir(), 1<<40)
		return backendtest.Fixture{
			Backend:    fake.New("fake", m),
			BadOptions: []map[string]any{{"rules": []string{"SECRET"}}, {"limit": "SECRET"}, {"no_such": "SECRET"}},
			Restart:    func(*testing.T) backends.Backend { return fake.New("fake", m) },
			Size:       1 << 30,
		}
	})
}
