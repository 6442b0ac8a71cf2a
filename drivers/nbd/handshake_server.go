package nbd

import (
	"errors"
	"fmt"
	"io"
)

// TLSMode says what a server does about STARTTLS.
type TLSMode uint8

// Modes of TLS (names of nbdkit's --tls).
const (
	TLSOff      TLSMode = iota // STARTTLS is refused
	TLSAllowed                 // a client may upgrade (exports may still insist)
	TLSRequired                // nothing but STARTTLS and ABORT before the upgrade
)

// Export is what a server tells of an export.
type Export struct {
	Name        string // canonical; sent when the client asks for it
	Description string // may be empty
	Size        uint64 // bytes
	Flags       uint16 // FlagHasFlags is added
	BlockSize   BlockSize
	// Contexts returns the names of the contexts, beside base:allocation, that
	// a query selects; "" asks for all, "ns:" for those of a namespace. May be nil.
	Contexts func(query string) []string
}

// ExportEntry is one line of NBD_OPT_LIST.
type ExportEntry struct {
	Name, Description string
}

// Catalog is what the handshake asks about exports. Errors that wrap a
// *ReplyError are sent as they are, others as RepErrUnknown without a text.
type Catalog interface {
	// Export looks name up ("" is the default export). enter is true when a
	// success starts the transmission phase: it is called at most once so.
	Export(name string, enter bool) (*Export, error)
	// List returns what may be listed to this client.
	List() ([]ExportEntry, error)
}

// ServerHandshake negotiates one connection. All fields but Catalog may be zero.
type ServerHandshake struct {
	Catalog Catalog
	TLS     TLSMode
	// StartTLS upgrades after the acknowledgment was written: it returns what
	// to talk through from then on. Needed unless TLS is TLSOff.
	StartTLS func() (io.ReadWriter, error)
	// NoStructured and NoExtended withhold those options (tests of old clients).
	NoStructured, NoExtended bool
}

// ErrAborted is returned by Run when the client ended the handshake politely.
var ErrAborted = errors.New("nbd handshake: client aborted")

// serverState is one run of a ServerHandshake.
type serverState struct {
	*ServerHandshake
	rw       io.ReadWriter
	noZeroes bool
	fixed    bool
	out      []byte // reply being built
	neg      Negotiated
	metaFor  string // export that neg.Contexts were selected for
}

// Run speaks the server's side over rw until the transmission phase begins or
// the handshake fails. The caller sets deadlines and closes the connection.
func (h *ServerHandshake) Run(rw io.ReadWriter) (*Negotiated, error) {
	s := &serverState{ServerHandshake: h, rw: rw}
	var hello []byte
	hello = be.AppendUint64(hello, MagicNBD)
	hello = be.AppendUint64(hello, MagicOption)
	hello = be.AppendUint16(hello, FlagFixedNewstyle|FlagNoZeroes)
	if _, err := rw.Write(hello); err != nil {
		return nil, fmt.Errorf("nbd handshake: %w", err)
	}
	p, err := readFull(rw, 4)
	if err != nil {
		return nil, fmt.Errorf("nbd handshake: %w", err)
	}
	flags := be.Uint32(p)
	if flags&^(FlagCFixedNewstyle|FlagCNoZeroes) != 0 {
		return nil, protocolErrorf("client flags %#x", flags)
	}
	s.fixed, s.noZeroes = flags&FlagCFixedNewstyle != 0, flags&FlagCNoZeroes != 0
	for range MaxOptions {
		done, err := s.option()
		if err != nil {
			return nil, err
		}
		if done {
			return &s.neg, nil
		}
	}
	return nil, protocolErrorf("more than %d options", MaxOptions)
}

// option reads one option and answers it; done starts the transmission phase.
func (s *serverState) option() (done bool, err error) {
	var head [optionHeaderSize]byte
	if _, err := io.ReadFull(s.rw, head[:]); err != nil {
		return false, fmt.Errorf("nbd handshake: %w", err)
	}
	if m := be.Uint64(head[:]); m != MagicOption {
		return false, protocolErrorf("option magic %#x", m)
	}
	opt, n := be.Uint32(head[8:]), be.Uint32(head[12:])
	if n > MaxOption {
		return false, s.tooBig(opt, n)
	}
	p, err := readFull(s.rw, int(n))
	if err != nil {
		return false, fmt.Errorf("nbd handshake: %w", err)
	}
	if !s.fixed && opt != OptExportName {
		return false, protocolErrorf("option %d of a client without fixed newstyle", opt)
	}
	if opt == OptAbort {
		_ = s.reply(opt, RepAck, nil) // the client may be gone already
		return false, ErrAborted
	}
	if s.TLS == TLSRequired && !s.neg.TLS && opt != OptStartTLS {
		if opt == OptExportName {
			return false, protocolErrorf("EXPORT_NAME before the required STARTTLS")
		}
		return false, s.fail(opt, RepErrTLSReqd, "this server requires TLS")
	}
	return s.dispatch(opt, p)
}

