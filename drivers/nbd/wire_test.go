package nbd

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"strings"
	"testing"
)

func unhex(s string) []byte {
	p, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		panic(err)
	}
	return p
}

// Goal: the layout of the transmission phase, byte by byte, in both directions.
func TestGoldenTransmission(t *testing.T) {
	req := Request{Flags: CmdFlagFUA, Cmd: CmdWrite, Cookie: 0x1122334455667788, Off: 0x10000, Len: 0x1000}
	compact := unhex("25609513 0001 0001 1122334455667788 0000000000010000 00001000")
	extended := unhex("21e41c71 0001 0001 1122334455667788 0000000000010000 0000000000001000")
	p := make([]byte, RequestSize)
	if req.Put(p); !bytes.Equal(p, compact) {
		t.Errorf("compact request\n%x\n%x", p, compact)
	}
	p = make([]byte, ExtRequestSize)
	if req.PutExt(p); !bytes.Equal(p, extended) {
		t.Errorf("extended request\n%x\n%x", p, extended)
	}
	if got, err := DecodeRequest(compact); err != nil || got != req {
		t.Errorf("decoded %+v, %v", got, err)
	}
	if got, err := DecodeExtRequest(extended); err != nil || got != req {
		t.Errorf("decoded %+v, %v", got, err)
	}
	p = make([]byte, SimpleReplySize)
	simple := unhex("67446698 0000001c 1122334455667788")
	if PutSimpleReply(p, ENOSPC, req.Cookie); !bytes.Equal(p, simple) {
		t.Errorf("simple reply\n%x\n%x", p, simple)
	}
	if h, err := DecodeReplyHeader(simple); err != nil || !h.Simple || h.Errno != ENOSPC || h.Cookie != req.Cookie || !h.Done() {
		t.Errorf("decoded %+v, %v", h, err)
	}
	c := Chunk{Flags: ChunkFlagDone, Type: ChunkOffsetData, Cookie: req.Cookie, Len: 0x1008}
	structured := unhex("668e33ef 0001 0001 1122334455667788 00001008")
	p = make([]byte, ChunkSize)
	if c.Put(p); !bytes.Equal(p, structured) {
		t.Errorf("chunk\n%x\n%x", p, structured)
	}
	if h, err := DecodeReplyHeader(structured); err != nil || h.Simple || h.Chunk != c {
		t.Errorf("decoded %+v, %v", h, err)
	}
	c.Off = 0x10000
	ext := unhex("6e8a278c 0001 0001 1122334455667788 0000000000010000 0000000000001008")
	p = make([]byte, ExtChunkSize)
	if c.PutExt(p); !bytes.Equal(p, ext) {
		t.Errorf("extended chunk\n%x\n%x", p, ext)
	}
	if h, err := DecodeReplyHeader(ext); err != nil || h.Chunk != c {
		t.Errorf("decoded %+v, %v", h, err)
	}
	if got := AppendErrorPayload(nil, EIO, "bad"); !bytes.Equal(got, unhex("00000005 0003 626164")) {
		t.Errorf("error payload %x", got)
	}
	es := []Extent{{Len: 65536, Flags: 3}, {Len: 4096}}
	if got := AppendStatus(nil, 7, es, false); !bytes.Equal(got, unhex("00000007 00010000 00000003 00001000 00000000")) {
		t.Errorf("status %x", got)
	}
	if got := AppendStatus(nil, 7, es, true); !bytes.Equal(got, unhex("00000007 00000002 0000000000010000 0000000000000003 0000000000001000 0000000000000000")) {
		t.Errorf("extended status %x", got)
	}
}

// Goal: an extent above 4 GiB is cut in the compact form and ends the list.
func TestStatusCut(t *testing.T) {
	p := AppendStatus(nil, 1, []Extent{{Len: 1 << 40, Flags: 3}, {Len: 512}}, false)
	_, ext, err := DecodeStatus(nil, p, false)
	if err != nil || len(ext) != 1 || ext[0] != (Extent{Len: 1<<32 - 1<<20, Flags: 3}) {
		t.Fatalf("%v, %v", ext, err)
	}
}

