package records

import (
	"context"
	"fmt"
	"regexp"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/moraine-storage/moraine/agent/cluster"
	recordsv1 "github.com/moraine-storage/moraine/agent/cluster/records/v1"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// Store gives typed access to a cluster store.
type Store struct {
	Nodes      *Collection[*recordsv1.Node]
	Drives     *Collection[*recordsv1.Drive]
	Volumes    *Collection[*recordsv1.Volume]
	Tombstones *Collection[*recordsv1.Tombstone]
	Operations *Collection[*recordsv1.Operation]

	// Who belongs to the cluster, and who may speak to it.
	RemovedNodes *Collection[*recordsv1.RemovedNode]
	StoreMembers *Collection[*recordsv1.StoreMember]
	Tokens       *Collection[*recordsv1.Token]

	// Lives is read and watched here, written by Announce.
	Lives *Collection[*recordsv1.Life]

	kv cluster.KV
}

// New returns typed access to kv, which stays the caller's to close.
func New(kv cluster.KV) *Store {
	return &Store{
		kv: kv,
		Nodes: &Collection[*recordsv1.Node]{
			kv: kv, kind: "node", empty: func() *recordsv1.Node { return new(recordsv1.Node) },
			name:      (*recordsv1.Node).GetName,
			setOldest: func(m *recordsv1.Node, v uint32) { m.OldestReader = v },
		},
		Lives: &Collection[*recordsv1.Life]{
			kv: kv, kind: "life", empty: func() *recordsv1.Life { return new(recordsv1.Life) },
			setOldest: func(m *recordsv1.Life, v uint32) { m.OldestReader = v },
		},
		Drives: &Collection[*recordsv1.Drive]{
			kv: kv, kind: "drive", empty: func() *recordsv1.Drive { return new(recordsv1.Drive) },
			setOldest: func(m *recordsv1.Drive, v uint32) { m.OldestReader = v },
		},
		Volumes: &Collection[*recordsv1.Volume]{
			kv: kv, kind: "volume", empty: func() *recordsv1.Volume { return new(recordsv1.Volume) },
			name:      (*recordsv1.Volume).GetName,
			stamp:     func(v *recordsv1.Volume) { v.Attempt = string(NewID()) },
			setOldest: func(m *recordsv1.Volume, v uint32) { m.OldestReader = v },
		},
		Tombstones: &Collection[*recordsv1.Tombstone]{
			kv: kv, kind: "tombstone", empty: func() *recordsv1.Tombstone { return new(recordsv1.Tombstone) },
			setOldest: func(m *recordsv1.Tombstone, v uint32) { m.OldestReader = v },
		},
		Operations: &Collection[*recordsv1.Operation]{
			kv: kv, kind: "operation", empty: func() *recordsv1.Operation { return new(recordsv1.Operation) },
			setOldest: func(m *recordsv1.Operation, v uint32) { m.OldestReader = v },
		},
		RemovedNodes: &Collection[*recordsv1.RemovedNode]{
			kv: kv, kind: "removed-node", empty: func() *recordsv1.RemovedNode { return new(recordsv1.RemovedNode) },
			setOldest: func(m *recordsv1.RemovedNode, v uint32) { m.OldestReader = v },
		},
		StoreMembers: &Collection[*recordsv1.StoreMember]{
			kv: kv, kind: "store-member", empty: func() *recordsv1.StoreMember { return new(recordsv1.StoreMember) },
			setOldest: func(m *recordsv1.StoreMember, v uint32) { m.OldestReader = v },
		},
		Tokens: &Collection[*recordsv1.Token]{
			kv: kv, kind: "token", empty: func() *recordsv1.Token { return new(recordsv1.Token) },
			setOldest: func(m *recordsv1.Token, v uint32) { m.OldestReader = v },
		},
	}
}

// NamePattern is what names of nodes, volumes and snapshots look like: 1 to
// 128 letters, digits, '_', '.', '-', with a letter or digit at both ends.
const NamePattern = `[A-Za-z0-9]([A-Za-z0-9_.-]{0,126}[A-Za-z0-9])?`

var nameRE = regexp.MustCompile(`^(?:` + NamePattern + `)$`)

func validateName(kind, name string) error {
	if !nameRE.MatchString(name) {
		return fmt.Errorf("%s name %.140q: want 1 to 128 letters, digits, '_', '.', '-', with a letter or digit at both ends: %w", kind, name, errdefs.ErrInvalidArgument)
	}
	return nil
}

const clusterKey = "cluster"

// Cluster reads the cluster's record; NotFound before Bootstrap.
func (s *Store) Cluster(ctx context.Context) (*recordsv1.Cluster, error) {
	it, err := s.kv.Get(ctx, clusterKey)
	if err != nil {
		return nil, fmt.Errorf("cluster record: %w", err)
	}
	m := new(recordsv1.Cluster)
	if err := proto.Unmarshal(it.Value, m); err != nil {
		return nil, fmt.Errorf("cluster record: %w: %v", ErrDamaged, err)
	}
	_, idErr := ParseID(m.Id)
	_, incErr := ParseID(m.Incarnation)
	switch {
	case m.OldestReader > FormatVersion:
		return nil, fmt.Errorf("cluster record: needs format %d, this agent has %d: %w", m.OldestReader, FormatVersion, ErrNewerFormat)
	case m.OldestReader == 0 || idErr != nil || incErr != nil:
		return nil, fmt.Errorf("cluster record: %w: identity or incarnation is missing", ErrDamaged)
	}
	return m, nil
}

// Bootstrap makes the cluster's record if there is none, with a new identity
// and incarnation, and returns the one that is there.
func (s *Store) Bootstrap(ctx context.Context) (*recordsv1.Cluster, error) {
	m, err := s.Cluster(ctx)
	if !errdefs.IsNotFound(err) {
		return m, err
	}
	m = &recordsv1.Cluster{
		OldestReader: FormatVersion, Id: string(NewID()), Incarnation: string(NewID()), CreatedAt: timestamppb.Now(),
	}
	b, err := proto.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("cluster record: %w", err)
	}
	res, err := s.kv.Txn(ctx, cluster.Txn{
		If: []cluster.Cond{cluster.Absent(clusterKey)}, Then: []cluster.Op{cluster.Put(clusterKey, b)},
	})
	if err != nil {
		return nil, fmt.Errorf("make cluster record: %w", err)
	}
	if !res.OK { // another agent was faster
		return s.Cluster(ctx)
	}
	return m, nil
}

