package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrProtocol is wrapped by each error that says the peer's stream cannot be
// followed: the connection must be closed.
var ErrProtocol = errors.New("nbd protocol violation")

func protocolErrorf(format string, a ...any) error {
	return fmt.Errorf("%w: %s", ErrProtocol, fmt.Sprintf(format, a...))
}

var be = binary.BigEndian

// Request is the header of one request in the transmission phase.
type Request struct {
	Flags  uint16 // CmdFlag…
	Cmd    uint16 // Cmd…
	Cookie uint64 // chosen by the client, returned in the reply
	Off    uint64 // bytes
	Len    uint64 // bytes: of the effect; of the payload too for WRITE
}

// Payload returns how many bytes follow the header. Extended requests announce
// a payload by CmdFlagPayloadLen; a WRITE has one in either form.
func (r *Request) Payload(extended bool) uint64 {
	if r.Cmd == CmdWrite || extended && r.Flags&CmdFlagPayloadLen != 0 {
		return r.Len
	}
	return 0
}

// DecodeRequest reads a compact request from p, which has RequestSize bytes or more.
func DecodeRequest(p []byte) (Request, error) {
	if len(p) < RequestSize {
		return Request{}, protocolErrorf("request of %d bytes", len(p))
	}
	_ = p[RequestSize-1]
	if m := be.Uint32(p); m != MagicRequest {
		return Request{}, protocolErrorf("request magic %#x", m)
	}
	return Request{
		Flags: be.Uint16(p[4:]), Cmd: be.Uint16(p[6:]), Cookie: be.Uint64(p[8:]),
		Off: be.Uint64(p[16:]), Len: uint64(be.Uint32(p[24:])),
	}, nil
}

// DecodeExtRequest reads an extended request from p, which has ExtRequestSize bytes or more.
func DecodeExtRequest(p []byte) (Request, error) {
	if len(p) < ExtRequestSize {
		return Request{}, protocolErrorf("extended request of %d bytes", len(p))
	}
	if m := be.Uint32(p); m != MagicExtRequest {
		return Request{}, protocolErrorf("extended request magic %#x", m)
	}
	return Request{
		Flags: be.Uint16(p[4:]), Cmd: be.Uint16(p[6:]), Cookie: be.Uint64(p[8:]),
		Off: be.Uint64(p[16:]), Len: be.Uint64(p[24:]),
	}, nil
}

// Put writes the compact form to p (RequestSize bytes). Len must fit 32 bits.
func (r *Request) Put(p []byte) {
	_ = p[RequestSize-1]
	be.PutUint32(p, MagicRequest)
	be.PutUint16(p[4:], r.Flags)
	be.PutUint16(p[6:], r.Cmd)
	be.PutUint64(p[8:], r.Cookie)
	be.PutUint64(p[16:], r.Off)
	be.PutUint32(p[24:], uint32(r.Len))
}

// PutExt writes the extended form to p (ExtRequestSize bytes).
func (r *Request) PutExt(p []byte) {
	_ = p[ExtRequestSize-1]
	be.PutUint32(p, MagicExtRequest)
	be.PutUint16(p[4:], r.Flags)
	be.PutUint16(p[6:], r.Cmd)
	be.PutUint64(p[8:], r.Cookie)
	be.PutUint64(p[16:], r.Off)
	be.PutUint64(p[24:], r.Len)
}

// PutSimpleReply writes a simple reply to p (SimpleReplySize bytes).
func PutSimpleReply(p []byte, errno uint32, cookie uint64) {
	_ = p[SimpleReplySize-1]
	be.PutUint32(p, MagicSimpleReply)
	be.PutUint32(p[4:], errno)
	be.PutUint64(p[8:], cookie)
}

// Chunk is the header of one chunk of a structured or extended reply.
type Chunk struct {
	Flags  uint16 // ChunkFlagDone
	Type   uint16 // Chunk…
	Cookie uint64
	Off    uint64 // extended only: the offset of the request
	Len    uint64 // bytes of payload that follow
}

// Done says whether this is the last chunk of its reply.
func (c *Chunk) Done() bool { return c.Flags&ChunkFlagDone != 0 }