func TestDecodersRefuse(t *testing.T) {
	for name, err := range map[string]error{
		"short request":      second(DecodeRequest(make([]byte, 27))),
		"request magic":      second(DecodeRequest(make([]byte, 28))),
		"short ext request":  second(DecodeExtRequest(make([]byte, 31))),
		"ext request magic":  second(DecodeExtRequest(make([]byte, 32))),
		"reply magic":        second(DecodeReplyHeader(make([]byte, 32))),
		"short reply":        second(DecodeReplyHeader(unhex("668e33ef 0001 0001 1122334455667788"))),
		"simple in extended": second(ReplyHeaderSize(unhex("67446698"), true, true)),
		"chunk in simple":    second(ReplyHeaderSize(unhex("668e33ef"), false, false)),
		"ext in structured":  second(ReplyHeaderSize(unhex("6e8a278c"), true, false)),
		"short size":         second(ReplyHeaderSize(unhex("6e8a27"), true, true)),
		"error of nothing":   third(DecodeErrorPayload(unhex("00000000 0000"))),
		"error message":      third(DecodeErrorPayload(unhex("00000005 0004 626164"))),
		"error short":        third(DecodeErrorPayload(unhex("00000005"))),
		"status empty":       third(DecodeStatus(nil, unhex("00000001"), false)),
		"status odd":         third(DecodeStatus(nil, unhex("00000001 00001000 000000"), false)),
		"status zero":        third(DecodeStatus(nil, unhex("00000001 00000000 00000000"), false)),
		"status count":       third(DecodeStatus(nil, unhex("00000001 00000002 0000000000001000 0000000000000000"), true)),
	} {
		if !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func second[A any](_ A, err error) error        { return err }
func third[A, B any](_ A, _ B, err error) error { return err }

// duplex is one side of a recorded conversation.
type duplex struct {
	io.Reader
	bytes.Buffer
}

func (d *duplex) Read(p []byte) (int, error) { return d.Reader.Read(p) }

// shelf is a Catalog of one export.
type shelf struct{ entered int }

func (s *shelf) Export(name string, enter bool) (*Export, error) {
	if name != "vol" && name != "" {
		return nil, &ReplyError{Type: RepErrUnknown, Msg: "no such export"}
	}
	if enter {
		s.entered++
	}
	return &Export{Name: "vol", Description: "d", Size: 1 << 20, Flags: FlagSendFlush | FlagSendDF,
		BlockSize: BlockSize{512, 4096, 1 << 25}, Contexts: func(q string) []string {
			if q == "" || q == "x:" || q == "x:a" {
				return []string{"x:a"}
			}
			return nil
		}}, nil
}

func (s *shelf) List() ([]ExportEntry, error) {
	return []ExportEntry{{Name: "vol", Description: "d"}}, nil
}

const (
	hello  = "4e42444d41474943 49484156454f5054 0003"
	cflags = "00000003"
	optm   = "49484156454f5054"
	repm   = "0003e889045565a9"
)

// Goal: what a server says in a handshake, byte by byte.
func TestGoldenServer(t *testing.T) {
	base := hex.EncodeToString([]byte(ContextAllocation))
	const (
		goVol   = optm + "00000007 0000000b 00000003 766f6c 0001 0003"
		goReply = repm + "00000007 00000003 0000000c 0000 0000000000100000 0005" +
			repm + "00000007 00000003 0000000e 0003 00000200 00001000 02000000" +
			repm + "00000007 00000001 00000000"
		goStructured = repm + "00000007 00000003 0000000c 0000 0000000000100000 0085" +
			repm + "00000007 00000003 0000000e 0003 00000200 00001000 02000000" +
			repm + "00000007 00000001 00000000"
	)
	for _, c := range []struct {
		name, in, out string
		fail          error // nil: transmission phase
	}{
		{"go", cflags + goVol, goReply, nil},
		{"structured", cflags + optm + "00000008 00000000" + goVol, repm + "00000008 00000001 00000000" + goStructured, nil},
		{"extended", cflags + optm + "0000000b 00000000" + goVol, repm + "0000000b 00000001 00000000" + goStructured, nil},
		{"export name", cflags + optm + "00000001 00000003 766f6c", "0000000000100000 0005", nil},
		{"export name with zeroes", "00000001" + optm + "00000001 00000003 766f6c", "0000000000100000 0005" + strings.Repeat("00", 124), nil},
		{"old client", "00000000" + optm + "00000001 00000000", "0000000000100000 0005" + strings.Repeat("00", 124), nil},
		{"abort", cflags + optm + "00000002 00000000", repm + "00000002 00000001 00000000", ErrAborted},
		{"list", cflags + optm + "00000003 00000000" + goVol, repm + "00000003 00000002 00000008 00000003 766f6c 64" + repm + "00000003 00000001 00000000" + goReply, nil},
		{"list with data", cflags + optm + "00000003 00000001 00" + goVol, repm + "00000003 80000003" + text("option takes no data") + goReply, nil},
		{"unknown option", cflags + optm + "00001000 00000003 010203" + goVol, repm + "00001000 80000001 00000000" + goReply, nil},
		{"unknown export", cflags + optm + "00000006 00000009 00000003 616263 0000" + goVol, repm + "00000006 80000006" + text("no such export") + goReply, nil},
		{"malformed info", cflags + optm + "00000006 00000009 00000009 616263 0000" + goVol, repm + "00000006 80000003" + text("malformed request") + goReply, nil},
		{"too big", cflags + optm + "00000006 00010000" + strings.Repeat("00", 65536) + goVol, repm + "00000006 80000009" + text("option is too long") + goReply, nil},
		{"starttls off", cflags + optm + "00000005 00000000" + goVol, repm + "00000005 80000002" + text("TLS is not enabled") + goReply, nil},
		{"meta before structured", cflags + optm + "0000000a 0000000b 00000003 766f6c 00000000" + goVol, repm + "0000000a 80000003" + text("structured replies first") + goReply, nil},
		{"structured after extended", cflags + optm + "0000000b 00000000" + optm + "00000008 00000000" + goVol,
			repm + "0000000b 00000001 00000000" + repm + "00000008 8000000a" + text("extended headers are in use") + goStructured, nil},
		{"set meta context", cflags + optm + "00000008 00000000" + optm + "0000000a 00000025 00000003 766f6c 00000002 0000000f" + base + "00000003 613a62" + goVol,
			repm + "00000008 00000001 00000000" + repm + "0000000a 00000004 00000013 00000001" + base + repm + "0000000a 00000001 00000000" + goStructured, nil},
		{"set all contexts is none", cflags + optm + "00000008 00000000" + optm + "0000000a 0000000b 00000003 766f6c 00000000" + goVol,
			repm + "00000008 00000001 00000000" + repm + "0000000a 00000001 00000000" + goStructured, nil},
		{"list all contexts", cflags + optm + "00000008 00000000" + optm + "00000009 0000000b 00000003 766f6c 00000000" + goVol,
			repm + "00000008 00000001 00000000" + repm + "00000009 00000004 00000013 00000000" + base + repm + "00000009 00000004 00000007 00000000 783a61" + repm + "00000009 00000001 00000000" + goStructured, nil},
		{"malformed meta", cflags + optm + "00000008 00000000" + optm + "0000000a 0000000c 00000003 766f6c 00000000 00" + goVol,
			repm + "00000008 00000001 00000000" + repm + "0000000a 80000003" + text("malformed request") + goStructured, nil},
		{"client flags", "00000080", "", ErrProtocol},
		{"option magic", cflags + "0000000000000000 00000007 00000000", "", ErrProtocol},
		{"huge option", cflags + optm + "00000007 ffffffff", "", ErrProtocol},
		{"cut off", cflags + optm + "0000", "", io.ErrUnexpectedEOF},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := &duplex{Reader: bytes.NewReader(unhex(c.in))}
			s := &shelf{}
			neg, err := (&ServerHandshake{Catalog: s}).Run(d)
			if !errors.Is(err, c.fail) || c.fail == nil && err != nil {
				t.Fatalf("error %v, want %v", err, c.fail)
			}
			if got, want := d.Bytes(), unhex(hello+c.out); !bytes.Equal(got, want) {
				t.Fatalf("sent\n%x\nwant\n%x", got, want)
			}
			if c.fail == nil && (s.entered != 1 || neg.Size != 1<<20 || neg.Name != "vol") {
				t.Fatalf("entered %d times, %+v", s.entered, neg)
			}
			if rest, _ := io.ReadAll(d.Reader); len(rest) != 0 {
				t.Fatalf("%d bytes not read", len(rest))
			}
		})
	}
}

