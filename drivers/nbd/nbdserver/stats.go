package nbdserver

import "github.com/moraine-storage/moraine/drivers/nbd"

// Stats counts what a loop did since it started. Bytes are those that clients
// asked for; failed requests count in Errors and not in their kind.
type Stats struct {
	Reads, Writes, Flushes, Trims, Zeroes, Caches, Statuses uint64
	ReadBytes, WriteBytes, TrimBytes, ZeroBytes             uint64
	Errors                                                  uint64 // requests answered with an error
	Dropped                                                 uint64 // requests not executed: their client had gone
	Connections                                             uint64 // taken over
	Broken                                                  uint64 // connections closed for a stream that could not be followed, or a socket error
	InFlight                                                int    // requests, now
	Open                                                    int    // connections, now
}

// Stats returns the counts as of the last round. Any goroutine.
func (l *Loop) Stats() Stats {
	l.shared.Lock()
	defer l.shared.Unlock()
	return l.shared.Stats
}

// publish shows the counts to other goroutines: once per round, not per request.
func (l *Loop) publish() {
	l.stats.InFlight, l.stats.Open = l.inflight, l.nconns
	l.shared.Lock()
	l.shared.Stats = l.stats
	l.shared.Unlock()
}

// count adds an executed request.
func (l *Loop) count(r *request, err error) {
	s, n := &l.stats, uint64(r.end-r.off)
	if err != nil {
		s.Errors++
		return
	}
	switch r.cmd {
	case nbd.CmdRead:
		s.Reads++
		s.ReadBytes += n
	case nbd.CmdWrite:
		s.Writes++
		s.WriteBytes += n
	case nbd.CmdFlush:
		s.Flushes++
	case nbd.CmdTrim:
		s.Trims++
		s.TrimBytes += n
	case nbd.CmdWriteZeroes:
		s.Zeroes++
		s.ZeroBytes += n
	case nbd.CmdCache:
		s.Caches++
	}
}
