package drivers

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// Step says how far an attachment has come. A step is persisted before what it
// announces is done (StepIntent, StepServing) or after all is done (StepReady).
type Step string

// The steps in their order.
const (
	StepIntent  Step = "intent"  // names are chosen; nothing need exist yet
	StepServing Step = "serving" // the kernel side may exist; no device that anyone was told of
	StepReady   Step = "ready"   // the device exists and may be in use
)

// stateVersion is raised when an older agent could misread a State.
const stateVersion = 1

// State is what the next process must know of an attachment. It is JSON on the
// node's own disk; fields unknown to a reader of the same version are ignored.
type State struct {
	Version   int    `json:"version"`
	Kind      Kind   `json:"kind"`
	Step      Step   `json:"step"`
	Volume    string `json:"volume"`  // Volume.ID
	BootID    string `json:"boot_id"` // kernel devices end with the boot
	Size      int64  `json:"size_bytes"`
	BlockSize int    `json:"block_size_bytes"`
	ReadOnly  bool   `json:"read_only,omitempty"`
	Device    string `json:"device,omitempty"` // path; set in StepReady

	NBD  *NBDState  `json:"nbd,omitempty"`
	Loop *LoopState `json:"loop,omitempty"`
}

// NBDState is the kernel nbd's part. Index is -1 until the kernel chose one.
type NBDState struct {
	Index       int    `json:"index"`
	Identifier  string `json:"identifier"` // NBD_ATTR_BACKEND_IDENTIFIER
	Connections int    `json:"connections"`
	ServerFlags uint64 `json:"server_flags"` // NBD transmission flags
}

// LoopState is the loop driver's part. Number is -1 until one was found.
type LoopState struct {
	MountPath  string `json:"mount_path"`  // of the FUSE filesystem
	HolderSock string `json:"holder_sock"` // where the descriptor is kept
	HolderKey  string `json:"holder_key"`
	Number     int    `json:"number"` // N of /dev/loopN
	// Released: the process that served it answered all it had read.
	Released bool `json:"released,omitempty"`
}

// NewState is the first State of an attachment, of this boot.
func NewState(kind Kind, v Volume, o Options) State {
	bs := o.BlockSize
	if bs == 0 {
		bs = block.SectorSize
	}
	return State{
		Version: stateVersion, Kind: kind, Step: StepIntent, Volume: v.ID, BootID: BootID(),
		Size: v.Info.Size, BlockSize: bs, ReadOnly: o.ReadOnly || v.Info.ReadOnly,
	}
}

// Marshal encodes s.
func (s State) Marshal() ([]byte, error) { return json.Marshal(s) }

// Clone copies s, so that the copy can be handed out.
func (s State) Clone() State {
	if s.NBD != nil {
		n := *s.NBD
		s.NBD = &n
	}
	if s.Loop != nil {
		l := *s.Loop
		s.Loop = &l
	}
	return s
}

// ParseState decodes and checks what Marshal made.
func ParseState(b []byte) (State, error) {
	var s State
	dec := json.NewDecoder(bytes.NewReader(b))
	if err := dec.Decode(&s); err != nil {
		return State{}, fmt.Errorf("attachment state: %v: %w", err, errdefs.ErrDataLoss)
	}
	if err := s.Validate(); err != nil {
		return State{}, err
	}
	return s, nil
}

// Validate says what is wrong with s.
func (s State) Validate() error {
	bad := func(format string, a ...any) error {
		return fmt.Errorf("attachment state of volume %q: %s: %w", s.Volume, fmt.Sprintf(format, a...), errdefs.ErrInvalidArgument)
	}
	if s.Version != stateVersion {
		return bad("version %d, this agent reads %d", s.Version, stateVersion)
	}
	if err := checkVolumeID(s.Volume); err != nil {
		return bad("%v", err)
	}
	switch s.Step {
	case StepIntent, StepServing, StepReady:
	default:
		return bad("unknown step %q", s.Step)
	}
	if s.Size < 0 || s.Size%block.SectorSize != 0 {
		return bad("size %d is not a multiple of %d", s.Size, block.SectorSize)
	}
	if !ValidBlockSize(s.BlockSize) {
		return bad("block size %d", s.BlockSize)
	}
	switch s.Kind {
	case KindNBD:
		if s.NBD == nil {
			return bad("kind nbd without its part")
		}
	case KindLoop:
		if s.Loop == nil {
			return bad("kind loop without its part")
		}
		if !strings.HasPrefix(s.Loop.MountPath, "/") {
			return bad("mount path %q is not absolute", s.Loop.MountPath)
		}
	default:
		return bad("unknown kind %q", s.Kind)
	}
	return nil
}

// Recoverable returns nil when Recover makes sense for s in this boot.
func (s State) Recoverable() error {
	if err := s.Validate(); err != nil {
		return err
	}
	if s.BootID != BootID() {
		return fmt.Errorf("recover volume %s: the host has booted since: %w", s.Volume, errdefs.ErrNotFound)
	}
	if s.Step != StepReady {
		return fmt.Errorf("recover volume %s: attach had only come to step %q: %w", s.Volume, s.Step, errdefs.ErrNotFound)
	}
	return nil
}

// CheckAttach validates the arguments of Driver.Attach.
func CheckAttach(v Volume, o Options) error {
	bad := func(format string, a ...any) error {
		return fmt.Errorf("attach volume %s: %s: %w", v.Name, fmt.Sprintf(format, a...), errdefs.ErrInvalidArgument)
	}
	if err := checkVolumeID(v.ID); err != nil {
		return bad("%v", err)
	}
	if o.Persist == nil {
		return bad("no Persist function")
	}
	if o.BlockSize != 0 && !ValidBlockSize(o.BlockSize) {
		return bad("block size %d, not 512, 1024, 2048 or 4096", o.BlockSize)
	}
	bs := int64(max(o.BlockSize, block.SectorSize))
	if v.Info.Size <= 0 || v.Info.Size%bs != 0 {
		return bad("size %d is not a positive multiple of %d", v.Info.Size, bs)
	}
	if o.Connections < 0 || o.Connections > 16 {
		return bad("%d connections, not 0 to 16", o.Connections)
	}
	return nil
}

// ValidBlockSize says whether a device may have logical blocks of n bytes.
func ValidBlockSize(n int) bool { return n == 512 || n == 1024 || n == 2048 || n == 4096 }

// checkVolumeID keeps IDs usable as file names and as netlink strings.
func checkVolumeID(id string) error {
	if id == "" || len(id) > 64 {
		return fmt.Errorf("volume ID %q has not 1 to 64 characters", id)
	}
	for _, c := range id {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_') {
			return fmt.Errorf("volume ID %q has the character %q", id, c)
		}
	}
	return nil
}

// DebugBootID is the environment variable that takes the place of the kernel's
// boot ID, for tests of power cuts. Set over a real one it would be believed
// that what the kernel had in memory is still there: data would be lost.
const DebugBootID = "MORAINE_DEBUG_BOOT_ID"

// BootID is this boot's random name; "" where the kernel does not tell.
func BootID() string {
	if id := os.Getenv(DebugBootID); id != "" {
		return id
	}
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
