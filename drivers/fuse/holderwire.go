package fuse

import (
	"encoding/binary"
	"fmt"

	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// The holder's protocol: SOCK_SEQPACKET, one message per packet, one answer
// per request (list: one per key, then one with an empty key). A descriptor
// travels beside a put and beside the answer to a get (SCM_RIGHTS).
//
//	offset size
//	0      4     magic "MHLD"
//	4      1     version, 1
//	5      1     operation
//	6      2     status: 0 or an error, its text in the blob
//	8      2     length of the key
//	10     2     length of the blob
//	12     4     zero
//	16           key, blob
//
// Numbers are big endian. Only a process of the same user may connect.
const (
	holderMagic   = 0x4d484c44
	holderVersion = 1
	headerSize    = 16
)

// Operations.
const (
	holdPut  = 1 // key, blob, descriptor
	holdGet  = 2 // key -> blob, descriptor
	holdDrop = 3 // key
	holdList = 4 // -> key ... key, ""
	holdQuit = 5 // exit if nothing is held; refused otherwise
)

// Status of an answer.
const (
	statusOK       = 0
	statusNotFound = 1
	statusInvalid  = 2
	statusFull     = 3
	statusHolding  = 4
)

type message struct {
	op     uint8
	status uint16
	key    string
	blob   []byte
}

func (m *message) encode() ([]byte, error) {
	if len(m.key) > maxKey || len(m.blob) > maxBlob {
		return nil, fmt.Errorf("holder message: key of %d bytes, blob of %d: %w", len(m.key), len(m.blob), errdefs.ErrInvalidArgument)
	}
	b := make([]byte, headerSize, headerSize+len(m.key)+len(m.blob))
	binary.BigEndian.PutUint32(b, holderMagic)
	b[4], b[5] = holderVersion, m.op
	binary.BigEndian.PutUint16(b[6:], m.status)
	binary.BigEndian.PutUint16(b[8:], uint16(len(m.key)))
	binary.BigEndian.PutUint16(b[10:], uint16(len(m.blob)))
	return append(append(b, m.key...), m.blob...), nil
}

func decodeMessage(b []byte) (message, error) {
	bad := func(what string) (message, error) {
		return message{}, fmt.Errorf("holder message of %d bytes: %s: %w", len(b), what, errdefs.ErrInvalidArgument)
	}
	if len(b) < headerSize || binary.BigEndian.Uint32(b) != holderMagic {
		return bad("no header")
	}
	if b[4] != holderVersion {
		return bad(fmt.Sprintf("version %d", b[4]))
	}
	k, n := int(binary.BigEndian.Uint16(b[8:])), int(binary.BigEndian.Uint16(b[10:]))
	if binary.BigEndian.Uint32(b[12:]) != 0 {
		return bad("reserved bytes in use")
	}
	if k > maxKey || n > maxBlob || len(b) != headerSize+k+n {
		return bad("lengths do not fit")
	}
	return message{
		op: b[5], status: binary.BigEndian.Uint16(b[6:]),
		key: string(b[headerSize : headerSize+k]), blob: append([]byte(nil), b[headerSize+k:]...),
	}, nil
}

// err translates the status of an answer.
func (m *message) err() error {
	switch m.status {
	case statusOK:
		return nil
	case statusNotFound:
		return fmt.Errorf("holder: %s: %w", m.blob, errdefs.ErrNotFound)
	case statusFull:
		return fmt.Errorf("holder: %s: %w", m.blob, errdefs.ErrResourceExhausted)
	case statusHolding:
		return fmt.Errorf("holder: %s: %w", m.blob, errdefs.ErrFailedPrecondition)
	}
	return fmt.Errorf("holder: %s: %w", m.blob, errdefs.ErrInvalidArgument)
}