func (s *serverState) dispatch(opt uint32, p []byte) (done bool, err error) {
	switch opt {
	case OptExportName:
		return s.exportName(p)
	case OptList:
		return false, s.list(p)
	case OptStartTLS:
		return false, s.startTLS(p)
	case OptInfo, OptGo:
		return s.info(opt, p)
	case OptStructuredReply:
		if s.NoStructured {
			break
		}
		if s.neg.Extended {
			return false, s.fail(opt, RepErrExtHeadersReqd, "extended headers are in use")
		}
		return false, s.enable(opt, p, &s.neg.Structured)
	case OptExtendedHeaders:
		if s.NoStructured || s.NoExtended {
			break
		}
		if len(p) == 0 {
			s.neg.Structured = true
		}
		return false, s.enable(opt, p, &s.neg.Extended)
	case OptListMetaContext, OptSetMetaContext:
		if s.NoStructured {
			break
		}
		return false, s.metaContext(opt, p)
	}
	return false, s.fail(opt, RepErrUnsup, "")
}

// tooBig answers an option whose payload is beyond all sense, or gives up.
func (s *serverState) tooBig(opt, n uint32) error {
	if n > MaxOptionSkip || opt == OptExportName {
		return protocolErrorf("option %d of %d bytes", opt, n)
	}
	if err := skip(s.rw, int64(n)); err != nil {
		return fmt.Errorf("nbd handshake: %w", err)
	}
	return s.fail(opt, RepErrTooBig, "option is too long")
}

func (s *serverState) enable(opt uint32, p []byte, what *bool) error {
	if len(p) != 0 {
		return s.fail(opt, RepErrInvalid, "option takes no data")
	}
	*what = true
	return s.reply(opt, RepAck, nil)
}

func (s *serverState) reply(opt, typ uint32, payload []byte) error {
	s.appendReply(opt, typ, payload)
	return s.flush()
}

func (s *serverState) appendReply(opt, typ uint32, payload []byte) {
	s.out = be.AppendUint64(s.out, MagicOptionReply)
	s.out = be.AppendUint32(s.out, opt)
	s.out = be.AppendUint32(s.out, typ)
	s.out = be.AppendUint32(s.out, uint32(len(payload)))
	s.out = append(s.out, payload...)
}

func (s *serverState) flush() error {
	_, err := s.rw.Write(s.out)
	s.out = s.out[:0]
	if err != nil {
		return fmt.Errorf("nbd handshake: %w", err)
	}
	return nil
}

func (s *serverState) fail(opt, typ uint32, msg string) error {
	return s.reply(opt, typ, []byte(msg))
}

// failWith answers with what a Catalog returned.
func (s *serverState) failWith(opt uint32, err error) error {
	var re *ReplyError
	if errors.As(err, &re) {
		return s.fail(opt, re.Type, re.Msg)
	}
	return s.fail(opt, RepErrUnknown, "")
}

func (s *serverState) exportName(p []byte) (bool, error) {
	name := string(p)
	if len(p) > MaxString || !validString(name) {
		return false, protocolErrorf("malformed export name")
	}
	e, err := s.Catalog.Export(name, true)
	if err != nil {
		return false, fmt.Errorf("nbd handshake: EXPORT_NAME %q: %w", name, err) // no way to tell the client
	}
	s.enter(name, e)
	s.out = be.AppendUint64(s.out, s.neg.Size)
	s.out = be.AppendUint16(s.out, s.neg.Flags)
	if !s.noZeroes {
		s.out = append(s.out, make([]byte, exportNameZeroes)...)
	}
	return true, s.flush()
}

// enter fixes what was negotiated for the transmission phase.
func (s *serverState) enter(asked string, e *Export) {
	s.neg.Name, s.neg.Size = e.Name, e.Size
	s.neg.Flags = s.flags(e)
	s.neg.BlockSize = e.BlockSize
	if s.metaFor != asked {
		s.neg.Contexts = nil // contexts belong to one export (specification, SET_META_CONTEXT)
	}
}

func (s *serverState) flags(e *Export) uint16 {
	f := e.Flags | FlagHasFlags
	if !s.neg.Structured {
		f &^= FlagSendDF
	}
	return f
}

