package membership

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/moraine-storage/moraine/agent/cluster"
	"github.com/moraine-storage/moraine/agent/cluster/etcdkv"
	"github.com/moraine-storage/moraine/agent/cluster/records"
	"github.com/moraine-storage/moraine/agent/identity"
	membershipv1 "github.com/moraine-storage/moraine/agent/membership/v1"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// Options of a node.
type Options struct {
	// DataDir holds identity, member and contacts.
	DataDir string
	// Name of the node, unique in the cluster.
	Name string
	// Bind is the IP address at which others reach this node; "": they do not,
	// and it is a cluster of one.
	Bind string
	// PeerPort and ClientPort of the node's member of the store; not used
	// without Bind.
	PeerPort, ClientPort int
	// APIAddress is host:port of the node's API; "" without Bind.
	APIAddress string
	// Join lists nodes (host:port of their APIs), one of which is asked to take
	// this node in, if it has no identity yet. Nodes that are no servers refuse.
	Join []string
	// Token is what Join asks with.
	Token string
	// Server lets the node keep a copy of the store. What it has joined as is
	// what it is: the option is asked for then.
	Server bool
	// Labels and Version go into the node's record.
	Labels  map[string]string
	Version string
	// Logger; nil: none.
	Logger hclog.Logger
	// Failed, if not nil, is told when this node's member of the store fails, and
	// (ErrRemoved) when the node was removed while it ran.
	Failed func(error)

	// interval and deadAfter override the limits, for tests.
	interval, deadAfter time.Duration
}

func (o *Options) identityDir() string  { return filepath.Join(o.DataDir, "identity") }
func (o *Options) storeDir() string     { return filepath.Join(o.DataDir, "etcd") }
func (o *Options) contactsFile() string { return filepath.Join(o.DataDir, "contacts.json") }

// PeerURL and ClientURL are those of the node's member; "" without Bind.
func (o *Options) PeerURL() string { return o.url(o.PeerPort) }

// ClientURL: see PeerURL.
func (o *Options) ClientURL() string { return o.url(o.ClientPort) }

func (o *Options) url(port int) string {
	if o.Bind == "" {
		return ""
	}
	return "https://" + net.JoinHostPort(o.Bind, strconv.Itoa(port))
}

// Addresses go into the node's certificate.
func (o *Options) Addresses() []string {
	if o.Bind == "" {
		return nil
	}
	return []string{o.Bind}
}

// Node is this node as part of its cluster.
type Node struct {
	o       Options
	log     hclog.Logger
	node    records.ID
	id      *identity.Identity
	kv      *etcdkv.Client // never nil after Open
	records *records.Store
	tokens  *identity.Tokens

	// member is this node's member of the store, or nil. Owned by Open, then
	// by run, then by Close.
	member *etcdkv.Server
	told   bool                     // member's failure was reported; of run
	gone   bool                     // this node was removed; of run
	silent map[records.ID]time.Time // nodes without a life, since when; of run

	mu    sync.Mutex
	known contacts // guarded by mu

	closeOnce sync.Once
	cancel    context.CancelFunc // ends run
	done      chan struct{}      // closed when run has ended
	closeErr  error
}

// Open makes this node part of its cluster, or takes up where it was, and
// returns when the cluster store answers; that may wait for other nodes as long
// as ctx does. ErrRemoved when the cluster has removed this node.
func Open(ctx context.Context, o Options) (*Node, error) {
	if o.Name == "" || o.DataDir == "" {
		return nil, fmt.Errorf("open node: name and data directory must be set: %w", errdefs.ErrInvalidArgument)
	}
	if o.Bind == "" && len(o.Join) > 0 {
		return nil, fmt.Errorf("open node: to join others, this node needs an address at which they reach it (bind): %w", errdefs.ErrInvalidArgument)
	}
	if ip := net.ParseIP(o.Bind); o.Bind != "" && (ip == nil || ip.IsUnspecified()) {
		return nil, fmt.Errorf("open node: bind %q: want the one IP address at which other nodes reach this one: %w", o.Bind, errdefs.ErrInvalidArgument)
	}
	if o.interval == 0 {
		o.interval = interval
	}
	if o.deadAfter == 0 {
		o.deadAfter = deadAfter
	}
	n := &Node{o: o, log: o.Logger, done: make(chan struct{}), silent: map[records.ID]time.Time{}}
	if n.log == nil {
		n.log = hclog.NewNullLogger()
	}
	if err := n.open(ctx); err != nil {
		n.release()
		return nil, err
	}
	runCtx, cancel := context.WithCancel(context.Background())
	n.cancel = cancel
	go n.run(runCtx)
	return n, nil
}

