package session

import (
	"errors"
	"fmt"
	"time"

	"github.com/moraine-storage/moraine/drivers/replication"
)

// perform does what the core wants done, in order. Events are not called from
// within: what ends at once is kept for the next step.
func (g *Group) perform() {
	if g.performing { // a callback has called in: the loop below goes on with it
		return
	}
	g.performing = true
	for !g.dead {
		fx := g.core.Effects()
		if len(fx) == 0 {
			break
		}
		for i := range fx {
			if g.dead {
				break
			}
			g.effect(&fx[i])
		}
	}
	g.performing = false
	g.flush()
}

func (g *Group) effect(e *replication.Effect) {
	switch e.Kind {
	case replication.Send:
		g.send(e)
	case replication.Complete:
		g.complete(e)
	case replication.Release:
		g.release(e.Op)
	case replication.Close:
		g.closeLink(e.Member)
	case replication.Ask:
		g.flush() // a message never overtakes what was sent before it
		g.ask(e.Control)
	case replication.Store:
		g.o.Records.Swap(e.Rev, e.Record, func(out replication.Outcome, rev uint64) {
			g.post(func() {
				g.core.Stored(g.now(), out, rev)
				g.perform()
			})
		})
	case replication.ReadRecord:
		g.o.Records.Read(func(rec *replication.Record, rev uint64, back bool, err error) {
			g.post(func() {
				g.core.RecordRead(g.now(), rec, rev, back, err)
				g.perform()
			})
		})
	case replication.Announce:
		if g.o.Announce == nil {
			return
		}
		if err := g.o.Announce(e.Rev, e.DeviceLives, e.Err); err != nil {
			// Serving a session that no file names would let a later start
			// take this device for a stranger's (4.1.5).
			g.end(fmt.Errorf("announce session: %w", err))
		}
	case replication.Opened:
		g.resized()
		if g.o.Opened != nil {
			g.o.Opened(e.DeviceLives, e.Err)
		}
	case replication.Over:
		g.over = e.Err
		if g.o.Over != nil {
			g.o.Over(e.Err)
		}
	case replication.Finished:
		g.resized()
		if done := g.jobs[e.Job]; done != nil {
			delete(g.jobs, e.Job)
			done(e.Err)
		}
	}
}

// end gives up a session that the core would go on with.
func (g *Group) end(err error) {
	g.kill(err)
	if g.o.Over != nil {
		g.o.Over(err)
	}
}

func (g *Group) resized() {
	rec, _ := g.core.Record()
	g.size.Store(max(g.size.Load(), rec.Size))
}

// asked is a message on its way.
type asked struct {
	ctl      *replication.Control
	deadline time.Duration
	over     bool
}

// ask is the effect. The answer is in time, or it is none.
func (g *Group) ask(ctl *replication.Control) {
	a := &asked{ctl: ctl, deadline: g.now() + ctl.Timeout}
	g.asks = append(g.asks, a)
	answer := func(r replication.Reply) { g.post(func() { g.answered(a, r) }) }
	m, err := g.member(ctl.Member, ctl.Replica)
	if err != nil {
		answer(replication.Reply{Err: fmt.Errorf("reach replica %s: %w: %w", ctl.Replica, replication.ErrLost, err)})
		return
	}
	if ctl.Kind == replication.AskDrop || ctl.Kind == replication.AskThaw {
		for _, l := range g.all {
			if l.member == ctl.Member && l.layer == ctl.Layer && l.layer != (replication.SnapshotID{}) {
				g.shut(l)
			}
		}
	}
	m.Ask(ctl, answer)
}

func (g *Group) member(slot uint8, replica string) (Member, error) {
	if g.members[slot] != nil {
		return g.members[slot], nil
	}
	m, err := g.o.Find(replica)
	if err == nil && m == nil {
		err = errors.New("no such member")
	}
	if err != nil {
		return nil, err
	}
	g.members[slot] = m
	return m, nil
}

// answered: the answer to a message has come, or its time is up.
func (g *Group) answered(a *asked, r replication.Reply) {
	if a.over || g.dead {
		return
	}
	a.over = true
	for i := range g.asks {
		if g.asks[i] == a {
			last := len(g.asks) - 1
			g.asks[i], g.asks[last] = g.asks[last], nil
			g.asks = g.asks[:last]
			break
		}
	}
	if a.ctl.Kind == replication.AskPromote && r.Err == nil {
		g.closeLink(a.ctl.Member)
		l, err := g.open(a.ctl.Member, a.ctl.Gate, replication.SnapshotID{})
		if err != nil {
			r = replication.Reply{Err: fmt.Errorf("open replica %s: %w: %w", a.ctl.Replica, replication.ErrLost, err)}
		} else {
			g.links[a.ctl.Member] = l
		}
	}
	g.core.Answer(g.now(), a.ctl, r)
	g.perform()
}

// tick is the passing of time.
func (g *Group) tick(now time.Duration) {
	g.timer.Reset(g.every)
	if g.dead {
		return
	}
	wall := time.Duration(g.o.Wall().UnixNano()) - now
	if d := wall - g.wall; d > jump || d < -jump {
		g.core.ClockJumped(now)
	}
	g.wall = wall
	for i := 0; i < len(g.asks) && !g.dead; {
		if a := g.asks[i]; now >= a.deadline {
			g.answered(a, replication.Reply{Err: replication.ErrLost}) // takes it out
			continue
		}
		i++
	}
	if g.dead {
		return
	}
	for _, l := range g.links {
		if l != nil && l.conn != nil && l.conn.Err() != nil {
			m := l.member
			g.closeLink(m)
			g.core.Lost(now, m)
		}
	}
	g.idleLayers(now)
	g.core.Tick(now)
	g.perform()
}
