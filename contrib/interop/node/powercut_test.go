//go:build integration

package node

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/moraine-storage/moraine/contrib/interop/forgetfs"
	"github.com/moraine-storage/moraine/drivers"
	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/nbd/nbdclient"
)

const (
	cutBlock   = 4096
	cutSector  = 512
	cutBlocks  = 1024     // spread over the volume
	cutStride  = 16 << 10 // four to an extent: fresh and shared ones are written
	cutMagic   = 0x7243b10c
	cutTime    = 25 * time.Second // MORAINE_CUT_TIME replaces it
	cutWriters = 6
)

// cutSize is the volume's.
const cutSize = cutBlocks * cutStride

// promise is what is known of one block.
type promise struct {
	sub, acked, durable uint32 // generations: submitted, answered, covered by a flush that was answered
	busy                bool
	was                 [cutBlock / cutSector]uint32 // what each sector held when this life began
	born                uint32                       // the last generation submitted before it
}

// cutter writes generations of blocks and knows which must survive.
type cutter struct {
	seed uint64
	mu   sync.Mutex
	b    [cutBlocks]promise

	writes, flushes int
}

// fillBlock makes each sector of a block say which it is.
func (c *cutter) fillBlock(p []byte, b int, gen uint32) {
	for s := range cutBlock / cutSector {
		at := p[s*cutSector : (s+1)*cutSector]
		word := rand.New(rand.NewPCG(c.seed+uint64(b)<<8+uint64(s), uint64(gen)))
		for i := 24; i < cutSector; i += 8 {
			binary.LittleEndian.PutUint64(at[i:], word.Uint64())
		}
		binary.LittleEndian.PutUint32(at, cutMagic)
		binary.LittleEndian.PutUint32(at[4:], gen)
		binary.LittleEndian.PutUint64(at[8:], uint64(b))
		binary.LittleEndian.PutUint64(at[16:], c.seed+uint64(s))
	}
}