func (n *Node) open(ctx context.Context) (err error) {
	if err := os.MkdirAll(n.o.DataDir, 0o700); err != nil {
		return err
	}
	if n.node, err = NodeID(n.o.DataDir); err != nil {
		return err
	}
	n.known = loadContacts(n.o.contactsFile())
	n.id, err = identity.Open(n.o.identityDir())
	switch {
	case errdefs.IsNotFound(err) && len(n.o.Join) > 0 && n.hasStore():
		return fmt.Errorf("join %v: this node has a cluster of its own in %s; to join another, its data directory must be empty: %w", n.o.Join, n.o.DataDir, errdefs.ErrFailedPrecondition)
	case errdefs.IsNotFound(err) && len(n.o.Join) > 0:
		err = n.joinCluster(ctx)
	case errdefs.IsNotFound(err):
		err = n.bootstrap(ctx)
	}
	if err != nil {
		return err
	}
	if n.id.Node() != n.node {
		return fmt.Errorf("%s: the certificate is of node %s, the data directory of node %s: %w", n.o.identityDir(), n.id.Node(), n.node, errdefs.ErrFailedPrecondition)
	}
	n.renewBeforeStart(ctx)
	if err := n.stillBelongs(ctx); err != nil {
		return err
	}
	if err := n.openMember(ctx); err != nil {
		return err
	}
	if n.kv == nil {
		if err := n.dial(ctx); err != nil {
			return err
		}
	}
	n.records = records.New(n.kv)
	n.tokens = identity.NewTokens(n.records, n.id.AuthorityHash())
	return n.check(ctx)
}

// hasStore says whether this node has a member that has served.
func (n *Node) hasStore() bool {
	logs, err := filepath.Glob(filepath.Join(n.o.storeDir(), "member", "wal", "*.wal"))
	return err == nil && len(logs) > 0
}

func (n *Node) joinCluster(ctx context.Context) error {
	id, c, err := join(ctx, &n.o, n.node)
	if err != nil {
		return err
	}
	n.id = id
	n.learn(c)
	n.log.Info("joined", "cluster", id.Cluster(), "node", n.node, "server", id.Server())
	return nil
}

// bootstrap makes the store of a new cluster, or opens that of a node which had
// no identity yet, and gives it an authority.
func (n *Node) bootstrap(ctx context.Context) error {
	s, err := etcdkv.Start(ctx, etcdkv.ServerOptions{Dir: n.o.storeDir(), Name: string(n.node), Logger: n.log.Named("etcd")})
	if err != nil {
		return err
	}
	n.member = s
	kv := s.Client()
	st := records.New(kv)
	cl, err := st.Bootstrap(ctx)
	if err != nil {
		return errors.Join(err, kv.Close())
	}
	if len(cl.Authority) > 0 {
		return errors.Join(fmt.Errorf("%s is missing: without it this node cannot prove that it belongs to cluster %s; put it back: %w", n.o.identityDir(), cl.Id, errdefs.ErrFailedPrecondition), kv.Close())
	}
	n.id, err = identity.Bootstrap(n.o.identityDir(), records.ID(cl.Id), identity.Subject{Node: n.node, Server: true, Addresses: n.o.Addresses()})
	if err == nil {
		_, err = st.SetAuthority(ctx, n.id.AuthorityCertificate())
	}
	if n.o.Bind == "" && err == nil {
		n.kv = kv
		return nil
	}
	// It goes on as a member that listens.
	n.member = nil
	return errors.Join(err, kv.Close(), s.Close())
}

