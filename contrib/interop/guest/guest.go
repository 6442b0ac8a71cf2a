// Package guest runs a script in a virtual machine with Debian's kernel: for
// what this host's kernel lacks (nbd, device-mapper, a reboot of one's own).
//
// The machine is QEMU without acceleration, so that it runs anywhere: right for
// function, useless for speed. Its root is an initramfs made for each run:
// busybox, the files and programs asked for with the libraries they need, and
// kernel modules. The kernel's package is downloaded once into CacheDir.
package guest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Config of a run.
type Config struct {
	// CacheDir keeps the kernel; "" is moraine/guest below the user's cache.
	CacheDir string
	// Files are copied into the guest: path there → path here. A file that is
	// executable here is so there.
	Files map[string]string
	// Programs are found in the PATH of this host and copied to /usr/bin there
	// with the libraries that ldd names.
	Programs []string
	// Modules to load, in this order; what they depend on goes before them. A
	// module may be followed by its parameters: "nbd nbds_max=0".
	Modules []string
	// Script is run by busybox's shell as root; its exit code is the result.
	Script string
	// Disks are sizes in bytes of empty disks: /dev/vda, /dev/vdb, ...
	Disks []int64
	// MemoryMB is 1024 and CPUs is 2 if zero.
	MemoryMB, CPUs int
	// Timeout of the whole run; 5 minutes if zero.
	Timeout time.Duration
	// Log receives the console as it comes; may be nil.
	Log io.Writer
}

// Result of a run that came to its end.
type Result struct {
	Output   string // what the script said, both its streams
	Console  string // all of the console, the kernel's words too
	ExitCode int
}

const (
	beginMark = "=== guest script begins ==="
	endMark   = "=== guest script ends with "

	// maxConsole bounds what is kept of the console in bytes.
	maxConsole = 8 << 20
)

// ErrMissing is wrapped by errors about what this host lacks to run a guest.
var ErrMissing = errors.New("not installed")

// Run boots a guest, runs the script and returns what came of it. The error is
// about the machine; a script that fails is a Result.
func Run(ctx context.Context, c Config) (Result, error) {
	if c.Timeout == 0 {
		c.Timeout = 5 * time.Minute
	}
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		return Result{}, fmt.Errorf("guest: qemu-system-x86_64: %w (package qemu-system-x86)", ErrMissing)
	}
	k, err := findKernel(ctx, c.CacheDir)
	if err != nil {
		return Result{}, fmt.Errorf("guest: %w", err)
	}
	dir, err := os.MkdirTemp("", "guest")
	if err != nil {
		return Result{}, fmt.Errorf("guest: %w", err)
	}
	defer os.RemoveAll(dir)
	initrd := filepath.Join(dir, "initrd")
	if err := buildInitrd(initrd, k, &c); err != nil {
		return Result{}, fmt.Errorf("guest: initramfs: %w", err)
	}
	args, err := c.arguments(dir, k.image, initrd)
	if err != nil {
		return Result{}, fmt.Errorf("guest: %w", err)
	}
	console, err := boot(ctx, qemu, args, c.Log)
	if err != nil {
		return Result{Console: console}, fmt.Errorf("guest: %w", err)
	}
	return parseConsole(console)
}

// arguments of QEMU.
func (c *Config) arguments(dir, image, initrd string) ([]string, error) {
	mem, cpus := c.MemoryMB, c.CPUs
	if mem == 0 {
		mem = 1024
	}
	if cpus == 0 {
		cpus = 2
	}
	args := []string{
		"-accel", "tcg", "-cpu", "max", "-m", strconv.Itoa(mem), "-smp", strconv.Itoa(cpus),
		"-nographic", "-no-reboot", "-nic", "none", "-kernel", image, "-initrd", initrd,
		"-append", "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off",
	}
	for i, size := range c.Disks {
		path := filepath.Join(dir, fmt.Sprintf("disk%d", i))
		f, err := os.Create(path)
		if err == nil {
			err = errors.Join(f.Truncate(size), f.Close())
		}
		if err != nil {
			return nil, err
		}
		args = append(args, "-drive", "file="+path+",format=raw,if=virtio,cache=unsafe")
	}
	return args, nil
}

// boot runs QEMU until the guest powers off and returns its console.
func boot(ctx context.Context, qemu string, args []string, log io.Writer) (string, error) {
	cmd := exec.CommandContext(ctx, qemu, args...)
	cmd.WaitDelay = 5 * time.Second
	var out tail
	cmd.Stdout = &out
	if log != nil {
		cmd.Stdout = io.MultiWriter(&out, log)
	}
	cmd.Stderr = cmd.Stdout
	err := cmd.Run()
	if ctx.Err() != nil {
		return out.String(), fmt.Errorf("did not end in time: %w\n%s", ctx.Err(), lastLines(out.String(), 40))
	}
	if err != nil {
		return out.String(), fmt.Errorf("qemu: %w\n%s", err, lastLines(out.String(), 40))
	}
	return out.String(), nil
}

// tail keeps the last maxConsole bytes.
type tail struct{ bytes.Buffer }

func (t *tail) Write(p []byte) (int, error) {
	if over := t.Len() + len(p) - maxConsole; over > 0 {
		t.Next(min(over, t.Len()))
	}
	return t.Buffer.Write(p)
}

// parseConsole cuts the script's part out of the console.
func parseConsole(console string) (Result, error) {
	r := Result{Console: console, ExitCode: -1}
	var out strings.Builder
	inside := false
	sc := bufio.NewScanner(strings.NewReader(console))
	sc.Buffer(nil, maxConsole)
	for sc.Scan() {
		l := strings.TrimRight(sc.Text(), "\r")
		switch {
		case strings.Contains(l, beginMark):
			inside = true
		case strings.Contains(l, endMark):
			_, rest, _ := strings.Cut(l, endMark)
			n, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(rest, " ===")))
			if err != nil {
				return r, fmt.Errorf("guest: bad last line %q", l)
			}
			r.Output, r.ExitCode = out.String(), n
			return r, nil
		case inside:
			out.WriteString(l + "\n")
		}
	}
	return r, fmt.Errorf("guest: ended without a result\n%s", lastLines(console, 40))
}

func lastLines(s string, n int) string {
	ls := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(ls[max(0, len(ls)-n):], "\n")
}
