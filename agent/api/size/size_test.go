package size_test

import (
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/moraine-storage/moraine/agent/api/size"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

func TestParse(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "1": 1, "512": 512, "10B": 10, "10b": 10,
		"10GiB": 10 << 30, "10Gi": 10 << 30, "10gib": 10 << 30, "10G": 10e9, "10GB": 10e9, "10g": 10e9,
		"1KiB": 1024, "1k": 1000, "3MiB": 3 << 20, "3MB": 3e6, "2TiB": 2 << 40, "2T": 2e12,
		"1PiB": 1 << 50, "7EiB": 7 << 60, "9E": 9e18, "7.5Ei": 15 << 59,
		"1.5GiB": 3 << 29, "0.5Ki": 512, "0.001k": 1, " 10 GiB ": 10 << 30, "010": 10,
		"9223372036854775807": math.MaxInt64,
	} {
		if got, err := size.Parse(text); err != nil || got != want {
			t.Errorf("%q: %d, %v, want %d", text, got, err, want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for text, class := range map[string]error{
		"": errdefs.ErrInvalidArgument, "GiB": errdefs.ErrInvalidArgument, "-1": errdefs.ErrInvalidArgument, "-5GiB": errdefs.ErrInvalidArgument,
		"+1": errdefs.ErrInvalidArgument, "1e9": errdefs.ErrInvalidArgument, "0x10": errdefs.ErrInvalidArgument, "1_000": errdefs.ErrInvalidArgument,
		"1,5G": errdefs.ErrInvalidArgument, "1.": errdefs.ErrInvalidArgument, ".5G": errdefs.ErrInvalidArgument, "1.2.3": errdefs.ErrInvalidArgument,
		"10 G iB": errdefs.ErrInvalidArgument, "10GiBB": errdefs.ErrInvalidArgument, "10XiB": errdefs.ErrInvalidArgument, "10i": errdefs.ErrInvalidArgument,
		"1.5": errdefs.ErrInvalidArgument, "0.0001k": errdefs.ErrInvalidArgument, "inf": errdefs.ErrInvalidArgument, "NaN": errdefs.ErrInvalidArgument,
		"8EiB": errdefs.ErrOutOfRange, "9223372036854775808": errdefs.ErrOutOfRange, "99999999999E": errdefs.ErrOutOfRange,
		strings.Repeat("1", 65): errdefs.ErrInvalidArgument, strings.Repeat("9", 64): errdefs.ErrOutOfRange,
	} {
		n, err := size.Parse(text)
		if !errors.Is(err, class) || n != 0 {
			t.Errorf("%q: %d, %v, want %v", text, n, err, class)
		}
	}
	if _, err := size.Parse("-1"); err == nil || !strings.Contains(err.Error(), "negative") {
		t.Errorf("-1: %v", err)
	}
}

func TestFormat(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0B", 1: "1B", 1023: "1023B", 1024: "1KiB", 1536: "1.5KiB", 1<<20 - 1: "1023.9KiB", 10 << 30: "10GiB",
		3 << 29: "1.5GiB", 1<<30 + 1: "1GiB", 5 << 50: "5120TiB", math.MaxInt64: "8388607.9TiB",
		-1536: "-1.5KiB", math.MinInt64: "-8388607.9TiB",
	} {
		if got := size.Format(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0B", 1536: "1536B", 3 << 29: "1536MiB", 1 << 60: "1048576TiB"} {
		if got := size.Exact(n); got != want {
			t.Errorf("exact %d: %q, want %q", n, got, want)
		}
	}
}

// FuzzParse: no text panics; what is accepted is printed and read back as the
// same, and never printed as more than it is.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"10GiB", "1.5Ti", "-1", "9223372036854775807", "0.125k", "1e9", "99E"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		n, err := size.Parse(text)
		if err != nil {
			if !errors.Is(err, errdefs.ErrInvalidArgument) && !errors.Is(err, errdefs.ErrOutOfRange) {
				t.Fatalf("%q: class of %v", text, err)
			}
			return
		}
		if n < 0 {
			t.Fatalf("%q: %d", text, n)
		}
		if back, err := size.Parse(size.Exact(n)); err != nil || back != n {
			t.Fatalf("%q: %d printed as %q reads as %d, %v", text, n, size.Exact(n), back, err)
		}
		if shown, err := size.Parse(size.Format(n)); err == nil && shown > n {
			t.Fatalf("%d shown as %q", n, size.Format(n))
		}
	})
}
