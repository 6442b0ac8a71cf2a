package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// noCgo is how everything that ships is built.
var noCgo = []string{"CGO_ENABLED=0"}

// check is everything about the tree that needs no test to run. With a
// regular expression only the steps that match are run.
func (r *runner) check(ctx context.Context, rest []string) error {
	match, err := compileFilter(rest)
	if err != nil {
		return err
	}
	run := func(argv ...string) func(context.Context, string) {
		return func(ctx context.Context, name string) { r.step(ctx, name, stepLimit, noCgo, argv...) }
	}
	build := func(arch string) func(context.Context, string) {
		return func(ctx context.Context, name string) {
			r.step(ctx, name, stepLimit, append([]string{"GOOS=linux", "GOARCH=" + arch}, noCgo...), "go", "build", "./...")
		}
	}
	steps := []struct {
		name string
		run  func(context.Context, string)
	}{
		{"gofmt", func(ctx context.Context, name string) { r.stepFunc(ctx, name, stepLimit, r.gofmt) }},
		{"vet", run("go", "vet", "./...")},
		{"vet integration", run("go", "vet", "-tags", integrationTag, "./...")},
		{"staticcheck", run("go", "tool", "staticcheck", "-tags", integrationTag, "./...")},
		{"build linux/amd64", build("amd64")},
		{"build linux/arm64", build("arm64")},
		{"generated code", func(ctx context.Context, name string) { r.stepFunc(ctx, name, stepLimit, r.generated) }},
		{"tree rules", func(ctx context.Context, name string) {
			r.goTest(ctx, name, stepLimit, noCgo, []string{"./contrib/lint"})
		}},
	}
	for _, s := range steps {
		if match.MatchString(s.name) {
			s.run(ctx, "check: "+s.name)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

func (r *runner) gofmt(ctx context.Context, w io.Writer) error {
	files, err := r.goFiles(ctx)
	if err != nil {
		return err
	}
	cmd := command(ctx, r.root, nil, "gofmt", append([]string{"-l"}, files...)...)
	b, err := cmd.CombinedOutput()
	if err != nil {
		_, _ = w.Write(b)
		return err
	}
	if len(b) > 0 {
		_, _ = w.Write(b)
		return errors.New("these files are not formatted; run gofmt -w on them")
	}
	return nil
}

// generated copies the tree, generates there, and compares: the check leaves
// the tree alone.
func (r *runner) generated(ctx context.Context, w io.Writer) error {
	tmp, err := os.MkdirTemp("", "moraine-generate-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	files, err := r.sourceFiles(ctx)
	if err != nil {
		return err
	}
	before := map[string][]byte{} // somebody may be editing the tree itself
	for _, f := range files {
		if before[f], err = copyFile(filepath.Join(r.root, f), filepath.Join(tmp, f)); err != nil {
			return err
		}
	}
	if err := generate(ctx, tmp, w); err != nil {
		return err
	}
	var stale []string
	for _, f := range files {
		if b, err := os.ReadFile(filepath.Join(tmp, f)); err != nil || !bytes.Equal(b, before[f]) {
			stale = append(stale, f)
		}
	}
	if len(stale) > 0 {
		return fmt.Errorf("not what `make generate` writes: %s", strings.Join(stale, ", "))
	}
	return nil
}

// generators are what protoc runs, in the versions that go.mod pins.
var generators = []string{
	"google.golang.org/protobuf/cmd/protoc-gen-go",
	"google.golang.org/grpc/cmd/protoc-gen-go-grpc",
	"connectrpc.com/connect/cmd/protoc-gen-connect-go",
}

// generate runs go generate in a tree with the generators in the path.
func generate(ctx context.Context, dir string, w io.Writer) error {
	bin, err := os.MkdirTemp("", "moraine-generators-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(bin) }()
	env := append([]string{"PATH=" + bin + ":" + os.Getenv("PATH")}, noCgo...)
	for _, argv := range [][]string{append([]string{"go", "build", "-o", bin + "/"}, generators...), {"go", "generate", "./..."}} {
		cmd := command(ctx, dir, env, argv[0], argv[1:]...)
		cmd.Stdout, cmd.Stderr = w, w
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%s %s: %w", argv[0], argv[1], err)
		}
	}
	return nil
}

// sourceFiles are all files of the tree that git does not ignore.
func (r *runner) sourceFiles(ctx context.Context) ([]string, error) {
	cmd := command(ctx, r.root, nil, "git", "ls-files", "-co", "--exclude-standard")
	b, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("list files: %w", err)
	}
	var files []string
	for f := range strings.Lines(string(b)) {
		f = strings.TrimSuffix(f, "\n")
		if st, err := os.Lstat(filepath.Join(r.root, f)); err == nil && st.Mode().IsRegular() {
			files = append(files, f)
		}
	}
	return files, nil
}

func copyFile(from, to string) ([]byte, error) {
	b, err := os.ReadFile(from)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return nil, err
	}
	return b, os.WriteFile(to, b, 0o644)
}
