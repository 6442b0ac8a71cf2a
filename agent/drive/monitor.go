package drive

import (
	"context"
	"fmt"
	"time"

	"github.com/moraine-storage/moraine/backends"
)

// fullBelow is the free space at which a drive counts as full: placement
// leaves it alone and status warns. 64 MiB is the least that a new replica is
// placed on.
const fullBelow = 64 << 20

func (m *Manager) monitor(ctx context.Context) {
	t := time.NewTicker(m.o.Interval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		m.rescan(ctx)
		m.mu.Lock()
		var all []*drive
		for _, d := range m.drives {
			all = append(all, d)
		}
		m.mu.Unlock()
		for _, d := range all {
			m.check(ctx, d)
		}
	}
}

// suspectPause lies between two looks at a drive whose I/O goes on failing. The
// first look may come before the store or the backend know what is wrong.
const suspectPause = 250 * time.Millisecond

// suspectFor is how long a drive counts as failed after an I/O error that
// nothing else explains: a file system may take half a minute to notice that
// its device is dead, and a backend that reads what is cached sees nothing.
const suspectFor = time.Minute

// Suspect has a drive looked at now and not at the next tick: I/O on it failed,
// with an error of the medium or, if err is nil, for another reason.
// It may be called for each failed request, on the data path: it does not wait,
// and calls that come while a look is under way make one more together.
func (m *Manager) Suspect(id string, err error) {
	m.urgent.mu.Lock()
	defer m.urgent.mu.Unlock()
	if m.urgent.ctx == nil {
		return // not started, or closed
	}
	if err != nil {
		m.urgent.seen[id] = seenError{err, time.Now()}
	}
	if _, running := m.urgent.again[id]; running {
		m.urgent.again[id] = true
		return
	}
	m.urgent.again[id] = false
	ctx := m.urgent.ctx
	m.done.Go(func() { m.lookAt(ctx, id) })
}

// lookAt checks one drive until a look saw all that Suspect was called for.
// A goroutine per drive: a backend that hangs over one holds up no other.
func (m *Manager) lookAt(ctx context.Context, id string) {
	m.mu.Lock()
	d := m.drives[id]
	m.mu.Unlock()
	for {
		if d != nil {
			m.check(ctx, d)
		}
		select {
		case <-ctx.Done():
		case <-time.After(suspectPause):
		}
		m.urgent.mu.Lock()
		if !m.urgent.again[id] || ctx.Err() != nil {
			delete(m.urgent.again, id)
			m.urgent.mu.Unlock()
			return
		}
		m.urgent.again[id] = false
		m.urgent.mu.Unlock()
	}
}

// rescanEvery is how often sources are looked through for new drives.
const rescanEvery = time.Minute

func (m *Manager) rescan(ctx context.Context) {
	m.mu.Lock()
	sources := append([]*source(nil), m.sources...)
	m.mu.Unlock()
	for _, s := range sources {
		s.scan.Lock()
		due := time.Since(s.scanned) > rescanEvery
		s.scan.Unlock()
		if !due {
			continue
		}
		if err := m.discover(ctx, s); err != nil && ctx.Err() == nil {
			m.o.Logger.Debug("no drives discovered", "error", err)
		}
	}
}

func (m *Manager) health(ctx context.Context, d *drive) (backends.Health, error) {
	b, err := d.src.Backend.Full()
	if err != nil {
		return backends.Health{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, m.o.Timeout)
	defer cancel()
	return b.Health(ctx, backendID(d.id))
}

// check looks at one drive: what its store has seen, what its backend says.
// A failed drive that nobody uses is closed, and opened again when its backend
// finds it healthy.
func (m *Manager) check(ctx context.Context, d *drive) {
	d.looking.Lock()
	defer d.looking.Unlock()
	d.mu.Lock()
	s, users := d.store, d.users
	d.mu.Unlock()
	h, err := m.health(ctx, d)
	if ctx.Err() != nil {
		return
	}
	medium, reason := Ready, ""
	switch {
	case err != nil:
		// The backend process may be restarting: that says nothing of the
		// drive (rule 8), so the last state stands unless the store complains.
		m.o.Logger.Debug("no health from backend", "drive", d.id, "error", err)
	case h.State != backends.StateReady:
		medium, reason = stateOf(h.State), h.Reason
	}
	if s == nil {
		if err == nil && medium == Ready {
			m.open(ctx, d)
		} else if medium != Ready {
			m.setState(d, medium, reason)
		}
		return
	}
	info := s.Info()
	switch {
	case (info.Failed != nil || medium != Ready) && err == nil && users == 0:
		// Closed even while the medium is bad: files that stay open would keep it
		// from being unmounted, repaired and mounted again.
		if err := m.closeDrive(ctx, d, false); err != nil {
			m.o.Logger.Warn("failed drive closed", "drive", d.id, "error", err)
		}
		if medium != Ready {
			m.setState(d, medium, reason)
			return
		}
		m.open(ctx, d)
	case info.Failed != nil:
		m.setState(d, Failed, info.Failed.Error())
	case medium != Ready:
		m.setState(d, medium, reason)
	case info.Free < fullBelow:
		m.setState(d, Full, fmt.Sprintf("%d bytes of %d are free", info.Free, info.Capacity))
	default:
		m.urgent.mu.Lock()
		seen := m.urgent.seen[d.id]
		m.urgent.mu.Unlock()
		if seen.err != nil && time.Since(seen.at) < suspectFor {
			m.setState(d, Failed, "I/O on it fails: "+seen.err.Error())
			return
		}
		m.setState(d, Ready, "")
	}
}