// renewBeforeStart renews what other nodes would not take any more. A server
// does it by itself: its store may need it to start.
func (n *Node) renewBeforeStart(ctx context.Context) {
	if time.Now().Before(n.id.RenewAt()) && n.sameAddresses() {
		return
	}
	if err := n.renew(ctx); err != nil {
		n.log.Warn("certificate not renewed", "ends", n.id.Expires(), "error", err)
	}
}

func (n *Node) sameAddresses() bool { return slices.Equal(n.id.Addresses(), n.o.Addresses()) }

func (n *Node) renew(ctx context.Context) error {
	if n.id.Authority() != nil {
		return n.id.RenewSelf(identity.Subject{Server: n.id.Server(), Addresses: n.o.Addresses()})
	}
	var errs []error
	for _, address := range n.others() {
		err := renewAt(ctx, &n.o, n.id, address)
		if err == nil {
			return nil
		}
		errs = append(errs, fmt.Errorf("at %s: %w", address, err))
	}
	return errors.Join(append(errs, fmt.Errorf("renew certificate: no server did it: %w", errdefs.ErrUnavailable))...)
}

// others are the APIs of the nodes that this one has heard of.
func (n *Node) others() []string {
	n.mu.Lock()
	all := slices.Concat(n.known.API, n.o.Join)
	n.mu.Unlock()
	return slices.DeleteFunc(trimContacts(all), func(s string) bool { return s == n.o.APIAddress })
}

// stillBelongs asks others, if any answer, whether this node was removed.
func (n *Node) stillBelongs(ctx context.Context) error {
	api := n.others()
	if n.o.Bind == "" || len(api) == 0 {
		return nil
	}
	c, err := askContacts(ctx, n.id, api, n.o.APIAddress)
	switch {
	case err == nil:
		n.learn(c)
	case isRemoved(err):
		return fmt.Errorf("%w: %w", ErrRemoved, err)
	default:
		n.log.Debug("no other node answers yet", "error", err)
	}
	return nil
}

// learn takes over where others are.
func (n *Node) learn(c *membershipv1.Contacts) {
	next := contacts{Store: trimContacts(c.GetStore()), API: trimContacts(c.GetApi())}
	n.mu.Lock()
	same := n.known.equal(next)
	n.known = next
	n.mu.Unlock()
	if same {
		return
	}
	if err := saveContacts(n.o.contactsFile(), next); err != nil {
		n.log.Warn("contacts not saved", "error", err)
	}
}

// openMember starts this node's member of the store, if it has one.
func (n *Node) openMember(ctx context.Context) error {
	if n.member != nil || !n.hasStore() {
		return nil
	}
	patience := memberPatience
	if n.o.Bind != "" {
		patience = 365 * 24 * time.Hour // for a majority of the others; ctx ends it
	}
	s, err := etcdkv.Start(ctx, n.serverOptions(nil, patience))
	switch {
	case err == nil:
	case errors.Is(err, etcdkv.ErrRemoved) && n.o.Bind != "" && len(n.storeOthers()) > 0:
		// The other members have removed it; that may be because its disk was
		// taken for lost. The node itself may still belong: its record tells.
		n.log.Warn("this node's copy of the cluster store is of no use any more", "error", err)
		return n.dropStore()
	default:
		return err
	}
	n.member = s
	if n.o.Bind == "" {
		n.kv = s.Client()
	}
	return nil
}

// storeOthers are the client URLs of members on other nodes.
func (n *Node) storeOthers() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(n.known.Store), func(s string) bool { return s == n.o.ClientURL() })
}

func (n *Node) serverOptions(join []etcdkv.PeerMember, patience time.Duration) etcdkv.ServerOptions {
	o := etcdkv.ServerOptions{Dir: n.o.storeDir(), Name: string(n.node), Logger: n.log.Named("etcd"), Join: join, Patience: patience}
	if n.o.Bind != "" {
		f := n.id.Files()
		o.Listen = &etcdkv.Listen{
			PeerURL: n.o.PeerURL(), ClientURL: n.o.ClientURL(),
			TLS: etcdkv.TLSFiles{CA: f.CA, Certificate: f.Certificate, Key: f.Key}, ServerName: identity.ServerName(n.id.Cluster()),
		}
	}
	return o
}

