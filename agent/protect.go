package agent

import (
	"os"

	"github.com/hashicorp/go-hclog"
	"github.com/moraine-storage/moraine/drivers"
	"golang.org/x/sys/unix"
)

// oomScore makes the kernel end almost anything else first: every container
// with a volume depends on the agent.
const oomScore = "-900"

// protections are what the agent asks of the kernel because the kernel may
// need it to free memory: writing back dirty pages of its own devices.
var protections = []struct {
	name, why, fix string
	do             func() error
}{
	{"I/O flusher", "the kernel may wait for the agent's own memory while it frees memory through the agent", "give the agent CAP_SYS_RESOURCE",
		func() error { return unix.Prctl(unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0) }},
	{"locked memory", "the agent's memory may be swapped out to a device that needs the agent", "raise the limit of locked memory (LimitMEMLOCK=infinity)",
		func() error { return unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT) }},
	{"out-of-memory score", "the kernel may end the agent when memory is short", "give the agent CAP_SYS_RESOURCE (OOMScoreAdjust=-900)",
		func() error { return os.WriteFile("/proc/self/oom_score_adj", []byte(oomScore), 0) }},
}

// protected holds the outcome of protect for the doctor; set once, before the
// API is there.
var protected []drivers.Support

// protect asks for all of them; what is refused is reported, not fatal.
func protect(logger hclog.Logger) {
	protected = nil
	for _, p := range protections {
		s := drivers.Support{Name: p.name, Available: true, Reason: "granted"}
		if err := p.do(); err != nil {
			logger.Debug("not granted", "protection", p.name, "error", err)
			s = drivers.Support{Name: p.name, Reason: err.Error() + ": " + p.why, Fix: p.fix}
		}
		protected = append(protected, s)
	}
}
