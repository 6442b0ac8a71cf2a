package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/moraine-storage/moraine/agent/client"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// The exit codes. They are part of the contract with scripts: new ones may be
// added, none may change its meaning.
const (
	exitOK           = 0
	exitFailed       = 1
	exitUsage        = 2
	exitNotFound     = 3
	exitPrecondition = 4
	exitExists       = 5
	exitUnavailable  = 6
	exitDenied       = 7
	exitNoSpace      = 8
	exitBusy         = 9
	exitDataLoss     = 10
	exitTimeout      = 124 // as timeout(1)
	exitInterrupted  = 130 // as a shell says of SIGINT
)

// exitClass is the exit code of an error class.
type exitClass struct {
	class error // or nil
	code  int
	text  string // for the help page
}

// exitCodes pairs classes with codes; the first that fits counts.
var exitCodes = []exitClass{
	{nil, exitOK, "it was done"},
	{nil, exitFailed, "it failed for a reason that is none of those below"},
	{errdefs.ErrInvalidArgument, exitUsage, "wrong usage, or a value that cannot be: correct the command"},
	{errdefs.ErrOutOfRange, exitUsage, ""},
	{errdefs.ErrNotFound, exitNotFound, "what was named does not exist"},
	{fs.ErrNotExist, exitNotFound, ""},
	{errdefs.ErrFailedPrecondition, exitPrecondition, "not possible in this state, for example because it is in use"},
	{errdefs.ErrAlreadyExists, exitExists, "the name is taken by something else"},
	{fs.ErrExist, exitExists, ""},
	{context.DeadlineExceeded, exitTimeout, "--timeout has passed; it may still happen"},
	{errdefs.ErrUnavailable, exitUnavailable, "the agent, or something that it needs, does not answer: try again later"},
	{errdefs.ErrPermissionDenied, exitDenied, "not allowed: run as root"},
	{errdefs.ErrUnauthenticated, exitDenied, ""},
	{fs.ErrPermission, exitDenied, ""},
	{errdefs.ErrResourceExhausted, exitNoSpace, "no space left, or another limit was reached"},
	{errdefs.ErrAborted, exitBusy, "another operation is at work on it: try again"},
	{errdefs.ErrDataLoss, exitDataLoss, "data is damaged: look before doing anything else"},
	{context.Canceled, exitInterrupted, "interrupted by a signal"},
}

// exitCode is the exit code for an error of a command.
func exitCode(err error) int {
	if err == nil {
		return exitOK
	}
	if client.IsNotReached(err) { // a socket that is missing, not a file
		return exitUnavailable
	}
	for _, c := range exitCodes {
		if c.class != nil && errors.Is(err, c.class) {
			return c.code
		}
	}
	return exitFailed
}

// usageError is a command line that cannot be understood.
type usageError struct {
	cmd *cobra.Command
	err error
}

func (e *usageError) Error() string   { return e.err.Error() }
func (e *usageError) Unwrap() []error { return []error{e.err, errdefs.ErrInvalidArgument} }

// usage marks err as the fault of who typed the command.
func usage(cmd *cobra.Command, err error) error {
	var u *usageError
	if errors.As(err, &u) {
		return err
	}
	return &usageError{cmd: cmd, err: err}
}

// usagef is usage with a format.
func usagef(cmd *cobra.Command, format string, a ...any) error {
	return usage(cmd, fmt.Errorf(format, a...))
}

// hinted is an error with advice that only the command knew.
type hinted struct {
	error
	hint string
}

func (e *hinted) Unwrap() error { return e.error }

// withHint adds advice to an error; nil stays nil.
func withHint(err error, format string, a ...any) error {
	if err == nil {
		return nil
	}
	return &hinted{error: err, hint: fmt.Sprintf(format, a...)}
}

// silent is a failure that the command has printed already.
type silent struct{ class error }

func (e silent) Error() string { return e.class.Error() }
func (e silent) Unwrap() error { return e.class }

