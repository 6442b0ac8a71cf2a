package fuse

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"sort"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// HolderMain is the holder process: it runs until it is told to quit while it
// holds nothing. Signals that end services leave it alone, because with it the
// devices of all volumes would go; SIGKILL remains.
func HolderMain(socket string) error {
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM)
	debug.SetGCPercent(20)
	debug.FreeOSMemory() // what the program's initialisation used
	return RunHolder(context.Background(), socket)
}

// RunHolder keeps descriptors for clients of the unix socket until ctx is
// done or a client tells it to quit while it holds nothing. If another holder
// serves the socket already, it returns nil at once.
func RunHolder(ctx context.Context, socket string) error {
	lock, err := lockSocket(socket)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("holder %s: %w", socket, err)
	}
	defer unix.Close(lock)
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("holder: stale socket: %w", err)
	}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: socket, Net: "unixpacket"})
	if err != nil {
		return fmt.Errorf("holder: %w", err)
	}
	// Not by umask, which is the whole process's; until here checkPeer guards.
	if err := os.Chmod(socket, 0o600); err != nil {
		l.Close()
		return fmt.Errorf("holder: %w", err)
	}
	h := &holder{entries: map[string]entry{}, quit: make(chan struct{})}
	stop := context.AfterFunc(ctx, h.end)
	defer stop()
	h.wg.Go(func() {
		<-h.quit
		l.Close()
	})
	err = h.accept(l)
	h.end()
	h.wg.Wait()
	h.closeAll()
	return err
}

// lockSocket makes one holder per socket: the lock dies with its owner.
func lockSocket(socket string) (int, error) {
	if err := os.MkdirAll(filepath.Dir(socket), 0o700); err != nil {
		return -1, err
	}
	fd, err := unix.Open(socket+".lock", unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return -1, err
	}
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// entry is a descriptor kept for a volume.
type entry struct {
	fd   int
	blob []byte
}

type holder struct {
	wg       sync.WaitGroup
	quit     chan struct{}
	quitOnce sync.Once

	mu      sync.Mutex
	entries map[string]entry
	conns   map[*net.UnixConn]bool
	ending  bool
}

func (h *holder) end() {
	h.quitOnce.Do(func() {
		close(h.quit)
		h.mu.Lock()
		h.ending = true
		for c := range h.conns {
			c.Close()
		}
		h.mu.Unlock()
	})
}

func (h *holder) closeAll() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for k, e := range h.entries {
		unix.Close(e.fd)
		delete(h.entries, k)
	}
}

func (h *holder) accept(l *net.UnixListener) error {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			select {
			case <-h.quit:
				return nil
			default:
				return fmt.Errorf("holder: accept: %w", err)
			}
		}
		if err := checkPeer(c); err != nil || !h.addConn(c) {
			c.Close()
			continue
		}
		h.wg.Go(func() {
			defer h.dropConn(c)
			h.serve(c)
		})
	}
}

func (h *holder) addConn(c *net.UnixConn) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ending || len(h.conns) >= maxHolderClients {
		return false
	}
	if h.conns == nil {
		h.conns = map[*net.UnixConn]bool{}
	}
	h.conns[c] = true
	return true
}

func (h *holder) dropConn(c *net.UnixConn) {
	h.mu.Lock()
	delete(h.conns, c)
	h.mu.Unlock()
	c.Close()
}

// checkPeer refuses processes of other users: a descriptor is the volume.
func checkPeer(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) {
		cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if cerr != nil {
		return cerr
	}
	if int(cred.Uid) != os.Geteuid() && cred.Uid != 0 {
		return fmt.Errorf("holder: process %d of user %d: %w", cred.Pid, cred.Uid, errdefs.ErrPermissionDenied)
	}
	return nil
}

