package inproc

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/moraine-storage/moraine/drivers/store"
)

// Opened is what OpenStore has found.
type Opened struct {
	Seconds  float64 `json:"seconds"`
	Replicas int     `json:"replicas"`
	Size     int64   `json:"size"` // bytes of the first replica
}

// SynthesizeStore makes a store in dir whose one replica has every extent of
// size bytes allocated, without writing the data.
func SynthesizeStore(dir string, size int64) error {
	_, err := store.Synthesize(dir, store.NewID(), size)
	return err
}

// OpenStore opens a store as an agent would, and tells how long that took.
// Then it waits until in ends: its process can be measured meanwhile.
func OpenStore(dir string, report func(Opened) error, in io.Reader) error {
	start := time.Now()
	s, err := store.Open(dir, store.Options{})
	if err != nil {
		return err
	}
	o := Opened{Seconds: time.Since(start).Seconds()}
	for i, r := range s.Replicas() {
		if i == 0 {
			o.Size = r.Size
		}
		o.Replicas++
	}
	if err := report(o); err != nil {
		return errors.Join(err, s.Close())
	}
	if _, err := io.Copy(io.Discard, in); err != nil {
		return errors.Join(fmt.Errorf("wait: %w", err), s.Close())
	}
	return s.Close()
}