// report prints an error and what to do about it.
func (a *app) report(cmd *cobra.Command, err error) {
	var s silent
	if errors.As(err, &s) {
		return
	}
	for line := range strings.SplitSeq(err.Error(), "\n") {
		fmt.Fprintln(a.Stderr, "moraine:", clean(line))
	}
	for _, h := range hints(cmd, err) {
		fmt.Fprintln(a.Stderr, "hint:", h)
	}
}

// hints says what to do about an error.
func hints(cmd *cobra.Command, err error) []string {
	var h *hinted
	if errors.As(err, &h) {
		return []string{h.hint}
	}
	var u *usageError
	if errors.As(err, &u) {
		return []string{fmt.Sprintf("'%s --help' shows how to use it", u.cmd.CommandPath())}
	}
	var out []string
	if errdefs.Indeterminate(err) && !onlyLooks[cmd.Name()] {
		out = append(out, "it may have been done, or may still be; the same command again is safe")
	}
	object := objectOf(cmd)
	switch {
	case client.IsNotReached(err):
		out = append(out, "is the agent running, and are you root? 'moraine agent -dev' starts one, --address or MORAINE_ADDRESS names its socket")
	case errors.Is(err, context.DeadlineExceeded):
		out = append(out, "a longer --timeout gives it more time")
	case errdefs.IsNotFound(err) && object == "volume" && cmd.Name() == "create":
		out = append(out, "'moraine pool list' and 'moraine snapshot list' show those that there are")
	case errdefs.IsNotFound(err) && object != "":
		out = append(out, fmt.Sprintf("'moraine %s list' shows those that there are", object))
	case errdefs.IsFailedPrecondition(err) && object == "volume":
		out = append(out, "'moraine volume show NAME' shows its state and who uses it")
	case errdefs.IsAlreadyExists(err) && object != "":
		out = append(out, fmt.Sprintf("'moraine %s list' shows those that there are; choose another name", object))
	case errors.Is(err, errdefs.ErrResourceExhausted) && strings.Contains(err.Error(), "a node of its own"): // the words of placement
		out = append(out, "'moraine node list' shows the nodes that there are; fewer --replicas need fewer")
	case errors.Is(err, errdefs.ErrResourceExhausted):
		out = append(out, "'moraine pool list' shows the space; deleting volumes or snapshots gives it back")
	case errors.Is(err, errdefs.ErrInternal):
		out = append(out, "this is a fault of Moraine: please report it with the agent's log")
	}
	return out
}

// onlyLooks has the commands that change nothing, done or not.
var onlyLooks = map[string]bool{"list": true, "show": true, "diff": true, "status": true, "doctor": true, "events": true}

// objectOf is the kind of thing that a command is about: the first word after
// the program's name, if that has a list.
func objectOf(cmd *cobra.Command) string {
	if cmd == nil || cmd.Parent() == nil || child(cmd.Parent(), "list") == nil {
		return ""
	}
	if n := cmd.Name(); cmd.Parent().Name() == "snapshot" && (n == "create" || n == "list") {
		return "volume" // it is the volume that they name
	}
	return cmd.Parent().Name()
}

// exitCodesTopic is `moraine help exit-codes`.
func exitCodesTopic() *cobra.Command {
	var b strings.Builder
	b.WriteString("The exit code of a command says what kind of failure it was:\n\n")
	sorted := slices.Clone(exitCodes)
	slices.SortStableFunc(sorted, func(x, y exitClass) int { return x.code - y.code })
	for _, c := range sorted {
		if c.text != "" {
			fmt.Fprintf(&b, "  %3d  %s\n", c.code, c.text)
		}
	}
	b.WriteString("\nA command for several objects goes on after a failure and ends with the code\nof the first.")
	return &cobra.Command{Use: "exit-codes", Short: "What the exit codes mean", Long: b.String()}
}

// quote puts a word of somebody else into quotation marks.
func quote(s string) string { return strconv.Quote(s) }
