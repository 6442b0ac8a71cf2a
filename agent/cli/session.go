package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/moraine-storage/moraine/agent/api"
	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	"github.com/moraine-storage/moraine/agent/client"
	"github.com/moraine-storage/moraine/agent/identity"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// waitStep is how often --wait asks again.
const waitStep = 200 * time.Millisecond

// dialAgent makes a client of a unix socket, or of https://host:port with the
// token in MORAINE_TOKEN, which also says which cluster to believe.
func dialAgent(address string, getenv func(string) string) (Connection, error) {
	if !strings.HasPrefix(address, "https://") {
		return client.New(address)
	}
	text := getenv("MORAINE_TOKEN")
	if text == "" {
		return nil, fmt.Errorf("agent at %s: set MORAINE_TOKEN to a token of its cluster (moraine token create): %w", address, errdefs.ErrUnauthenticated)
	}
	tok, err := identity.ParseToken(text)
	if err != nil {
		return nil, fmt.Errorf("MORAINE_TOKEN: %w", err)
	}
	return client.NewTCP(address, identity.PinnedTLS(tok.Authority, false), tok.Reveal())
}

// agentAddress is the flag, the environment, or nothing for the default.
func (a *app) agentAddress() string {
	if a.address != "" {
		return a.address
	}
	return a.Getenv("MORAINE_ADDRESS")
}

// action is what a command does once it has an agent to talk to.
type action func(ctx context.Context, svc api.Service, cmd *cobra.Command, args []string) error

// call makes the RunE of a command that talks to the agent.
func (a *app) call(fn action) func(*cobra.Command, []string) error {
	return a.local(func(ctx context.Context, cmd *cobra.Command, args []string) error {
		svc, err := a.Dial(a.agentAddress())
		if err != nil {
			return usage(cmd, err)
		}
		defer svc.Close()
		if a.wait {
			if err := a.waitForAgent(ctx, svc); err != nil {
				return err
			}
		}
		return fn(ctx, svc, cmd, args)
	})
}

// local makes the RunE of a command that needs no agent.
func (a *app) local(fn func(ctx context.Context, cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if err := a.checkOutput(cmd); err != nil {
			return err
		}
		if a.timeout < 0 {
			return usagef(cmd, "timeout %v: it cannot be negative", a.timeout)
		}
		ctx := cmd.Context()
		if a.timeout > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, a.timeout)
			defer cancel()
		}
		return fn(ctx, cmd, args)
	}
}

// waitForAgent asks until somebody answers. Another answer than silence, good
// or bad, ends the wait.
func (a *app) waitForAgent(ctx context.Context, svc api.Service) error {
	told := false
	for {
		_, err := svc.GetStatus(ctx, &apiv1.GetStatusRequest{})
		if !client.IsNotReached(err) {
			return nil // the command itself will see what is wrong, if anything
		}
		if !told && a.IsTerminal(a.Stderr) {
			fmt.Fprintln(a.Stderr, "waiting for the agent ...")
			told = true
		}
		if err := sleep(ctx, waitStep); err != nil {
			return fmt.Errorf("wait for the agent at %s: %w", addressText(svc), err)
		}
	}
}

// addressText names the agent of a client, if it can.
func addressText(svc api.Service) string {
	if c, ok := svc.(interface{ Address() string }); ok {
		return c.Address()
	}
	return "its address"
}

// sleep waits unless ctx ends before.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// each calls fn for every argument, goes on after a failure, and returns the
// first error with the others reported. People see each answer at once, a
// script gets one answer, or a list if there were several arguments.
func (a *app) each(ctx context.Context, cmd *cobra.Command, args []string, fn func(arg string) (proto.Message, func(io.Writer), error)) error {
	var first error
	var answers []proto.Message
	for _, arg := range args {
		answer, human, err := fn(arg)
		switch {
		case err == nil && a.people():
			err = a.emit(answer, human)
		case err == nil:
			answers = append(answers, answer)
		}
		if err == nil {
			continue
		}
		if len(args) == 1 || ctx.Err() != nil {
			return err
		}
		a.report(cmd, err)
		if first == nil {
			first = silentLike(err)
		}
	}
	switch {
	case a.people():
		return first
	case len(args) == 1:
		return errors.Join(first, a.emit(answers[0], nil))
	}
	return errors.Join(first, a.emit(answers, nil))
}

// silentLike is an error with the exit code of err that is printed no more.
func silentLike(err error) error { return silent{class: err} }

// ask puts a question on a terminal and says whether the answer was yes.
// Without a terminal on both sides there is nobody to ask: the command, which
// names what it is about, is enough.
func (a *app) ask(cmd *cobra.Command, yes bool, format string, args ...any) error {
	if yes || !a.IsTerminal(a.Stdin) || !a.IsTerminal(a.Stderr) {
		return nil
	}
	fmt.Fprintf(a.Stderr, format+" [y/N] ", args...)
	answer, err := readLine(a.Stdin)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read the answer: %w", err)
	}
	if answer == "y" || answer == "Y" || answer == "yes" {
		return nil
	}
	return withHint(errors.New("not confirmed, nothing was done"), "--yes does it without a question")
}

// readLine reads up to a line's end, not a byte more.
func readLine(r io.Reader) (string, error) {
	var line []byte
	b := make([]byte, 1)
	for len(line) < 1024 {
		n, err := r.Read(b)
		if n == 1 && b[0] == '\n' {
			return string(line), nil
		}
		line = append(line, b[:n]...)
		if err != nil {
			return string(line), err
		}
	}
	return string(line), nil
}
