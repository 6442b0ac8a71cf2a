package suite

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/moraine-storage/moraine/contrib/bench/load"
	"github.com/moraine-storage/moraine/contrib/bench/target"
)

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
)

// Clients.
const (
	byFio   = "fio"
	byBatch = "batched"
)

type workload struct {
	name   string
	write  bool
	random bool
	block  int
	depth  int
}

var workloads = []workload{
	{"4k random read, depth 1", false, true, 4 * kib, 1},
	{"4k random write, depth 1", true, true, 4 * kib, 1},
	{"4k random read, depth 32", false, true, 4 * kib, 32},
	{"4k random write, depth 32", true, true, 4 * kib, 32},
	{"1M sequential read, depth 8", false, false, mib, 8},
	{"1M sequential write, depth 8", true, false, mib, 8},
}

func (w workload) rw() string {
	name := map[bool]string{false: "read", true: "write"}[w.write]
	if w.random {
		return "rand" + name
	}
	return name
}

// measure runs one workload against a server for some seconds.
func measure(srv *target.Server, client string, w workload, seconds int) (Sample, error) {
	before, err := srv.CPU()
	if err != nil {
		return Sample{}, err
	}
	var ops int64
	var elapsed time.Duration
	if client == byFio {
		ops, elapsed, err = fioNBD(srv.URI(), w, seconds)
	} else {
		ops, elapsed, err = batched(srv, load.Job{
			Write: w.write, Random: w.random, Block: w.block, Depth: w.depth, Time: time.Duration(seconds) * time.Second,
			Seed: uint64(time.Now().UnixNano()),
		})
	}
	if err != nil {
		return Sample{}, fmt.Errorf("%s by %s on %s: %w", w.name, client, srv.Name, err)
	}
	after, err := srv.CPU()
	if err != nil {
		return Sample{}, err
	}
	return sampleOf(ops, w.block, elapsed, after-before), nil
}

func sampleOf(ops int64, block int, elapsed, cpu time.Duration) Sample {
	iops := float64(ops) / elapsed.Seconds()
	return Sample{IOPS: iops, MiBps: iops * float64(block) / mib, CPU: float64(cpu.Microseconds()) / float64(max(ops, 1))}
}

func batched(srv *target.Server, j load.Job) (int64, time.Duration, error) {
	c, err := load.Dial(srv.Socket, srv.Export)
	if err != nil {
		return 0, 0, err
	}
	r, err := c.Run(j)
	return r.Ops, r.Elapsed, errors.Join(err, c.Close())
}

// fioNBD runs fio's NBD client, for some seconds, or once over the device
// when seconds is 0.
func fioNBD(uri string, w workload, seconds int) (int64, time.Duration, error) {
	return fio(w, seconds, "--ioengine=nbd", "--uri="+uri)
}

// fioFile runs fio on a file or a device by libaio with direct I/O.
func fioFile(path string, w workload, seconds int) (int64, time.Duration, error) {
	return fio(w, seconds, "--ioengine=libaio", "--direct=1", "--filename="+path)
}

func fio(w workload, seconds int, where ...string) (int64, time.Duration, error) {
	args := append([]string{"--name=bench"}, where...)
	args = append(args, "--rw="+w.rw(), fmt.Sprintf("--bs=%d", w.block), fmt.Sprintf("--iodepth=%d", w.depth),
		fmt.Sprintf("--size=%d", volumeSize), "--norandommap", "--randrepeat=0", "--output-format=json")
	if seconds > 0 {
		args = append(args, fmt.Sprintf("--runtime=%d", seconds), "--time_based")
	}
	cmd := exec.Command("fio", args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return 0, 0, fmt.Errorf("fio: %w: %s", err, strings.TrimSpace(stderr.String()+string(out)))
	}
	return parseFio(out)
}

// parseFio reads the operations and the running time of a job of one
// direction. Warnings may come before the JSON.
func parseFio(out []byte) (int64, time.Duration, error) {
	type side struct {
		TotalIOs int64 `json:"total_ios"`
		Runtime  int64 `json:"runtime"` // ms
	}
	var doc struct {
		Jobs []struct {
			Error int  `json:"error"`
			R     side `json:"read"`
			W     side `json:"write"`
		} `json:"jobs"`
	}
	i := bytes.IndexByte(out, '{')
	if i < 0 {
		return 0, 0, fmt.Errorf("fio: no JSON in %q", out)
	}
	if err := json.Unmarshal(out[i:], &doc); err != nil {
		return 0, 0, fmt.Errorf("fio: %w", err)
	}
	if len(doc.Jobs) != 1 || doc.Jobs[0].Error != 0 {
		return 0, 0, fmt.Errorf("fio: %d jobs, or an error in one", len(doc.Jobs))
	}
	s := doc.Jobs[0].R
	if s.TotalIOs == 0 {
		s = doc.Jobs[0].W
	}
	if s.TotalIOs == 0 || s.Runtime == 0 {
		return 0, 0, errors.New("fio: nothing was done")
	}
	return s.TotalIOs, time.Duration(s.Runtime) * time.Millisecond, nil
}