// text is the length and the hex of an error message.
func text(s string) string {
	return hex.EncodeToString(be.AppendUint32(nil, uint32(len(s)))) + hex.EncodeToString([]byte(s))
}

// pipe is one end of an in-memory connection.
type pipe struct {
	io.Reader
	io.Writer
}

// both runs the two handshakes against each other.
func both(t *testing.T, c *ClientHandshake, s *ServerHandshake) (*Negotiated, *Negotiated, error) {
	t.Helper()
	cr, sw := io.Pipe()
	sr, cw := io.Pipe()
	type result struct {
		neg *Negotiated
		err error
	}
	ch := make(chan result, 1)
	go func() {
		neg, err := s.Run(pipe{sr, sw})
		_ = sw.Close()
		_ = sr.Close()
		ch <- result{neg, err}
	}()
	cn, cerr := c.Run(pipe{cr, cw})
	_ = cw.Close()
	_ = cr.Close()
	r := <-ch
	if cerr == nil && r.err != nil {
		t.Fatalf("client content, server: %v", r.err)
	}
	return cn, r.neg, cerr
}

func TestBothSides(t *testing.T) {
	for _, c := range []struct {
		name                 string
		client               ClientHandshake
		server               ServerHandshake
		structured, extended bool
		contexts             int
	}{
		{"all", ClientHandshake{Contexts: []string{ContextAllocation, "x:a", "y:b", "x:a"}}, ServerHandshake{}, true, true, 2},
		{"client without extended", ClientHandshake{NoExtended: true, Contexts: []string{ContextAllocation}}, ServerHandshake{}, true, false, 1},
		{"server without extended", ClientHandshake{Export: "vol"}, ServerHandshake{NoExtended: true}, true, false, 0},
		{"client simple", ClientHandshake{NoStructured: true, Contexts: []string{ContextAllocation}}, ServerHandshake{}, false, false, 0},
		{"server simple", ClientHandshake{Contexts: []string{ContextAllocation}}, ServerHandshake{NoStructured: true}, false, false, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.server.Catalog = &shelf{}
			cn, sn, err := both(t, &c.client, &c.server)
			if err != nil {
				t.Fatal(err)
			}
			for side, n := range map[string]*Negotiated{"client": cn, "server": sn} {
				if n.Structured != c.structured || n.Extended != c.extended || len(n.Contexts) != c.contexts || n.Name != "vol" ||
					n.Size != 1<<20 || n.BlockSize.Preferred != 4096 || n.Flags&FlagSendDF != 0 != c.structured {
					t.Errorf("%s: %+v", side, n)
				}
			}
		})
	}
}

