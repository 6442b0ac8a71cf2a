//go:build integration

package node

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Exit codes of the commands (moraine help exit-codes).
const (
	exitUsage        = 2
	exitNotFound     = 3
	exitPrecondition = 4
	exitExists       = 5
	exitUnavailable  = 6
	exitDenied       = 7
	exitNoSpace      = 8
	exitDataLoss     = 10
)

// Goal: each command of one node works on a real agent, and what it prints with
// -o json is JSON. The steps are one life of a volume.
func TestEveryCommand(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	a := newAgent(t, dir, [2]string{"p", "d1"})
	at := filepath.Join(dir, "mnt")
	if err := os.Mkdir(at, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		args string
		want string // in the answer
	}{
		{"version", `"version"`},
		{"status", `"ready": true`},
		{"doctor", `"checks"`},
		{"node list", `"n1"`},
		{"node show n1", `"alive": true`},
		{"pool list", `"drives": 1`},
		{"pool show p", `"name": "p"`},
		{"drive list", `"state": "ready"`},
		{"plugin list", `"state": "running"`},
		{"operation list", "[]"},
		{"volume create v --size 64MiB --fs ext4 --label app=db", `"67108864"`},
		{"volume create v --size 64MiB --fs ext4 --label app=db", `"67108864"`}, // said again
		{"volume create x --size 320MiB --fs xfs", `"xfs"`},
		{"volume list", `"DETACHED"`},
		{"volume show v", `"app": "db"`},
		{"volume update v --max-iops 1000", `"maxIops": "1000"`},
		{"volume attach v", `"/dev/`},
		{"volume detach v", `"DETACHED"`},
		{"volume mount v " + at, `"ATTACHED"`},
		{"snapshot create v@one", `"name": "one"`},
		{"snapshot list v", `"state": "ready"`},
		{"snapshot show v@one", `"one"`},
		{"volume unmount v " + at, `"DETACHED"`},
		{"volume resize v 96MiB", `"100663296"`},
		{"snapshot create v@two", `"two"`},
		{"snapshot diff v@one v@two", ""},
		{"volume clone v@one c", `"fromSnapshot": "v@one"`},
		{"volume mount c", `"ATTACHED"`},
		{"volume unmount c", `"DETACHED"`},
		{"volume export v", `nbd+unix:///v?socket=`},
		{"volume export v --stop", `"DETACHED"`},
		{"volume export v@one", `nbd+unix:///v@one?socket=`},
		{"volume export v@one --stop", ""},
		{"snapshot restore v@one", `"name": "v"`},
		{"volume mount x", `"ATTACHED"`},
		{"volume resize x 400MiB", `"419430400"`}, // online
		{"volume unmount x", `"DETACHED"`},
		{"snapshot delete v@one", `true`},
		{"snapshot delete v@two", `true`},
		{"volume delete v", `"existed": true`},
		{"volume delete c", `"existed": true`},
		{"volume delete x", `"existed": true`},
		{"events", `"volume.deleted"`},
	} {
		args := strings.Fields(step.args)
		r, err := a.cli(append(args, "-o", "json")...)
		if err != nil {
			t.Fatalf("%s: %v", step.args, err)
		}
		var v any
		if err := json.Unmarshal([]byte(r.stdout), &v); err != nil {
			t.Errorf("%s: %v in %s", step.args, err, r.stdout)
		}
		if !strings.Contains(r.stdout, step.want) {
			t.Errorf("%s: no %s in %s", step.args, step.want, r.stdout)
		}
		if strings.HasSuffix(args[1%len(args)], "list") { // for people, too
			if out := a.must(args...); step.want != "[]" && out == "" {
				t.Errorf("%s: an empty table", step.args)
			}
		}
	}
	if d := a.drive("p"); d.Replicas != 0 || d.UsedBytes != "0" {
		eventually(t, "space back", func() error {
			if d := a.drive("p"); d.UsedBytes != "0" {
				return fmt.Errorf("%+v", d)
			}
			return nil
		})
	}
	a.nothingLeft()
	// And the tools that need no agent.
	a.stop()
	for _, args := range []string{"drive check " + dir + "/d1", "drive check --data " + dir + "/d1", "replica list " + dir + "/d1", "config validate " + a.configPath()} {
		out := a.must(append(strings.Fields(args), "-o", "json")...)
		var v any
		if err := json.Unmarshal([]byte(out), &v); err != nil {
			t.Errorf("%s: %v in %s", args, err, out)
		}
	}
	a.refused(exitUnavailable, "agent", "status")
}

