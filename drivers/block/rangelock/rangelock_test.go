package rangelock

import (
	"math/rand"
	"testing"
)

func lock(start, end int64, exclusive bool) *Lock {
	return &Lock{Start: start, End: end, Exclusive: exclusive}
}

func TestConflicts(t *testing.T) {
	for _, c := range []struct {
		name string
		a, b *Lock
		want bool // b granted at once
	}{
		{"reads share", lock(0, 10, false), lock(5, 15, false), true},
		{"write after read", lock(0, 10, false), lock(5, 15, true), false},
		{"read after write", lock(0, 10, true), lock(5, 15, false), false},
		{"writes", lock(0, 10, true), lock(9, 10, true), false},
		{"neighbours", lock(0, 10, true), lock(10, 20, true), true},
		{"empty range", lock(0, 10, true), lock(5, 5, true), true},
		{"same start", lock(0, 10, true), lock(0, 1, true), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var tab Table
			if !tab.Acquire(c.a) || !c.a.Granted() {
				t.Fatal("first lock not granted")
			}
			if got := tab.Acquire(c.b); got != c.want || c.b.Granted() != c.want {
				t.Fatalf("granted = %v, want %v", got, c.want)
			}
			got := tab.Release(c.a, nil)
			if c.want != (len(got) == 0) || !c.b.Granted() {
				t.Fatalf("after release: granted %d locks, b granted %v", len(got), c.b.Granted())
			}
			tab.Release(c.b, nil)
			if tab.Len() != 0 {
				t.Fatalf("%d locks left", tab.Len())
			}
		})
	}
}

// A reader that comes after a waiting writer waits too: nobody starves.
func TestArrivalOrder(t *testing.T) {
	var tab Table
	r1, w, r2 := lock(0, 8, false), lock(4, 12, true), lock(6, 16, false)
	if !tab.Acquire(r1) || tab.Acquire(w) || tab.Acquire(r2) {
		t.Fatal("want r1 granted, w and r2 waiting")
	}
	if got := tab.Release(r1, nil); len(got) != 1 || got[0] != w {
		t.Fatalf("release r1 granted %v", got)
	}
	if got := tab.Release(w, nil); len(got) != 1 || got[0] != r2 {
		t.Fatalf("release w granted %v", got)
	}
	tab.Release(r2, nil)
}

// A waiting lock may be withdrawn; those behind it get their turn.
func TestWithdraw(t *testing.T) {
	var tab Table
	w1, w2, w3 := lock(0, 8, true), lock(4, 12, true), lock(10, 16, true)
	tab.Acquire(w1)
	tab.Acquire(w2)
	tab.Acquire(w3)
	if got := tab.Release(w2, nil); len(got) != 1 || got[0] != w3 {
		t.Fatalf("withdrawing w2 granted %v", got)
	}
	if got := tab.Release(w1, nil); len(got) != 0 {
		t.Fatalf("release w1 granted %v", got)
	}
}

// model is the definition: a list in order of arrival.
type model struct{ list []*Lock }

func (m *model) granted(l *Lock) bool {
	for _, o := range m.list {
		if o == l {
			return true
		}
		if o.conflicts(l) {
			return false
		}
	}
	return false
}

func (m *model) remove(l *Lock) {
	for i, o := range m.list {
		if o == l {
			m.list = append(m.list[:i:i], m.list[i+1:]...)
			return
		}
	}
}

func TestAgainstModel(t *testing.T) {
	for range 30 {
		seed := rand.Int63()
		rng := rand.New(rand.NewSource(seed))
		space := int64(1 + rng.Intn(200))
		var tab Table
		var m model
		for step := range 800 {
			if len(m.list) == 0 || rng.Intn(2) == 0 && len(m.list) < 60 {
				s := rng.Int63n(space)
				l := lock(s, s+rng.Int63n(space/4+2), rng.Intn(2) == 0)
				m.list = append(m.list, l)
				if got, want := tab.Acquire(l), m.granted(l); got != want {
					t.Fatalf("seed %d step %d: granted %v, want %v", seed, step, got, want)
				}
			} else {
				l := m.list[rng.Intn(len(m.list))]
				before := map[*Lock]bool{}
				for _, o := range m.list {
					before[o] = m.granted(o)
				}
				m.remove(l)
				newly := map[*Lock]bool{}
				for _, o := range tab.Release(l, nil) {
					newly[o] = true
				}
				for _, o := range m.list {
					if want := m.granted(o) && !before[o]; newly[o] != want {
						t.Fatalf("seed %d step %d: newly granted %v, want %v", seed, step, newly[o], want)
					}
					if o.Granted() != m.granted(o) {
						t.Fatalf("seed %d step %d: Granted() differs", seed, step)
					}
				}
			}
			if tab.Len() != len(m.list) {
				t.Fatalf("seed %d step %d: %d locks, want %d", seed, step, tab.Len(), len(m.list))
			}
			check(t, tab.root)
		}
	}
}

// check verifies invariants 2 and 3 and the order of keys.
func check(t *testing.T, n *Lock) int64 {
	if n == nil {
		return -1
	}
	m := max(n.End, check(t, n.left), check(t, n.right))
	if n.max != m {
		t.Fatalf("max %d, want %d", n.max, m)
	}
	for _, c := range []*Lock{n.left, n.right} {
		if c != nil && c.prio > n.prio {
			t.Fatal("heap order broken")
		}
	}
	if n.left != nil && !n.left.before(n) || n.right != nil && n.right.before(n) {
		t.Fatal("key order broken")
	}
	return m
}

func TestMisuse(t *testing.T) {
	mustPanic := func(name string, f func()) {
		defer func() {
			if recover() == nil {
				t.Errorf("%s: no panic", name)
			}
		}()
		f()
	}
	var tab Table
	l := lock(0, 1, true)
	tab.Acquire(l)
	mustPanic("acquired twice", func() { tab.Acquire(l) })
	tab.Release(l, nil)
	mustPanic("released twice", func() { tab.Release(l, nil) })
	mustPanic("reversed", func() { tab.Acquire(lock(2, 1, true)) })
}

func TestNoAllocations(t *testing.T) {
	var tab Table
	locks := make([]Lock, 64)
	granted := make([]*Lock, 0, 64)
	if n := testing.AllocsPerRun(100, func() {
		for i := range locks {
			locks[i] = Lock{Start: int64(i * 7 % 40), End: int64(i*7%40 + 3), Exclusive: i%2 == 0}
			tab.Acquire(&locks[i])
		}
		for i := range locks {
			granted = tab.Release(&locks[i], granted[:0])
		}
	}); n != 0 {
		t.Fatalf("%v allocations per run", n)
	}
}

func BenchmarkQD32(b *testing.B) {
	var tab Table
	locks := make([]Lock, 32)
	rng := rand.New(rand.NewSource(1))
	var granted []*Lock
	for i := 0; b.Loop(); i++ {
		l := &locks[i%32]
		if l.held {
			granted = tab.Release(l, granted[:0])
		}
		s := rng.Int63n(1<<18) << 12
		l.Start, l.End, l.Exclusive = s, s+4096, true
		tab.Acquire(l)
	}
}
