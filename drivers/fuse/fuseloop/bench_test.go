//go:build integration

package fuseloop_test

import (
	"encoding/json"
	"os"
	"strconv"
	"strings"
	"testing"
)

// BenchmarkFio measures the device as fio sees it, over a file in the
// directory that TMPDIR names (a tmpfs, to leave the medium out). For a
// comparison: nbdfuse over nbdkit file, with losetup --direct-io=on.
func BenchmarkFio(b *testing.B) {
	for _, c := range []struct{ name, rw, bs, depth string }{
		{"randread-4k-32", "randread", "4k", "32"}, {"randwrite-4k-32", "randwrite", "4k", "32"},
		{"randread-4k-1", "randread", "4k", "1"}, {"read-1m-4", "read", "1m", "4"},
	} {
		for _, inline := range []string{"", "1"} {
			b.Run(c.name+"-inline"+inline, func(b *testing.B) {
				h := newHost(b, 256<<20)
				h.env = []string{"MORAINE_TEST_INLINE=" + inline}
				a := h.start()
				run(b, "dd", "if=/dev/urandom", "of="+a.device, "bs=1M", "count=256", "oflag=direct", "status=none")
				before := cpuSeconds(b, a.cmd.Process.Pid)
				b.ResetTimer()
				out := run(b, "fio", "--name=x", "--filename="+a.device, "--rw="+c.rw, "--bs="+c.bs, "--iodepth="+c.depth, "--ioengine=libaio", "--direct=1",
					"--time_based", "--runtime=2", "--norandommap", "--output-format=json")
				b.StopTimer()
				var r struct {
					Jobs []struct{ Read, Write struct{ Iops float64 } }
				}
				if err := json.Unmarshal([]byte(out[strings.Index(out, "{"):]), &r); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(r.Jobs[0].Read.Iops+r.Jobs[0].Write.Iops, "IOPS")
				iops := r.Jobs[0].Read.Iops + r.Jobs[0].Write.Iops
				b.ReportMetric((cpuSeconds(b, a.cmd.Process.Pid)-before)*1e6/(2*iops), "us-cpu/IO")
				a.must("detach")
			})
		}
	}
}

func cpuSeconds(b *testing.B, pid int) float64 {
	b.Helper()
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		b.Fatal(err)
	}
	f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+2:]))
	user, _ := strconv.ParseFloat(f[11], 64)
	sys, _ := strconv.ParseFloat(f[12], 64)
	return (user + sys) / 100
}