// state is everything that the API shows and a refused call must not change.
func (a *agent) state() string {
	a.t.Helper()
	return a.must("volume", "list", "-o", "json") + a.must("snapshot", "list", "-o", "json") + a.must("pool", "list", "-o", "json")
}

// Goal: bad input gets one clear line and its exit code, changes nothing, and the
// agent stays up.
func TestBadInput(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	a := newAgent(t, dir, [2]string{"p", "d1"})
	for _, v := range []string{"plain", "mounted", "attached", "exported", "snapped", "grown"} {
		a.must("volume", "create", v, "--size", "32MiB")
	}
	a.must("volume", "create", "raw", "--size", "32MiB", "--fs", "none")
	a.must("volume", "mount", "mounted")
	a.must("volume", "attach", "attached")
	a.must("volume", "export", "exported")
	a.must("snapshot", "create", "snapped@s")
	a.must("snapshot", "create", "mounted@s")
	type c struct {
		code  int
		words string
		args  string
	}
	long := strings.Repeat("a", 129)
	cases := []c{
		{exitUsage, "must not be negative", "volume create x --size=-1"},
		{exitUsage, "out of range", "volume create x --size 1EiB"},
		{exitUsage, "size", "volume create x --size 99999999999999999999"},
		{exitUsage, "size", "volume create x --size 10zorkmid"},
		{exitUsage, "out of range", "volume create x --size 1"},
		{exitUsage, "300MiB", "volume create x --size 32MiB --fs xfs"},
		{exitUsage, "ntfs", "volume create x --fs ntfs"},
		{exitUsage, "name", "volume create -- -x"},
		{exitUsage, "name", "volume create x/y"},
		{exitUsage, "name", "volume create ../x"},
		{exitUsage, "name", "volume create x@y"},
		{exitUsage, "name", "volume create " + long},
		{exitUsage, "name", "volume create é"},
		{exitUsage, "name", "volume create x."},
		{exitUsage, "unknown flag", "volume create x --colour blue"},
		{exitUsage, "", "volume create"},
		{exitUsage, "unknown command", "volume explode"},
		{exitUsage, "driver", "volume create x --driver carrier-pigeon"},
		{exitNoSpace, "replica", "volume create x --replicas 2"},
		{exitNotFound, "pool", "volume create x --pool nowhere"},
		{exitNotFound, "plain@none", "volume create x --from-snapshot plain@none"},
		{exitExists, "another spec", "volume create plain --size 64MiB"},
		{exitExists, "another spec", "volume create plain --fs xfs"},
		{exitNotFound, "nobody", "volume show nobody"},
		{exitNotFound, "nobody", "volume mount nobody"},
		{exitNotFound, "nobody", "volume export nobody"},
		{exitNotFound, "nobody", "volume resize nobody 1GiB"},
		{exitNotFound, "nobody", "snapshot create nobody@s"},
		{exitNotFound, "plain@none", "snapshot restore plain@none"},
		{exitNotFound, "plain@none", "volume export plain@none"},
		{exitPrecondition, "in use", "volume delete mounted"},
		{exitPrecondition, "attached", "volume delete attached"},
		{exitPrecondition, "attached", "volume delete exported"},
		{exitPrecondition, "snapshot", "volume delete snapped"},
		{exitUsage, "smaller", "volume resize plain 16MiB"},
		{exitUsage, "out of range", "volume resize plain 1EiB"},
		{exitPrecondition, "attached", "snapshot restore mounted@s"},
		{exitPrecondition, "file system", "volume mount raw"},
		{exitPrecondition, "attached", "volume export mounted"},
		{exitPrecondition, "attached", "volume mount exported"},
		{exitPrecondition, "attached", "volume attach exported"},
		{exitUsage, "", "snapshot create snapped@a/b"},
		{exitUsage, "output", "volume list -o xml"},
		{exitNotFound, "", "drive show 00000000000000000000000000000000"},
		{exitNotFound, "", "node show elsewhere"},
	}
	before := a.state()
	for _, c := range cases {
		a.refused(c.code, c.words, strings.Fields(c.args)...)
	}
	if after := a.state(); after != before {
		t.Errorf("refused calls changed something:\n%s\n%s", before, after)
	}
	// A mount point that is in use stays mounted, and says by whom.
	busy, err := os.Create(filepath.Join(a.volume("mounted").Attachments[0].Path, "open"))
	if err != nil {
		t.Fatal(err)
	}
	a.refused(exitPrecondition, "use", "volume", "unmount", "mounted")
	if err := busy.Close(); err != nil {
		t.Fatal(err)
	}
	a.alive()
	a.must("volume", "unmount", "mounted")
	a.must("volume", "detach", "attached")
	a.must("volume", "export", "exported", "--stop")
	a.nothingLeft()
}
