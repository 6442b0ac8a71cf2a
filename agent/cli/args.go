package cli

import (
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// normaliseArgs gives long flags with one dash a second one, since flags take
// one or two: "-dev" becomes "--dev". It follows the tree of commands, so that
// a name is only rewritten where it is a flag and never where it is the value
// of one. What follows "--" is left alone.
func normaliseArgs(root *cobra.Command, args []string) []string {
	out := make([]string, 0, len(args))
	cmd, value := root, false // value: the next argument belongs to a flag
	for i, arg := range args {
		if value {
			out, value = append(out, arg), false
			continue
		}
		if arg == "--" {
			return append(out, args[i:]...)
		}
		if len(arg) < 2 || arg[0] != '-' {
			if sub := child(cmd, arg); sub != nil {
				cmd = sub
			}
			out = append(out, arg)
			continue
		}
		arg, value = normaliseFlag(cmd, arg)
		out = append(out, arg)
	}
	return out
}

// normaliseFlag returns the argument as pflag wants it, and whether the next
// argument is its value.
func normaliseFlag(cmd *cobra.Command, arg string) (string, bool) {
	long := strings.HasPrefix(arg, "--")
	name, _, hasValue := strings.Cut(strings.TrimLeft(arg, "-"), "=")
	f := lookup(cmd, name)
	if !long && len(name) > 1 {
		if f == nil && name != "help" && name != "version" {
			return arg, shortTakesNext(cmd, arg)
		}
		arg = "-" + arg
	}
	if !long && len(name) == 1 {
		return arg, shortTakesNext(cmd, arg)
	}
	return arg, f != nil && !hasValue && f.NoOptDefVal == ""
}

// shortTakesNext says whether a group of one-letter flags ends with one whose
// value is the next argument: "-o" and "-qo" do, "-ojson" does not.
func shortTakesNext(cmd *cobra.Command, arg string) bool {
	for i := 1; i < len(arg); i++ {
		f := shorthand(cmd, arg[i:i+1])
		if f == nil || f.NoOptDefVal == "" {
			return f != nil && i == len(arg)-1
		}
	}
	return false
}

// lookup finds a long flag of a command or of those above it.
func lookup(cmd *cobra.Command, name string) *pflag.Flag {
	for c := cmd; c != nil; c = c.Parent() {
		if f := c.PersistentFlags().Lookup(name); f != nil {
			return f
		}
	}
	return cmd.Flags().Lookup(name)
}

// shorthand finds a one-letter flag of a command or of those above it.
func shorthand(cmd *cobra.Command, letter string) *pflag.Flag {
	for c := cmd; c != nil; c = c.Parent() {
		if f := c.PersistentFlags().ShorthandLookup(letter); f != nil {
			return f
		}
	}
	return cmd.Flags().ShorthandLookup(letter)
}

// child finds a sub-command by name or alias.
func child(cmd *cobra.Command, name string) *cobra.Command {
	for _, c := range cmd.Commands() {
		if c.Name() == name || c.HasAlias(name) {
			return c
		}
	}
	return nil
}
