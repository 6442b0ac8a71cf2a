package nbdserver_test

import (
	"encoding/binary"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/moraine-storage/moraine/drivers/aio"
	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/block/memblock"
	"github.com/moraine-storage/moraine/drivers/nbd"
	"github.com/moraine-storage/moraine/drivers/nbd/internal/nbdtest"
	"github.com/moraine-storage/moraine/drivers/nbd/nbdserver"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// raw is a client that does what it is told, right or wrong.
type raw struct {
	net.Conn
	t   *testing.T
	neg nbd.Negotiated
}

func dial(t *testing.T, path string) net.Conn {
	t.Helper()
	nc, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	if err := nc.SetDeadline(time.Now().Add(nbdtest.Patience)); err != nil {
		t.Fatal(err)
	}
	return nc
}

func connect(t *testing.T, path string, h nbd.ClientHandshake) *raw {
	t.Helper()
	nc := dial(t, path)
	neg, err := h.Run(nc)
	if err != nil {
		t.Fatal(err)
	}
	return &raw{Conn: nc, t: t, neg: *neg}
}

var simple = nbd.ClientHandshake{NoStructured: true}

func (c *raw) send(r nbd.Request, payload []byte) {
	c.t.Helper()
	var p []byte
	if c.neg.Extended {
		p = make([]byte, nbd.ExtRequestSize)
		r.PutExt(p)
	} else {
		p = make([]byte, nbd.RequestSize)
		r.Put(p)
	}
	if _, err := c.Write(append(p, payload...)); err != nil {
		c.t.Fatal(err)
	}
}

// reply reads one simple reply (and n bytes of payload after a success).
func (c *raw) reply(n int) (cookie uint64, errno uint32, payload []byte) {
	c.t.Helper()
	p := make([]byte, nbd.SimpleReplySize)
	if _, err := io.ReadFull(c, p); err != nil {
		c.t.Fatalf("reply: %v", err)
	}
	h, err := nbd.DecodeReplyHeader(p)
	if err != nil || !h.Simple {
		c.t.Fatalf("reply %x: %v", p, err)
	}
	if h.Errno == 0 && n > 0 {
		payload = make([]byte, n)
		if _, err := io.ReadFull(c, payload); err != nil {
			c.t.Fatal(err)
		}
	}
	return h.Cookie, h.Errno, payload
}

// chunk reads one chunk of a structured or extended reply.
func (c *raw) chunk() (nbd.Chunk, []byte) {
	c.t.Helper()
	p := make([]byte, 4)
	if _, err := io.ReadFull(c, p); err != nil {
		c.t.Fatalf("reply: %v", err)
	}
	n, err := nbd.ReplyHeaderSize(p, c.neg.Structured, c.neg.Extended)
	if err != nil {
		c.t.Fatal(err)
	}
	p = append(p, make([]byte, n-4)...)
	if _, err := io.ReadFull(c, p[4:]); err != nil {
		c.t.Fatal(err)
	}
	h, err := nbd.DecodeReplyHeader(p)
	if err != nil || h.Simple {
		c.t.Fatalf("chunk %x: %v", p, err)
	}
	payload := make([]byte, h.Len)
	if _, err := io.ReadFull(c, payload); err != nil {
		c.t.Fatal(err)
	}
	return h.Chunk, payload
}

// do is one request of a client with simple replies.
func (c *raw) do(r nbd.Request, payload []byte) (errno uint32, data []byte) {
	c.t.Helper()
	n := 0
	if r.Cmd == nbd.CmdRead {
		n = int(r.Len)
	}
	c.send(r, payload)
	cookie, errno, data := c.reply(n)
	if cookie != r.Cookie {
		c.t.Fatalf("cookie %d, want %d", cookie, r.Cookie)
	}
	return errno, data
}

// works checks that the connection is alive and in step.
func (c *raw) works() {
	c.t.Helper()
	if errno, _ := c.do(nbd.Request{Cmd: nbd.CmdRead, Cookie: 77, Len: 512}, nil); errno != 0 {
		c.t.Fatalf("read: errno %d", errno)
	}
}

// ends checks that the server closes the connection.
func (c *raw) ends() {
	c.t.Helper()
	for buf := make([]byte, 64<<10); ; {
		if _, err := c.Read(buf); err != nil {
			if ne, ok := err.(net.Error); ok && ne.Timeout() {
				c.t.Fatal("the server did not close the connection")
			}
			return
		}
	}
}

// serve runs a server over a memory disk.
func serve(t *testing.T, o memblock.Options, limits nbdserver.Limits) (*nbdserver.Loop, string) {
	t.Helper()
	mode := aio.Inline
	if o.Async {
		mode = aio.Threads
	}
	l := nbdtest.Loop(t, mode, nbdtest.Queue(nbdtest.Disk(t, o)), limits)
	return l, serveLoop(t, l)
}

// leavesNothing checks that all connections go away and leave no trace.
func leavesNothing(t *testing.T, l *nbdserver.Loop) {
	t.Helper()
	var last string
	defer func() {
		if last != "" {
			t.Logf("left: %s", last)
		}
	}()
	waitFor(t, "nothing is left", func() bool {
		s, err := l.Leftovers(patience(t))
		if err != nil {
			t.Fatal(err)
		}
		last = s
		return s == ""
	})
}

func serveLoop(t *testing.T, l *nbdserver.Loop) string {
	t.Helper()
	return nbdtest.Unix(t, nbdserver.ServerOptions{Exports: nbdtest.NewExports(
		&nbdserver.Export{Name: "vol", Description: "a volume", Loop: l},
		&nbdserver.Export{Name: "vol@snap", Loop: l, ReadOnly: true})})
}

func serveExport(t *testing.T, e *nbdserver.Export) string {
	t.Helper()
	return nbdtest.Unix(t, nbdserver.ServerOptions{Exports: nbdtest.NewExports(e)})
}

func diskServer(t *testing.T, o memblock.Options) (*memblock.Disk, string) {
	t.Helper()
	d := nbdtest.Disk(t, o)
	return d, serveLoop(t, nbdtest.Loop(t, "", nbdtest.Queue(d), nbdserver.Limits{}))
}

// gate is a queue that keeps requests back until it is opened.
type gate struct {
	block.Queue
	wake func()

	mu   sync.Mutex
	open bool             // guarded by mu
	kept []*block.Request // guarded by mu
	seen int              // guarded by mu: requests submitted so far
}

func (g *gate) Submit(reqs []*block.Request) {
	g.mu.Lock()
	g.seen += len(reqs)
	if !g.open {
		g.kept = append(g.kept, reqs...)
		g.mu.Unlock()
		return
	}
	g.mu.Unlock()
	g.Queue.Submit(reqs)
}

func (g *gate) Reap(done []*block.Request) int {
	g.mu.Lock()
	if g.open && len(g.kept) > 0 {
		g.Queue.Submit(g.kept)
		g.kept = nil
	}
	g.mu.Unlock()
	return g.Queue.Reap(done)
}

func (g *gate) InFlight() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.kept) + g.Queue.InFlight()
}

