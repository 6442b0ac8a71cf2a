package store

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"testing"

	"github.com/moraine-storage/moraine/drivers/vfs"
)

var sampleRecords = []*record{
	{typ: recFlush, covers: 9},
	{typ: recMap, maps: []mapEntry{{1, 2, 3}, {4, 5, 0}}},
	{typ: recUnmap, handle: 1, first: 2, n: 3},
	{typ: recCreate, handle: 1, spec: ReplicaSpec{ID: ID{1}, VolumeID: ID{2}, Size: ExtentSize, Grain: ExtentSize, Untracked: true}, from: 3, snap: ID{4}},
	{typ: recDelete, handle: 1},
	{typ: recFreeze, handle: 1, snap: ID{1}, when: 5},
	{typ: recDrop, handle: 1, snap: ID{1}, thaw: true},
	{typ: recRestore, handle: 1, snap: ID{1}},
	{typ: recGrow, handle: 1, size: 1 << 20},
	{typ: recPromise, handle: 1, prom: Promised{Epoch{1, 2}, SessionID{3}}, record: []byte("record")},
	{typ: recDirty, handle: 1, ranges: []regionRange{{1, 2}}},
	{typ: recClean, handle: 1, snap: ID{3}, stamp: Stamp{Epoch{1, 2}, 3}, ranges: []regionRange{{1, 2}, {7, 1}}},
	{typ: recTrack, handle: 1, flag: true},
	{typ: recSums, handle: 1, snap: ID{1}, sums: []sumEntry{{1, 2, 3}}},
}

func TestRecordRoundTrip(t *testing.T) {
	seen := map[recType]bool{}
	for _, r := range sampleRecords {
		got, err := decodeRecord(r.typ, r.encode(nil))
		if err != nil {
			t.Fatalf("%s: %v", r.typ, err)
		}
		if !reflect.DeepEqual(got, r) {
			t.Errorf("%s: %+v, want %+v", r.typ, got, r)
		}
		seen[r.typ] = true
	}
	for typ := recFlush; typ <= recSums; typ++ {
		if !seen[typ] {
			t.Errorf("no sample of %s", typ)
		}
	}
}

func FuzzRecord(f *testing.F) {
	for _, r := range sampleRecords {
		f.Add(uint16(r.typ), r.encode(nil))
	}
	f.Fuzz(func(t *testing.T, typ uint16, b []byte) {
		r, err := decodeRecord(recType(typ), b)
		if err != nil {
			return
		}
		// What decodes is applied or refused, never a panic; and encodes again.
		st := newState()
		defer st.close()
		if err := st.apply(&record{typ: recCreate, handle: 1, spec: ReplicaSpec{ID: ID{1}, Size: 4 << 20, Grain: ExtentSize}}); err != nil {
			t.Fatal(err)
		}
		_ = st.apply(r)
		if r2, err := decodeRecord(r.typ, r.encode(nil)); err != nil || !reflect.DeepEqual(r, r2) {
			t.Fatalf("%+v does not survive: %+v, %v", r, r2, err)
		}
	})
}

func FuzzSuperblock(f *testing.F) {
	sb := superblock{version: 1, gen: 3, drive: ID{1}, lossID: 4, sizeLimit: 1 << 30}
	f.Add(sb.encode()[:176])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, head []byte) {
		b := make([]byte, superSize) // short inputs keep the fuzzer quick
		copy(b, head)
		for _, fix := range []bool{false, true} {
			if fix {
				le.PutUint32(b[superSize-4:], checksum(b[:superSize-4]))
			}
			if s, err := decodeSuperblock("x", 0, b); err == nil {
				if s2, err := decodeSuperblock("x", 0, s.encode()); err != nil || *s2 != *s {
					t.Fatalf("%+v does not survive: %v", s, err)
				}
			}
		}
	})
}