// dropStore removes the directory of a member that is none any more.
func (n *Node) dropStore() error {
	if n.member != nil {
		err := n.member.Close()
		n.member = nil
		if err != nil {
			return err
		}
	}
	return os.RemoveAll(n.o.storeDir())
}

// dial connects to the store, trying until it answers or ctx ends.
func (n *Node) dial(ctx context.Context) error {
	for try := 0; ; try++ {
		endpoints := n.storeOthers()
		if n.member != nil && (!n.member.Learner() || len(endpoints) == 0) { // a learner answers no clients
			endpoints = append(endpoints, n.o.ClientURL())
		}
		var err error
		if len(endpoints) == 0 {
			err = fmt.Errorf("the cluster store of this node is missing (%s), and it knows no other node that has it: %w", n.o.storeDir(), errdefs.ErrDataLoss)
			if len(n.others()) == 0 {
				return err
			}
		} else {
			n.kv, err = etcdkv.Dial(ctx, etcdkv.ClientOptions{Endpoints: endpoints, TLS: n.id.ClientTLS(identity.Who{Server: true}), Logger: n.log.Named("etcd")})
			if err == nil {
				return nil
			}
		}
		if ctx.Err() != nil {
			return fmt.Errorf("reach the cluster store: %w", errors.Join(ctx.Err(), err))
		}
		if try%10 == 0 {
			n.log.Warn("the cluster store does not answer; trying on", "error", err)
		}
		if err := n.stillBelongs(ctx); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(n.o.interval):
		}
	}
}

// check compares the store with what this node is.
func (n *Node) check(ctx context.Context) error {
	if err := checkRemoved(ctx, n.records, n.node); err != nil {
		return err
	}
	cl, err := n.records.Cluster(ctx)
	if err != nil {
		return err
	}
	if records.ID(cl.Id) != n.id.Cluster() {
		return fmt.Errorf("the store is of cluster %s, this node of cluster %s: %w", cl.Id, n.id.Cluster(), errdefs.ErrFailedPrecondition)
	}
	der, err := n.records.SetAuthority(ctx, n.id.AuthorityCertificate()) // a crash may have come before it
	if err != nil {
		return err
	}
	if string(der) != string(n.id.AuthorityCertificate()) {
		return fmt.Errorf("the store has another authority for cluster %s than this node: %w", cl.Id, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// KV is the cluster store as this node reaches it. It is closed by Close.
func (n *Node) KV() cluster.KV { return n.kv }

// Records are the typed records in it.
func (n *Node) Records() *records.Store { return n.records }

// ID is the node's identity.
func (n *Node) ID() records.ID { return n.node }

// Identity has the node's certificate.
func (n *Node) Identity() *identity.Identity { return n.id }

// Tokens of the cluster.
func (n *Node) Tokens() *identity.Tokens { return n.tokens }

// Contacts tells where nodes and members are, as far as this node knows.
func (n *Node) Contacts(context.Context) *membershipv1.Contacts {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := &membershipv1.Contacts{Store: slices.Clone(n.known.Store), Api: slices.Clone(n.known.API)}
	if n.o.Bind != "" {
		c.Api = trimContacts(append(c.Api, n.o.APIAddress))
		if len(c.Store) == 0 { // a new cluster, before its first look
			c.Store = []string{n.o.ClientURL()}
		}
	}
	return c
}

// Close leaves the cluster store; the node stays what it is. Idempotent.
func (n *Node) Close() error {
	n.closeOnce.Do(func() {
		n.cancel()
		<-n.done
		n.closeErr = n.release()
	})
	return n.closeErr
}

func (n *Node) release() error {
	var err error
	if n.kv != nil {
		err = n.kv.Close()
	}
	if n.member != nil {
		err = errors.Join(err, n.member.Close())
	}
	return err
}
