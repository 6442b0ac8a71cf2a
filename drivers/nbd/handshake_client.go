package nbd

import (
	"errors"
	"fmt"
	"io"
)

// ClientHandshake negotiates one connection from the client's side.
type ClientHandshake struct {
	Export string // "" is the server's default
	// StartTLS upgrades after the server has acknowledged; nil: plaintext.
	StartTLS func() (io.ReadWriter, error)
	// Contexts to ask for; those the server has are in Negotiated.Contexts.
	Contexts []string
	// NoStructured and NoExtended keep the client from asking.
	NoStructured, NoExtended bool
}

// clientState is one run of a ClientHandshake.
type clientState struct {
	*ClientHandshake
	rw  io.ReadWriter
	neg Negotiated
}

// Run speaks the client's side until the transmission phase begins. A refusal
// of the server is a *ReplyError; the caller sets deadlines and closes.
func (h *ClientHandshake) Run(rw io.ReadWriter) (*Negotiated, error) {
	s := &clientState{ClientHandshake: h, rw: rw}
	if err := s.start(); err != nil {
		return nil, fmt.Errorf("nbd handshake: %w", err)
	}
	if err := s.options(); err != nil {
		return nil, fmt.Errorf("nbd handshake: %w", err)
	}
	if err := s.goExport(); err != nil {
		return nil, fmt.Errorf("nbd handshake: export %q: %w", h.Export, err)
	}
	return &s.neg, nil
}

