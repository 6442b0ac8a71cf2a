package nbd

import (
	"bytes"
	"io"
	"testing"
)

// FuzzRequest: any bytes decode to an error or to what encodes to the same.
func FuzzRequest(f *testing.F) {
	f.Add(unhex("25609513 0001 0001 1122334455667788 0000000000010000 00001000"))
	f.Add(unhex("21e41c71 0001 0001 1122334455667788 0000000000010000 0000000000001000"))
	f.Fuzz(func(t *testing.T, p []byte) {
		if r, err := DecodeRequest(p); err == nil {
			q := make([]byte, RequestSize)
			if r.Put(q); !bytes.Equal(q, p[:RequestSize]) {
				t.Fatalf("%x became %x", p, q)
			}
		}
		if r, err := DecodeExtRequest(p); err == nil {
			q := make([]byte, ExtRequestSize)
			if r.PutExt(q); !bytes.Equal(q, p[:ExtRequestSize]) {
				t.Fatalf("%x became %x", p, q)
			}
			if r.Payload(true) > r.Len {
				t.Fatal("payload beyond length")
			}
		}
	})
}

// FuzzReply: headers and payloads of replies.
func FuzzReply(f *testing.F) {
	f.Add(unhex("67446698 0000001c 1122334455667788"), true, true)
	f.Add(unhex("668e33ef 0001 0001 1122334455667788 00001008"), true, false)
	f.Add(unhex("6e8a278c 0001 0001 1122334455667788 0000000000010000 0000000000001008"), true, true)
	f.Add(unhex("00000005 0003 626164"), false, false)
	f.Add(unhex("00000007 00000002 0000000000010000 0000000000000003 0000000000001000 0000000000000000"), true, true)
	f.Fuzz(func(t *testing.T, p []byte, structured, extended bool) {
		if n, err := ReplyHeaderSize(p, structured, extended); err == nil && len(p) >= n {
			if _, err := DecodeReplyHeader(p[:n]); err != nil {
				t.Fatalf("a header of the right size and magic: %v", err)
			}
		}
		_, _ = DecodeReplyHeader(p)
		if errno, msg, err := DecodeErrorPayload(p); err == nil {
			if q := AppendErrorPayload(nil, errno, msg); !bytes.HasPrefix(p, q) {
				t.Fatalf("%x became %x", p, q)
			}
		}
		if id, ext, err := DecodeStatus(nil, p, extended); err == nil && (extended || !cut(ext)) {
			if q := AppendStatus(nil, id, ext, extended); !bytes.Equal(p, q) {
				t.Fatalf("%x became %x", p, q)
			}
		}
	})
}

// cut says that the compact form would shorten an extent.
func cut(ext []Extent) bool {
	for _, e := range ext {
		if e.Len > 1<<32-1<<20 {
			return true
		}
	}
	return false
}

// FuzzOptions: payloads of options.
func FuzzOptions(f *testing.F) {
	f.Add(appendInfoRequest(nil, infoRequest{name: "vol", infos: []uint16{1, 3}}))
	f.Add(appendMetaRequest(nil, metaRequest{name: "vol", queries: []string{ContextAllocation, "x:"}}))
	f.Fuzz(func(t *testing.T, p []byte) {
		if r, err := decodeInfoRequest(p); err == nil {
			if q := appendInfoRequest(nil, r); !bytes.Equal(p, q) {
				t.Fatalf("%x became %x", p, q)
			}
		}
		if r, err := decodeMetaRequest(p); err == nil {
			if q := appendMetaRequest(nil, r); !bytes.Equal(p, q) {
				t.Fatalf("%x became %x", p, q)
			}
		}
	})
}

// FuzzServerHandshake: whatever a client says, the server ends with an error
// or in the transmission phase of an export that was asked for.
func FuzzServerHandshake(f *testing.F) {
	f.Add(unhex(cflags+optm+"00000007 0000000b 00000003 766f6c 0001 0003"), false)
	f.Add(unhex(cflags+optm+"00000008 00000000"+optm+"0000000a 0000000b 00000003 766f6c 00000000"+optm+"00000001 00000000"), false)
	f.Add(unhex(cflags+optm+"00000005 00000000"+optm+"00000003 00000000"), true)
	f.Fuzz(func(t *testing.T, p []byte, tls bool) {
		d := &duplex{Reader: bytes.NewReader(p)}
		s := &shelf{}
		h := ServerHandshake{Catalog: s}
		if tls {
			h.TLS = TLSRequired
			h.StartTLS = func() (io.ReadWriter, error) { return d, nil }
		}
		neg, err := h.Run(d)
		if (err == nil) != (s.entered == 1) && s.entered != 0 {
			t.Fatalf("entered %d times, %v", s.entered, err)
		}
		if err == nil && (neg.Name != "vol" || tls && !neg.TLS || len(neg.Contexts) > MaxContexts) {
			t.Fatalf("%+v", neg)
		}
	})
}

// FuzzClientHandshake: whatever a server says, the client ends.
func FuzzClientHandshake(f *testing.F) {
	ok := hello + repm + "0000000b 00000001 00000000" + repm + "0000000a 00000004 00000013 00000001 626173653a616c6c6f636174696f6e" +
		repm + "0000000a 00000001 00000000" + repm + "00000007 00000003 0000000c 0000 0000000000100000 0005" + repm + "00000007 00000001 00000000"
	f.Add(unhex(ok))
	f.Add(unhex(hello + repm + "00000003 00000002 00000008 00000003 766f6c 64" + repm + "00000003 00000001 00000000"))
	f.Fuzz(func(t *testing.T, p []byte) {
		h := ClientHandshake{Export: "vol", Contexts: []string{ContextAllocation}}
		neg, err := h.Run(&duplex{Reader: bytes.NewReader(p)})
		if err == nil && (neg.Size > 1<<63-1 || len(neg.Contexts) > MaxContexts) {
			t.Fatalf("%+v", neg)
		}
		_, _ = h.List(&duplex{Reader: bytes.NewReader(p)})
	})
}
