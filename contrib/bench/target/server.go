package target

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/moraine-storage/moraine/contrib/bench/inproc"
)

// Server is something that serves one export on a unix socket.
type Server struct {
	Name   string
	Socket string
	Export string
	PID    int // whose processor time counts

	// Snapshot takes a snapshot of what is served; nil if it cannot. Drop
	// deletes it again; nil if the next Snapshot does so.
	Snapshot, Drop func(name string) error

	procs []*Process
	close func() error // or nil
	files []string     // to remove when it has ended
	dirs  []string     // likewise, with all that is in them
}

// URI is what NBD clients open.
func (s *Server) URI() string {
	u := url.URL{Scheme: "nbd+unix", Path: "/" + s.Export, RawQuery: "socket=" + url.PathEscape(s.Socket)}
	return u.String()
}

// CPU is the processor time that the server has used.
func (s *Server) CPU() (time.Duration, error) { return CPU(s.PID) }

// Stop ends it and removes its files.
func (s *Server) Stop() error {
	var errs []error
	if s.close != nil {
		errs = append(errs, s.close())
	}
	for _, p := range s.procs {
		errs = append(errs, p.Stop())
	}
	for _, f := range s.files {
		if err := os.Remove(f); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	for _, d := range s.dirs {
		errs = append(errs, os.RemoveAll(d))
	}
	return errors.Join(errs...)
}

func dialable(socket string) func() bool {
	return func() bool {
		c, err := net.Dial("unix", socket)
		if err != nil {
			return false
		}
		return c.Close() == nil
	}
}

// started makes a Server of a process that listens on a socket.
func started(name, socket string, files []string, program string, args ...string) (*Server, error) {
	p, err := Start(program, args...)
	if err != nil {
		return nil, err
	}
	s := &Server{Name: name, Socket: socket, PID: p.PID(), procs: []*Process{p}, files: append(files, socket)}
	if err := p.await(name, dialable(socket)); err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	return s, nil
}

// RawFile makes a file of size bytes, written in full when filled is set.
func RawFile(path string, size int64, filled bool) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = f.Truncate(size)
	if filled {
		buf := make([]byte, 1<<20)
		for i := range buf {
			buf[i] = byte(i*3 + i>>10)
		}
		for off := int64(0); off < size && err == nil; off += int64(len(buf)) {
			_, err = f.WriteAt(buf[:min(int64(len(buf)), size-off)], off)
		}
		if err == nil {
			err = f.Sync()
		}
	}
	return errors.Join(err, f.Close())
}

// Nbdkit serves a new file in dir by nbdkit's file plugin.
func Nbdkit(dir string, size int64) (*Server, error) {
	file, socket := filepath.Join(dir, "nbdkit.raw"), filepath.Join(dir, "nbdkit.sock")
	if err := RawFile(file, size, true); err != nil {
		return nil, fmt.Errorf("nbdkit: %w", err)
	}
	return started("nbdkit", socket, []string{file}, "nbdkit", "-f", "-U", socket, "file", file)
}

// QemuNBD serves a new file in dir by qemu-nbd.
func QemuNBD(dir string, size int64) (*Server, error) {
	file, socket := filepath.Join(dir, "qemu.raw"), filepath.Join(dir, "qemu.sock")
	if err := RawFile(file, size, true); err != nil {
		return nil, fmt.Errorf("qemu-nbd: %w", err)
	}
	return started("qemu-nbd", socket, []string{file},
		"qemu-nbd", "-f", "raw", "-k", socket, "-t", "-e", "16", "--cache=writeback", "--aio=threads", file)
}

// InProcess serves by this program itself, started anew: the data path
// without an agent around it. Kind is one of package inproc.
func InProcess(kind, dir string, size int64, profile string) (*Server, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	socket := filepath.Join(dir, kind+".sock")
	args := []string{"-serve", kind, "-dir", dir, "-socket", socket, "-size", strconv.FormatInt(size, 10)}
	if profile != "" {
		args = append(args, "-cpuprofile", profile)
	}
	s, err := started(kind, socket, nil, self, args...)
	if err != nil {
		return nil, err
	}
	s.dirs = []string{filepath.Join(dir, inproc.StoreDir)}
	s.Snapshot = func(string) error { return syscall.Kill(s.PID, syscall.SIGUSR1) }
	return s, nil
}
