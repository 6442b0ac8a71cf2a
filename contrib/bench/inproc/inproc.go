// Package inproc serves one device of this module over NBD, without an agent:
// the server process of the benchmark's in-process targets.
package inproc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"

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

// opener makes what a loop needs: the mode of its engine and its queue.
type opener func(o Options) (aio.Mode, func(aio.Engine) (block.Queue, error), func() error, error)

var kinds = map[string]opener{
	"memory": openMemory,
}

// Kinds are the devices that Serve knows.
func Kinds() []string {
	var names []string
	for name := range kinds {
		names = append(names, name)
	}
	return names
}

func openMemory(o Options) (aio.Mode, func(aio.Engine) (block.Queue, error), func() error, error) {
	d, err := memblock.New(memblock.Options{Size: o.Size})
	if err != nil {
		return "", nil, nil, err
	}
	open := func(e aio.Engine) (block.Queue, error) { return d.OpenQueue(e.Wake), nil }
	return aio.Inline, open, func() error { return nil }, nil
}

// Serve serves until ctx ends.
func Serve(ctx context.Context, o Options) error {
	open, ok := kinds[o.Kind]
	if !ok {
		return fmt.Errorf("serve %q: unknown, it is one of %v", o.Kind, Kinds())
	}
	mode, newQueue, closeMedium, err := open(o)
	if err != nil {
		return fmt.Errorf("serve %s: %w", o.Kind, err)
	}
	loop, err := nbdserver.NewLoop(nbdserver.LoopOptions{
		Name:      o.Kind,
		NewEngine: func() (aio.Engine, error) { return aio.New(mode) },
		NewQueue:  newQueue,
	})
	if err != nil {
		return errors.Join(err, closeMedium())
	}
	if err := loop.Start(); err != nil {
		return errors.Join(err, closeMedium())
	}
	srv, err := nbdserver.NewServer(nbdserver.ServerOptions{Exports: single{loop}, TLS: nbd.TLSOff})
	if err != nil {
		loop.Close()
		return errors.Join(err, closeMedium())
	}
	if err := os.Remove(o.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	ln, err := net.Listen("unix", o.Socket)
	if err == nil {
		stop := context.AfterFunc(ctx, srv.Close)
		err = srv.Serve(ln)
		stop()
	}
	loop.Close()
	return errors.Join(err, closeMedium())
}

// single is one export under any name.
type single struct{ loop *nbdserver.Loop }

func (s single) Lookup(context.Context, string, nbdserver.Peer) (*nbdserver.Export, error) {
	return &nbdserver.Export{Loop: s.loop}, nil
}

func (s single) List(context.Context, nbdserver.Peer) ([]nbd.ExportEntry, error) {
	return nil, nil
}
