// Package size reads and prints sizes the one way that Moraine does: in
// configuration, on the command line, in Docker options.
//
// With an i a unit is binary (Gi, GiB: 2^30), without it decimal (G, GB:
// 10^9), as in Kubernetes; a bare number is bytes. Letters may be of either
// case. Printed are binary units, KiB to TiB.
package size

import (
	"fmt"
	"math/big"
	"strings"

	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// Units in bytes.
const (
	KiB int64 = 1 << 10
	MiB int64 = 1 << 20
	GiB int64 = 1 << 30
	TiB int64 = 1 << 40
)

// textMax bounds what is looked at: 19 digits, as many behind the point, and a
// unit, with room to spare.
const textMax = 64

var units = map[string]int64{
	"": 1, "b": 1,
	"k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "p": 1e15, "e": 1e18,
	"ki": KiB, "mi": MiB, "gi": GiB, "ti": TiB, "pi": 1 << 50, "ei": 1 << 60,
}

// Parse reads a size: 0 to 2^63-1 bytes. Fractions are taken if they come to
// whole bytes ("1.5GiB"). Text that is no size, negative ones included, is
// InvalidArgument; a size that does not fit is OutOfRange.
func Parse(text string) (int64, error) {
	s := strings.TrimSpace(text)
	if len(s) > textMax {
		return 0, bad(text)
	}
	n := 0
	for n < len(s) && (s[n] >= '0' && s[n] <= '9' || s[n] == '.') {
		n++
	}
	number, unit := s[:n], strings.ToLower(strings.TrimSpace(s[n:]))
	if len(unit) > 1 {
		unit = strings.TrimSuffix(unit, "b")
	}
	factor, ok := units[unit]
	whole, fraction, hasPoint := strings.Cut(number, ".")
	if !ok || whole == "" || hasPoint && fraction == "" || strings.Contains(fraction, ".") {
		return 0, bad(text)
	}
	r, ok := new(big.Rat).SetString(number)
	if !ok {
		return 0, bad(text)
	}
	r.Mul(r, new(big.Rat).SetInt64(factor))
	switch {
	case !r.IsInt():
		return 0, fmt.Errorf("size %q: not a whole number of bytes: %w", text, errdefs.ErrInvalidArgument)
	case !r.Num().IsInt64():
		return 0, fmt.Errorf("size %q: more than 8 EiB: %w", text, errdefs.ErrOutOfRange)
	}
	return r.Num().Int64(), nil
}

func bad(text string) error {
	if t := strings.TrimSpace(text); strings.HasPrefix(t, "-") {
		return fmt.Errorf("size %.80q: must not be negative: %w", text, errdefs.ErrInvalidArgument)
	}
	return fmt.Errorf(`size %.80q: want a number and a unit, such as "10GiB", "500G" or a number of bytes: %w`, text, errdefs.ErrInvalidArgument)
}

var names = []struct {
	unit int64
	name string
}{{TiB, "TiB"}, {GiB, "GiB"}, {MiB, "MiB"}, {KiB, "KiB"}}

// Format prints n for people: in the largest unit of which there is one, with
// one digit behind the point unless that is zero. Below 1 KiB it is bytes. It
// rounds down, so that nobody is shown space that is not there.
func Format(n int64) string {
	if n < 0 {
		if n == -n { // the one value without a positive twin
			n++
		}
		return "-" + Format(-n)
	}
	for _, u := range names {
		if n < u.unit {
			continue
		}
		whole, rest := n/u.unit, n%u.unit
		if tenth := rest * 10 / u.unit; tenth > 0 { // rest < 2^40: no overflow
			return fmt.Sprintf("%d.%d%s", whole, tenth, u.name)
		}
		return fmt.Sprintf("%d%s", whole, u.name)
	}
	return fmt.Sprintf("%dB", n)
}

// Exact prints n so that Parse reads the same number back: in the largest
// binary unit that leaves no fraction.
func Exact(n int64) string {
	for _, u := range names {
		if n != 0 && n%u.unit == 0 {
			return fmt.Sprintf("%d%s", n/u.unit, u.name)
		}
	}
	return fmt.Sprintf("%dB", n)
}
