package etcdkv

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/agent/cluster"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// ServerOptions of an embedded store.
type ServerOptions struct {
	// Dir is the data directory; made, with mode 0700, when it is not there.
	Dir string

	// Name of the member, unique among the members: the node's identity.
	Name string

	// Listen is how other members and clients reach this one; nil: not at all,
	// which is enough for a store of one.
	Listen *Listen

	// Join makes the first start that of a member which Client.AddLearner has
	// made room for: all members, this one among them. nil: a store of its
	// own. Later starts go on as what they are.
	Join []PeerMember

	// Patience is how long Start waits for a majority of the members; 0 is a
	// minute.
	Patience time.Duration

	// ClientSocket, if not empty, is the path of a unix socket on which the
	// store can be reached by Dial and by etcdctl; mode 0600. At most 107
	// bytes, the kernel's limit.
	ClientSocket string

	// Logger is where etcd's messages go; nil is nowhere.
	Logger hclog.Logger

	// quota overrides quotaBytes, for tests.
	quota int64
}

// Server is an etcd inside this process: one member of a store, or all of it.
type Server struct {
	etcd *embed.Etcd
	lock *os.File
	log  *logState

	watched   chan struct{} // closed when the goroutine that waits for etcd's end has ended
	closeOnce sync.Once
	closing   chan struct{} // closed when Close begins
	closeErr  error         // set by closeOnce

	mu      sync.Mutex
	clients map[*Client]bool // those that were not closed
}

// Start opens the store in opts.Dir, making it at the first start, and returns
// when it answers. A directory that another process has open is
// FailedPrecondition; one of a member that was removed is ErrRemoved; one whose
// files cannot be read is DataLoss.
func Start(ctx context.Context, opts ServerOptions) (*Server, error) {
	s, err := start(ctx, opts)
	if err != nil {
		return nil, fmt.Errorf("start cluster store in %s: %w", opts.Dir, err)
	}
	return s, nil
}

func start(ctx context.Context, opts ServerOptions) (*Server, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	patience := opts.Patience
	if patience == 0 {
		patience = startTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cfg, st, err := serverConfig(opts)
	if err != nil {
		return nil, err
	}
	lock, err := lockDir(opts.Dir)
	if err != nil {
		return nil, err
	}
	if err := checkFiles(opts.Dir); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	s := &Server{lock: lock, log: st, watched: make(chan struct{}), closing: make(chan struct{}), clients: make(map[*Client]bool)}
	if s.etcd, err = launch(ctx, cfg, st, lock); err != nil {
		return nil, err
	}
	go s.watch()
	if err := s.ready(ctx, opts); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if err := markComplete(opts.Dir); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	st.serving.Store(true)
	return s, nil
}

// removedReason is why a store stops that was not told to: the other members
// say that it is none of them any more.
const removedReason = "this member was removed from the cluster store"

// ErrRemoved: Start was refused because the other members have removed this one.
var ErrRemoved = fmt.Errorf("%s: %w", removedReason, errdefs.ErrFailedPrecondition)

// watch marks the store as failed when it stops by itself.
func (s *Server) watch() {
	defer close(s.watched)
	select {
	case <-s.closing:
	case <-s.log.failed:
	case <-s.etcd.Server.StopNotify():
		select {
		case <-s.closing: // stopped because it was told to
		default:
			s.log.end(removedReason)
		}
	}
}

// completeFile in the directory says that the store has served: from then on its
// log must be there.
const completeFile = "complete"

// checkFiles refuses a store whose log is missing: etcd takes its database for
// that of a new member, and waits for others that do not exist.
func checkFiles(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, completeFile)); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	logs, err := filepath.Glob(filepath.Join(dir, "member", "wal", "*.wal"))
	if err != nil || len(logs) > 0 {
		return err
	}
	return fmt.Errorf("its log is missing (member/wal): %w", errdefs.ErrDataLoss)
}