// List returns the exports that a server lists, then ends the handshake.
func (h *ClientHandshake) List(rw io.ReadWriter) ([]ExportEntry, error) {
	s := &clientState{ClientHandshake: h, rw: rw}
	if err := s.start(); err != nil {
		return nil, fmt.Errorf("nbd handshake: %w", err)
	}
	var list []ExportEntry
	err := s.ask(OptList, nil, func(typ uint32, p []byte) error {
		d := decoder{p: p}
		name := d.str()
		if typ != RepServer || d.bad || len(d.p) > MaxString || !validString(string(d.p)) {
			return protocolErrorf("malformed answer to LIST")
		}
		list = append(list, ExportEntry{Name: name, Description: string(d.p)})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("nbd handshake: %w", err)
	}
	_ = s.send(OptAbort, nil) // the list is here: whether the good-bye arrives changes nothing
	return list, nil
}

// start exchanges greetings and upgrades to TLS.
func (s *clientState) start() error {
	p, err := readFull(s.rw, 18)
	if err != nil {
		return err
	}
	if be.Uint64(p) != MagicNBD {
		return protocolErrorf("greeting %#x", be.Uint64(p))
	}
	if be.Uint64(p[8:]) != MagicOption {
		return protocolErrorf("oldstyle server")
	}
	flags := be.Uint16(p[16:])
	if flags&FlagFixedNewstyle == 0 {
		return protocolErrorf("server without fixed newstyle")
	}
	cf := FlagCFixedNewstyle
	if flags&FlagNoZeroes != 0 {
		cf |= FlagCNoZeroes
	}
	if _, err := s.rw.Write(be.AppendUint32(nil, cf)); err != nil {
		return err
	}
	if s.StartTLS == nil {
		return nil
	}
	if err := s.ask(OptStartTLS, nil, nil); err != nil {
		return err
	}
	rw, err := s.StartTLS()
	if err != nil {
		return fmt.Errorf("STARTTLS: %w", err)
	}
	s.rw, s.neg.TLS = rw, true
	return nil
}

// options asks for what is optional; a server that refuses one is taken without it.
func (s *clientState) options() error {
	if s.NoStructured {
		return nil
	}
	if !s.NoExtended {
		ok, err := s.try(OptExtendedHeaders, nil, nil)
		if err != nil {
			return err
		}
		s.neg.Extended, s.neg.Structured = ok, ok
	}
	if !s.neg.Structured {
		ok, err := s.try(OptStructuredReply, nil, nil)
		if err != nil {
			return err
		}
		s.neg.Structured = ok
	}
	if !s.neg.Structured || len(s.Contexts) == 0 {
		return nil
	}
	r := appendMetaRequest(nil, metaRequest{name: s.Export, queries: s.Contexts})
	_, err := s.try(OptSetMetaContext, r, func(typ uint32, p []byte) error {
		if typ != RepMetaContext || len(p) < 4 || len(p) > 4+MaxString || len(s.neg.Contexts) >= MaxContexts {
			return protocolErrorf("malformed answer to SET_META_CONTEXT")
		}
		s.neg.Contexts = append(s.neg.Contexts, Context{ID: be.Uint32(p), Name: string(p[4:])})
		return nil
	})
	return err
}

func (s *clientState) goExport() error {
	seen := false
	r := appendInfoRequest(nil, infoRequest{name: s.Export, infos: []uint16{InfoName, InfoBlockSize}})
	s.neg.Name = s.Export
	err := s.ask(OptGo, r, func(typ uint32, p []byte) error {
		d := decoder{p: p}
		k := d.u16()
		if typ != RepInfo || d.bad {
			return protocolErrorf("malformed answer to GO")
		}
		switch k {
		case InfoExport:
			s.neg.Size, s.neg.Flags = d.u64(), d.u16()
			seen = true
		case InfoBlockSize:
			s.neg.BlockSize = BlockSize{Min: d.u32(), Preferred: d.u32(), Max: d.u32()}
			if b := s.neg.BlockSize; b.Min == 0 || b.Min&(b.Min-1) != 0 || b.Min > 64<<10 || b.Max < b.Min {
				return protocolErrorf("block sizes %d, %d, %d", b.Min, b.Preferred, b.Max)
			}
		case InfoName:
			if len(d.p) > MaxString || !validString(string(d.p)) {
				return protocolErrorf("malformed export name")
			}
			s.neg.Name, d.p = string(d.p), nil
		default:
			return nil // kinds of later years
		}
		if d.bad || len(d.p) != 0 {
			return protocolErrorf("malformed answer to GO, kind %d", k)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if !seen {
		return protocolErrorf("no size in the answer to GO")
	}
	if s.neg.Size > 1<<63-1 {
		return protocolErrorf("export of %d bytes", s.neg.Size)
	}
	return nil
}

func (s *clientState) send(opt uint32, payload []byte) error {
	p := be.AppendUint64(nil, MagicOption)
	p = be.AppendUint32(p, opt)
	p = be.AppendUint32(p, uint32(len(payload)))
	_, err := s.rw.Write(append(p, payload...))
	return err
}

// try is ask where an error reply is an answer too.
func (s *clientState) try(opt uint32, payload []byte, each func(uint32, []byte) error) (bool, error) {
	err := s.ask(opt, payload, each)
	var re *ReplyError
	if errors.As(err, &re) {
		return false, nil
	}
	return err == nil, err
}

// ask sends an option and hands each reply before the acknowledgment to each.
func (s *clientState) ask(opt uint32, payload []byte, each func(typ uint32, p []byte) error) error {
	if err := s.send(opt, payload); err != nil {
		return err
	}
	for range MaxOptionReplies {
		typ, p, err := s.readReply(opt)
		if err != nil {
			return err
		}
		switch {
		case IsErrorReply(typ):
			if !validString(string(p)) {
				p = nil
			}
			return &ReplyError{Option: opt, Type: typ, Msg: string(p)}
		case typ == RepAck:
			return nil
		case each == nil:
			return protocolErrorf("reply %d to option %d", typ, opt)
		}
		if err := each(typ, p); err != nil {
			return err
		}
	}
	return protocolErrorf("more than %d replies to option %d", MaxOptionReplies, opt)
}

func (s *clientState) readReply(opt uint32) (typ uint32, p []byte, err error) {
	var h [optionReplySize]byte
	if _, err := io.ReadFull(s.rw, h[:]); err != nil {
		return 0, nil, err
	}
	if be.Uint64(h[:]) != MagicOptionReply || be.Uint32(h[8:]) != opt {
		return 0, nil, protocolErrorf("reply %x to option %d", h[:], opt)
	}
	typ, n := be.Uint32(h[12:]), be.Uint32(h[16:])
	if n > MaxOptionReply {
		return 0, nil, protocolErrorf("reply of %d bytes to option %d", n, opt)
	}
	p, err = readFull(s.rw, int(n))
	return typ, p, err
}
