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
