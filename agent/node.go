package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/moraine-storage/moraine/agent/cluster"
	"github.com/moraine-storage/moraine/agent/cluster/etcdkv"
	"github.com/moraine-storage/moraine/agent/cluster/records"
	recordsv1 "github.com/moraine-storage/moraine/agent/cluster/records/v1"
	"github.com/moraine-storage/moraine/agent/config"
	"github.com/moraine-storage/moraine/agent/drive"
	"github.com/moraine-storage/moraine/agent/membership"
	"github.com/moraine-storage/moraine/agent/version"
	"github.com/moraine-storage/moraine/drivers"
	"github.com/moraine-storage/moraine/plugins/errdefs"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// startNode makes or finds the node's record and says that the node lives.
func (a *Agent) startNode(ctx context.Context) error {
	id, err := membership.NodeID(a.cfg.DataDir)
	if err != nil {
		return err
	}
	a.parts.node = string(id)
	if err := a.recordNode(ctx, id); err != nil {
		return err
	}
	a.tasks.Go(func() { a.keepAlive(id) })
	return nil
}

// recordNode brings the node's record up to date.
func (a *Agent) recordNode(ctx context.Context, id records.ID) error {
	if a.parts.member != nil {
		return a.parts.member.Register(ctx, a.cfg.Labels)
	}
	return membership.RegisterOutside(ctx, a.parts.records, id, a.cfg.Name, a.cfg.Labels, version.Version)
}

// keepAlive keeps the node's lease, and takes a new one when it was lost.
func (a *Agent) keepAlive(id records.ID) {
	life := &recordsv1.Life{Id: string(id), Start: string(records.NewID()), StartedAt: timestamppb.Now(), BootId: drivers.BootID()}
	for a.closeCtx.Err() == nil {
		err := a.live(life)
		if a.closeCtx.Err() != nil {
			return
		}
		a.logger.Warn("node lease", "error", err)
		select {
		case <-a.closeCtx.Done():
		case <-time.After(time.Second):
		}
	}
}

func (a *Agent) live(life *recordsv1.Life) error {
	l, err := a.parts.kv.Grant(a.closeCtx, a.cfg.Timeouts.NodeLease)
	if err != nil {
		return err
	}
	if err := a.parts.records.Announce(a.closeCtx, life, l.ID()); err != nil {
		return err
	}
	return cluster.KeepLease(a.closeCtx, l, func(err error) { a.logger.Debug("node lease", "error", err) })
}

// dialEtcd connects to a cluster store outside the agent.
func (a *Agent) dialEtcd(ctx context.Context) (cluster.KV, error) {
	e := a.cfg.Etcd
	o := etcdkv.ClientOptions{Endpoints: e.Endpoints, Username: e.Username, Prefix: e.Prefix, Logger: a.logger.Named("etcd")}
	if e.PasswordFile != "" {
		b, err := os.ReadFile(e.PasswordFile)
		if err != nil {
			return nil, fmt.Errorf("etcd: password_file: %w", err)
		}
		o.Password = strings.TrimRight(string(b), "\r\n")
	}
	var err error
	if o.TLS, err = etcdTLS(e); err != nil {
		return nil, err
	}
	return etcdkv.Dial(ctx, o)
}

func etcdTLS(e config.Etcd) (*tls.Config, error) {
	if e.CAFile == "" && e.CertFile == "" {
		return nil, nil
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	if e.CAFile != "" {
		b, err := os.ReadFile(e.CAFile)
		if err != nil {
			return nil, fmt.Errorf("etcd: ca_file: %w", err)
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(b) {
			return nil, fmt.Errorf("etcd: ca_file %s has no certificate: %w", e.CAFile, errdefs.ErrInvalidArgument)
		}
	}
	if e.CertFile != "" {
		c, err := tls.LoadX509KeyPair(e.CertFile, e.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("etcd: cert_file, key_file: %w", err)
		}
		t.Certificates = []tls.Certificate{c}
	}
	return t, nil
}

// registry keeps drive records for the drive manager.
type registry struct{ r *records.Store }

func (r registry) GetDrive(ctx context.Context, id string) (drive.Record, error) {
	v, err := r.r.Drives.Get(ctx, records.ID(id))
	if err != nil {
		return drive.Record{}, err
	}
	return driveRecord(v), nil
}

func (r registry) ListDrives(ctx context.Context) ([]drive.Record, error) {
	all, _, err := r.r.Drives.List(ctx)
	var out []drive.Record
	for _, v := range all {
		out = append(out, driveRecord(v))
	}
	return out, err
}

func driveRecord(v records.Versioned[*recordsv1.Drive]) drive.Record {
	d := v.Record
	return drive.Record{
		ID: d.Id, Node: d.NodeId, Pool: d.Pool, Backend: d.Backend, Source: d.PathHint, Serial: d.Serial, Size: d.SizeBytes,
		OpenCounter: d.OpenCounter, Open: d.Open, Formatted: d.Formatted, Revision: v.Revision,
	}
}

func (r registry) PutDrive(ctx context.Context, in drive.Record) (drive.Record, error) {
	fill := func(d *recordsv1.Drive) {
		d.NodeId, d.Pool, d.Backend, d.PathHint, d.Serial, d.SizeBytes = in.Node, in.Pool, in.Backend, in.Source, in.Serial, in.Size
		d.OpenCounter, d.Open, d.Formatted, d.State = in.OpenCounter, in.Open, in.Formatted, recordsv1.DriveState_DRIVE_READY
	}
	if in.Revision == 0 {
		d := &recordsv1.Drive{Id: in.ID, CreatedAt: timestamppb.Now()}
		fill(d)
		v, err := r.r.Drives.Create(ctx, d)
		if err != nil {
			return in, err
		}
		in.Revision = v.Revision
		return in, nil
	}
	// Read again, so that fields this agent does not know survive.
	v, err := r.r.Drives.Get(ctx, records.ID(in.ID))
	if err != nil {
		return in, err
	}
	if v.Revision != in.Revision {
		return in, fmt.Errorf("drive %s: changed by another: %w", in.ID, errdefs.ErrAborted)
	}
	fill(v.Record)
	if v, err = r.r.Drives.Update(ctx, v); err != nil {
		return in, err
	}
	in.Revision = v.Revision
	return in, nil
}
