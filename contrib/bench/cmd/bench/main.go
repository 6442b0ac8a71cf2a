// Command bench measures Moraine beside nbdkit, qemu-nbd and raw fio, and
// writes what it found.
//
//	bench                  everything, with bin/moraine: up to 15 minutes
//	bench -quick           one short round of everything
//	bench -run 'nbd|disk'  some groups
//	bench -target memory   the data path in a process of its own, no agent
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"runtime/pprof"
	"strings"
	"syscall"

	"github.com/moraine-storage/moraine/contrib/bench/inproc"
	"github.com/moraine-storage/moraine/contrib/bench/suite"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() error {
	c := suite.Config{Log: os.Stdout}
	flag.StringVar(&c.Binary, "binary", "bin/moraine", "the agent to measure")
	flag.StringVar(&c.Memory, "memory", "/dev/shm", "a directory on tmpfs with 16 GiB free")
	flag.StringVar(&c.Disk, "disk", os.TempDir(), "a directory on a disk with 8 GiB free")
	flag.StringVar(&c.Target, "target", "moraine", "moraine, or "+strings.Join(inproc.Kinds(), ", ")+": that device in a process of its own")
	flag.StringVar(&c.Profile, "cpuprofile", "", "write a processor profile of the process of -target or -serve to this file")
	flag.BoolVar(&c.Quick, "quick", false, "one short round")
	match := flag.String("run", ".", "regular expression of groups: "+strings.Join(suite.Groups(), ", "))
	out := flag.String("out", "contrib/bench", "folder for RESULTS.md and results.json; empty writes none")
	var serve inproc.Options
	flag.StringVar(&serve.Kind, "serve", "", "serve a device in this process, as a target")
	flag.StringVar(&serve.Dir, "dir", "", "with -serve: folder of the device")
	flag.StringVar(&serve.Socket, "socket", "", "with -serve: unix socket")
	flag.Int64Var(&serve.Size, "size", 1<<30, "with -serve: bytes")
	open := flag.String("open", "", "open the store in this folder, tell how long it took, wait for the end of the input")
	flag.Parse()
	if flag.NArg() > 0 {
		return fmt.Errorf("argument %q: there are flags only", flag.Arg(0))
	}
	if *open != "" {
		return inproc.OpenStore(*open, func(o inproc.Opened) error { return json.NewEncoder(os.Stdout).Encode(o) }, os.Stdin)
	}
	if serve.Kind != "" {
		return serveProfiled(serve, c.Profile)
	}
	var err error
	if c.Match, err = regexp.Compile(*match); err != nil {
		return fmt.Errorf("-run: %w", err)
	}
	if *out != "" {
		if err := os.MkdirAll(*out, 0o755); err != nil { // now, not after 15 minutes
			return err
		}
	}
	s, err := suite.Run(c)
	if s == nil {
		return err
	}
	if *out != "" {
		if werr := s.Write(*out); werr != nil {
			return werr
		}
	}
	if missed := s.Missed(); err == nil && missed > 0 {
		err = fmt.Errorf("%d figures miss their floor", missed)
	}
	return err
}

func serveProfiled(o inproc.Options, profile string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if profile != "" {
		f, err := os.Create(profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	return inproc.Serve(ctx, o)
}
