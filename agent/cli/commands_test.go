package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// tree is the whole command tree, without an agent.
func tree() *cobra.Command { return newApp(Deps{}).rootCommand() }

// Every command has a short text without a full stop, an example that begins
// with its own name and, by itself, help; every flag says what it does.
func TestHelpIsComplete(t *testing.T) {
	root := tree()
	root.InitDefaultHelpCmd()
	commands := 0
	eachCommand(root, func(c *cobra.Command) {
		if c.Name() == "help" || c.IsAdditionalHelpTopicCommand() && !c.Runnable() {
			return
		}
		commands++
		if c.Short == "" || strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: short text %q", c.CommandPath(), c.Short)
		}
		if !strings.Contains(c.Example, c.CommandPath()) {
			t.Errorf("%s: the example does not show it: %q", c.CommandPath(), c.Example)
		}
		c.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" {
				t.Errorf("%s: flag %s says nothing", c.CommandPath(), f.Name)
			}
		})
		for line := range strings.SplitSeq(c.Long, "\n") {
			if len(line) > 90 {
				t.Errorf("%s: a line of %d characters: %q", c.CommandPath(), len(line), line)
			}
		}
		var out bytes.Buffer
		args := append(strings.Fields(c.CommandPath())[1:], "--help")
		if code := Run(context.Background(), args, Deps{Stdout: &out, Stderr: &out}); code != 0 || !strings.Contains(out.String(), c.Example) {
			t.Errorf("%v: exit code %d, %s", args, code, out.String())
		}
	})
	if commands < 45 {
		t.Errorf("only %d commands were looked at", commands)
	}
}

// The commands that are promised are there.
func TestCommandList(t *testing.T) {
	root := tree()
	for _, path := range []string{
		"volume create", "volume list", "volume show", "volume attach", "volume detach", "volume mount", "volume unmount",
		"volume export", "volume resize", "volume update", "volume clone", "volume delete", "snapshot create", "snapshot list",
		"snapshot show", "snapshot diff", "snapshot restore", "snapshot delete", "pool list", "pool show", "drive list",
		"drive show", "drive check", "replica list", "replica export", "node list", "node show", "plugin list", "plugin serve",
		"status", "doctor", "events", "operation list", "operation show", "version", "config validate", "agent", "completion", "holder",
	} {
		c, rest, err := root.Find(strings.Fields(path))
		if err != nil || len(rest) > 0 || c.CommandPath() != "moraine "+path {
			t.Errorf("%s: %v %v %v", path, c.CommandPath(), rest, err)
		}
	}
}

func TestOneDashIsEnough(t *testing.T) {
	for in, want := range map[string]string{
		"agent -dev":                          "agent --dev",
		"agent -config a -config=b":           "agent --config a --config=b",
		"agent -config -dev":                  "agent --config -dev",
		"agent --config -dev":                 "agent --config -dev",
		"agent -help":                         "agent --help",
		"-address x volume list":              "--address x volume list",
		"-o json volume list":                 "-o json volume list",
		"-ojson volume list":                  "-ojson volume list",
		"volume list -qo json":                "volume list -qo json",
		"volume list -qo -dev":                "volume list -qo -dev",
		"volume list -output json -q":         "volume list --output json -q",
		"volume create pg -size 1GiB":         "volume create pg --size 1GiB",
		"volume create -- -size":              "volume create -- -size",
		"volume create -label -size":          "volume create --label -size",
		"volume create -read-only":            "volume create -read-only",
		"volume attach -read-only pg":         "volume attach --read-only pg",
		"vol attach -read-only pg":            "vol attach --read-only pg",
		"events -f -after 3":                  "events -f --after 3",
		"-":                                   "-",
		"-version":                            "--version",
		"__complete volume show -address x y": "__complete volume show --address x y",
	} {
		if got := strings.Join(normaliseArgs(tree(), strings.Fields(in)), " "); got != want {
			t.Errorf("%q becomes %q, want %q", in, got, want)
		}
	}
}

// Whatever is typed, nothing is lost, nothing but dashes is added, and a second
// pass changes nothing.
func TestNormaliseArgsProperties(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	words := strings.Fields("agent -dev --dev -config volume create list pg -size --size=1 -o json -qo -ojson - -- --- -= -x -xyz=1 --label a=b -label -wait -help --help")
	root := tree()
	for range 3000 {
		var in []string
		for range r.IntN(8) {
			in = append(in, words[r.IntN(len(words))])
		}
		out := normaliseArgs(root, slices.Clone(in))
		if len(in) != len(out) {
			t.Fatalf("%q becomes %q", in, out)
		}
		for i := range in {
			if out[i] != in[i] && out[i] != "-"+in[i] {
				t.Fatalf("%q becomes %q", in, out)
			}
		}
		if again := normaliseArgs(root, slices.Clone(out)); !slices.Equal(again, out) {
			t.Fatalf("%q becomes %q, and that %q", in, out, again)
		}
	}
}