func (g *gate) set(open bool) {
	g.mu.Lock()
	g.open = open
	g.mu.Unlock()
	g.wake()
}

func (g *gate) submitted() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.seen
}

// gated runs a loop whose queue is a closed gate over a disk.
func gated(t *testing.T, size int64) (*nbdserver.Loop, *gate, *memblock.Disk) {
	t.Helper()
	d := nbdtest.Disk(t, memblock.Options{Size: size})
	g := &gate{}
	l := nbdtest.Loop(t, "", func(e aio.Engine) (block.Queue, error) {
		g.Queue, g.wake = d.OpenQueue(e.Wake), e.Wake
		return g, nil
	}, nbdserver.Limits{})
	t.Cleanup(func() { g.set(true) }) // before the loop is closed
	return l, g, d
}

// content reads a disk behind the server's back.
func content(d *memblock.Disk, off, n int64) []byte {
	q := d.OpenQueue(nil)
	p := make([]byte, n)
	r := &block.Request{Op: block.OpRead, Off: off, Len: n, Buf: p}
	q.Submit([]*block.Request{r})
	for q.Reap(make([]*block.Request, 1)) == 0 {
	}
	return p
}

func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(nbdtest.Patience); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("did not happen: %s", what)
		}
	}
}

func fill(n int, b byte) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = b
	}
	return p
}

var be = binary.BigEndian
