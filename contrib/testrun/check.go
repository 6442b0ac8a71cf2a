package main

import (
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

// check is everything about the tree that needs no test to run.
func (r *runner) check(ctx context.Context) error {
	r.stepFunc(ctx, "check: gofmt", stepLimit, r.gofmt)
	steps := []struct {
		name string
		env  []string
		argv []string
	}{
		{"check: vet", noCgo, []string{"go", "vet", "./..."}},
		{"check: vet integration", noCgo, []string{"go", "vet", "-tags", integrationTag, "./..."}},
		{"check: staticcheck", noCgo, []string{"go", "tool", "staticcheck", "-tags", integrationTag, "./..."}},
		{"check: build linux/amd64", append([]string{"GOOS=linux", "GOARCH=amd64"}, noCgo...), []string{"go", "build", "./..."}},
		{"check: build linux/arm64", append([]string{"GOOS=linux", "GOARCH=arm64"}, noCgo...), []string{"go", "build", "./..."}},
	}
	for _, s := range steps {
		if err := r.step(ctx, s.name, stepLimit, s.env, s.argv...); err != nil {
			return err
		}
	}
	r.stepFunc(ctx, "check: generated code", stepLimit, r.generated)
	r.goTest(ctx, "check: tree rules", stepLimit, noCgo, []string{"./contrib/lint"})
	return ctx.Err()
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
	for _, f := range files {
		if err := copyFile(filepath.Join(r.root, f), filepath.Join(tmp, f)); err != nil {
			return err
		}
	}
	cmd := command(ctx, tmp, noCgo, "go", "generate", "./...")
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("go generate: %w", err)
	}
	var stale []string
	for _, f := range files {
		a, err := os.ReadFile(filepath.Join(r.root, f))
		if err != nil {
			return err
		}
		b, err := os.ReadFile(filepath.Join(tmp, f))
		if err != nil || string(a) != string(b) {
			stale = append(stale, f)
		}
	}
	if len(stale) > 0 {
		return fmt.Errorf("not what `make generate` writes: %s", strings.Join(stale, ", "))
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

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o644)
}
