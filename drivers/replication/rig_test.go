package replication

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/moraine-storage/moraine/drivers/block"
)

// rig drives a core by hand: messages of the control channel and the cluster
// store answer at once unless a test holds them; data waits for the test.
type rig struct {
	t     testing.TB
	c     *Core
	now   time.Duration
	rec   Record
	rev   uint64
	sends []Effect
	done  map[*Op]error // answered to the client
	order []*Op
	over  error
	open  bool
	lives bool
	rnd   uint64

	holdStore bool                     // Stores wait in stores
	stores    []Effect                 //
	holdAsk   func(ctl *Control) bool  // these wait in asks
	asks      []*Control               //
	reply     func(ctl *Control) Reply // other than plain success
	log       []ControlKind            // what members were asked, in order
}

var rigLoss = "loss"

func newRig(t testing.TB, cfg Config, members int) *rig {
	r := &rig{t: t, done: map[*Op]error{}, rev: 1, now: time.Hour}
	r.rec = Record{Epoch: Epoch{N: 4, Tag: 1}, Active: 4, Size: 8 << 20}
	for i := range members {
		r.rec.Members = append(r.rec.Members, Member{Replica: string(rune('A' + i)), Role: InSync, LossID: rigLoss})
	}
	cfg.Node, cfg.Session[0], cfg.Local = "n", 1, "A"
	cfg.Rand = func() uint64 { r.rnd++; return r.rnd }
	r.c = New(cfg)
	return r
}

// attach brings the core to serving.
func (r *rig) attach() *rig {
	r.t.Helper()
	r.c.Attach(r.now)
	r.drain()
	for range 200 {
		if r.open {
			return r
		}
		r.tick(10 * time.Millisecond)
	}
	r.t.Fatalf("does not open: %s", r.c.Describe())
	return r
}

func (r *rig) tick(d time.Duration) {
	r.now += d
	r.c.Tick(r.now)
	r.drain()
}

func (r *rig) drain() {
	for {
		fx := slices.Clone(r.c.Effects())
		if len(fx) == 0 {
			return
		}
		for _, e := range fx {
			r.effect(e)
		}
	}
}

func (r *rig) effect(e Effect) {
	switch e.Kind {
	case Send:
		r.sends = append(r.sends, e)
	case Complete:
		r.done[e.Op] = e.Err
		r.order = append(r.order, e.Op)
	case Close:
		keep := r.sends[:0]
		var lost []Effect
		for _, s := range r.sends {
			if s.Member == e.Member {
				lost = append(lost, s)
			} else {
				keep = append(keep, s)
			}
		}
		r.sends = keep
		for _, s := range lost {
			r.c.Done(r.now, s.Op, s.Member, ErrLost)
		}
	case Ask:
		r.log = append(r.log, e.Control.Kind)
		if r.holdAsk != nil && r.holdAsk(e.Control) {
			r.asks = append(r.asks, e.Control)
			return
		}
		r.answer(e.Control)
	case Store:
		if r.holdStore {
			r.stores = append(r.stores, e)
			return
		}
		r.swap(e)
	case ReadRecord:
		rec := r.rec.clone()
		r.c.RecordRead(r.now, &rec, r.rev, false, nil)
	case Opened:
		r.open, r.lives = true, e.DeviceLives
	case Over:
		r.over = e.Err
	}
}

// apply executes a Store, whether its answer gets through or not.
func (r *rig) apply(e Effect) Outcome {
	if e.Rev != r.rev {
		return IsLost
	}
	r.rec = e.Record.clone()
	r.rev++
	return IsStored
}

func (r *rig) swap(e Effect) {
	out := r.apply(e)
	r.c.Stored(r.now, out, r.rev)
}

func (r *rig) answer(ctl *Control) {
	a := Reply{LossID: rigLoss, Promised: Promised{Epoch: Epoch{N: 4, Tag: 1}}, Size: 8 << 20}
	if r.reply != nil {
		a = r.reply(ctl)
	}
	r.c.Answer(r.now, ctl, a)
}

func (r *rig) submit(kind block.Op, off, n int64) *Op {
	o := r.c.NewOp()
	o.Kind, o.Off, o.Len = kind, off, n
	r.c.Submit(r.now, o)
	r.drain()
	return o
}

func (r *rig) write(off int64) *Op { return r.submit(block.OpWrite, off, 4096) }
func (r *rig) read(off int64) *Op  { return r.submit(block.OpRead, off, 4096) }

// land answers what was sent of an op to the members named ("AC"); nothing
// named: to all.
func (r *rig) land(o *Op, members string, err error) {
	r.t.Helper()
	var hit []Effect
	keep := r.sends[:0]
	for _, s := range r.sends {
		if s.Op == o && (members == "" || slices.Contains([]byte(members), r.c.Replica(s.Member)[0])) {
			hit = append(hit, s)
		} else {
			keep = append(keep, s)
		}
	}
	r.sends = keep
	if len(hit) == 0 {
		r.t.Fatalf("nothing of the operation was sent to %q", members)
	}
	for _, s := range hit {
		r.c.Done(r.now, o, s.Member, err)
	}
	r.drain()
}

// sentTo names the members that have an op and have not answered.
func (r *rig) sentTo(o *Op) string {
	var b []byte
	for _, s := range r.sends {
		if s.Op == o {
			b = append(b, r.c.Replica(s.Member)[0])
		}
	}
	slices.Sort(b)
	return string(b)
}

func (r *rig) acked(o *Op) bool { _, ok := r.done[o]; return ok }

func (r *rig) want(o *Op, acked bool, why string) {
	r.t.Helper()
	if r.acked(o) != acked {
		r.t.Fatalf("%s: acknowledged %v, want %v; %s", why, r.acked(o), acked, r.c.Describe())
	}
}

func (r *rig) roles() string {
	s := ""
	for _, m := range r.rec.Members {
		s += fmt.Sprintf("%s%d", m.Replica, m.Role)
	}
	return s
}
