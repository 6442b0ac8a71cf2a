package store

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"

	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// ID is the 128-bit identity of a replica, volume, snapshot, drive or cluster.
// It is never reused; the zero ID names nothing.
type ID [16]byte

func (id ID) String() string { return hex.EncodeToString(id[:]) }

// IsZero says whether id names nothing.
func (id ID) IsZero() bool { return id == ID{} }

// ParseID reads what String printed.
func ParseID(s string) (ID, error) {
	var id ID
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(id) {
		return ID{}, fmt.Errorf("parse id %q: want 32 hexadecimal digits: %w", s, errdefs.ErrInvalidArgument)
	}
	copy(id[:], b)
	return id, nil
}

// NewID draws a random ID.
func NewID() ID {
	var id ID
	_, _ = rand.Read(id[:]) // never fails (crypto/rand)
	return id
}

// SessionID is one life of a mirror.
type SessionID [16]byte

func (s SessionID) String() string { return hex.EncodeToString(s[:]) }

// Epoch is the fencing number of a volume with its random tag: two histories
// never share one (REPLICATION 1).
type Epoch struct {
	N   uint64
	Tag uint64
}

// Stamp names the contents of a region: equal stamps mean equal bytes (I-EQ).
// The zero Stamp means never written.
type Stamp struct {
	Epoch   Epoch
	Counter uint32 // < 2^31, unique in its epoch
}
