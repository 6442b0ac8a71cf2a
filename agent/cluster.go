package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"

	"github.com/moraine-storage/moraine/agent/api"
	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	"github.com/moraine-storage/moraine/agent/apiserver"
	recordsv1 "github.com/moraine-storage/moraine/agent/cluster/records/v1"
	"github.com/moraine-storage/moraine/agent/identity"
	"github.com/moraine-storage/moraine/agent/membership"
	"github.com/moraine-storage/moraine/agent/version"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// tokenBytesMax bounds a token's file: a token has 140 bytes.
const tokenBytesMax = 4096

// startMembership makes this node part of its cluster: a new one, the one it is
// to join, or the one it belongs to already.
func (a *Agent) startMembership(ctx context.Context) error {
	o := membership.Options{
		DataDir: a.cfg.DataDir, Name: a.cfg.Name, Server: a.cfg.Cluster.Server, Labels: a.cfg.Labels, Version: version.Version,
		Logger: a.logger.Named("cluster"), Failed: a.memberFailed,
	}
	if a.cfg.Reachable() {
		o.Bind, o.PeerPort, o.ClientPort = a.cfg.Bind, a.cfg.Ports.EtcdPeer, a.cfg.Ports.EtcdClient
		o.APIAddress, o.Join = a.cfg.HostPort(a.cfg.Ports.API), a.cfg.Cluster.Join
	}
	if len(o.Join) > 0 {
		var err error
		if o.Token, err = readToken(a.cfg.Cluster.TokenFile); err != nil {
			return err
		}
	}
	n, err := membership.Open(ctx, o)
	if err != nil {
		return err
	}
	a.onStop("cluster store", func(context.Context) error { return n.Close() })
	a.parts.member, a.parts.kv, a.parts.records = n, n.KV(), n.Records()
	a.parts.cluster = string(n.Identity().Cluster())
	return nil
}

// readToken reads the token to join with. It need not be there any more once
// the node has joined: the join itself says if it is missing.
func readToken(path string) (string, error) {
	st, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err == nil && st.Size() > tokenBytesMax {
		err = fmt.Errorf("%d bytes are no token: %w", st.Size(), errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return "", fmt.Errorf("cluster.token_file: %s: %w", path, err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("cluster.token_file: %w", err)
	}
	return string(b), nil
}

// memberFailed hears that this node's copy of the store has failed, or that the
// node was removed. Attached volumes go on without the store (rule 8): say so,
// stay up. A node that was removed stops.
func (a *Agent) memberFailed(err error) {
	if errors.Is(err, membership.ErrRemoved) {
		a.fail(err)
		return
	}
	a.parts.events.Record(apiv1.Severity_ERROR, "cluster-store.failed", "node "+a.cfg.Name, err.Error())
}

// nodesAPI is nil when the cluster's store is outside the agent.
func (a *Agent) nodesAPI() api.Nodes {
	if a.parts.member == nil {
		return nil
	}
	return a.parts.member.API()
}

// startTCP serves the API, and those who join, to other machines.
func (a *Agent) startTCP(context.Context) error {
	m := a.parts.member
	if m == nil || !a.cfg.Reachable() {
		return nil
	}
	path, h := m.Handler()
	s, err := apiserver.StartTCP(a.parts.volumes, apiserver.TCPOptions{
		Address: a.cfg.HostPort(a.cfg.Ports.API), TLS: m.Identity().OpenServerTLS(identity.Who{Lapsed: true}),
		Authorize: a.authorize, Nodes: m.API(), Open: map[string]http.Handler{path: h}, Logger: a.logger.Named("api"),
	})
	if err != nil {
		return err
	}
	a.onStop("API for other nodes", func(context.Context) error { return s.Close() })
	a.tasks.Go(func() {
		select {
		case <-a.closeCtx.Done():
		case <-s.Done():
			if err := s.Err(); err != nil {
				a.fail(fmt.Errorf("API for other nodes: %w", err))
			}
		}
	})
	return nil
}

// authorize gives callers over TCP their roles.
func (a *Agent) authorize(r *http.Request) (string, apiserver.Role, error) {
	name, role, err := a.parts.member.Authorize(r)
	return name, map[recordsv1.TokenRole]apiserver.Role{
		recordsv1.TokenRole_READER: apiserver.Reader, recordsv1.TokenRole_OPERATOR: apiserver.Operator, recordsv1.TokenRole_ADMIN: apiserver.Admin,
	}[role], err
}
