package nbdserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"

	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/nbd"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// Export is what a name stands for, for one connection.
type Export struct {
	Name        string // canonical, told to the client
	Description string
	Loop        *Loop // started
	ReadOnly    bool
	// Contexts beside base:allocation; may be nil.
	Contexts Contexts
	// Closed is called once when the connection that entered the export has
	// ended (Session.Closed), or could not be handed to the loop. May be nil;
	// never called after a Lookup with Enter false.
	Closed func()
}

// Peer is who asks.
type Peer struct {
	Addr string               // of the remote end; "" on unix sockets
	TLS  *tls.ConnectionState // nil: plaintext
	// Enter is true when a success starts the transmission phase, false for
	// questions (INFO, LIST_META_CONTEXT).
	Enter bool
}

// Exports tells a Server what it serves. Methods are called from many
// goroutines; ctx ends with the handshake's deadline.
type Exports interface {
	// Lookup resolves a name ("" is the default export). Errors of class
	// NotFound are told to the client as ERR_UNKNOWN, Unavailable as
	// ERR_SHUTDOWN, all others as ERR_POLICY with the error's text.
	Lookup(ctx context.Context, name string, p Peer) (*Export, error)
	// List returns what p may know of. Order is kept.
	List(ctx context.Context, p Peer) ([]nbd.ExportEntry, error)
}

// catalog is the nbd.Catalog of one handshake.
type catalog struct {
	ctx     context.Context // of the handshake, which the catalog is a part of
	exports Exports
	peer    Peer
	entered *Export // by a Lookup with Enter, until taken over
}

func (c *catalog) Export(name string, enter bool) (*nbd.Export, error) {
	p := c.peer
	p.Enter = enter
	e, err := c.exports.Lookup(c.ctx, name, p)
	if err != nil {
		return nil, optionError(err)
	}
	if enter {
		c.entered = e
	}
	info := e.Loop.Info()
	out := &nbd.Export{Name: e.Name, Description: e.Description, Size: uint64(info.Size),
		Flags: TransmissionFlags(info, e.ReadOnly), BlockSize: blockSize(info)}
	if e.Contexts != nil {
		out.Contexts = e.Contexts.Match
	}
	return out, nil
}

func (c *catalog) List() ([]nbd.ExportEntry, error) {
	list, err := c.exports.List(c.ctx, c.peer)
	if err != nil {
		return nil, optionError(err)
	}
	return list[:min(len(list), maxServerList)], nil
}

// optionError says in the protocol's words why a Lookup failed.
func optionError(err error) error {
	var re *nbd.ReplyError
	switch {
	case errors.As(err, &re):
		return err
	case errors.Is(err, errdefs.ErrNotFound):
		return fmt.Errorf("%w: %w", &nbd.ReplyError{Type: nbd.RepErrUnknown, Msg: "no such export"}, err)
	case errors.Is(err, errdefs.ErrUnavailable), errors.Is(err, block.ErrClosed):
		return fmt.Errorf("%w: %w", &nbd.ReplyError{Type: nbd.RepErrShutdown, Msg: clipText(err)}, err)
	}
	return fmt.Errorf("%w: %w", &nbd.ReplyError{Type: nbd.RepErrPolicy, Msg: clipText(err)}, err)
}

func clipText(err error) string {
	s := err.Error()
	return s[:min(len(s), 1024)]
}

// blockSize is what NBD_INFO_BLOCK_SIZE tells of a device.
func blockSize(info block.Info) nbd.BlockSize {
	b := nbd.BlockSize{Min: block.SectorSize, Preferred: 4096, Max: nbd.MaxPayload}
	if p := info.BlockSize; p >= block.SectorSize && p <= nbd.MaxPayload && p&(p-1) == 0 {
		b.Preferred = uint32(p)
	}
	if m := info.MaxLen; m >= int64(b.Preferred) && m < nbd.MaxPayload {
		b.Max = uint32(m) &^ (block.SectorSize - 1)
	}
	return b
}
