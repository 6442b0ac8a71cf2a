package backendrpc

import (
	"context"
	"fmt"
	"path/filepath"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/moraine-storage/moraine/backends"
	"github.com/moraine-storage/moraine/plugins/errdefs"
	pb "github.com/moraine-storage/moraine/plugins/proto/backend/v1"
)

// Register makes s serve b. Contract is what Info reports; the SDK passes
// backends.ContractVersion.
func Register(s grpc.ServiceRegistrar, b backends.Backend, contract int) {
	pb.RegisterBackendServer(s, &server{b: backends.Complete(b), contract: contract})
}

// server adds to the backend: request checks, a deadline for a caller that set
// none, and error translation.
type server struct {
	pb.UnimplementedBackendServer
	b        backends.Full
	contract int
}

// run is the frame of every call.
func run[T any](ctx context.Context, call func(ctx context.Context) (*T, error)) (*T, error) {
	ctx, cancel := context.WithTimeout(ctx, maxCall) // the caller's own, when nearer, stays
	defer cancel()
	out, err := call(ctx)
	if err != nil {
		if ctx.Err() != nil && !errdefs.Indeterminate(err) {
			// The backend gave up because its time was over, not because it
			// knows: what it had begun may still happen.
			err = fmt.Errorf("%w: %w", err, errdefs.ErrIndeterminate)
		}
		return nil, errdefs.ToGRPC(err)
	}
	return out, nil
}

func checkIDs(id backends.DriveID, node backends.NodeID) error {
	if err := id.Check(); err != nil {
		return err
	}
	return node.Check()
}

func (s *server) Info(ctx context.Context, _ *pb.InfoRequest) (*pb.InfoResponse, error) {
	return run(ctx, func(ctx context.Context) (*pb.InfoResponse, error) {
		i, err := s.b.Info(ctx)
		if err != nil {
			return nil, err
		}
		return &pb.InfoResponse{
			Name: i.Name, Version: clean(i.Version, 64), ContractVersion: uint32(s.contract),
			Capabilities: &pb.Capabilities{Provision: i.Capabilities.Provision, Expand: i.Capabilities.Expand,
				Fence: i.Capabilities.Fence, Health: i.Capabilities.Health},
		}, nil
	})
}

func (s *server) ConfigSchema(ctx context.Context, _ *pb.ConfigSchemaRequest) (*pb.ConfigSchemaResponse, error) {
	return run(ctx, func(ctx context.Context) (*pb.ConfigSchemaResponse, error) {
		sch, err := s.b.ConfigSchema(ctx)
		if err != nil {
			return nil, err
		}
		if err := sch.Validate(); err != nil {
			return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInternal)
		}
		w, err := toSchema(sch)
		return &pb.ConfigSchemaResponse{Schema: w}, err
	})
}

// Configure checks the options against the backend's own schema, so that a
// backend may rely on types and bounds whoever calls.
func (s *server) Configure(ctx context.Context, r *pb.ConfigureRequest) (*pb.ConfigureResponse, error) {
	return run(ctx, func(ctx context.Context) (*pb.ConfigureResponse, error) {
		c := backends.Config{Instance: r.GetInstance(), Node: backends.NodeID(r.GetNode()), RunDir: r.GetRunDir()}
		if err := c.Node.Check(); err != nil {
			return nil, fmt.Errorf("configure: %w", err)
		}
		if !filepath.IsAbs(c.RunDir) {
			return nil, fmt.Errorf("configure: %w: run directory must be an absolute path", errdefs.ErrInvalidArgument)
		}
		free, err := fromMap(r.GetOptions(), 1)
		if err != nil {
			return nil, err
		}
		sch, err := s.b.ConfigSchema(ctx)
		if err != nil {
			return nil, err
		}
		if c.Options, err = sch.Check(free); err != nil {
			return nil, fmt.Errorf("configure: %w", err)
		}
		return &pb.ConfigureResponse{}, s.b.Configure(ctx, c)
	})
}

func (s *server) Discover(ctx context.Context, _ *pb.DiscoverRequest) (*pb.DiscoverResponse, error) {
	return run(ctx, func(ctx context.Context) (*pb.DiscoverResponse, error) {
		all, err := s.b.Discover(ctx)
		if err != nil {
			return nil, err
		}
		if len(all) > backends.MaxDiscover {
			return nil, fmt.Errorf("discover: %d drives and candidates: %w: more than %d", len(all), errdefs.ErrResourceExhausted, backends.MaxDiscover)
		}
		return &pb.DiscoverResponse{Drives: toDrives(all, backends.MaxDiscoverText)}, nil
	})
}

