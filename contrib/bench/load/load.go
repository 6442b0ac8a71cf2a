package load

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"time"

	"golang.org/x/sys/unix"
)

// Job is what Run does.
type Job struct {
	Write  bool
	Random bool
	Block  int   // bytes per request
	Depth  int   // requests in flight
	Offset int64 // of the range that is used
	Range  int64 // bytes; 0: to the end of the device
	Seed   uint64
	// Once visits every block of the range once, in order or in a random
	// permutation, and ends; Stride > Block visits one block per stride.
	Once   bool
	Stride int64
	// Time ends the job otherwise. Stop, if not nil, ends it too.
	Time time.Duration
	Stop <-chan struct{}
	// Watch, if not nil, is told of each request's submission and completion,
	// as the client saw them (per system call, not per request).
	Watch func(sent, done time.Time)
}

// Result of a job.
type Result struct {
	Ops     int64
	Bytes   int64
	Elapsed time.Duration
}

// IOPS is operations per second.
func (r Result) IOPS() float64 { return float64(r.Ops) / r.Elapsed.Seconds() }

// MiBps is mebibytes per second.
func (r Result) MiBps() float64 { return float64(r.Bytes) / (1 << 20) / r.Elapsed.Seconds() }

// Run does a job on a connection that nobody else uses.
func (c *Conn) Run(j Job) (Result, error) {
	var res Result
	if j.Range == 0 {
		j.Range = c.Size - j.Offset
	}
	if j.Stride == 0 {
		j.Stride = int64(j.Block)
	}
	if j.Block <= 0 || j.Depth <= 0 || j.Range < j.Stride || j.Offset < 0 || j.Offset+j.Range > c.Size {
		return res, fmt.Errorf("job of %d bytes at depth %d over %d bytes at %d of %d: impossible", j.Block, j.Depth, j.Range, j.Offset, c.Size)
	}
	r := &runner{c: c, j: j, res: &res, blocks: j.Range / j.Stride, rand: rand.New(rand.NewPCG(j.Seed, 11))}
	err := locked(r.run)
	return res, err
}

type runner struct {
	c      *Conn
	j      Job
	res    *Result
	rand   *rand.Rand
	blocks int64
	next   int64 // in order: number of the next request
	order  []int32
	out    []byte
	sent   []time.Time // by cookie
	free   []uint32    // cookies
	skip   int         // payload of a read still to come
	flying int
	ended  bool
	now    time.Time
}

func (r *runner) run() error {
	if r.j.Once && r.j.Random {
		r.order = make([]int32, r.blocks)
		for i, v := range r.rand.Perm(int(r.blocks)) {
			r.order[i] = int32(v)
		}
	}
	// Payload of writes is not zeros and differs between requests; it stays
	// in place in the output buffer, only headers are written anew.
	unit := requestSize
	if r.j.Write {
		unit += r.j.Block
	}
	r.out = make([]byte, unit*r.j.Depth)
	for i := range r.out {
		r.out[i] = byte(i*7 + i>>9)
	}
	r.sent = make([]time.Time, r.j.Depth)
	for i := range r.j.Depth {
		r.free = append(r.free, uint32(i))
	}
	start := time.Now()
	r.now = start
	in := make([]byte, min(max(1<<18, r.j.Block+replySize), 1<<20))
	have := 0
	for {
		if err := r.fill(unit, start); err != nil {
			return err
		}
		if r.flying == 0 && r.skip == 0 {
			break
		}
		n, err := unix.Read(r.c.fd, in[have:])
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return fmt.Errorf("receive: %w", err)
		case n == 0:
			return fmt.Errorf("receive: the server closed the connection with %d requests in flight", r.flying)
		}
		r.now = time.Now()
		rest, err := r.parse(in[:have+n])
		if err != nil {
			return err
		}
		have = copy(in, rest)
	}
	r.res.Elapsed = time.Since(start)
	return nil
}

// fill sends as many requests as the depth allows, by one system call.
func (r *runner) fill(unit int, start time.Time) error {
	if !r.j.Once && !r.ended && r.now.Sub(start) >= r.j.Time {
		r.ended = true
	}
	select {
	case <-r.j.Stop:
		r.ended = true
	default:
	}
	n := 0
	for len(r.free) > 0 && !r.ended {
		at, ok := r.where()
		if !ok {
			r.ended = true
			break
		}
		cookie := r.free[len(r.free)-1]
		r.free = r.free[:len(r.free)-1]
		r.sent[cookie] = r.now
		r.header(r.out[n*unit:], cookie, at)
		n++
	}
	r.flying += n
	return r.c.send(r.out[:n*unit])
}

func (r *runner) header(b []byte, cookie uint32, at int64) {
	binary.BigEndian.PutUint32(b, requestMagic)
	b[4], b[5], b[6], b[7] = 0, 0, 0, cmdRead
	if r.j.Write {
		b[7] = cmdWrite
		binary.BigEndian.PutUint64(b[requestSize:], uint64(at)^r.j.Seed)
	}
	binary.BigEndian.PutUint64(b[8:], uint64(cookie))
	binary.BigEndian.PutUint64(b[16:], uint64(at))
	binary.BigEndian.PutUint32(b[24:], uint32(r.j.Block))
}

// where returns the next offset, or false when a job of one pass has ended.
func (r *runner) where() (int64, bool) {
	n := r.next
	r.next++
	switch {
	case r.j.Once && n >= r.blocks:
		return 0, false
	case r.order != nil:
		n = int64(r.order[n])
	case r.j.Random:
		n = r.rand.Int64N(r.blocks)
	default:
		n %= r.blocks
	}
	return r.j.Offset + n*r.j.Stride, true
}

// parse takes complete replies off b and returns what is left of it.
func (r *runner) parse(b []byte) ([]byte, error) {
	for {
		if r.skip > 0 {
			n := min(r.skip, len(b))
			r.skip -= n
			b = b[n:]
			if r.skip > 0 {
				return b, nil
			}
		}
		if len(b) < replySize {
			return b, nil
		}
		if magic := binary.BigEndian.Uint32(b); magic != replyMagic {
			return nil, fmt.Errorf("reply magic %#x", magic)
		}
		cookie := binary.BigEndian.Uint64(b[8:])
		if errno := binary.BigEndian.Uint32(b[4:]); errno != 0 {
			return nil, fmt.Errorf("request failed with errno %d", errno)
		}
		if cookie >= uint64(r.j.Depth) {
			return nil, fmt.Errorf("reply with cookie %d, depth %d", cookie, r.j.Depth)
		}
		b = b[replySize:]
		if !r.j.Write {
			r.skip = r.j.Block
		}
		r.flying--
		r.res.Ops++
		r.res.Bytes += int64(r.j.Block)
		r.free = append(r.free, uint32(cookie))
		if r.j.Watch != nil {
			r.j.Watch(r.sent[cookie], r.now)
		}
	}
}

// Flush makes the server flush, and waits for it.
func (c *Conn) Flush() error {
	var b [requestSize]byte
	binary.BigEndian.PutUint32(b[:], requestMagic)
	b[7] = cmdFlush
	if err := c.send(b[:]); err != nil {
		return err
	}
	got := 0
	var in [replySize]byte
	for got < replySize {
		n, err := unix.Read(c.fd, in[got:])
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return fmt.Errorf("flush: %d bytes, %w", n, err)
		}
		got += n
	}
	if binary.BigEndian.Uint32(in[:]) != replyMagic || binary.BigEndian.Uint32(in[4:]) != 0 {
		return fmt.Errorf("flush: reply % x", in)
	}
	return nil
}
