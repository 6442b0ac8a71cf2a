package schema_test

import (
	"testing"

	"github.com/moraine-storage/moraine/plugins/schema"
)

// FuzzParseSize: what is read is written and read again as the same number.
func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"10GiB", "1.5T", "0", "-1", "9223372036854775807", "1e9"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := schema.ParseSize(s)
		if err != nil {
			return
		}
		if again, err := schema.ParseSize(schema.FormatSize(n)); n < 0 || err != nil || again != n {
			t.Fatalf("%q is %d, then %d, %v", s, n, again, err)
		}
	})
}
