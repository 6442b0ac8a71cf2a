package forgetfs

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// node is a file or directory.
type node struct {
	fs.Inode
	fs *FS
}

var (
	_ fs.NodeLookuper  = (*node)(nil)
	_ fs.NodeGetattrer = (*node)(nil)
	_ fs.NodeSetattrer = (*node)(nil)
	_ fs.NodeStatfser  = (*node)(nil)
	_ fs.NodeReaddirer = (*node)(nil)
	_ fs.NodeOpener    = (*node)(nil)
	_ fs.NodeCreater   = (*node)(nil)
	_ fs.NodeMkdirer   = (*node)(nil)
	_ fs.NodeRmdirer   = (*node)(nil)
	_ fs.NodeUnlinker  = (*node)(nil)
	_ fs.NodeRenamer   = (*node)(nil)
	_ fs.NodeFsyncer   = (*node)(nil)
	_ fs.NodeReader    = (*node)(nil)
	_ fs.NodeWriter    = (*node)(nil)
	_ fs.NodeAllocater = (*node)(nil)
	_ fs.NodeReleaser  = (*node)(nil)
)

func (n *node) path() string { return filepath.Join(n.fs.back, n.Path(n.Root())) }

func (n *node) child(c ctx, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	var st syscall.Stat_t
	if err := syscall.Lstat(filepath.Join(n.path(), name), &st); err != nil {
		return nil, fs.ToErrno(err)
	}
	out.FromStat(&st)
	return n.NewInode(c, &node{fs: n.fs}, fs.StableAttr{Mode: st.Mode, Ino: st.Ino}), 0
}

// Lookup implements fs.NodeLookuper.
func (n *node) Lookup(c ctx, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	return n.child(c, name, out)
}

// Getattr implements fs.NodeGetattrer.
func (n *node) Getattr(_ ctx, h fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	var st syscall.Stat_t
	var err error
	if h, ok := h.(*handle); ok {
		err = syscall.Fstat(int(h.f.Fd()), &st)
	} else {
		err = syscall.Lstat(n.path(), &st)
	}
	out.FromStat(&st)
	return fs.ToErrno(err)
}

// Setattr implements fs.NodeSetattrer: sizes and modes, no times.
func (n *node) Setattr(c ctx, fh fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if mode, ok := in.GetMode(); ok {
		if err := os.Chmod(n.path(), os.FileMode(mode&0o777)); err != nil {
			return fs.ToErrno(err)
		}
	}
	if size, ok := in.GetSize(); ok {
		h, open := fh.(*handle)
		if !open {
			f, err := os.OpenFile(n.path(), os.O_RDWR, 0)
			if err != nil {
				return fs.ToErrno(err)
			}
			defer f.Close()
			h = &handle{f: f}
		}
		if err := n.fs.truncate(h.f, int64(size)); err != nil {
			return errno(err)
		}
	}
	return n.Getattr(c, fh, out)
}

// Statfs implements fs.NodeStatfser.
func (n *node) Statfs(_ ctx, out *fuse.StatfsOut) syscall.Errno {
	var st syscall.Statfs_t
	err := syscall.Statfs(n.fs.back, &st)
	out.FromStatfsT(&st)
	return fs.ToErrno(err)
}

// Readdir implements fs.NodeReaddirer.
func (n *node) Readdir(ctx) (fs.DirStream, syscall.Errno) {
	entries, err := os.ReadDir(n.path())
	if err != nil {
		return nil, fs.ToErrno(err)
	}
	var list []fuse.DirEntry
	for _, e := range entries {
		var st syscall.Stat_t
		if syscall.Lstat(filepath.Join(n.path(), e.Name()), &st) == nil {
			list = append(list, fuse.DirEntry{Name: e.Name(), Mode: st.Mode, Ino: st.Ino})
		}
	}
	return fs.NewListDirStream(list), 0
}

// handle is an open file.
type handle struct {
	f    *os.File
	sync bool // O_SYNC or O_DSYNC
}

// open gives every file to the server as it comes (direct I/O), with the flags
// that the backing file must not have taken out.
func (n *node) open(path string, flags, mode uint32) (*handle, syscall.Errno) {
	const not = syscall.O_DIRECT | syscall.O_SYNC | syscall.O_DSYNC | syscall.O_APPEND | syscall.O_TRUNC
	f, err := os.OpenFile(path, int(flags)&^not, os.FileMode(mode&0o777))
	if err != nil {
		return nil, fs.ToErrno(err)
	}
	return &handle{f: f, sync: flags&syscall.O_DSYNC != 0}, 0
}

// Open implements fs.NodeOpener.
func (n *node) Open(_ ctx, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	h, e := n.open(n.path(), flags, 0)
	if e != 0 {
		return nil, 0, e
	}
	return h, fuse.FOPEN_DIRECT_IO, 0
}

