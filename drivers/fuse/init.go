package fuse

import (
	"encoding/json"
	"fmt"
	"os"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// sessionVersion is raised when a process that took over an older session
// would misunderstand it.
const sessionVersion = 1

// session is what a connection agreed on in its INIT. It is kept with the
// descriptor: the kernel says it once.
type session struct {
	Version  int    `json:"version"`
	Major    uint32 `json:"major"`
	Minor    uint32 `json:"minor"`
	Flags    uint64 `json:"flags"` // FUSE_* capabilities in force
	MaxWrite uint32 `json:"max_write_bytes"`
	Init     []byte `json:"init"` // the kernel's INIT as it came, for a later version
}

const (
	kernelMajor = 7
	kernelMinor = 31 // the oldest whose structures are those of wire.go
	ourMinor    = 45
)

// wanted are the capabilities asked for when the kernel offers them. ASYNC_DIO
// lets a loop device keep more than one request in flight, RESEND is what
// survives a killed agent, ABORT_ERROR tells an abort from an unmount.
const wanted = gofuse.CAP_ASYNC_READ | gofuse.CAP_BIG_WRITES | gofuse.CAP_ASYNC_DIO |
	gofuse.CAP_MAX_PAGES | gofuse.CAP_ABORT_ERROR | gofuse.CAP_PARALLEL_DIROPS |
	gofuse.CAP_HAS_RESEND | gofuse.CAP_INIT_EXT

// negotiate reads the kernel's INIT message and writes the body of the answer
// into out (initOutSize bytes).
func negotiate(msg []byte, out []byte) (session, error) {
	var r request
	if errno, ok := decode(msg, &r); !ok || errno != 0 || r.opcode != opInit {
		return session{}, fmt.Errorf("fuse init: first message is not an INIT: %w", errdefs.ErrInternal)
	}
	s := session{Version: sessionVersion, Major: le.Uint32(r.body), Minor: le.Uint32(r.body[4:]), MaxWrite: maxWrite, Init: append([]byte(nil), msg...)}
	readahead := le.Uint32(r.body[8:])
	flags := uint64(le.Uint32(r.body[12:]))
	if flags&gofuse.CAP_INIT_EXT != 0 && len(r.body) >= 20 {
		flags |= uint64(le.Uint32(r.body[16:])) << 32
	}
	if s.Major != kernelMajor || s.Minor < kernelMinor {
		return session{}, fmt.Errorf("fuse init: the kernel speaks %d.%d, needed is %d.%d or later: %w", s.Major, s.Minor, kernelMajor, kernelMinor, errdefs.ErrUnimplemented)
	}
	s.Flags = flags & wanted
	if s.Flags&gofuse.CAP_MAX_PAGES == 0 {
		s.MaxWrite = 128 << 10
	}
	s.Minor = min(s.Minor, ourMinor)
	clear(out[:initOutSize])
	le.PutUint32(out[0:], kernelMajor)
	le.PutUint32(out[4:], s.Minor)
	le.PutUint32(out[8:], readahead)
	le.PutUint32(out[12:], uint32(s.Flags))
	le.PutUint16(out[16:], maxBackground)
	le.PutUint16(out[18:], maxBackground*3/4)
	le.PutUint32(out[20:], s.MaxWrite)
	le.PutUint32(out[24:], 1) // time granularity in ns
	le.PutUint16(out[28:], uint16(max(int(s.MaxWrite)/os.Getpagesize(), 1)))
	le.PutUint32(out[32:], uint32(s.Flags>>32))
	return s, nil
}

func (s *session) canResend() bool { return s.Flags&gofuse.CAP_HAS_RESEND != 0 }

func (s *session) marshal() ([]byte, error) { return json.Marshal(s) }

// parseSession decodes the blob kept with a descriptor. An empty blob is a
// connection whose INIT was never answered: nobody can be using it.
func parseSession(b []byte) (session, error) {
	var s session
	if len(b) == 0 {
		return s, fmt.Errorf("fuse session: never initialised: %w", errdefs.ErrNotFound)
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return s, fmt.Errorf("fuse session: %v: %w", err, errdefs.ErrDataLoss)
	}
	if s.Version != sessionVersion || s.Major != kernelMajor || s.Minor < kernelMinor || s.MaxWrite == 0 || s.MaxWrite > maxWrite {
		return s, fmt.Errorf("fuse session: version %d, protocol %d.%d, %d bytes per request: not understood: %w", s.Version, s.Major, s.Minor, s.MaxWrite, errdefs.ErrUnimplemented)
	}
	return s, nil
}
