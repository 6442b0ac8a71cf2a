package fuse

import (
	"bytes"
	"syscall"
	"testing"
	"unsafe"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// asBytes is the memory of one of go-fuse's structures: an independent
// statement of the protocol's layout.
func asBytes[T any](v *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v))
}

// msg builds a message of the kernel.
func msg(opcode uint32, unique, node uint64, body ...[]byte) []byte {
	b := bytes.Join(body, nil)
	h := make([]byte, inHeaderSize)
	le.PutUint32(h, uint32(inHeaderSize+len(b)))
	le.PutUint32(h[4:], opcode)
	le.PutUint64(h[8:], unique)
	le.PutUint64(h[16:], node)
	return append(h, b...)
}

// body cuts the header that go-fuse's request structures begin with.
func body[T any](v *T) []byte { return asBytes(v)[unsafe.Sizeof(gofuse.InHeader{}):] }

func TestDecodeAgainstGoFuse(t *testing.T) {
	var r request
	in := gofuse.ReadIn{Offset: 8192, Size: 4096, Flags: unix.O_DIRECT}
	if errno, ok := decode(msg(opRead, 7, imageNode, body(&in)), &r); errno != 0 || !ok || r.off != 8192 || r.size != 4096 || r.flags != unix.O_DIRECT || r.unique != 7 || r.node != imageNode {
		t.Errorf("read: %v %v %+v", errno, ok, r)
	}
	wr := gofuse.WriteIn{Offset: 512, Size: 3, Flags: unix.O_DSYNC}
	if errno, _ := decode(msg(opWrite, 8, imageNode, body(&wr), []byte("abc")), &r); errno != 0 || r.off != 512 || string(r.payload) != "abc" || r.flags != unix.O_DSYNC {
		t.Errorf("write: %v %+v", errno, r)
	}
	if errno, ok := decode(msg(opWrite, 8, imageNode, body(&wr), []byte("abcd")), &r); errno != syscall.EINVAL || !ok {
		t.Errorf("write with a byte too many: %v %v", errno, ok)
	}
	fa := gofuse.FallocateIn{Offset: 1, Length: 2, Mode: 3}
	if errno, _ := decode(msg(opFallocate, 9, imageNode, body(&fa)), &r); errno != 0 || r.off != 1 || r.size != 2 || r.mode != 3 {
		t.Errorf("fallocate: %v %+v", errno, r)
	}
	sa := gofuse.SetAttrIn{}
	sa.Valid, sa.Size = gofuse.FATTR_SIZE, 77
	if errno, _ := decode(msg(opSetattr, 9, imageNode, body(&sa)), &r); errno != 0 || r.valid != gofuse.FATTR_SIZE || r.newSize != 77 {
		t.Errorf("setattr: %v %+v", errno, r)
	}
	if errno, _ := decode(msg(opLookup, 1, rootNode, []byte("image\x00")), &r); errno != 0 || r.name != "image" {
		t.Errorf("lookup: %v %+v", errno, r)
	}
	if errno, _ := decode(msg(opLookup, 1, rootNode, []byte("image")), &r); errno != syscall.EINVAL {
		t.Errorf("lookup without its zero: %v", errno)
	}
	ext := msg(opLookup, 1, rootNode, []byte("image\x00"), make([]byte, 8))
	le.PutUint16(ext[36:], 1)
	if errno, _ := decode(ext, &r); errno != 0 || r.name != "image" {
		t.Errorf("lookup with an extension: %v %+v", errno, r)
	}
}

