package store

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moraine-storage/moraine/drivers/aio"
	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/block/blocktest"
)

const killEnv = "MORAINE_TEST_STORE_KILL"

// SigkillKeepsAcks with a real process: a child does first writes and says
// which were answered; it is killed; all of them must be there.
func TestSigkillKeepsAcks(t *testing.T) {
	if dir := os.Getenv(killEnv); dir != "" {
		if err := killChild(dir); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		return
	}
	for _, base := range []string{t.TempDir(), memoryDir(t)} {
		dir := filepath.Join(base, "store")
		s := newStore(t, dir, Options{})
		newReplica(t, s, killSize, false)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		acked := map[int64]byte{}
		for round := range 4 {
			killRound(t, dir, acked, time.Duration(20+round*30)*time.Millisecond)
		}
		if len(acked) == 0 {
			t.Error("nothing was written")
		}
		if rep, err := Check(dir, CheckOptions{Data: true}); err != nil || len(rep.Problems) > 0 {
			t.Errorf("check: %+v, %v", rep, err)
		}
	}
}

const killSize = 64 << 20

// killRound runs a child for a while, kills it and verifies.
func killRound(t *testing.T, dir string, acked map[int64]byte, life time.Duration) {
	t.Helper()
	c := exec.Command(os.Args[0], "-test.run=^TestSigkillKeepsAcks$")
	c.Env = append(os.Environ(), killEnv+"="+dir)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	var timer *time.Timer
	in := bufio.NewScanner(out)
	for in.Scan() {
		var off int64
		var b byte
		switch _, err := fmt.Sscanf(in.Text(), "acked %d %d", &off, &b); {
		case err == nil:
			acked[off] = b
		case in.Text() == "ready":
			timer = time.AfterFunc(life, func() { _ = c.Process.Kill() })
			defer timer.Stop()
		case strings.HasPrefix(in.Text(), "error"):
			t.Fatal(in.Text())
		}
	}
	_ = c.Wait() // killed
	s, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	v, err := mustReplica(t, s).View(nil)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 4096)
	for off, b := range acked {
		if _, err := v.ReadAt(got, off); err != nil || !bytes.Equal(got, bytes.Repeat([]byte{b}, 4096)) {
			t.Fatalf("acknowledged write at %d is lost (%v): holds %d, want %d", off, err, got[0], b)
		}
	}
	if err := errors.Join(v.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
}

func mustReplica(t *testing.T, s *Store) *Replica {
	t.Helper()
	r, err := s.Replica(s.Replicas()[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// killChild writes 4 KiB at places that no other round used, batch by batch,
// with a snapshot now and then, until it is killed.
func killChild(dir string) error {
	s, err := Open(dir, Options{})
	if err != nil {
		return err
	}
	r, err := s.Replica(s.Replicas()[0].ID)
	if err != nil {
		return err
	}
	n := r.Info().Promised.Epoch.N + 1
	if _, err := r.Promote(context.Background(), promiseOf(n, 1, testSession)); err != nil {
		return err
	}
	e, err := aio.New(s.Mode())
	if err != nil {
		return err
	}
	q, err := r.OpenQueue(e, testSession)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	rnd := newRand(n)
	done := make([]*block.Request, 16)
	for i := 0; ; i++ {
		reqs := make([]*block.Request, 16)
		for k := range reqs {
			// Each of the 16 has its own lane: no two overlap in flight.
			off := (rnd.Int64N(killSize/4096/16)*16 + int64(k)) * 4096
			buf := blocktest.Aligned(4096)
			for j := range buf {
				buf[j] = byte(off/4096%250 + 1) // the same whoever writes it
			}
			reqs[k] = &block.Request{Op: block.OpWrite, Off: off, Len: 4096, Buf: buf}
		}
		q.Submit(reqs)
		var out bytes.Buffer
		for got := 0; got < len(reqs); {
			k := q.Reap(done)
			for _, d := range done[:k] {
				if d.Err != nil {
					return d.Err
				}
				fmt.Fprintf(&out, "acked %d %d\n", d.Off, d.Buf[0])
			}
			if got += k; k == 0 {
				if _, err := e.Wait(nil, -1); err != nil {
					return err
				}
			}
		}
		if _, err := os.Stdout.Write(out.Bytes()); err != nil {
			return err
		}
		if i%20 == 19 {
			if err := r.Freeze(NewID()); err != nil {
				return err
			}
		}
	}
}
