package hostmount

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// Goal: a child's system call fails with its own errno, and a child that cannot
// understand its command line is no errno at all.
func TestChild(t *testing.T) {
	none := filepath.Join(t.TempDir(), "none")
	for _, c := range []struct {
		args []string
		want error
	}{
		{[]string{childUmount, none, "8"}, unix.ENOENT},
		{[]string{childMount, none, none, Ext4, "0", ""}, unix.ENOENT},
		{[]string{childTrim, none}, unix.ENOENT},
		{[]string{childSync, none}, unix.ENOENT},
		{[]string{childLoop, none, none, "512", "0", "1"}, unix.ENOENT},
		{[]string{childGrow, none, none}, unix.ENOENT},
		{[]string{childRmdir, none}, unix.ENOENT},
		{[]string{childBlank, none}, unix.ENOENT},
		{[]string{childSmall, none}, unix.ENOENT},
		{[]string{childScheduler, "no-such-device", "none"}, unix.ENOENT},
		{[]string{childLoop, none, none, "512", "0"}, errdefs.ErrIndeterminate},
		{[]string{childUmount, none, "many"}, errdefs.ErrIndeterminate},
		{[]string{childUmount}, errdefs.ErrIndeterminate},
		{[]string{"dance"}, errdefs.ErrIndeterminate},
	} {
		_, err := child(t.Context(), time.Minute, c.args...)
		// Without root the kernel refuses before it looks.
		if !errors.Is(err, c.want) && !(errors.Is(c.want, unix.ENOENT) && errors.Is(err, unix.EPERM)) {
			t.Errorf("child %q: %v, want %v", c.args, err, c.want)
		}
	}
}
