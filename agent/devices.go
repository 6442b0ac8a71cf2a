package agent

import (
	"context"
	"path/filepath"

	"github.com/moraine-storage/moraine/drivers"
	"github.com/moraine-storage/moraine/drivers/fuse"
	"github.com/moraine-storage/moraine/drivers/fuse/fuseloop"
)

// devices returns the drivers that make block devices, the preferred first.
func (a *Agent) devices(ctx context.Context) ([]drivers.Driver, error) {
	socket := filepath.Join(a.cfg.RunDir, "holder.sock")
	keeper, err := fuse.NewKeeper(ctx, fuse.KeeperOptions{
		Socket: socket, Command: append(append([]string{}, a.o.Self...), "holder", "-socket", socket),
		Log: func(msg string, err error) { a.logger.Warn(msg, "error", err) },
	})
	if err != nil {
		return nil, err
	}
	a.onStop("holder", func(context.Context) error { keeper.Close(); return nil })
	loop, err := fuseloop.New(fuseloop.Config{Dir: filepath.Join(a.cfg.RunDir, "loop"), Store: keeper, HolderSock: socket})
	if err != nil {
		return nil, err
	}
	return []drivers.Driver{loop}, nil
}