// Create implements fs.NodeCreater.
func (n *node) Create(c ctx, name string, flags, mode uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	path := filepath.Join(n.path(), name)
	var h *handle
	_, lerr := os.Lstat(path)
	if lerr == nil { // made meanwhile by another
		var e syscall.Errno
		if h, e = n.open(path, flags, mode); e != 0 {
			return nil, nil, 0, e
		}
	} else if e := n.fs.change(func() error {
		var e syscall.Errno
		if h, e = n.open(path, flags|syscall.O_CREAT, mode); e != 0 {
			return e
		}
		return nil
	}, change{undo: func() error { return os.Remove(path) }}); e != 0 {
		return nil, nil, 0, e
	}
	ch, e := n.child(c, name, out)
	return ch, h, fuse.FOPEN_DIRECT_IO, e
}

// Mkdir implements fs.NodeMkdirer.
func (n *node) Mkdir(c ctx, name string, mode uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	path := filepath.Join(n.path(), name)
	e := n.fs.change(func() error { return os.Mkdir(path, os.FileMode(mode&0o777)) },
		change{undo: func() error { return os.Remove(path) }})
	if e != 0 {
		return nil, e
	}
	return n.child(c, name, out)
}

// Rmdir implements fs.NodeRmdirer.
func (n *node) Rmdir(_ ctx, name string) syscall.Errno {
	path := filepath.Join(n.path(), name)
	return n.fs.change(func() error { return syscall.Rmdir(path) }, change{undo: func() error { return os.Mkdir(path, 0o700) }})
}

// Unlink implements fs.NodeUnlinker.
func (n *node) Unlink(_ ctx, name string) syscall.Errno {
	path, away := filepath.Join(n.path(), name), n.fs.away()
	return n.fs.change(func() error { return os.Rename(path, away) }, change{
		undo:   func() error { return os.Rename(away, path) },
		commit: func() error { return os.Remove(away) },
	})
}

// Rename implements fs.NodeRenamer.
func (n *node) Rename(_ ctx, name string, to fs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	if flags&^unix.RENAME_NOREPLACE != 0 {
		return syscall.EINVAL
	}
	from, into := filepath.Join(n.path(), name), filepath.Join(n.fs.back, to.EmbeddedInode().Path(n.Root()), newName)
	away := n.fs.away()
	replaced := os.Link(into, away) == nil // a directory cannot be linked, and is replaced only when empty
	c := change{undo: func() error {
		if err := os.Rename(into, from); err != nil || !replaced {
			return err
		}
		return os.Rename(away, into)
	}}
	if replaced {
		c.commit = func() error { return os.Remove(away) }
	}
	return n.fs.change(func() error { return unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, into, uint(flags)) }, c)
}

// Fsync implements fs.NodeFsyncer, for files and directories.
func (n *node) Fsync(_ ctx, fh fs.FileHandle, _ uint32) syscall.Errno {
	if n.IsDir() {
		return errno(n.fs.fsyncDir())
	}
	h, ok := fh.(*handle)
	if !ok {
		return syscall.EBADF
	}
	return errno(n.fs.fsync(h.f))
}

// Read implements fs.NodeReader.
func (n *node) Read(_ ctx, fh fs.FileHandle, p []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	h, ok := fh.(*handle)
	if !ok {
		return nil, syscall.EBADF
	}
	k, err := h.f.ReadAt(p, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, errno(err)
	}
	return fuse.ReadResultData(p[:k]), 0
}

// Write implements fs.NodeWriter.
func (n *node) Write(_ ctx, fh fs.FileHandle, p []byte, off int64) (uint32, syscall.Errno) {
	h, ok := fh.(*handle)
	if !ok {
		return 0, syscall.EBADF
	}
	if err := n.fs.write(h, p, off); err != nil {
		return 0, errno(err)
	}
	return uint32(len(p)), 0
}

// Allocate implements fs.NodeAllocater.
func (n *node) Allocate(_ ctx, fh fs.FileHandle, off, size uint64, mode uint32) syscall.Errno {
	h, ok := fh.(*handle)
	if !ok {
		return syscall.EBADF
	}
	return errno(n.fs.allocate(h, int64(off), int64(size), mode))
}

// Release implements fs.NodeReleaser.
func (n *node) Release(_ ctx, fh fs.FileHandle) syscall.Errno {
	h, ok := fh.(*handle)
	if !ok {
		return syscall.EBADF
	}
	return errno(h.f.Close())
}

// errno of an error that may wrap one.
func errno(err error) syscall.Errno {
	var e syscall.Errno
	switch {
	case err == nil:
		return 0
	case errors.As(err, &e):
		return e
	}
	return syscall.EIO
}
