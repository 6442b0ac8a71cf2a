package backends

import (
	"context"
	"time"

	"github.com/moraine-storage/moraine/plugins/schema"
)

// ContractVersion is the version of this contract. It grows when a peer that
// does not know the change would do something wrong; additions that an old peer
// may ignore do not change it.
const ContractVersion = 1

// DriveID names a drive for ever: 128 random bits written as a UUID in lower
// case. The agent chooses it.
type DriveID string

// NodeID names a node of the cluster. Nowhere is "".
type NodeID string

// Info identifies a backend.
type Info struct {
	Name     string // as in `backend "NAME"`: [a-z][a-z0-9-]{0,31}
	Version  string // of the plugin, free text for people, at most 64 bytes
	Contract int    // the ContractVersion it speaks
	// Capabilities is filled by Complete and by the plugin SDK from the
	// interfaces that the backend implements; a backend leaves it empty.
	Capabilities Capabilities
}

// Capabilities tells which optional interfaces a backend implements.
type Capabilities struct {
	Provision bool // Provisioner
	Expand    bool // Expander
	Fence     bool // Fencer
	Health    bool // HealthReporter
}

// Config is what Configure gets.
type Config struct {
	Instance string // which of several configured backends of this kind
	Node     NodeID // where the backend runs
	// RunDir is private to this instance, exists, and is emptied by a reboot
	// but not by a restart of agent or plugin: mounts and markers go here.
	RunDir string
	// Options is the configuration block, checked against ConfigSchema and
	// normalised by it (schema.Schema.Check). Decode it with schema.Decode.
	Options map[string]any
}

// State is the condition of a drive or candidate.
type State int

// The states. Their String is what people see.
const (
	StateReady   State = iota + 1 // a drive, usable
	StateBlank                    // a candidate that Create may take
	StateRefused                  // will not be touched; Reason says why and what to do
	StateGone                     // a drive whose medium has disappeared
	StateFailed                   // a drive whose medium returns errors or went read-only
)

var stateNames = [...]string{StateReady: "ready", StateBlank: "blank", StateRefused: "refused", StateGone: "gone", StateFailed: "failed"}

func (s State) String() string {
	if s < StateReady || s > StateFailed {
		return "unknown"
	}
	return stateNames[s]
}

// Drive is a drive or, while ID is "", a candidate.
type Drive struct {
	ID      DriveID
	Source  string    // where the medium is: a path, a cloud volume's ID; at most MaxText bytes
	Serial  string    // of the device; "" when it has none
	Size    int64     // bytes that the agent may use; for a candidate what Create would give
	MaxSize int64     // bytes that Expand could give now; 0 = not known
	Class   string    // nvme, ssd, hdd, dir, file, gp3, ...
	State   State     // see above
	Reason  string    // why, for people; may also remark on a ready drive
	Node    NodeID    // where it is attached
	Created time.Time // zero for a candidate
}

// CreateRequest asks for a drive.
type CreateRequest struct {
	ID     DriveID
	Size   int64  // bytes, at least; 0 = all that the source gives
	Class  string // "" = any
	Source string // a candidate's Source; "" = the backend chooses or makes one
}

// Kind says what an Attachment's path is.
type Kind int

// The kinds.
const (
	KindDir      Kind = iota + 1 // a directory: the store's files go into it
	KindBlockdev                 // a raw block device
	KindFile                     // a raw file of fixed size
)

var kindNames = [...]string{KindDir: "dir", KindBlockdev: "blockdev", KindFile: "file"}

func (k Kind) String() string {
	if k < KindDir || k > KindFile {
		return "unknown"
	}
	return kindNames[k]
}

// Attachment is a drive that is usable on this node.
//
// With KindDir the agent owns every name in Path except those that begin with
// ".moraine-" (the backend's) and what the file system put there (lost+found).
type Attachment struct {
	Path   string
	Kind   Kind
	Size   int64 // bytes that the agent may use
	Serial string
}

// Health is what HealthReporter tells.
type Health struct {
	State   State  // ready, gone or failed
	Reason  string // for people; "" when ready
	Checked time.Time
}

// Page asks for a part of a list.
type Page struct {
	After string // Next of the page before; "" = from the start
	Limit int    // entries at most; 0 = DefaultPage; at most MaxPage
}

// Drives is one page of a list. Next is "" on the last one.
type Drives struct {
	Drives []Drive
	Next   string
}

// Configurer identifies a backend and takes its configuration.
type Configurer interface {
	// Info works at any time, answers at once and never waits for another
	// call: the agent uses it to see whether the backend lives.
	Info(ctx context.Context) (Info, error)
	// ConfigSchema describes Config.Options. It works before Configure.
	ConfigSchema(ctx context.Context) (schema.Schema, error)
	// Configure sets or replaces the configuration (invariant 6). Every other
	// method fails with ErrFailedPrecondition before the first one succeeded.
	Configure(ctx context.Context, c Config) error
}

// Catalog tells what is there.
type Catalog interface {
	// Discover looks at the media now and returns drives and candidates,
	// drives first, each in a stable order. A medium that is in trouble is an
	// entry with a Reason, not an error of the call.
	Discover(ctx context.Context) ([]Drive, error)
	// Get returns one drive: ErrNotFound when there is no medium with this ID
	// and none is remembered.
	Get(ctx context.Context, id DriveID) (Drive, error)
	// List returns drives, not candidates, in order of ID. A drive created or
	// deleted between two pages may or may not appear; no other is lost or doubled.
	List(ctx context.Context, p Page) (Drives, error)
}

// Attacher makes drives usable on nodes (invariant 4).
type Attacher interface {
	Attach(ctx context.Context, id DriveID, node NodeID) (Attachment, error)
	// Detach undoes Attach, also for a node that is dead. A drive that is not
	// attached there, or does not exist, is success. In use: ErrFailedPrecondition.
	Detach(ctx context.Context, id DriveID, node NodeID) error
}

// Backend is what every backend implements.
type Backend interface {
	Configurer
	Catalog
	Attacher
}

// Provisioner makes and destroys drives (invariants 1, 2, 5). Optional.
type Provisioner interface {
	Create(ctx context.Context, r CreateRequest) (Drive, error)
	// Delete destroys the drive and everything on it and gives the medium
	// back. The caller has moved the data away first.
	Delete(ctx context.Context, id DriveID) error
}

// Expander grows drives, attached or not. Optional.
type Expander interface {
	// Expand makes Size at least size bytes; a drive that is already as large
	// is returned as it is. Too large: ErrResourceExhausted. Never shrinks.
	Expand(ctx context.Context, id DriveID, size int64) (Drive, error)
}

// Fencer cuts a node off at the medium. Optional.
type Fencer interface {
	// Fence returns when no write of node to the drive can land any more.
	// Idempotent. The drive is not attached to node afterwards.
	Fence(ctx context.Context, id DriveID, node NodeID) error
}

// HealthReporter looks at one drive now. Optional.
type HealthReporter interface {
	// Health reads from the medium where it can. ErrNotFound as for Get.
	Health(ctx context.Context, id DriveID) (Health, error)
}

// Unwrapper is implemented by a Backend that stands for another one, so that
// a wrapper does not hide optional interfaces: Complete looks through it.
type Unwrapper interface {
	Unwrap() Backend
}
