//go:build integration

package docker

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moraine-storage/moraine/contrib/interop/agentproc"
)

// image is what the tests run: busybox and fio, nothing else.
const image = "moraine-test:1"

const (
	engineTimeout = 60 * time.Second
	dockerTimeout = 2 * time.Minute // one docker command
)

// engine is a Docker Engine of this test alone.
type engine struct {
	t    *testing.T
	dir  string
	args []string
	cmd  *exec.Cmd
	done chan error
}

// lab is an engine with an agent as its volume plugin.
type lab struct {
	*engine
	agent  *agentproc.Agent
	driver string // the name under which Docker knows the agent
}

// newLab starts both. engineArgs are added to dockerd's.
func newLab(t *testing.T, engineArgs ...string) *lab {
	t.Helper()
	for _, prog := range []string{"dockerd", "docker", "containerd", "runc", "fio", "busybox", "losetup", "mkfs.ext4", "mkfs.xfs"} {
		if _, err := exec.LookPath(prog); err != nil {
			t.Fatalf("%v: `sh contrib/packages.sh test` installs it", err)
		}
	}
	driver := fmt.Sprintf("moraine-%d-%d", os.Getpid(), time.Now().UnixNano()%1e6)
	agent := agentproc.Start(t, agentproc.Options{DockerSocket: "/run/docker/plugins/" + driver + ".sock"})
	dir, err := os.MkdirTemp("", "mor-*.e")
	if err != nil {
		t.Fatal(err)
	}
	e := &engine{t: t, dir: dir, args: engineArgs}
	t.Cleanup(e.cleanup)
	e.start()
	e.importImage()
	return &lab{engine: e, agent: agent, driver: driver}
}

func (e *engine) host() string { return "unix://" + e.dir + "/docker.sock" }

// start runs dockerd and waits until it answers. After a SIGKILL of its
// predecessor the first attempt may fail while the old containerd goes away.
func (e *engine) start() {
	e.t.Helper()
	for attempt := 1; ; attempt++ {
		err := e.tryStart()
		if err == nil {
			return
		}
		if attempt == 4 {
			log, _ := os.ReadFile(filepath.Join(e.dir, "log"))
			e.t.Fatalf("start dockerd: %v\n%s", err, log[max(0, len(log)-4096):])
		}
	}
}