// markComplete makes completeFile. One that a power cut takes away again is made
// at the next start.
func markComplete(dir string) error {
	f, err := os.OpenFile(filepath.Join(dir, completeFile), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// ready waits until the store serves.
func (s *Server) ready(ctx context.Context, opts ServerOptions) error {
	select {
	case <-s.etcd.Server.ReadyNotify():
	case <-s.log.failed:
		if s.Removed() {
			return ErrRemoved
		}
		return fmt.Errorf("%s: %w", s.log.reason, errdefs.ErrDataLoss)
	case <-ctx.Done():
		return fmt.Errorf("not ready, because too few members answer: %w", ctx.Err())
	}
	if opts.ClientSocket != "" {
		if err := os.Chmod(opts.ClientSocket, 0o600); err != nil {
			return err
		}
	}
	return s.makeSpace(ctx)
}

// lockDir makes the directory and takes its lock.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("another process has it open: %w", errdefs.ErrFailedPrecondition)
		}
		return nil, fmt.Errorf("lock: %w", err)
	}
	return f, nil
}

// launch runs etcd's start in a goroutine of its own, which may be ended by a
// fatal entry in its log or by a panic over files it cannot make sense of;
// then parts of etcd may still run, and the lock stays. In all other cases it
// is let go when etcd has ended.
func launch(ctx context.Context, cfg *embed.Config, st *logState, lock *os.File) (*embed.Etcd, error) {
	type result struct {
		etcd *embed.Etcd
		err  error
	}
	done := make(chan result, 1)
	go func() {
		defer func() {
			if p := recover(); p != nil {
				st.fail(fmt.Sprintf("etcd gave up on them: %v", p))
			}
		}()
		e, err := embed.StartEtcd(cfg)
		done <- result{e, err}
	}()
	select {
	case r := <-done:
		if r.err != nil {
			lock.Close()
		}
		return r.etcd, r.err
	case <-st.failed:
		return nil, fmt.Errorf("cannot read its files: %s: %w", st.reason, errdefs.ErrDataLoss)
	case <-ctx.Done():
		go func() {
			if r := <-done; r.err == nil {
				closeEtcd(r.etcd)
			}
			lock.Close()
		}()
		return nil, fmt.Errorf("not ready: %w", ctx.Err())
	}
}

func serverConfig(opts ServerOptions) (*embed.Config, *logState, error) {
	if opts.Dir == "" || opts.Name == "" {
		return nil, nil, fmt.Errorf("directory and name must be set: %w", errdefs.ErrInvalidArgument)
	}
	log := opts.Logger
	if log == nil {
		log = hclog.NewNullLogger()
	}
	lg, st := newZap(log)
	cfg := embed.NewConfig()
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(lg)
	cfg.Name = opts.Name
	cfg.Dir = opts.Dir

	// The peer URL is a name in the membership record; nobody dials it while
	// there is one member, and nothing listens.
	peer := url.URL{Scheme: "http", Host: "127.0.0.1:7423"}
	cfg.AdvertisePeerUrls = []url.URL{peer}
	cfg.ListenPeerUrls = nil
	cfg.InitialCluster = opts.Name + "=" + peer.String()
	cfg.InitialClusterToken = "moraine"
	cfg.ListenClientUrls = nil
	cfg.AdvertiseClientUrls = nil
	cfg.MaxLearners = learnersMax
	if opts.ClientSocket != "" {
		if !filepath.IsAbs(opts.ClientSocket) {
			return nil, nil, fmt.Errorf("client socket %q is not an absolute path: %w", opts.ClientSocket, errdefs.ErrInvalidArgument)
		}
		u := url.URL{Scheme: "unix", Path: opts.ClientSocket}
		cfg.ListenClientUrls = []url.URL{u}
		cfg.AdvertiseClientUrls = []url.URL{u}
	}

	if opts.Listen != nil {
		if err := opts.Listen.apply(cfg); err != nil {
			return nil, nil, err
		}
		cfg.InitialCluster = initialCluster([]PeerMember{{opts.Name, opts.Listen.PeerURL}})
	}
	if opts.Join != nil {
		if opts.Listen == nil {
			return nil, nil, fmt.Errorf("a member of several must listen: %w", errdefs.ErrInvalidArgument)
		}
		cfg.InitialCluster = initialCluster(opts.Join)
		cfg.ClusterState = embed.ClusterStateFlagExisting
	}
	cfg.TickMs, cfg.ElectionMs = uint(tick/time.Millisecond), uint(election/time.Millisecond)
	cfg.QuotaBackendBytes = quotaBytes
	if opts.quota != 0 {
		cfg.QuotaBackendBytes = opts.quota
	}
	cfg.MaxTxnOps = cluster.MaxTxnOps
	cfg.MaxRequestBytes = requestBytesMax
	cfg.SnapshotCount = snapshotEntries
	cfg.SnapshotCatchUpEntries = catchUpEntries
	cfg.AutoCompactionMode = embed.CompactorModePeriodic
	cfg.AutoCompactionRetention = compactionRetention
	cfg.BootstrapDefragThresholdMegabytes = defragMiB
	cfg.EnableGRPCGateway = false
	return cfg, st, nil
}

