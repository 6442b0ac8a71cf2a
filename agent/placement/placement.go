// Package placement decides which drives hold the replicas of a volume.
//
// Place is a pure function of a snapshot of the cluster and a request: no I/O,
// no clock. It explains itself: each drive that was not chosen has a reason.
package placement

import (
	"fmt"
	"sort"

	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// Drive is what placement knows of a drive.
type Drive struct {
	ID          string
	Node        string
	Pool        string
	State       string // "ready" is the only one that takes new replicas
	Capacity    int64  // bytes
	Free        int64  // bytes not allocated
	Provisioned int64  // bytes promised to the replicas that are on it
}

// Request is what a new volume asks for.
type Request struct {
	Replicas int
	Pool     string // "": any
	Size     int64  // bytes, of one replica
	Local    string // node that will use it, preferred; "": none
}

// Limits of overcommitment. Volumes are thin: a drive may promise more than it
// has, but not without end, or its volumes all run dry together.
const (
	provisionRatioMax = 20
	freeMin           = 64 << 20 // bytes a drive must have left to take a replica
)

// Decision is the outcome of Place.
type Decision struct {
	Drives   []string          // chosen, one per replica
	Rejected map[string]string // drive -> reason
}

// Place chooses drives on distinct nodes: the consumer's own first, then those
// with most free space relative to what they have promised.
// ErrResourceExhausted when fewer fit than asked.
func Place(drives []Drive, r Request) (Decision, error) {
	d := Decision{Rejected: map[string]string{}}
	var fit []Drive
	pools := map[string]bool{}
	for _, dr := range drives {
		pools[dr.Pool] = true
		if why := reject(dr, r); why != "" {
			d.Rejected[dr.ID] = why
			continue
		}
		fit = append(fit, dr)
	}
	if r.Pool != "" && !pools[r.Pool] {
		return d, fmt.Errorf("pool %q: %w (pools are: %s)", r.Pool, errdefs.ErrNotFound, names(pools))
	}
	sort.SliceStable(fit, func(i, j int) bool { return better(fit[i], fit[j], r) })
	used := map[string]bool{}
	for _, dr := range fit {
		switch {
		case len(d.Drives) == r.Replicas:
			d.Rejected[dr.ID] = "not needed: drives with more room were chosen"
		case used[dr.Node]:
			d.Rejected[dr.ID] = "node " + dr.Node + " already holds a replica"
		default:
			used[dr.Node] = true
			d.Drives = append(d.Drives, dr.ID)
		}
	}
	if len(d.Drives) < r.Replicas {
		return d, short(d, r, used)
	}
	return d, nil
}

func reject(dr Drive, r Request) string {
	switch {
	case r.Pool != "" && dr.Pool != r.Pool:
		return fmt.Sprintf("in pool %q", dr.Pool)
	case dr.State != "ready":
		return "drive is " + dr.State
	case dr.Free < freeMin:
		return fmt.Sprintf("only %d bytes are free", dr.Free)
	case r.Size > dr.Capacity*provisionRatioMax-dr.Provisioned:
		return fmt.Sprintf("it would promise more than %d times its capacity", provisionRatioMax)
	}
	return ""
}

func better(a, b Drive, r Request) bool {
	if la, lb := a.Node == r.Local, b.Node == r.Local; la != lb {
		return la
	}
	ra, rb := room(a), room(b)
	if ra != rb {
		return ra > rb
	}
	return a.ID < b.ID
}

// room is the free space a drive would have if its thin volumes filled half.
func room(d Drive) int64 { return d.Free - d.Provisioned/2 }

func short(d Decision, r Request, nodes map[string]bool) error {
	if len(nodes) > 0 {
		return fmt.Errorf("%d replicas asked, drives of %d nodes fit: each replica needs a node of its own: %w", r.Replicas, len(nodes), errdefs.ErrResourceExhausted)
	}
	why, first := "there are no drives", ""
	for id, reason := range d.Rejected {
		if first == "" || id < first {
			why, first = fmt.Sprintf("drive %s: %s", id, reason), id
		}
	}
	return fmt.Errorf("no drive fits (%d looked at; %s): %w", len(d.Rejected), why, errdefs.ErrResourceExhausted)
}

func names(set map[string]bool) string {
	var out []string
	for n := range set {
		out = append(out, n)
	}
	sort.Strings(out)
	s := ""
	for i, n := range out {
		if i > 0 {
			s += ", "
		}
		s += n
	}
	return s
}