func (s *serverState) list(p []byte) error {
	if len(p) != 0 {
		return s.fail(OptList, RepErrInvalid, "option takes no data")
	}
	entries, err := s.Catalog.List()
	if err != nil {
		return s.failWith(OptList, err)
	}
	for _, e := range entries {
		s.appendReply(OptList, RepServer, append(appendString(nil, e.Name), e.Description...))
		if len(s.out) > MaxOption {
			if err := s.flush(); err != nil {
				return err
			}
		}
	}
	return s.reply(OptList, RepAck, nil)
}

func (s *serverState) startTLS(p []byte) error {
	switch {
	case len(p) != 0:
		return s.fail(OptStartTLS, RepErrInvalid, "option takes no data")
	case s.neg.TLS:
		return s.fail(OptStartTLS, RepErrInvalid, "TLS is in use already")
	case s.TLS == TLSOff || s.StartTLS == nil:
		return s.fail(OptStartTLS, RepErrPolicy, "TLS is not enabled")
	}
	if err := s.reply(OptStartTLS, RepAck, nil); err != nil {
		return err
	}
	rw, err := s.StartTLS()
	if err != nil {
		return fmt.Errorf("nbd handshake: STARTTLS: %w", err)
	}
	s.rw, s.neg, s.metaFor = rw, Negotiated{TLS: true}, "" // invariant 3
	return nil
}

func (s *serverState) info(opt uint32, p []byte) (bool, error) {
	r, err := decodeInfoRequest(p)
	if err != nil {
		return false, s.fail(opt, RepErrInvalid, "malformed request")
	}
	e, err := s.Catalog.Export(r.name, opt == OptGo)
	if err != nil {
		return false, s.failWith(opt, err)
	}
	q := be.AppendUint16(nil, InfoExport)
	q = be.AppendUint64(q, e.Size)
	q = be.AppendUint16(q, s.flags(e))
	s.appendReply(opt, RepInfo, q)
	if e.BlockSize != (BlockSize{}) { // always told: requests off these bounds are refused
		q = be.AppendUint16(q[:0], InfoBlockSize)
		q = be.AppendUint32(q, e.BlockSize.Min)
		q = be.AppendUint32(q, e.BlockSize.Preferred)
		q = be.AppendUint32(q, e.BlockSize.Max)
		s.appendReply(opt, RepInfo, q)
	}
	for i, k := range r.infos {
		if i >= 16 {
			break // there are four kinds
		}
		switch k {
		case InfoName:
			s.appendReply(opt, RepInfo, append(be.AppendUint16(nil, k), e.Name...))
		case InfoDescription:
			s.appendReply(opt, RepInfo, append(be.AppendUint16(nil, k), e.Description...))
		}
	}
	if opt == OptGo {
		s.enter(r.name, e)
	}
	return opt == OptGo, s.reply(opt, RepAck, nil)
}

func (s *serverState) metaContext(opt uint32, p []byte) error {
	r, err := decodeMetaRequest(p)
	if err != nil {
		return s.fail(opt, RepErrInvalid, "malformed request")
	}
	if !s.neg.Structured {
		return s.fail(opt, RepErrInvalid, "structured replies first")
	}
	e, err := s.Catalog.Export(r.name, false)
	if err != nil {
		return s.failWith(opt, err)
	}
	found := s.match(e, r.queries, opt == OptListMetaContext)
	if opt == OptSetMetaContext {
		s.neg.Contexts, s.metaFor = found, r.name
	}
	for _, c := range found {
		id := c.ID
		if opt == OptListMetaContext {
			id = 0
		}
		s.appendReply(opt, RepMetaContext, append(be.AppendUint32(nil, id), c.Name...))
	}
	return s.reply(opt, RepAck, nil)
}

// match returns the contexts that queries select, each once, numbered from 1.
// Wildcards ("base:", or no query at all) are for listing only.
func (s *serverState) match(e *Export, queries []string, listing bool) []Context {
	var found []Context
	add := func(name string) {
		for _, c := range found {
			if c.Name == name {
				return
			}
		}
		if len(found) < MaxContexts && len(name) <= MaxString {
			found = append(found, Context{ID: uint32(len(found) + 1), Name: name})
		}
	}
	if listing && len(queries) == 0 {
		queries = []string{""}
	}
	for _, q := range queries {
		if !listing && (q == "" || q[len(q)-1] == ':') {
			continue
		}
		if q == ContextAllocation || listing && (q == "" || q == "base:") {
			add(ContextAllocation)
		}
		if e.Contexts == nil {
			continue
		}
		for _, name := range e.Contexts(q) {
			add(name)
		}
	}
	return found
}
