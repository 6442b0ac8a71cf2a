package docker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/docker/go-plugins-helpers/volume"
	"github.com/hashicorp/go-hclog"

	"github.com/moraine-storage/moraine/agent/api"
	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// DefaultSocket is where a Docker Engine looks for a plugin named "moraine".
const DefaultSocket = "/run/docker/plugins/moraine.sock"

// Service is what the plugin needs of the API. api.Service and the client of
// a remote agent both have it.
type Service interface {
	api.Volumes
	MountVolume(context.Context, *apiv1.MountVolumeRequest) (*apiv1.MountVolumeResponse, error)
	UnmountVolume(context.Context, *apiv1.UnmountVolumeRequest) (*apiv1.UnmountVolumeResponse, error)
}

// Options of a Plugin. The zero value is usable.
type Options struct {
	// Socket is the path of the socket; "" is DefaultSocket. Its name without
	// ".sock" is the name of the volume driver for Docker.
	Socket string
	// Node is the name of the node whose mounts Docker can see; "" if there is
	// only one node.
	Node string
	// Logger gets one line per change of state; nil is silent.
	Logger hclog.Logger
}

// Plugin serves Docker. Make one with New, start it with Start, end it with
// Close.
type Plugin struct {
	svc    Service
	socket string
	node   string
	log    hclog.Logger
	bound  func(path string) (bool, error) // boundElsewhere, or a test's
	uses   *uses

	mu       sync.Mutex   // guards the rest
	listener net.Listener // nil before Start
	server   *http.Server // nil before Start
	done     chan struct{}
	closed   bool
}

// New returns a plugin that is not started.
func New(svc Service, o Options) *Plugin {
	p := &Plugin{svc: svc, socket: o.Socket, node: o.Node, log: o.Logger, bound: boundElsewhere, uses: newUses(time.Now)}
	if p.socket == "" {
		p.socket = DefaultSocket
	}
	if p.log == nil {
		p.log = hclog.NewNullLogger()
	}
	return p
}

// The driver's methods follow, one for each call of the protocol. Errors are
// for a person: Docker prints them.

func (p *Plugin) create(ctx context.Context, r *volume.CreateRequest) error {
	spec, err := parseOptions(r.Options)
	if err != nil {
		return fmt.Errorf("create volume %q: %w", r.Name, err)
	}
	v, err := p.svc.CreateVolume(ctx, &apiv1.CreateVolumeRequest{Name: r.Name, Spec: spec})
	if err != nil {
		return err
	}
	p.log.Info("volume created for docker", "volume", v.GetName(), "id", v.GetId())
	return nil
}

// find reads a volume by its name. The API takes IDs as well, but to Docker a
// volume has one name only: an ID would be a second volume with the same data.
func (p *Plugin) find(ctx context.Context, name string) (*apiv1.Volume, error) {
	v, err := p.svc.GetVolume(ctx, &apiv1.GetVolumeRequest{Name: name})
	if err != nil {
		return nil, err
	}
	if v.GetName() != name {
		return nil, fmt.Errorf("volume %q: %w", name, errdefs.ErrNotFound)
	}
	return v, nil
}

func (p *Plugin) get(ctx context.Context, r *volume.GetRequest) (*volume.GetResponse, error) {
	v, err := p.find(ctx, r.Name)
	if err != nil {
		return nil, err
	}
	return &volume.GetResponse{Volume: p.describe(v)}, nil
}

func (p *Plugin) list(ctx context.Context, _ *struct{}) (*volume.ListResponse, error) {
	resp := &volume.ListResponse{Volumes: []*volume.Volume{}}
	for token := ""; ; {
		page, err := p.svc.ListVolumes(ctx, &apiv1.ListVolumesRequest{PageToken: token})
		if err != nil {
			return nil, err
		}
		for _, v := range page.GetVolumes() {
			resp.Volumes = append(resp.Volumes, p.describe(v))
		}
		if token = page.GetNextPageToken(); token == "" {
			return resp, nil
		}
	}
}

