package target

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Loop is a loop device over something that nbdfuse shows as a file.
type Loop struct {
	Device string
	mount  string
	fuse   *Process
}

// NbdfuseLoop attaches a server's export by nbdfuse and a loop device with
// direct I/O: the peer of a Moraine volume that is attached so.
func NbdfuseLoop(srv *Server, dir string) (*Loop, error) {
	l := &Loop{mount: filepath.Join(dir, "nbdfuse")}
	if err := os.Mkdir(l.mount, 0o700); err != nil {
		return nil, err
	}
	file := filepath.Join(l.mount, "image")
	var err error
	if l.fuse, err = Start("nbdfuse", file, srv.URI()); err != nil {
		return nil, err
	}
	err = l.fuse.await("nbdfuse", func() bool {
		_, err := os.Stat(file)
		return err == nil
	})
	if err == nil {
		l.Device, err = run("losetup", "--find", "--show", "--direct-io=on", file)
	}
	if err != nil {
		return nil, errors.Join(err, l.Stop())
	}
	return l, nil
}

// PID of nbdfuse.
func (l *Loop) PID() int { return l.fuse.PID() }

// Stop detaches it.
func (l *Loop) Stop() error {
	var errs []error
	if l.Device != "" {
		_, err := run("losetup", "--detach", l.Device)
		errs = append(errs, err)
	}
	var err error
	for range 50 { // the loop device lets go of the file a moment later
		if _, err = run("umount", l.mount); err == nil {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if err != nil {
		_, lerr := run("umount", "--lazy", l.mount)
		errs = append(errs, fmt.Errorf("unmount nbdfuse: %w", err), lerr)
	}
	return errors.Join(append(errs, l.fuse.Stop(), os.Remove(l.mount))...)
}
