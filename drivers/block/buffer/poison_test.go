//go:build race || moraine_poison

package buffer

import "testing"

func mustPanic(t *testing.T, what string, f func()) {
	t.Helper()
	defer func() {
		if recover() == nil {
			t.Errorf("%s was not found", what)
		}
	}()
	f()
}

func TestPoison(t *testing.T) {
	p := New(1 << 20)
	a, err := p.Get(8192)
	if err != nil {
		t.Fatal(err)
	}
	b, err := p.Get(8192)
	if err != nil {
		t.Fatal(err)
	}
	p.Put(a)
	mustPanic(t, "a second put", func() { p.Put(a) })
	b[8191] = 1
	p.Put(b)
	b[8191] = 1
	mustPanic(t, "a write after put", func() { _, _ = p.Get(8192) })
}