func (e *engine) tryStart() error {
	for _, f := range []string{"pid", "exec/containerd/containerd.pid"} {
		if err := os.Remove(filepath.Join(e.dir, f)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	out, err := os.OpenFile(filepath.Join(e.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }()
	e.cmd = exec.Command("dockerd", append([]string{"--data-root", e.dir + "/data", "--exec-root", e.dir + "/exec", "-H", e.host(),
		"--pidfile", e.dir + "/pid", "--bridge=none", "--iptables=false", "--ip6tables=false"}, e.args...)...)
	e.cmd.Stdout, e.cmd.Stderr = out, out
	if err := e.cmd.Start(); err != nil {
		return err
	}
	e.done = make(chan error, 1)
	go func(cmd *exec.Cmd, done chan<- error) { done <- cmd.Wait() }(e.cmd, e.done)
	deadline := time.After(engineTimeout)
	for {
		if _, err := e.try("version"); err == nil {
			return nil
		}
		select {
		case err := <-e.done:
			e.cmd = nil
			return fmt.Errorf("dockerd ended: %w", err)
		case <-deadline:
			return fmt.Errorf("dockerd does not answer after %s", engineTimeout)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// kill ends dockerd and its containerd with SIGKILL; containers live on.
func (e *engine) kill() {
	e.t.Helper()
	if err := e.cmd.Process.Kill(); err != nil {
		e.t.Fatal(err)
	}
	<-e.done
	e.cmd = nil
	e.killContainerd()
}

func (e *engine) killContainerd() {
	b, err := os.ReadFile(filepath.Join(e.dir, "exec/containerd/containerd.pid"))
	if err != nil {
		return
	}
	if pid, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil {
		// Still the one? The number may be anybody's by now.
		if line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && bytes.Contains(line, []byte(e.dir)) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// stop ends dockerd in order.
func (e *engine) stop() {
	e.t.Helper()
	if err := e.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		e.t.Fatal(err)
	}
	select {
	case <-e.done:
	case <-time.After(engineTimeout):
		e.t.Errorf("dockerd did not stop within %s", engineTimeout)
		e.kill()
		return
	}
	e.cmd = nil
}

// try runs a docker command and returns what it printed on stdout.
func (e *engine) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), dockerTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST="+e.host(), "DOCKER_CONFIG="+e.dir+"/cli")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("docker %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(stdout.String()), nil
}

// docker is a command that has to work.
func (l *lab) docker(args ...string) string {
	l.t.Helper()
	out, err := l.try(args...)
	if err != nil {
		l.t.Fatalf("%v\n%s\n%s", err, out, l.agent.LogTail())
	}
	return out
}

// refused is a command that has to fail with all of these words.
func (l *lab) refused(args []string, words ...string) {
	l.t.Helper()
	_, err := l.try(args...)
	if err == nil {
		l.t.Errorf("docker %s worked", strings.Join(args, " "))
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			l.t.Errorf("%v: lacks %q", err, w)
		}
	}
}

// create makes a volume with options NAME=VALUE.
func (l *lab) create(name string, opts ...string) {
	l.t.Helper()
	args := []string{"volume", "create", "-d", l.driver}
	for _, o := range opts {
		args = append(args, "-o", o)
	}
	l.docker(append(args, name)...)
}

// Scripts name the files that they sync: a sync of everything would wait for
// every file system of the host, those of other tests too.

// sh runs a script in a fresh container with the volume at /data.
func (l *lab) sh(volume, script string) string {
	l.t.Helper()
	return l.docker("run", "--rm", "--network", "none", "-v", volume+":/data", image, "/bin/sh", "-ec", script)
}

// spawn starts a container that lives until it is removed.
func (l *lab) spawn(name, volume string, argv ...string) {
	l.t.Helper()
	l.docker(slices.Concat([]string{"run", "-d", "--stop-timeout", "1", "--network", "none", "--name", name, "-v", volume + ":/data", image}, argv)...)
}

// cleanup removes the containers, ends the engine, and what it left.
func (e *engine) cleanup() {
	if e.cmd != nil {
		if ids, err := e.try("ps", "-aq"); err == nil && ids != "" {
			if _, err := e.try(append([]string{"rm", "-f", "-v"}, strings.Fields(ids)...)...); err != nil {
				e.t.Logf("clean up: %v", err)
			}
		}
		_ = e.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-e.done:
		case <-time.After(engineTimeout):
			_ = e.cmd.Process.Kill()
			<-e.done
		}
		e.cmd = nil
	}
	e.killContainerd()
	agentproc.TakeDown(e.t, e.dir)
	if err := os.RemoveAll(e.dir); err != nil {
		e.t.Errorf("clean up: %v", err)
	}
}

// importImage makes the image from the host's programs: no registry is asked.
func (e *engine) importImage() {
	e.t.Helper()
	cmd := exec.Command("docker", "import", "-", image)
	cmd.Env = append(os.Environ(), "DOCKER_HOST="+e.host(), "DOCKER_CONFIG="+e.dir+"/cli")
	var archive, stderr bytes.Buffer
	if err := writeImage(&archive); err != nil {
		e.t.Fatal(err)
	}
	cmd.Stdin, cmd.Stderr = &archive, &stderr
	if err := cmd.Run(); err != nil {
		e.t.Fatalf("docker import: %v: %s", err, stderr.Bytes())
	}
}

var lddPath = regexp.MustCompile(`(/\S+) \(0x`)

func writeImage(w io.Writer) error {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	fio, err := exec.LookPath("fio")
	if err != nil {
		return err
	}
	ldd, err := exec.Command("ldd", fio).Output()
	if err != nil {
		return fmt.Errorf("ldd fio: %w", err)
	}
	tw := tar.NewWriter(w)
	files := map[string]string{"bin/busybox": busybox, "bin/fio": fio}
	for _, m := range lddPath.FindAllStringSubmatch(string(ldd), -1) {
		files[strings.TrimPrefix(m[1], "/")] = m[1]
	}
	for _, dir := range []string{"tmp/", "data/", "proc/", "sys/", "dev/"} {
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o777}); err != nil {
			return err
		}
	}
	for name, from := range files {
		b, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o755, Size: int64(len(b))}); err != nil {
			return err
		}
		if _, err := tw.Write(b); err != nil {
			return err
		}
	}
	for _, applet := range []string{"sh", "cat", "ls", "dd", "sleep", "sha256sum", "df", "sync", "rm", "mkdir", "touch", "stat", "head", "wc", "date", "true", "grep", "mv"} {
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + applet, Linkname: "busybox", Mode: 0o777}); err != nil {
			return err
		}
	}
	return tw.Close()
}

// eventually waits for a condition that something in the background brings.
func eventually(t *testing.T, what string, limit time.Duration, ok func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s: %v", what, limit, err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}