// Removed says, after Failed, whether the store stopped because the other
// members have removed this one. Its directory is of no more use then.
func (s *Server) Removed() bool { return s.log.reason == removedReason }

// Client returns a new client in this process. Close it, or just the server.
func (s *Server) Client() *Client {
	k := &Client{c: v3client.New(s.etcd.Server), done: make(chan struct{}), closing: s.closing, failed: s.log.failed}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clients[k] = true
	k.forget = func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.clients, k)
	}
	return k
}

// releaseClients ends what the clients have running.
func (s *Server) releaseClients() {
	s.mu.Lock()
	clients := slices.Collect(maps.Keys(s.clients))
	s.mu.Unlock()
	for _, k := range clients {
		k.release() // its error says only that the context, which it cancels, is cancelled
	}
}

// Failed is closed when the store has stopped by itself, for instance because
// its disk is full; Reason then says why. Its clients fail as unavailable.
// Only a restart of the process helps.
func (s *Server) Failed() <-chan struct{} { return s.log.failed }

// Reason says why the store failed; call it only after Failed is closed.
func (s *Server) Reason() string { return s.log.reason }

// Close stops the store and waits until its files are closed. Clients in this
// process fail from then on. After a failure parts of etcd may never stop:
// Close then gives up after some seconds, with an error, and the directory
// stays locked until the process ends. Idempotent.
func (s *Server) Close() error {
	s.closeOnce.Do(func() {
		s.log.serving.Store(false)
		close(s.closing)
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.releaseClients()
			closeEtcd(s.etcd)
		}()
		select {
		case <-done:
		case <-s.log.failed:
			select {
			case <-done:
			case <-time.After(closeFailedTimeout):
				s.closeErr = fmt.Errorf("close cluster store: it failed (%s) and does not stop", s.log.reason)
				return
			}
		}
		<-s.watched
		s.lock.Close()
	})
	return s.closeErr
}

// closeEtcd ends etcd. Its own Close waits for listeners that a server which
// never found a majority does not open: such a one is stopped first.
func closeEtcd(e *embed.Etcd) {
	select {
	case <-e.Server.ReadyNotify():
	default:
		e.Server.HardStop()
	}
	e.Close()
}

// makeSpace lifts the alarm that makes a store read-only once it was full, if
// forgetting all history and rewriting the file made room again.
func (s *Server) makeSpace(ctx context.Context) error {
	c := v3client.New(s.etcd.Server)
	defer c.Close()
	alarms, err := c.AlarmList(ctx)
	if err != nil || len(alarms.Alarms) == 0 {
		return err
	}
	now, err := c.Get(ctx, "\x00")
	if err != nil {
		return err
	}
	if _, err := c.Compact(ctx, now.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
		s.log.note("compact a full store", err)
	}
	if err := s.etcd.Server.Backend().Defrag(); err != nil {
		return fmt.Errorf("defragment: %w", err)
	}
	if s.etcd.Server.Backend().Size() >= s.etcd.Server.Cfg.QuotaBackendBytes*9/10 {
		return nil // still full of live keys: readable, and every change says so
	}
	for _, a := range alarms.Alarms {
		if _, err := c.AlarmDisarm(ctx, (*clientv3.AlarmMember)(a)); err != nil {
			return fmt.Errorf("disarm alarm: %w", err)
		}
	}
	return nil
}
