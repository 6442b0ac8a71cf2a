//go:build integration

package node

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// bin is the agent's binary, built from this source tree; MORAINE_BIN replaces it.
var bin string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests mount and use loop devices: run them as root")
		return 1
	}
	for _, prog := range []string{
		"blkid", "fio", "losetup", "mkfs.ext4", "mkfs.xfs", "mount", "nbdcopy", "nbdinfo", "qemu-img", "qemu-io", "umount", "e2fsck",
	} {
		if _, err := exec.LookPath(prog); err != nil {
			fmt.Fprintf(os.Stderr, "%v: `sh contrib/packages.sh test` installs it\n", err)
			return 1
		}
	}
	dir, err := os.MkdirTemp("", "mor-*.bin")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if bin = os.Getenv("MORAINE_BIN"); bin == "" {
		bin = filepath.Join(dir, "moraine")
		if err := build(bin, "../../../agent/cmd/moraine"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return m.Run()
}

// build makes a static binary of a package.
func build(to, pkg string) error {
	cmd := exec.Command("go", "build", "-o", to, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", pkg, err, out)
	}
	return nil
}
