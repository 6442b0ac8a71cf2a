//go:build integration

package guest_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moraine-storage/moraine/contrib/interop/guest"
)

// Goal: the harness itself: a script's output and exit code come back, disks
// and programs are there.
func TestScript(t *testing.T) {
	r, err := guest.Run(context.Background(), guest.Config{
		Script: "uname -s; mkfs.ext4 -q /dev/vda && mount -t ext4 /dev/vda /mnt && echo mounted; exit 5", Programs: []string{"mkfs.ext4"}, Disks: []int64{64 << 20},
		Modules: []string{"ext4"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if r.ExitCode != 5 || !strings.Contains(r.Output, "Linux\n") || !strings.Contains(r.Output, "mounted") {
		t.Errorf("exit code %d:\n%s", r.ExitCode, r.Output)
	}
}

// Goal: the driver of drivers/nbd/nbdkernel against a kernel that has nbd.
// Method: its tests, built here and run in a guest.
func TestKernelNBD(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "nbdkernel.test")
	build := exec.Command("go", "test", "-c", "-tags", "guest", "-o", bin, "github.com/moraine-storage/moraine/drivers/nbd/nbdkernel")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	pattern := os.Getenv("MORAINE_GUEST_RUN")
	if pattern == "" {
		pattern = "."
	}
	r, err := guest.Run(context.Background(), guest.Config{
		Files: map[string]string{"/nbdkernel.test": bin}, Programs: []string{"mkfs.ext4", "e2fsck", "fio"},
		Modules: []string{"nbd nbds_max=0", "ext4"},
		Script:  "/nbdkernel.test -test.v -test.timeout 15m -test.run '" + pattern + "'\ncode=$?\ndmesg | tail -n 20\nexit $code",
		Timeout: 18 * time.Minute, Log: os.Stderr,
	})
	if err != nil {
		t.Fatal(err)
	}
	if r.ExitCode != 0 {
		t.Errorf("exit code %d:\n%s", r.ExitCode, r.Output)
	}
	t.Log(r.Output)
}
