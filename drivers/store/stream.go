package store

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// A stream carries one view, or what changed since another. It is a header,
// frames and an end frame, each with a checksum; whoever reads it knows at
// every byte whether all before was sound.
//
//	header: magic 8 | version u32 | flags u32 (1: has a base) | size u64 | snapshot 16 | base 16 | CRC u32
//	frame:  type u32 | length u32 | offset u64 | CRC u32 of type, length, offset and payload | payload
//
// Frames come in order of offset. data has a payload of one extent; hole has
// none and its length in extents; end has none, and the number of frames
// before it as offset.
const (
	streamVersion = 1
	streamHead    = 8 + 4 + 4 + 8 + 16 + 16 + 4
	frameHead     = 20

	frameData = 1
	frameHole = 2
	frameEnd  = 3

	streamHasBase = 1
)

var streamMagic = [8]byte{'M', 'O', 'R', 'S', 'T', 'R', 'M', '1'}

// StreamHeader is what a stream says of itself.
type StreamHeader struct {
	Size     int64 // bytes
	Snapshot ID    // what it carries; zero: a top
	Base     *ID   // what it builds on; nil: nothing
}

func (h *StreamHeader) encode() []byte {
	b := make([]byte, 0, streamHead)
	b = append(b, streamMagic[:]...)
	b = le.AppendUint32(b, streamVersion)
	var flags uint32
	var base ID
	if h.Base != nil {
		flags, base = streamHasBase, *h.Base
	}
	b = le.AppendUint32(b, flags)
	b = le.AppendUint64(b, uint64(h.Size))
	b = append(b, h.Snapshot[:]...)
	b = append(b, base[:]...)
	return le.AppendUint32(b, checksum(b))
}

func decodeStreamHeader(b []byte) (*StreamHeader, error) {
	if len(b) < streamHead || [8]byte(b[:8]) != streamMagic {
		return nil, corrupt("stream", 0, "no layer stream")
	}
	if le.Uint32(b[streamHead-4:]) != checksum(b[:streamHead-4]) {
		return nil, corrupt("stream", 0, "header checksum")
	}
	if v := le.Uint32(b[8:]); v > streamVersion {
		return nil, tooNew("stream", v, streamVersion)
	}
	d := reader{b: b[12:streamHead]}
	flags := d.u32()
	h := &StreamHeader{Size: int64(d.u64()), Snapshot: d.id()}
	base := d.id()
	if flags&^streamHasBase != 0 || h.Size <= 0 || h.Size > MaxReplicaSize || h.Size%ExtentSize != 0 {
		return nil, corrupt("stream", 12, "flags %#x, size %d", flags, h.Size)
	}
	if flags&streamHasBase != 0 {
		h.Base = &base
	}
	return h, nil
}

// Send writes a view, or (base not nil) what changed since base, as a stream.
// Extents with a checksum are verified on the way; rot ends the stream.
func Send(w io.Writer, v, base *View) error {
	h := StreamHeader{Size: v.size, Snapshot: v.snap}
	if base != nil {
		if base.t != v.t {
			return fmt.Errorf("send: base is of another drive: %w", errdefs.ErrInvalidArgument)
		}
		b := base.snap
		h.Base = &b
	}
	bw := bufio.NewWriterSize(w, 256<<10)
	if _, err := bw.Write(h.encode()); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	frames := uint64(0)
	buf := make([]byte, ExtentSize)
	err := v.diff(base, func(off, length int64, hole bool) error {
		if hole {
			frames++
			return writeFrame(bw, frameHole, uint32(length>>extentShift), uint64(off), nil)
		}
		for end := off + length; off < end; off += ExtentSize {
			if _, err := v.ReadAt(buf, off); err != nil {
				return err
			}
			frames++
			if err := writeFrame(bw, frameData, ExtentSize, uint64(off), buf); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		err = writeFrame(bw, frameEnd, 0, frames, nil)
	}
	if err == nil {
		err = bw.Flush()
	}
	if err != nil {
		return fmt.Errorf("send: %w", err)
	}
	return nil
}

func writeFrame(w io.Writer, typ, length uint32, off uint64, payload []byte) error {
	var h [frameHead]byte
	le.PutUint32(h[0:], typ)
	le.PutUint32(h[4:], length)
	le.PutUint64(h[8:], off)
	le.PutUint32(h[16:], frameSum(h[:16], payload))
	if _, err := w.Write(h[:]); err != nil {
		return err
	}
	_, err := w.Write(payload)
	return err
}

func frameSum(head, payload []byte) uint32 {
	return checksumMore(checksum(head), payload)
}

// frame is one decoded frame.
type frame struct {
	typ     uint32
	off     int64
	extents int64
	payload []byte // of the reader's buffer
}

// StreamReader reads a stream frame by frame.
type StreamReader struct {
	Header StreamHeader
	r      io.Reader
	at     int64 // bytes read
	next   int64 // offset that the next frame must not be below
	frames uint64
	buf    []byte
	ended  bool
}

// NewStreamReader reads the header.
func NewStreamReader(r io.Reader) (*StreamReader, error) {
	sr := &StreamReader{r: bufio.NewReaderSize(r, 256<<10), buf: make([]byte, ExtentSize)}
	b := make([]byte, streamHead)
	if err := sr.read(b); err != nil {
		return nil, err
	}
	h, err := decodeStreamHeader(b)
	if err != nil {
		return nil, err
	}
	sr.Header = *h
	return sr, nil
}

func (sr *StreamReader) read(b []byte) error {
	n, err := io.ReadFull(sr.r, b)
	sr.at += int64(n)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return corrupt("stream", sr.at, "cut short")
	}
	return err
}

// frame returns the next frame, or io.EOF after a sound end.
func (sr *StreamReader) frame() (*frame, error) {
	if sr.ended {
		return nil, io.EOF
	}
	at := sr.at
	var h [frameHead]byte
	if err := sr.read(h[:]); err != nil {
		return nil, err
	}
	f := &frame{typ: le.Uint32(h[0:])}
	length, off := le.Uint32(h[4:]), le.Uint64(h[8:])
	if f.typ == frameData {
		if length != ExtentSize {
			return nil, corrupt("stream", at, "data of %d bytes", length)
		}
		f.payload = sr.buf
		if err := sr.read(f.payload); err != nil {
			return nil, err
		}
	}
	if frameSum(h[:16], f.payload) != le.Uint32(h[16:]) {
		return nil, corrupt("stream", at, "frame checksum")
	}
	switch f.typ {
	case frameEnd:
		if off != sr.frames || length != 0 {
			return nil, corrupt("stream", at, "%d frames before the end, not %d", sr.frames, off)
		}
		sr.ended = true
		return nil, io.EOF
	case frameData:
		f.extents = 1
	case frameHole:
		f.extents = int64(length)
	default:
		return nil, corrupt("stream", at, "frame type %d", f.typ)
	}
	size := uint64(sr.Header.Size)
	if off%ExtentSize != 0 || off > size || uint64(f.extents)<<extentShift > size-off || int64(off) < sr.next || f.extents == 0 {
		return nil, corrupt("stream", at, "frame at %d of %d extents", off, f.extents)
	}
	f.off = int64(off)
	sr.next = f.off + f.extents<<extentShift
	sr.frames++
	return f, nil
}
