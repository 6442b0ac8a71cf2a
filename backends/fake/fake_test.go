package fake_test

import (
	"testing"

	"github.com/moraine-storage/moraine/backends"
	"github.com/moraine-storage/moraine/backends/backendtest"
	"github.com/moraine-storage/moraine/backends/fake"
)

func TestConformance(t *testing.T) {
	backendtest.Run(t, func(t *testing.T) backendtest.Fixture {
		m := fake.NewMedia(t.TempDir(), 1<<40)
		return backendtest.Fixture{
			Backend:    fake.New("fake", m),
			BadOptions: []map[string]any{{"rules": []string{"SECRET"}}, {"limit": "SECRET"}},
			Restart:    func(*testing.T) backends.Backend { return fake.New("fake", m) },
			Size:       1 << 30,
		}
	})
}

func TestRules(t *testing.T) {
	for _, s := range []string{"attach:hang", "*:fail:3", "create:exit:1"} {
		if r, err := fake.ParseRule(s); err != nil || r.String() != s {
			t.Errorf("%q: %v, %v", s, r, err)
		}
	}
	for _, s := range []string{"", "attach", ":fail", "attach:explode", "attach:fail:0", "attach:fail:x", "a:b:c:d"} {
		if r, err := fake.ParseRule(s); err == nil {
			t.Errorf("%q: got %v", s, r)
		}
	}
}
