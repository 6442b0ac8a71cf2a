// Package inproc serves one device of this module over NBD, without an agent:
// the server process of the benchmark's in-process targets.
package inproc

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/moraine-storage/moraine/drivers/aio"
	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/block/memblock"
	"github.com/moraine-storage/moraine/drivers/nbd"
	"github.com/moraine-storage/moraine/drivers/nbd/nbdserver"
)

// Options of Serve.
type Options struct {
	Kind   string // one of Kinds
	Dir    string // of what rests on a medium
	Socket string
	Size   int64
}

// medium is what a loop needs.
type medium struct {
	mode     aio.Mode
	open     func(aio.Engine) (block.Queue, error)
	snapshot func() error // on the loop's goroutine while it is held; or nil
	close    func() error
}

var kinds = map[string]func(Options) (*medium, error){
	"memory":        openMemory,
	"store":         openStore,
	"store-threads": openStoreThreads,
}

// Kinds are the devices that Serve knows.
func Kinds() []string { return slices.Sorted(maps.Keys(kinds)) }

func openMemory(o Options) (*medium, error) {
	d, err := memblock.New(memblock.Options{Size: o.Size})
	if err != nil {
		return nil, err
	}
	return &medium{
		mode:  aio.Inline,
		open:  func(e aio.Engine) (block.Queue, error) { return d.OpenQueue(e.Wake), nil },
		close: func() error { return nil },
	}, nil
}

// Serve serves until ctx ends.
func Serve(ctx context.Context, o Options) error {
	open, ok := kinds[o.Kind]
	if !ok {
		return fmt.Errorf("serve %q: unknown, it is one of %v", o.Kind, Kinds())
	}
	m, err := open(o)
	if err != nil {
		return fmt.Errorf("serve %s: %w", o.Kind, err)
	}
	loop, err := nbdserver.NewLoop(nbdserver.LoopOptions{
		Name:      o.Kind,
		NewEngine: func() (aio.Engine, error) { return aio.New(m.mode) },
		NewQueue:  m.open,
	})
	if err == nil {
		err = loop.Start()
	}
	if err != nil {
		return errors.Join(err, m.close())
	}
	err = serveLoop(ctx, loop, m, o.Socket)
	loop.Close()
	return errors.Join(err, m.close())
}

func serveLoop(ctx context.Context, loop *nbdserver.Loop, m *medium, socket string) error {
	srv, err := nbdserver.NewServer(nbdserver.ServerOptions{Exports: single{loop}, TLS: nbd.TLSOff})
	if err != nil {
		return err
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	ln, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, srv.Close)()
	go snapshots(ctx, loop, m)
	return srv.Serve(ln)
}

// snapshots takes one whenever the process gets SIGUSR1.
func snapshots(ctx context.Context, loop *nbdserver.Loop, m *medium) {
	ask := make(chan os.Signal, 1)
	signal.Notify(ask, syscall.SIGUSR1)
	defer signal.Stop(ask)
	for {
		select {
		case <-ctx.Done():
			return
		case <-ask:
		}
		if err := takeSnapshot(ctx, loop, m); err != nil {
			fmt.Fprintln(os.Stderr, "snapshot:", err)
		}
	}
}

func takeSnapshot(ctx context.Context, loop *nbdserver.Loop, m *medium) error {
	if m.snapshot == nil {
		return errors.New("this device has none")
	}
	if err := loop.Hold(ctx); err != nil {
		return err
	}
	defer loop.Resume()
	var serr error
	err := loop.Do(ctx, func(block.Queue) { serr = m.snapshot() })
	return errors.Join(err, serr)
}

// single is one export under any name.
type single struct{ loop *nbdserver.Loop }

func (s single) Lookup(context.Context, string, nbdserver.Peer) (*nbdserver.Export, error) {
	return &nbdserver.Export{Loop: s.loop}, nil
}

func (s single) List(context.Context, nbdserver.Peer) ([]nbd.ExportEntry, error) {
	return nil, nil
}
