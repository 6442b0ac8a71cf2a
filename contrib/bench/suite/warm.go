package suite

import (
	"os"
	"path/filepath"

	"github.com/moraine-storage/moraine/contrib/bench/target"
)

// warm writes a large file on tmpfs and removes it. In a virtual machine the
// first use of a page is many times slower than any other, and who comes first
// would pay for all. Once per run.
func (s *Suite) warm() error {
	if s.warmed {
		return nil
	}
	s.warmed = true
	s.logf("== warming memory")
	size := int64(14 * gib)
	if s.Quick {
		size = 4 * gib
	}
	file := filepath.Join(s.dir, "warm")
	if err := target.RawFile(file, size, true); err != nil {
		return err
	}
	return os.Remove(file)
}

// touch makes the machine own the memory that the next n bytes on tmpfs will
// take: a virtual machine gives what was free for seconds back to its host, and
// 64 KiB of it then take 200 µs to write instead of 25 (measured). Copies after
// a snapshot take new pages, so that a volume that is larger than what was in
// use lately would be charged for the host.
func (s *Suite) touch(n int64) error {
	file := filepath.Join(s.dir, "touch")
	if err := target.RawFile(file, n, true); err != nil {
		return err
	}
	return os.Remove(file)
}
