package local

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/backends"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

var sampleID = identity{ID: "6ba7b810-9dad-11d1-80b4-00c04fd430c8", Created: time.Unix(1700000000, 0).UTC(), Serial: "S3", Size: 1 << 30,
	Spec: spec{Size: 1 << 30, Class: "ssd", Source: "/dev/disk/by-id/x"}}

// goldenIdentity is format 1 for ever.
const goldenIdentity = `MORAINE-DRIVE 1 211 5a827b99
{
 "id": "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
 "created": "2023-11-14T22:13:20Z",
 "serial": "S3",
 "size": 1073741824,
 "spec": {
  "size": 1073741824,
  "class": "ssd",
  "source": "/dev/disk/by-id/x"
 }
}
`

func TestIdentityGolden(t *testing.T) {
	p, err := sampleID.encode()
	if err != nil || string(p) != goldenIdentity {
		t.Errorf("encoded: %v\n%s", err, p)
	}
	got, err := decodeIdentity([]byte(goldenIdentity))
	if err != nil || !cmp.Equal(got, sampleID) {
		t.Errorf("decoded: %+v, %v", got, err)
	}
}

func FuzzIdentity(f *testing.F) {
	f.Add([]byte(goldenIdentity))
	f.Add([]byte("MORAINE-DRIVE 2 0 00000000\n"))
	f.Add([]byte("MORAINE-DRIVE 1 0 00000000\n"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, p []byte) {
		id, err := decodeIdentity(p)
		if err != nil {
			if !errdefs.HasClass(err) {
				t.Fatalf("error without a class: %v", err)
			}
			return
		}
		if id.ID.Check() != nil || id.Size < backends.MinDriveSize {
			t.Fatalf("accepted %+v", id)
		}
		q, err := id.encode()
		if err != nil {
			return // texts that grow by escaping
		}
		again, err := decodeIdentity(q)
		if err != nil || !cmp.Equal(again, id) {
			t.Fatalf("%+v became %+v, %v", id, again, err)
		}
	})
}

func FuzzXFS(f *testing.F) {
	p := make([]byte, 512)
	copy(p, "XFSB")
	copy(p[108:], labelDrive)
	f.Add(p)
	f.Add([]byte("XFSB"))
	f.Fuzz(func(t *testing.T, p []byte) {
		if sb, ok := parseXFS(p); ok && (len(sb.id) != 36 || len(sb.label) > 12) {
			t.Fatalf("%+v", sb)
		}
		_ = signature(p)
	})
}

func FuzzMounts(f *testing.F) {
	f.Add([]byte("36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n"))
	f.Add([]byte("1 2 3:4 / / ro - x y\n\n - \n"))
	f.Fuzz(func(_ *testing.T, p []byte) { parseMounts(p) })
}

func TestParseMounts(t *testing.T) {
	got := parseMounts([]byte(`22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
36 35 98:0 /mnt1 /mnt\0402\134 rw,noatime master:1 - xfs /dev/loop0 ro,errors=continue
nonsense
40 22 259:300 / /x ro - xfs /dev/y rw
`))
	want := []mounted{
		{unix.Mkdev(8, 1), "/", "ext4", false},
		{unix.Mkdev(98, 0), `/mnt 2\`, "xfs", true},
		{unix.Mkdev(259, 300), "/x", "xfs", true},
	}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(mounted{})); d != "" {
		t.Error(d)
	}
}

func TestSampleOffsets(t *testing.T) {
	for _, size := range []int64{minDevice, minDevice + 512, 1 << 40, 123456789012} {
		last := int64(0)
		for _, off := range sampleOffsets(size) {
			if off < 0 || off >= size || off%pageSize != 0 {
				t.Errorf("size %d: offset %d", size, off)
			}
			last = max(last, off)
		}
		if last+zeroSample < size {
			t.Errorf("size %d: the end is not looked at", size)
		}
	}
}

// TestSignatures: each row is found where it says it is.
func TestSignatures(t *testing.T) {
	for _, s := range signatures {
		p := make([]byte, zeroEdge)
		copy(p[s.off:], s.magic)
		if got := signature(p); got != s.name {
			t.Errorf("%s: got %q", s.name, got)
		}
		if signature(p[:s.off]) != "" {
			t.Errorf("%s: found in what is too short", s.name)
		}
	}
	if signature(bytes.Repeat([]byte{0}, zeroEdge)) != "" {
		t.Error("zeros have a signature")
	}
}

func TestParseXFS(t *testing.T) {
	p := make([]byte, 512)
	copy(p, "XFSB")
	binary.BigEndian.PutUint32(p[32:], 0x6ba7b810)
	copy(p[108:], labelNew)
	p[126] = 1
	sb, ok := parseXFS(p)
	if !ok || sb.label != labelNew || !sb.inProgress || !strings.HasPrefix(string(sb.id), "6ba7b810-0000") {
		t.Errorf("%+v, %v", sb, ok)
	}
}

func TestReserve(t *testing.T) {
	c := &config{}
	for total, want := range map[int64]int64{0: reserveMin, 1 << 30: (1 << 30) / 50, 1 << 50: reserveMax} {
		if got := c.reserve(total); got != want {
			t.Errorf("%d: %d, want %d", total, got, want)
		}
	}
}

// TestUnder: a path is never looked up on a file system that may not answer.
func TestUnder(t *testing.T) {
	all := []mounted{{dev: 1, point: "/", fstype: "ext4"}, {dev: 2, point: "/run/x", fstype: "fuse"}, {dev: 1, point: "/run/x/back", fstype: "ext4"}}
	for path, want := range map[string]bool{"/a": true, "/run/x/image": false, "/run/x": false, "/run/xy": true, "/run/x/back/f": true} {
		if under(all, path, 1) != want {
			t.Errorf("%s: %v", path, !want)
		}
	}
	if under(nil, "/a", 1) {
		t.Error("without mounts nothing is known")
	}
}