func (s *server) Get(ctx context.Context, r *pb.GetRequest) (*pb.GetResponse, error) {
	return run(ctx, func(ctx context.Context) (*pb.GetResponse, error) {
		id := backends.DriveID(r.GetId())
		if err := id.Check(); err != nil {
			return nil, err
		}
		d, err := s.b.Get(ctx, id)
		if err != nil {
			return nil, err
		}
		return &pb.GetResponse{Drive: toDrive(d, backends.MaxText)}, nil
	})
}

func (s *server) List(ctx context.Context, r *pb.ListRequest) (*pb.ListResponse, error) {
	return run(ctx, func(ctx context.Context) (*pb.ListResponse, error) {
		p := backends.Page{After: r.GetAfter(), Limit: int(r.GetLimit())}
		if _, err := p.Check(); err != nil {
			return nil, err
		}
		page, err := s.b.List(ctx, p)
		if err != nil {
			return nil, err
		}
		return &pb.ListResponse{Drives: toDrives(page.Drives, backends.MaxText), Next: page.Next}, nil
	})
}

func (s *server) Create(ctx context.Context, r *pb.CreateRequest) (*pb.CreateResponse, error) {
	return run(ctx, func(ctx context.Context) (*pb.CreateResponse, error) {
		q := backends.CreateRequest{ID: backends.DriveID(r.GetId()), Size: r.GetSize(), Class: r.GetClass(), Source: r.GetSource()}
		if err := q.Check(); err != nil {
			return nil, err
		}
		d, err := s.b.Create(ctx, q)
		if err != nil {
			return nil, err
		}
		return &pb.CreateResponse{Drive: toDrive(d, backends.MaxText)}, nil
	})
}

func (s *server) Delete(ctx context.Context, r *pb.DeleteRequest) (*pb.DeleteResponse, error) {
	return run(ctx, func(ctx context.Context) (*pb.DeleteResponse, error) {
		id := backends.DriveID(r.GetId())
		if err := id.Check(); err != nil {
			return nil, err
		}
		return &pb.DeleteResponse{}, s.b.Delete(ctx, id)
	})
}

func (s *server) Attach(ctx context.Context, r *pb.AttachRequest) (*pb.AttachResponse, error) {
	return run(ctx, func(ctx context.Context) (*pb.AttachResponse, error) {
		id, node := backends.DriveID(r.GetId()), backends.NodeID(r.GetNode())
		if err := checkIDs(id, node); err != nil {
			return nil, err
		}
		a, err := s.b.Attach(ctx, id, node)
		if err != nil {
			return nil, err
		}
		return &pb.AttachResponse{Path: a.Path, Kind: pb.AttachmentKind(a.Kind), Size: a.Size, Serial: clean(a.Serial, backends.MaxText)}, nil
	})
}

func (s *server) Detach(ctx context.Context, r *pb.DetachRequest) (*pb.DetachResponse, error) {
	return run(ctx, func(ctx context.Context) (*pb.DetachResponse, error) {
		id, node := backends.DriveID(r.GetId()), backends.NodeID(r.GetNode())
		if err := checkIDs(id, node); err != nil {
			return nil, err
		}
		return &pb.DetachResponse{}, s.b.Detach(ctx, id, node)
	})
}

func (s *server) Expand(ctx context.Context, r *pb.ExpandRequest) (*pb.ExpandResponse, error) {
	return run(ctx, func(ctx context.Context) (*pb.ExpandResponse, error) {
		id := backends.DriveID(r.GetId())
		if err := id.Check(); err != nil {
			return nil, err
		}
		if err := backends.CheckSize(r.GetSize()); err != nil {
			return nil, fmt.Errorf("expand drive %s: %w", id, err)
		}
		d, err := s.b.Expand(ctx, id, r.GetSize())
		if err != nil {
			return nil, err
		}
		return &pb.ExpandResponse{Drive: toDrive(d, backends.MaxText)}, nil
	})
}

func (s *server) Fence(ctx context.Context, r *pb.FenceRequest) (*pb.FenceResponse, error) {
	return run(ctx, func(ctx context.Context) (*pb.FenceResponse, error) {
		id, node := backends.DriveID(r.GetId()), backends.NodeID(r.GetNode())
		if err := checkIDs(id, node); err != nil {
			return nil, err
		}
		return &pb.FenceResponse{}, s.b.Fence(ctx, id, node)
	})
}

func (s *server) Health(ctx context.Context, r *pb.HealthRequest) (*pb.HealthResponse, error) {
	return run(ctx, func(ctx context.Context) (*pb.HealthResponse, error) {
		id := backends.DriveID(r.GetId())
		if err := id.Check(); err != nil {
			return nil, err
		}
		h, err := s.b.Health(ctx, id)
		if err != nil {
			return nil, err
		}
		return &pb.HealthResponse{State: pb.DriveState(h.State), Reason: clean(h.Reason, backends.MaxText), Checked: timestamppb.New(h.Checked)}, nil
	})
}