// serve answers one client until it goes or sends what is no message.
func (h *holder) serve(c *net.UnixConn) {
	for {
		m, fd, err := receive(c)
		if err != nil {
			return
		}
		answers, out := h.handle(&m, fd)
		for i := range answers {
			if err := send(c, &answers[i], out); err != nil {
				break
			}
		}
		if out >= 0 {
			unix.Close(out)
		}
		if m.op == holdQuit && answers[0].status == statusOK {
			h.end()
			return
		}
	}
}

// handle executes one request; it owns fd (-1: none). The descriptor returned
// goes with the answer and is then closed.
func (h *holder) handle(m *message, fd int) ([]message, int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	answer := func(status uint16, text string) ([]message, int) {
		if fd >= 0 {
			unix.Close(fd)
		}
		return []message{{op: m.op, status: status, blob: []byte(text)}}, -1
	}
	e, there := h.entries[m.key]
	switch m.op {
	case holdPut:
		if fd < 0 || m.key == "" {
			return answer(statusInvalid, "put without a key or a descriptor")
		}
		if !there && len(h.entries) >= maxEntries {
			return answer(statusFull, fmt.Sprintf("%d descriptors are held, no more", maxEntries))
		}
		if there {
			unix.Close(e.fd)
		}
		h.entries[m.key] = entry{fd: fd, blob: m.blob}
		fd = -1
		return answer(statusOK, "")
	case holdGet:
		if !there {
			return answer(statusNotFound, fmt.Sprintf("no descriptor of %q", m.key))
		}
		out, err := unix.FcntlInt(uintptr(e.fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return answer(statusFull, err.Error())
		}
		a, _ := answer(statusOK, "")
		a[0].blob = e.blob
		return a, out
	case holdDrop:
		if there {
			unix.Close(e.fd)
			delete(h.entries, m.key)
		}
		return answer(statusOK, "")
	case holdList:
		var list []message
		for k := range h.entries {
			list = append(list, message{op: m.op, key: k})
		}
		sort.Slice(list, func(i, j int) bool { return list[i].key < list[j].key })
		end, _ := answer(statusOK, "")
		return append(list, end...), -1
	case holdQuit:
		if len(h.entries) > 0 {
			return answer(statusHolding, fmt.Sprintf("%d descriptors are held", len(h.entries)))
		}
		return answer(statusOK, "")
	}
	return answer(statusInvalid, fmt.Sprintf("unknown operation %d", m.op))
}

// receive reads one packet and at most one descriptor (-1: none).
func receive(c *net.UnixConn) (message, int, error) {
	b := make([]byte, maxMessage+1)
	oob := make([]byte, unix.CmsgSpace(4*4)) // more than one is closed below
	n, on, flags, _, err := c.ReadMsgUnix(b, oob)
	if err != nil {
		return message{}, -1, err
	}
	fds := parseRights(oob[:on])
	if n == 0 && len(fds) == 0 {
		return message{}, -1, net.ErrClosed
	}
	m, err := decodeMessage(b[:n])
	if err == nil && (len(fds) > 1 || flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0) {
		err = fmt.Errorf("holder message: %d descriptors or truncated: %w", len(fds), errdefs.ErrInvalidArgument)
	}
	if err != nil {
		for _, fd := range fds {
			unix.Close(fd)
		}
		return message{}, -1, err
	}
	if len(fds) == 1 {
		return m, fds[0], nil
	}
	return m, -1, nil
}

func parseRights(oob []byte) []int {
	cms, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	var fds []int
	for i := range cms {
		if got, err := unix.ParseUnixRights(&cms[i]); err == nil {
			fds = append(fds, got...)
		}
	}
	for _, fd := range fds {
		unix.CloseOnExec(fd)
	}
	return fds
}

// send writes one packet, with fd beside it unless it is -1.
func send(c *net.UnixConn, m *message, fd int) error {
	b, err := m.encode()
	if err != nil {
		return err
	}
	var oob []byte
	if fd >= 0 {
		oob = unix.UnixRights(fd)
	}
	_, _, err = c.WriteMsgUnix(b, oob, nil)
	return err
}