// Goal: STARTTLS forgets what was negotiated before it, and a server that
// requires it tells nothing before.
func TestStartTLSForgets(t *testing.T) {
	in := cflags + optm + "00000003 00000000" + optm + "00000005 00000000"
	inner := &duplex{Reader: bytes.NewReader(unhex(optm + "00000005 00000000" + optm + "00000007 00000009 00000003 766f6c 0000"))}
	d := &duplex{Reader: bytes.NewReader(unhex(in))}
	h := ServerHandshake{Catalog: &shelf{}, TLS: TLSRequired, StartTLS: func() (io.ReadWriter, error) { return inner, nil }}
	neg, err := h.Run(d)
	if err != nil || !neg.TLS || neg.Structured {
		t.Fatalf("%+v, %v", neg, err)
	}
	want := hello + repm + "00000003 80000005" + text("this server requires TLS") + repm + "00000005 00000001 00000000"
	if !bytes.Equal(d.Bytes(), unhex(want)) {
		t.Fatalf("in the clear: %x", d.Bytes())
	}
	if !bytes.HasPrefix(inner.Bytes(), unhex(repm+"00000005 80000003"+text("TLS is in use already"))) {
		t.Fatalf("inside: %x", inner.Bytes())
	}
	// allowed: structured replies asked for in the clear are forgotten
	d = &duplex{Reader: bytes.NewReader(unhex(cflags + optm + "00000008 00000000" + optm + "00000005 00000000"))}
	inner = &duplex{Reader: bytes.NewReader(unhex(optm + "00000007 00000009 00000003 766f6c 0000"))}
	h = ServerHandshake{Catalog: &shelf{}, TLS: TLSAllowed, StartTLS: func() (io.ReadWriter, error) { return inner, nil }}
	if neg, err := h.Run(d); err != nil || neg.Structured {
		t.Fatalf("%+v, %v", neg, err)
	}
	// plaintext for EXPORT_NAME cannot be answered
	d = &duplex{Reader: bytes.NewReader(unhex(cflags + optm + "00000001 00000000"))}
	h.TLS = TLSRequired
	if _, err := h.Run(d); !errors.Is(err, ErrProtocol) {
		t.Fatal(err)
	}
}