// work writes until the connection is lost.
func (c *cutter) work(ctx context.Context, d block.Device, rng *rand.Rand) {
	p := make([]byte, cutBlock)
	for {
		b := rng.IntN(cutBlocks)
		c.mu.Lock()
		if c.b[b].busy {
			c.mu.Unlock()
			continue
		}
		c.b[b].busy = true
		c.b[b].sub++
		gen := c.b[b].sub
		c.mu.Unlock()
		var flags block.Flags
		if rng.IntN(50) == 0 {
			flags = block.FUA
		}
		c.fillBlock(p, b, gen)
		err := d.WriteAt(ctx, p, int64(b)*cutStride, flags)
		c.mu.Lock()
		c.b[b].busy = false
		if err == nil {
			c.writes++
			c.b[b].acked = gen
			if flags&block.FUA != 0 {
				c.b[b].durable = gen
			}
		}
		c.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// flush flushes at random times until the connection is lost.
func (c *cutter) flush(ctx context.Context, d block.Device, rng *rand.Rand) {
	var before [cutBlocks]uint32
	for {
		pause := 40
		if rng.IntN(8) == 0 {
			pause = 400 // a cut with much to lose
		}
		time.Sleep(time.Duration(rng.IntN(pause)) * time.Millisecond)
		c.mu.Lock()
		for i := range c.b {
			before[i] = c.b[i].acked
		}
		c.mu.Unlock()
		if d.Flush(ctx) != nil {
			return
		}
		c.mu.Lock()
		c.flushes++
		for i := range c.b {
			c.b[i].durable = max(c.b[i].durable, before[i])
		}
		c.mu.Unlock()
	}
}

// verify compares every sector, and begins a new life with what is there.
func (c *cutter) verify(ctx context.Context, d block.Device) error {
	p, want := make([]byte, cutBlock), make([]byte, cutBlock)
	for i := range c.b {
		b := &c.b[i]
		if err := d.ReadAt(ctx, p, int64(i)*cutStride); err != nil {
			return err
		}
		for s := range b.was {
			got := p[s*cutSector : (s+1)*cutSector]
			gen := binary.LittleEndian.Uint32(got[4:])
			clear(want)
			if gen != 0 {
				c.fillBlock(want, i, gen)
			}
			switch {
			case string(got) != string(want[s*cutSector:(s+1)*cutSector]):
				return fmt.Errorf("block %d sector %d: foreign bytes (generation word %d, submitted up to %d): % x", i, s, gen, b.sub, got[:32])
			case gen > b.sub:
				return fmt.Errorf("block %d sector %d: generation %d was never written", i, s, gen)
			case gen < b.durable || gen <= b.born && gen != b.was[s]:
				return fmt.Errorf("block %d sector %d: generation %d; %d was flushed, %d answered, %d there before", i, s, gen, b.durable, b.acked, b.was[s])
			}
			b.was[s] = gen
		}
		// What is there was read: no later cut may take it.
		b.born, b.acked, b.durable = b.sub, 0, 0
	}
	return nil
}

// Goal: a power cut of a node loses nothing that was flushed: everything else
// is old or new, sector by sector, and never somebody else's; the store is sound.
// Method: the real agent on a drive that forgets what was not synced. It is
// killed at random, the drive loses a random part of it, and the agent starts
// with another boot ID. MORAINE_SEED repeats the choices of what is lost.
func TestPowerCut(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if v := os.Getenv("MORAINE_SEED"); v != "" {
		if _, err := fmt.Sscan(v, &seed); err != nil {
			t.Fatal(err)
		}
	}
	length := cutTime
	if v := os.Getenv("MORAINE_CUT_TIME"); v != "" {
		var err error
		if length, err = time.ParseDuration(v); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("MORAINE_SEED=%d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	dir := newDir(t)
	at := filepath.Join(dir, "drive")
	if err := os.Mkdir(at, 0o700); err != nil {
		t.Fatal(err)
	}
	disk, err := forgetfs.Mount(at, filepath.Join(dir, "disk"))
	if err != nil {
		t.Fatal(err)
	}
	a := prepare(t, dir, [2]string{"p", at})
	t.Cleanup(func() {
		a.cleanup() // or the drive is in use
		if err := disk.Unmount(); err != nil {
			t.Error(err)
		}
	})
	boot := func(n int) {
		a.env = []string{fmt.Sprintf("%s=%08x-0000-4000-8000-%012x", drivers.DebugBootID, n, seed&0xffffffffffff)}
	}
	boot(0)
	a.start()
	a.must("volume", "create", "v", "--size", fmt.Sprint(cutSize), "--fs", "none")
	c := &cutter{seed: seed}
	var lost forgetfs.Lost
	rounds, end := 0, time.Now().Add(length)
	for ; time.Now().Before(end) || rounds < 3; rounds++ {
		c.life(t, a, rng)
		l, err := disk.Cut(rng)
		if err != nil {
			t.Fatalf("cut %d: %v", rounds, err)
		}
		lost.Sectors, lost.Kept, lost.Names, lost.Sizes = lost.Sectors+l.Sectors, lost.Kept+l.Kept, lost.Names+l.Names, lost.Sizes+l.Sizes
		boot(rounds + 1)
		r, err := program(programTimeout, a.env, bin, "drive", "check", "--data", at)
		if err != nil {
			t.Fatalf("cut %d (%+v): %v\n%s", rounds, l, err, r.stdout)
		}
		a.start()
		d := c.open(t, a)
		err = inTime(t, "verify", func() error { return c.verify(t.Context(), d) })
		_ = d.Close()
		if err != nil {
			t.Fatalf("cut %d (%+v): %v", rounds, l, err)
		}
	}
	t.Logf("%d cuts, %d writes, %d flushes; lost %+v", rounds, c.writes, c.flushes, lost)
	if lost.Sectors == 0 || lost.Kept == 0 || c.flushes == 0 || c.writes < 100 {
		t.Error("nothing much was cut")
	}
	a.must("volume", "export", "v", "--stop")
	a.must("volume", "delete", "v")
	a.stop()
}

// open connects to the volume's export.
func (c *cutter) open(t *testing.T, a *agent) *nbdclient.Device {
	t.Helper()
	a.must("volume", "export", "v")
	d, err := nbdclient.OpenDevice(t.Context(), "unix", filepath.Join(a.dir, "run", "nbd.sock"), nbdclient.Options{Export: "v"})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// life writes and flushes until the agent is killed.
func (c *cutter) life(t *testing.T, a *agent, rng *rand.Rand) {
	t.Helper()
	d := c.open(t, a)
	var all sync.WaitGroup
	for range cutWriters {
		r := rand.New(rand.NewPCG(rng.Uint64(), 0))
		all.Go(func() { c.work(t.Context(), d, r) })
	}
	r := rand.New(rand.NewPCG(rng.Uint64(), 0))
	all.Go(func() { c.flush(t.Context(), d, r) })
	time.Sleep(time.Duration(50+rng.IntN(600)) * time.Millisecond)
	a.kill()
	all.Wait()
	_ = d.Close()
}
