package backendrpc

import (
	"context"
	"fmt"

	"google.golang.org/grpc"

	"github.com/moraine-storage/moraine/backends"
	"github.com/moraine-storage/moraine/plugins/errdefs"
	pb "github.com/moraine-storage/moraine/plugins/proto/backend/v1"
	"github.com/moraine-storage/moraine/plugins/schema"
)

// Client is a backend at the other end of a gRPC connection. It implements
// every interface of package backends. It sets no deadline and does not retry.
type Client struct {
	c pb.BackendClient
}

var _ interface {
	backends.Backend
	backends.Provisioner
	backends.Expander
	backends.Fencer
	backends.HealthReporter
} = (*Client)(nil)

// NewClient returns a client on conn, which stays the caller's to close.
func NewClient(conn grpc.ClientConnInterface) *Client {
	return &Client{c: pb.NewBackendClient(conn)}
}

// say gives an error that came over the wire to the caller. The text of a
// deliberate error already names operation and object, so nothing is added.
func say(err error) error { return errdefs.FromGRPC(err) }

// Info implements backends.Configurer. Contract and Capabilities are what the
// peer claims; plugins/host judges them.
func (c *Client) Info(ctx context.Context) (backends.Info, error) {
	r, err := c.c.Info(ctx, &pb.InfoRequest{})
	if err != nil {
		return backends.Info{}, say(err)
	}
	k := r.GetCapabilities()
	return backends.Info{
		Name: clean(r.GetName(), 64), Version: clean(r.GetVersion(), 64), Contract: int(r.GetContractVersion()),
		Capabilities: backends.Capabilities{Provision: k.GetProvision(), Expand: k.GetExpand(), Fence: k.GetFence(), Health: k.GetHealth()},
	}, nil
}

// ConfigSchema implements backends.Configurer; the schema is valid.
func (c *Client) ConfigSchema(ctx context.Context) (schema.Schema, error) {
	r, err := c.c.ConfigSchema(ctx, &pb.ConfigSchemaRequest{})
	if err != nil {
		return schema.Schema{}, say(err)
	}
	s, err := fromSchema(r.GetSchema())
	if err != nil {
		return schema.Schema{}, broken("%v", err)
	}
	return s, nil
}

// Configure implements backends.Configurer.
func (c *Client) Configure(ctx context.Context, cfg backends.Config) error {
	m, err := toMap(cfg.Options)
	if err != nil {
		return fmt.Errorf("configure: %w", err)
	}
	_, err = c.c.Configure(ctx, &pb.ConfigureRequest{Instance: cfg.Instance, Node: string(cfg.Node), RunDir: cfg.RunDir, Options: m})
	return say(err)
}

// Discover implements backends.Catalog.
func (c *Client) Discover(ctx context.Context) ([]backends.Drive, error) {
	r, err := c.c.Discover(ctx, &pb.DiscoverRequest{})
	if err != nil {
		return nil, say(err)
	}
	return fromDrives(r.GetDrives(), backends.MaxDiscover, true)
}

// Get implements backends.Catalog.
func (c *Client) Get(ctx context.Context, id backends.DriveID) (backends.Drive, error) {
	r, err := c.c.Get(ctx, &pb.GetRequest{Id: string(id)})
	if err != nil {
		return backends.Drive{}, say(err)
	}
	return sameDrive(r.GetDrive(), id)
}

func sameDrive(w *pb.Drive, id backends.DriveID) (backends.Drive, error) {
	d, err := fromDrive(w, false)
	if err == nil && d.ID != id {
		return backends.Drive{}, broken("asked for drive %s, got %s", id, d.ID)
	}
	return d, err
}

// List implements backends.Catalog.
func (c *Client) List(ctx context.Context, p backends.Page) (backends.Drives, error) {
	limit, err := p.Check()
	if err != nil {
		return backends.Drives{}, err
	}
	r, err := c.c.List(ctx, &pb.ListRequest{After: p.After, Limit: uint32(limit)})
	if err != nil {
		return backends.Drives{}, say(err)
	}
	all, err := fromDrives(r.GetDrives(), limit, false)
	if err != nil {
		return backends.Drives{}, err
	}
	next := r.GetNext()
	// A page that does not advance would keep a caller in a loop for ever.
	if next != "" && (len(all) == 0 || next <= p.After || backends.DriveID(next).Check() != nil) {
		return backends.Drives{}, broken("list does not advance")
	}
	return backends.Drives{Drives: all, Next: next}, nil
}

// Create implements backends.Provisioner.
func (c *Client) Create(ctx context.Context, q backends.CreateRequest) (backends.Drive, error) {
	if err := q.Check(); err != nil {
		return backends.Drive{}, err
	}
	r, err := c.c.Create(ctx, &pb.CreateRequest{Id: string(q.ID), Size: q.Size, Class: q.Class, Source: q.Source})
	if err != nil {
		return backends.Drive{}, say(err)
	}
	return sameDrive(r.GetDrive(), q.ID)
}

// Delete implements backends.Provisioner.
func (c *Client) Delete(ctx context.Context, id backends.DriveID) error {
	_, err := c.c.Delete(ctx, &pb.DeleteRequest{Id: string(id)})
	return say(err)
}

// Attach implements backends.Attacher.
func (c *Client) Attach(ctx context.Context, id backends.DriveID, node backends.NodeID) (backends.Attachment, error) {
	r, err := c.c.Attach(ctx, &pb.AttachRequest{Id: string(id), Node: string(node)})
	if err != nil {
		return backends.Attachment{}, say(err)
	}
	return fromAttachment(r)
}

// Detach implements backends.Attacher.
func (c *Client) Detach(ctx context.Context, id backends.DriveID, node backends.NodeID) error {
	_, err := c.c.Detach(ctx, &pb.DetachRequest{Id: string(id), Node: string(node)})
	return say(err)
}

// Expand implements backends.Expander.
func (c *Client) Expand(ctx context.Context, id backends.DriveID, size int64) (backends.Drive, error) {
	r, err := c.c.Expand(ctx, &pb.ExpandRequest{Id: string(id), Size: size})
	if err != nil {
		return backends.Drive{}, say(err)
	}
	return sameDrive(r.GetDrive(), id)
}

// Fence implements backends.Fencer.
func (c *Client) Fence(ctx context.Context, id backends.DriveID, node backends.NodeID) error {
	_, err := c.c.Fence(ctx, &pb.FenceRequest{Id: string(id), Node: string(node)})
	return say(err)
}

// Health implements backends.HealthReporter.
func (c *Client) Health(ctx context.Context, id backends.DriveID) (backends.Health, error) {
	r, err := c.c.Health(ctx, &pb.HealthRequest{Id: string(id)})
	if err != nil {
		return backends.Health{}, say(err)
	}
	return fromHealth(r)
}
