package nbdserver

import (
	"testing"
	"unsafe"
)

// Goal: buffers are aligned, apart from each other, survive a trim, and large
// ones are given back when too many are kept.
func TestPool(t *testing.T) {
	var p pool
	defer p.close()
	for range 3 {
		var held []*buffer
		for _, n := range []int{1, 512, 4096, 4097, 65536, 65537, 1 << 20, 1<<20 + 512, 32 << 20, 32 << 20} {
			b, err := p.get(n)
			if err != nil {
				t.Fatal(err)
			}
			q := b.payload(n)
			if len(q) != n || cap(q) != n || uintptr(unsafe.Pointer(&q[0]))%4096 != 0 {
				t.Fatalf("buffer of %d: len %d, cap %d, at %p", n, len(q), cap(q), q)
			}
			q[0], q[n-1], b.mem[headRoom-1] = byte(len(held)), byte(len(held)), 0xff
			held = append(held, b)
		}
		for i, b := range held {
			if q := b.payload(1); q[0] != byte(i) {
				t.Fatalf("buffer %d was overwritten", i)
			}
			p.put(b)
		}
		if p.kept > poolKeep || p.kept < 0 {
			t.Fatalf("%d bytes are kept", p.kept)
		}
		s, err := p.getSlab()
		if err != nil {
			t.Fatal(err)
		}
		s.mem[len(s.mem)-1] = 1
		p.putSlab(s)
		p.trim()
		if p.kept != 0 || p.slabs != nil || p.used {
			t.Fatalf("after a trim: %d kept, slab %v, used %v", p.kept, p.slabs, p.used)
		}
	}
}

// Goal: small pieces of output join, payload keeps its place among them, and
// sent takes any number of bytes off.
func TestOutput(t *testing.T) {
	for step := 1; step < 40; step++ {
		var p pool
		var o output
		var want []byte
		put := func(n int, b byte) {
			q := o.room(n)
			for i := range q {
				q[i] = b
			}
			want = append(want, q...)
		}
		for i := range 700 { // several arenas
			put(16, byte(i))
			if i%100 == 0 {
				buf, err := p.get(64)
				if err != nil {
					t.Fatal(err)
				}
				for j := range buf.payload(64) {
					buf.payload(64)[j] = byte(i + j)
				}
				want = append(want, buf.payload(64)...)
				o.add(buf.payload(64), buf)
			}
		}
		if o.bytes != int64(len(want)) {
			t.Fatalf("%d bytes, want %d", o.bytes, len(want))
		}
		if len(o.segs) > 40 {
			t.Fatalf("%d pieces", len(o.segs))
		}
		for len(want) > 0 {
			n := min(step*7, len(want))
			for at := 0; at < n; {
				s := o.segs[o.head]
				k := min(n-at, len(s.p))
				if string(s.p[:k]) != string(want[at:at+k]) {
					t.Fatalf("step %d: differs %d from the end", step, len(want))
				}
				o.sent(k, &p)
				at += k
			}
			want = want[n:]
		}
		if !o.empty() || o.bytes != 0 {
			t.Fatalf("%d bytes left", o.bytes)
		}
		p.close()
	}
}
