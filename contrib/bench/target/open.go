package target

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"

	"github.com/moraine-storage/moraine/contrib/bench/inproc"
)

// OpenStore opens a store in a process of its own; it returns what that found
// and the most memory that the process ever had resident.
func OpenStore(dir string) (_ inproc.Opened, resident int64, err error) {
	var o inproc.Opened
	self, err := os.Executable()
	if err != nil {
		return o, 0, err
	}
	var stderr bytes.Buffer
	cmd := exec.Command(self, "-open", dir)
	cmd.Stderr = &stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return o, 0, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return o, 0, err
	}
	if err := cmd.Start(); err != nil {
		return o, 0, err
	}
	derr := json.NewDecoder(out).Decode(&o)
	if derr == nil {
		resident, derr = memoryOf(cmd.Process.Pid, "status", "VmHWM")
	}
	err = errors.Join(derr, in.Close(), cmd.Wait())
	if err != nil {
		err = fmt.Errorf("open store: %w: %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	return o, resident, err
}
