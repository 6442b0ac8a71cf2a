package suite

import (
	"fmt"
	"slices"
	"time"
)

// Sample is one measurement of one target.
type Sample struct {
	IOPS  float64 `json:"iops,omitempty"`
	MiBps float64 `json:"mib_per_second,omitempty"`
	CPU   float64 `json:"cpu_us_per_io,omitempty"` // of the server's process
	MS    float64 `json:"ms,omitempty"`            // where a time was measured instead
}

// Figure is what was measured of one target under one workload.
type Figure struct {
	Group    string   `json:"group"`
	Workload string   `json:"workload"`
	Client   string   `json:"client"`
	Target   string   `json:"target"`
	Samples  []Sample `json:"samples"`
	Median   Sample   `json:"median"`
}

func (f *Figure) add(s Sample) {
	f.Samples = append(f.Samples, s)
	pick := func(get func(Sample) float64) float64 {
		var v []float64
		for _, s := range f.Samples {
			v = append(v, get(s))
		}
		return median(v)
	}
	f.Median = Sample{
		IOPS:  pick(func(s Sample) float64 { return s.IOPS }),
		MiBps: pick(func(s Sample) float64 { return s.MiBps }),
		CPU:   pick(func(s Sample) float64 { return s.CPU }),
		MS:    pick(func(s Sample) float64 { return s.MS }),
	}
}

// spread is the largest divided by the smallest sample.
func (f *Figure) spread() float64 {
	var v []float64
	for _, s := range f.Samples {
		v = append(v, max(s.IOPS, s.MS))
	}
	return slices.Max(v) / slices.Min(v)
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	m := len(v) / 2
	if len(v)%2 == 1 {
		return v[m]
	}
	return (v[m-1] + v[m]) / 2
}

func medianTime(v []time.Duration) time.Duration {
	var f []float64
	for _, d := range v {
		f = append(f, float64(d))
	}
	return time.Duration(median(f))
}

// Check compares one value with its floor.
type Check struct {
	Group string  `json:"group"`
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Bound float64 `json:"bound"`
	// AtMost: the bound is a ceiling; otherwise a floor.
	AtMost bool   `json:"at_most,omitempty"`
	Unit   string `json:"unit"`
	// Stretch figures may be missed, with an explanation.
	Stretch bool   `json:"stretch,omitempty"`
	Pass    bool   `json:"pass"`
	Note    string `json:"note,omitempty"`
}

func (c Check) bound() string {
	sign := "≥"
	if c.AtMost {
		sign = "≤"
	}
	return fmt.Sprintf("%s %s", sign, number(c.Bound, c.Unit))
}

func (c Check) verdict() string {
	switch {
	case c.Pass:
		return "pass"
	case c.Stretch:
		return "missed (stretch)"
	}
	return "MISS"
}

func number(v float64, unit string) string {
	switch {
	case unit == "×":
		return fmt.Sprintf("%.2f×", v)
	case v >= 100:
		return fmt.Sprintf("%.0f %s", v, unit)
	}
	return fmt.Sprintf("%.2f %s", v, unit)
}
