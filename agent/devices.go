package agent

import (
	"context"
	"path/filepath"

	"github.com/moraine-storage/moraine/drivers"
	"github.com/moraine-storage/moraine/drivers/fuse"
	"github.com/moraine-storage/moraine/drivers/fuse/fuseloop"
	"github.com/moraine-storage/moraine/drivers/nbd/nbdkernel"
	"github.com/moraine-storage/moraine/plugins/errdefs"
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
	a.onStop("holder", func(ctx context.Context) error {
		// It goes when there is nothing to hold, and refuses when there is.
		err := keeper.Quit(ctx)
		keeper.Close()
		if errdefs.IsFailedPrecondition(err) {
			return nil
		}
		return err
	})
	loop, err := fuseloop.New(fuseloop.Config{Dir: filepath.Join(a.cfg.RunDir, "loop"), Store: keeper, HolderSock: socket})
	if err != nil {
		return nil, err
	}
	// One connection: the kernel then sets no time to a request, and looks
	// after a lost connection every two seconds. With several it sends again
	// what a killed agent had taken only when the request's time is over
	// (contrib/design/0005), and one thread serves them all anyway.
	kernel := nbdkernel.New(nbdkernel.Config{Connections: 1, RequestTimeout: a.cfg.Timeouts.NBD, DeadConnTimeout: a.cfg.Timeouts.DeadConnection})
	return []drivers.Driver{kernel, loop}, nil
}
