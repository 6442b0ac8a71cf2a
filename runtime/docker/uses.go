package docker

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// consumerPrefix marks Docker's consumers among others of a volume.
const consumerPrefix = "docker:"

// consumerName of the n-th use under an ID, from 1.
func consumerName(id string, n int) string {
	if n == 1 {
		return consumerPrefix + id
	}
	return consumerPrefix + id + "#" + strconv.Itoa(n)
}

// usesOf are the numbers of the uses that v records for an ID, ascending.
func usesOf(v *apiv1.Volume, id string) []int {
	var list []int
	for _, a := range v.GetAttachments() {
		for _, c := range a.GetConsumers() {
			rest, ok := strings.CutPrefix(c, consumerPrefix+id)
			if !ok {
				continue
			}
			if rest == "" {
				list = append(list, 1)
			} else if n, err := strconv.Atoi(strings.TrimPrefix(rest, "#")); err == nil && n > 1 && rest == "#"+strconv.Itoa(n) {
				list = append(list, n)
			}
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// newest is the consumer that an Unmount under this ID drops, "" if none.
func newest(v *apiv1.Volume, id string) string {
	list := usesOf(v, id)
	if len(list) == 0 {
		return ""
	}
	return consumerName(id, list[len(list)-1])
}

// dockerConsumers are all of Docker's consumers of v on this node's attachment.
func (p *Plugin) dockerConsumers(v *apiv1.Volume) []string {
	var list []string
	for _, a := range v.GetAttachments() {
		if p.node != "" && a.GetNode() != p.node {
			continue
		}
		for _, c := range a.GetConsumers() {
			if strings.HasPrefix(c, consumerPrefix) {
				list = append(list, c)
			}
		}
	}
	slices.Sort(list)
	return list
}

// use is a consumer of a volume.
type use struct{ volume, consumer string }

// uses orders the calls about one volume (invariant 4) and remembers of each
// use what tells a repeated Mount from a second one, and a use that its engine
// has forgotten from one that lives (invariants 2 and 6).
type uses struct {
	now   func() time.Time
	start time.Time

	mu       sync.Mutex // guards the rest
	locks    map[string]*volumeLock
	mounted  map[use]time.Time // when this process answered the Mount
	stuck    map[use]bool      // its Unmount failed: Docker still owns it, and may mount it again
	activate time.Time         // when an engine last activated the plugin, that is, was started; zero: never
}

// volumeLock lives while somebody holds it or waits for it.
type volumeLock struct {
	sync.Mutex
	users int // guarded by uses.mu
}

func newUses(now func() time.Time) *uses {
	return &uses{now: now, start: now(), locks: map[string]*volumeLock{}, mounted: map[use]time.Time{}, stuck: map[use]bool{}}
}

// lock waits for its turn with a volume and returns the unlock.
func (u *uses) lock(name string) (unlock func()) {
	u.mu.Lock()
	l := u.locks[name]
	if l == nil {
		l = &volumeLock{}
		u.locks[name] = l
	}
	l.users++
	u.mu.Unlock()
	l.Lock()
	return func() {
		l.Unlock()
		u.mu.Lock()
		defer u.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(u.locks, name)
		}
	}
}

// activated notes that an engine was started.
func (u *uses) activated() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.activate = u.now()
}

// unanswered says that a Mount of a recorded consumer is a repetition: Docker
// did not get, or did not keep, the answer of the first.
func (u *uses) unanswered(name, consumer string) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	k := use{name, consumer}
	_, mine := u.mounted[k]
	return u.stuck[k] || !mine && u.now().Sub(u.start) < retryWindow
}

// suspect says that the engine which owned the use may have been killed since:
// one was started after the Mount, and not within the time that it takes to
// bind what was mounted.
func (u *uses) suspect(name, consumer string) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	at := u.mounted[use{name, consumer}] // zero if an earlier process mounted it
	return at.Before(u.activate) && u.now().Sub(at) > bindGrace
}

// noteMount notes that a Mount was answered by this process.
func (u *uses) noteMount(name, consumer string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.mounted[use{name, consumer}] = u.now()
	delete(u.stuck, use{name, consumer})
}

// noteUnmount notes the outcome of an Unmount.
func (u *uses) noteUnmount(name, consumer string, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	k := use{name, consumer}
	if err != nil {
		u.stuck[k] = true
		return
	}
	delete(u.stuck, k)
	delete(u.mounted, k)
}

// next is the consumer for a Mount of v under id. The volume's lock is held.
func (p *Plugin) next(v *apiv1.Volume, id string) (string, error) {
	have := usesOf(v, id)
	if len(have) == 0 {
		return consumerName(id, 1), nil
	}
	last := have[len(have)-1]
	consumer := consumerName(id, last)
	if p.uses.unanswered(v.GetName(), consumer) || p.uses.suspect(v.GetName(), consumer) && p.idle(v) {
		return consumer, nil
	}
	if last >= maxUses {
		return "", fmt.Errorf("used %d times under the id %s: %w", last, id, errdefs.ErrResourceExhausted)
	}
	return consumerName(id, last+1), nil
}

// idle says that no container has the volume. Doubt is no.
func (p *Plugin) idle(v *apiv1.Volume) bool {
	path := p.mountpoint(v)
	if path == "" {
		return false
	}
	bound, err := p.bound(path)
	if err != nil {
		p.log.Warn("cannot tell whether containers have the volume", "volume", v.GetName(), "error", err)
	}
	return err == nil && !bound
}

// dropStale drops the uses that their engine has forgotten (invariant 6), if
// all of Docker's uses are such. It says whether it dropped any. The volume's
// lock is held.
func (p *Plugin) dropStale(ctx context.Context, v *apiv1.Volume) (bool, error) {
	list := p.dockerConsumers(v)
	for _, c := range list {
		if !p.uses.suspect(v.GetName(), c) {
			return false, nil
		}
	}
	if len(list) == 0 || !p.idle(v) {
		return false, nil
	}
	for _, c := range list {
		_, err := p.svc.UnmountVolume(ctx, &apiv1.UnmountVolumeRequest{Name: v.GetName(), Consumer: c})
		p.uses.noteUnmount(v.GetName(), c, err)
		if err != nil {
			return false, err
		}
		p.log.Warn("dropped a use that its docker engine has forgotten", "volume", v.GetName(), "consumer", c)
	}
	return true, nil
}