// Goal: too many options end the handshake.
func TestManyOptions(t *testing.T) {
	in := append(unhex(cflags), bytes.Repeat(unhex(optm+"00001000 00000000"), MaxOptions+1)...)
	if _, err := (&ServerHandshake{Catalog: &shelf{}}).Run(&duplex{Reader: bytes.NewReader(in)}); !errors.Is(err, ErrProtocol) {
		t.Fatal(err)
	}
}

// Goal: hostile servers get an error from the client.
func TestHostileServers(t *testing.T) {
	ack := func(opt string) string { return repm + opt + "00000001 00000000" }
	pre := hello + repm + "0000000b 80000001 00000000" + repm + "00000008 80000001 00000000"
	for name, in := range map[string]string{
		"nothing":         "",
		"wrong greeting":  "0000000000000000 49484156454f5054 0003",
		"oldstyle":        "4e42444d41474943 00420281861253 000000",
		"not fixed":       "4e42444d41474943 49484156454f5054 0002",
		"wrong option":    hello + ack("00000007"),
		"huge reply":      hello + repm + "0000000b 80000001 7fffffff",
		"reply magic":     hello + "0003e889045565a8 0000000b 00000001 00000000",
		"surprise":        hello + repm + "0000000b 00000002 00000000",
		"go without size": pre + ack("00000007"),
		"short info":      pre + repm + "00000007 00000003 00000002 0000" + ack("00000007"),
		"long info":       pre + repm + "00000007 00000003 0000000d 0000 0000000000100000 0005 00" + ack("00000007"),
		"giant export":    pre + repm + "00000007 00000003 0000000c 0000 ffffffffffffffff 0005" + ack("00000007"),
		"block size 0":    pre + repm + "00000007 00000003 0000000e 0003 00000000 00001000 02000000" + ack("00000007"),
		"block size 3":    pre + repm + "00000007 00000003 0000000e 0003 00000003 00001000 02000000" + ack("00000007"),
		"refused":         pre + repm + "00000007 80000006 00000003 ffffff",
	} {
		if neg, err := (&ClientHandshake{Export: "vol"}).Run(&duplex{Reader: bytes.NewReader(unhex(in))}); err == nil {
			t.Errorf("%s: accepted: %+v", name, neg)
		}
	}
}
