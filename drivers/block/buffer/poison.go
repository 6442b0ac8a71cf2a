//go:build race || moraine_poison

package buffer

import (
	"bytes"
	"fmt"
)

var pattern = bytes.Repeat([]byte{0xdb}, MinSize)

func poison(b []byte) {
	for off := 0; off < len(b); off += MinSize {
		copy(b[off:], pattern)
	}
}

// checkPoison finds a write to a buffer after it was put.
func checkPoison(b []byte) {
	for off := 0; off < len(b); off += MinSize {
		if !bytes.Equal(b[off:off+MinSize], pattern) {
			panic(fmt.Sprintf("buffer: %d bytes at %p were written after Put, in page %d", len(b), &b[0], off/MinSize))
		}
	}
}

// checkOnce finds a buffer that is put a second time.
func checkOnce(free [][]byte, b []byte) {
	for _, f := range free {
		if &f[0] == &b[0] {
			panic(fmt.Sprintf("buffer: %d bytes at %p were put twice", len(b), &b[0]))
		}
	}
}
