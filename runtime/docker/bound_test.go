package docker

import (
	"strings"
	"testing"
)

const hostTable = `22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
90 22 7:3 / /run/moraine/mounts/a rw,noatime shared:40 - ext4 /dev/loop3 rw
91 22 7:4 / /run/moraine/mounts/b\040c rw,noatime - xfs /dev/loop4 rw
`

func TestBoundIn(t *testing.T) {
	const path = "/run/moraine/mounts/a"
	own, ok := mountedAt(hostTable, path)
	if !ok || own != (mountLine{id: "90", dev: "7:3", at: path, propagated: true}) {
		t.Fatalf("mount at %s: %+v", path, own)
	}
	if m, ok := mountedAt(hostTable, "/run/moraine/mounts/b c"); !ok || m.dev != "7:4" || m.propagated {
		t.Errorf("a path with a space: %+v", m)
	}
	if m, ok := mountedAt(hostTable, "/nowhere"); ok {
		t.Errorf("nothing is mounted there, got %+v", m)
	}
	other := strings.ReplaceAll(hostTable, "90 22", "190 122") // mounts of another namespace have other numbers
	for _, tc := range []struct {
		name, table string
		want        bool
	}{
		{"the agent's own mount", hostTable, false},
		{"its own mount, not shared", strings.ReplaceAll(hostTable, " shared:40", ""), false},
		{"a copy by propagation in a service's namespace", strings.ReplaceAll(other, "shared:40", "master:40"), false},
		{"a private copy elsewhere", strings.ReplaceAll(other, " shared:40", ""), true},
		{"a container", "50 49 7:3 / /data rw,noatime - ext4 /dev/loop3 rw\n", true},
		{"a folder of it in a container", "50 49 7:3 /sub /data rw - ext4 /dev/loop3 rw\n", true},
		{"a bind on the host", hostTable + "92 22 7:3 / /mnt rw shared:40 - ext4 /dev/loop3 rw\n", true},
		{"another volume in a container", "50 49 7:4 / /data rw - xfs /dev/loop4 rw\n", false},
		{"no mounts", "", false},
	} {
		if got := boundIn(tc.table, own); got != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}

// On a path where nothing is mounted there is no answer, and so no "idle".
func TestBoundElsewhereUnknown(t *testing.T) {
	if bound, err := boundElsewhere(t.TempDir()); err == nil || bound {
		t.Errorf("%v, %v; want an error", bound, err)
	}
}

func FuzzMountLine(f *testing.F) {
	for line := range strings.Lines(hostTable) {
		f.Add(line)
	}
	f.Add(`1 1 1:1 / \04 rw -`)
	f.Fuzz(func(t *testing.T, line string) {
		if m, ok := parseMountLine(line); ok && (m.dev == "" || m.at == "" && !strings.Contains(line, `\`)) {
			t.Errorf("%q parsed as %+v", line, m)
		}
	})
}
