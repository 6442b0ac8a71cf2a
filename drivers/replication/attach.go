package replication

import (
	"errors"
	"fmt"
	"time"
)

// Role of a member in the volume's record.
type Role uint8

// Roles (0001 section 1).
const (
	InSync Role = iota + 1
	Syncing
	Outdated
	Forked
	Leaving
)

// Epoch is the fencing number of a volume with the random tag of its writer.
type Epoch struct {
	N   uint64
	Tag uint64
}

// Session is one life of a mirror: 128 random bits.
type Session [16]byte

// Member is one replica as the record names it.
type Member struct {
	Replica string
	Role    Role
	LossID  string // of an in-sync member, as recorded; "" otherwise
}

// Record is what the decision needs of the volume's record as it stands after
// step 2 (this session is primary, at epoch Epoch).
type Record struct {
	Epoch   Epoch
	Active  uint64 // n that all in-sync members had promised when a primary last began to serve
	Clean   bool   // it was detached with every region clean, before step 2
	Members []Member

	// What follows is for the core; DecideAttach does not look at it.
	Primary   Primary
	Attempt   uint64 // random, of the change that made the record what it is
	Size      int64  // bytes
	Snapshots []Snapshot
}

// Answer is a member's answer to PROMOTE.
type Answer struct {
	Replica     string
	OldPromised uint64 // n promised before this promote
	LossID      string
	// Remaining is the time until the last lease that the replica ever
	// granted ends, and OwnGrant whether it is known to be of an earlier
	// session of this same node, boot and data directory.
	Remaining time.Duration
	OwnGrant  bool
	// NewerStamp says that the member is clean in a region where another
	// answering member holds a newer stamp (it came back older). The caller
	// compares the STATE of the members.
	NewerStamp bool
}

// Attach is the outcome of DecideAttach.
type Attach struct {
	InSync   []Member      // S' with the loss ids to record
	Outdated []string      // replicas that leave the in-sync set
	Shrunk   bool          // S' is smaller than the recorded set: one more epoch
	Wait     time.Duration // from when the answers came, before leases are taken
	// DeviceLives says that a device which outlived its mirror may go on.
	DeviceLives bool
	// DeviceReason says why not, for people.
	DeviceReason string
	// Lossy: no member is intact; writes that were acknowledged and not
	// flushed may be gone.
	Lossy bool
}

// Errors of DecideAttach.
var (
	// ErrNoInSync: no in-sync member answered. Wait; never use others.
	ErrNoInSync = errors.New("no in-sync replica answered")
	// ErrCameBackOlder: the only in-sync member has an older state than the
	// record. Only a person may force it.
	ErrCameBackOlder = errors.New("the only in-sync replica came back older than the record")
)

// leaseRateMargin covers clocks whose rates differ by up to 1 % (F3).
const leaseRateMargin = 1.01

// DecideAttach is steps 3 to 6 of 0001 section 4.1. ownSessions are the n that
// this node's attachment file lists for the device that is still there; nil
// when there is no such device.
func DecideAttach(rec Record, answers []Answer, ownSessions []uint64) (Attach, error) {
	answered := map[string]Answer{}
	for _, a := range answers {
		answered[a.Replica] = a
	}
	var recorded, rest []Member
	older := 0
	for _, m := range rec.Members {
		if m.Role != InSync {
			continue
		}
		recorded = append(recorded, m)
		a, ok := answered[m.Replica]
		if !ok {
			continue
		}
		// Step 3: promised below active means an older copy of the drive.
		// Step 4: so does being clean with an older stamp.
		if a.OldPromised < rec.Active || a.NewerStamp {
			older++
			continue
		}
		rest = append(rest, m)
	}
	if len(rest) == 0 {
		if older > 0 {
			return Attach{}, fmt.Errorf("%d of %d in-sync replicas answered, each older than epoch %d: %w", older, len(recorded), rec.Active, ErrCameBackOlder)
		}
		return Attach{}, fmt.Errorf("%d in-sync replicas are recorded: %w", len(recorded), ErrNoInSync)
	}
	intact := intactOf(rec, rest, answered)
	chosen := intact
	if len(chosen) == 0 {
		chosen = rest
	}
	out := Attach{Shrunk: len(chosen) < len(recorded)}
	keep := map[string]bool{}
	for _, m := range chosen {
		a := answered[m.Replica]
		keep[m.Replica] = true
		out.InSync = append(out.InSync, Member{Replica: m.Replica, Role: InSync, LossID: a.LossID})
		if !a.OwnGrant {
			out.Wait = max(out.Wait, time.Duration(float64(a.Remaining)*leaseRateMargin))
		}
	}
	for _, m := range recorded {
		if !keep[m.Replica] {
			out.Outdated = append(out.Outdated, m.Replica)
		}
	}
	out.Lossy = len(intact) == 0
	out.DeviceLives, out.DeviceReason = deviceLives(rec, len(intact) > 0, ownSessions)
	return out, nil
}

func intactOf(rec Record, rest []Member, answered map[string]Answer) []Member {
	if rec.Clean {
		return rest
	}
	var intact []Member
	for _, m := range rest {
		if answered[m.Replica].LossID == m.LossID {
			intact = append(intact, m)
		}
	}
	return intact
}

// deviceLives: S' is a subset of intact exactly when some member is intact.
func deviceLives(rec Record, intact bool, ownSessions []uint64) (bool, string) {
	if !intact {
		return false, "every replica lost power or its drive since the device was opened: writes that it was told are done may be gone"
	}
	for _, n := range ownSessions {
		if n == rec.Active {
			return true, ""
		}
	}
	return false, fmt.Sprintf("another primary has served the volume since (active epoch %d)", rec.Active)
}