// FuzzMeta puts arbitrary bytes in the place of a checkpoint's or a journal's,
// with and without sound checksums, and loads the store.
func FuzzMeta(f *testing.F) {
	m := sample(f)
	names, err := m.List("/d/meta")
	if err != nil {
		f.Fatal(err)
	}
	for i, n := range names {
		b, err := readAll(m, "/d/meta/"+n)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(i), uint32(0), b[:64])
		f.Add(uint8(i), uint32(512), b[512:min(len(b), 700)])
	}
	f.Fuzz(func(t *testing.T, which uint8, at uint32, b []byte) {
		if len(b) > 4096 {
			return
		}
		c := m.Kill()
		name := "/d/meta/" + names[int(which)%len(names)]
		h, err := c.Open(name, 0)
		if err != nil {
			t.Fatal(err)
		}
		size, err := h.Size()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := h.WriteAt(b, int64(at)%size); err != nil {
			t.Fatal(err)
		}
		resum(t, h)
		if _, err := Check("/d", CheckOptions{FS: c, BootID: csBoot(0), Data: true}); err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrNewer) {
			t.Fatalf("error of no class: %v", err)
		}
	})
}

// resum makes the checksums of a segment or checkpoint sound again, so that
// what is behind them is tried.
func resum(t *testing.T, h vfs.File) {
	size, _ := h.Size()
	b := make([]byte, size)
	if _, err := h.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	if len(b) < 1024 {
		return
	}
	le.PutUint32(b[508:], checksum(b[:508]))
	if [8]byte(b[:8]) == segMagic {
		num := le.Uint64(b[16:])
		for off := 512; off+recHeaderSize <= len(b); {
			n := int(le.Uint32(b[off+4:]))
			if n > len(b)-off-recHeaderSize {
				break
			}
			le.PutUint32(b[off+28:], uint32(num))
			le.PutUint32(b[off:], checksum(b[off+4:off+recHeaderSize+n]))
			off += (recHeaderSize + n + 7) &^ 7
		}
	} else {
		n := int(le.Uint32(b[512:]))
		if n <= len(b)-520 {
			le.PutUint32(b[516:], checksum(b[520:520+n]))
			for off := 520 + n; off < len(b)-4; {
				k := min(ckptBlock*nodeSize, len(b)-4-off)
				le.PutUint32(b[off+k:], checksum(b[off:off+k]))
				off += k + 4
			}
		}
	}
	if _, err := h.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
}

// FuzzStream reads streams made of arbitrary frame headers: the payload of a
// data frame is added, and its checksum made sound unless the last byte is odd.
func FuzzStream(f *testing.F) {
	seed := func(typ, length uint32, off uint64) []byte {
		b := le.AppendUint32(le.AppendUint32(nil, typ), length)
		return append(le.AppendUint64(b, off), 0, 0, 0, 0)
	}
	f.Add(true, bytes.Join([][]byte{seed(frameData, ExtentSize, 0), seed(frameHole, 2, ExtentSize), seed(frameEnd, 0, 2)}, nil))
	f.Add(false, []byte("short"))
	f.Fuzz(func(t *testing.T, sound bool, b []byte) {
		h := StreamHeader{Size: 1 << 20, Snapshot: ID{1}}
		in := h.encode()
		if !sound {
			in = nil
		}
		for n := 0; n < 20 && len(b) >= frameHead; n++ {
			head := bytes.Clone(b[:frameHead])
			b = b[frameHead:]
			var payload []byte
			if le.Uint32(head) == frameData {
				payload = zeros
			}
			if head[frameHead-1]&1 == 0 {
				le.PutUint32(head[16:], frameSum(head[:16], payload))
			}
			in = append(append(in, head...), payload...)
		}
		sr, err := NewStreamReader(bytes.NewReader(append(in, b...)))
		for err == nil {
			_, err = sr.frame()
		}
		if !errors.Is(err, io.EOF) && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrNewer) {
			t.Fatalf("error of no class: %v", err)
		}
	})
}
