package suite

import (
	"fmt"
	"path/filepath"
	"time"

	"github.com/moraine-storage/moraine/contrib/bench/inproc"
	"github.com/moraine-storage/moraine/contrib/bench/target"
)

// openGroup measures the opening of a store with 1 TiB of allocated map.
func (s *Suite) openGroup() error {
	const g, size = "open", int64(1) << 40
	dir := filepath.Join(s.disk, g)
	start := time.Now()
	if err := inproc.SynthesizeStore(dir, size); err != nil {
		return fmt.Errorf("make a store of 1 TiB: %w", err)
	}
	s.logf("made a store of 1 TiB in %v", time.Since(start).Round(time.Millisecond))
	var seconds, memory []float64
	for range s.rounds(3) {
		o, resident, err := target.OpenStore(dir)
		if err != nil {
			return err
		}
		if o.Replicas != 1 || o.Size != size {
			return fmt.Errorf("store has %d replicas, the first of %d bytes; want one of %d", o.Replicas, o.Size, size)
		}
		s.logf("opened in %.2f s, %.0f MiB", o.Seconds, float64(resident)/mib)
		seconds, memory = append(seconds, o.Seconds), append(memory, float64(resident)/mib)
	}
	s.ceiling(g, "open of 1 TiB of allocated map (median)", median(seconds), 2, "s")
	s.ceiling(g, "memory of the process that opened it", median(memory), 160, "MiB")
	return nil
}