func (p *Plugin) path(ctx context.Context, r *volume.PathRequest) (*volume.PathResponse, error) {
	v, err := p.find(ctx, r.Name)
	if err != nil {
		return nil, err
	}
	return &volume.PathResponse{Mountpoint: p.mountpoint(v)}, nil
}

// remove deletes a volume that nobody uses. The agent refuses one in use in
// the same transaction that would delete it.
func (p *Plugin) remove(ctx context.Context, r *volume.RemoveRequest) error {
	defer p.uses.lock(r.Name)()
	v, err := p.find(ctx, r.Name)
	if errdefs.IsNotFound(err) {
		return nil // removed before
	}
	if err != nil {
		return err
	}
	if _, err := p.dropStale(ctx, v); err != nil {
		return err
	}
	if _, err := p.svc.DeleteVolume(ctx, &apiv1.DeleteVolumeRequest{Name: r.Name}); err != nil {
		return err
	}
	p.log.Info("volume removed for docker", "volume", r.Name)
	return nil
}

func (p *Plugin) mount(ctx context.Context, r *volume.MountRequest) (*volume.MountResponse, error) {
	if len(r.ID) > maxID {
		return nil, fmt.Errorf("mount volume %q: an id of %d bytes, at most %d: %w", r.Name, len(r.ID), maxID, errdefs.ErrInvalidArgument)
	}
	defer p.uses.lock(r.Name)()
	v, err := p.find(ctx, r.Name)
	if err != nil {
		return nil, err
	}
	consumer, err := p.next(v, r.ID)
	if err != nil {
		return nil, fmt.Errorf("mount volume %q: %w", r.Name, err)
	}
	resp, err := p.svc.MountVolume(ctx, &apiv1.MountVolumeRequest{Name: r.Name, Consumer: consumer})
	if err == nil && ctx.Err() != nil {
		err = fmt.Errorf("mount volume %q: the caller has gone: %w", r.Name, ctx.Err())
	}
	if err != nil {
		if ctx.Err() != nil || errdefs.Indeterminate(err) {
			err = errors.Join(err, p.undoMount(ctx, r.Name, consumer))
		}
		return nil, err
	}
	p.uses.noteMount(r.Name, consumer)
	p.log.Info("volume mounted for docker", "volume", r.Name, "consumer", consumer, "path", resp.GetPath())
	return &volume.MountResponse{Mountpoint: resp.GetPath()}, nil
}

// undoMount drops the consumer of a call that Docker will think failed
// (invariant 3). The caller's context is over, so it has one of its own.
func (p *Plugin) undoMount(ctx context.Context, name, consumer string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	_, err := p.svc.UnmountVolume(ctx, &apiv1.UnmountVolumeRequest{Name: name, Consumer: consumer})
	if err != nil {
		p.log.Warn("a mount that nobody waits for could not be undone", "volume", name, "consumer", consumer, "error", err)
	}
	return err
}

func (p *Plugin) unmount(ctx context.Context, r *volume.UnmountRequest) error {
	defer p.uses.lock(r.Name)()
	v, err := p.find(ctx, r.Name)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	consumer := newest(v, r.ID)
	if consumer == "" {
		return nil // unmounted before
	}
	resp, err := p.svc.UnmountVolume(ctx, &apiv1.UnmountVolumeRequest{Name: r.Name, Consumer: consumer})
	p.uses.noteUnmount(r.Name, consumer, err)
	if err != nil {
		return err
	}
	p.log.Info("volume unmounted for docker", "volume", r.Name, "consumer", consumer)
	// What is left may be uses of an engine that was killed: without them the
	// volume is free for other nodes. Docker's call has succeeded either way.
	if _, err := p.dropStale(ctx, resp.GetVolume()); err != nil {
		p.log.Warn("a forgotten use could not be dropped", "volume", r.Name, "error", err)
	}
	return nil
}

// capabilities says "global": a volume of the cluster is the same on every
// node, and Swarm creates it once.
func (p *Plugin) capabilities(context.Context, *struct{}) (*volume.CapabilitiesResponse, error) {
	return &volume.CapabilitiesResponse{Capabilities: volume.Capability{Scope: "global"}}, nil
}
