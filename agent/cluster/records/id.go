package records

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"

	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// ID is a 128-bit identity, never used again: 32 lower-case hex digits.
type ID string

// NewID draws a random identity.
func NewID() ID {
	var b [16]byte
	rand.Read(b[:]) // never fails: the runtime ends the process instead
	return ID(hex.EncodeToString(b[:]))
}

// ParseID checks that s is an identity.
func ParseID(s string) (ID, error) {
	if len(s) == 32 {
		ok := true
		for i := range len(s) {
			c := s[i]
			ok = ok && (c >= '0' && c <= '9' || c >= 'a' && c <= 'f')
		}
		if ok {
			return ID(s), nil
		}
	}
	return "", fmt.Errorf("identity %.40q: want 32 lower-case hex digits: %w", s, errdefs.ErrInvalidArgument)
}

// String returns the digits.
func (id ID) String() string { return string(id) }
