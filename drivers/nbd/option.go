package nbd

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// Negotiated is what both sides hold true once the handshake has ended.
type Negotiated struct {
	Name       string // canonical name of the export
	Size       uint64 // bytes
	Flags      uint16 // transmission flags (Flag…)
	Structured bool   // structured replies; also true when Extended is
	Extended   bool   // extended headers
	Contexts   []Context
	BlockSize  BlockSize // zero: the server did not say
	TLS        bool
}

// Context is a selected metadata context and the number that stands for it.
type Context struct {
	ID   uint32
	Name string
}

// BlockSize are the constraints of NBD_INFO_BLOCK_SIZE, in bytes.
type BlockSize struct {
	Min, Preferred, Max uint32
}

// ReplyError is an error reply to an option.
type ReplyError struct {
	Option uint32
	Type   uint32 // RepErr…
	Msg    string
}

func (e *ReplyError) Error() string {
	name := map[uint32]string{
		RepErrUnsup: "not supported", RepErrPolicy: "refused by policy", RepErrInvalid: "invalid",
		RepErrPlatform: "not supported by the platform", RepErrTLSReqd: "TLS required", RepErrUnknown: "no such export",
		RepErrShutdown: "server is shutting down", RepErrBlockSizeReqd: "block size must be negotiated",
		RepErrTooBig: "too big", RepErrExtHeadersReqd: "extended headers in use",
	}[e.Type]
	if name == "" {
		name = fmt.Sprintf("error %#x", e.Type)
	}
	if e.Msg == "" {
		return fmt.Sprintf("option %d: %s", e.Option, name)
	}
	return fmt.Sprintf("option %d: %s: %s", e.Option, name, e.Msg)
}

// infoRequest is the payload of INFO and GO.
type infoRequest struct {
	name  string
	infos []uint16
}

func decodeInfoRequest(p []byte) (infoRequest, error) {
	d := decoder{p: p}
	r := infoRequest{name: d.str()}
	n := int(d.u16())
	if d.bad || len(d.p) != 2*n {
		return infoRequest{}, protocolErrorf("malformed INFO or GO")
	}
	for range n {
		r.infos = append(r.infos, d.u16())
	}
	return r, nil
}

func appendInfoRequest(dst []byte, r infoRequest) []byte {
	dst = appendString(dst, r.name)
	dst = be.AppendUint16(dst, uint16(len(r.infos)))
	for _, i := range r.infos {
		dst = be.AppendUint16(dst, i)
	}
	return dst
}

// metaRequest is the payload of LIST_META_CONTEXT and SET_META_CONTEXT.
type metaRequest struct {
	name    string
	queries []string
}

func decodeMetaRequest(p []byte) (metaRequest, error) {
	d := decoder{p: p}
	r := metaRequest{name: d.str()}
	n := d.u32()
	if d.bad || n > MaxQueries {
		return metaRequest{}, protocolErrorf("malformed META_CONTEXT or more than %d queries", MaxQueries)
	}
	for range n {
		r.queries = append(r.queries, d.str())
	}
	if d.bad || len(d.p) != 0 {
		return metaRequest{}, protocolErrorf("malformed META_CONTEXT")
	}
	return r, nil
}

func appendMetaRequest(dst []byte, r metaRequest) []byte {
	dst = appendString(dst, r.name)
	dst = be.AppendUint32(dst, uint32(len(r.queries)))
	for _, q := range r.queries {
		dst = appendString(dst, q)
	}
	return dst
}

func appendString(dst []byte, s string) []byte {
	dst = be.AppendUint32(dst, uint32(len(s)))
	return append(dst, s...)
}

// decoder takes fields off a payload; bad is set when one is not there.
type decoder struct {
	p   []byte
	bad bool
}

func (d *decoder) take(n int) []byte {
	if d.bad || n > len(d.p) {
		d.bad = true
		return nil
	}
	q := d.p[:n]
	d.p = d.p[n:]
	return q
}

func (d *decoder) u16() uint16 {
	if q := d.take(2); q != nil {
		return be.Uint16(q)
	}
	return 0
}

func (d *decoder) u32() uint32 {
	if q := d.take(4); q != nil {
		return be.Uint32(q)
	}
	return 0
}

func (d *decoder) u64() uint64 {
	if q := d.take(8); q != nil {
		return be.Uint64(q)
	}
	return 0
}

// str takes a 32-bit length and that many bytes of a name.
func (d *decoder) str() string {
	n := d.u32()
	if n > MaxString {
		d.bad = true
		return ""
	}
	s := string(d.take(int(n)))
	if !validString(s) {
		d.bad = true
		return ""
	}
	return s
}

// validString is the specification's rule for strings: UTF-8 without NUL.
func validString(s string) bool { return utf8.ValidString(s) && !strings.ContainsRune(s, 0) }

// readFull reads n bytes into a new slice; n was compared with a limit before.
func readFull(r io.Reader, n int) ([]byte, error) {
	p := make([]byte, n)
	if _, err := io.ReadFull(r, p); err != nil {
		return nil, err
	}
	return p, nil
}

// skip reads n bytes and throws them away.
func skip(r io.Reader, n int64) error {
	_, err := io.CopyN(io.Discard, onlyReader{r}, n)
	return err
}

// onlyReader hides WriterTo, which may read more than it was asked for.
type onlyReader struct{ io.Reader }
