package store

import (
	"errors"
	"testing"
)

// Goal: a data file that lost its end is refused, not filled up with zeros.
func TestShortData(t *testing.T) {
	g := newMemRig(t, 0, 1<<20, testOptions{})
	if err := g.write(0, 1, 2*ExtentSize); err != nil {
		t.Fatal(err)
	}
	g.flush()
	g.close()
	f, err := g.m.Open("/d/data", 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(ExtentSize), f.Close()); err != nil {
		t.Fatal(err)
	}
	if s, err := csOpen(g.m, 0, testOptions{}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("open: %v, %v", s, err)
	}
	if got := fileSize(t, g.m, "/d/data"); got != ExtentSize {
		t.Errorf("the refused file has %d bytes now", got)
	}
}