// Put writes the structured form to p (ChunkSize bytes).
func (c *Chunk) Put(p []byte) {
	_ = p[ChunkSize-1]
	be.PutUint32(p, MagicChunk)
	be.PutUint16(p[4:], c.Flags)
	be.PutUint16(p[6:], c.Type)
	be.PutUint64(p[8:], c.Cookie)
	be.PutUint32(p[16:], uint32(c.Len))
}

// PutExt writes the extended form to p (ExtChunkSize bytes).
func (c *Chunk) PutExt(p []byte) {
	_ = p[ExtChunkSize-1]
	be.PutUint32(p, MagicExtChunk)
	be.PutUint16(p[4:], c.Flags)
	be.PutUint16(p[6:], c.Type)
	be.PutUint64(p[8:], c.Cookie)
	be.PutUint64(p[16:], c.Off)
	be.PutUint64(p[24:], c.Len)
}

// ReplyHeader is what a client reads first of any reply.
type ReplyHeader struct {
	Simple bool
	Errno  uint32 // simple only
	Chunk         // Cookie is set for simple ones too
}

// ReplyHeaderSize returns how long the header is that begins with the four
// bytes p, given what was negotiated; an error when no such reply may come.
func ReplyHeaderSize(p []byte, structured, extended bool) (int, error) {
	if len(p) < 4 {
		return 0, protocolErrorf("reply of %d bytes", len(p))
	}
	switch m := be.Uint32(p); {
	case m == MagicExtChunk && extended:
		return ExtChunkSize, nil
	case m == MagicChunk && structured && !extended:
		return ChunkSize, nil
	case m == MagicSimpleReply && !extended:
		return SimpleReplySize, nil
	default:
		return 0, protocolErrorf("reply magic %#x", m)
	}
}

// DecodeReplyHeader reads the header that p begins with; p has as many bytes
// as ReplyHeaderSize said.
func DecodeReplyHeader(p []byte) (ReplyHeader, error) {
	if len(p) < SimpleReplySize {
		return ReplyHeader{}, protocolErrorf("reply header of %d bytes", len(p))
	}
	switch m := be.Uint32(p); {
	case m == MagicSimpleReply:
		return ReplyHeader{Simple: true, Errno: be.Uint32(p[4:]),
			Chunk: Chunk{Flags: ChunkFlagDone, Cookie: be.Uint64(p[8:])}}, nil
	case m == MagicChunk && len(p) >= ChunkSize:
		return ReplyHeader{Chunk: Chunk{Flags: be.Uint16(p[4:]), Type: be.Uint16(p[6:]),
			Cookie: be.Uint64(p[8:]), Len: uint64(be.Uint32(p[16:]))}}, nil
	case m == MagicExtChunk && len(p) >= ExtChunkSize:
		return ReplyHeader{Chunk: Chunk{Flags: be.Uint16(p[4:]), Type: be.Uint16(p[6:]),
			Cookie: be.Uint64(p[8:]), Off: be.Uint64(p[16:]), Len: be.Uint64(p[24:])}}, nil
	default:
		return ReplyHeader{}, protocolErrorf("reply magic %#x", m)
	}
}

// AppendErrorPayload appends the payload of a ChunkError.
func AppendErrorPayload(dst []byte, errno uint32, msg string) []byte {
	if len(msg) > MaxString {
		msg = msg[:MaxString]
	}
	dst = be.AppendUint32(dst, errno)
	dst = be.AppendUint16(dst, uint16(len(msg)))
	return append(dst, msg...)
}

// DecodeErrorPayload reads the payload of any error chunk. Types that are not
// known are read as far as all of them agree.
func DecodeErrorPayload(p []byte) (errno uint32, msg string, err error) {
	if len(p) < 6 || len(p) > MaxErrorPayload {
		return 0, "", protocolErrorf("error chunk of %d bytes", len(p))
	}
	n := int(be.Uint16(p[4:]))
	if n > len(p)-6 {
		return 0, "", protocolErrorf("error chunk: message of %d bytes in %d", n, len(p)-6)
	}
	errno = be.Uint32(p)
	if errno == 0 {
		return 0, "", protocolErrorf("error chunk without an error")
	}
	return errno, string(p[6 : 6+n]), nil
}
