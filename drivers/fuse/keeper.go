package fuse

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// KeeperOptions say where the holder is and how to start it.
type KeeperOptions struct {
	Socket string // path; its directory is made, mode 0700
	// Command starts a holder when none answers: program and arguments, e.g.
	// {"/proc/self/exe", "holder", "-socket", PATH}. Empty: none is started.
	Command []string
	// Log is told of a holder that died and was replaced; may be nil.
	Log func(msg string, err error)
}

// Keeper is the agent's side of the holder. It starts the holder, detached
// from the agent's session, and should the holder die it starts another and
// puts all descriptors of this process there again. It is a Store.
type Keeper struct {
	o KeeperOptions

	mu     sync.Mutex       // guards all below, and one exchange at a time
	conn   *net.UnixConn    // requests; nil after it broke
	pulse  *net.UnixConn    // its end tells that the holder died; nil if never connected
	copies map[string]entry // what this process has put or got
	closed bool

	wg sync.WaitGroup
}

// NewKeeper connects to the holder, starting one if need be.
func NewKeeper(ctx context.Context, o KeeperOptions) (*Keeper, error) {
	k := &Keeper{o: o, copies: map[string]entry{}}
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.connectLocked(ctx); err != nil {
		return nil, err
	}
	return k, nil
}

// connectLocked dials, starts a holder when none answers, and dials until it does.
func (k *Keeper) connectLocked(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, holderTimeout)
	defer cancel()
	started := false
	for {
		err := k.dialLocked()
		if err == nil {
			return nil
		}
		if errors.Is(err, errdefs.ErrPermissionDenied) || len(k.o.Command) == 0 {
			return fmt.Errorf("holder: %w", errors.Join(err, errdefs.ErrUnavailable))
		}
		if !started {
			if err := k.spawnLocked(); err != nil {
				return err
			}
			started = true
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("holder: %w: last try: %v", errdefs.ErrUnavailable, err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// dialLocked makes both connections anew.
func (k *Keeper) dialLocked() error {
	c, err := dialHolder(k.o.Socket)
	if err != nil {
		return err
	}
	pulse, err := dialHolder(k.o.Socket)
	if err != nil {
		c.Close()
		return err
	}
	k.dropConnsLocked()
	k.conn, k.pulse = c, pulse
	k.wg.Go(func() { k.watch(pulse) })
	return nil
}

func (k *Keeper) dropConnsLocked() {
	for _, c := range []*net.UnixConn{k.conn, k.pulse} {
		if c != nil {
			c.Close()
		}
	}
	k.conn, k.pulse = nil, nil
}

func dialHolder(socket string) (*net.UnixConn, error) {
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: socket, Net: "unixpacket"})
	if err != nil {
		return nil, err
	}
	if err := checkPeer(c); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// spawnLocked starts the holder in its own session, so that what ends the
// agent's group or terminal passes it by.
func (k *Keeper) spawnLocked() error {
	cmd := exec.Command(k.o.Command[0], k.o.Command[1:]...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "GOMAXPROCS=1", "GOGC=20"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("holder: start: %w", err)
	}
	// The holder outlives Close: this goroutine ends with the holder and owns
	// nothing. It only keeps a dead holder from staying a zombie.
	go func() { _ = cmd.Wait() }()
	return nil
}

// watch waits for the end of its own connection, on which nothing is said.
func (k *Keeper) watch(c *net.UnixConn) {
	var b [1]byte
	_, _ = c.Read(b[:]) // returns when either side closes it
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.closed && k.pulse == c {
		k.lostLocked(context.Background())
	}
}

// lostLocked replaces a holder that is gone and refills the new one.
func (k *Keeper) lostLocked(ctx context.Context) {
	k.dropConnsLocked()
	err := k.connectLocked(ctx)
	if err == nil {
		err = k.refillLocked()
	}
	if k.o.Log != nil {
		k.o.Log("holder was lost and replaced", err)
	}
}

func (k *Keeper) refillLocked() error {
	var errs []error
	for key, e := range k.copies {
		_, fd, err := k.exchangeLocked(&message{op: holdPut, key: key, blob: e.blob}, e.fd)
		if fd >= 0 {
			unix.Close(fd)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// exchangeLocked sends one request and reads one answer. After a failure the
// connection is closed: a late answer must not meet the next request.
func (k *Keeper) exchangeLocked(m *message, fd int) (message, int, error) {
	if k.conn == nil {
		return message{}, -1, fmt.Errorf("holder: not connected: %w", errdefs.ErrUnavailable)
	}
	_ = k.conn.SetDeadline(time.Now().Add(holderTimeout)) // fails only when closed
	defer func() {
		if k.conn != nil {
			_ = k.conn.SetDeadline(time.Time{})
		}
	}()
	if err := send(k.conn, m, fd); err != nil {
		return message{}, -1, k.brokenLocked(err)
	}
	a, out, err := receive(k.conn)
	if err != nil {
		return message{}, -1, k.brokenLocked(err)
	}
	if a.op != m.op {
		if out >= 0 {
			unix.Close(out)
		}
		return message{}, -1, k.brokenLocked(fmt.Errorf("answer to operation %d", a.op))
	}
	return a, out, a.err()
}

func (k *Keeper) brokenLocked(err error) error {
	k.conn.Close()
	k.conn = nil
	return fmt.Errorf("holder: %w: %w", errdefs.ErrUnavailable, err)
}

// callLocked is one exchange, tried again once with a new connection: every
// operation may be repeated.
func (k *Keeper) callLocked(ctx context.Context, m *message, fd int) (message, int, error) {
	if k.closed {
		return message{}, -1, fmt.Errorf("holder: keeper closed: %w", errdefs.ErrFailedPrecondition)
	}
	if k.conn != nil {
		a, out, err := k.exchangeLocked(m, fd)
		if !errdefs.IsUnavailable(err) {
			return a, out, err
		}
	}
	if err := k.connectLocked(ctx); err != nil {
		return message{}, -1, err
	}
	if err := k.refillLocked(); err != nil {
		return message{}, -1, err
	}
	return k.exchangeLocked(m, fd)
}

// Put implements Store.
func (k *Keeper) Put(ctx context.Context, key string, fd int, blob []byte) error {
	if key == "" || len(key) > maxKey || len(blob) > maxBlob {
		return fmt.Errorf("holder put: key of %d bytes, blob of %d: %w", len(key), len(blob), errdefs.ErrInvalidArgument)
	}
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("holder put %s: %w", key, err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, _, err := k.callLocked(ctx, &message{op: holdPut, key: key, blob: blob}, own); err != nil {
		unix.Close(own)
		return fmt.Errorf("holder put %s: %w", key, err)
	}
	k.rememberLocked(key, entry{fd: own, blob: append([]byte(nil), blob...)})
	return nil
}

func (k *Keeper) rememberLocked(key string, e entry) {
	if old, ok := k.copies[key]; ok {
		unix.Close(old.fd)
	}
	k.copies[key] = e
}

// Get implements Store.
func (k *Keeper) Get(ctx context.Context, key string) (int, []byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	a, fd, err := k.callLocked(ctx, &message{op: holdGet, key: key}, -1)
	if err != nil {
		return -1, nil, fmt.Errorf("holder get %s: %w", key, err)
	}
	if fd < 0 {
		return -1, nil, fmt.Errorf("holder get %s: no descriptor came: %w", key, errdefs.ErrInternal)
	}
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		unix.Close(fd)
		return -1, nil, fmt.Errorf("holder get %s: %w", key, err)
	}
	k.rememberLocked(key, entry{fd: own, blob: append([]byte(nil), a.blob...)})
	return fd, a.blob, nil
}

// Drop implements Store.
func (k *Keeper) Drop(ctx context.Context, key string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if e, ok := k.copies[key]; ok {
		unix.Close(e.fd)
		delete(k.copies, key)
	}
	if _, _, err := k.callLocked(ctx, &message{op: holdDrop, key: key}, -1); err != nil {
		return fmt.Errorf("holder drop %s: %w", key, err)
	}
	return nil
}

// List implements Store.
func (k *Keeper) List(ctx context.Context) ([]string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	a, _, err := k.callLocked(ctx, &message{op: holdList}, -1)
	var keys []string
	for err == nil && a.key != "" && len(keys) <= maxEntries {
		keys = append(keys, a.key)
		_ = k.conn.SetDeadline(time.Now().Add(holderTimeout))
		if a, _, err = receive(k.conn); err != nil {
			err = k.brokenLocked(err)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("holder list: %w", err)
	}
	_ = k.conn.SetDeadline(time.Time{})
	return keys, nil
}

// Quit ends the holder if it holds nothing; otherwise FailedPrecondition.
func (k *Keeper) Quit(ctx context.Context) error {
	k.mu.Lock()
	_, _, err := k.callLocked(ctx, &message{op: holdQuit}, -1)
	if err == nil {
		k.closed = true // its end is no loss
	}
	k.mu.Unlock()
	k.Close()
	return err
}

// Close ends the connection; the holder goes on. Idempotent.
func (k *Keeper) Close() {
	k.mu.Lock()
	k.closed = true
	k.dropConnsLocked()
	for key, e := range k.copies {
		unix.Close(e.fd)
		delete(k.copies, key)
	}
	k.mu.Unlock()
	k.wg.Wait()
}