func TestExitCodes(t *testing.T) {
	for code, errs := range map[int][]error{
		exitOK:           {nil},
		exitFailed:       {errors.New("x"), errdefs.ErrInternal, errdefs.ErrUnimplemented},
		exitUsage:        {errdefs.ErrInvalidArgument, errdefs.ErrOutOfRange, usage(nil, errors.New("x"))},
		exitNotFound:     {errdefs.ErrNotFound, fs.ErrNotExist},
		exitPrecondition: {errdefs.ErrFailedPrecondition},
		exitExists:       {errdefs.ErrAlreadyExists, fs.ErrExist},
		exitUnavailable:  {errdefs.ErrUnavailable, errors.Join(errdefs.ErrUnavailable, errdefs.ErrIndeterminate)},
		exitDenied:       {errdefs.ErrPermissionDenied, errdefs.ErrUnauthenticated, fs.ErrPermission},
		exitNoSpace:      {errdefs.ErrResourceExhausted},
		exitBusy:         {errdefs.ErrAborted},
		exitDataLoss:     {errdefs.ErrDataLoss},
		exitTimeout:      {context.DeadlineExceeded, errors.Join(context.DeadlineExceeded, errdefs.ErrUnavailable)},
		exitInterrupted:  {context.Canceled},
	} {
		for _, err := range errs {
			if err != nil {
				err = fmt.Errorf("around: %w", err)
			}
			if got := exitCode(err); got != code {
				t.Errorf("%v gives %d, want %d", err, got, code)
			}
		}
	}
	var out bytes.Buffer
	if code := Run(context.Background(), []string{"help", "exit-codes"}, Deps{Stdout: &out, Stderr: &out}); code != 0 {
		t.Errorf("help exit-codes: %d", code)
	}
	for _, c := range exitCodes {
		if !strings.Contains(out.String(), fmt.Sprintf("  %3d  ", c.code)) {
			t.Errorf("help exit-codes lacks %d", c.code)
		}
	}
}

// Completion knows commands, flags, values, and what the agent has.
func TestCompletion(t *testing.T) {
	n := newNode(t)
	n.must("volume", "create", "pg", "--size", "1GiB")
	n.must("volume", "create", "web", "--size", "1GiB")
	n.must("snapshot", "create", "pg@one")
	for line, want := range map[string]string{
		"vol|":                              "volume",
		"volume |":                          "attach clone create delete detach export list mount resize show unmount update",
		"volume show |":                     "pg web",
		"volume show w|":                    "pg web", // the shell filters; the script asks once
		"volume show pg |":                  "web",
		"volume attach pg |":                "",
		"volume create |":                   "",
		"volume create x --fs |":            "ext4 none xfs",
		"volume create x --driver |":        "fuse nbd",
		"volume create x --pool |":          "default",
		"volume create x --from-snapshot |": "pg@one",
		"volume export |":                   "pg pg@one web",
		"volume clone |":                    "pg pg@one web",
		"volume delete pg |":                "web",
		"snapshot show |":                   "pg@one",
		"snapshot create |":                 "pg web",
		"snapshot diff pg@one |":            "pg web",
		"pool show |":                       "default",
		"node show |":                       "node-a",
		"drive show |":                      "00000000000000000000000000000003",
		"drive list --pool |":               "default",
		"volume list -o |":                  "json table yaml",
		"completion |":                      "bash fish zsh",
		"agent --log-level |":               "debug error info trace warn",
	} {
		words := strings.Split(strings.TrimSuffix(line, "|"), " ")
		r := n.run(append([]string{"__complete"}, words...)...)
		if got := offered(r.stdout); r.code != 0 || !slices.Equal(got, strings.Fields(want)) {
			t.Errorf("%s offers %v (%d %s), want %s", line, got, r.code, r.stderr, want)
		}
	}
	d := n.deps
	d.Getenv = func(string) string { return "/nonexistent/agent.sock" }
	if r := n.runWith(d, "", "__complete", "volume", "show", ""); r.code != 0 || len(offered(r.stdout)) != 0 {
		t.Errorf("without an agent: %d %q", r.code, r.stdout)
	}
}

// offered reads what the hidden command of completion prints, sorted.
func offered(text string) []string {
	var out []string
	for line := range strings.SplitSeq(text, "\n") {
		word, _, _ := strings.Cut(line, "\t")
		if word == "" || strings.HasPrefix(word, ":") || strings.HasPrefix(word, "Completion ended") {
			continue
		}
		out = append(out, word)
	}
	slices.Sort(out)
	return out
}

// The scripts that are shipped are those that the program prints.
func TestShippedCompletionScripts(t *testing.T) {
	n := newNode(t)
	for _, shell := range []string{"bash", "zsh", "fish"} {
		path := filepath.Join("..", "..", "contrib", "completion", "moraine."+shell)
		got := n.must("completion", shell)
		if *update {
			if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if string(want) != got {
			t.Errorf("%s is old: go test ./agent/cli -update writes it anew\n%s", path, firstDifference(string(want), got))
		}
	}
}
