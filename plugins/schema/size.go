package schema

import (
	"fmt"
	"math"
	"math/big"
	"strings"

	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// units: binary with an i, decimal without, as Kubernetes writes them. The
// trailing B may be left out.
var units = map[string]int64{
	"": 1, "B": 1,
	"KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30, "TI": 1 << 40, "PI": 1 << 50, "EI": 1 << 60,
	"K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18,
}

// ParseSize reads a size in bytes: "10GiB", "10Gi" and "1.5TiB" are binary,
// "10GB" and "10G" decimal, a bare number is bytes. The result is 0 to 2^63-1 and
// whole; anything else is ErrInvalidArgument or ErrOutOfRange. The error does
// not repeat the text.
func ParseSize(s string) (int64, error) {
	s = strings.TrimSpace(s)
	end := strings.IndexFunc(s, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	if end < 0 {
		end = len(s)
	}
	num, unit := s[:end], strings.ToUpper(strings.TrimSpace(s[end:]))
	if len(unit) > 1 {
		unit = strings.TrimSuffix(unit, "B")
	}
	mult, ok := units[unit]
	// 40 digits are more than any size needs and keep the arithmetic small.
	if !ok || num == "" || len(num) > 40 || strings.Count(num, ".") > 1 || strings.HasPrefix(num, ".") || strings.HasSuffix(num, ".") {
		return 0, fmt.Errorf(`parse size: %w: want a number and a unit, such as "10GiB"`, errdefs.ErrInvalidArgument)
	}
	r, ok := new(big.Rat).SetString(num)
	if !ok {
		return 0, fmt.Errorf(`parse size: %w: want a number and a unit, such as "10GiB"`, errdefs.ErrInvalidArgument)
	}
	r.Mul(r, new(big.Rat).SetInt64(mult))
	if !r.IsInt() {
		return 0, fmt.Errorf("parse size: %w: not a whole number of bytes", errdefs.ErrInvalidArgument)
	}
	if r.Cmp(new(big.Rat).SetInt64(math.MaxInt64)) > 0 {
		return 0, fmt.Errorf("parse size: %w: more than 8 EiB", errdefs.ErrOutOfRange)
	}
	return r.Num().Int64(), nil
}

// FormatSize writes n bytes in the largest binary unit that is exact, so that
// ParseSize reads it back unchanged.
func FormatSize(n int64) string {
	names := []string{"EiB", "PiB", "TiB", "GiB", "MiB", "KiB"}
	for i, u := range names {
		if shift := 60 - 10*i; n != 0 && n%(1<<shift) == 0 {
			return fmt.Sprintf("%d%s", n>>shift, u)
		}
	}
	return fmt.Sprintf("%dB", n)
}