// SetAuthority writes the certificate of the cluster's authority into the
// cluster's record, and returns the one that is there afterwards: that of
// another agent, if it was faster.
func (s *Store) SetAuthority(ctx context.Context, der []byte) ([]byte, error) {
	for {
		it, err := s.kv.Get(ctx, clusterKey)
		if err != nil {
			return nil, fmt.Errorf("cluster record: %w", err)
		}
		if _, err := s.Cluster(ctx); err != nil { // its format may be too new for us to write
			return nil, err
		}
		m := new(recordsv1.Cluster)
		if err := proto.Unmarshal(it.Value, m); err != nil {
			return nil, fmt.Errorf("cluster record: %w: %v", ErrDamaged, err)
		}
		if len(m.Authority) > 0 {
			return m.Authority, nil
		}
		m.Authority = der
		b, err := proto.Marshal(m)
		if err != nil {
			return nil, fmt.Errorf("cluster record: %w", err)
		}
		res, err := s.kv.Txn(ctx, cluster.Txn{
			If: []cluster.Cond{cluster.AtRevision(clusterKey, it.ModRevision)}, Then: []cluster.Op{cluster.Put(clusterKey, b)},
		})
		if err != nil {
			return nil, fmt.Errorf("write cluster record: %w", err)
		}
		if res.OK {
			return der, nil
		}
	}
}

// Announce tells that a node's agent lives, for as long as the lease does. It
// replaces the life of an earlier start of the same agent.
func (s *Store) Announce(ctx context.Context, life *recordsv1.Life, lease cluster.LeaseID) error {
	b, err := s.Lives.encode(life)
	if err != nil {
		return err
	}
	_, err = s.kv.Txn(ctx, cluster.Txn{Then: []cluster.Op{cluster.PutLeased(s.Lives.key(ID(life.Id)), b, lease)}})
	if err != nil {
		return fmt.Errorf("announce node %s: %w", life.Id, err)
	}
	return nil
}