func TestEncodeAgainstGoFuse(t *testing.T) {
	buf := bytes.Repeat([]byte{0xff}, 256)
	a := &attr{ino: imageNode, size: 1 << 30, mode: unix.S_IFREG | 0o600, nlink: 1, blksize: 4096, unixSec: 99}
	want := gofuse.Attr{Ino: imageNode, Size: 1 << 30, Blocks: 1 << 21, Atime: 99, Mtime: 99, Ctime: 99, Mode: unix.S_IFREG | 0o600, Nlink: 1, Blksize: 4096}
	same := func(name string, got, want []byte) {
		t.Helper()
		if !bytes.Equal(got, want) {
			t.Errorf("%s:\n got %x\nwant %x", name, got, want)
		}
	}
	e := gofuse.EntryOut{NodeId: imageNode, Attr: want}
	same("entry", buf[:putEntry(buf, a)], asBytes(&e))
	ao := gofuse.AttrOut{Attr: want}
	same("attr", buf[:putAttr(buf, a)], asBytes(&ao))
	oo := gofuse.OpenOut{OpenFlags: 5}
	same("open", buf[:putOpen(buf, 5)], asBytes(&oo))
	so := gofuse.StatfsOut{Blocks: 256, Files: 1, Bsize: 4096, NameLen: 255, Frsize: 4096}
	same("statfs", buf[:putStatfs(buf, 1<<20, 4096)], asBytes(&so))
	oh := gofuse.OutHeader{Length: 20, Status: -5, Unique: 3}
	putOutHeader(buf, 20, syscall.EIO, 3)
	same("header", buf[:outHeaderSize], asBytes(&oh))
}

func TestNegotiate(t *testing.T) {
	in := gofuse.InitIn{Major: 7, Minor: 99, MaxReadAhead: 4096, Flags: 0xffffffff, Flags2: 0xffffffff}
	out := make([]byte, initOutSize)
	s, err := negotiate(msg(opInit, 1, 0, body(&in)), out)
	if err != nil {
		t.Fatal(err)
	}
	io := (*gofuse.InitOut)(unsafe.Pointer(&out[0]))
	if io.Major != 7 || io.Minor != ourMinor || io.MaxWrite != maxWrite || io.Flags64() != wanted || io.MaxBackground != maxBackground {
		t.Errorf("answer %+v", io)
	}
	if !s.canResend() {
		t.Error("resend was offered and not taken")
	}
	b, _ := s.marshal()
	if got, err := parseSession(b); err != nil || got.Flags != s.Flags || !bytes.Equal(got.Init, s.Init) {
		t.Errorf("session %+v, %v", got, err)
	}
	in.Flags, in.Flags2 = gofuse.CAP_ASYNC_READ, 0xffffffff
	if s, err := negotiate(msg(opInit, 1, 0, body(&in)), out); err != nil || s.canResend() || s.MaxWrite != 128<<10 {
		t.Errorf("without extended flags: %+v, %v", s, err)
	}
	in.Minor = 30
	if _, err := negotiate(msg(opInit, 1, 0, body(&in)), out); err == nil {
		t.Error("protocol 7.30 accepted")
	}
	for _, b := range [][]byte{nil, {1}, []byte("{}"), []byte(`{"version":1,"major":7,"minor":31,"max_write_bytes":99999999}`)} {
		if _, err := parseSession(b); err == nil {
			t.Errorf("session %q accepted", b)
		}
	}
}

func FuzzRequest(f *testing.F) {
	rd := gofuse.ReadIn{Offset: 8192, Size: 4096}
	f.Add(msg(opRead, 7, imageNode, body(&rd)))
	wr := gofuse.WriteIn{Offset: 512, Size: 3}
	f.Add(msg(opWrite, 8, imageNode, body(&wr), []byte("abc")))
	f.Add(msg(opLookup, 1, rootNode, []byte("image\x00")))
	f.Add(msg(opInit, 1, 0, make([]byte, 16)))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		var r request
		errno, ok := decode(b, &r)
		if !ok && errno == 0 {
			t.Error("refused without an error")
		}
		if ok && errno == 0 {
			if r.opcode == opWrite && int64(len(r.payload)) != r.size {
				t.Errorf("payload of %d bytes, size %d", len(r.payload), r.size)
			}
			if r.off < 0 || r.size < 0 {
				t.Errorf("offset %d, size %d", r.off, r.size)
			}
		}
		_, _ = negotiate(b, make([]byte, initOutSize))
	})
}

func FuzzSession(f *testing.F) {
	f.Add([]byte(`{"version":1,"major":7,"minor":45,"flags":3,"max_write_bytes":1048576,"init":"AAAA"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := parseSession(b); err == nil && (s.MaxWrite == 0 || s.MaxWrite > maxWrite) {
			t.Errorf("%+v", s)
		}
	})
}
