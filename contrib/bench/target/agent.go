package target

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	"github.com/moraine-storage/moraine/agent/client"
)

// callTime bounds one call of the API, including background work it waits for.
const callTime = 2 * time.Minute

// Agent is a Moraine agent of ours, with everything below one folder.
type Agent struct {
	Dir   string
	Ready time.Duration // from the start of the process until it said so

	p   *Process
	api *client.Client
}

// StartAgent runs `moraine agent -dev` in a folder, which may hold the state of
// an earlier agent, until it is ready.
func StartAgent(binary, dir string) (*Agent, error) {
	binary, err := filepath.Abs(binary)
	if err != nil {
		return nil, err
	}
	socket := filepath.Join(dir, "run", "agent.sock")
	address := socket
	start := time.Now()
	p, err := Start(binary, "agent", "-dev", "-data-dir", dir, "-run-dir", filepath.Dir(socket),
		"-docker-socket", filepath.Join(dir, "docker.sock"), "-address", address)
	if err != nil {
		return nil, err
	}
	a := &Agent{Dir: dir, p: p}
	if err := p.await("agent", func() bool { return strings.Contains(p.Output(), "moraine agent is ready") }); err != nil {
		return nil, errors.Join(err, p.Stop())
	}
	a.Ready = time.Since(start)
	if a.api, err = client.New(address); err != nil {
		return nil, errors.Join(err, p.Stop())
	}
	return a, nil
}

// PID of the agent.
func (a *Agent) PID() int { return a.p.PID() }

// Tree is the agent, its plugins, and the holder that has left its tree.
func (a *Agent) Tree() ([]int, error) {
	tree, err := Tree(a.PID())
	if err != nil {
		return nil, err
	}
	holders, err := a.holders()
	if err != nil {
		return nil, err
	}
	for _, pid := range holders {
		if !slices.Contains(tree, pid) {
			tree = append(tree, pid)
		}
	}
	return tree, nil
}

// holders are the processes that keep this agent's devices.
func (a *Agent) holders() ([]int, error) {
	return withArgument(filepath.Join(a.Dir, "run", "holder.sock"))
}

// Stop ends the agent, and the holder, which outlives it: detach first.
func (a *Agent) Stop() error {
	err := errors.Join(a.api.Close(), a.p.Stop())
	left, herr := a.holders()
	for _, pid := range left {
		// It ignores what ends other processes. It may have ended already.
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	return errors.Join(err, herr)
}

func call[T any](what string, f func(ctx context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	v, err := f(ctx)
	if err != nil {
		err = fmt.Errorf("%s: %w", what, err)
	}
	return v, err
}

// Create makes a volume without a filesystem.
func (a *Agent) Create(name string, size int64) error {
	_, err := call("create volume "+name, func(ctx context.Context) (*apiv1.Volume, error) {
		return a.api.CreateVolume(ctx, &apiv1.CreateVolumeRequest{Name: name, Spec: &apiv1.VolumeSpec{SizeBytes: size, Fs: "none", Replicas: 1}})
	})
	return err
}

// Attach makes a volume a block device and returns its path.
func (a *Agent) Attach(name string) (string, error) {
	r, err := call("attach volume "+name, func(ctx context.Context) (*apiv1.AttachVolumeResponse, error) {
		return a.api.AttachVolume(ctx, &apiv1.AttachVolumeRequest{Name: name})
	})
	return r.GetDevice(), err
}

// Detach ends that.
func (a *Agent) Detach(name string) error {
	_, err := call("detach volume "+name, func(ctx context.Context) (*apiv1.DetachVolumeResponse, error) {
		return a.api.DetachVolume(ctx, &apiv1.DetachVolumeRequest{Name: name})
	})
	return err
}

// Export serves a volume on its NBD socket. Stop of the server ends the agent.
func (a *Agent) Export(name string) (*Server, error) {
	r, err := call("export volume "+name, func(ctx context.Context) (*apiv1.ExportVolumeResponse, error) {
		return a.api.ExportVolume(ctx, &apiv1.ExportVolumeRequest{Name: name})
	})
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(r.GetUri())
	if err != nil || u.Query().Get("socket") == "" {
		return nil, fmt.Errorf("export volume %s: URI %q has no socket (%v)", name, r.GetUri(), err)
	}
	return &Server{
		Name: "moraine", Socket: u.Query().Get("socket"), Export: strings.TrimPrefix(u.Path, "/"), PID: a.PID(),
		Snapshot: func(snap string) error { return a.snapshot(name, snap) },
		Drop:     func(snap string) error { return a.drop(name + "@" + snap) },
		close:    a.Stop,
	}, nil
}

func (a *Agent) snapshot(volume, name string) error {
	_, err := call("snapshot "+volume, func(ctx context.Context) (*apiv1.Snapshot, error) {
		return a.api.CreateSnapshot(ctx, &apiv1.CreateSnapshotRequest{Volume: volume, Name: name})
	})
	return err
}

func (a *Agent) drop(name string) error {
	_, err := call("delete snapshot "+name, func(ctx context.Context) (*apiv1.DeleteSnapshotResponse, error) {
		return a.api.DeleteSnapshot(ctx, &apiv1.DeleteSnapshotRequest{Name: name})
	})
	return err
}

// Volume starts an agent in a folder and serves a new volume by it.
func Volume(binary, dir string, size int64) (*Server, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	a, err := StartAgent(binary, dir)
	if err != nil {
		return nil, err
	}
	var s *Server
	if err = a.Create("bench", size); err == nil {
		s, err = a.Export("bench")
	}
	if err != nil {
		return nil, errors.Join(err, a.Stop())
	}
	s.dirs = []string{dir} // nothing is mounted there: the volume is a socket
	return s, nil
}
